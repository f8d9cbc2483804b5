from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from results.ledger.ledger import Ledger
from results.objectives import parse_objectives
from results.pareto.front import front
from results.schema import TrialStatus, to_table

NAMES = ["val_top1", "size_bytes", "latency_ms"]
OBJECTIVES = parse_objectives(NAMES, score_name="val_top1")


@pytest.fixture
def study(ledger):
    ledger.create_study("walk", {"score_name": "val_top1", "objectives": NAMES})
    return ledger


def _random_row(make_row, rng, number):
    """Few values, so that ties, duplicates and retries are common; some failed, pruned, or without a latency."""
    row = make_row(
        study="walk",
        trial=f"t{number}",
        number=number,
        score=int(rng.integers(1, 8)) / 8,
        size_bytes=int(rng.integers(1, 8)),
        latency_ms=float(rng.integers(1, 5)) if rng.random() < 0.9 else float("nan"),
    )
    row = replace(row, finished_at=row.started_at + timedelta(minutes=int(rng.integers(0, 10_000))))
    if rng.random() < 0.2:
        status = TrialStatus.FAILED if rng.random() < 0.5 else TrialStatus.PRUNED
        row = replace(row, status=status, score=None, error="died")
    return replace(row, repeat_of="t0") if rng.random() < 0.05 else row


def _counting_rows(rows):
    """The documented rule, row by row."""
    best = {}
    for row in rows:
        key = (row.status == "finished", row.finished_at, row.score or -1.0)
        if row.trial not in best or key > best[row.trial][0]:
            best[row.trial] = (key, row)
    return [row for _, row in best.values() if row.repeat_of is None]


def _loss(row):
    values = (-row.score if row.score is not None else np.nan, row.size_bytes, row.latency_ms)
    return values if row.status == "finished" and np.isfinite(values).all() else None


def _slow_front(rows):
    points = [(row.trial, _loss(row)) for row in _counting_rows(rows) if _loss(row)]
    return {
        (trial, point)
        for trial, point in points
        if not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for _, other in points)
    }


def _points(table):
    return {(r["trial"], (-r["score"], r["size_bytes"], r["latency_ms"])) for r in table.to_pylist()}


@pytest.mark.parametrize("repeats", [0.0, 0.05, 0.5])
def test_front_equals_the_front_of_all_rows(study, make_row, np_rng, repeats):
    rows, ledger = [], study
    for step in range(60):
        many = 1 if np_rng.random() < 0.8 else int(np_rng.integers(2, 6))
        again = [np_rng.random() < repeats for _ in range(many)]
        numbers = [int(np_rng.integers(0, step + 1)) if again[i] else 10 * step + i for i in range(many)]
        new = [_random_row(make_row, np_rng, number) for number in numbers]
        rows += new
        if many > 1:
            ledger.append_many(new)
        else:
            ledger.append(new[0])
        if np_rng.random() < 0.1:
            (ledger if np_rng.random() < 0.5 else Ledger(ledger.store)).compact("walk")
        if np_rng.random() < 0.15:
            ledger = Ledger(ledger.store)
        if np_rng.random() < 0.7:
            assert _points(ledger.write_front("walk")) == _slow_front(rows)
            written = pq.read_table(ledger.store.path_of("fronts/study=walk/front.parquet"), partitioning=None)
            assert _points(written) == _slow_front(rows)
    assert _points(ledger.front("walk")) == _points(Ledger(ledger.store).front("walk")) == _slow_front(rows)
    counting = sorted((row.trial, row.number) for row in _counting_rows(rows))
    assert sorted(zip(*ledger.trials("walk", ["trial", "number"]).to_pydict().values(), strict=True)) == counting
    assert ledger.trials("walk").sort_by("trial").column("trial").to_pylist() == [trial for trial, _ in counting]


def test_members_brought_up_to_date_row_by_row_are_the_front(study, make_row, np_rng):
    """What a search does: the front of the members and the new row, dominance being transitive."""
    members = study.front("walk")
    for number in range(80):
        row = replace(_random_row(make_row, np_rng, number), repeat_of=None)
        study.append(row)
        members = study.write_front("walk", front(pa.concat_tables([members, to_table([row])]), OBJECTIVES))
    assert members.equals(study.front("walk"))
    written = pq.read_table(study.store.path_of("fronts/study=walk/front.parquet"), partitioning=None)
    assert _points(written) == _points(members)


def test_retried_member_gives_back_what_it_dominated(study, make_row):
    good = make_row(study="walk", number=1, score=0.9, latency_ms=1.0)
    study.append_many([good, make_row(study="walk", number=2, score=0.5, latency_ms=1.0)])
    assert study.write_front("walk").column("number").to_pylist() == [1]
    study.append(replace(good, score=0.1, finished_at=good.finished_at + timedelta(hours=1)))
    assert study.write_front("walk").column("number").to_pylist() == [2]
    study.append(replace(good, status=TrialStatus.FAILED, error="x", finished_at=good.finished_at + timedelta(hours=2)))
    assert study.write_front("walk").column("number").to_pylist() == [2]
    study.compact("walk")
    assert Ledger(study.store).write_front("walk").column("number").to_pylist() == [2]


def test_row_that_ended_before_the_one_that_counts_does_not_enter(study, make_row):
    bad = make_row(study="walk", number=1, score=0.1, latency_ms=1.0, size_bytes=9)
    study.append_many([bad, make_row(study="walk", number=0, score=0.5, latency_ms=1.0, size_bytes=5)])
    assert study.write_front("walk").column("number").to_pylist() == [0]
    study.append(replace(bad, score=0.9, finished_at=bad.finished_at - timedelta(seconds=1)))
    assert study.write_front("walk").column("number").to_pylist() == [0]


def test_written_front_is_not_read_again(study, make_row):
    study.append(make_row(study="walk", number=0, latency_ms=1.0))
    expected, name = study.write_front("walk"), "fronts/study=walk/front.parquet"
    study.store.write_bytes(name, b"torn")
    assert Ledger(study.store).write_front("walk").equals(expected)
    assert pq.read_table(study.store.path_of(name), partitioning=None).num_rows == 1


def test_trial_file_that_was_taken_away_by_hand_leaves_the_front(study, make_row):
    study.append(make_row(study="walk", number=0, latency_ms=1.0, score=0.5))
    name = study.append(make_row(study="walk", number=1, latency_ms=1.0, score=0.9))
    assert study.write_front("walk").column("number").to_pylist() == [1]
    study.store.delete(name)
    assert study.write_front("walk").column("number").to_pylist() == [0]
    assert study.trials("walk").column("number").to_pylist() == [0]
