import dataclasses
import json
from pathlib import Path

import pytest

from layers import OvertoneError, UsageError
from search.study.budget import Budget
from search.study.plan import StudyPlan, check_same_settings
from search.study.workload import Workload, make_space
from spaces import NetworkConfig
from spaces.global_pruning import global_rates
from trainers.start.choices import SALIENCIES
from trainers.start.saliency import filter_saliency
from trainers.training.recipe import TrainingRecipe


def test_a_plan_comes_back_from_its_record(plan: StudyPlan) -> None:
    rich = dataclasses.replace(
        plan,
        budget=Budget(max_size=40_000),
        objectives=("val_top1", "latency_ms"),
        space={"all": {"bits": [8, 4]}},
        recipe=TrainingRecipe(lr=0.02, lr_schedule="step", distillation=0.5),
        init="least_squares",
        saliency="gradient",
        seed=11,
        keep="all",
    )
    assert StudyPlan.from_record({**json.loads(json.dumps(rich.to_record())), "name": "x", "uncompressed": {}}) == rich


def test_a_record_without_a_setting_is_refused(plan: StudyPlan) -> None:
    record = {**plan.to_record(), "name": "old"}
    for setting in ("keep", "miss_rate", "recipe", "saliency"):
        with pytest.raises(OvertoneError, match=f"the record of study 'old' lacks {setting}$"):
            StudyPlan.from_record({name: value for name, value in record.items() if name != setting})


def test_a_setting_that_differs_is_named(plan: StudyPlan) -> None:
    record = {**plan.to_record(), "name": "s"}
    check_same_settings(record, dataclasses.replace(plan, trials=99, weights="elsewhere").to_record())
    other = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, distillation=0.75))
    with pytest.raises(UsageError, match=r"study 's' exists with recipe.distillation 0.5, 0.75 was given"):
        check_same_settings(record, other.to_record())


def test_a_located_plan_is_one_for_any_working_directory(
    plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").touch()
    located = dataclasses.replace(plan, weights="mine.safetensors", objectives=("score", "flops")).located()
    assert located.weights == str(tmp_path / "mine.safetensors")
    assert located.data.data_dir == str(tmp_path / "data")
    assert located.objectives == ("val_top1", "flops")
    assert dataclasses.replace(plan, weights="IMAGENET1K_V1").located().weights == "IMAGENET1K_V1"
    assert located.located() == located


def test_a_miss_rate_of_0_never_stops_and_none_is_no_rate(plan: StudyPlan) -> None:
    assert StudyPlan.from_record(dataclasses.replace(plan, miss_rate=0).to_record()).miss_rate == 0
    for rate in (-0.1, 1, float("nan")):
        with pytest.raises(UsageError, match=r"miss_rate \(=.*\) must be at least 0 and below 1"):
            dataclasses.replace(plan, miss_rate=rate)


def test_a_plan_holds_rates_where_thresholds_were_asked(plan: StudyPlan) -> None:
    """Those of its own weights; the record then says what was searched, on whatever machine it goes on."""
    space = {"all": {"pruning_rate": ["none", "global 0.5"]}}
    workload = Workload.load(plan)
    found = {}
    for saliency in SALIENCIES:
        asked = dataclasses.replace(plan, space=space, saliency=saliency)
        resolved = workload.resolved(asked)
        assert workload.resolved(resolved) == resolved
        assert StudyPlan.from_record(json.loads(json.dumps(resolved.to_record()))) == resolved
        scores = filter_saliency(saliency, workload.baseline, workload.data, seed=plan.seed)
        rates = global_rates(workload.network, scores, 0.5, plan.minimum_templates)
        choices = make_space(resolved, workload.network).choices
        found[saliency] = {block: choices[block]["pruning_rate"][-1] for block in rates}
        assert found[saliency] == {block: rate or None for block, rate in rates.items()}
        assert resolved.spec(NetworkConfig(), **workload.hashes()).saliency == saliency
    assert found["magnitude"] != found["gradient"]


@pytest.mark.parametrize("objective", ["latency_ms", "latency_b64_ms"])
def test_latency_is_measured_where_it_is_an_objective(plan: StudyPlan, objective: str) -> None:
    timed = dataclasses.replace(plan, objectives=("val_top1", objective))
    specs = [p.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d") for p in (plan, timed)]
    assert [spec.latency for spec in specs] == [False, True]


def test_a_study_keeps_to_what_it_keeps(plan: StudyPlan) -> None:
    other = dataclasses.replace(plan, keep="all")
    with pytest.raises(UsageError, match=r"exists with keep 'front', 'all' was given"):
        check_same_settings({**plan.to_record(), "name": "s"}, other.to_record())
    with pytest.raises(UsageError, match=r"keep \(='best'\) must be front or all"):
        dataclasses.replace(plan, keep="best")


def test_a_study_has_trials(plan: StudyPlan) -> None:
    with pytest.raises(UsageError, match=r"trials \(=0\) must be at least 1"):
        dataclasses.replace(plan, trials=0)
