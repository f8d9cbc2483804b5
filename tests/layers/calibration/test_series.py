import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import CompressedConv2d, LayerForm, OvertoneError, UsageError
from layers.calibration import inputs
from layers.calibration.series import OutputRegression
from layers.series.allocation import supports
from layers.series.basis import BASES


@pytest.fixture
def series(rng, random_conv):
    """A random convolution in a random series form."""

    def draw(**fixed):
        conv = random_conv(**fixed)
        harmonics = tuple(rng.randint(1, k) for k in conv.kernel_size)
        return conv, CompressedConv2d(conv, LayerForm(basis=rng.choice(BASES), harmonics=harmonics))

    return draw


def fit(layer: CompressedConv2d, x: Tensor, outputs: Tensor, **options) -> Tensor:
    regression = OutputRegression(layer, **options)
    regression.add(x, outputs)
    return regression.solve()


def error(layer: CompressedConv2d, coefficients: Tensor, x: Tensor, outputs: Tensor) -> float:
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.coefficients.copy_(coefficients)
        return float((twin(x) - outputs).square().sum())


@torch.no_grad()
def unfolded(layer: CompressedConv2d, x: Tensor) -> Tensor:
    """Each output place's inputs, projected on the bases: (groups, places, C / groups n_y n_x), the slow way."""
    phi = torch.kron(*layer.bases())
    patches = F.unfold(x, layer.shape.kernel, layer.dilation, (layer.margins[2], layer.margins[0]), layer.stride)
    patches = patches.unflatten(1, (x.shape[1], -1)).permute(0, 3, 1, 2) @ phi
    return patches.flatten(0, 1).unflatten(1, (layer.shape.groups, -1)).transpose(0, 1).flatten(2)


@pytest.mark.parametrize("_", range(20))
def test_solution_is_ridge_regression_written_out(_, series, images, normal, rng):
    conv, layer = series()
    x, ridge = images(conv, rng.randint(1, 4)), 10 ** rng.uniform(-4, 0)
    outputs = normal(*conv(x).shape)
    found = fit(layer, x, outputs, ridge=ridge)
    targets = outputs if conv.bias is None else outputs - conv.bias.detach()[:, None, None]
    start = layer.coefficients.detach()
    for group, rows in enumerate(unfolded(layer, x)):
        mine = slice(group * conv.out_channels // conv.groups, (group + 1) * conv.out_channels // conv.groups)
        energy = ridge * rows.square().sum(0).mean()
        damping = (energy if energy > 0 else torch.ones(())).sqrt() * torch.eye(rows.shape[1], dtype=torch.float64)
        wanted = targets[:, mine].transpose(0, 1).flatten(1).mT
        system = torch.cat([rows, damping])
        expected = torch.linalg.lstsq(system, torch.cat([wanted, damping @ start[mine].flatten(1).mT])).solution
        assert torch.allclose(found[mine].flatten(1), expected.mT, atol=1e-6)


@pytest.mark.parametrize("_", range(20))
def test_never_worse_than_the_start_on_its_own_data(_, series, images):
    conv, layer = series()
    x = images(conv, 3)
    outputs = conv(x).detach()
    start = layer.coefficients.detach()
    found = fit(layer, x, outputs)
    assert error(layer, found, x, outputs) <= error(layer, start, x, outputs) * (1 + 1e-9) + 1e-9


def test_exact_where_one_channel_can_mend_another(fill, normal):
    """The second channel is the first, one pixel on: four taps of one signal, four coefficients to make them."""
    conv = fill(nn.Conv2d(2, 8, (1, 3)).double())
    layer = CompressedConv2d(conv, LayerForm(basis="cosine", harmonics=(1, 2)))
    signal = normal(4, 1, 6, 30)
    x = torch.cat([signal[..., :-1], signal[..., 1:]], 1)
    outputs = conv(x).detach()
    assert error(layer, layer.coefficients.detach(), x, outputs) > 1.0
    assert error(layer, fit(layer, x, outputs, ridge=1e-12), x, outputs) < 1e-9


def test_outputs_of_a_series_give_its_coefficients_back(series, fill, normal):
    _, layer = series(in_channels=4, out_channels=6, groups=2, kernel_size=(3, 4), padding=(1, 2), bias=False)
    wanted = fill(copy.deepcopy(layer))
    x = normal(8, 4, 12, 12)
    assert torch.allclose(fit(layer, x, wanted(x).detach(), ridge=1e-12), wanted.coefficients, atol=1e-6)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_inputs_are_padded_as_the_layer_pads_them(mode, fill, normal):
    conv = fill(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode).double())
    layer = CompressedConv2d(conv, LayerForm(basis="chebyshev", harmonics=(3, 3)))
    x = normal(6, 2, 7, 7)
    taken = fit(layer, x, conv(x).detach(), ridge=1e-12)
    assert torch.allclose(taken, layer.coefficients, atol=1e-7)


