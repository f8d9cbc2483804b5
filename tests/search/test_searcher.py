import random
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from layers import UsageError
from results.objectives import parse_objectives
from search.budget import Budget
from search.sampler import SAMPLERS, ConfigSampler
from search.searcher import FrontSearcher
from search.study import DEFAULT_OBJECTIVES, StudyPlan
from spaces import NetworkConfig, Space
from trainers.spec import TrialSpec

OBJECTIVES = parse_objectives(DEFAULT_OBJECTIVES)


@pytest.fixture
def make(plan: StudyPlan) -> Callable[..., FrontSearcher]:
    def searcher(space: Space, *, budget: Budget | None = None, sampler: str = "tpe", seed: int = 0) -> FrontSearcher:
        return FrontSearcher(
            space,
            ConfigSampler(space, OBJECTIVES, sampler=sampler, seed=seed),
            budget=budget or Budget(),
            objectives=OBJECTIVES,
            make_spec=lambda config: plan.spec(config, weights_sha256="w", data_fingerprint="d"),
            seed=seed,
        )

    return searcher


def _run(searcher: FrontSearcher, space: Space, trials: int) -> list[TrialSpec]:
    """Ask and answer with made-up accuracies, as Ray Tune would, one trial at a time."""
    searcher.begin(trials)
    specs = []
    while (suggestion := searcher.suggest(f"t{len(specs)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        assert suggestion["number"] == len(specs)
        specs.append(TrialSpec.from_json(suggestion["spec"]))
        assert suggestion["trial"] == specs[-1].digest(space.network)[:10]
        cost = space.network.cost(specs[-1].config)
        report = {
            "status": "finished",
            "val_top1": cost.size_bytes / 4e5,
            "size_bytes": cost.size_bytes,
            "flops": cost.flops,
        }
        searcher.on_trial_complete(f"t{len(specs) - 1}", report)
    return specs


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_network_is_asked_for_once_and_the_original_first(make, space: Space, sampler: str) -> None:  # type: ignore[no-untyped-def]
    specs = _run(make(space, sampler=sampler), space, 25)
    digests = {space.network.digest(spec.config) for spec in specs}
    assert len(specs) == len(digests) == 25
    assert specs[0].config == NetworkConfig()


def test_equal_seeds_ask_for_equal_trials(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    first, second, other = (_run(make(space, seed=seed), space, 15) for seed in (7, 7, 8))
    assert first == second != other


def test_no_trial_is_over_budget(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    budget = Budget(max_size=9_000, max_flops=500_000)
    specs = _run(make(space, budget=budget), space, 20)
    assert len(specs) == 20
    assert all(budget.fits(space.network.cost(spec.config)) for spec in specs)


def test_an_exhausted_space_ends_the_search(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    tiny = space.restricted(
        {
            "all": {
                "basis": ["cosine"],
                "harmonics": [3],
                "pruning_rate": [None],
                "bits": [None],
                "allocation": [None],
            },
            "layer3": {"bits": [None, 8, 4]},
            "conv1": {"harmonics_y": [2, 3]},
        }
    )
    searcher = make(tiny)
    specs = _run(searcher, tiny, 50)
    assert len(specs) == 6
    assert searcher.exhausted


def test_known_networks_are_not_asked_for_again(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    past = _run(make(space, seed=1), space, 12)
    searcher = make(space, seed=1)
    for number, spec in enumerate(past):
        cost = space.network.cost(spec.config)
        searcher.know(spec.config, number, {"val_top1": 0.5, "size_bytes": cost.size_bytes, "flops": cost.flops})
    searcher.begin(12)
    numbers, digests = [], set()
    for i in range(12):
        suggestion = searcher.suggest(f"n{i}")
        numbers.append(suggestion["number"])
        digests.add(space.network.digest(TrialSpec.from_json(suggestion["spec"]).config))
    assert numbers == list(range(12, 24))
    assert len(digests) == 12
    assert not digests & {space.network.digest(spec.config) for spec in past}


def test_failed_trials_teach_the_sampler_nothing_and_leave_none_running(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    searcher = make(space)
    searcher.begin(3)
    for i in range(3):
        searcher.suggest(f"t{i}")
    searcher.on_trial_complete("t0", None, error=True)
    searcher.on_trial_complete("t1", {"status": "failed"})
    searcher.on_trial_complete("t2", {"val_top1": 0.4})
    states = [trial.state.name for trial in searcher._sampler._study.trials]
    assert states == ["FAIL"] * 3


def test_replayed_trials_are_what_optuna_would_have_kept(space: Space) -> None:
    draws = random.Random(5)
    sampler = ConfigSampler(space, OBJECTIVES, sampler="tpe", seed=0)
    for _ in range(20):
        config = space.decode({name: draws.choice(values) for name, values in space.knobs.items()})
        sampler.replay(config, (0.5, 1e4, 1e6))
        assert (
            space.decode({name: space.knobs[name][index] for name, index in sampler._study.trials[-1].params.items()})
            == config
        )


def test_unknown_samplers_are_named(space: Space, weights: Path) -> None:
    with pytest.raises(UsageError, match=r"sampler \(='tpx'\) must be one of tpe, nsga2, random"):
        ConfigSampler(space, OBJECTIVES, sampler="tpx", seed=0)
