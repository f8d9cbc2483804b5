"""Libraries of effects in the store, by what they were measured on: `effects/<key>.json`.

Every study of the same network, weights, data and start reads and extends the same library, whatever its blocks. The
file is replaced whole as effects are measured. Two studies that measure at the same time keep what either has found,
but for what both write at the same moment; that is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from layers.errors import OvertoneError, UsageError, translate_errors
from results.ledger.store import Store
from spaces.effects import Effect, Effects
from spaces.identity import network_difference

__all__ = ["EffectsLibrary"]

_FORMAT = 2
"""Of the file, and of how effects are measured: libraries of another format are other libraries."""
_IDENTITY = ("weights_sha256", "data_fingerprint", "init", "saliency", "minimum_templates", "seed")
"""Keys of a study's record that effects depend on, besides what the network computes."""


@dataclass(frozen=True)
class EffectsLibrary:
    """The library that a study's effects belong to."""

    store: Store
    record: Mapping[str, Any]
    """The study's record."""

    @property
    def name(self) -> str:
        """The file's name in the store."""
        known = [self.record.get(name) for name in _IDENTITY]
        meaning = [_FORMAT, self._network.get("structure_sha256"), *known]
        return f"effects/{hashlib.sha256(json.dumps(meaning).encode()).hexdigest()}.json"

    @property
    def _network(self) -> Mapping[str, Any]:
        return self.record.get("network") or {}

    def read(self) -> tuple[Effects, dict[str, Any]] | None:
        """Return the library, and what was noted with it; None if nothing was measured.

        Raises `UsageError` if it was measured on another network, other weights or data, or with other settings, and
        `OvertoneError` if it cannot be read.
        """
        if not self.store.exists(self.name):
            return None
        path = self.store.path_of(self.name)
        with translate_errors(f"{path!r} is no effects library", ValueError, KeyError, TypeError, AttributeError):
            content = json.loads(self.store.read_bytes(self.name))
            found, notes = content["measured_on"], content["notes"]
            try:
                effects = Effects.from_json(content["effects"])
            except UsageError as error:
                raise OvertoneError(f"{path!r} is no effects library: {error}") from error
        differing = [name for name in _IDENTITY if found.get(name) != self.record.get(name)]
        part = network_difference(found.get("network"), self._network)
        if differing or part:
            what = differing[0] if differing else f"network ({part})"
            raise UsageError(
                f"effects library {path!r} must be of the study's own network and data: its {what} differs"
            )
        return effects, notes

    def write(self, effects: Effects, notes: Mapping[str, Any]) -> Effects:
        """Keep these effects, and those that others have written meanwhile; return both.

        `notes` are plain JSON data about the library.
        """
        known = self.read()
        merged = effects if known is None else _merged(effects, known[0])
        measured_on = {**{name: self.record.get(name) for name in _IDENTITY}, "network": dict(self._network)}
        content = {"effects": merged.to_json(), "measured_on": measured_on, "notes": dict(notes)}
        self.store.write_bytes(self.name, json.dumps(content, allow_nan=False).encode())
        return merged


def _merged(effects: Effects, known: Effects) -> Effects:
    """Return a library with the known effects behind its own; none of the known ones if they are of other images."""
    if replace(known, effects=(), reference_s=0.0) != replace(effects, effects=(), reference_s=0.0):
        return effects
    own = {_pair(effect) for effect in effects.effects}
    return replace(effects, effects=(*effects.effects, *(e for e in known.effects if _pair(e) not in own)))


def _pair(effect: Effect) -> tuple[Any, ...]:
    return effect.block, effect.config
