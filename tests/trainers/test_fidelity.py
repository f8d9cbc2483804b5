"""Networks with odd habits are compressed truly, keep a layer as it is, or are refused by the layer's name."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layers import CompressedConv2d, OvertoneWarning, UsageError, compress_model, compressed_layers, pack_state
from search.study.budget import Budget, extremes
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model, load_model, save_model, state_sha256
from spaces.models import copy_module
from spaces.portable import StoredNetwork
from tests.trainers.odd_networks import (
    CLASSES,
    COMPRESSED,
    IMAGE,
    KEPT,
    REFUSED,
    Base,
    ByClosure,
    ByWeakReference,
    Choosy,
    Listed,
    PatchedByClosure,
)
from trainers.data import DataSpec, load_data
from trainers.fidelity import check_copy, check_fidelity
from trainers.spec import TrialSpec
from trainers.training.recipe import RECIPES
from trainers.trial import Trial, load_baseline

SERIES = BlockConfig(basis="cosine", harmonics=(2, 2))
ROUNDED = BlockConfig(basis="chebyshev", harmonics=(2, 1), bits=6)


def check(model: nn.Module, name: str = "object:Net") -> None:
    network = Network.from_module(model, IMAGE)
    limits = extremes(Space.default(network, minimum_templates=3), Budget())
    check_fidelity(name, model, network, IMAGE, CLASSES, limits)


def trained(model: nn.Module, rng: random.Random) -> nn.Module:
    """The model with large weights and other statistics of its norms, in evaluation mode."""
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 2 else 1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=generator)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(images)
    return result


def by_hand(model: nn.Module, compressed: nn.Module) -> nn.Module:
    """The model itself, its weights exchanged for those that its compressed layers stand for."""
    oracle = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in compressed_layers(compressed).items():
            oracle.get_parameter(f"{name}.weight").copy_(layer.weight)
    return oracle


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(5, *IMAGE, generator=generator)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("kind", COMPRESSED, ids=lambda kind: kind.__name__)
def test_layers_are_compressed_however_they_are_held_called_and_read(kind, images, rng, tmp_path):
    model = trained(kind(), rng)
    check(model)
    network = Network.from_module(model, IMAGE)
    layers = {name for name, part in model.named_modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)}
    assert set(network.shapes) == layers
    asked = NetworkConfig(blocks=dict.fromkeys(network.blocks, SERIES))
    compressed = compress_model(model, network.forms(asked))
    assert set(compressed_layers(compressed)) == {n for n in layers if max(network.shapes[n].kernel) > 2}
    expected = outputs(by_hand(model, compressed), images)
    assert not torch.allclose(expected, outputs(model, images), rtol=1e-3)
    torch.testing.assert_close(outputs(compressed, images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs(StoredNetwork(compressed.eval()), images), expected, rtol=1e-4, atol=1e-5)
    save_model(compressed, tmp_path / "m", card={"model": "object:Net", "classes": CLASSES, "channels": 3})
    loaded = load_model(tmp_path / "m", model=kind().eval())
    torch.testing.assert_close(outputs(loaded, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("kind", COMPRESSED, ids=lambda kind: kind.__name__)
def test_all_layers_are_counted_once_however_they_are_held(kind):
    model = kind().eval()
    network = Network.from_module(model, IMAGE)
    with FlopCounterMode(display=False) as counter:
        outputs(model, torch.zeros(1, *IMAGE))
    assert network.cost(NetworkConfig()).flops == counter.get_total_flops()
    for block in (SERIES, ROUNDED):
        asked = NetworkConfig(blocks={"norms_and_biases": BlockConfig(bits=8), **dict.fromkeys(network.blocks, block)})
        built = compress_model(model, network.forms(asked))
        assert network.cost(asked).size_bytes == sum(tensor.nbytes for tensor in pack_state(built).values())
        assert network.cost(asked).parameters == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("case", KEPT)
def test_layers_with_code_or_numbers_of_their_own_stay_as_they_are_and_are_counted_in_full(case, images, rng, tmp_path):
    make, layer = KEPT[case]
    model = trained(make(), rng)
    network = Network.from_module(model, IMAGE)
    assert layer not in network.shapes
    assert {"first", "head"} - {layer} <= set(network.shapes)
    with pytest.warns(OvertoneWarning, match=rf"^the model 'object:Net' keeps its layer '{layer}' as it is: it"):
        check(model)
    with FlopCounterMode(display=False) as counter:
        outputs(model, torch.zeros(1, *IMAGE))
    whole = network.cost(NetworkConfig())
    rows = model.get_parameter(f"{layer}.parametrizations.weight.original") if case == "spectral norm" else None
    norm_macs = 0 if rows is None else rows.numel() + len(rows)  # u W v, which torch's counter leaves out
    assert whole.flops == counter.get_total_flops() + 2 * norm_macs
    assert whole.size_bytes == sum(tensor.nbytes for tensor in pack_state(model).values())
    asked = NetworkConfig(blocks={"first": SERIES, "norms_and_biases": BlockConfig(bits=4)})
    compressed = compress_model(model, network.forms(asked))
    assert network.cost(asked).size_bytes == sum(tensor.nbytes for tensor in pack_state(compressed).values())
    save_model(compressed, tmp_path / "m", card={"model": "object:Net", "classes": CLASSES, "channels": 3})
    loaded = load_model(tmp_path / "m", model=make().eval())
    torch.testing.assert_close(outputs(loaded, images), outputs(compressed, images))


@pytest.mark.parametrize("case", KEPT)
def test_sixteen_bits_change_next_to_nothing(case, images, rng):
    model = trained(KEPT[case][0](), rng)
    network = Network.from_module(model, IMAGE)
    asked = NetworkConfig(blocks=dict.fromkeys((*network.blocks, "norms_and_biases"), BlockConfig(bits=16)))
    expected = outputs(model, images)
    torch.testing.assert_close(
        outputs(compress_model(model, network.forms(asked)), images), expected, rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_networks_that_cannot_be_compressed_truly_are_refused_by_the_layers_name(kind):
    name = f"tests.trainers.odd_networks:make_{kind.__name__}"
    with pytest.raises(UsageError, match=rf"^model \(='{name}'\) {REFUSED[kind]}"):
        check(build_model(name, classes=CLASSES, channels=3), name)


@pytest.mark.parametrize("kind", [ByClosure, ByWeakReference])
def test_objects_whose_copies_run_other_layers_are_refused(kind):
    model = kind()
    message = (
        r"^model \(='object:Net'\) must run its layer 'second' as often when it is copied, 1 times, not 0: perhaps"
    )
    with pytest.raises(UsageError, match=message):
        check_copy("object:Net", model, copy_module(model), IMAGE)


def test_objects_whose_copies_compute_with_other_weights_are_refused():
    message = r"^model \(='object:Net'\) must compute with its own weights: its layer 'second' runs and has no gradient"
    with pytest.raises(UsageError, match=message):
        check(copy_module(PatchedByClosure()))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("kind", COMPRESSED, ids=lambda kind: kind.__name__)
def test_copies_of_objects_run_their_own_layers(kind):
    model = kind()
    check_copy("object:Net", model, copy_module(model), IMAGE)
    check(copy_module(model))


def test_layers_that_run_for_some_images_alone_are_refused():
    with pytest.raises(
        UsageError,
        match=r"equally often for every image: 'second' runs 0 times for an image of zeros, 1 times for one of noise$",
    ):
        check(Choosy().eval())


class ForDigits(nn.Module):
    """An odd network for images of one channel and ten classes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.more = inner, nn.Linear(CLASSES, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.more(self.inner(x.expand(-1, 3, -1, -1)))
        return logits


@pytest.mark.parametrize("make", [Listed, KEPT["standardized"][0], KEPT["weight norm"][0], KEPT["low rank"][0]])
def test_a_trials_score_is_that_of_its_file(make, tmp_path):
    asked = DataSpec(name="digits", train_limit=256)
    data = load_data(asked)
    module = ForDigits(make())
    recipe = replace(RECIPES["finetune"], ema_decay=0.9, distillation=0.5)
    blocks = {"inner": BlockConfig(basis="cosine", harmonics=(2, 1), pruning_rate=0.5, bits=6)}
    baseline, network = load_baseline("object:Odd", "object:Odd", data, module=module)
    hashes = {"weights_sha256": state_sha256(baseline), "data_fingerprint": data.fingerprint}
    config = NetworkConfig(blocks=blocks, minimum_templates=3)
    spec = TrialSpec(
        model="object:Odd", weights="object:Odd", config=config, data=asked, recipe=recipe, epochs=1, **hashes
    )
    trial = Trial(spec, data=data, baseline=baseline, network=network, device="cpu")
    assert len(list(trial.epochs())) == 1
    trial.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m", model=ForDigits(make()))
    with torch.no_grad():
        found = loaded(data.normalize(data.val.images)).argmax(1)
    assert trial.result().score == float((found == data.val.labels).double().mean())


def test_a_layer_that_is_never_called_is_no_fault():
    class Idle(Base):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Conv2d(3, 4, 3)

    check(Idle().eval())


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    model = Base().train(training)
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    check(model)
    assert [part.training for part in model.modules()] == [training] * 6
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())


def test_a_weight_that_is_read_is_stored_nowhere():
    compressed = compress_model(
        Base(), Network.from_module(Base(), IMAGE).forms(NetworkConfig(blocks={"first": SERIES}))
    )
    layer = compressed.first
    assert isinstance(layer, CompressedConv2d)
    assert set(layer.state_dict()) == {"coefficients", "bias"}
    assert torch.equal(layer.weight, layer.filters())
    layer.weight.square().sum().backward()
    assert layer.coefficients.grad.abs().sum() > 0
