"""How much a filter matters: the formulas, by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layers import UsageError
from spaces import build_model
from trainers.data import Data, DataSpec, load_data
from trainers.start.saliency import filter_saliency


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataSpec(name="digits", train_limit=64))


@pytest.fixture
def network(generator: torch.Generator) -> nn.Module:
    made = build_model("resnet8", classes=10, channels=1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return made


def test_magnitude_is_relative_to_the_layer(network: nn.Module) -> None:
    found = filter_saliency("magnitude", network, None, seed=0)
    weight = network.get_parameter("layer1.0.conv1.weight").detach().double()
    norms = weight.flatten(1).norm(dim=1)
    assert torch.allclose(found["layer1.0.conv1"], norms / norms.square().mean().sqrt())
    assert found.keys() == {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    scaled = copy.deepcopy(network)
    with torch.no_grad():
        scaled.get_parameter("layer1.0.conv1.weight").mul_(7)
    assert torch.allclose(filter_saliency("magnitude", scaled, None, seed=0)["layer1.0.conv1"], found["layer1.0.conv1"])


def test_gradient_is_how_fast_the_loss_changes_as_a_filter_fades(network: nn.Module, data: Data) -> None:
    """Against a difference quotient: the loss with the filter scaled a little more and a little less."""
    network = network.double()
    found = filter_saliency("gradient", _Double(network), data, seed=3)
    images = data.normalize(data.train.take(torch.arange(64))).double()
    network.eval()
    for name, filter_ in (("layer2.0.conv1", 3), ("conv1", 0)):
        weight, step = network.get_parameter(f"{name}.weight").detach(), 1e-7  # few rectifiers switch within
        losses = []
        for scale in (1 + step, 1 - step):
            kept = weight[filter_].clone()
            weight[filter_] *= scale
            with torch.no_grad():
                losses.append(float(F.cross_entropy(network(images), data.train.labels[:64])))
            weight[filter_] = kept
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(found[f"network.{name}"][filter_]) == pytest.approx(slope**2, rel=1e-3, abs=1e-12)


class _Double(nn.Module):
    """Takes float32 images into a float64 network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x.double())
        return logits


def test_the_network_stays_as_it_was(network: nn.Module, data: Data) -> None:
    before = copy.deepcopy(network.state_dict())
    network.train()
    first, again = (filter_saliency("gradient", network, data, seed=1) for _ in range(2))
    assert network.training
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_layer_that_is_never_called_changes_nothing(network: nn.Module, data: Data) -> None:
    before = filter_saliency("gradient", network, data, seed=1)
    network.spare = nn.Conv2d(3, 5, 3)
    found = filter_saliency("gradient", network, data, seed=1)
    assert found.pop("spare").tolist() == [0.0] * 5
    assert all(torch.equal(values, before[name]) for name, values in found.items())


def test_what_is_not_allowed_is_named(network: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"^saliency \(='luck'\) must be one of magnitude, gradient$"):
        filter_saliency("luck", network, None, seed=0)
    with pytest.raises(
        UsageError, match=r"^saliency \(='gradient'\) must be 'magnitude' without labeled training images$"
    ):
        filter_saliency("gradient", network, None, seed=0)
