"""What a study has drawn so far, described once each, so that a draw takes as long after many trials as after few."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence

import moocore
import numpy as np
import numpy.typing as npt

from search.optimize.candidates import Candidates, Floats, Ints, Points
from search.optimize.surrogate import recent

__all__ = ["History"]


class History:
    """Draws of a study in their order, with what became of them."""

    def __init__(self, candidates: Candidates, columns: Sequence[str], score: int) -> None:
        """`columns` are the objectives', of which the `score`-th is the score."""
        self.columns = tuple(columns)
        self.score = score
        self.finished = 0
        """How many were measured to their end."""
        self._candidates = candidates
        self._points: list[Points] = []
        self._values: list[Sequence[float] | None] = []
        self._scores: list[float] = []
        self._scored: list[int] = []
        self._running: dict[int, None] = {}
        self._front: list[int] = []
        self._seen: set[bytes] = set()
        self._worst = np.full(len(self.columns), -np.inf)

    def add(self, point: Ints) -> int:
        """Take in a draw (knobs,), which runs now; return its place.

        It is kept as its canonical config spells it, as the ledger has it: a study that was stopped goes on alike.
        """
        described = self._candidates.describe(self._candidates.canonical(point)[None])
        place = len(self._points)
        self._points.append(described)
        self._values.append(None)
        self._scores.append(np.nan)
        self._seen.add(described.identity[0].tobytes())
        self._running[place] = None
        return place

    def end(self, place: int, values: Sequence[float] | None, forecast: float | None = None) -> None:
        """Take in a draw's values, or the score that was forecast where it was stopped; with neither it failed."""
        del self._running[place]
        score = forecast if values is None else values[self.score]
        if score is not None:
            self._scores[place] = score
            insort(self._scored, place)
        if values is not None:
            self._values[place] = values
            self.finished += 1
            self._worst = np.maximum(self._worst, values)
            self._front.append(place)
            self._front = [self._front[row] for row in np.flatnonzero(self._nondominated())]

    def is_new(self, points: Points) -> npt.NDArray[np.bool_]:
        """Return which points (m,) make networks that were not drawn so far."""
        return np.array([row.tobytes() not in self._seen for row in points.identity], dtype=bool)

    def front(self) -> tuple[Ints, Floats]:
        """Return points (n, knobs) and values (n, objectives) of the finished draws that no other dominates."""
        none = np.empty((0, len(self._candidates.knobs)), dtype=np.int64)
        points = np.concatenate([none, *(self._points[place].indices for place in self._front)])
        return points, self._values_of(self._front)

    def running(self) -> list[Points]:
        """Return the draws that have not ended."""
        return [self._points[place] for place in self._running]

    def scored(self) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Return features (n, d) and scores (n,) of the recent ones with a score, and which of these were measured."""
        places = self._recent()
        measured = np.array([self._values[place] is not None for place in places], dtype=bool)
        return self._features(places), np.array([self._scores[place] for place in places]), measured

    def measured(self) -> tuple[Floats, Floats]:
        """Return features (n, d) and values (n, objectives) of the recent ones that were measured to their end."""
        places = [place for place in self._recent() if self._values[place] is not None]
        return self._features(places), self._values_of(places)

    def losses(self, values: Floats) -> Floats:
        """Return values (m, objectives) as losses: lower is better, 0 the ideal, 1 the reference of hypervolume.

        The reference is the uncompressed network's cost; of a latency the worst so far.
        """
        losses = values.copy()
        for index, column in enumerate(self.columns):
            reference = self._candidates.uncompressed.get(column) or max(self._worst[index], 1e-9)
            losses[:, index] = 1 - values[:, index] if index == self.score else values[:, index] / reference
        return losses

    def _recent(self) -> list[int]:
        return self._scored[len(self._scored) - recent(len(self._scored)) :]

    def _nondominated(self) -> npt.NDArray[np.bool_]:
        losses = self.losses(self._values_of(self._front))
        return np.asarray(moocore.is_nondominated(losses, keep_weakly=True), dtype=bool)

    def _features(self, places: Iterable[int]) -> Floats:
        none = np.empty((0, self._candidates.width))
        return np.concatenate([none, *(self._points[place].features for place in places)])

    def _values_of(self, places: Iterable[int]) -> Floats:
        return np.array([self._values[place] for place in places], dtype=np.float64).reshape(-1, len(self.columns))
