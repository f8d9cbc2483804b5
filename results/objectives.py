"""Objectives by name, and the one place where every objective is turned into lower-is-better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import UsageError

__all__ = ["OBJECTIVES", "Objective", "losses", "parse_objectives"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A column of the ledger that a search improves, and which way is better."""

    name: str
    direction: Literal["max", "min"]


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective(name="val_top1", direction="max"),
        Objective(name="size_bytes", direction="min"),
        Objective(name="flops", direction="min"),
        Objective(name="latency_ms", direction="min"),
        Objective(name="latency_b64_ms", direction="min"),
        Objective(name="parameters", direction="min"),
        Objective(name="macs", direction="min"),
    )
}


def parse_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """The known objectives of these names, in this order; at least two, each once, val_top1 among them."""
    allowed = ", ".join(OBJECTIVES)
    for name in names:
        if name not in OBJECTIVES:
            raise UsageError(f"objective {name!r} is unknown; allowed are {allowed}")
    given = ", ".join(names) or "none"
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"objectives (={given}) must be at least two different ones of {allowed}")
    if "val_top1" not in names:
        raise UsageError(f"objectives (={given}) must include val_top1: costs alone have no trade-off to search")
    return tuple(OBJECTIVES[name] for name in names)


def losses(table: pa.Table, objectives: Sequence[Objective]) -> npt.NDArray[np.float64]:
    """The objectives of a table as float64 (rows, objectives), lower is better, null as NaN."""
    columns = [_floats(table, objective.name) for objective in objectives]
    signs = [-1.0 if objective.direction == "max" else 1.0 for objective in objectives]
    return np.column_stack(columns) * np.array(signs)


def _floats(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    column = pc.fill_null(table.column(name).cast(pa.float64()), float("nan"))
    return np.asarray(column.to_numpy(), dtype=np.float64)
