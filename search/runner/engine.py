"""Ray Tune's part: runs whatever trials a searcher suggests on workers, and hands what they report to a keeper."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from results.ledger.ledger import Ledger
from search.runner.cluster import Resources
from search.runner.ledger_callback import LedgerCallback, StopWhenLost
from search.runner.trainable import TrialActor
from search.study.workload import Workload

__all__ = ["run_trials"]


def run_trials(
    searcher: Searcher,
    callback: LedgerCallback,
    workload: Workload,
    resources: Resources,
    ledger: Ledger,
    *,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run what is suggested, on the Ray that is connected; returns early on Ctrl-C or when a row is lost.

    A suggestion is plain data: `number`, `trial` (its id in the ledger), `spec`, and `repeat_of` where it repeats
    another trial. The scheduler may stop trials early. Where a worker died the searcher is told of an error, and may
    suggest the same again.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # Ray Tune's own snapshots, which nobody reads
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # "did not complete" of what was begun again and has
    actor = tune.with_parameters(
        TrialActor,
        data=workload.data,
        baseline=workload.baseline,
        network=workload.network,
        store=_reachable(ledger),
        study=callback.study,
    )
    need = {"cpu": float(resources.cpus_per_trial), "gpu": float(resources.gpus_per_trial or 0)}
    with tempfile.TemporaryDirectory(prefix="overtone-tune-") as folder:  # of this process alone: workers use the store
        tuner = tune.Tuner(
            tune.with_resources(actor, need),
            tune_config=tune.TuneConfig(
                search_alg=_Room(searcher, resources) if resources.ceiling is None else searcher,
                scheduler=scheduler,
                num_samples=-1,  # until the searcher has finished
                max_concurrent_trials=resources.ceiling,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[callback],
                stop=StopWhenLost(callback),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()


class _Room(ConcurrencyLimiter):
    """Asks for as many trials as fit while nodes join and leave, and for one more: an autoscaler adds a node for it."""

    def __init__(self, searcher: Searcher, resources: Resources) -> None:
        self._resources = resources
        super().__init__(searcher, max_concurrent=resources.fitting() + 1)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The searcher's next trial, or none for now."""
        self.max_concurrent = self._resources.fitting() + 1
        return super().suggest(trial_id)


def _reachable(ledger: Ledger) -> str:
    """The store by a name that does not depend on where a process was started."""
    root = ledger.store.local_root
    return ledger.store.uri if root is None else str(root.resolve())
