import math

import pytest
import torch
from torch.nn import functional as F

from layers import UsageError
from layers.templates.fit import fit_transforms
from layers.templates.operators import tap_operators, transformed
from layers.templates.rebuild import fitted_transforms, output_operators, rebuild_filters, two_stage_conv2d
from layers.templates.transforms import TRANSFORMS, parameter_shape

MIXING = ("rotation", "affine")
KERNELS = [(3, 3), (1, 1), (5, 3), (2, 4), (1, 5)]


def identity_parameters(transform, kernel):
    """Those that leave a template as it is."""
    kinds = {"scalar": torch.ones(kernel), "rotation": torch.zeros(1), "affine": torch.eye(2, 3)}
    return kinds[transform].double()


def parameters_of(transform, normal, *counts, kernel):
    """Random ones about the identity."""
    if transform == "zero":
        return normal(*counts, 0)
    about = identity_parameters(transform, kernel)
    return about + normal(*counts, *about.shape)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t != "zero"])
def test_identity_is_exact(transform, kernel):
    parameters = identity_parameters(transform, kernel)
    assert parameters.shape == parameter_shape(transform, kernel)
    taps = kernel[0] * kernel[1]
    assert torch.equal(tap_operators(transform, parameters, kernel), torch.eye(taps, dtype=torch.float64))


@pytest.mark.parametrize("kernel", KERNELS)
def test_affine_is_grid_sample_of_each_tap(kernel, normal):
    template, matrix = normal(4, *kernel), identity_parameters("affine", kernel) + 0.4 * normal(2, 3)
    height, width = kernel
    grid = torch.empty(1, height, width, 2, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            place = torch.tensor([y - (height - 1) / 2, x - (width - 1) / 2, 1.0], dtype=torch.float64)
            to_y, to_x = matrix @ place
            # grid_sample counts from the corners of the outer pixels, which are at -1 and 1
            grid[0, y, x] = torch.stack([2 * to_x / width, 2 * to_y / height])
    expected = F.grid_sample(template[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    assert torch.allclose(transformed("affine", template, matrix), expected, atol=1e-12)


def test_quarter_turns_turn_the_template(normal):
    template = normal(2, 3, 3)
    for quarters in range(4):
        angle = torch.tensor([quarters * math.pi / 2], dtype=torch.float64)
        found = transformed("rotation", template, angle)
        assert torch.allclose(found, template.rot90(-quarters, (1, 2)), atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_operators_do_what_transforms_do(transform, normal, rng):
    kernel = rng.choice(KERNELS)
    base, parameters = normal(5, 2, 3, *kernel), parameters_of(transform, normal, 5, 2, kernel=kernel)
    operators = tap_operators(transform, parameters, kernel)
    expected = torch.einsum("rglk,rgck->rgcl", operators, base.flatten(3)).view(base.shape)
    assert torch.allclose(transformed(transform, base, parameters), expected, atol=1e-12)
    assert (operators != 0).sum(-1).max() <= {"scalar": 1, "zero": 0}.get(transform, 4)


@pytest.mark.parametrize("transform", MIXING)
def test_gradients(transform, normal):
    base = normal(3, 2, 2, 3, 3).requires_grad_()
    parameters = parameters_of(transform, normal, 3, 2, kernel=(3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda b, p: transformed(transform, b, p), (base, parameters))


@pytest.mark.parametrize("transform", MIXING)
def test_the_identity_can_be_left(transform, normal):
    """Linear weights have a kink where a place falls on a tap; a derivative of zero there would hold it for ever."""
    parameters = identity_parameters(transform, (3, 3)).requires_grad_()
    transformed(transform, normal(4, 3, 3), parameters).mul(normal(4, 3, 3)).sum().backward()
    assert (parameters.grad != 0).all()


@pytest.mark.parametrize("_", range(6))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_two_stages_equal_the_dense_convolution(_, transform, normal, rng):
    groups, channels, filters = rng.randint(1, 3), rng.randint(1, 3), rng.randint(2, 9)
    count, kernel = rng.randint(1, filters), rng.choice(KERNELS)
    kept = torch.zeros(filters, dtype=torch.bool)
    kept[rng.sample(range(filters), count)] = True
    templates = normal(groups, count, channels, *kernel)
    parameters = parameters_of(transform, normal, filters - count, groups, kernel=kernel)
    dilation, stride = (rng.randint(1, 2), rng.randint(1, 2)), (rng.randint(1, 3), rng.randint(1, 3))
    padding = (rng.randint(0, 2), rng.randint(0, 2))
    size = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + rng.choice([0, 1, 4]) for i in (0, 1)]
    x, where = normal(2, groups * channels, *size), {"stride": stride, "padding": padding, "dilation": dilation}
    assigned = torch.tensor([rng.randrange(count) for _ in range(filters - count)], dtype=torch.int64)
    dense = rebuild_filters(templates, transform, parameters, kept, assigned)
    if transform == "zero":
        assert not dense[~kept].any()
    operators = output_operators(transform, parameters, kept, assigned, kernel)
    place = {"stride": stride, "margins": (padding[1], padding[1], padding[0], padding[0]), "dilation": dilation}
    found = two_stage_conv2d(x, templates, *operators, **place)
    assert torch.allclose(found, F.conv2d(x, dense, **where), atol=1e-10)


@pytest.mark.parametrize("transform", MIXING)
def test_a_transform_that_was_made_is_found_again(transform, normal, rng):
    base = normal(6, 2, 5, 3, 3)
    angles = (2 * math.pi / 64) * torch.tensor([[[float(rng.randrange(64))] for _ in "ab"] for _ in range(6)]).double()
    turned = transformed("rotation", base, angles)
    found = fit_transforms(transform, base, turned)
    assert found.shape == (6, 2, *parameter_shape(transform, (3, 3)))
    error = (transformed(transform, base, found) - turned).square().sum() / turned.square().sum()
    assert error < (1e-20 if transform == "rotation" else 0.01)


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t != "zero"])
def test_starts_are_nearer_than_the_identity_and_the_same_each_time(transform, normal):
    base, wanted = normal(7, 2, 4, 3, 3), normal(7, 2, 4, 3, 3)
    found = fit_transforms(transform, base, wanted)
    assert torch.equal(found, fit_transforms(transform, base, wanted))
    errors = (transformed(transform, base, found) - wanted).square().sum((2, 3, 4))
    assert (errors < (base - wanted).square().sum((2, 3, 4))).all()


def test_pruned_filters_have_no_parameters(normal):
    kept = torch.tensor([True, False, True])
    found = fitted_transforms("zero", normal(3, 4, 3, 3), normal(2, 2, 2, 3, 3), kept, torch.tensor([1]))
    assert found.shape == (1, 2, 0)


def test_unknown_families_are_refused():
    with pytest.raises(UsageError, match=r"transform \(='spin'\) must be one of scalar, rotation, affine, zero$"):
        parameter_shape("spin", (3, 3))
