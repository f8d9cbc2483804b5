"""The expected gain in hypervolume of many candidates at once, of which all losses but the first are certain.

With at most two certain losses it is exact and takes no loop over candidates. A candidate's box in the certain losses
is covered by those of the front's members in order of the uncertain loss, best first; what a candidate gains at the
loss u is the area that is still uncovered, integrated over the uncertain loss from u to the reference point.
"""

from __future__ import annotations

import moocore
import numpy as np

from search.optimize.candidates import Floats

__all__ = ["expected_hypervolume_improvement"]


def expected_hypervolume_improvement(losses: Floats, uncertain: Floats, certain: Floats, weights: Floats) -> Floats:
    """Return the mean gain (m,) in dominated hypervolume below the reference point (1, ..., 1) of each candidate.

    `losses` (n, k) are the points so far, lower is better. Of m candidates the first objective is one of `uncertain`
    (m, q), with probabilities `weights` (q,), and the others are `certain` (m, k - 1).
    """
    inside: Floats = losses[(losses < 1).all(axis=1)]
    front = inside[moocore.is_nondominated(inside)] if len(inside) else inside
    return (_by_area if certain.shape[1] <= 2 else _by_volume)(front, uncertain, certain, weights)


def _by_area(front: Floats, uncertain: Floats, certain: Floats, weights: Floats) -> Floats:
    """For at most two certain losses."""
    front = front[np.argsort(front[:, 0])]
    beside = np.zeros((len(front), 3 - front.shape[1]))
    levels, members = np.append(front[:, 0], 1.0), np.hstack([front[:, 1:], beside])
    points = np.hstack([certain, np.zeros((len(certain), 2 - certain.shape[1]))]).clip(max=1.0)
    edges = np.concatenate([[0.0], np.unique(members[:, 0]), [1.0]])
    widths = (edges[1:] - np.maximum(edges[:-1], points[:, :1])).clip(min=0.0)  # (m, cells)
    heights = np.repeat(1 - points[:, 1:], len(widths[0]), axis=1)
    gains = np.zeros(len(points))
    below = 0.0
    for index, level in enumerate(levels):
        # of the levels from `below` to `level` the share of a candidate's outcomes that reach below them
        reached = (level - np.maximum(uncertain, below)).clip(min=0.0) @ weights
        gains += reached * (widths * heights).sum(axis=1)
        if index < len(members):
            first = int(np.searchsorted(edges, members[index, 0]))
            left = (members[index, 1] - points[:, 1:]).clip(min=0.0)
            np.minimum(heights[:, first:], left, out=heights[:, first:])
        below = level
    return gains


def _by_volume(front: Floats, uncertain: Floats, certain: Floats, weights: Floats) -> Floats:
    """For any number of objectives, a hypervolume for each outcome that can gain anything."""
    volume = moocore.Hypervolume(ref=np.ones(certain.shape[1] + 1))
    before = float(volume(front)) if len(front) else 0.0
    no_dearer = (front[:, None, 1:] <= certain).all(axis=2)
    needed = np.where(no_dearer, front[:, :1], 1.0).min(axis=0, initial=1.0)  # what each candidate must be better than
    promising = (uncertain < needed[:, None]) & (certain < 1).all(axis=1, keepdims=True)
    gains = np.zeros(len(certain))
    points = np.vstack([front, np.ones(certain.shape[1] + 1)])
    for row, node in zip(*promising.nonzero(), strict=True):
        points[-1, 0] = uncertain[row, node]
        points[-1, 1:] = certain[row]
        gains[row] += weights[node] * (float(volume(points)) - before)
    return gains
