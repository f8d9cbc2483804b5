import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import LayerForm, OvertoneError, UsageError, compress_model
from layers.calibration.series import OutputRegression
from trainers.start import calibration as module
from trainers.start.calibration import calibrate

SERIES = LayerForm(basis="cosine", harmonics=(2, 2))
FORMS = {"first": SERIES, "inner.second": LayerForm(basis="chebyshev", harmonics=(2, 1)), "last": LayerForm(bits=8)}


class Net(nn.Module):
    """Two convolutions, the second grouped and across a shortcut, and a norm before any compressed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.BatchNorm2d(3)
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.ModuleDict({"second": nn.Conv2d(4, 4, 3, padding=1, groups=2), "norm": nn.BatchNorm2d(4)})
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(self.stem(x))))
        x = x + self.inner["norm"](self.inner["second"](x))
        return self.last(self.drop(x).mean((2, 3)))


@pytest.fixture
def baseline(generator: torch.Generator, x: Tensor) -> nn.Module:
    """Norms know roughly what reaches them, so that no channel is dead on these images."""
    net = Net().eval()

    def learn(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
        norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 2.0, generator=generator))
        norm.running_mean.copy_(mean + 0.3 * variance.sqrt() * torch.randn(mean.shape, generator=generator))

    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.5, 0.5, generator=generator)
        hooks = [norm.register_forward_pre_hook(learn) for norm in norms]
        net(x)
    for hook in hooks:
        hook.remove()
    return net


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    smooth = F.avg_pool2d(torch.randn(24, 3, 14, 14, generator=generator), 3, stride=1)
    return torch.cat([smooth, smooth.roll(1, 3)])[torch.randperm(48, generator=generator)]


def record(net: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every module in one pass."""
    found, hooks = {}, []
    for name, part in net.named_modules():
        hooks.append(part.register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, (i[0], o))))
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    return found


def move_statistics(norm: nn.BatchNorm2d, inputs: Tensor, before: Tensor) -> None:
    """Channel by channel: the images' own statistics, mended by how far the original's are off on them."""
    for channel in range(inputs.shape[1]):
        both = torch.stack([inputs[:, channel].flatten(), before[:, channel].flatten()])
        (spread, together), (_, spread_before) = torch.cov(both)
        (mean, mean_before), slope = both.mean(1), together / spread_before
        correlation = torch.corrcoef(both)[0, 1]
        norm.running_mean[channel] = mean + slope * (norm.running_mean[channel] - mean_before)
        norm.running_var[channel] = spread * (norm.running_var[channel] / spread_before) ** correlation.square()


@torch.no_grad()
def by_hand(baseline: nn.Module, x: Tensor) -> nn.Module:
    """One pass of each network before every layer and norm in turn: slow, and without pairs."""
    model, original = compress_model(baseline, FORMS).eval(), record(baseline, x)
    for name in ("first", "norm", "inner.second", "inner.norm", "last"):
        inputs, part = record(model, x)[name][0], model.get_submodule(name)
        if isinstance(part, nn.BatchNorm2d):
            move_statistics(part, inputs, original[name][0])
        else:
            regression = OutputRegression(part)
            regression.add(inputs, original[name][1])
            part.set_coefficients(regression.rounded(regression.solve()))
    return model


def same(one: nn.Module, other: nn.Module, **tolerance: float) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.allclose(value, states[1][name], **tolerance) for name, value in states[0].items())


