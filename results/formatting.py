"""Figures as people read them: kB of 1,000 bytes, MFLOPs, percent."""

from collections.abc import Mapping
from typing import Any

from layers.errors import UsageError

__all__ = ["cost_axis", "format_metrics", "percent", "unit_name"]

_AXES = {
    "size_bytes": ("size (kB)", 1e3),
    "flops": ("compute (MFLOPs)", 1e6),
    "macs": ("compute (million multiply-accumulates)", 1e6),
    "parameters": ("parameters (thousands)", 1e3),
    "latency_ms": ("latency at batch 1 (ms)", 1.0),
    "latency_b64_ms": ("latency at batch 64 (ms)", 1.0),
}
_SHORT = {
    "size_bytes": "kB",
    "flops": "MFLOPs",
    "macs": "million MACs",
    "parameters": "thousand parameters",
    "latency_ms": "ms",
    "latency_b64_ms": "ms for 64",
}


def cost_axis(cost: str) -> tuple[str, float]:
    """An axis's title, and how much of the ledger's unit one of the axis's units is."""
    if cost not in _AXES:
        raise UsageError(f"cost {cost!r} is unknown; allowed are {', '.join(_AXES)}")
    return _AXES[cost]


def unit_name(cost: str) -> str:
    """The axis's unit as it follows a number: `kB`, `MFLOPs`, `ms`, `ms for 64` (images)."""
    cost_axis(cost)
    return _SHORT[cost]


def percent(fraction: float | None) -> str:
    """`92.31 %`, or a dash where nothing was measured."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def format_metrics(row: Mapping[str, Any]) -> str:
    """Accuracy, size, compute and latencies of a row in one short line; what is not known is left out."""
    parts = []
    if row.get("val_top1") is not None:
        parts.append(percent(row["val_top1"]))
    if row.get("size_bytes") is not None:
        parts.append(f"{row['size_bytes'] / 1e3:,.1f} kB")
    if row.get("flops") is not None:
        parts.append(f"{row['flops'] / 1e6:,.2f} MFLOPs")
    for name in ("latency_ms", "latency_b64_ms"):
        if row.get(name) is not None:
            parts.append(f"{row[name]:.3g} {_SHORT[name]}")
    return " · ".join(parts)
