import dataclasses
import json
from pathlib import Path

import optuna
import pytest
from tensorboard.backend.event_processing import event_accumulator

from layers import UsageError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import TrialStatus
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import ConfigSampler
from search.runner.cluster import Resources
from search.runner.dashboards import DashboardOptions
from search.study.budget import Budget
from search.study.plan import StudyPlan
from spaces import Space, load_model
from tests.search.studies import resume_study, start_study
from trainers.data import load_data
from trainers.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("ray_cluster")
SERIAL = Resources(gpus_per_trial=0, concurrency=1)
VARYING = ("started_at", "finished_at", "compress_s", "finetune_s", "evaluate_s", "total_s", "study")


def _stable(ledger: Ledger, study: str) -> list[dict[str, object]]:
    rows = ledger.trials(study).drop_columns(list(VARYING)).to_pylist()
    for row in rows:
        for epoch in row["history"]:
            del epoch["seconds"]
    return rows


def test_a_study_is_searched_kept_resumed_and_reproduced(
    ledger: Ledger, plan: StudyPlan, space: Space, tmp_path: Path
) -> None:
    few = dataclasses.replace(plan, trials=3)
    outcome = start_study(ledger, "a", few, SERIAL)
    assert (outcome.done, outcome.wanted, outcome.exhausted) == (3, 3, False)
    rows = ledger.trials("a").to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert {row["status"] for row in rows} == {TrialStatus.FINISHED}
    assert rows[0]["size_bytes"] == ledger.study("a")["uncompressed"]["size_bytes"]
    assert ledger.study("a")["choices"]["layer3"]["harmonics_y"] == [1, 2, 3]
    for row in rows:
        config = StudyPlan.from_record(ledger.study("a")) and json.loads(row["spec"])["config"]
        assert len(row["history"]) == row["epochs_run"] == 1
        assert row["score"] == row["history"][-1]["score"] == dict(row["metrics"])["val_top1"]
        assert {b["block"] for b in row["blocks"]} == set(config["blocks"])
    _models_give_what_the_rows_say(ledger, plan, rows)
    assert {row["model_sha256"] for row in ledger.front("a").to_pylist()} <= ledger.models()
    assert ledger.read_progress("a")["state"] == "finished"
    assert ledger.front("a").num_rows >= 1

    assert start_study(ledger, "a", few, SERIAL).done == 3
    assert resume_study(ledger, "a", 1, SERIAL).done == 4
    assert len(set(ledger.trials("a").column("config_digest").to_pylist())) == 4

    at_once = Ledger(Store(tmp_path / "at_once"))
    start_study(at_once, "b", plan, SERIAL)
    assert _stable(at_once, "b") == _stable(ledger, "a")
    assert not (ledger.store.local_root / "tune").exists()
    assert not ledger.store.list("checkpoints/a")


