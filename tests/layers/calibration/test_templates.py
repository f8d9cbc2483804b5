from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layers import LayerForm, OvertoneError, UsageError
from layers.calibration import inputs
from layers.calibration.templates import TemplateRegression
from layers.conv import CompressedConv2d


@pytest.fixture
def case(fill, normal, rng):
    """A convolution, grouped where it has parts, its form with templates, inputs, and outputs that it should give."""

    def draw(transform="scalar", parts=1, **knobs):
        places = {"stride": rng.choice([1, 2]), "padding": rng.choice([0, 1]), "groups": parts}
        conv = fill(nn.Conv2d(4, 8, (3, 2), bias=True, **places).double())
        form = LayerForm(templates=3, transform=transform, **knobs)
        x = normal(24, 4, 9, 8)
        return conv, form, x, conv(x).detach() + 0.1 * normal(*conv(x).shape)

    return draw


def placed(conv, form, x, outputs, **options):
    layer = CompressedConv2d(conv, form)
    regression = TemplateRegression(layer, **options)
    regression.add(x, outputs)
    regression.apply(conv.weight.detach())
    return layer


def error(layer, x, outputs):
    return (layer(x) - outputs).square().sum((0, 2, 3)).detach()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "knobs", [{}, {"basis": "cosine", "harmonics": (2, 2)}, {"assignment": "residual"}, {"parts": 2}]
)
def test_no_change_of_templates_or_gains_gives_nearer_outputs(groups, knobs, case, normal):
    conv, form, x, outputs = case(groups=groups, **knobs)
    layer = placed(conv, form, x, outputs, ridge=1e-12)
    kept, best = layer.template_mask, error(layer, x, outputs)
    for scale in (1e-3, 0.1):
        for _ in range(5):
            other = placed(conv, form, x, outputs, ridge=1e-12)
            with torch.no_grad():
                other.gains += scale * normal(*other.gains.shape)
            assert (error(other, x, outputs)[~kept] > best[~kept]).all()
            with torch.no_grad():
                other.coefficients += scale * normal(*other.coefficients.shape)
            assert (error(other, x, outputs)[kept] > best[kept]).all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_each_rebuilt_filter_has_the_template_that_serves_its_outputs_best(parts, groups, case):
    conv, form, x, outputs = case(groups=1 if parts == 4 else groups, assignment="residual", parts=parts)
    layer = placed(conv, form, x, outputs, ridge=1e-12)
    best, tried = error(layer, x, outputs)[~layer.template_mask], []
    for template in range(3):
        plain = CompressedConv2d(conv, replace(form, assignment=None))
        plain.assignment = lambda template=template: torch.full((5,), template)  # one for all
        regression = TemplateRegression(plain, ridge=1e-12)
        regression.add(x, outputs)
        regression.apply(conv.weight.detach())
        assert torch.equal(plain.template_mask, layer.template_mask)
        tried.append(error(plain, x, outputs)[~layer.template_mask])
    assert torch.allclose(torch.stack(tried).amin(0), best, rtol=1e-6)
    if parts * groups < 4:  # with a single channel gains make any filter of any template
        assert layer.assignment().tolist() == torch.stack(tried).argmin(0).tolist()


@pytest.mark.parametrize("parts", [1, 2])
def test_kept_filters_are_those_of_plain_least_squares(parts, case):
    conv, form, x, outputs = case(parts=parts)
    layer = placed(conv, form, x, outputs, ridge=1e-12)
    seen = F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    wanted = (outputs - conv.bias.detach()[:, None, None]).flatten(2).transpose(1, 2).flatten(0, 1)
    found = [
        torch.linalg.lstsq(inputs, those).solution.T
        for inputs, those in zip(seen.chunk(parts, 1), wanted.chunk(parts, 1), strict=True)
    ]
    expected = torch.cat(found).view(8, -1, 3, 2)
    assert torch.allclose(layer.filters()[layer.template_mask], expected[layer.template_mask], atol=1e-7)


def test_batches_add_up(case, monkeypatch):
    conv, form, x, outputs = case(groups=2, bits=6)
    at_once = placed(conv, form, x, outputs)
    monkeypatch.setattr(inputs, "_CHUNK_VALUES", 1)
    layer = CompressedConv2d(conv, form)
    regression = TemplateRegression(layer)
    for part in (slice(0, 5), slice(5, 6), slice(6, 24)):
        regression.add(x[part], outputs[part])
    regression.apply(conv.weight.detach())
    for name, value in at_once.state_dict().items():
        assert torch.allclose(layer.state_dict()[name].double(), value.double(), atol=1e-8)


@pytest.mark.parametrize("transform", ["scalar", "rotation", "affine", "zero"])
def test_outputs_come_nearer_than_with_the_nearest_filters(transform, case, normal):
    """The inputs are not those that the filters were trained for: a channel is another one's copy."""
    conv, form, x, outputs = case(transform, groups=2)
    x = torch.cat([x[:, :1], x[:, :1], x[:, 2:]], 1)
    plain, layer = CompressedConv2d(conv, form), placed(conv, form, x, outputs)
    assert error(layer, x, outputs).sum() < error(plain, x, outputs).sum()
    assert (
        error(layer, x, outputs)[layer.template_mask] <= error(plain, x, outputs)[layer.template_mask] * (1 + 1e-9)
    ).all()


def test_a_large_ridge_changes_nothing(case):
    conv, form, x, outputs = case()
    plain, layer = CompressedConv2d(conv, form), placed(conv, form, x, outputs, ridge=1e15)
    assert torch.allclose(layer.filters(), plain.filters(), atol=1e-6)


def test_inputs_of_zeros_change_nothing(case):
    conv, form, x, _ = case()
    x = torch.zeros_like(x)
    plain = CompressedConv2d(conv, form)
    assert torch.allclose(placed(conv, form, x, conv(x).detach()).filters(), plain.filters(), atol=1e-12)


def test_what_cannot_be_calibrated_is_refused(case):
    conv, form, x, outputs = case()
    with pytest.raises(UsageError, match=r"^form \(=LayerForm\(.*\)\) must have templates for this calibration$"):
        TemplateRegression(CompressedConv2d(conv, LayerForm(bits=4)))
    regression = TemplateRegression(CompressedConv2d(conv, form))
    regression.add(torch.full_like(x, torch.inf), outputs)
    with pytest.raises(OvertoneError, match=r"its inputs or outputs are not finite"):
        regression.apply(conv.weight.detach())
