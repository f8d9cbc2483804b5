import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import LayerForm, UsageError, compress_model
from layers.templates.assignment import modulo_assignment
from layers.templates.rebuild import (
    choose_templates,
    fitted_transforms,
    output_operators,
    rebuild_filters,
    two_stage_conv2d,
)

ONLY = torch.tensor([0])
"""The template of a single rebuilt filter, where there is one."""


@pytest.fixture
def setting(rng, normal):
    """Random templates (G, M, C / G, K_y, K_x), gains, the mask of the kept filters, M of N, and who has which."""

    def draw(kernel: tuple[int, int] | None = None, **fixed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        groups, channels = fixed.get("groups", rng.randint(1, 4)), fixed.get("channels", rng.randint(1, 4))
        filters = fixed.get("filters", rng.randint(1, 13))
        count = fixed.get("count", rng.randint(1, filters))
        kernel = kernel or rng.choice([(1, 1), (3, 3), (2, 4), (1, 5), (5, 2)])
        kept = torch.zeros(filters, dtype=torch.bool)
        kept[rng.sample(range(filters), count)] = True
        assigned = torch.tensor([rng.randrange(count) for _ in range(filters - count)], dtype=torch.int64)
        return normal(groups, count, channels, *kernel), normal(filters - count, groups, *kernel), kept, assigned

    return draw


def oracle_filters(templates: Tensor, gains: Tensor, kept: Tensor, assigned: Tensor) -> Tensor:
    """Filter by filter: the next template, or the r-th gains times the r-th filter's template, groups side by side."""
    groups = len(templates)
    filters, used, rebuilt = [], 0, 0
    for is_kept in kept.tolist():
        if is_kept:
            filters.append(torch.cat([templates[g, used] for g in range(groups)]))
            used += 1
        else:
            source = int(assigned[rebuilt])
            filters.append(torch.cat([templates[g, source] * gains[rebuilt, g] for g in range(groups)]))
            rebuilt += 1
    return torch.stack(filters)


@pytest.mark.parametrize("_", range(20))
def test_filters_are_kept_templates_and_gains_times_templates(_, setting):
    templates, gains, kept, assigned = setting()
    expected = oracle_filters(templates, gains, kept, assigned)
    assert torch.equal(rebuild_filters(templates, "scalar", gains, kept, assigned), expected)


@pytest.mark.parametrize("_", range(30))
def test_two_stages_equal_the_dense_convolution(_, setting, rng, normal):
    templates, gains, kept, assigned = setting()
    groups, _, channels, *kernel = templates.shape
    dilation = rng.randint(1, 2), rng.randint(1, 2)
    stride, padding = (rng.randint(1, 3), rng.randint(1, 3)), (rng.randint(0, 2), rng.randint(0, 2))
    size = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + rng.choice([0, 1, 4]) for i in (0, 1)]
    x = normal(2, groups * channels, *size)
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    expected = F.conv2d(x, oracle_filters(templates, gains, kept, assigned), **where)
    operators = output_operators("scalar", gains, kept, assigned, tuple(kernel))
    place = {"stride": stride, "margins": (padding[1], padding[1], padding[0], padding[0]), "dilation": dilation}
    found = two_stage_conv2d(x, templates, *operators, **place)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-10)


def test_gradients_of_both_executions(setting, normal):
    templates, gains, kept, assigned = setting(groups=2, channels=2, filters=5, count=2)
    x = normal(1, 4, 6, 6).requires_grad_()
    templates.requires_grad_()
    gains.requires_grad_()

    def two_stage(x: Tensor, templates: Tensor, gains: Tensor) -> Tensor:
        operators = output_operators("scalar", gains, kept, assigned, tuple(templates.shape[3:]))
        return two_stage_conv2d(x, templates, *operators, stride=(2, 1), margins=(0, 0, 1, 1), dilation=(1, 1))

    assert torch.autograd.gradcheck(two_stage, (x, templates, gains))
    assert torch.autograd.gradcheck(lambda t, g: rebuild_filters(t, "scalar", g, kept, assigned), (templates, gains))


@pytest.mark.parametrize("_", range(10))
def test_gains_are_the_least_squares_answer_of_each_tap(_, setting, normal):
    templates, gains, kept, assigned = setting()
    groups, _, channels, k_y, k_x = templates.shape
    weight = normal(len(kept), groups * channels, k_y, k_x)
    found = fitted_transforms("scalar", weight, templates, kept, assigned)
    assert found.shape == gains.shape
    pruned = weight[~kept]
    for r in range(len(gains)):
        for g in range(groups):
            for y in range(k_y):
                for x in range(k_x):
                    basis = templates[g, assigned[r], :, y, x, None]
                    wanted = pruned[r, g * channels : (g + 1) * channels, y, x, None]
                    expected = torch.linalg.lstsq(basis, wanted).solution
                    assert torch.allclose(found[r, g, y, x], expected, atol=1e-9)


