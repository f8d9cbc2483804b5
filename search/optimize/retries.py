"""How often a trial is begun: one whose worker or node died is suggested again, and goes on from its checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["RetryPolicy"]

_MOST = 3
"""A trial may be what kills its workers, by the memory that it takes."""


class RetryPolicy:
    """Ray Tune begins a trial again too, but not where its worker died between two trials; so it never does here."""

    def __init__(self) -> None:
        self._deaths = Counter[str]()
        self.begun_again: set[str] = set()
        """Ray Tune's ids of trials that ended with their worker and leave no row, for they are suggested again."""

    def should_retry(self, trial_id: str, suggestion: Mapping[str, Any]) -> bool:
        """Whether to suggest this again, whose worker has died."""
        self._deaths[suggestion["trial"]] += 1
        if self._deaths[suggestion["trial"]] < _MOST:
            self.begun_again.add(trial_id)
        return trial_id in self.begun_again
