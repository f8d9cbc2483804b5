"""Repeats of trials with other seeds, on Ray, and what they leave alone."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from layers import OvertoneError, UsageError
from results.analysis.confidence import study_confidence
from results.ledger.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.commands.cli import run
from search.runner import confirm
from search.runner.cluster import Resources
from search.study.plan import StudyPlan
from search.study.record import network_config
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload
from spaces import NetworkConfig
from tests.search.studies import confirm_trials, start_study
from trainers.spec import TrialSpec

SERIAL = Resources(gpus_per_trial=0, concurrency=1)


@pytest.mark.usefixtures("ray_cluster")
def test_a_front_is_confirmed_once_and_the_search_is_left_alone(
    ledger: Ledger, plan: StudyPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    start_study(ledger, "s", dataclasses.replace(plan, trials=1), SERIAL)
    trials, progress = ledger.trials("s"), ledger.read_progress("s")
    models = ledger.store.list("models")
    (first,) = trials.to_pylist()

    outcome = confirm_trials(ledger, "s", "front", where=None, seeds=2, resources=SERIAL)
    assert (outcome.trials, outcome.wanted, outcome.done, outcome.failed) == ((first["trial"],), 2, 2, 0)
    rows = sorted(ledger.repeats("s").to_pylist(), key=lambda row: row["seed"])
    assert [row["seed"] for row in rows] == [plan.seed + 1, plan.seed + 2]
    assert len({row["trial"] for row in rows} | {first["trial"]}) == 3
    for row in rows:
        assert (row["repeat_of"], row["number"], row["status"]) == (first["trial"], 0, TrialStatus.FINISHED)
        assert (row["config_digest"], row["size_bytes"]) == (first["config_digest"], first["size_bytes"])
        assert network_config(row) == network_config(first)
        assert TrialSpec.from_json(json.loads(row["spec"])).seed == row["seed"]
        assert row["spec_digest"].startswith(row["trial"])
        assert not ledger.has_model(row["model_sha256"])
    assert len({dict(row["metrics"])["val_loss"] for row in [first, *rows]}) == 3
    assert ledger.trials("s") == trials
    assert ledger.read_progress("s") == progress
    assert ledger.store.list("models") == models
    assert not (ledger.store.local_root / "tune").exists()
    (sure,) = study_confidence(ledger, "s").to_pylist()
    assert sure["seeds"] == 3
    assert sure["score_low"] <= sure["score_mean"] <= sure["score_high"]

    capsys.readouterr()
    common = ["--study", "s", "--store", ledger.store.uri]
    assert run(["confirm", *common, "--pick", first["trial"][:6], "--seeds", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["front"][0]["seeds"] == 3
    assert "repeats to run" not in err  # nothing was left to do
    assert ledger.repeats("s").num_rows == 2
    assert run(["query", *common, "--front"]) == 0
    assert "(n=3)" in capsys.readouterr().out
    assert run(["status", *common]) == 0
    assert "front 1 (1 over several seeds)" in capsys.readouterr().out


@pytest.fixture
def workload(plan: StudyPlan) -> Workload:
    return Workload.load(plan)


@pytest.fixture
def row(plan: StudyPlan, workload: Workload) -> TrialRow:
    """A finished trial of the study `s`, whatever it measured."""
    spec = plan.spec(NetworkConfig(), **workload.hashes())
    texts = dict.fromkeys(("model", "dataset", "init", "config_digest", "spec_digest"), "x")
    counts = dict.fromkeys(("number", "seed", "epochs", "epochs_run", "parameters", "size_bytes", "macs", "flops"), 1)
    times = dict.fromkeys(("started_at", "finished_at"), datetime.now(UTC))
    return TrialRow(
        **{**texts, **counts, **times, "study": "s", "trial": "good", "spec": json.dumps(spec.to_json())},
        status=TrialStatus.FINISHED,
        score=0.5,
        score_name="val_top1",
    )


@pytest.fixture
def study(ledger: Ledger, plan: StudyPlan, row: TrialRow) -> str:
    """A study begun with other weights than are there now: one trial finished, one failed."""
    ledger.create_study("s", {**plan.to_record(), "weights_sha256": "other", "uncompressed": {}})
    ledger.append(row)
    ledger.append(dataclasses.replace(row, trial="bad", status=TrialStatus.FAILED, error="x", score=None))
    return "s"


@pytest.mark.parametrize(
    ("which", "where", "seeds", "error", "message"),
    [
        ("front", None, 0, UsageError, r"seeds \(=0\) must be at least 1"),
        ("front", "size_bytes < 0", 1, OvertoneError, "no finished trial is left to pick from"),
        ("zzz", None, 1, UsageError, r"pick \(='zzz'\) must be best, knee or an id"),
        ("bad", None, 1, UsageError, r"pick \(='bad'\) must be a finished trial: bad failed"),
        ("front", None, 1, UsageError, "study 's' exists with weights_sha256"),
    ],
)
def test_what_cannot_be_confirmed_is_said(
    ledger: Ledger, study: str, which: str, where: str | None, seeds: int, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        confirm_trials(ledger, study, which, where=where, seeds=seeds, resources=SERIAL)
    assert ledger.repeats(study).num_rows == 0


def test_finished_repeats_are_left_out_and_failed_ones_tried_again(
    ledger: Ledger,
    study: str,
    row: TrialRow,
    plan: StudyPlan,
    workload: Workload,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without Ray: what the engine is asked to run, when the first repeat finishes and the second fails."""
    asked: list[tuple[str, int]] = []

    def run(study: StudyLedger, missing: list[dict[str, Any]], *rest: object, wanted: int) -> None:
        asked.extend((suggestion["repeat_of"], suggestion["spec"]["seed"]) for suggestion in missing)
        for suggestion, failed in zip(missing, (False, True), strict=False):
            repeat = dataclasses.replace(row, trial=suggestion["trial"], repeat_of=suggestion["repeat_of"])
            ended = {"status": TrialStatus.FAILED, "error": "x", "score": None} if failed else {}
            ledger.append(dataclasses.replace(repeat, **ended))

    monkeypatch.setattr(confirm, "_run", run)
    monkeypatch.setattr("search.runner.launch.open_workload", lambda *_: workload)
    found = []
    for seeds in (2, 2, 2, 3):
        outcome = confirm_trials(ledger, study, "good", where=None, seeds=seeds, resources=SERIAL)
        found.append((outcome.wanted, outcome.done, outcome.failed, asked.copy()))
        asked.clear()
    first, second, third = (("good", plan.seed + offset) for offset in (1, 2, 3))
    assert found == [(2, 1, 1, [first, second]), (2, 2, 0, [second]), (2, 2, 0, []), (3, 3, 0, [third])]
