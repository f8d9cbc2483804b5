import copy
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.identity import network_difference, network_identity

IMAGE = (2, 7, 6)


class Net(nn.Module):
    def __init__(self, activation=F.relu, *, dropout: float = 0.3, classes: int = 12, extra: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(2, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(dropout)
        if extra:
            self.more = nn.Identity()
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.drop(self.activation(self.norm(self.conv(x)))).mean((2, 3)))
        return logits


@pytest.fixture
def net(fill):
    return fill(Net())


def twin(net: nn.Module, *args, **changes) -> nn.Module:
    """Another network with the same weights."""
    other = Net(*args, **changes)
    other.load_state_dict(net.state_dict())
    return other


def test_an_identity_is_the_first_logits_of_two_images_as_plain_data(net):
    identity = network_identity(net, IMAGE)
    assert set(identity) == {"structure_sha256", "outputs"}
    batch = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(identity["outputs"]).view(2, 10), net.eval()(batch)[:, :10])
    assert json.loads(json.dumps(identity, allow_nan=False)) == identity


def test_weights_moved_into_a_fresh_network_make_no_difference(net):
    fresh = twin(net)
    assert network_difference(network_identity(net, IMAGE), network_identity(fresh, IMAGE)) == ""
    assert network_difference(network_identity(copy.deepcopy(net), IMAGE), network_identity(net, IMAGE)) == ""


def test_other_code_with_the_same_weights_differs_in_outputs(net):
    one, other = (network_identity(x, IMAGE) for x in (net, twin(net, F.gelu)))
    assert one["structure_sha256"] == other["structure_sha256"]
    assert network_difference(one, other) == network_difference(other, one) == "outputs"


def test_other_weights_differ_in_outputs(net):
    other = twin(net)
    with torch.no_grad():
        other.head.bias[3] += 1
    assert network_difference(network_identity(net, IMAGE), network_identity(other, IMAGE)) == "outputs"


class Renamed(Net):
    pass


@pytest.mark.parametrize(
    "change", [lambda: Net(dropout=0.4), lambda: Net(extra=True), Renamed, lambda: Net(F.gelu, dropout=0.4)]
)
def test_another_structure_with_the_same_weights_is_told(net, change):
    other = change()
    other.load_state_dict(net.state_dict())
    assert network_difference(network_identity(net, IMAGE), network_identity(other, IMAGE)) == "structure"


def test_where_a_class_is_defined_makes_no_difference(net):
    Moved = type("Net", (Net,), {"__qualname__": "build.<locals>.Net", "__module__": "elsewhere"})
    other = Moved()
    other.load_state_dict(net.state_dict())
    assert network_difference(network_identity(net, IMAGE), network_identity(other, IMAGE)) == ""


@pytest.mark.parametrize("training", [True, False])
def test_modes_statistics_and_random_numbers_are_left_as_they_were(net, training):
    net.train(training)
    net.norm.train(not training)
    modes = [module.training for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    network_identity(net, IMAGE)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == generators[1:]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.is_grad_enabled()


def test_a_network_that_fails_keeps_its_modes(net):
    net.train()
    net.norm.eval()
    with pytest.raises(RuntimeError, match=r"expected input"):
        network_identity(net, (3, 7, 6))
    assert [module.training for module in (net, net.norm, net.drop)] == [True, False, True]


def test_a_network_that_draws_while_it_is_evaluated_is_itself(net, session_seed):
    noisy = twin(net, lambda x: F.dropout(x, 0.5, training=True))
    state = torch.get_rng_state()
    one = network_identity(noisy, IMAGE)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(session_seed)
        assert network_difference(one, network_identity(noisy, IMAGE)) == ""


@pytest.mark.parametrize(("share", "part"), [(0.0, ""), (0.5e-3, ""), (0.99e-3, ""), (1.01e-3, "outputs")])
def test_outputs_may_differ_by_a_thousandth_of_the_largest(net, rng, share, part):
    one = network_identity(net, IMAGE)
    largest = max(map(abs, one["outputs"]))
    outputs = list(one["outputs"])
    outputs[rng.randrange(20)] += rng.choice([-1, 1]) * share * largest
    assert network_difference(one, one | {"outputs": outputs}) == part


def test_other_numbers_of_outputs_differ(net):
    one = network_identity(net, IMAGE)
    assert network_difference(one, one | {"outputs": one["outputs"][:-1]}) == "outputs"


@pytest.mark.parametrize("missing", [None, {}])
def test_an_identity_that_is_not_known_differs_from_every_other(net, missing):
    one = network_identity(net, IMAGE)
    assert network_difference(one, missing) == network_difference(missing, one) == "structure"
    assert network_difference(missing, missing) == "structure"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_no_numbers_are_plain_data_and_themselves(net, bad):
    with torch.no_grad():
        net.head.bias[0] = bad
    identity = network_identity(net, IMAGE)
    assert network_difference(identity, json.loads(json.dumps(identity, allow_nan=False))) == ""


def test_few_outputs_are_kept_all():
    identity = network_identity(Net(classes=3), IMAGE)
    assert len(identity["outputs"]) == 6
