"""Sketches of a study: measured once each, beside the search."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.schema import TrialStatus
from search.api.create import begin_study
from search.api.study import Interrupted, Study
from search.commands.cli import run
from search.runner import sketch
from search.runner.cluster import Resources
from search.study.budget import Budget
from search.study.objects import NO_OBJECTS
from search.study.plan import OF_TRIALS, StudyPlan
from search.study.record import network_config
from search.study.workload import Workload
from spaces import Network, NetworkConfig
from tests.search.studies import start_study
from trainers.spec import TrialSpec
from trainers.trial import Trial

SERIAL = Resources(gpus_per_trial=0, concurrency=1)


def _begin(ledger: Ledger, plan: StudyPlan) -> Study:
    return begin_study(ledger, "s", plan, NO_OBJECTS, progress=False, sketch=True)


@pytest.fixture
def plan(plan: StudyPlan) -> StudyPlan:
    few = {"basis": ["cosine"], "harmonics": [1, 3], "allocation": ["none"], "pruning_rate": ["none"], "bits": [4, 8]}
    return replace(plan, space={"all": few, "norms_and_biases": {"bits": ["none"]}})


@pytest.fixture
def study(ledger: Ledger, plan: StudyPlan) -> Study:
    return _begin(ledger, plan)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_front_is_sketched_once_and_the_search_goes_on_from_there(
    ledger: Ledger, plan: StudyPlan, study: Study, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = study.sketch(2, resources=SERIAL, progress=False)
    assert (rows["status"] == "sketch").all()
    assert rows["val_top1"].isna().all()
    assert rows["epochs_run"].tolist() == rows["epochs"].tolist() == [0, 0]
    assert (rows["compress_s"] > 0).all()
    assert (rows["evaluate_s"] > 0).all()
    assert (rows["predicted_loss_increase"] > 0).all()
    assert ledger.trials("s").num_rows == 0
    assert ledger.read_progress("s") is None
    assert ledger.models() == set(rows["model_sha256"])
    assert ledger.store.list("checkpoints/s") == []

    workload = Workload.load(plan)
    for row in rows.to_dict("records"):
        spec = replace(plan.spec(network_config(row), **workload.hashes()), epochs=0)
        alone = Trial(
            spec, data=workload.data, baseline=workload.baseline, network=workload.network, device="cpu"
        ).result()
        assert row["init_score"] == alone.init_score == alone.score
        assert (row["size_bytes"], row["flops"]) == (alone.cost.size_bytes, alone.cost.flops)
        assert row["trial"] != spec.digest(workload.network)[:10]

    common = ["--study", "s", "--store", ledger.store.uri]
    (tmp_path / "space.yaml").write_text(json.dumps(plan.space))
    arguments = ["--model", plan.model, "--weights", plan.weights, "--dataset", "digits", "--train-limit", "96"]
    arguments += ["--space", str(tmp_path / "space.yaml")]
    capsys.readouterr()
    assert run(["sketch", *arguments, *common, "--points", "3", "--concurrency", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert "1 of 3 sketches to measure" in " ".join(err.split())
    assert answer["done"] is True
    assert {row["trial"] for row in answer["sketches"]} > set(rows["trial"])
    assert run(["status", *common]) == 0
    assert "0 running of 4, 3 sketched; front 0" in capsys.readouterr().out

    start_study(ledger, "s", replace(plan, trials=1), SERIAL)
    assert ledger.trials("s").column("status").to_pylist() == ["finished"]
    assert ledger.study("s")["epochs"] == plan.epochs
    assert len(study.query(sketches=True)) == 4
    for pick in ("best", "knee", "0"):
        assert study.pick(pick).status == "finished"
    card = study.trial(rows["trial"][0]).export(tmp_path / "out", progress=False)
    assert (card["trial"], card["status"], card["score"]) == (rows["trial"][0], "sketch", None)


Outcome = Callable[[dict[str, Any]], dict[str, Any] | None]
"""The last report of a suggestion's worker, None if it does not come to it."""


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Outcome], list[str]]:
    """Without Ray: replaces what workers report, and returns the ids that were asked for."""

    def replace_workers(outcome: Outcome) -> list[str]:
        asked: list[str] = []

        def run_trials(searcher: Any, callback: Any, *rest: object, **options: object) -> None:
            while isinstance(suggestion := searcher.suggest(str(len(asked))), dict):
                asked.append(suggestion["trial"])
                trial = SimpleNamespace(
                    trial_id=str(len(asked) - 1), config=suggestion, last_result=outcome(suggestion)
                )
                if trial.last_result is None:
                    return
                callback.on_trial_start(0, [], trial)
                callback.on_trial_complete(0, [], trial)
                searcher.on_trial_complete(trial.trial_id, trial.last_result)

        monkeypatch.setattr(sketch, "run_trials", run_trials)
        return asked

    monkeypatch.setattr(sketch, "connected", lambda address: nullcontext())
    monkeypatch.setattr(Resources, "resolved", lambda self, share: SERIAL)
    return replace_workers


