"""Trials that are known beforehand, beside a search: run one after another, and kept as rows that it does not count."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from results.schema import TrialRow
from search.optimize.retries import RetryPolicy
from search.runner.ledger_callback import LedgerCallback
from search.runner.progress import Progress
from search.study.study_ledger import StudyLedger
from spaces import Network

__all__ = ["ListCallback", "ListSearcher"]


class ListSearcher(Searcher):
    """Suggests the given trials in order, and again those whose worker died."""

    def __init__(self, suggestions: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self._left = [dict(suggestion) for suggestion in suggestions]
        self._running: dict[str, dict[str, Any]] = {}
        self.retries = RetryPolicy()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next trial; None for now while others run, which may have to be run again; or `FINISHED`."""
        if not self._left:
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = self._left.pop(0)
        return self._running[trial_id]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing; with `error` the worker has died."""
        suggestion = self._running.pop(trial_id)
        if error and self.retries.should_retry(trial_id, suggestion):
            self._left.append(suggestion)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a stopped run goes on from the ledger."""


class ListCallback(LedgerCallback):
    """Records the rows and nothing else: the study's front, progress and models stay as they are."""

    def __init__(
        self,
        study: StudyLedger,
        network: Network,
        progress: Progress,
        *,
        wanted: int,
        ended: Mapping[str, int],
        retried: Container[str],
        ensure_held: Callable[[], None],
    ) -> None:
        super().__init__(study, network, wanted=wanted, ended=ended, retried=retried, ensure_held=ensure_held)
        self._progress = progress

    def write(self, row: TrialRow) -> None:
        """Append the row."""
        self.study.append(row)

    def publish(self, row: TrialRow | None) -> None:
        """Show an ended trial, or the progress."""
        self._progress.show(self.run_progress(), row)
