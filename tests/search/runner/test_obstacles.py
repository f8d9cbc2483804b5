"""What a study meets on its way: other drivers, busy clusters, other settings, full stores, failing trials."""

import dataclasses
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import typer
from rich.console import Console

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.schema import TrialStatus
from search.api.create import begin_study
from search.api.study import Study
from search.commands.studies import print_search_result
from search.runner import run_lock
from search.runner.cluster import Resources
from search.study.budget import Budget
from search.study.objects import NO_OBJECTS
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from spaces import build_model, save_weights
from tests.search.studies import confirm_trials, resume_study, start_study

pytestmark = pytest.mark.usefixtures("ray_cluster")
SERIAL = Resources(gpus_per_trial=0, concurrency=1)


def test_a_study_that_runs_elsewhere_is_left_alone(ledger: Ledger, plan: StudyPlan) -> None:
    start_study(ledger, "s", dataclasses.replace(plan, trials=1), SERIAL)
    with run_lock.hold(StudyLedger(ledger, "s"), Console(quiet=True)), ThreadPoolExecutor(1) as elsewhere:
        for again in (
            lambda: resume_study(ledger, "s", 1, SERIAL),
            lambda: confirm_trials(ledger, "s", "front", where=None, seeds=1, resources=SERIAL),
        ):
            with pytest.raises(UsageError, match=rf"study 's' is run by process {os.getpid()} on .*: stop that first"):
                elsewhere.submit(again).result()
    assert ledger.study("s")["trials"] == 1
    assert ledger.repeats("s").num_rows == 0
    assert not ledger.store.list("claims")


def test_a_busy_cluster_is_told_of_and_waited_for(
    ledger: Ledger, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.runner.waiting._FIRST_S", 0.5)
    begin_study(ledger, "s", dataclasses.replace(plan, trials=1, epochs=0), NO_OBJECTS, progress=False)
    hog = ray.remote(num_cpus=2)(lambda: time.sleep(8)).remote()
    assert resume_study(ledger, "s", None, SERIAL).done == 1
    ray.get(hog)
    assert re.search(
        r"waiting for Ray at [0-9.]+:[0-9]+: a trial needs 1 CPU, 0 of 2 CPUs are free \(", capsys.readouterr().err
    )


def test_a_study_of_relative_paths_goes_on_from_another_working_directory(
    ledger: Ledger, plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shutil.copy(plan.weights, here / "mine.safetensors")
    monkeypatch.chdir(here)
    data = dataclasses.replace(plan.data, data_dir="sets")
    few = dataclasses.replace(plan, trials=1, data=data, weights="mine.safetensors")
    start_study(ledger, "s", few, SERIAL)
    assert ledger.study("s")["data"]["data_dir"] == str(here / "sets")
    assert ledger.study("s")["weights"] == str(here / "mine.safetensors")
    assert start_study(ledger, "s", few, SERIAL).done == 1
    monkeypatch.chdir(tmp_path)
    assert resume_study(ledger, "s", 1, SERIAL).done == 2
    few = dataclasses.replace(few, weights=plan.weights)
    with pytest.raises(UsageError, match=f"study 's' exists with data.data_dir '{here}/sets', '{tmp_path}/sets' was"):
        start_study(ledger, "s", few, SERIAL)


def test_a_refused_resume_leaves_the_goal_as_it_was(ledger: Ledger, plan: StudyPlan) -> None:
    begin_study(ledger, "s", dataclasses.replace(plan, trials=1), NO_OBJECTS, progress=False)
    with pytest.raises(UsageError, match="a trial needs 999 CPU"):
        resume_study(ledger, "s", 7, dataclasses.replace(SERIAL, cpus_per_trial=999))
    assert ledger.study("s")["trials"] == 1


def test_a_study_whose_trials_all_failed_ends_with_one(
    ledger: Ledger, plan: StudyPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = dataclasses.replace(plan.recipe, lr=1e30, lr_schedule="constant", precision="fp32")
    outcome = start_study(ledger, "f", dataclasses.replace(plan, trials=2, recipe=diverging), SERIAL)
    assert set(ledger.trials("f")["status"].to_pylist()) == {"failed"}
    with pytest.raises(typer.Exit) as ended:
        print_search_result(Study(ledger, "f"), outcome, as_json=False)
    assert ended.value.exit_code == 1
    assert "2 of 2 trials failed" in capsys.readouterr().err


def test_a_failing_trial_is_kept_with_its_reason_and_the_study_goes_on(
    ledger: Ledger, plan: StudyPlan, resources: Resources
) -> None:
    broken = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, lr=1e30), trials=3, epochs=2)
    assert start_study(ledger, "broken", broken, resources).done == 3
    rows = ledger.trials("broken").to_pylist()
    assert [row["status"] for row in rows] == [TrialStatus.FAILED] * 3
    assert all("finite" in row["error"] or "epoch" in row["error"] for row in rows)
    assert all(row["score"] is None and row["size_bytes"] > 0 for row in rows)
    assert ledger.front("broken").num_rows == 0


def test_a_study_of_other_settings_is_refused(ledger: Ledger, plan: StudyPlan, tmp_path: Path) -> None:
    few = dataclasses.replace(plan, trials=1)
    begin_study(ledger, "s", few, NO_OBJECTS, progress=False)
    other = dataclasses.replace(few, objectives=("val_top1", "size_bytes"))
    with pytest.raises(UsageError, match=r"study 's' exists with objectives \['val_top1', 'size_bytes', 'flops'\]"):
        start_study(ledger, "s", other, SERIAL)
    changed = tmp_path / "changed.safetensors"
    save_weights(build_model("resnet8", classes=10, channels=1), changed, {})
    record = ledger.update_study("s", {"weights": str(changed)})
    with pytest.raises(UsageError, match="study 's' exists with weights_sha256"):
        resume_study(ledger, "s", 1, SERIAL)
    assert (record["trials"], ledger.trials("s").num_rows) == (1, 0)


def test_a_study_that_may_not_be_is_not_begun_and_one_without_a_worker_goes_on_later(
    ledger: Ledger, plan: StudyPlan
) -> None:
    with pytest.raises(UsageError, match="no config of the space meets the budget"):
        start_study(ledger, "x", dataclasses.replace(plan, budget=Budget(max_size=10)), SERIAL)
    assert ledger.studies() == []
    two = dataclasses.replace(plan, trials=2)
    with pytest.raises(UsageError, match="needs 1 CPUs and 9 GPUs, the Ray cluster has 2 and 1"):
        start_study(ledger, "x", two, Resources(gpus_per_trial=9))
    assert ledger.studies() == ["x"]
    assert ledger.trials("x").num_rows == 0
    assert start_study(ledger, "x", dataclasses.replace(plan, trials=1), SERIAL).wanted == 2


def test_a_store_that_stops_taking_rows_ends_the_study_in_a_sentence(
    ledger: Ledger, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_study(ledger, "full", dataclasses.replace(plan, trials=1), SERIAL)

    def full(row: object) -> str:
        raise OvertoneError("the store is full")

    monkeypatch.setattr(ledger, "append", full)
    with pytest.raises(OvertoneError, match="the store is full"):
        resume_study(ledger, "full", 1, SERIAL)
    monkeypatch.undo()
    assert ledger.trials("full").num_rows == 1
    assert resume_study(ledger, "full", None, SERIAL).done == 2
