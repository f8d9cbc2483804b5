import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from layers import OvertoneError, UsageError
from results.ledger import Ledger
from results.schema import TrialStatus
from search.budget import Budget
from search.cluster import Resources
from search.launch import resume_study, start_study
from search.sampler import ConfigSampler
from search.study import StudyPlan
from spaces import Space, build_model, load_model, save_weights
from trainers.data import load_data
from trainers.evaluate import evaluate

pytestmark = pytest.mark.usefixtures("ray_cluster")
SERIAL = Resources(gpus_per_trial=0, concurrency=1)
VARYING = ("started_at", "finished_at", "compress_s", "finetune_s", "evaluate_s", "total_s", "study")


def _stable(ledger: Ledger, study: str) -> list[dict[str, object]]:
    rows = ledger.trials(study).drop_columns(list(VARYING)).to_pylist()
    for row in rows:
        for epoch in row["curve"]:
            del epoch["seconds"]
    return rows


def test_a_study_is_searched_kept_resumed_and_reproduced(
    ledger: Ledger, plan: StudyPlan, space: Space, console: Console
) -> None:
    outcome = start_study(ledger, "a", plan, SERIAL, console)
    assert (outcome.done, outcome.wanted, outcome.exhausted) == (4, 4, False)
    rows = ledger.trials("a").to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    assert {row["status"] for row in rows} == {TrialStatus.FINISHED}
    assert rows[0]["size_bytes"] == ledger.study("a")["uncompressed"]["size_bytes"]
    assert ledger.study("a")["choices"]["layer3"]["harmonics_y"] == [1, 2, 3]
    for row in rows:
        config = StudyPlan.from_record(ledger.study("a")) and json.loads(row["spec"])["config"]
        assert len(row["curve"]) == row["epochs_run"] == 1
        assert row["val_top1"] == row["curve"][-1]["val_top1"]
        assert {b["block"] for b in row["blocks"]} == set(config["blocks"])
    _models_give_what_the_rows_say(ledger, plan, rows)
    assert {row["model_sha256"] for row in ledger.front("a").to_pylist()} <= ledger.models()
    assert ledger.read_progress("a")["state"] == "finished"
    assert ledger.front("a").num_rows >= 1

    assert start_study(ledger, "a", plan, SERIAL, console).done == 4
    assert resume_study(ledger, "a", 2, SERIAL, console).done == 6
    assert len(set(ledger.trials("a").column("config_digest").to_pylist())) == 6

    start_study(ledger, "b", plan, SERIAL, console)
    assert _stable(ledger, "b") == _stable(ledger, "a")[:4]
    assert not list((ledger.store.local_root / "tune").iterdir())


def test_a_study_can_be_steered_by_the_latency_of_a_batch(
    ledger: Ledger, plan: StudyPlan, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tell = [], ConfigSampler.tell
    monkeypatch.setattr(ConfigSampler, "tell", lambda self, *given: (told.append(given[1]), tell(self, *given))[1])
    fast = dataclasses.replace(plan, objectives=("val_top1", "latency_b64_ms"), trials=2)
    assert start_study(ledger, "fast", fast, SERIAL, console).done == 2
    rows = ledger.trials("fast").to_pylist()
    assert all(row["latency_b64_ms"] > row["latency_ms"] > 0 for row in rows)
    assert 1 <= ledger.front("fast").num_rows <= 2
    assert [values for values in told if values] == [[row["val_top1"], row["latency_b64_ms"]] for row in rows]


def _models_give_what_the_rows_say(ledger: Ledger, plan: StudyPlan, rows: list[dict[str, object]]) -> None:
    data = load_data(plan.data)
    for row in rows:
        if not ledger.has_model(str(row["model_sha256"])):
            continue
        model = load_model(ledger.model_path(str(row["model_sha256"])))
        found = evaluate(model, data.val, mean=data.mean, std=data.std, device="cpu")
        assert abs(found.top1 - float(str(row["val_top1"]))) <= 1 / found.n


def test_a_failing_trial_is_kept_with_its_reason_and_the_study_goes_on(
    ledger: Ledger, plan: StudyPlan, console: Console, resources: Resources
) -> None:
    broken = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, lr=1e30), trials=3, epochs=2)
    assert start_study(ledger, "nan", broken, resources, console).done == 3
    rows = ledger.trials("nan").to_pylist()
    assert [row["status"] for row in rows] == [TrialStatus.FAILED] * 3
    assert all("finite" in row["error"] or "epoch" in row["error"] for row in rows)
    assert all(row["val_top1"] is None and row["size_bytes"] > 0 for row in rows)
    assert ledger.front("nan").num_rows == 0


def test_logical_gpus_pack_trials(ledger: Ledger, plan: StudyPlan, console: Console) -> None:
    assert Resources(gpus_per_trial=0.25).concurrency is None
    assert start_study(ledger, "gpu", plan, Resources(gpus_per_trial=0.25), console).done == 4
    rows = ledger.trials("gpu").to_pylist()
    overlapping = sum(
        a["started_at"] < b["finished_at"] and b["started_at"] < a["finished_at"]
        for i, a in enumerate(rows)
        for b in rows[:i]
    )
    assert overlapping > 0


def test_a_study_of_other_settings_is_refused(
    ledger: Ledger, plan: StudyPlan, console: Console, tmp_path: Path
) -> None:
    few = dataclasses.replace(plan, trials=1)
    start_study(ledger, "s", few, SERIAL, console)
    other = dataclasses.replace(few, objectives=("val_top1", "size_bytes"))
    with pytest.raises(UsageError, match=r"study 's' exists with objectives \['val_top1', 'size_bytes', 'flops'\]"):
        start_study(ledger, "s", other, SERIAL, console)
    changed = tmp_path / "changed.safetensors"
    save_weights(build_model("resnet8", classes=10, channels=1), changed, {})
    record = ledger.update_study("s", {"weights": str(changed)})
    with pytest.raises(UsageError, match="study 's' exists with weights_sha256"):
        resume_study(ledger, "s", 1, SERIAL, console)
    assert record["trials"] == ledger.trials("s").num_rows == 1


def test_nothing_is_left_where_a_search_cannot_begin(ledger: Ledger, plan: StudyPlan, console: Console) -> None:
    with pytest.raises(UsageError, match="is met by no config of the space"):
        start_study(ledger, "x", dataclasses.replace(plan, budget=Budget(max_size=10)), SERIAL, console)
    with pytest.raises(UsageError, match=r"asks for 1 CPUs and 9 GPUs, the Ray cluster has 2 and 1"):
        start_study(ledger, "x", plan, Resources(gpus_per_trial=9), console)
    assert ledger.studies() == []


def test_a_store_that_stops_taking_rows_ends_the_study_in_a_sentence(
    ledger: Ledger, plan: StudyPlan, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_study(ledger, "full", dataclasses.replace(plan, trials=1), SERIAL, console)

    def full(row: object) -> str:
        raise OvertoneError("The store is full.")

    monkeypatch.setattr(ledger, "append", full)
    with pytest.raises(OvertoneError, match=r"The store is full\."):
        resume_study(ledger, "full", 3, SERIAL, console)
    monkeypatch.undo()
    assert ledger.trials("full").num_rows == 1
    assert resume_study(ledger, "full", None, SERIAL, console).done == 4
