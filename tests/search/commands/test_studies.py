"""What `search` and `resume` ask for, without running it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layers import UsageError
from results.ledger.ledger import Ledger
from search.api import create
from search.api.study import Study
from search.runner.cluster import Resources
from search.runner.dashboards import DashboardOptions
from search.study.plan import StudyPlan

Overtone = Callable[..., tuple[int, str, str]]
SEARCH = ("search", "--model", "resnet8", "--weights", "w.safetensors", "--study", "s")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """What studies were begun with, and what was asked of them."""
    monkeypatch.chdir(tmp_path)
    called: list[tuple[Any, ...]] = []

    def begin(ledger: Ledger, name: str, plan: StudyPlan, *_: Any, **__: Any) -> Study:
        called.append((name, plan))
        ledger.create_study(name, {**plan.to_record(), "warm_started": 0})
        return Study(ledger, name)

    def optimize(study: Study, n_trials: int | None = None, **given: Any) -> None:
        called.append((study.name, n_trials, given))
        raise UsageError("captured")

    monkeypatch.setattr(create, "begin_study", begin)
    monkeypatch.setattr(Study, "optimize", optimize)
    return called


def test_defaults_are_those_of_a_plan_and_of_resources(overtone: Overtone, calls: list[tuple[Any, ...]]) -> None:
    assert overtone(*SEARCH)[2] == "overtone: captured\n"
    begun, (study, trials, given) = calls
    assert begun == ("s", StudyPlan(model="resnet8", weights="w.safetensors"))
    assert (study, trials) == ("s", StudyPlan.trials)
    assert given == {"resources": Resources(), "dashboards": DashboardOptions()}


def test_weights_and_a_miss_rate_of_0_are_passed_on_as_they_are_typed(
    overtone: Overtone, calls: list[tuple[Any, ...]]
) -> None:
    Path("w.safetensors").touch()
    overtone(*SEARCH, "--miss-rate", "0")
    plan = calls[0][1]
    assert (plan.weights, plan.miss_rate) == ("w.safetensors", 0)


@pytest.mark.parametrize(("given", "more"), [((), None), (("--more", "7"), 7)])
def test_resume_runs_more_trials_only_if_asked(
    overtone: Overtone, calls: list[tuple[Any, ...]], given: tuple[str, ...], more: int | None
) -> None:
    overtone(*SEARCH)
    overtone("resume", "--study", "s", "--cpus-per-trial", "2", "--address", "auto", *given)
    study, trials, asked = calls[-1]
    assert (study, trials, asked["more"]) == ("s", None, more)
    assert asked["resources"] == Resources(cpus_per_trial=2, address="auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-size", "tiny"], "max_size (='tiny') must be an amount above 0"),
        (["--max-size", ""], "max_size (='') must be an amount above 0"),
        (
            ["--max-size", "1kB"],
            "no config of the space meets the budget (max_size=1000, max_flops=None): the least size is",
        ),
        (
            ["--objective", "val_top1", "--objective", "beauty"],
            "objective (='beauty') must be one of val_top1, size_bytes,",
        ),
        (["--init", "warm"], "init (='warm') must be one of calibrated, least_squares, gradient_descent"),
        (["--distillation", "2"], "distillation (=2.0) must be from 0 to 1"),
        (["--sampler", "luck"], "sampler (='luck') must be one of ehvi, tpe, nsga2, nsga3, gp, random"),
        (["--trials", "0"], "trials (=0) must be at least 1"),
        (["--miss-rate", "1"], "miss_rate (=1.0) must be at least 0 and below 1"),
        (["--keep", "best"], "keep (='best') must be front or all"),
        (["--model", "resnet20"], "do not fit the model 'resnet20'"),
        (["--weights", "missing.safetensors"], "weights (='missing.safetensors') must be a file"),
        (["--dataset", "parquet:/nowhere"], "/nowhere"),
        (["--space", "space.yaml"], "'layer9'"),
        (["--gpus-per-trial", "some"], "gpus_per_trial (='some') must be a number of at least 0, or auto"),
    ],
)
def test_a_search_that_cannot_begin_says_why(
    overtone: Overtone,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    weights: Path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text("layer9: {bits: [8]}\n")
    base = ["search", "--model", "resnet8", "--weights", str(weights), "--study", "s"]
    code, _, err = overtone(*base, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()