@pytest.mark.parametrize("images_a_piece", [48, 20, 7, 1])
def test_a_paired_pass_in_pieces_does_what_is_done_layer_by_layer_by_hand(images_a_piece, baseline, x, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_PIXELS", images_a_piece * x.shape[2] * x.shape[3])
    model = compress_model(baseline, FORMS)
    calibrate(model, baseline, x)
    assert not same(model, compress_model(baseline, FORMS), atol=1e-2)
    assert same(model, by_hand(baseline, x), rtol=1e-3, atol=1e-4)


def test_statistics_stay_where_nothing_changes(baseline, x):
    model = compress_model(baseline, dict.fromkeys(FORMS, LayerForm()))
    calibrate(model, baseline, x)
    for name, value in baseline.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            assert torch.allclose(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_statistics_of_a_channel_behind_dead_inputs_stay_too(baseline, x):
    """Constant on these images, up to rounding: there is nothing to correlate."""
    with torch.no_grad():
        baseline.norm.weight.zero_()
        baseline.norm.bias.fill_(-1.0)
    model = compress_model(baseline, {"inner.second": LayerForm()})
    calibrate(model, baseline, x)
    norm, found = baseline.inner.norm, model.inner["norm"]
    assert torch.allclose(found.running_mean, norm.running_mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found.running_var, norm.running_var, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert model(x).isfinite().all()


def test_few_images_tell_more_beside_the_trained_statistics(baseline, generator):
    """Of a slightly changed network; the trained statistics are those of all images."""
    everything = F.avg_pool2d(torch.randn(2000, 3, 14, 14, generator=generator) + 0.5, 3, stride=1)
    everything = everything * torch.rand(2000, 1, 1, 1, generator=generator)
    for name in ("stem", "norm", "inner.norm"):
        norm, inputs = baseline.get_submodule(name), record(baseline, everything)[name][0]
        norm.running_mean.copy_(inputs.mean((0, 2, 3)))
        norm.running_var.copy_(inputs.var((0, 2, 3)))
    model = compress_model(baseline, {"first": LayerForm(bits=4, exponent_block=16)})
    few = everything[:16]
    calibrate(model, baseline, few)
    inputs = record(model, everything)["norm"][0]
    alone = record(model, few)["norm"][0]
    for found, plain, truth in (
        (model.norm.running_mean, alone.mean((0, 2, 3)), inputs.mean((0, 2, 3))),
        (model.norm.running_var.log(), alone.var((0, 2, 3)).log(), inputs.var((0, 2, 3)).log()),
    ):
        assert 2 * (found - truth).norm() < (plain - truth).norm()


@pytest.mark.parametrize("layer", ["first", "inner.second"])
def test_no_layer_is_farther_from_its_outputs_than_with_the_nearest_filters(layer, baseline, x):
    fitted, plain = compress_model(baseline, FORMS), compress_model(baseline, FORMS)
    calibrate(fitted, baseline, x)
    inputs, outputs = record(fitted, x)[layer]
    wanted = record(baseline, x)[layer][1]
    with torch.no_grad():
        nearest = plain.get_submodule(layer)(inputs)
    assert (outputs - wanted).square().sum() < (nearest - wanted).square().sum()


def test_nothing_else_changes(baseline, x):
    before, model = copy.deepcopy(baseline), compress_model(baseline, FORMS)
    model.train()
    model.drop.eval()
    calibrate(model, baseline, x)
    assert same(baseline, before)
    assert model.training
    assert not model.drop.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(model.stem.running_mean, baseline.stem.running_mean)
    assert torch.equal(model.inner["second"].bias, baseline.inner["second"].bias)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_uncompressed_network_stays_as_it_is(baseline, x):
    model = compress_model(baseline, {})
    calibrate(model, baseline, x)
    assert same(model, baseline)


def test_templates_are_fitted_and_their_gains_follow(baseline, x):
    form = LayerForm(basis="cosine", harmonics=(2, 2), templates=2, transform="scalar")
    model, plain = compress_model(baseline, {"first": form}), compress_model(baseline, {"first": form})
    calibrate(model, baseline, x)
    assert not torch.allclose(model.first.coefficients, plain.first.coefficients)
    assert not torch.allclose(model.first.gains, plain.first.gains)


def test_templates_of_grouped_convolutions_give_nearer_outputs_too(baseline, x):
    form = LayerForm(basis="cosine", harmonics=(2, 2), templates=2, transform="scalar")
    model, plain = compress_model(baseline, {"inner.second": form}), compress_model(baseline, {"inner.second": form})
    calibrate(model, baseline, x)
    inputs, outputs = record(baseline, x)["inner.second"]
    fitted, nearest = model.inner["second"], copy.deepcopy(model.inner["second"])
    nearest.set_coefficients(fitted.get_coefficients(), baseline.inner["second"].weight, fitted.assignment())

    def error(layer: nn.Module, filters: Tensor) -> float:
        return (layer(inputs) - outputs)[:, filters].square().sum().item()

    assert error(fitted, fitted.template_mask) < error(plain.inner["second"], fitted.template_mask)
    assert error(fitted, ~fitted.template_mask) < error(nearest, ~fitted.template_mask), "with the same templates"
    assert not torch.equal(model.inner["norm"].running_var, baseline.inner["norm"].running_var)


def test_coefficients_are_spent_where_the_norm_behind_lets_errors_through(baseline, x):
    spent = LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter")
    model = compress_model(baseline, {"first": spent})
    calibrate(model, baseline, x)
    layer = compress_model(baseline, {"first": spent}).first
    regression = OutputRegression(layer)
    inputs, outputs = record(baseline, x)["first"]
    regression.add(inputs, outputs)
    scale = baseline.norm.weight.detach().square() / (baseline.norm.running_var + baseline.norm.eps)
    layer.set_coefficients(regression.solve(scale.double()), baseline.first.weight)
    assert torch.equal(model.first.frequency_support, layer.frequency_support)
    assert torch.allclose(model.first.coefficients, layer.coefficients, atol=1e-4)


def test_norms_are_found_behind_the_layers_that_feed_them(baseline, x):
    assert module._norms_behind(baseline, x[:1]) == {"first": "norm", "inner.second": "inner.norm"}
    between = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))
    assert module._norms_behind(between, x[:1]) == {}


def test_a_layer_that_is_called_twice_is_fitted_at_its_first_call(generator):
    shared = nn.Conv2d(3, 3, 3, padding=1)
    baseline = nn.Sequential(shared, nn.ReLU(), shared, nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()).eval()
    model = compress_model(nn.Sequential(baseline), {"0.0": SERIES})[0]
    model[2] = model[0]
    x = torch.randn(20, 3, 6, 6, generator=generator)
    calibrate(nn.Sequential(model), nn.Sequential(baseline), x)
    regression = OutputRegression(compress_model(nn.Sequential(baseline), {"0.0": SERIES})[0][0])
    with torch.no_grad():
        regression.add(x, shared(x))
    assert torch.allclose(model[0].coefficients, regression.solve(), atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 12, 12), (8, 3), (0, 3, 12, 12), (3, 12, 12)])
