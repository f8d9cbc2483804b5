"""How often a trial is run: one whose worker or node died is suggested again, and goes on from its checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["RetryPolicy"]

_MOST = 3
"""Runs of one trial: the trial itself may kill its workers, by the memory that it takes."""


class RetryPolicy:
    """Decides which trials are suggested again.

    Ray Tune can run a trial again too, but not if its worker died between two trials; so it never does here.
    """

    def __init__(self) -> None:
        self._deaths = Counter[str]()
        self.retried: set[str] = set()
        """Ray Tune's ids of trials whose worker died and that leave no row, for they are suggested again."""

    def should_retry(self, trial_id: str, suggestion: Mapping[str, Any]) -> bool:
        """Return whether to suggest this again, now that its worker has died."""
        self._deaths[suggestion["trial"]] += 1
        if self._deaths[suggestion["trial"]] < _MOST:
            self.retried.add(trial_id)
        return trial_id in self.retried
