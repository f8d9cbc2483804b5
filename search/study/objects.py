"""The network and the images of a study that its user holds, instead of their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layers.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from trainers.data.objects import ImageObjects

__all__ = ["NO_OBJECTS", "Objects"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """What cannot be read by name; nothing of it is written, so it is given again whenever it is needed."""

    model: nn.Module | None = None
    data: ImageObjects | None = None

    def or_else(self, other: Objects) -> Objects:
        """Return these, and those of another in place of what is missing."""
        return Objects(
            model=other.model if self.model is None else self.model, data=other.data if self.data is None else self.data
        )

    def check(self, *, model: str | None = None, data: str | None = None) -> None:
        """Raise `UsageError` unless they are the objects that these names stand for, and none for other names."""
        from spaces.models import describe_module
        from trainers.data.objects import describe_objects

        if model is not None:
            _check("model", None if self.model is None else describe_module(self.model), model)
        if data is not None:
            _check("data", None if self.data is None else describe_objects(self.data), data)


NO_OBJECTS = Objects()


def _check(kind: str, given: str | None, known: str) -> None:
    is_object = known.startswith("object:")
    if given == known or (given is None and not is_object):
        return
    if given is None:
        raise UsageError(f"the study was begun with the object {known!r}: give it again in Python, as {kind}")
    if is_object:
        raise UsageError(f"{kind} (={given!r}) must be the {known!r} that the study was begun with")
    raise UsageError(f"{kind} (={given!r}) must be left out: the study was begun with {known!r}")
