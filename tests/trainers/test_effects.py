import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from layers import OvertoneError, UsageError, compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model
from trainers.data import Data, DataSpec, Split, load_data
from trainers.effects import EffectMeter, affordable_effects
from trainers.start.calibration import calibrate
from trainers.start.start import calibration_images

CPU = torch.device("cpu")
TIMES = {"seconds": 0.0}


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataSpec())


@pytest.fixture(scope="module")
def baseline() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model("resnet8", classes=10, channels=1)
        model(torch.randn(64, 1, 8, 8))
        return model.eval()


@pytest.fixture(scope="module")
def network(baseline: nn.Module) -> Network:
    return Network.from_module(baseline, (1, 8, 8))


def _probabilities(model: nn.Module, images: torch.Tensor) -> list[list[float]]:
    with torch.no_grad():
        return [[math.exp(x) for x in model(image[None])[0].double().log_softmax(0).tolist()] for image in images]


def test_an_effect_is_that_of_the_block_compressed_alone_and_calibrated(data, baseline, network):
    """Image by image, from the definitions, on training images that neither it nor a trial calibrates on."""
    before = copy.deepcopy(baseline.state_dict())
    meter = EffectMeter(data, baseline, network, seed=5, images=40, calibration_images=16)
    config = BlockConfig(basis="cosine", harmonics=(2, 2), bits=3)
    effect = meter.measure("layer2", config)
    model = compress_model(baseline, network.forms(NetworkConfig(blocks={"layer2": config})))
    calibrate(model, baseline, calibration_images(data, seed=5, device=CPU, count=16))
    own, half = (
        {tuple(image.flatten().tolist()) for image in calibration_images(data, seed=5, device=CPU, count=n)}
        for n in (512, 552)
    )
    fresh = half - own
    rows = [i for i, image in enumerate(data.normalize(data.train.images)) if tuple(image.flatten().tolist()) in fresh]
    images, labels = data.normalize(data.train.images[rows]), data.train.labels[rows].tolist()
    known, given = _probabilities(baseline, images), _probabilities(model.eval(), images)
    apart = [sum(p * math.log(p / q) for p, q in zip(*pair, strict=True)) for pair in zip(known, given, strict=True)]
    mean = sum(apart) / 40
    rightly = [math.log(p[label]) for p, label in zip(known, labels, strict=True)]
    told = [(q[label], max(q)) for q, label in zip(given, labels, strict=True)]
    assert len(rows) == 40
    assert meter.reference.loss == pytest.approx(-sum(rightly) / 40, rel=1e-4)
    assert effect.loss == pytest.approx(-sum(math.log(own) for own, _ in told) / 40, rel=1e-4)
    assert effect.score == pytest.approx(sum(own == most for own, most in told) / 40)
    assert effect.divergence == pytest.approx(mean, rel=1e-3)
    spread = sum((value - mean) ** 2 for value in apart) / 39
    assert effect.divergence_error == pytest.approx((spread / 40) ** 0.5, rel=1e-3)
    whole, cost = (network.cost(NetworkConfig(blocks=blocks)) for blocks in ({}, {"layer2": config}))
    assert effect.bytes_saved == whole.size_bytes - cost.size_bytes
    assert effect.flops_saved == whole.flops - cost.flops
    assert all(torch.equal(value, before[name]) for name, value in baseline.state_dict().items())


def test_an_effect_depends_on_the_seed_alone_and_is_told_of_the_canonical_config(data, baseline, network):
    few = {"images": 30, "calibration_images": 16}
    meter = EffectMeter(data, baseline, network, seed=1, **few)
    spelled = BlockConfig(basis="chebyshev", harmonics=(3, 3), bits=4, exponent_block=1)
    first = meter.measure("layer1.0.conv1", spelled)
    again = EffectMeter(data, baseline, network, seed=1, **few).measure("layer1.0.conv1", BlockConfig(bits=4))
    assert first.config == BlockConfig(bits=4)
    assert replace(first, **TIMES) == replace(again, **TIMES)
    other = EffectMeter(data, baseline, network, seed=2, **few)
    assert other.measure("layer1.0.conv1", spelled).loss != first.loss


@pytest.mark.parametrize(
    ("options", "block", "config"),
    [
        ({"init": "gradient_descent"}, "layer3", BlockConfig(basis="cosine", harmonics=(1, 2))),
        ({"saliency": "gradient"}, "layer3", BlockConfig(pruning_rate=0.5)),
        ({}, "layer1", BlockConfig(arithmetic="int8")),
        ({}, "norms_and_biases", BlockConfig(bits=4)),
        ({}, "linear", BlockConfig(bits=3)),
    ],
)
def test_every_kind_of_form_has_an_effect(data, baseline, network, options, block, config):
    meter = EffectMeter(data, baseline, network, images=30, calibration_images=16, **options)
    effect = meter.measure(block, config)
    assert effect.divergence > effect.divergence_error > 0
    assert (effect.block, effect.config) == (block, config)


def test_as_many_effects_are_affordable_as_trials_have_passes_for(data):
    """A step of training is three passes; 1,078 training and 360 validation images, calibration on 256 of 8 x 8."""
    assert (len(data.train), len(data.val)) == (1078, 360)
    passes = 3 * 1078 * 5 + 360 * 6
    assert affordable_effects(data, trials=2, epochs=5) == int(2 * passes / (256 + 6 * 256 + 512)) == 15
    assert affordable_effects(data, trials=1, epochs=0) == 0


def test_few_training_images_are_shared_between_calibration_and_measurement(data, baseline, network):
    small = replace(data, train=Split(images=data.train.images[:25], labels=data.train.labels[:25]))
    meter = EffectMeter(small, baseline, network)
    assert (meter.reference.calibration_images, meter.reference.images) == (12, 13)
    uncompressed = meter.measure("layer1", BlockConfig())
    assert (uncompressed.loss, uncompressed.divergence) == (pytest.approx(meter.reference.loss), 0)
    smallest = replace(data, train=Split(images=data.train.images[:2], labels=data.train.labels[:2]))
    assert EffectMeter(smallest, baseline, network).measure("layer1", BlockConfig(bits=2)).divergence_error == 0


def test_a_config_that_the_block_cannot_take_and_outputs_that_are_no_numbers_are_refused(data, baseline, network):
    meter = EffectMeter(data, baseline, network, images=8, calibration_images=8)
    with pytest.raises(UsageError, match=r"block 'norms_and_biases' takes bits alone, not "):
        meter.measure("norms_and_biases", BlockConfig(pruning_rate=0.5))
    broken = copy.deepcopy(baseline)
    broken.get_parameter("linear.weight").data.fill_(math.inf)
    with pytest.raises(OvertoneError, match=r"the network's outputs are infinite or not numbers"):
        EffectMeter(data, broken, network, images=8, calibration_images=8)
