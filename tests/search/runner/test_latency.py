"""Latency of trials' own files as an objective: taken by workers, reused where it was taken alike, else taken again."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from layers import UsageError
from results.ledger.ledger import Ledger
from results.schema import TrialRow
from search.api.study import Study
from search.runner.cluster import Resources
from search.runner.trainable import TrialActor
from search.study.plan import StudyPlan
from search.study.reuse import earlier_latency, finished_rows
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload
from tests.search.studies import start_study
from trainers.runtime.place import LATENCY, Latency, Place

OBJECTIVES = ("val_top1", "size_bytes", "latency_ms")
SERIAL = Resources(gpus_per_trial=0, concurrency=1)


@pytest.fixture
def timed(plan: StudyPlan) -> StudyPlan:
    return dataclasses.replace(plan, objectives=OBJECTIVES, runtime="onnxruntime", trials=3, keep="all")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes in which a latency was taken, one time each, whose value is its number."""
    taken: list[str] = []

    def file_latency(file: Path, runtime: str, *, threads: int, content: bytes) -> Any:
        assert content == b"the file of a CompressedConv2d"
        taken.append(runtime)
        return _latency(runtime, len(taken), threads)

    monkeypatch.setattr("trainers.runtime.latency.file_latency", file_latency)
    return taken


def _latency(runtime: str, value: float, threads: int) -> Latency:
    place = dataclasses.asdict(Place.of(runtime, threads, "cpu"))
    return Latency(**place, latency_ms=float(value), latency_b64_ms=10.0 * value)


