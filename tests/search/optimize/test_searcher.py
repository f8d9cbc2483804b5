import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from layers import UsageError
from results.objectives import parse_objectives
from search.optimize.candidates import Candidates
from search.optimize.initial import FirstConfigs
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import SAMPLERS, ConfigSampler, Observation
from search.optimize.searcher import FrontSearcher
from search.study.budget import Budget, extremes
from search.study.plan import DEFAULT_OBJECTIVES, StudyPlan
from spaces import NetworkConfig, Space
from trainers.spec import TrialSpec

OBJECTIVES = parse_objectives(DEFAULT_OBJECTIVES, score_name="val_top1")


@pytest.fixture
def make(plan: StudyPlan) -> Callable[..., FrontSearcher]:
    def searcher(
        space: Space,
        *,
        budget: Budget | None = None,
        sampler: str = "tpe",
        seed: int = 0,
        miss_rate: float = 0,
    ) -> FrontSearcher:
        budget = budget or Budget()
        candidates = Candidates(space)
        return FrontSearcher(
            candidates,
            ConfigSampler(candidates, OBJECTIVES, sampler=sampler, seed=seed, budget=budget),
            ConformalPruner(OBJECTIVES, miss_rate=miss_rate),
            budget=budget,
            cheapest=extremes(space, budget)[0],
            objectives=OBJECTIVES,
            make_spec=lambda config: plan.spec(config, weights_sha256="w", data_fingerprint="d"),
            seed=seed,
        )

    return searcher


def _run(searcher: FrontSearcher, space: Space, trials: int) -> list[TrialSpec]:
    """Ask and answer with made-up accuracies, as Ray Tune would, one trial at a time."""
    searcher.begin(trials, first=FirstConfigs(at_once=[NetworkConfig()]))
    specs = []
    while (suggestion := searcher.suggest(f"t{len(specs)}")) != Searcher.FINISHED:
        assert isinstance(suggestion, dict)
        assert suggestion["number"] == len(specs)
        specs.append(TrialSpec.from_json(suggestion["spec"]))
        assert suggestion["trial"] == specs[-1].digest(space.network)[:10]
        cost = space.network.cost(specs[-1].config)
        report = {
            "status": "finished",
            "scores": [0.1, cost.size_bytes / 4e5],
            "score": cost.size_bytes / 4e5,
            "size_bytes": cost.size_bytes,
            "flops": cost.flops,
        }
        searcher.on_trial_complete(f"t{len(specs) - 1}", report)
    return specs


