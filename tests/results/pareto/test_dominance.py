import numpy as np
import pytest

import results.pareto.dominance
from layers.errors import UsageError
from results.objectives import parse_objectives
from results.pareto.dominance import front_mask, nondominated, ranks
from results.pareto.front import front
from results.schema import to_table
from tests.results.pareto.costs import SETS, costs


def _slow_mask(points):
    """Every pair of points."""
    dominates = [[all(a <= b) and any(a < b) for b in points] for a in points]
    return ~np.array(dominates, dtype=bool).reshape(len(points), len(points)).any(axis=0)


def _slow_ranks(points):
    found, rank = np.full(len(points), -1), 0
    while (found < 0).any():
        left = np.flatnonzero(found < 0)
        found[left[_slow_mask(points[left])]] = rank
        rank += 1
    return found


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("count", [0, 1, 80])
def test_ranks_equal_the_slow_oracle_on_shuffled_rows(random_rows, np_rng, names, count):
    rows = random_rows(count)
    table = to_table([rows[i] for i in np_rng.permutation(count)])
    points = [costs(row, names) for row in table.to_pylist()]
    taking_part = np.array([point is not None for point in points], dtype=bool)
    expected = np.full(count, -1)
    expected[taking_part] = _slow_ranks(np.array([point for point in points if point]).reshape(-1, len(names)))
    found = ranks(table, parse_objectives(names, score_name="val_top1"))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found == 0, front_mask(table, parse_objectives(names, score_name="val_top1")))


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("levels", [3, 12, 10**6])
@pytest.mark.parametrize("grid", [True, False])
def test_points_beside_a_front_equal_the_slow_oracle(np_rng, monkeypatch, objectives, levels, grid):
    """Few levels for ties and duplicates on the edges of the grid; points and front share values."""
    monkeypatch.setattr(results.pareto.dominance, "_MANY", 0 if grid else 10**9)
    first, second = np_rng.integers(0, levels, (2, 150, objectives)).astype(float)
    beside = first[_slow_mask(first)]
    expected = _slow_mask(np.vstack([beside, second]))[len(beside) :]
    np.testing.assert_array_equal(nondominated(second, beside), expected)
    np.testing.assert_array_equal(nondominated(second, second), _slow_mask(second))
    np.testing.assert_array_equal(nondominated(second), _slow_mask(second))


def test_limits_bound_who_takes_part(random_rows):
    table, objectives = (
        to_table(random_rows(200)),
        parse_objectives(["val_top1", "size_bytes", "flops"], score_name="val_top1"),
    )
    limits = {"size_bytes": 100_000, "val_top1": 0.5, "latency_ms": 4}
    rows = [
        row
        for row in table.to_pylist()
        if row["status"] == "finished"
        and row["size_bytes"] <= 100_000
        and row["score"] >= 0.5
        and (row["latency_ms"] or 99) <= 4
    ]
    found = front(table, objectives, limits).column("trial").to_pylist()
    points = np.array([costs(row, ["val_top1", "size_bytes", "flops"]) for row in rows])
    assert set(found) == {row["trial"] for row, kept in zip(rows, _slow_mask(points), strict=True) if kept}
    assert (ranks(table, objectives, limits) >= 0).sum() == len(rows)
    same = {"score" if name == "val_top1" else name: worst for name, worst in limits.items()}
    assert front(table, objectives, same).column("trial").to_pylist() == found
    with pytest.raises(UsageError, match=r"limit \(='speed'\) must be on one of score, size_bytes, .*, val_top1"):
        front(table, objectives, {"speed": 1.0})
