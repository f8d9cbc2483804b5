import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from layers.errors import OvertoneError, UsageError
from results.objectives import parse_objectives
from results.pareto.front import best, front, hypervolume, hypervolume_after_each, knee, reference_point
from results.schema import SCHEMA, to_table
from tests.results.conftest import UNCOMPRESSED

SETS = [
    ["val_top1", "size_bytes"],
    ["flops", "val_top1", "size_bytes"],
    ["val_top1", "size_bytes", "latency_ms", "macs"],
]


def _values(row, names):
    values = [row[name] for name in names]
    if row["status"] != "finished" or any(value is None or not math.isfinite(value) for value in values):
        return None
    return [-value if name == "val_top1" else value for name, value in zip(names, values, strict=True)]


def _dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _slow_front(rows, names):
    usable = [(row, _values(row, names)) for row in rows if _values(row, names) is not None]
    return {row["trial"] for row, mine in usable if not any(_dominates(other, mine) for _, other in usable)}


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("count", [1, 2, 30, 300])
def test_front_equals_the_slow_oracle(random_rows, names, count):
    table = to_table(random_rows(count))
    found = front(table, parse_objectives(names))
    assert set(found.column("trial").to_pylist()) == _slow_front(table.to_pylist(), names)
    sizes = found.column("size_bytes").to_pylist()
    assert sizes == sorted(sizes)


def test_front_keeps_duplicates_and_drops_weak_ties(make_row):
    rows = [
        make_row(number=0, val_top1=0.9, size_bytes=10),
        make_row(number=1, val_top1=0.9, size_bytes=10),
        make_row(number=2, val_top1=0.9, size_bytes=11),
        make_row(number=3, val_top1=0.8, size_bytes=10),
    ]
    found = front(to_table(rows), parse_objectives(["val_top1", "size_bytes"]))
    assert found.column("number").to_pylist() == [0, 1]


def test_nan_written_by_others_evicts_no_one(make_row):
    table = to_table([make_row(number=0, val_top1=0.9), make_row(number=1, val_top1=0.5, size_bytes=10)])
    values = pa.array([float("nan"), 0.5], from_pandas=False)
    table = table.set_column(SCHEMA.get_field_index("val_top1"), "val_top1", values)
    assert front(table, parse_objectives(["val_top1", "size_bytes"])).column("number").to_pylist() == [1]


def test_front_of_nothing_is_empty():
    found = front(SCHEMA.empty_table(), parse_objectives(["val_top1", "size_bytes"]))
    assert found.num_rows == 0
    assert found.schema == SCHEMA


def _monte_carlo(points, rng, count=200_000):
    """The dominated share of the unit box, by throwing darts."""
    darts = rng.random((count, len(points[0])))
    hit = np.zeros(count, dtype=bool)
    for point in points:
        hit |= (darts >= point).all(axis=1)
    return hit.mean()


def test_hypervolume_of_one_point_is_its_box(make_row):
    objectives = parse_objectives(["val_top1", "size_bytes", "flops"])
    reference = reference_point(objectives, UNCOMPRESSED, SCHEMA.empty_table())
    assert reference == {"val_top1": 0.0, "size_bytes": 312_000, "flops": 25_000_000}
    table = to_table([make_row(val_top1=0.9, size_bytes=78_000, flops=5_000_000)])
    assert hypervolume(table, objectives, reference) == pytest.approx(0.9 * 0.75 * 0.8)


@pytest.mark.parametrize("names", SETS)
def test_hypervolume_equals_the_share_of_random_darts(random_rows, rng, names):
    table, objectives = to_table(random_rows(60)), parse_objectives(names)
    reference = reference_point(objectives, {}, table)
    usable = [_values(row, names) for row in table.to_pylist()]
    scaled = [
        [
            1 + value if name == "val_top1" else value / reference[name]
            for name, value in zip(names, values, strict=True)
        ]
        for values in usable
        if values is not None
    ]
    assert hypervolume(table, objectives, reference) == pytest.approx(_monte_carlo(scaled, rng), abs=0.006)


