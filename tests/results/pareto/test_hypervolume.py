import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from layers.errors import UsageError
from results.objectives import parse_objectives
from results.pareto.hypervolume import hypervolume, hypervolume_after_each, hypervolume_trace, reference_point
from results.schema import SCHEMA, to_table
from tests.results.conftest import UNCOMPRESSED
from tests.results.pareto.costs import SETS, costs


def _monte_carlo(points, rng, count=200_000):
    """The dominated share of the unit box, by throwing darts."""
    darts = rng.random((count, len(points[0])))
    hit = np.zeros(count, dtype=bool)
    for point in points:
        hit |= (darts >= point).all(axis=1)
    return hit.mean()


def test_hypervolume_of_one_point_is_its_box(make_row):
    objectives = parse_objectives(["val_top1", "size_bytes", "flops"], score_name="val_top1")
    reference = reference_point(objectives, UNCOMPRESSED, SCHEMA.empty_table())
    assert reference == {"val_top1": 0.0, "size_bytes": 312_000, "flops": 25_000_000}
    table = to_table([make_row(score=0.9, size_bytes=78_000, flops=5_000_000)])
    assert hypervolume(table, objectives, reference) == pytest.approx(0.9 * 0.75 * 0.8)


@pytest.mark.parametrize("names", SETS)
def test_hypervolume_equals_the_share_of_random_darts(random_rows, np_rng, names):
    table, objectives = to_table(random_rows(60)), parse_objectives(names, score_name="val_top1")
    reference = reference_point(objectives, {}, table)
    usable = [costs(row, names) for row in table.to_pylist()]
    scaled = [
        [
            1 + value if name == "val_top1" else value / reference[name]
            for name, value in zip(names, values, strict=True)
        ]
        for values in usable
        if values is not None
    ]
    assert hypervolume(table, objectives, reference) == pytest.approx(_monte_carlo(scaled, np_rng), abs=0.006)


def test_points_beyond_the_reference_add_nothing(make_row):
    objectives = parse_objectives(["val_top1", "size_bytes"], score_name="val_top1")
    reference = {"val_top1": 0.5, "size_bytes": 1000.0}
    rows = [make_row(score=0.75, size_bytes=500), make_row(number=1, score=1.0, size_bytes=1000)]
    rows += [make_row(number=2, score=0.4, size_bytes=1), make_row(number=3, score=1.0, size_bytes=2000)]
    assert hypervolume(to_table(rows[1:]), objectives, reference) == 0.0
    assert hypervolume(to_table(rows), objectives, reference) == pytest.approx(0.5 * 0.5)


def test_reference_falls_back_to_the_worst_seen(make_row):
    objectives = parse_objectives(["val_top1", "size_bytes", "latency_ms"], score_name="val_top1")
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


def test_history_is_the_hypervolume_of_every_beginning(random_rows, np_rng):
    rows = sorted(random_rows(40), key=lambda row: row.number)
    objectives = parse_objectives(["val_top1", "size_bytes", "flops"], score_name="val_top1")
    table = to_table(rows)
    reference = reference_point(objectives, {}, table)
    finished = [row for row in rows if row.status == "finished"]
    expected = [hypervolume(to_table(finished[: end + 1]), objectives, reference) for end in range(len(finished))]
    shuffled = table.take(pa.array(np_rng.permutation(len(rows))))
    found = hypervolume_after_each(shuffled, objectives, reference)
    np.testing.assert_allclose(found, expected)
    assert all(later >= earlier for earlier, later in pairwise(found))


def test_hypervolume_over_cost_counts_the_seconds_of_every_trial(random_rows, np_rng):
    rows = [
        replace(row, total_s=float(np_rng.uniform(1, 50)) if np_rng.random() < 0.8 else None) for row in random_rows(40)
    ]
    objectives = parse_objectives(["val_top1", "size_bytes"], score_name="val_top1")
    table = to_table(rows)
    reference = reference_point(objectives, {}, table)
    found = hypervolume_trace(table, objectives, reference).to_pylist()
    ordered, spent = sorted(rows, key=lambda row: row.finished_at), 0.0
    expected = []
    for index, row in enumerate(ordered):
        spent += row.total_s if row.total_s is not None else (row.finished_at - row.started_at).total_seconds()
        if row.status == "finished":
            so_far = to_table(ordered[: index + 1])
            expected.append((row.trial, spent, hypervolume(so_far, objectives, reference)))
    assert [entry["trial"] for entry in found] == [trial for trial, _, _ in expected]
    np.testing.assert_allclose([entry["seconds"] for entry in found], [seconds for _, seconds, _ in expected])
    np.testing.assert_allclose([entry["hypervolume"] for entry in found], [volume for _, _, volume in expected])


def test_seconds_of_a_known_study(make_row):
    rows = [
        make_row(number=0, total_s=10.0),
        make_row(number=1, total_s=5.0, status="failed", error="died", score=None),
        make_row(number=2, total_s=1.0, score=0.95),
    ]
    objectives = parse_objectives(["val_top1", "size_bytes"], score_name="val_top1")
    found = hypervolume_trace(to_table(rows), objectives, {"val_top1": 0.0, "size_bytes": 40_000.0})
    assert found.column("seconds").to_pylist() == [10.0, 16.0]
    assert found.column("hypervolume").to_pylist() == pytest.approx([0.9 * 0.5, 0.95 * 0.5])
