"""What the effects of single blocks add up to, and how far a surrogate trusts it."""

import pickle
from math import log1p, sqrt

import numpy as np
import pytest

from search.optimize.candidates import Candidates
from search.optimize.forecast import Forecast
from search.optimize.surrogate import LEARNS_FROM, Surrogate, recent, to_log_error, to_score
from spaces import BlockConfig, NetworkConfig, Space

BITS, SERIES = BlockConfig(bits=4), BlockConfig(basis="cosine", harmonics=(2, 2))
BOTH = BlockConfig(basis="cosine", harmonics=(2, 2), bits=4)


def _effect(block: str, config: BlockConfig) -> float:
    """Made up: bits and series add up, with a fifth of it on top where a block has both."""
    coarser = (config.harmonics or (3, 3)) != (3, 3)
    alone = (0.1 if config.bits else 0.0) + (0.4 if coarser else 0.0)
    return alone * (1.2 if config.bits and coarser else 1.0)


class _Model:
    """Stands for effects that were measured."""

    def loss_increase(self, block: str, config: BlockConfig) -> float:
        return 0.09 if config.bits else -1e-9


def test_each_kind_of_knob_counts_by_itself_and_then_what_kinds_do_together() -> None:
    forecast = Forecast(_effect, reference=0.9)
    assert forecast("layer1", BlockConfig()) == (0.0,) * 5
    assert forecast("layer1", BITS) == (0.0, 0.0, 0.1, 0.0, 0.0)
    assert forecast("layer1", BOTH) == pytest.approx((0.4, 0.0, 0.1, 0.0, 0.1))
    assert len(forecast.slopes) == 5


def test_effects_in_nats_become_shares_of_the_error() -> None:
    forecast = Forecast.of(_Model(), reference=0.89)  # type: ignore[arg-type]
    assert forecast.effect("layer1", BITS) == pytest.approx(log1p(0.3 * sqrt(0.09) / 0.12))
    assert forecast.effect("layer1", SERIES) == 0.0


def test_a_forecast_can_be_kept_by_ray_tune() -> None:
    """It pickles its searcher, and all that this knows."""
    forecast = Forecast.of(_Model(), reference=0.89)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(forecast))("layer1", BOTH) == forecast("layer1", BOTH)


def test_the_forecasts_of_blocks_add_up_whatever_the_blocks_are(space: Space) -> None:
    candidates = Candidates(space, Forecast(_effect, reference=0.9))
    config = NetworkConfig(
        blocks={"layer1": BlockConfig(bits=4, exponent_block=16), "layer2": BlockConfig(bits=4, exponent_block=16)}
    )
    found = candidates.describe(candidates.point(config)[None]).features[0]
    assert found[:5] == pytest.approx((0.0, 0.0, 0.2, 0.0, 0.0))
    assert len(found) == candidates.width


def test_before_any_trial_the_surrogate_says_what_the_effects_say(space: Space) -> None:
    forecast = Forecast(_effect, reference=0.9)
    candidates = Candidates(space, forecast)
    none = np.empty((0, candidates.width))
    surrogate = Surrogate(none, np.empty(0), np.empty(0), forecast)
    points = candidates.describe(np.zeros((1, len(candidates.knobs)), dtype=np.int64))
    mean, deviation = surrogate.predict(points.features)
    said = to_log_error(np.array(0.9)) + points.features[0, :5] @ np.array(forecast.slopes)
    assert mean == pytest.approx([said])
    assert deviation[0] > 0.1


def test_trials_that_do_as_the_effects_say_teach_their_slopes(space: Space, np_rng: np.random.Generator) -> None:
    """Training that takes back four fifths is found out, also for what no trial had."""
    forecast = Forecast(_effect, reference=0.9)
    candidates = Candidates(space, forecast)
    choices = [len(values) for values in candidates.knobs.values()]
    features = candidates.describe(np_rng.integers(choices, size=(60, len(choices)))).features
    truth = to_score(np.log(0.1) + 0.2 * features[:, :5].sum(axis=1))
    seen, unseen = features[:30], features[30:]
    mean = Surrogate(seen, truth[:30], np.zeros(30), forecast).mean(unseen)
    before = Surrogate(seen[:0], truth[:0], np.zeros(0), forecast).mean(unseen)
    wrong, wrong_before = (np.abs(found - to_log_error(truth[30:])).mean() for found in (mean, before))
    assert wrong < wrong_before / 4
    few = Surrogate(seen[: LEARNS_FROM - 1], truth[: LEARNS_FROM - 1], np.zeros(LEARNS_FROM - 1), forecast)
    assert np.abs(few.mean(unseen) - to_log_error(truth[30:])).mean() < wrong_before


def test_what_is_learnt_from_changes_seldom_and_stays_small() -> None:
    counts = [recent(trials) for trials in range(2000)]
    assert counts[:401] == list(range(401))
    starts = [trials - count for trials, count in enumerate(counts)]
    assert all(300 <= count <= 400 for count in counts[400:])
    assert len(set(starts[400:])) == 17
