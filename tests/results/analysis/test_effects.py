import math
from dataclasses import replace

import numpy as np
import pytest

from layers import UsageError
from results.analysis.effects import EffectModel
from results.analysis.form_parts import form_parts
from spaces import BlockConfig, Network, build_model
from spaces.effects import Effect, Effects

BITS = [BlockConfig(bits=bits, exponent_block=16) for bits in (3, 4, 6)]
SERIES = [BlockConfig(basis="cosine", harmonics=pair) for pair in ((1, 1), (2, 2))]
RATES = [BlockConfig(pruning_rate=rate) for rate in (0.25, 0.75)]
PAIRS = [replace(BITS[1], basis="cosine", harmonics=(2, 2)), replace(RATES[1], bits=4, exponent_block=16)]
BLOCKS = ("layer1", "layer2", "layer3")


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))


def _effect(block: str, config: BlockConfig, divergence: float) -> Effect:
    measured = {"divergence": divergence, "divergence_error": divergence / 20}
    return Effect(block=block, config=config, loss=1 + divergence, score=0.5, seconds=1.0, **measured)


def _library(*effects: Effect) -> Effects:
    return Effects(loss=1.0, score=0.9, images=64, calibration_images=32, seed=0, effects=effects)


@pytest.fixture
def truth(network: Network, np_rng: np.random.Generator):
    """Return the effect of a form: curves by part, one sensitivity a block, pairs of parts a factor more."""
    sensitivity = dict(zip((*BLOCKS, "linear"), np.exp(np_rng.normal(0, 1, 4)), strict=True))
    slope, factor = np_rng.uniform(4, 8), np_rng.uniform(0.7, 1.5)

    def effect(block: str, config: BlockConfig) -> float:
        parts = form_parts(network, block, config, 8)
        of_part = {"bits": -math.log(4), "series": slope, "templates": slope}
        level = {"bits": math.log(0.5), "series": -6.0, "templates": -5.0}
        effects = [math.exp(level[part] + of_part[part] * numbers[0]) for part, numbers in parts.items()]
        return float(sensitivity[block] * sum(effects) * (factor if len(parts) == 2 else 1))

    return effect


def test_the_rule_tells_forms_that_were_not_measured(network, truth):
    """Each block's few-bit form and half of its harmonics, and all forms of one block, tell those of all blocks."""

    def error(block: str, config: BlockConfig) -> float:
        return abs(math.log(model.loss_increase(block, config) / truth(block, config)))

    known = [(block, config) for block in BLOCKS for config in (BITS[1], SERIES[1], RATES[1])]
    known += [("layer2", config) for config in (*BITS, *SERIES, *RATES, *PAIRS)] + [("linear", BITS[1])]
    model = EffectModel.fit(_library(*(_effect(*pair, truth(*pair)) for pair in dict.fromkeys(known))), network)
    others = (BITS[0], BITS[2], SERIES[0], RATES[0], *PAIRS, BlockConfig(bits=5, exponent_block=16))
    errors = [error(block, config) for block in ("layer1", "layer3") for config in others]
    assert max(errors) < math.log(5)
    assert np.mean(errors) < math.log(1.6)
    assert error("linear", BITS[0]) < math.log(1.3)


def test_what_was_measured_is_told_as_measured_however_it_is_spelled(network, truth):
    effects = [_effect(block, config, truth(block, config)) for block in BLOCKS for config in (*BITS, *PAIRS)]
    model = EffectModel.fit(_library(*effects), network)
    assert all(model.loss_increase(effect.block, effect.config) == effect.divergence for effect in effects)
    spelled = replace(BITS[0], basis="chebyshev", harmonics=(3, 3), exponent_axis="flat")
    assert model.loss_increase("layer1", spelled) == effects[0].divergence
    assert model.loss_increase("layer1", BlockConfig()) == 0


def test_the_held_out_error_is_that_of_rules_fitted_without_each_effect(network, truth, np_rng):
    """A slow oracle: fit again without each single form, and, with all single ones, without each pair."""
    known = [(block, config) for block in BLOCKS for config in (*BITS[:2], *SERIES[:1], *PAIRS)]
    effects = [_effect(*pair, truth(*pair) * math.exp(np_rng.normal(0, 0.3))) for pair in known]
    model = EffectModel.fit(_library(*effects), network)
    errors, logs = [], []
    for effect in effects:
        others = EffectModel.fit(_library(*(other for other in effects if other is not effect)), network)
        told = others.loss_increase(effect.block, effect.config)
        errors.append(abs(told - effect.divergence))
        logs.append(math.log(max(told, 1e-3) / max(effect.divergence, 1e-3)))
    assert model.held_out == len(effects)
    assert model.held_out_error == pytest.approx(np.mean(errors), rel=1e-6)
    assert model.held_out_factor == pytest.approx(math.exp(np.sqrt(np.mean(np.square(logs)))), rel=1e-6)


def test_more_bits_taps_and_filters_never_cost_more(network, truth):
    effects = [_effect(block, config, truth(block, config)) for block in BLOCKS for config in (BITS[1], SERIES[1])]
    model = EffectModel.fit(_library(*effects), network)
    ladders = (
        [BlockConfig(bits=bits) for bits in range(1, 17)],
        [BlockConfig(basis="cosine", harmonics=pair) for pair in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3))],
        [BlockConfig(pruning_rate=rate) for rate in (0.875, 0.75, 0.5, 0.25)],
    )
    for ladder in ladders:
        told = [model.predicted("layer3", config) for config in ladder]
        assert told == sorted(told, reverse=True), told


def test_blocks_that_were_not_measured_have_the_sum_of_their_parts_or_a_share_of_the_whole(network, truth):
    layers = network.layers_in("layer1")
    parts = [_effect(layer, BITS[1], 0.25 * (index + 1)) for index, layer in enumerate(layers)]
    summed = EffectModel.fit(_library(*parts), network)
    assert summed.loss_increase("layer1", BITS[1]) == pytest.approx(0.75)
    whole = EffectModel.fit(_library(_effect("layer1", BITS[1], 0.5)), network)
    assert sum(whole.predicted(layer, BITS[1]) for layer in layers) == pytest.approx(whole.predicted("layer1", BITS[1]))


def test_an_empty_library_tells_something_of_everything_and_knows_no_error(network):
    model = EffectModel.fit(_library(), network)
    every = BlockConfig(basis="chebyshev", harmonics=(1, 2), bits=3, activation_bits=4, arithmetic="int8")
    assert model.loss_increase("layer1", every) > model.loss_increase("layer1", BlockConfig(bits=3)) > 0
    assert model.loss_increase("norms_and_biases", BlockConfig(bits=8)) > 0
    assert model.held_out == 0
    assert math.isnan(model.held_out_error)
    with pytest.raises(UsageError, match=r"block \(='layer9'\) must be a part of the network"):
        model.loss_increase("layer9", BlockConfig(bits=3))
