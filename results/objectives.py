"""Objectives by name.

Every study has a score, which it maximizes, under a name of its own (such as `val_miou`); in the ledger it is the
column `score`. Costs are columns of the ledger by their own names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from layers.errors import UsageError

__all__ = ["COSTS", "SCORE", "Objective", "init_name", "parse_objectives"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A column of the ledger that a search improves, what people call it, and which way is better."""

    name: str
    column: str
    direction: Literal["max", "min"]


SCORE = Objective(name="score", column="score", direction="max")
"""The score of any study, before its own name is known."""

COSTS = {
    name: Objective(name=name, column=name, direction="min")
    for name in ("size_bytes", "flops", "latency_ms", "latency_b64_ms", "parameters", "macs")
}
"""Costs by name."""


def parse_objectives(names: Sequence[str], *, score_name: str) -> tuple[Objective, ...]:
    """Return the objectives of these names, in this order.

    The score may be called `score` or by its own name. Raises `UsageError` unless there are at least two, each once,
    the score among them.
    """
    allowed = ", ".join([score_name, *COSTS])
    score = Objective(name=score_name, column=SCORE.column, direction="max")
    by_name = {SCORE.name: score, score_name: score, **COSTS}
    for name in names:
        if name not in by_name:
            raise UsageError(f"objective (={name!r}) must be one of {allowed}")
    parsed = tuple(by_name[name] for name in names)
    listed = ", ".join(names) or "none"
    if len(parsed) < 2 or len(set(parsed)) < len(parsed):
        raise UsageError(f"objectives (={listed}) must be at least two different ones of {allowed}")
    if score not in parsed:
        raise UsageError(f"objectives (={listed}) must include {score_name}: costs alone have no trade-off to search")
    return parsed


def init_name(score_name: str) -> str:
    """Return what the score before fine-tuning is called: `init_miou` for `val_miou`."""
    return f"init_{score_name.removeprefix('val_')}"
