"""Sets of objectives, and a row's values of them as a slow oracle of fronts takes them."""

import math
from collections.abc import Sequence

from results.schema import TrialRow

SETS = [
    ["val_top1", "size_bytes"],
    ["flops", "val_top1", "size_bytes"],
    ["val_top1", "size_bytes", "latency_ms", "macs"],
]


def costs(row: TrialRow, names: Sequence[str]) -> list[float] | None:
    """Return the values of `names`, lower is better, or None where the row takes no part."""
    values = [row["score" if name == "val_top1" else name] for name in names]
    if row["status"] != "finished" or any(value is None or not math.isfinite(value) for value in values):
        return None
    return [-value if name == "val_top1" else value for name, value in zip(names, values, strict=True)]