def _row(spec: TrialSpec, number: int, space: Space, **changes: object) -> dict[str, object]:
    cost = space.network.cost(spec.config)
    measured = {"score": 0.5, "size_bytes": cost.size_bytes, "flops": cost.flops, "status": "finished"}
    history = {"init_score": 0.4, "history": [{"score": 0.5}]}
    return {"number": number, "spec": json.dumps(spec.to_json()), **measured, **history, **changes}


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow if name == "gp" else ()) for name in SAMPLERS]
)
def test_every_network_is_asked_for_once_and_the_original_first(make, space: Space, sampler: str) -> None:  # type: ignore[no-untyped-def]
    specs = _run(make(space, sampler=sampler), space, 14)
    digests = {space.network.digest(spec.config) for spec in specs}
    assert len(specs) == len(digests) == 14
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
    tiny = space.restrict(
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
        searcher.add_row(_row(spec, number, space))
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
    searcher.on_trial_complete("t2", {"score": 0.4})
    states = [trial.state.name for trial in searcher._sampler._study.trials]
    assert states == ["FAIL"] * 3


def test_a_trial_whose_worker_dies_is_suggested_again_but_not_for_ever(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    searcher = make(space)
    searcher.begin(2)
    first, other = searcher.suggest("a"), searcher.suggest("b")
    assert searcher.suggest("c") is None  # one of them may have to be begun again
    for old, new in (("a", "c"), ("c", "d")):
        searcher.on_trial_complete(old, None, error=True)
        assert old in searcher.retries.retried
        assert searcher.suggest(new) == first
        assert searcher.suggest("e") is None
    searcher.on_trial_complete("d", None, error=True)
    assert "d" not in searcher.retries.retried
    assert searcher.suggest("e") is None
    searcher.on_trial_complete("b", None, error=True)
    assert searcher.suggest("e") == other
    searcher.on_trial_complete("e", {"status": "failed"})
    assert searcher.suggest("f") == Searcher.FINISHED


def test_replayed_trials_are_what_optuna_would_have_kept(space: Space) -> None:
    draws = random.Random(5)
    candidates = Candidates(space)
    sampler = ConfigSampler(candidates, OBJECTIVES, sampler="tpe", seed=0)
    for _ in range(20):
        config = space.decode({name: draws.choice(values) for name, values in space.knobs.items()})
        point = candidates.point(config)
        assert candidates.config(point) == config
        sampler.replay(point, Observation(values=(0.5, 1e4, 1e6)))
        params = sampler._study.trials[-1].params
        found = space.decode({name: space.knobs[name][index] for name, index in params.items()})
        assert found == config


def test_unknown_samplers_are_named(space: Space, weights: Path) -> None:
    with pytest.raises(UsageError, match=r"sampler \(='tpx'\) must be one of ehvi, tpe, nsga2, nsga3, gp, random"):
        ConfigSampler(Candidates(space), OBJECTIVES, sampler="tpx", seed=0)


def _report(spec: TrialSpec, space: Space, scores: list[float], status: str = "finished") -> dict[str, object]:
    cost = space.network.cost(spec.config)
    costs = {"size_bytes": cost.size_bytes, "flops": cost.flops, "score": scores[-1]}
    return {"status": status, "scores": scores, **costs}


def test_what_is_waiting_comes_first_and_keeps_its_number(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    first = make(space)
    first.begin(6, first=FirstConfigs(at_once=[NetworkConfig()]))
    begun = [first.suggest(f"t{i}") for i in range(6)]
    again = make(space)
    again.add_row(_row(TrialSpec.from_json(begun[1]["spec"]), 1, space))
    again.begin(5, first=FirstConfigs(at_once=[NetworkConfig()]), unfinished=[begun[0], begun[3], begun[5]])
    asked = [again.suggest(f"n{i}") for i in range(5)]
    assert asked[:3] == [begun[0], begun[3], begun[5]]
    assert [suggestion["number"] for suggestion in asked[3:]] == [6, 7]
    assert again.suggest("n5") is None  # until those that run have ended
    assert len({suggestion["trial"] for suggestion in [*asked, begun[1]]}) == 6


def test_what_another_study_has_measured_is_answered_and_not_run(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    specs = _run(make(space, seed=4), space, 12)
    rows = {spec.digest(space.network): _row(spec, 0, space, score=0.7) for spec in specs[::2]}
    searcher, answered = make(space, seed=4), []
    searcher.begin(
        12,
        first=FirstConfigs(at_once=[NetworkConfig()]),
        measured=rows,
        on_reuse=lambda suggestion, row: answered.append((suggestion, row)),
    )
    run = []
    while (suggestion := searcher.suggest(f"t{len(run)}")) != Searcher.FINISHED:
        run.append(suggestion)
        searcher.on_trial_complete(
            f"t{len(run) - 1}", _report(TrialSpec.from_json(suggestion["spec"]), space, [0.1, 0.5])
        )
    assert len(run) + len(answered) == 12
    assert answered
    assert sorted(s["number"] for s in [*run, *(s for s, _ in answered)]) == list(range(12))
    for suggestion, row in answered:
        assert rows[TrialSpec.from_json(suggestion["spec"]).digest(space.network)] is row
    values = [trial.values[0] for trial in searcher._sampler._study.trials if trial.values]
    assert sorted(values) == [0.5] * len(run) + [0.7] * len(answered)


def test_hopeless_trials_are_given_up_and_told_as_pruned(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    """Of sixty trials that say at once what they come to, many are given up: two at most that belonged on the front.

    A miss rate of 0.1 allows more, so not from every draw.
    """
    rng = random.Random(0)
    searcher, points, wrong = make(space, sampler="random", miss_rate=0.1), [], 0
    searcher.begin(60)
    while isinstance(suggestion := searcher.suggest(str(len(points))), dict):
        key, spec = str(len(points)), TrialSpec.from_json(suggestion["spec"])
        final = rng.uniform(0.5, 0.95)
        start = _report(spec, space, [final - 0.1], "running")
        if searcher.should_stop(key, start):
            searcher.on_trial_complete(key, start)
        else:
            searcher.on_trial_complete(key, _report(spec, space, [final - 0.1, final]))
        points.append((-final, start["size_bytes"], start["flops"]))
        beaten = any(all(a <= b for a, b in zip(p, points[-1], strict=True)) for p in points[:-1])
        wrong += key in searcher.stopped and not beaten
    states = [trial.state.name for trial in searcher._sampler._study.trials]
    assert states.count("PRUNED") == len(searcher.stopped) > 5
    assert states.count("COMPLETE") == 60 - len(searcher.stopped)
    assert wrong <= 2
    _, scores, measured = searcher._sampler._history.scored()
    assert ((scores[~measured] > 0.4) & (scores[~measured] < 1)).all()


def test_what_is_over_budget_is_told_as_a_constraint_that_is_broken(make, space: Space) -> None:  # type: ignore[no-untyped-def]
    searcher = make(space, budget=Budget(max_size=12_000), sampler="tpe")
    _run(searcher, space, 12)
    over = [trial for trial in searcher._sampler._study.trials if trial.constraints]
    assert over
    assert all(trial.state.name == "PRUNED" and trial.constraints["max_size"] > 0 for trial in over)
    assert not any(trial.state.name == "RUNNING" for trial in searcher._sampler._study.trials)


@pytest.mark.parametrize("sampler", ["ehvi", "random"])
def test_a_search_that_was_stopped_asks_for_what_it_would_have_asked_for(make, space: Space, sampler: str) -> None:  # type: ignore[no-untyped-def]
    whole = _run(make(space, sampler=sampler, seed=2), space, 14)
    again = make(space, sampler=sampler, seed=2)
    for number, spec in enumerate(whole[:9]):
        score = space.network.cost(spec.config).size_bytes / 4e5
        history = {"init_score": 0.1, "history": [{"score": score}], "score": score}
        again.add_row(_row(spec, number, space, **history))
    again.begin(5, first=FirstConfigs(at_once=[NetworkConfig()]))
    rest = []
    for i in range(5):
        rest.append(TrialSpec.from_json(again.suggest(f"t{i}")["spec"]))
        again.on_trial_complete(
            f"t{i}", _report(rest[-1], space, [0.1, space.network.cost(rest[-1].config).size_bytes / 4e5])
        )
    assert rest == whole[9:]


def test_a_row_outside_the_space_counts_as_known_and_no_more(make, space: Space, plan: StudyPlan) -> None:  # type: ignore[no-untyped-def]
    narrow = space.restrict({"all": {"bits": [8]}})
    searcher = make(narrow)
    spec = plan.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d")
    searcher.add_row(_row(spec, 4, space))
    searcher.begin(1, first=FirstConfigs(at_once=[NetworkConfig()]))
    suggestion = searcher.suggest("t")
    assert suggestion["number"] == 5
    assert len(searcher._sampler._study.trials) == 1