def test_what_a_store_has_measured_is_not_run_again(
    ledger: Ledger, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command under another name gives the same trials, and trains nothing."""
    start_study(ledger, "a", plan, SERIAL)
    monkeypatch.setattr("search.runner.trainable.TrialActor.setup", None)  # no worker could begin
    other = dataclasses.replace(plan, objectives=("val_top1", "flops"), sampler="random", trials=3)
    assert start_study(ledger, "b", plan, SERIAL).done == 4
    rows = ledger.trials("b").to_pylist()
    assert {row["reused_from"] for row in rows} == {"a"}
    assert sum(row["total_s"] for row in rows) == 0
    mine, theirs = (
        [{name: value for name, value in row.items() if name != "reused_from"} for row in _stable(ledger, study)]
        for study in ("b", "a")
    )
    assert mine == theirs
    monkeypatch.undo()
    start_study(ledger, "c", other, SERIAL)
    origins = [row["reused_from"] for row in ledger.trials("c").to_pylist()]
    assert origins[0] == "a"
    reseeded = dataclasses.replace(plan, seed=5, trials=1)
    start_study(ledger, "d", reseeded, SERIAL)
    assert ledger.trials("d").column("reused_from").to_pylist() == [None]


def test_a_study_begins_with_what_others_have_finished(ledger: Ledger, plan: StudyPlan) -> None:
    start_study(ledger, "a", plan, SERIAL)
    sizes = sorted(ledger.trials("a").column("size_bytes").to_pylist())
    warm = dataclasses.replace(plan, warm_start=("a",), budget=Budget(max_size=sizes[-2]), trials=2)
    outcome = start_study(ledger, "w", warm, SERIAL)
    assert (outcome.done, outcome.wanted) == (5, 5)
    rows = ledger.trials("w").to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["reused_from"] for row in rows] == ["a"] * 3 + [None] * 2
    assert all(row["size_bytes"] <= sizes[-2] for row in rows)
    assert len({row["config_digest"] for row in rows}) == 5
    assert start_study(ledger, "w", warm, SERIAL).done == 5
    with pytest.raises(UsageError, match=r"warm_start \(='a'\) must be a study of equal trials; its epochs differs"):
        start_study(ledger, "x", dataclasses.replace(warm, epochs=2), SERIAL)
    with pytest.raises(UsageError, match="study 'nobody' does not exist"):
        start_study(ledger, "x", dataclasses.replace(warm, warm_start=("nobody",)), SERIAL)
    assert "x" not in ledger.studies()


def test_stopped_trials_are_kept_with_their_epochs_and_are_never_on_the_front(
    ledger: Ledger, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch, resources: Resources
) -> None:
    def should_prune(self: ConformalPruner, costs: dict[str, float], scores: list[float], features: object) -> bool:
        return len(scores) == (1 if costs["size_bytes"] < 100_000 else 2)

    monkeypatch.setattr(ConformalPruner, "should_prune", should_prune)
    assert start_study(ledger, "p", dataclasses.replace(plan, epochs=3), resources).done == 4
    rows = ledger.trials("p").to_pylist()
    assert {row["status"] for row in rows} == {TrialStatus.PRUNED}
    assert {row["epochs_run"] for row in rows} == {0, 1}
    for row in rows:
        assert row["epochs_run"] == len(row["history"]) == (0 if row["size_bytes"] < 100_000 else 1)
        assert row["score"] is None
        assert 0 <= row["init_score"] <= 1
        assert row["compress_s"] is not None
    assert ledger.front("p").num_rows == 0
    assert not ledger.models()
    assert ledger.read_progress("p")["pruned"] == 4
    monkeypatch.undo()
    assert resume_study(ledger, "p", 1, SERIAL).done == 5
    assert len(set(ledger.trials("p").column("config_digest").to_pylist())) == 5


def test_a_study_shows_in_tensorboard_and_in_optunas_storage(ledger: Ledger, plan: StudyPlan, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    shown = DashboardOptions(tensorboard=tmp_path / "boards", optuna_storage=url)
    start_study(ledger, "s", dataclasses.replace(plan, trials=2), SERIAL, dashboards=shown)
    resume_study(ledger, "s", 1, SERIAL, dashboards=shown)
    study = optuna.load_study(study_name="s", storage=url)
    rows = ledger.trials("s").to_pylist()
    assert [trial.values for trial in study.trials] == [[row["score"], row["size_bytes"], row["flops"]] for row in rows]
    events = event_accumulator.EventAccumulator(str(tmp_path / "boards" / "s")).Reload()
    assert [event.step for event in events.Scalars("study/hypervolume")] == [1, 2, 3]
    trial = event_accumulator.EventAccumulator(str(tmp_path / "boards" / "s" / f"00001-{rows[1]['trial']}")).Reload()
    history = [rows[1]["init_score"], *(epoch["score"] for epoch in rows[1]["history"])]
    assert [event.value for event in trial.Scalars("trial/val_top1")] == pytest.approx(history)
    metrics = [dict(epoch["metrics"]) for epoch in rows[1]["history"]]
    for name in ("val_top5", "val_loss"):
        values = [epoch[name] for epoch in metrics]
        assert [event.value for event in trial.Scalars(f"trial/{name}")] == pytest.approx(values)


def test_a_study_can_be_steered_by_the_latency_of_a_batch(
    ledger: Ledger, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, tell = [], ConfigSampler.tell
    monkeypatch.setattr(
        ConfigSampler, "tell", lambda self, *given: (told.append(given[1].values), tell(self, *given))[1]
    )
    fast = dataclasses.replace(plan, objectives=("val_top1", "latency_b64_ms"), trials=2)
    assert start_study(ledger, "fast", fast, SERIAL).done == 2
    rows = ledger.trials("fast").to_pylist()
    assert all(row["latency_b64_ms"] > row["latency_ms"] > 0 for row in rows)
    assert 1 <= ledger.front("fast").num_rows <= 2
    assert [values for values in told if values] == [[row["score"], row["latency_b64_ms"]] for row in rows]


def _models_give_what_the_rows_say(ledger: Ledger, plan: StudyPlan, rows: list[dict[str, object]]) -> None:
    data = load_data(plan.data)
    for row in rows:
        if not ledger.has_model(str(row["model_sha256"])):
            continue
        model = load_model(ledger.model_path(str(row["model_sha256"])))
        found = evaluate(model, data.val, data.normalize, device="cpu")
        assert abs(found.top1 - float(str(row["score"]))) <= 1 / found.n


def test_logical_gpus_pack_trials(ledger: Ledger, plan: StudyPlan) -> None:
    assert Resources(gpus_per_trial=0.25).concurrency is None
    assert start_study(ledger, "gpu", plan, Resources(gpus_per_trial=0.25)).done == 4
    rows = ledger.trials("gpu").to_pylist()
    overlapping = sum(
        a["started_at"] < b["finished_at"] and b["started_at"] < a["finished_at"]
        for i, a in enumerate(rows)
        for b in rows[:i]
    )
    assert overlapping > 0
