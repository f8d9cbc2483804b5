import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta

import duckdb
import pytest

import results.ledger.compaction
from layers.errors import OvertoneError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import to_table

FOLDER = "trials/study=demo"


def _fill(ledger, rows):
    for row in rows:
        ledger.append(row)


def _numbers(store):
    return Ledger(store).trials("demo").column("number").to_pylist()


def test_compaction_keeps_every_row_in_one_file(ledger, random_rows):
    rows = random_rows(40)
    _fill(ledger, rows)
    before, front = ledger.trials("demo"), ledger.front("demo")
    done = ledger.compact("demo")
    assert done.to_json() == {
        "files_before": 40,
        "files_after": 1,
        "segments_written": 1,
        "rows_written": 40,
        "files_deleted": 40,
    }
    assert len(ledger.store.list(FOLDER)) == 1
    for reader in (ledger, Ledger(ledger.store)):
        assert reader.trials("demo").equals(before)
        assert reader.front("demo").equals(front)
    assert ledger.compact("demo").segments_written == 0


def test_compaction_drops_superseded_rows(ledger, make_row):
    row = make_row(number=1, score=0.9)
    _fill(ledger, [row, replace(row, score=0.2, finished_at=row.finished_at + timedelta(1)), make_row(number=2)])
    ledger.compact("demo")
    folder = ledger.store.path_of(FOLDER)
    found = duckdb.connect().sql(f"select number, score from read_parquet('{folder}/*.parquet') order by 1")
    assert found.fetchall() == [(1, 0.2), (2, 0.9)]


def test_segments_of_like_size_are_merged_and_a_large_one_is_left(ledger, make_row):
    ledger.append_many([make_row(number=n) for n in range(50)])
    ledger.append_many([make_row(number=n) for n in range(50, 54)])
    ledger.append(make_row(number=54))
    done = ledger.compact("demo")
    assert (done.files_after, done.rows_written) == (3, 0)
    _fill(ledger, [make_row(number=n) for n in range(55, 57)])
    done = ledger.compact("demo")
    assert (done.files_after, done.rows_written) == (2, 7)
    assert _numbers(ledger.store) == list(range(57))


class _PowerCut(BaseException):
    """Ends a compaction as a crash does: no handler of the code under test runs it down."""


@pytest.mark.parametrize("step", range(11))
def test_crash_at_any_step_loses_and_doubles_nothing(ledger, make_row, monkeypatch, step):
    _fill(ledger, [make_row(number=n) for n in range(4)])
    left = step

    def counted(call):
        def run(*arguments):
            nonlocal left
            if left == 0:
                raise _PowerCut
            left -= 1
            return call(*arguments)

        return run

    with monkeypatch.context() as crash:
        for name in ("fsync", "replace", "unlink"):
            crash.setattr(os, name, counted(getattr(os, name)))
        crash.setattr(Store, "delete", counted(Store.delete))
        with pytest.raises(_PowerCut):
            ledger.compact("demo")
    assert _numbers(ledger.store) == ledger.trials("demo").column("number").to_pylist() == list(range(4))
    ledger.append(make_row(number=4))
    Ledger(ledger.store).compact("demo")
    assert _numbers(ledger.store) == list(range(5))
    assert len(ledger.store.list(FOLDER)) <= 2


def test_replaced_file_that_still_lies_there_does_not_count(ledger, make_row):
    name = ledger.append(make_row(number=0))
    ledger.append(make_row(number=1))
    data = ledger.store.read_bytes(name)
    ledger.compact("demo")
    ledger.store.write_bytes(name, data)
    assert Ledger(ledger.store).trials("demo").num_rows == 2
    assert ledger.compact("demo").files_deleted == 1
    assert not ledger.store.exists(name)


def test_two_compactions_at_once_keep_each_trial_once(ledger, make_row, monkeypatch):
    _fill(ledger, [make_row(number=n) for n in range(6)])
    encode, other = results.ledger.compaction.encode_segment, Ledger(ledger.store)

    def meanwhile(*arguments):
        monkeypatch.setattr(results.ledger.compaction, "encode_segment", encode)
        other.compact("demo")
        other.append(to_row)
        return encode(*arguments)

    to_row = make_row(number=6)
    monkeypatch.setattr(results.ledger.compaction, "encode_segment", meanwhile)
    ledger.compact("demo")
    for reader in (ledger, other, Ledger(ledger.store)):
        assert reader.trials("demo").column("number").to_pylist() == list(range(7))
        assert reader.front("demo").num_rows == 7


def test_reader_that_listed_before_the_files_went_looks_again(ledger, make_row, monkeypatch):
    _fill(ledger, [make_row(number=n) for n in range(5)])
    reader, listed = Ledger(Store(ledger.store.uri)), []
    real = reader.store.list

    def stale(*arguments):
        names = real(*arguments)
        if not listed:
            listed.append(names)
            ledger.compact("demo")
        return names

    monkeypatch.setattr(reader.store, "list", stale)
    assert reader.trials("demo").column("number").to_pylist() == list(range(5))


def test_foreign_file_stops_compaction_before_it_writes(ledger, make_row):
    _fill(ledger, [make_row(number=n) for n in range(3)])
    ledger.store.write_bytes(f"{FOLDER}/foreign.parquet", b"not parquet")
    with pytest.raises(OvertoneError, match=r"foreign\.parquet' is not a readable Parquet file"):
        ledger.compact("demo")
    assert len(ledger.store.list(FOLDER)) == 4


def test_empty_study_has_nothing_to_compact(ledger):
    assert ledger.compact("demo").files_after == 0


def _append_some(uri, rows):
    _fill(Ledger(Store(uri)), rows)


def _read_until(uri, wanted):
    """How many rows each look found; every one must be a reading without a torn file or a trial seen twice."""
    seen, ledger, deadline = [0], Ledger(Store(uri)), time.monotonic() + 30
    while seen[-1] < wanted and time.monotonic() < deadline:
        trials = ledger.trials("demo", ["trial"]).column("trial").to_pylist()
        assert len(set(trials)) == len(trials)
        ledger.write_front("demo")
        seen.append(len(trials))
    return seen


@pytest.mark.slow
def test_eight_processes_append_while_others_read_and_compact(ledger, make_row):
    """Processes, not threads: nothing is shared but the folder."""
    uri, rows = ledger.store.uri, [make_row(number=n, size_bytes=1 + n) for n in range(160)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(9, mp_context=context) as pool:
        reading = pool.submit(_read_until, uri, len(rows))
        writing = [pool.submit(_append_some, uri, rows[start::8]) for start in range(8)]
        while not all(writer.done() for writer in writing):
            ledger.compact("demo")
        for writer in writing:
            writer.result()
        seen = reading.result()
    assert seen == sorted(seen)
    assert seen[-1] == len(rows)
    ledger.compact("demo")
    assert ledger.trials("demo").equals(to_table(rows))
    assert Ledger(ledger.store).front("demo").equals(ledger.write_front("demo"))
