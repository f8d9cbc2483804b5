"""Ray Tune's part: runs the trials that a searcher suggests on workers, and hands their reports to a callback."""

from __future__ import annotations

import tempfile
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from rich.console import Console

from results.ledger.store import Store
from search.runner.cluster import Resources
from search.runner.ledger_callback import LedgerCallback, StopOnFailure
from search.runner.trainable import TrialActor
from search.runner.waiting import WaitingCallback, WaitingNotice
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from search.study.workload import Workload

__all__ = ["run_trials"]


def run_trials(
    searcher: Searcher,
    callback: LedgerCallback,
    workload: Workload,
    resources: Resources,
    console: Console,
    *,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run the searcher's suggestions on the Ray that is connected; return early on Ctrl-C or if a row is not written.

    A suggestion is plain data: `number`, `trial` (its id in the ledger), `spec`, and `repeat_of` if it repeats another
    trial. The scheduler may stop trials early. If a worker dies the searcher gets an error, and may suggest the same
    again. The console is told what Ray has no room for.
    """
    needs = {"cpus": float(resources.cpus_per_trial), "gpus": float(resources.gpus_per_trial or 0)}
    waiting = WaitingCallback(WaitingNotice(console, "a trial", **needs))
    with tempfile.TemporaryDirectory(prefix="overtone-tune-") as folder:  # of this process alone: workers use the store
        tuner = tune.Tuner(
            _actor(workload, resources, callback.study),
            tune_config=tune.TuneConfig(
                search_alg=_ElasticLimiter(searcher, resources) if resources.ceiling is None else searcher,
                scheduler=scheduler,
                num_samples=-1,  # until the searcher has finished
                max_concurrent_trials=resources.ceiling,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[callback, waiting],
                stop=StopOnFailure(callback),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()


def _actor(workload: Workload, resources: Resources, study: StudyLedger) -> Any:
    """Return the actor of a study's trials, with what all of them share, and what each takes."""
    actor = tune.with_parameters(
        TrialActor,
        data=workload.data,
        baseline=workload.baseline,
        network=workload.network,
        store=_absolute(study.ledger.store),
        study=study.name,
        skeleton=workload.skeleton if StudyPlan.from_record(study.record()).times_files else None,
    )
    per_trial = {"cpu": float(resources.cpus_per_trial), "gpu": float(resources.gpus_per_trial or 0)}
    return tune.with_resources(actor, per_trial)


class _ElasticLimiter(ConcurrencyLimiter):
    """Asks for as many trials as fit while nodes join and leave, and for one more: an autoscaler adds a node for it."""

    def __init__(self, searcher: Searcher, resources: Resources) -> None:
        self._resources = resources
        super().__init__(searcher, max_concurrent=resources.fitting() + 1)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the searcher's next trial, or none for now."""
        self.max_concurrent = self._resources.fitting() + 1
        return super().suggest(trial_id)


def _absolute(store: Store) -> str:
    """Return the store's name for processes with another working directory."""
    return store.uri if store.local_root is None else str(store.local_root.resolve())
