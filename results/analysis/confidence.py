"""How far the scores of a front can be trusted: means and intervals over seeds, and which members may be dominated.

Interval. The runs of one network, its own and its repeats (`repeat_of`), differ only in their seed; each measures the
score on the same validation images. The interval is Student's t over those runs: it tells where the mean over all seeds
lies *on these images*. It deliberately leaves out the choice of the images: all points of a front are measured on the
same images and move together when the images change, so that part hardly affects who beats whom, and more seeds cannot
shrink it. `results.analysis.intervals.wilson_interval` of the mean tells how large it is; a model card gives both.
Scores are shares of whole images, so seeds that agree exactly still leave the rounding: a variance is at least
1 / (12 n^2) for n images.

The search picked a front's members by their own runs, so these are optimistic, and so is a mean that includes them, by
one part in `seeds` of that. `score_repeats` is the mean over the repeats alone, by which nothing was picked.

Domination. Costs are exact. The belief about a network's mean score, once measured, is the t distribution around its
mean with the scale of its standard error (the posterior under a flat prior); networks are independent given the images.
A member is dominated when the true score of another one, nowhere more expensive, is at least as high. A single run
tells nothing about its own spread, so it borrows one, named in the column `spread`: `pooled`, the seeds' variance of
all repeated trials of the study together; or, while no trial is repeated, `images`, the standard error of the Wilson
interval, which is a substitute and knows nothing of seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf, sqrt

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from results.analysis.intervals import wilson_interval
from results.ledger.ledger import Ledger
from results.objectives import Objective
from results.pareto.front import front
from results.pareto.losses import losses
from results.schema import TrialStatus

__all__ = ["CONFIDENCE_SCHEMA", "confidence", "study_confidence"]

CONFIDENCE_SCHEMA = pa.schema(
    {
        "trial": pa.string(),
        "seeds": pa.int64(),
        "score_mean": pa.float64(),
        "score_low": pa.float64(),
        "score_high": pa.float64(),
        "score_repeats": pa.float64(),
        "spread": pa.string(),
        "probability_dominated": pa.float64(),
    }
)
_POINTS = 4096
"""Scores at which beliefs are compared, all members together."""
_MOST_COMPARED = 500
"""The largest front whose probabilities of domination are computed; above, they are null."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Belief:
    """The belief about one mean score: a t distribution, a normal one if `freedom` is infinite."""

    runs: tuple[float, ...]
    """Scores, the trial's own first."""
    scale: float
    freedom: float
    spread: str | None


def study_confidence(ledger: Ledger, study: str, trials: pa.Table | None = None) -> pa.Table:
    """Return `confidence` of the front of a study's trials, or of those of its trials that are given.

    The one way to the intervals of a study: its record tells on how many images each score was measured.
    """
    val_images = (ledger.study(study).get("uncompressed") or {}).get("val_images")
    trials = ledger.trials(study) if trials is None else trials
    return confidence(trials, ledger.repeats(study), ledger.objectives(study), val_images=val_images)


def confidence(
    trials: pa.Table, repeats: pa.Table, objectives: Sequence[Objective], *, val_images: int | None
) -> pa.Table:
    """Return one row (`CONFIDENCE_SCHEMA`) for each member of the front of `trials`, in the front's order.

    `seeds` counts the finished runs, the trial's own among them; if it is 1 there is no interval (null). `val_images`
    is the number of images that each score was counted on, None if it is not known. `probability_dominated` is null if
    no spread is known: nothing repeated and no `val_images`.
    """
    members = front(trials, objectives)
    repeated = _repeated_scores(repeats)
    own = dict(zip(trials.column("trial").to_pylist(), trials.column("score").to_pylist(), strict=True))
    pooled = _pooled([[*_as_list(own.get(trial)), *scores] for trial, scores in repeated.items()], val_images)
    runs = {trial: (own[trial], *repeated.get(trial, ())) for trial in members.column("trial").to_pylist()}
    beliefs = [_belief(scores, pooled, val_images) for scores in runs.values()]
    costs = losses(members, [objective for objective in objectives if objective.direction == "min"])
    probabilities = _probabilities_dominated(beliefs, costs)
    rows = [_row(*values) for values in zip(runs, beliefs, probabilities, strict=True)]
    return pa.Table.from_pylist(rows, schema=CONFIDENCE_SCHEMA)


