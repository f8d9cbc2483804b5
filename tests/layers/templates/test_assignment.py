import pytest
import torch
from torch import Tensor, nn

from layers import LayerForm, UsageError, compress_layer
from layers.cost import layer_cost
from layers.form import LayerShape
from layers.pack import pack_state
from layers.templates.assignment import modulo_assignment, residual_assignment
from layers.templates.fit import fit_transforms
from layers.templates.operators import transformed


def left(transform: str, templates: Tensor, filters: Tensor, assigned: Tensor) -> Tensor:
    """Squared error (R,) of the filters (R, G, C, K_y, K_x) when each has this template, at the best gain of all."""
    base = templates.transpose(0, 1)[assigned]
    found = transformed(transform, base, fit_transforms(transform, base, filters)).flatten(1)
    filters = filters.flatten(1)
    gain = ((found * filters).sum(1) / found.square().sum(1)).clamp(min=0)
    return (gain[:, None] * found - filters).square().sum(1)


@pytest.mark.parametrize("_", range(6))
@pytest.mark.parametrize("transform", ["scalar", "rotation"])
def test_no_template_leaves_less_of_a_filter(_, transform, normal, rng):
    groups, channels, count = rng.randint(1, 3), rng.randint(1, 4), rng.randint(1, 6)
    kernel = rng.choice([(1, 1), (3, 3), (1, 5)]) if transform == "scalar" else (3, 3)
    kept = torch.zeros(count + rng.randint(0, 8), dtype=torch.bool)
    kept[rng.sample(range(len(kept)), count)] = True
    templates, weight = normal(groups, count, channels, *kernel), normal(len(kept), groups * channels, *kernel)
    found = residual_assignment(transform, weight, templates, kept)
    assert found.shape == (len(kept) - count,)
    assert found.dtype == torch.int64
    filters = weight[~kept].unflatten(1, (groups, channels))
    best = left(transform, templates, filters, found)
    for template in range(count):
        assert (left(transform, templates, filters, torch.full_like(found, template)) >= best - 1e-9).all()


@pytest.mark.parametrize("transform", ["scalar", "rotation", "affine"])
def test_a_filter_that_was_made_from_a_template_finds_it(transform, normal, rng):
    templates = normal(2, 5, 6, 3, 3)
    assigned = torch.tensor([rng.randrange(5) for _ in range(9)])
    angle = torch.full((9, 2, 1), 0.3, dtype=torch.float64)
    turned = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], -1)
    parameters = {"scalar": normal(9, 2, 3, 3), "rotation": angle, "affine": turned.view(9, 2, 2, 3)}[transform]
    made = transformed(transform, templates.transpose(0, 1)[assigned], parameters).flatten(1, 2)
    kept = torch.tensor([True] * 5 + [False] * 9)
    weight = torch.cat([templates.transpose(0, 1).flatten(1, 2), made])
    assert torch.equal(residual_assignment(transform, weight, templates, kept), assigned)


def test_a_template_of_zeros_is_nobodys_choice(normal):
    templates, weight = normal(1, 3, 4, 3, 3), normal(8, 4, 3, 3)
    templates[0, 1] = 0.0
    kept = torch.tensor([True] * 3 + [False] * 5)
    assert 1 not in residual_assignment("scalar", weight, templates, kept)
    assert residual_assignment("scalar", weight, 0 * templates, kept).tolist() == [0] * 5


def test_the_papers_mapping_is_r_mod_m():
    assert modulo_assignment(7, 3, torch.device("cpu")).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("transform", ["scalar", "rotation", "affine"])
def test_a_layer_is_nearer_to_its_filters_than_with_the_papers_mapping(transform, normal):
    conv = nn.Conv2d(6, 16, 3).double()
    errors = []
    for assignment in ("residual", None):
        layer = compress_layer(conv, LayerForm(templates=5, transform=transform, assignment=assignment))
        errors.append(float((layer.filters() - conv.weight).detach().square().sum()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(("templates", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (9, 4), (16, 4)])
def test_an_index_takes_as_many_bits_as_the_last_template_has(templates, bits):
    conv = nn.Conv2d(3, 16, 3)
    plain = LayerForm(templates=templates, transform="scalar")
    form = LayerForm(templates=templates, transform="scalar", assignment="residual")
    added = (bits * (16 - templates) + 7) // 8
    shape = LayerShape.from_module(conv)
    assert layer_cost(shape, form).size_bytes - layer_cost(shape, plain).size_bytes == added
    assert pack_state(nn.Sequential(compress_layer(conv, form)))["0.template_index"].numel() == added


@pytest.mark.parametrize(
    "knobs",
    [
        {"assignment": "random", "templates": 3, "transform": "scalar"},
        {"assignment": "residual"},
        {"assignment": "residual", "templates": 1, "transform": "scalar"},
        {"assignment": "residual", "templates": 3, "transform": "zero"},
    ],
)
def test_what_cannot_be_assigned_is_refused(knobs):
    with pytest.raises(UsageError, match=r"^assignment \(='\w+'\) must be residual, of two templates or more"):
        LayerForm(**knobs)
