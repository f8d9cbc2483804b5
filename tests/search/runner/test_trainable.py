"""The actor, as Ray Tune calls it, without Ray Tune."""

import dataclasses
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.runner.trainable import TrialActor
from search.study.plan import StudyPlan
from search.study.study_ledger import checkpoint_name
from search.study.workload import Workload
from spaces import BlockConfig, NetworkConfig

CONFIG = NetworkConfig(blocks={"layer3": BlockConfig(basis="cosine", harmonics=(2, 2))})


@pytest.fixture
def begin(plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    context = SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1.0})
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    workload = Workload.load(plan)
    spec = dataclasses.replace(plan, epochs=4).spec(CONFIG, **workload.hashes())
    suggestion = {"number": 0, "trial": "abc", "spec": spec.to_json()}

    def actor(checkpoint_s: float = 0.0, folder: str = ".") -> TrialActor:
        made = TrialActor.__new__(TrialActor)
        shared = {"data": workload.data, "baseline": workload.baseline, "network": workload.network}
        made.setup(suggestion, **shared, store=str(tmp_path / folder), study="s", checkpoint_s=checkpoint_s)
        return made

    return actor


def _measured(report: dict[str, Any]) -> dict[str, Any]:
    result = json.loads(report["result"])
    for epoch in result["history"]:
        del epoch["seconds"]
    return {name: value for name, value in result.items() if not name.endswith("_s")}


def test_the_first_step_is_the_start_and_each_other_an_epoch(begin: Any) -> None:
    actor = begin()
    reports = [actor.step() for _ in range(5)]
    assert [report["status"] for report in reports] == ["running"] * 4 + ["finished"]
    assert [len(report["scores"]) for report in reports] == [1, 2, 3, 4, 5]
    assert [report.get("done", False) for report in reports] == [False] * 4 + [True]
    last = _measured(reports[-1])
    assert reports[-1]["scores"] == [last["init_score"], *(epoch["score"] for epoch in last["history"])]
    assert reports[0]["size_bytes"] == last["cost"]["size_bytes"]


def test_a_trial_whose_worker_died_goes_on_from_its_last_epoch(begin: Any, tmp_path: Path) -> None:
    """To the same end, bit for bit."""
    whole = begin(checkpoint_s=1e9)
    expected = [whole.step() for _ in range(5)][-1]
    (tmp_path / checkpoint_name("s", "abc")).unlink()
    first = begin()
    before = [first.step() for _ in range(3)]
    again = begin()
    report = again.step()
    assert _measured(report) == _measured(before[-1])
    rest = [again.step(), again.step()]
    assert [step["status"] for step in rest] == ["running", "finished"]
    assert _measured(rest[-1]) == _measured(expected)


def test_the_store_of_a_search_may_lie_in_any_folder(begin: Any, tmp_path: Path) -> None:
    """Also in one whose whole path `--store` would refuse."""
    actor = begin(folder="seed=7 [a]")
    assert [actor.step()["status"] for _ in range(2)] == ["running", "running"]
    assert (tmp_path / "seed=7 [a]" / checkpoint_name("s", "abc")).exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_begins_the_trial_anew(begin: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / checkpoint_name("s", "abc")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    report = begin().step()
    assert (report["status"], len(report["scores"])) == ("running", 1)


def test_the_packed_model_takes_the_place_of_the_checkpoint(begin: Any, tmp_path: Path) -> None:
    """And a trial whose row was not written in time begins anew, to the same end."""
    actor = begin()
    last = [actor.step() for _ in range(5)][-1]
    packed = (tmp_path / checkpoint_name("s", "abc")).read_bytes()
    assert hashlib.sha256(packed).hexdigest() == last["model_sha256"]
    again = begin(checkpoint_s=1e9)
    assert [again.step() for _ in range(5)][-1]["model_sha256"] == last["model_sha256"]


@pytest.mark.parametrize("steps", [2, 5])
def test_a_store_that_cannot_be_written_is_no_fault_of_the_trial(begin: Any, tmp_path: Path, steps: int) -> None:
    actor = begin(checkpoint_s=0.0 if steps == 2 else 1e9)
    (tmp_path / "checkpoints").write_text("in the way")
    report = [actor.step() for _ in range(steps)][-1]
    assert (report["status"], report["done"]) == ("store_failed", True)
    assert report["error"].startswith("cannot write ")