def test_images_that_do_not_fit_are_refused(shape, baseline):
    model = compress_model(baseline, FORMS)
    with pytest.raises(
        UsageError, match=r"calibration images \(=\(.*\)\) (must be \(n, C, H, W\)|must fit the network: )"
    ):
        calibrate(model, baseline, torch.zeros(shape))
    assert same(model, compress_model(baseline, FORMS))


def test_images_that_are_not_finite_are_refused(baseline):
    with pytest.raises(OvertoneError, match=r"layer 'first': .* its inputs or outputs are not finite"):
        calibrate(compress_model(baseline, FORMS), baseline, torch.full((4, 3, 6, 6), torch.nan))


class Rows(nn.Module):
    """A 1-D convolution with a bias, over the rows of what a 2-D one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.along = nn.Conv1d(12, 10, 5, padding=2)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.along(F.relu(self.first(x)).mean(2))).mean(2))


@pytest.mark.parametrize(
    "form",
    [
        LayerForm(basis="cosine", harmonics=(1, 2)),
        LayerForm(basis="cosine", harmonics=(1, 2), allocation="filter"),
        LayerForm(templates=4, transform="scalar", assignment="residual"),
    ],
)
def test_a_convolution_along_one_axis_is_calibrated_too(form, x):
    net = Rows().eval()
    wanted, errors = record(net, x)["along"][1], []
    for calibrated in (False, True):
        model = compress_model(net, {"along": form})
        if calibrated:
            calibrate(model, net, x)
        errors.append((record(model, x)["along"][1] - wanted).square().mean())
    assert errors[1] < errors[0]


def test_an_objective_may_ask_for_other_pairs_or_leave_layers_as_they_are(baseline, x):
    seen = []

    def leave(original: nn.Module, x: Tensor, x0: Tensor, y0: Tensor) -> None:
        seen.append(original.weight.shape)
        assert torch.equal(original(x0), y0)

    model, plain = compress_model(baseline, FORMS), compress_model(baseline, FORMS)
    calibrate(model, baseline, x, objective=leave)
    assert seen == [baseline.first.weight.shape, baseline.inner["second"].weight.shape, baseline.last.weight.shape]
    assert torch.equal(model.first.coefficients, plain.first.coefficients)
    assert not torch.equal(model.norm.running_mean, plain.norm.running_mean)
    calibrate(plain, baseline, x, objective=lambda original, x, x0, y0: (x0, y0))
    expected = OutputRegression(compress_model(baseline, FORMS).inner["second"])
    expected.add(*record(baseline, x)["inner.second"])
    assert torch.allclose(plain.inner["second"].coefficients, expected.solve(), atol=1e-4)


def test_norms_take_the_statistics_that_are_asked_for(baseline, x):
    model = compress_model(baseline, FORMS)
    calibrate(model, baseline, x, statistics=lambda moments, mean, variance: (moments.mean, moments.original_square))
    inputs, original = record(model, x)["norm"][0], record(baseline, x)["norm"][0]
    assert torch.allclose(model.norm.running_mean, inputs.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model.norm.running_var, original.square().mean((0, 2, 3)), atol=1e-4)
    assert torch.equal(model.stem.running_mean, baseline.stem.running_mean)
