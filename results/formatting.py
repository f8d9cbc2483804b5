"""Numbers and networks as short text for people.

Units are kB of 1,000 bytes, MB, MFLOPs and percent. A network is written block by block, such as
`layer1: cosine 2x3, 50 % templates, G=2, 8 bits`. `cosine 2x3 per filter` spends as many coefficients as 2x3 for each
filter where they help most within a layer. `8 bits in blocks of 16 of a filter, inputs in blocks of 32` tells how many
values share an exponent, and what the blocks are cut from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from layers.errors import UsageError

__all__ = [
    "cost_axis",
    "format_block",
    "format_duration",
    "format_flops",
    "format_kilobytes",
    "format_megabytes",
    "format_metrics",
    "format_network",
    "format_place",
    "percent",
    "unit_name",
]

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
    """Return the title of a cost's axis, and the size of the axis's unit in the ledger's unit."""
    if cost not in _AXES:
        raise UsageError(f"cost (={cost!r}) must be one of {', '.join(_AXES)}")
    return _AXES[cost]


def unit_name(cost: str) -> str:
    """Return the axis's unit as it follows a number: `kB`, `MFLOPs`, `ms`, `ms for 64` (images)."""
    cost_axis(cost)
    return _SHORT[cost]


def percent(fraction: float | None) -> str:
    """Return `92.31 %`, or a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def format_kilobytes(size: float, number: str = ",.1f") -> str:
    """Return bytes as kB of 1,000; `number` is the format of the figure."""
    return f"{size / 1e3:{number}} kB"


def format_megabytes(size: float) -> str:
    """Return bytes as MB of 1,000,000, from 1,000 MB on as GB."""
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.1f} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


def format_flops(flops: float, number: str = ",.2f") -> str:
    """Return floating-point operations in millions; `number` is the format of the figure."""
    return f"{flops / 1e6:{number}} MFLOPs"


def format_metrics(row: Mapping[str, Any]) -> str:
    """Return score, size, compute and latencies of a row in one short line, without those that are unknown."""
    parts = []
    if row.get("score") is not None:
        parts.append(percent(row["score"]))
    if row.get("size_bytes") is not None:
        parts.append(format_kilobytes(row["size_bytes"]))
    if row.get("flops") is not None:
        parts.append(format_flops(row["flops"]))
    for name in ("latency_ms", "latency_b64_ms"):
        if row.get(name) is not None:
            parts.append(f"{row[name]:.3g} {_SHORT[name]}")
    return " · ".join(parts)


def format_network(blocks: Sequence[Mapping[str, Any]], separator: str = "; ") -> str:
    """Return all blocks of a ledger row (its column `blocks`), first to last; templates as the share that is kept."""
    texts = [format_block(block) for block in blocks]
    return separator.join(texts) if any(not text.endswith("uncompressed") for text in texts) else "uncompressed"


def format_place(runtime: str, threads: int | None, device: str) -> str:
    """Return where a latency was taken: `onnxruntime on AMD EPYC, 1 thread`."""
    count = "" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}"
    return f"{runtime} on {device}{count}"


def format_duration(seconds: float) -> str:
    """Return seconds as 42 s, 3 min 05 s or 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_block(block: Mapping[str, Any]) -> str:
    """Return one block without the knobs that are null; a block without any knob is `uncompressed`."""
    parts = (_basis(block), _templates(block), _groups(block), _bits(block), _activations(block), _arithmetic(block))
    return f"{block['block']}: {', '.join(part for part in parts if part) or 'uncompressed'}"


def _basis(block: Mapping[str, Any]) -> str:
    if block.get("basis") is None:
        return ""
    allocation = block.get("allocation")
    unit = "" if allocation is None else f" per {allocation}"
    return f"{block['basis']} {int(block['harmonics_y'])}x{int(block['harmonics_x'])}{unit}"


def _templates(block: Mapping[str, Any]) -> str:
    rate, transform = block.get("pruning_rate"), block.get("transform")
    if rate is None:
        return ""
    kind = "" if transform in (None, "scalar") else f" ({transform})"
    return f"{100 * (1 - rate):.3g} % templates{kind}"


def _groups(block: Mapping[str, Any]) -> str:
    groups = block.get("groups")
    return "" if groups is None or groups == 1 else f"G={int(groups)}"


def _bits(block: Mapping[str, Any]) -> str:
    bits, shared = block.get("bits"), block.get("exponent_block")
    if bits is None:
        return ""
    cut = {"filter": " of a filter", "channel": " of a filter's channels"}.get(block.get("exponent_axis") or "", "")
    weights = "" if shared is None else f" in blocks of {int(shared)}{cut}"
    scale = block.get("scale")
    return f"{int(bits)} bits{weights}" + ("" if scale is None else f" with {scale} scales")


def _activations(block: Mapping[str, Any]) -> str:
    bits, shared = block.get("activation_bits"), block.get("activation_block")
    if bits is None:
        return ""
    return f"inputs in {int(bits)} bits" + ("" if shared is None else f" in blocks of {int(shared)}")


def _arithmetic(block: Mapping[str, Any]) -> str:
    arithmetic = block.get("arithmetic")
    return "" if arithmetic in (None, "float") else f"runs in {arithmetic}"
