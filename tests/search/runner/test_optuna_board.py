"""A study in an Optuna storage: what a person reads there, and what is never touched."""

import dataclasses
import json
import random
import warnings
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest

from layers import OvertoneError, OvertoneWarning, UsageError
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import TrialRow, TrialStatus
from search.runner.dashboards import DashboardOptions
from search.runner.optuna_board import OptunaBoard, open_storage, without_password
from search.runner.progress import RunProgress
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from spaces import NetworkConfig, Space

URLS = ["journal:{}/optuna.log", "sqlite:///{}/optuna.db"]
PROGRESS = RunProgress(wanted=9, done=1, failed=0, pruned=0, running=0, seconds_left=None)


@pytest.fixture
def study(ledger: Ledger, plan: StudyPlan) -> StudyLedger:
    ledger.create_study("s", plan.to_record())
    return StudyLedger(ledger, "s")


def _row(plan: StudyPlan, space: Space, rng: random.Random, number: int, **of: object) -> TrialRow:
    config = space.decode({name: rng.choice(values) for name, values in space.knobs.items()})
    spec = plan.spec(config, weights_sha256="w", data_fingerprint="d")
    texts = dict.fromkeys(("model", "dataset", "init", "config_digest", "spec_digest"), "x")
    counts = dict.fromkeys(("seed", "epochs", "epochs_run", "parameters", "macs"), 1)
    times = dict.fromkeys(("started_at", "finished_at"), datetime.now(UTC))
    measured = {"size_bytes": rng.randint(1, 9), "flops": rng.randint(1, 9), "score": rng.random()}
    row = TrialRow(
        **{**texts, **counts, **times, **measured},
        study="s",
        number=number,
        trial=f"t{number}",
        spec=json.dumps(spec.to_json()),
        status=TrialStatus.FINISHED,
        score_name="val_top1",
    )
    return dataclasses.replace(row, **of)