@pytest.fixture
def measured(ledger: Ledger, network: Network) -> Outcome:
    """A worker that measures 0.5 and leaves a model."""

    def outcome(suggestion: dict[str, Any]) -> dict[str, Any]:
        config = TrialSpec.from_json(suggestion["spec"]).config
        cost = network.cost(config)
        sha256 = ledger.put_model(suggestion["trial"].encode())
        result = {"init_score": 0.5, "score": 0.5, "config_digest": "c", "spec_digest": "s", "history": []}
        result |= {"compress_s": 1.0, "finetune_s": 0.0, "evaluate_s": 1.0}
        result["cost"] = {name: getattr(cost, name) for name in ("parameters", "size_bytes", "macs", "flops")}
        return {"status": "finished", "result": json.dumps(result), "device": "cpu", "model_sha256": sha256}

    return outcome


def test_what_is_measured_is_not_measured_again_and_what_failed_is(
    ledger: Ledger, study: Study, outcomes: Callable[[Outcome], list[str]], measured: Outcome
) -> None:
    failure = {"status": "failed", "error": "Traceback\nValueError: no room"}
    outcomes(lambda suggestion: failure)
    with pytest.raises(OvertoneError, match="no sketch could be measured: ValueError: no room"):
        study.sketch(4, progress=False)
    assert ledger.sketches("s").num_rows == ledger.trials("s").num_rows == 0

    asked = outcomes(lambda suggestion: failure if suggestion["number"] == 1 else measured(suggestion))
    rows = study.sketch(4, progress=False)
    assert len(asked) == 4
    assert set(rows["trial"]) == {asked[0], asked[2], asked[3]}
    failed = asked[1]

    asked = outcomes(lambda suggestion: measured(suggestion) if suggestion["number"] < 5 else None)
    with pytest.raises(Interrupted, match=r"^5 of 6 sketches are done; the same call goes on$") as stopped:
        study.sketch(6, progress=False)
    assert asked[0] == failed
    assert len(asked) == 3
    assert isinstance(stopped.value.result, pd.DataFrame)
    assert set(rows["trial"]) < set(stopped.value.result["trial"])

    asked = outcomes(measured)
    assert len(study.sketch(6, progress=False)) == 6
    assert len(asked) == 1
    assert ledger.trials("s").num_rows == 0
    assert {row["status"] for row in ledger.sketches("s").to_pylist()} == {TrialStatus.SKETCH}


def test_a_sketch_is_no_trial_even_where_trials_have_no_epochs(
    ledger: Ledger, plan: StudyPlan, outcomes: Callable[[Outcome], list[str]], measured: Outcome
) -> None:
    study = _begin(ledger, replace(plan, epochs=0))
    outcomes(measured)
    rows = study.sketch(2, progress=False)
    workload = Workload.load(plan)
    for row in rows.to_dict("records"):
        spec = replace(plan, epochs=0).spec(network_config(row), **workload.hashes())
        assert row["trial"] != spec.digest(workload.network)[:10]


def test_the_first_search_chooses_what_only_trials_depend_on(ledger: Ledger, plan: StudyPlan, study: Study) -> None:
    def begin(plan: StudyPlan, *, sketch: bool = False) -> dict[str, Any]:
        return begin_study(ledger, "s", plan, NO_OBJECTS, progress=False, sketch=sketch).record()

    before = study.record()
    assert begin(replace(plan, epochs=7, keep="all"), sketch=True) == before
    with pytest.raises(UsageError, match=r"study 's' exists with seed 0, 3 was given: take another name"):
        begin(replace(plan, epochs=7, seed=3))
    chosen = replace(plan, epochs=7, keep="all", trials=9, miss_rate=0.0)
    after = begin(chosen)
    assert after == {**before, **{name: chosen.to_record()[name] for name in OF_TRIALS}, "only_sketched": False}
    with pytest.raises(UsageError, match=r"study 's' exists with epochs 7, 1 was given: take another name"):
        begin(plan)
    assert begin(plan, sketch=True) == after


def test_what_cannot_be_sketched_is_said(ledger: Ledger, plan: StudyPlan, study: Study) -> None:
    with pytest.raises(UsageError, match=r"points \(=0\) must be at least 1"):
        study.sketch(0)
    with pytest.raises(UsageError, match=r"no config of the space meets the budget .*: the least size is \d+ bytes"):
        begin_study(ledger, "t", replace(plan, budget=Budget(max_size=9)), NO_OBJECTS, progress=False, sketch=True)
    assert ledger.studies() == ["s"]
    assert NetworkConfig() not in [network_config(row) for row in ledger.sketches("s").to_pylist()]
