"""Files timed against each other: all take turns in each of several rounds, so that what else the machine does meets
all alike, and the ratio of two files is taken within rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.runtime.latency import random_images
from trainers.runtime.sessions import Session
from trainers.runtime.threads import num_threads
from trainers.runtime.timing_lock import timing_lock

__all__ = ["Ratio", "Turns", "median_interval", "time_by_turns"]

_TURN_S = 0.003
"""A turn is as many passes as take so long, one at least: most are over before a busy machine turns to something else.
One that does not count comes before them, so that caches hold what the file itself has used, and not what others have;
but not before a pass that takes ten times as long, which fills caches within a hundredth of its time."""
_LONG = 0.1
"""Passes in a turn's time of one that is so long."""
_LEAST_ROUNDS = 7
_MOST_ROUNDS = 101


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The time of the first file divided by that of another: median over rounds, and its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Times of all files for one batch size."""

    batch: int
    rounds: int
    ms: tuple[float, ...]
    """Median of each file's pass, in milliseconds."""
    ratio: Ratio | None
    """Of the first file to the second, None if there is one alone."""


def time_by_turns(sessions: Sequence[Session], batches: Sequence[int], *, budget_s: float) -> list[Turns]:
    """Return the times of one file or two, which take images of one shape, for each batch size.

    Of each there are as many rounds as the budget allows, 7 to 101. Raises as `Session.call` does.
    """
    found = []
    with timing_lock(), num_threads(sessions[0].threads):
        for batch in batches:
            calls = [session.call(random_images(batch, session.shape)) for session in sessions]
            found.append(_turns(batch, calls, budget_s))
    return found


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that holds the median of where these come from in at least 95 % of such samples.

    Its ends are two of the values, by the binomial distribution of how many lie below the median; under six values it
    is from the least to the greatest, and holds it less often.
    """
    ordered, n = sorted(values), len(values)
    missed, rank = 0.0, 0  # the median lies outside of ranks `rank` to n - 1 - rank with this probability
    while rank < n // 2:
        missed += 2 * math.comb(n, rank) / 2**n
        if missed > 0.05:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[n - 1 - rank]


def _turns(batch: int, calls: Sequence[Callable[[], Any]], budget_s: float) -> Turns:
    passes = []
    for call in calls:
        call()
        passes.append(_TURN_S / max(_seconds(call, 1), 1e-7))
    rounds: list[Mapping[int, float]] = []
    started = time.perf_counter()
    while len(rounds) < _LEAST_ROUNDS or (len(rounds) < _MOST_ROUNDS and time.perf_counter() - started < budget_s):
        order = range(len(calls)) if len(rounds) % 2 else reversed(range(len(calls)))
        rounds.append({side: _turn(calls[side], passes[side]) for side in order})
    ms = tuple(1000 * statistics.median(turn[side] for turn in rounds) for side in range(len(calls)))
    return Turns(
        batch=batch, rounds=len(rounds), ms=ms, ratio=_ratio([r[0] / r[1] for r in rounds]) if ms[1:] else None
    )


def _turn(call: Callable[[], Any], passes: float) -> float:
    if passes > _LONG:
        call()
    return _seconds(call, max(1, round(passes)))


def _seconds(call: Callable[[], Any], passes: int) -> float:
    start = time.perf_counter()
    for _ in range(passes):
        call()
    return (time.perf_counter() - start) / passes


def _ratio(ratios: Sequence[float]) -> Ratio:
    low, high = median_interval(ratios)
    return Ratio(ratio=statistics.median(ratios), low=low, high=high)
