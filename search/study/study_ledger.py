"""One study of a ledger, as a single value: what a search reads and writes under the study's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from results.ledger.ledger import Ledger
from results.objectives import Objective
from results.schema import TrialRow

__all__ = ["ONLY_SKETCHED", "StudyLedger", "checkpoint_name"]

ONLY_SKETCHED = "only_sketched"
"""Key of a study's record: whether nothing but sketches has begun it, so that its first search chooses how to train."""


def checkpoint_name(study: str, trial: str) -> str:
    """Return where in the store an unfinished trial is kept, and the packed model of one that has just ended."""
    return f"checkpoints/{study}/{trial}.safetensors"


@dataclass(frozen=True)
class StudyLedger:
    """A ledger and the name of one of its studies. Each method is the ledger's own, for that study."""

    ledger: Ledger
    name: str

    def exists(self) -> bool:
        """Return whether the ledger has a record of the study."""
        return self.name in self.ledger.studies()

    def others(self) -> list[StudyLedger]:
        """Return the other studies of the ledger."""
        return [StudyLedger(self.ledger, name) for name in self.ledger.studies() if name != self.name]

    def only_sketched(self) -> bool:
        """Return whether nothing but sketches has begun the study."""
        return bool(self.record().get(ONLY_SKETCHED))

    def create(self, record: Mapping[str, Any], rows: Sequence[TrialRow]) -> None:
        """Write the record of a new study, and its first rows."""
        self.ledger.create_study(self.name, record)
        if rows:
            self.ledger.append_many(rows)

    def begin(self, changes: Mapping[str, Any], rows: Sequence[TrialRow]) -> None:
        """Change keys of the record of a study that has no rows of trials, and write its first ones."""
        self.update(changes)
        if rows:
            self.ledger.append_many(rows)

    def record(self) -> dict[str, Any]:
        """Return the record of the study; raise `UsageError` if there is none."""
        return self.ledger.study(self.name)

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change keys of the record."""
        self.ledger.update_study(self.name, changes)

    def objectives(self) -> tuple[Objective, ...]:
        """Return what the study improves."""
        return self.ledger.objectives(self.name)

    def trials(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of the search's trials, by number, without repeats and sketches."""
        return self.ledger.trials(self.name, columns=columns)

    def repeats(self) -> pa.Table:
        """Return the rows of the trials that repeat another one with a new seed."""
        return self.ledger.repeats(self.name)

    def sketches(self) -> pa.Table:
        """Return the rows of the configs that were calibrated and measured, and never trained."""
        return self.ledger.sketches(self.name)

    def front(self) -> pa.Table:
        """Return the rows of the front."""
        return self.ledger.front(self.name)

    def write_front(self, members: pa.Table) -> None:
        """Keep the front beside the trials."""
        self.ledger.write_front(self.name, members)

    def append(self, row: TrialRow) -> None:
        """Make the row of a trial last."""
        self.ledger.append(row)

    def compact(self) -> None:
        """Merge the study's many small files into few."""
        self.ledger.compact(self.name)

    def read_progress(self) -> dict[str, Any]:
        """Return what the search last published of itself; empty if it never ran."""
        return self.ledger.read_progress(self.name) or {}

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Publish the search's progress, plain JSON data."""
        self.ledger.write_progress(self.name, progress)

    def adopt_model(self, trial: str, sha256: str) -> None:
        """Move the packed model that a trial left at its `checkpoint_name` among the models that are kept."""
        self.ledger.adopt_model(checkpoint_name(self.name, trial), sha256)

    def delete_checkpoint(self, trial: str) -> None:
        """Delete what a trial left at its `checkpoint_name`, if anything."""
        self.ledger.store.delete(checkpoint_name(self.name, trial))