def test_batches_and_chunks_make_no_difference(series, images, normal, monkeypatch):
    conv, layer = series()
    x = images(conv, 7)
    outputs = normal(*conv(x).shape)
    at_once = fit(layer, x, outputs)
    monkeypatch.setattr(inputs, "_CHUNK_VALUES", 1)
    regression = OutputRegression(layer)
    for part in (slice(0, 2), slice(2, 3), slice(3, 7)):
        regression.add(x[part], outputs[part])
    assert torch.allclose(regression.solve(), at_once, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_allocated_coefficients_go_where_least_error_is_left(weighted, groups, fill, normal):
    conv = fill(nn.Conv2d(4, 4, (2, 3), padding=1, groups=groups).double())
    layer = CompressedConv2d(conv, LayerForm(basis="chebyshev", harmonics=(1, 2), allocation="filter"))
    x, importance = normal(8, 4, 9, 9), normal(4).exp() ** 3 if weighted else None
    outputs = conv(x).detach()
    before = layer.frequency_support.clone()
    regression = OutputRegression(layer, ridge=1e-9)
    regression.add(x, outputs)
    found = regression.solve(importance)
    layer.set_coefficients(found, conv.weight)
    assert torch.allclose(layer.get_coefficients(), found)

    def errors(support: tuple[int, int]) -> Tensor:
        """Of every filter with this support, by a plain series layer."""
        plain = CompressedConv2d(conv, LayerForm(basis="chebyshev", harmonics=support))
        plain.set_coefficients(fit(plain, x, outputs, ridge=1e-9), conv.weight)
        return (plain(x) - outputs).square().sum((0, 2, 3)) * (1 if importance is None else importance)

    table = torch.stack([errors(support) for support in supports((2, 3))], 1).detach()
    costs = [y * x for y, x in supports((2, 3))]
    legal = [c for c in itertools.product(range(6), repeat=4) if sum(costs[s] for s in c) == 8]
    totals = [float(table[torch.arange(4), torch.tensor(c)].sum()) for c in legal]
    ours = (layer(x) - outputs).square().sum((0, 2, 3)).detach() * (1 if importance is None else importance)
    assert float(ours.sum()) == pytest.approx(min(totals), rel=1e-5, abs=1e-9)
    assert float(ours.sum()) <= float(table[torch.arange(4), before.long()].sum()) * (1 + 1e-6) + 1e-9


def test_rounded_inputs_are_what_is_regressed_on(fill, normal):
    conv = fill(nn.Conv2d(2, 4, 3).double())
    layer = CompressedConv2d(conv, LayerForm(basis="cosine", harmonics=(2, 3), bits=2))
    plain = CompressedConv2d(conv, LayerForm(basis="cosine", harmonics=(2, 3)))
    x = normal(5, 2, 9, 9)
    outputs = conv(x).detach()
    assert torch.allclose(fit(layer, x, outputs), fit(plain, layer.rounded(x), outputs), atol=1e-9)


def test_inputs_of_zeros_change_nothing(series, images):
    conv, layer = series(bias=False)
    x = torch.zeros_like(images(conv))
    assert torch.equal(fit(layer, x, conv(x).detach()), layer.coefficients)


def test_what_cannot_be_calibrated_is_refused(fill, normal):
    conv = nn.Conv2d(4, 8, 3, groups=2)
    form = LayerForm(basis="cosine", harmonics=(2, 2), templates=3, transform="scalar")
    with pytest.raises(UsageError, match=r"^form \(=LayerForm\(.*\)\) must have no templates for this calibration$"):
        OutputRegression(CompressedConv2d(conv, form))
    layer = CompressedConv2d(conv, LayerForm(basis="cosine", harmonics=(2, 2)))
    regression = OutputRegression(layer)
    regression.add(torch.full((1, 4, 5, 5), torch.inf), torch.zeros(1, 8, 3, 3))
    with pytest.raises(OvertoneError, match=r"its inputs or outputs are not finite"):
        regression.solve()