def _repeated_scores(repeats: pa.Table) -> dict[str, list[float]]:
    """Return the scores of the finished repeats, by the trial that they repeat."""
    finished = repeats.filter(pc.equal(repeats.column("status"), TrialStatus.FINISHED.value))
    pairs = sorted(zip(finished.column("repeat_of").to_pylist(), finished.column("score").to_pylist(), strict=True))
    return {trial: [score for _, score in group] for trial, group in groupby(pairs, key=lambda pair: pair[0])}


def _as_list(score: float | None) -> list[float]:
    return [] if score is None else [score]


def _pooled(groups: Sequence[Sequence[float]], images: int | None) -> tuple[float, float] | None:
    """Return the seeds' standard deviation over groups of runs, and its degrees of freedom; None without repeats."""
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 1:
        return None
    squares = sum(float(np.var(group, ddof=0)) * len(group) for group in groups)
    return sqrt(max(squares / freedom, _rounding(images))), freedom


def _rounding(images: int | None) -> float:
    """Return the variance that counting whole images hides."""
    return 1 / (12 * images**2) if images else 0.0


def _belief(runs: tuple[float, ...], pooled: tuple[float, float] | None, images: int | None) -> _Belief:
    if len(runs) > 1:
        deviation = sqrt(max(float(np.var(runs, ddof=1)), _rounding(images)))
        return _Belief(runs=runs, scale=deviation / sqrt(len(runs)), freedom=len(runs) - 1, spread="seeds")
    if pooled is not None:
        return _Belief(runs=runs, scale=pooled[0], freedom=pooled[1], spread="pooled")
    if images:
        low, high = wilson_interval(runs[0], images)
        return _Belief(runs=runs, scale=(high - low) / (2 * scipy.special.ndtri(0.975)), freedom=inf, spread="images")
    return _Belief(runs=runs, scale=0.0, freedom=inf, spread=None)


def _probabilities_dominated(beliefs: Sequence[_Belief], costs: _Floats) -> list[float | None]:
    """Return the probability that each member is dominated: 1 - E[product of the rivals' distribution functions].

    `costs` is (members, costs). The expectation is a Stieltjes sum over scores that are dense wherever any belief is.
    """
    count = len(beliefs)
    if not 0 < count <= _MOST_COMPARED or any(belief.spread is None for belief in beliefs):
        return [None] * count
    mean = np.array([np.mean(belief.runs) for belief in beliefs])[:, None]
    scale = np.maximum([belief.scale for belief in beliefs], 1e-9)[:, None]
    freedom = np.array([belief.freedom for belief in beliefs])[:, None]
    levels = (np.arange(n := max(9, _POINTS // count)) + 0.5) / n
    grid = np.unique(mean + scale * scipy.special.stdtrit(freedom, levels))
    below = scipy.special.stdtr(freedom, (grid - mean) / scale)
    rivals = (costs[None, :, :] <= costs[:, None, :]).all(axis=2) & ~np.eye(count, dtype=bool)
    unbeaten = np.exp(rivals @ np.log(np.maximum(below, 1e-300)))
    edges = np.hstack([rivals.sum(axis=1, keepdims=True) == 0, unbeaten, np.ones((count, 1))])
    steps = np.diff(np.hstack([np.zeros((count, 1)), below, np.ones((count, 1))]), axis=1)
    stays = ((edges[:, 1:] + edges[:, :-1]) / 2 * steps).sum(axis=1)
    return [float(value) for value in np.where(rivals.any(axis=1), np.clip(1 - stays, 0.0, 1.0), 0.0)]


def _row(trial: str, belief: _Belief, probability: float | None) -> Mapping[str, object]:
    mean = float(np.mean(belief.runs))
    runs = len(belief.runs)
    half = belief.scale * float(scipy.special.stdtrit(belief.freedom, 0.975)) if runs > 1 else None
    return {
        "trial": trial,
        "seeds": runs,
        "score_mean": mean,
        "score_low": None if half is None else max(0.0, mean - half),
        "score_high": None if half is None else min(1.0, mean + half),
        "score_repeats": float(np.mean(belief.runs[1:])) if runs > 1 else None,
        "spread": belief.spread,
        "probability_dominated": probability,
    }
