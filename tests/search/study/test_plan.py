import dataclasses
import json

import pytest

from layers import UsageError
from search.runner.launch import _check_same
from search.study.budget import Budget
from search.study.plan import StudyPlan
from search.study.workload import Workload, make_space
from spaces import NetworkConfig
from spaces.global_pruning import global_rates
from trainers.start.saliency import SALIENCIES, filter_saliency
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


def test_a_study_older_than_a_setting_goes_on_with_its_default(plan: StudyPlan) -> None:
    record = json.loads(json.dumps(plan.to_record()))
    del record["recipe"]["distillation"], record["keep"], record["saliency"]
    _check_same("old", record, plan.to_record())
    taught = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, distillation=0.5))
    with pytest.raises(UsageError, match=r"exists with schedule.distillation 0.0, 0.5 was given"):
        _check_same("old", record, taught.to_record())


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
        assert resolved.spec(NetworkConfig(), **workload.identity()).saliency == saliency
    assert found["magnitude"] != found["gradient"]


@pytest.mark.parametrize("objective", ["latency_ms", "latency_b64_ms"])
def test_latency_is_measured_where_it_is_an_objective(plan: StudyPlan, objective: str) -> None:
    timed = dataclasses.replace(plan, objectives=("val_top1", objective))
    specs = [p.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d") for p in (plan, timed)]
    assert [spec.latency for spec in specs] == [False, True]


def test_a_study_keeps_to_what_it_keeps(plan: StudyPlan) -> None:
    other = dataclasses.replace(plan, keep="all")
    with pytest.raises(UsageError, match=r"exists with keep 'front', 'all' was given"):
        _check_same("s", plan.to_record(), other.to_record())
    with pytest.raises(UsageError, match=r"keep \(='best'\) must be front or all"):
        dataclasses.replace(plan, keep="best")


def test_a_study_has_trials(plan: StudyPlan) -> None:
    with pytest.raises(UsageError, match=r"trials \(=0\) must be at least 1"):
        dataclasses.replace(plan, trials=0)
