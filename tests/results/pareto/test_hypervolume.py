from dataclasses import replace

import numpy as np
import pytest

from results.objectives import parse_objectives
from results.pareto.front import hypervolume, reference_point
from results.pareto.hypervolume import hypervolume_trace
from results.schema import to_table


def test_hypervolume_over_cost_counts_the_seconds_of_every_trial(random_rows, rng):
    rows = [replace(row, total_s=float(rng.uniform(1, 50)) if rng.random() < 0.8 else None) for row in random_rows(40)]
    objectives = parse_objectives(["val_top1", "size_bytes"])
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
        make_row(number=1, total_s=5.0, status="failed", error="died", val_top1=None),
        make_row(number=2, total_s=1.0, val_top1=0.95),
    ]
    objectives = parse_objectives(["val_top1", "size_bytes"])
    found = hypervolume_trace(to_table(rows), objectives, {"val_top1": 0.0, "size_bytes": 40_000.0})
    assert found.column("seconds").to_pylist() == [10.0, 16.0]
    assert found.column("hypervolume").to_pylist() == pytest.approx([0.9 * 0.5, 0.95 * 0.5])
