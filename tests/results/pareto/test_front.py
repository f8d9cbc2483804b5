import math

import pyarrow as pa
import pytest

from layers.errors import OvertoneError
from results.objectives import parse_objectives
from results.pareto.front import best, front, knee
from results.schema import SCHEMA, to_table
from tests.results.pareto.costs import SETS, costs


def _dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _slow_front(rows, names):
    usable = [(row, costs(row, names)) for row in rows if costs(row, names) is not None]
    return {row["trial"] for row, mine in usable if not any(_dominates(other, mine) for _, other in usable)}


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("count", [1, 2, 30, 300])
def test_front_equals_the_slow_oracle(random_rows, names, count):
    table = to_table(random_rows(count))
    found = front(table, parse_objectives(names, score_name="val_top1"))
    assert set(found.column("trial").to_pylist()) == _slow_front(table.to_pylist(), names)
    sizes = found.column("size_bytes").to_pylist()
    assert sizes == sorted(sizes)


def test_front_keeps_duplicates_and_drops_weak_ties(make_row):
    rows = [
        make_row(number=0, score=0.9, size_bytes=10),
        make_row(number=1, score=0.9, size_bytes=10),
        make_row(number=2, score=0.9, size_bytes=11),
        make_row(number=3, score=0.8, size_bytes=10),
    ]
    found = front(to_table(rows), parse_objectives(["val_top1", "size_bytes"], score_name="val_top1"))
    assert found.column("number").to_pylist() == [0, 1]


def test_nan_written_by_others_evicts_no_one(make_row):
    table = to_table([make_row(number=0, score=0.9), make_row(number=1, score=0.5, size_bytes=10)])
    values = pa.array([float("nan"), 0.5], from_pandas=False)
    table = table.set_column(SCHEMA.get_field_index("score"), "score", values)
    assert front(table, parse_objectives(["val_top1", "size_bytes"], score_name="val_top1")).column(
        "number"
    ).to_pylist() == [1]


def test_front_of_nothing_is_empty():
    found = front(SCHEMA.empty_table(), parse_objectives(["val_top1", "size_bytes"], score_name="val_top1"))
    assert found.num_rows == 0
    assert found.schema == SCHEMA


def _slow_knee(rows, names):
    """The largest distance above the chord, the smallest of equals, over the two-objective front."""
    cost = "size_bytes" if "size_bytes" in names else names[-1]
    members = _slow_front(rows, ["val_top1", cost])
    points = [(math.log(row[cost]), row["score"], row) for row in rows if row["trial"] in members]
    low, high = min(points, key=lambda p: p[0]), max(points, key=lambda p: p[0])
    if high[0] == low[0]:
        return low[2][cost]
    heights = [
        ((p[1] - low[1]) / (high[1] - low[1]) - (p[0] - low[0]) / (high[0] - low[0]), -p[0], p[2]) for p in points
    ]
    top = max(height for height, _, _ in heights)
    return max((h for h in heights if h[0] > top - 1e-9), key=lambda h: h[1])[2][cost]


@pytest.mark.parametrize(
    "names", [["val_top1", "size_bytes"], ["val_top1", "size_bytes", "flops"], ["val_top1", "flops"]]
)
@pytest.mark.parametrize("count", [2, 50])
def test_knee_equals_the_slow_oracle(random_rows, make_row, names, count):
    rows = [*random_rows(count), make_row(number=count, latency_ms=3.0)]
    table, cost = to_table(rows), "size_bytes" if "size_bytes" in names else "flops"
    usable = [row for row in table.to_pylist() if row["status"] == "finished"]
    assert knee(table, parse_objectives(names, score_name="val_top1"))[cost] == _slow_knee(usable, names)


def test_knee_of_a_known_front(make_row):
    points = [(0.5, 10), (0.9, 100), (0.95, 1000), (1.0, 10_000)]
    table = to_table([make_row(number=i, score=a, size_bytes=s) for i, (a, s) in enumerate(points)])
    objectives = parse_objectives(["val_top1", "size_bytes"], score_name="val_top1")
    assert knee(table, objectives)["number"] == 1
    assert knee(table.slice(0, 1), objectives)["number"] == 0


def test_knee_of_a_front_below_its_line_is_the_cheapest(make_row):
    points = [(0.5, 10), (0.51, 100), (1.0, 1000)]
    table = to_table([make_row(number=i, score=a, size_bytes=s) for i, (a, s) in enumerate(points)])
    assert knee(table, parse_objectives(["val_top1", "size_bytes"], score_name="val_top1"))["number"] == 0


def test_best_is_the_most_accurate_and_then_the_smallest(make_row):
    rows = [make_row(number=0, size_bytes=9), make_row(number=1, size_bytes=5), make_row(number=2, score=0.1)]
    assert best(to_table(rows))["number"] == 1


def test_nothing_finished_is_nothing_to_pick(make_row):
    table = to_table([make_row(status="failed", error="died", score=None)])
    for pick in (best, lambda rows: knee(rows, parse_objectives(["val_top1", "flops"], score_name="val_top1"))):
        with pytest.raises(OvertoneError, match="no finished trial is left to pick from"):
            pick(table)
