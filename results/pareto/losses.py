"""The one place where every objective becomes lower-is-better."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.objectives import Objective

__all__ = ["losses"]


def losses(table: pa.Table, objectives: Sequence[Objective]) -> npt.NDArray[np.float64]:
    """Return the objectives of a table as float64 (rows, objectives), lower is better, null as NaN."""
    columns = [_floats(table, objective.column) for objective in objectives]
    signs = [-1.0 if objective.direction == "max" else 1.0 for objective in objectives]
    return np.column_stack(columns) * np.array(signs)


def _floats(table: pa.Table, column: str) -> npt.NDArray[np.float64]:
    values = pc.fill_null(table.column(column).cast(pa.float64()), float("nan"))
    return np.asarray(values.to_numpy(), dtype=np.float64)
