"""What a search keeps of its trials, without Ray Tune: rows always, packed models where they are worth it."""

import dataclasses
import hashlib
import random
from datetime import UTC, datetime
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from layers import OvertoneWarning
from results.ledger.ledger import Ledger
from results.pareto.hypervolume import hypervolume, reference_point
from results.schema import TrialRow, TrialStatus
from search.runner.ledger_callback import StopOnFailure
from search.runner.progress import Progress
from search.runner.study_callback import StudyCallback
from search.study.study_ledger import StudyLedger, checkpoint_name
from spaces import Network

RECORD = {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes", "flops"], "uncompressed": {}}


def _row(number: int, score: float, size: int, flops: int, model_sha256: str) -> TrialRow:
    texts = dict.fromkeys(("model", "dataset", "init", "config_digest", "spec_digest"), "x")
    counts = dict.fromkeys(("seed", "epochs", "epochs_run", "parameters", "macs"), 1)
    times = dict.fromkeys(("started_at", "finished_at"), datetime.now(UTC))
    return TrialRow(
        **{**texts, **counts, **times, "study": "s", "trial": f"t{number}", "spec": "{}"},
        number=number,
        status=TrialStatus.FINISHED,
        score=score,
        score_name="val_top1",
        size_bytes=size,
        flops=flops,
        model_sha256=model_sha256,
    )


@pytest.mark.parametrize("keep", ["front", "all"])
def test_a_model_is_kept_where_no_trial_so_far_dominates_it(
    ledger: Ledger, network: Network, console: Console, rng: random.Random, keep: str
) -> None:
    ledger.create_study("s", RECORD)
    callback = StudyCallback(StudyLedger(ledger, "s"), network, [Progress(console)], wanted=40, keep=keep)
    past: list[tuple[float, int, int]] = []
    wanted = set()
    for number in range(40):
        point, content = (rng.randint(0, 5) / 5, rng.randint(1, 6), rng.randint(1, 6)), f"model {number}".encode()
        row = _row(number, *point, model_sha256=hashlib.sha256(content).hexdigest())
        ledger.store.write_bytes(checkpoint_name("s", row.trial), content)
        beaten = any(t >= point[0] and s <= point[1] and f <= point[2] and (t, s, f) != point for t, s, f in past)
        wanted |= set() if beaten and keep == "front" else {row.model_sha256}
        callback.on_trial_start(0, [], SimpleNamespace(trial_id=str(number), config={"trial": row.trial}))
        callback.record_row(row)
        assert callback.failure is None
        assert ledger.has_model(row.model_sha256) == (row.model_sha256 in wanted)
        assert not ledger.store.exists(checkpoint_name("s", row.trial))
        past.append(point)
    assert ledger.models() == wanted
    kept = {row["model_sha256"] for row in ledger.front("s").to_pylist()}
    assert kept <= wanted


def test_a_worker_that_cannot_write_stops_the_search_and_leaves_its_trial_for_later(
    ledger: Ledger, network: Network, console: Console
) -> None:
    ledger.create_study("s", RECORD)
    callback = StudyCallback(StudyLedger(ledger, "s"), network, [Progress(console)], wanted=2, keep="front")
    trial = SimpleNamespace(
        trial_id="0", config={"trial": "t0"}, last_result={"status": "store_failed", "error": "disk full"}
    )
    callback.on_trial_start(0, [], trial)
    callback.on_trial_complete(1, [], trial)
    assert str(callback.failure) == "disk full"
    assert StopOnFailure(callback).stop_all()
    callback.close("interrupted")
    assert ledger.trials("s").num_rows == 0
    assert (ledger.read_progress("s") or {})["unfinished"] == [{"trial": "t0"}]


def test_a_trial_reads_nothing_of_the_study_and_leaves_the_front_of_all(
    ledger: Ledger, network: Network, console: Console, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each trial, in whatever order, the front on disk and the progress are what all rows give."""
    ledger.create_study("s", {**RECORD, "objectives": ["val_top1", "size_bytes", "latency_ms"]})
    study = StudyLedger(ledger, "s")
    for number in range(5):
        ledger.append(_random_row(rng, number))
    callback = StudyCallback(study, network, [Progress(console)], wanted=40, keep="front")
    for number in range(5, 40):
        with monkeypatch.context() as patch:
            for name in ("trials", "front", "repeats"):
                patch.setattr(ledger, name, None)
            callback.record_row(_random_row(rng, number))
            assert callback.failure is None
            progress = callback._study_progress()
        written = pq.read_table(pa.BufferReader(ledger.store.read_bytes("fronts/study=s/front.parquet")))
        members = ledger.front("s")
        assert written.column("trial").to_pylist() == members.column("trial").to_pylist()
        objectives = ledger.objectives("s")
        reference = reference_point(objectives, {}, ledger.trials("s"))
        expected = hypervolume(members, objectives, reference)
        assert (progress.front, progress.hypervolume) == (members.num_rows, pytest.approx(expected))


def test_latencies_of_two_places_in_one_study_are_a_warning(ledger: Ledger, network: Network, console: Console) -> None:
    ledger.create_study("s", {**RECORD, "objectives": ["val_top1", "size_bytes", "latency_ms"]})
    callback = StudyCallback(StudyLedger(ledger, "s"), network, [Progress(console)], wanted=4, keep="front")
    for number, device in enumerate(("Z80", "Z80", "6502", "6502")):
        place = {"latency_runtime": "torch", "latency_threads": 1, "latency_device": device}
        row = dataclasses.replace(
            _row(number, 0.5, 9, 1, model_sha256="0" * 64), latency_ms=1.0, **{"model_sha256": None, **place}
        )
        if number == 2:
            told = r"^trials take their latency in torch on Z80, 1 thread and in torch on 6502, 1 thread: they cannot"
            with pytest.warns(OvertoneWarning, match=told):
                callback.record_row(row)
        else:
            callback.record_row(row)
    assert callback.failure is None


def _random_row(rng: random.Random, number: int) -> TrialRow:
    """A trial that finished, failed, or was reused from another study."""
    row = _row(number, rng.randint(0, 9) / 9, rng.randint(1, 9), 1, model_sha256="0" * 64)
    changes = {"latency_ms": rng.randint(1, 9) / 10, "reused_from": "other", "model_sha256": None}
    row = dataclasses.replace(row, **changes)
    failed = {"status": TrialStatus.FAILED, "error": "x", "score": None}
    return dataclasses.replace(row, **failed) if rng.random() < 0.2 else row
