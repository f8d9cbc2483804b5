from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from layers import OvertoneError, UsageError
from results.ledger.effects import EffectsLibrary
from results.ledger.ledger import Ledger
from search.api.study import Study
from search.commands.display import status_line
from search.optimize.effect_plan import effect_plan
from search.runner import effects as runner
from search.runner.cluster import Resources
from search.runner.effects import ensure_effects, known_effects, planned_effects
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload
from spaces import Space
from spaces.effects import Effects
from trainers.effects import EffectMeter

RESOURCES = Resources(gpus_per_trial=0, concurrency=2)


@pytest.fixture
def plan(plan: StudyPlan) -> StudyPlan:
    return replace(plan, epochs=8)


@pytest.fixture
def workload(plan: StudyPlan) -> Workload:
    return Workload.load(plan)


@pytest.fixture
def measure(ledger: Ledger, plan: StudyPlan, workload: Workload, space: Space):
    """Return a function that ensures the effects of a study of this name, which it makes, and what it printed."""

    def run(name: str, ensure_held: Callable[[], None] = lambda: None) -> tuple[Effects | None, str]:
        study = StudyLedger(ledger, name)
        if not study.exists():
            study.create({**plan.to_record(), **workload.identity(), "uncompressed": {}, "warm_started": 0}, [])
        console = Console(file=StringIO(), width=200)
        found = ensure_effects(study, workload, space, plan, RESOURCES, console, ensure_held)
        return found, console.file.getvalue()

    return run


def test_effects_are_kept_as_they_come_so_that_a_stopped_run_goes_on(ledger, plan, workload, space, measure):
    planned = planned_effects(space, workload, plan.epochs)
    assert planned == list(effect_plan(space))[: len(planned)]
    assert len(planned) >= 3
    held = iter([True] * 2)

    def stop() -> None:
        if not next(held, False):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure("demo", stop)
    kept = known_effects(StudyLedger(ledger, "demo"))
    assert [(effect.block, effect.config) for effect in kept.effects] == planned[:2]
    found, said = measure("demo")
    assert [(effect.block, effect.config) for effect in found.effects] == planned
    assert found.effects[:2] == kept.effects
    assert f"study demo: {len(planned) - 2} effects of single blocks to measure" in said
    alone = EffectMeter(workload.data, workload.baseline, workload.network).measure(*planned[-1])
    assert replace(alone, seconds=0.0) == replace(found.effects[-1], seconds=0.0)


def test_a_second_study_of_the_same_network_and_data_measures_nothing(ledger, measure):
    first, _ = measure("demo")
    second, said = measure("other")
    assert (second, said) == (first, "")
    told = {name: Study(ledger, name).record().get("effects_s", 0.0) for name in ("demo", "other")}
    assert told == {"demo": pytest.approx(first.seconds, abs=0.01), "other": 0.0}


def test_a_study_goes_by_the_effects_that_it_plans_whatever_others_have_measured(ledger, measure, network):
    first, _ = measure("demo")
    library = EffectsLibrary(ledger.store, ledger.study("demo"))
    foreign = replace(first.effects[0], block="layer1.0.conv1")
    library.write(replace(first, effects=(foreign, *reversed(first.effects))), {})
    assert measure("other")[0] == first
    assert foreign in known_effects(StudyLedger(ledger, "other")).effects


def test_status_tells_the_seconds_that_effects_took(ledger, measure):
    measure("demo")
    ledger.update_study("demo", {"effects_s": 75.0})
    assert status_line(Study(ledger, "demo").status()).endswith("; effects measured in 1 min 15 s")


def test_a_library_of_other_weights_is_refused_before_anything_is_measured(ledger, measure):
    measure("demo")
    library = EffectsLibrary(ledger.store, ledger.study("demo"))
    content = ledger.store.read_bytes(library.name)
    ledger.store.write_bytes(library.name, content.replace(library.record["weights_sha256"].encode(), b"0" * 64))
    with pytest.raises(UsageError, match=r"must be of the study's own network and data: its weights_sha256 differs"):
        measure("demo")


def test_a_form_that_cannot_be_measured_is_told_and_left_out(measure, monkeypatch):
    untouched = EffectMeter.measure

    def measured(self, block, config):
        if block == "layer1":
            raise OvertoneError("the network's outputs are infinite or not numbers")
        return untouched(self, block, config)

    monkeypatch.setattr(EffectMeter, "measure", measured)
    found, said = measure("demo")
    assert "layer1" not in {effect.block for effect in found.effects}
    assert "1 failed (layer1: the network's outputs are infinite or not numbers)" in said


@pytest.mark.timeout(600)
def test_workers_measure_what_this_process_would(ray_cluster, measure, ledger, monkeypatch):
    monkeypatch.setattr(runner, "_LEAST_SHARE", 1)
    here, _ = measure("here")
    ledger.store.delete(EffectsLibrary(ledger.store, ledger.study("here")).name)
    monkeypatch.setattr(runner, "_HERE_MACS", 0)
    there, said = measure("there")
    assert [replace(e, seconds=0.0) for e in there.effects] == [replace(e, seconds=0.0) for e in here.effects]
    assert f"[{len(there.effects)}/{len(there.effects)}] effects" in said
