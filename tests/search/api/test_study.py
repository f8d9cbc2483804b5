"""What a study and its trials answer, without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layers import OvertoneError, UsageError
from results.ledger.ledger import Ledger
from results.queries.query import query, sql
from results.schema import TrialRow
from search.api.study import Study
from search.study.plan import StudyPlan
from spaces import NetworkConfig
from tests.search.conftest import CONFIG


@pytest.fixture
def study(run_alone: Callable[[StudyPlan], str], plan: StudyPlan, ledger: Ledger) -> Study:
    return Study(ledger, run_alone(plan))


def test_tables_are_those_of_the_queries(study: Study) -> None:
    assert study.front().equals(query(study.ledger, "s", front=True))
    assert study.query("size_bytes > 0", sort="val_top1", columns=["trial"]).equals(
        query(study.ledger, "s", where="size_bytes > 0", sort="val_top1", columns=["trial"])
    )
    statement = "SELECT block, bits FROM blocks ORDER BY block"
    assert study.sql(statement).equals(sql(study.ledger, "s", statement))
    assert list(study.importance()) == ["knob", "share", "chance"]
    status = study.status()
    assert (status["state"], status["finished"], status["wanted"], status["front"]) == ("stopped", 1, 4, 1)
    assert repr(study) == f"Study('s', store={study.ledger.store.label!r})"


def test_a_trial_is_picked_within_limits_and_loaded(study: Study, generator: torch.Generator) -> None:
    trial = study.trial(0)
    assert study.trial("abc") == study.trial("0") == trial
    with pytest.raises(
        UsageError, match=r"pick \(='ab'\) must be best, knee or an id such as abc, its first 6 characters"
    ):
        study.trial("ab")
    row = study.ledger.trials("s").to_pylist()[0]
    assert (trial.id, trial.status, trial.score) == ("abc", "finished", row["score"])
    assert (trial.size_bytes, trial.flops, trial.metrics) == (row["size_bytes"], row["flops"], dict(row["metrics"]))
    assert trial.config == CONFIG != NetworkConfig()
    for picked in study.best(), study.knee(), study.best(max_size=trial.size_bytes), study.knee("flops > 0"):
        assert picked == trial
    assert study.best(max_size="1MB", max_flops="1G", where="epochs = 1 OR epochs = 2") == trial
    with pytest.raises(OvertoneError, match="no finished trial"):
        study.best(max_size=trial.size_bytes - 1)
    with pytest.raises(OvertoneError, match="no finished trial"):
        study.knee(max_flops=1, where="epochs = 1 OR epochs = 2")
    with pytest.raises(UsageError, match=r"id \(='best'\) must be the id of a trial; study.best\(\) picks one"):
        study.trial("best")
    with pytest.raises(UsageError, match=r"max_size \(='x'\) must be an amount"):
        study.best(max_size="x")
    model = trial.load()
    assert not model.training
    assert model(torch.randn(3, 1, 8, 8, generator=generator)).shape == (3, 10)
    with pytest.raises(UsageError, match=r"model \(='object:Linear'\) must be left out: the study was begun"):
        trial.load(model=torch.nn.Linear(1, 1))
    study.ledger.model_path(row["model_sha256"]).unlink()
    with pytest.raises(OvertoneError, match=r"was not kept \(--keep front\): add --rerun"):
        trial.load()


def test_pages_and_pictures_are_written_where_they_may(study: Study, tmp_path: Path) -> None:
    assert study.report(tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert study.plot_front(tmp_path / "front.svg").exists()
    with pytest.raises(UsageError, match=r"out \(='.*x.png'\) must end in .html; `overtone plot front` draws pictures"):
        study.report(tmp_path / "x.png")
    with pytest.raises(UsageError, match=r"must end in .png or .svg"):
        study.plot_front(tmp_path / "x.pdf")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n_trials": 0}, r"n_trials \(=0\) must be at least 1"),
        ({"more": 0}, r"more \(=0\) must be at least 1"),
        ({"n_trials": 3, "more": 1}, r"more \(=1\) must be left out with n_trials \(=3\)"),
    ],
)
def test_numbers_of_trials_that_mean_nothing_are_refused(study: Study, asked: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        study.optimize(**asked, progress=False)


def test_trials_are_counted_in_all_without_those_of_a_warm_start(study: Study) -> None:
    assert [study._wanted(n, more) for n, more in ((None, None), (1, None), (9, None), (None, 5))] == [4, 1, 9, 9]
    study.ledger.update_study("s", {"warm_started": 1, "trials": 5})
    assert [study._wanted(n, more) for n, more in ((None, None), (1, None), (9, None), (None, 5))] == [5, 2, 10, 10]
    row = study.ledger.trials("s").to_pylist()[0]
    for number in (1, 2):
        study.ledger.append(TrialRow.from_record({**row, "trial": f"t{number}", "number": number}))
    with pytest.raises(UsageError, match=r"n_trials \(=1\) must be at least 2, .* study 's' has; .*--more N"):
        study._wanted(1, None)
