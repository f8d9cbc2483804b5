"""Ray Tune's part: runs whatever trials a searcher suggests on workers, and hands what they report to a keeper."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSystem
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from layers import OvertoneError
from results.ledger import Ledger
from search.cluster import Resources
from search.keeper import StopWhenLost, TrialKeeper
from search.subject import Subject
from search.trainable import TrialActor

__all__ = ["run_trials"]


def run_trials(
    searcher: Searcher,
    keeper: TrialKeeper,
    subject: Subject,
    resources: Resources,
    ledger: Ledger,
    *,
    trials: int,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Run up to `trials` suggestions, on the Ray that is connected; returns early on Ctrl-C or when a row is lost.

    A suggestion is plain data: `number`, `trial` (its id in the ledger), `spec`, and `confirms` where it repeats
    another trial. The scheduler may stop trials early.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # Ray Tune's own snapshots, which nobody reads
    actor = tune.with_parameters(
        TrialActor,
        data=subject.data,
        baseline=subject.baseline,
        network=subject.network,
        store=_reachable(ledger),
        study=keeper.study,
    )
    need = {"cpu": float(resources.cpus_per_trial), "gpu": float(resources.gpus_per_trial or 0)}
    with _scratch(ledger, keeper.study) as folder:
        tuner = tune.Tuner(
            tune.with_resources(actor, need),
            tune_config=tune.TuneConfig(
                search_alg=_Room(searcher, resources) if resources.ceiling is None else searcher,
                scheduler=scheduler,
                num_samples=trials,
                max_concurrent_trials=resources.ceiling,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                callbacks=[keeper],
                stop=StopWhenLost(keeper),
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
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


@contextmanager
def _scratch(ledger: Ledger, name: str) -> Iterator[str]:
    """Where Ray Tune keeps checkpoints until they are in the ledger: beside it, so that all nodes reach it."""
    root = ledger.store.local_root
    if root is None:
        place, mark, settings = ledger.store.uri.partition("?")
        folder_uri = f"{place.rstrip('/')}/tune/{name}-{uuid.uuid4().hex[:8]}{mark}{settings}"
        try:
            yield folder_uri
        finally:
            files, path = FileSystem.from_uri(folder_uri)
            with suppress(FileNotFoundError):
                files.delete_dir(path)
        return
    try:
        (root / "tune").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root / "tune")).resolve()
    except OSError as error:
        raise OvertoneError(f"Store {ledger.store.label!r} cannot be written; {error}.") from error
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