def test_no_perturbation_of_the_gains_is_nearer(setting, normal):
    templates, _, kept, assigned = setting(filters=9, count=3)
    weight = normal(9, templates.shape[0] * templates.shape[2], *templates.shape[3:])
    gains = fitted_transforms("scalar", weight, templates, kept, assigned)

    def error(gains: Tensor) -> Tensor:
        return (rebuild_filters(templates, "scalar", gains, kept, assigned) - weight).square().sum()

    best = error(gains)
    assert all(error(gains + scale * normal(*gains.shape)) > best for scale in (1e-3, 0.1, 1.0) for _ in range(10))


def test_gain_of_a_tap_at_which_the_template_is_zero_is_zero(normal):
    templates, weight = normal(1, 1, 2, 3, 3), normal(2, 2, 3, 3)
    templates[0, 0, :, 1, 2] = 0.0
    gains = fitted_transforms("scalar", weight, templates, torch.tensor([True, False]), ONLY)
    assert gains[0, 0, 1, 2] == 0.0
    assert torch.count_nonzero(gains) == 8


def test_gain_of_a_tap_at_which_the_template_cancels_to_rounding_is_zero(normal):
    templates, weight = normal(1, 1, 2, 3, 3), normal(2, 2, 3, 3)
    templates[0, 0, :, 1, 2] *= 1e-17
    gains = fitted_transforms("scalar", weight, templates, torch.tensor([True, False]), ONLY)
    assert gains[0, 0, 1, 2] == 0.0
    assert torch.count_nonzero(gains) == 8
    assert torch.equal(fitted_transforms("scalar", weight, 0 * templates, torch.tensor([True, False]), ONLY), 0 * gains)


@pytest.mark.parametrize("_", range(5))
def test_kept_filters_are_rebuilt_exactly(_, rng, normal):
    filters, groups = rng.randint(2, 12), rng.choice([1, 2, 4])
    weight = normal(filters, 8, 3, 3)
    kept = choose_templates(weight, rng.randint(1, filters))
    templates = weight[kept].unflatten(1, (groups, -1)).transpose(0, 1)
    assigned = modulo_assignment(int((~kept).sum()), int(kept.sum()), kept.device)
    gains = fitted_transforms("scalar", weight, templates, kept, assigned)
    rebuilt = rebuild_filters(templates, "scalar", gains, kept, assigned)
    assert torch.equal(rebuilt[kept], weight[kept])
    assert (rebuilt - weight).square().sum() < weight[~kept].square().sum() or kept.all()


@pytest.mark.parametrize("_", range(5))
def test_templates_are_the_filters_of_largest_norm(_, rng, normal):
    weight = normal(rng.randint(1, 40), 3, 2, 2)
    weight *= normal(len(weight), 1, 1, 1)
    count = rng.randint(1, len(weight))
    norms = [sum(v * v for v in row) for row in weight.flatten(1).tolist()]
    expected = sorted(range(len(weight)), key=lambda n: -norms[n])[:count]
    assert choose_templates(weight, count).nonzero().flatten().tolist() == sorted(expected)


def test_templates_are_the_most_salient_filters_where_that_is_said(rng, normal):
    weight, saliency = normal(12, 3, 2, 2), normal(12)
    expected = sorted(range(12), key=lambda n: -float(saliency[n]))[:5]
    assert choose_templates(weight, 5, saliency).nonzero().flatten().tolist() == sorted(expected)
    conv = nn.Conv2d(3, 12, 2)
    model = compress_model(nn.Sequential(conv), {"0": LayerForm(templates=5, transform="scalar")}, {"0": saliency})
    assert model[0].template_mask.nonzero().flatten().tolist() == sorted(expected)
    for wrong in (saliency[:11], saliency / 0):
        with pytest.raises(
            UsageError, match=r"^saliency \(of shape \(1[12],\)\) must be a finite number for each of the 12"
        ):
            choose_templates(weight, 5, wrong)


def test_ties_go_to_the_lower_index():
    weight = torch.ones(300, 1, 3, 3)
    weight[250:] *= -1
    weight[7] *= 2
    kept = choose_templates(weight, 5)
    assert kept.nonzero().flatten().tolist() == [0, 1, 2, 3, 7]


@pytest.mark.parametrize("_", range(10))
def test_macs_of_the_first_stage_are_those_of_equation_5(_, rng, setting, normal, count_macs):
    # One channel or one tap would make a plain product of a sum, which PyTorch's counter leaves out.
    templates, gains, kept, assigned = setting((2, rng.randint(1, 4)), channels=rng.randint(2, 4))
    groups, count, channels, k_y, k_x = templates.shape
    x, operators = normal(2, groups * channels, 7, 6), output_operators("scalar", gains, kept, assigned, (k_y, k_x))

    def call() -> Tensor:
        return two_stage_conv2d(x, templates, *operators, stride=(1, 1), margins=(2, 2, 2, 2), dilation=(1, 1))

    assert count_macs(call, images=2) == 7 * 6 * k_y * k_x * groups * channels * count