def test_points_beyond_the_reference_add_nothing(make_row):
    objectives = parse_objectives(["val_top1", "size_bytes"])
    reference = {"val_top1": 0.5, "size_bytes": 1000.0}
    rows = [make_row(val_top1=0.75, size_bytes=500), make_row(number=1, val_top1=1.0, size_bytes=1000)]
    rows += [make_row(number=2, val_top1=0.4, size_bytes=1), make_row(number=3, val_top1=1.0, size_bytes=2000)]
    assert hypervolume(to_table(rows[1:]), objectives, reference) == 0.0
    assert hypervolume(to_table(rows), objectives, reference) == pytest.approx(0.5 * 0.5)


def test_reference_falls_back_to_the_worst_seen(make_row):
    objectives = parse_objectives(["val_top1", "size_bytes", "latency_ms"])
    table = to_table([make_row(latency_ms=2.0), make_row(number=1, latency_ms=5.0), make_row(number=2)])
    assert reference_point(objectives, {"size_bytes": 99}, table) == {
        "val_top1": 0.0,
        "size_bytes": 99.0,
        "latency_ms": 5.0,
    }
    empty = reference_point(objectives, {}, SCHEMA.empty_table())
    assert math.isnan(empty["latency_ms"])
    assert hypervolume(SCHEMA.empty_table(), objectives, empty) == 0.0
    with pytest.raises(UsageError, match=r"uncompressed network's size_bytes \(=0\) must be above 0"):
        reference_point(objectives, {"size_bytes": 0}, table)


def test_history_is_the_hypervolume_of_every_beginning(random_rows):
    rows = sorted(random_rows(40), key=lambda row: row.number)
    objectives = parse_objectives(["val_top1", "size_bytes", "flops"])
    table = to_table(rows)
    reference = reference_point(objectives, {}, table)
    finished = [row for row in rows if row.status == "finished"]
    expected = [hypervolume(to_table(finished[: end + 1]), objectives, reference) for end in range(len(finished))]
    shuffled = table.take(pa.array(np.random.default_rng().permutation(len(rows))))
    found = hypervolume_after_each(shuffled, objectives, reference)
    np.testing.assert_allclose(found, expected)
    assert all(later >= earlier for earlier, later in pairwise(found))


def _slow_knee(rows, names):
    """The largest distance above the chord, the smallest of equals, over the two-objective front."""
    cost = "size_bytes" if "size_bytes" in names else names[-1]
    members = _slow_front(rows, ["val_top1", cost])
    points = [(math.log(row[cost]), row["val_top1"], row) for row in rows if row["trial"] in members]
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
    assert knee(table, parse_objectives(names))[cost] == _slow_knee(usable, names)


def test_knee_of_a_known_front(make_row):
    points = [(0.5, 10), (0.9, 100), (0.95, 1000), (1.0, 10_000)]
    table = to_table([make_row(number=i, val_top1=a, size_bytes=s) for i, (a, s) in enumerate(points)])
    objectives = parse_objectives(["val_top1", "size_bytes"])
    assert knee(table, objectives)["number"] == 1
    assert knee(table.slice(0, 1), objectives)["number"] == 0


def test_knee_of_a_front_below_its_line_is_the_cheapest(make_row):
    points = [(0.5, 10), (0.51, 100), (1.0, 1000)]
    table = to_table([make_row(number=i, val_top1=a, size_bytes=s) for i, (a, s) in enumerate(points)])
    assert knee(table, parse_objectives(["val_top1", "size_bytes"]))["number"] == 0


def test_best_is_the_most_accurate_and_then_the_smallest(make_row):
    rows = [make_row(number=0, size_bytes=9), make_row(number=1, size_bytes=5), make_row(number=2, val_top1=0.1)]
    assert best(to_table(rows))["number"] == 1


def test_nothing_finished_is_nothing_to_pick(make_row):
    table = to_table([make_row(status="failed", error="died", val_top1=None)])
    for pick in (best, lambda rows: knee(rows, parse_objectives(["val_top1", "flops"]))):
        with pytest.raises(OvertoneError, match="no finished trial is left to pick from"):
            pick(table)
