"""Where weights and data of a study are now, if they have moved since it was begun: their content counts, not the path.

Nothing of it is written. The record keeps the places that it was begun with, which hold for others who share the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from layers.errors import OvertoneError, UsageError
from search.study.plan import StudyPlan
from trainers.data.spec import DataSpec

__all__ = ["RECORDED", "Places"]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where weights and data are, instead of where the record says."""

    weights: str | None = None
    """A file, or torchvision's name of weights."""
    data: str | DataSpec | None = None
    """The set's name with its folder of now, or only that folder."""

    def of_plan(self, plan: StudyPlan) -> StudyPlan:
        """Return the plan with its weights and data where they are now."""
        return replace(plan, weights=self.of_weights(plan.weights), data=self.of_data(plan.data))

    def of_weights(self, recorded: str) -> str:
        """Return where the weights are."""
        if self.weights is None:
            return recorded
        return str(Path(self.weights).resolve()) if Path(self.weights).exists() else self.weights

    def of_data(self, recorded: DataSpec) -> DataSpec:
        """Return the recorded data where they are now; raise `UsageError` if the place is that of other data."""
        if self.data is None:
            return recorded
        if recorded.is_object:
            raise UsageError(
                f"data (={self.data!r}) must be the object {recorded.name!r} that the study was begun with, in Python"
            )
        given = self.data.name if isinstance(self.data, DataSpec) else self.data
        if isinstance(self.data, DataSpec):
            if replace(self.data, name=recorded.name, data_dir=recorded.data_dir) != recorded:
                raise UsageError(f"data (={self.data!r}) must have the settings that the study was begun with")
            here = replace(recorded, name=given, data_dir=self.data.data_dir)
        elif given == recorded.kind or given.startswith(f"{recorded.kind}:"):
            here = replace(recorded, name=given)
        elif recorded.folder:
            here = replace(recorded, name=f"{recorded.kind}:{given}")
        else:
            here = replace(recorded, data_dir=given)
        if here.kind != recorded.kind:
            raise UsageError(f"data (={given!r}) must be where {recorded.name!r} is now, {recorded.kind}:DIR")
        return here.absolute()

    @contextmanager
    def hinted(self, weights: str, data: DataSpec) -> Iterator[None]:
        """Name the way to say where they are if the block fails and what was recorded is not there any more."""
        try:
            yield
        except OvertoneError as error:
            hints = []
            if self.weights is None and os.path.isabs(weights) and not os.path.exists(weights):
                hints.append("--weights (in Python weights=) says where the weights are now")
            if self.data is None and data.folder and not os.path.exists(data.folder):
                hints.append("--data (in Python data=) says where the data are now")
            if not hints:
                raise
            raise type(error)(f"{error}; {' and '.join(hints)}") from error


RECORDED = Places()