@pytest.mark.parametrize("kind", URLS)
def test_trials_have_the_values_of_their_knobs_and_their_ids(
    study: StudyLedger, plan: StudyPlan, space: Space, tmp_path: Path, rng: random.Random, kind: str
) -> None:
    rows = [_row(plan, space, rng, number) for number in range(4)]
    rows[2] = dataclasses.replace(rows[2], status=TrialStatus.FAILED, error="out of memory", score=None)
    rows[3] = dataclasses.replace(rows[3], status=TrialStatus.PRUNED, score=None)
    study.append(rows[0])
    (board,) = DashboardOptions(optuna_storage=kind.format(tmp_path)).open(study, space)
    for row in rows[1:]:
        study.append(row)
        board.show(PROGRESS, row)
        board.show(PROGRESS, None)
    OptunaBoard(kind.format(tmp_path), study, space)  # a second run adds nothing that is there
    seen = optuna.load_study(study_name="s", storage=open_storage(kind.format(tmp_path)))
    assert seen.metric_names == ["val_top1", "size_bytes", "flops"]
    assert [trial.user_attrs["trial"] for trial in seen.trials] == ["t0", "t1", "t2", "t3"]
    assert [trial.state.name for trial in seen.trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert seen.trials[2].user_attrs["error"] == "out of memory"
    assert [t.values for t in seen.trials[:2]] == [[row.score, row.size_bytes, row.flops] for row in rows[:2]]
    for trial, row in zip(seen.trials, rows, strict=True):
        config = NetworkConfig.from_json(json.loads(row.spec)["config"])
        assert space.decode(trial.params) == space.network.canonical(config)
        for name, value in trial.params.items():
            assert value in space.knobs[name]


@pytest.mark.parametrize("kind", URLS)
def test_what_was_not_shown_is_added_by_the_next_run(
    study: StudyLedger, plan: StudyPlan, space: Space, tmp_path: Path, rng: random.Random, kind: str
) -> None:
    url = kind.format(tmp_path)
    for number in range(3):
        study.append(_row(plan, space, rng, number))
        OptunaBoard(url, study, space)
    seen = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [trial.user_attrs["trial"] for trial in seen.trials] == ["t0", "t1", "t2"]


@pytest.mark.parametrize("kind", URLS)
def test_a_study_of_somebody_else_is_left_as_it_is(
    study: StudyLedger, plan: StudyPlan, space: Space, tmp_path: Path, rng: random.Random, kind: str
) -> None:
    url = kind.format(tmp_path)
    theirs = optuna.create_study(study_name="s", storage=open_storage(url), directions=["minimize"])
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    before = [(trial.params, trial.values) for trial in theirs.trials]
    study.append(_row(plan, space, rng, 0))
    with pytest.raises(
        UsageError, match=r"optuna_storage \(=.*\) must not hold a study 's' of somebody else, which is"
    ):
        OptunaBoard(url, study, space)
    assert [(trial.params, trial.values) for trial in theirs.trials] == before
    assert theirs.user_attrs == {}


def test_a_study_of_the_same_name_in_another_store_is_left_as_it_is(
    study: StudyLedger, plan: StudyPlan, space: Space, tmp_path: Path, rng: random.Random
) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    study.append(_row(plan, space, rng, 0))
    OptunaBoard(url, study, space)
    other = Ledger(Store(tmp_path / "other"))
    other.create_study("s", plan.to_record())
    with pytest.raises(UsageError, match="must not hold a study 's' of another store"):
        OptunaBoard(url, StudyLedger(other, "s"), space)
    assert len(optuna.load_study(study_name="s", storage=url).trials) == 1


def test_a_storage_that_fails_meanwhile_stops_no_search(
    study: StudyLedger, plan: StudyPlan, space: Space, tmp_path: Path, rng: random.Random
) -> None:
    board = OptunaBoard(f"sqlite:///{tmp_path}/optuna.db", study, space)
    rows = [_row(plan, space, rng, number) for number in range(2)]
    (tmp_path / "optuna.db").write_bytes(b"no database any more" * 1000)
    with pytest.warns(
        OvertoneWarning, match=r"cannot write to optuna_storage 'sqlite.*; the next run adds what it lac"
    ):
        board.show(PROGRESS, rows[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        board.show(PROGRESS, rows[1])


@pytest.mark.parametrize("url", ["optuna.db", "oracle://nobody/x", "sqlite:////nowhere/at/all.db"])
def test_a_storage_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(UsageError, match=rf"optuna_storage \(='{url}'\) must be journal:FILE, sqlite:///FILE"):
        open_storage(url)


SECRET = "pa%40ss:w0rd"
LOGINS = [
    f"postgresql://me:{SECRET}@127.0.0.1:1/db",
    f"mysql+nothing://me:{SECRET}@127.0.0.1:1/db",
    f"oracle://me:{SECRET}@127.0.0.1:1/db",
    f"postgresql:/me:{SECRET}@127.0.0.1:1/db",
    f"me:{SECRET}@127.0.0.1/db",
    f"://me:{SECRET}@127.0.0.1/db",
    f"postgresql://127.0.0.1:1/db?password={SECRET}",
    f"postgresql://me:{SECRET}@127.0.0.1:port/db",
    f"sqlite+nothing://me:{SECRET}@x",
]


@pytest.mark.parametrize("url", LOGINS)
def test_no_message_shows_a_password(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"optuna_storage \(='") as refused:
        open_storage(url)
    error: BaseException | None = refused.value
    said = "".join(capfd.readouterr())
    while error is not None:
        said += str(error)
        assert error.__suppress_context__ or error.__context__ is None
        error = error.__cause__
    said += repr(DashboardOptions(optuna_storage=url))
    for part in (SECRET, "pa%40ss", "pa@ss", "w0rd"):
        assert part not in said


@pytest.mark.parametrize("fault", ["{url}", "denied: {password}", "denied: {unquoted}"])
def test_no_error_of_a_driver_shows_a_password(
    monkeypatch: pytest.MonkeyPatch, study: StudyLedger, space: Space, fault: str
) -> None:
    url = "postgresql://me:pa%40ss@host/db?sslpassword=hush"

    def fail(*_: object) -> None:
        raise RuntimeError(fault.format(url=url, password="pa%40ss", unquoted="pa@ss"))

    monkeypatch.setattr("optuna.storages.RDBStorage", fail)
    with pytest.raises(OvertoneError, match=r"^optuna_storage \(='postgresql://host/db'\) must be .*: RuntimeError$"):
        OptunaBoard(url, study, space)


def test_a_file_is_shown_whole() -> None:
    for url in ("sqlite:////home/a@b/x.db", "journal:/home/a@b/optuna.log"):
        assert without_password(url) == url