@pytest.fixture
def advance(run_alone: Any, ledger: Ledger, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the first step of a worker for the trial `abc`, which the study `s` has run, in another study."""
    run_alone(plan)
    workload = Workload.load(plan)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0}))
    (row,) = ledger.trials("s").to_pylist()

    def write(skeleton: object, model: nn.Module, *_: object, threads: int) -> bytes:
        return f"the file of a {type(model.layer3[0].conv1).__name__}".encode()

    monkeypatch.setattr("trainers.runtime.latency.tuned_file", write)

    def step(timed: StudyPlan, **changes: Any) -> dict[str, Any]:
        spec = {**json.loads(row["spec"]), "latency": True, "runtime": timed.runtime}
        earlier = earlier_latency({**row, **changes})
        suggestion = {"number": 0, "trial": "abc", "spec": spec, "earlier": earlier}
        actor = TrialActor.__new__(TrialActor)
        shared = {"data": workload.data, "baseline": workload.baseline, "network": workload.network}
        actor.setup(suggestion, **shared, store=str(ledger.store.local_root), study="other")
        actor._skeleton = SimpleNamespace()  # type: ignore[assignment]
        return actor.step()

    return step


def _at(place: Place, **times: float) -> dict[str, Any]:
    return {**dataclasses.asdict(place), "latency_ms": 7.0, "latency_b64_ms": 70.0, **times}


def test_a_worker_takes_a_latency_again_unless_it_was_taken_alike(
    advance: Any, timed: StudyPlan, counted: list[str], ledger: Ledger
) -> None:
    """Without training, of the model that was kept; without that it trains."""
    here = _at(Place.of("onnxruntime", 1, "cpu"))
    others = {"latency_runtime": "openvino", "latency_threads": 4, "latency_device": "Z80", "latency_ms": None}
    alike = advance(timed, **here)
    assert (alike["status"], alike["done"], alike["latency_ms"], counted) == ("timed", True, 7.0, [])
    for number, (name, value) in enumerate(others.items(), 1):
        report = advance(timed, **{**here, name: value})
        assert (report["status"], report["latency_ms"], len(counted)) == ("timed", number, number)
        assert {key: report[key] for key in LATENCY if key.startswith("latency_d")} == {
            "latency_device": here["latency_device"]
        }
    assert set(counted) == {"onnxruntime"}
    damaged = ledger.put_model(b"no model")
    assert advance(timed, model_sha256=damaged)["status"] == "running"
    report = advance(timed, model_sha256="0" * 64)
    assert (report["status"], len(counted)) == ("running", len(others))


def test_a_row_answers_if_it_was_timed_alike_or_its_model_was_kept(
    ledger: Ledger, run_alone: Any, plan: StudyPlan, timed: StudyPlan
) -> None:
    study = StudyLedger(ledger, run_alone(plan))
    row, place = TrialRow.from_record(ledger.trials("s").to_pylist()[0]), Place.of("onnxruntime", 1, "cpu")
    objectives = timed.parsed_objectives()
    assert timed.place() == place
    assert plan.place() is None

    def answers(of: Place | None) -> dict[str, Mapping[str, Any]]:
        return {row["trial"]: row for row in finished_rows([study], objectives, of).values()}

    assert answers(None) == {}  # it lacks an objective
    assert list(answers(place)) == ["abc"]
    later = dataclasses.replace(row, trial="later", finished_at=row.finished_at.replace(year=2100))
    ledger.append(later)
    assert list(answers(place)) == ["later"]
    ledger.append(dataclasses.replace(row, trial="alike", **_at(place)))
    assert list(answers(place)) == ["alike"]
    assert list(answers(Place.of("onnxruntime", 2, "cpu"))) == ["later"]
    ledger.model_path(str(row.model_sha256)).unlink()
    assert list(answers(place)) == ["alike"]
    assert answers(Place.of("openvino", 1, "cpu")) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_trials_are_timed_in_a_runtime_and_timed_again_in_another(
    ledger: Ledger, plan: StudyPlan, timed: StudyPlan
) -> None:
    start_study(ledger, "trained", dataclasses.replace(plan, trials=2, keep="all"), SERIAL)
    warm = dataclasses.replace(timed, trials=1, warm_start=("trained",))
    assert start_study(ledger, "warm", warm, SERIAL).done == 3
    rows = ledger.trials("warm").to_pylist()
    assert [row["reused_from"] for row in rows] == ["trained"] * 2 + [None]
    assert {row["latency_runtime"] for row in rows} == {"onnxruntime"}
    assert {row["latency_threads"] for row in rows} == {1}
    assert all(row["latency_b64_ms"] > row["latency_ms"] > 0 for row in rows)
    assert ledger.front("warm").num_rows >= 1
    start_study(ledger, "same", dataclasses.replace(timed, trials=1), SERIAL)
    (same,) = ledger.trials("same").to_pylist()
    (first,) = (row for row in rows if row["spec_digest"] == same["spec_digest"])
    assert (same["reused_from"], same["latency_ms"]) == ("trained", first["latency_ms"])
    start_study(ledger, "other", dataclasses.replace(timed, runtime="torch", trials=1), SERIAL)
    (other,) = ledger.trials("other").to_pylist()
    assert (other["reused_from"], other["latency_runtime"]) == ("trained", "torch")
    assert other["latency_ms"] != first["latency_ms"]
    assert other["score"] == first["score"]
    with pytest.raises(UsageError, match=r"exists with runtime 'onnxruntime', 'openvino' was given: take another name"):
        start_study(ledger, "same", dataclasses.replace(timed, runtime="openvino"), SERIAL)
    assert Study(ledger, "same").confirm(1, resources=SERIAL).done == 1
    (repeat,) = ledger.repeats("same").to_pylist()
    assert (repeat["latency_runtime"], repeat["status"]) == ("onnxruntime", "finished")


def test_a_runtime_goes_with_latency_and_must_be_there(plan: StudyPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"runtime \(='openvino'\) must come with an objective that it is about: lat"):
        dataclasses.replace(plan, runtime="openvino")
    with pytest.raises(UsageError, match=r"latency_threads \(=2\) must come with an objective that it is about"):
        dataclasses.replace(plan, latency_threads=2)
    with pytest.raises(UsageError, match=r"latency_threads \(=0\) must be at least 1"):
        dataclasses.replace(plan, objectives=OBJECTIVES, latency_threads=0)
    with pytest.raises(UsageError, match=r"runtime \(='tvm'\) must be one of torch, onnxruntime, openvino"):
        dataclasses.replace(plan, objectives=OBJECTIVES, runtime="tvm")
    there = dataclasses.replace(plan, objectives=OBJECTIVES, runtime="openvino")
    there.check_runtime()
    monkeypatch.setattr("trainers.runtime.runtimes.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"runtime \(='openvino'\) must be installed: pip install openvino$"):
        there.check_runtime()
