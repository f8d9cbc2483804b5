"""A network block by block, as short text for people: `layer1: cosine 2x3, 50 % templates, G=2, 8 bits`.

`cosine 2x3 per filter` spends as many coefficients as 2x3 for each filter where they buy most in a layer;
`8 bits in blocks of 16 of a filter, inputs in blocks of 32` says how many values share an exponent, and cut from what.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["block_records", "format_block", "format_network"]

_ROUNDING = ("bits", "exponent_block", "exponent_axis", "activation_block")
_PLAIN = ("allocation", "pruning_rate", "groups", "transform", *_ROUNDING)


def block_records(config: Mapping[str, Any], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A `NetworkConfig`'s JSON as the ledger's column `blocks`: one record a block, null where nothing is done.

    `names` are all blocks of the network, in order; without them only the blocks that the config names are recorded.
    """
    blocks = config.get("blocks", {})
    return [_record(name, blocks.get(name, {})) for name in dict.fromkeys([*(names or ()), *blocks])]


def format_network(blocks: Sequence[Mapping[str, Any]], separator: str = "; ") -> str:
    """All blocks of a ledger row (its `blocks` column), first to last; templates are the share that is kept."""
    texts = [format_block(block) for block in blocks]
    return separator.join(texts) if any(not text.endswith("uncompressed") for text in texts) else "uncompressed"


def format_block(block: Mapping[str, Any]) -> str:
    """One block; a knob that is null is left out, a block without any is `uncompressed`."""
    parts = (_basis(block), _templates(block), _groups(block), _bits(block))
    return f"{block['block']}: {', '.join(part for part in parts if part) or 'uncompressed'}"


def _record(name: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    y, x = knobs.get("harmonics") or (None, None)
    plain = {key: knobs.get(key) for key in _PLAIN}
    return {"block": name, "basis": knobs.get("basis"), "harmonics_y": y, "harmonics_x": x, **plain}


def _basis(block: Mapping[str, Any]) -> str:
    if block.get("basis") is None:
        return ""
    allocation = block.get("allocation")
    spent = "" if allocation is None else f" per {allocation}"
    return f"{block['basis']} {int(block['harmonics_y'])}x{int(block['harmonics_x'])}{spent}"


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
    bits, shared, inputs = block.get("bits"), block.get("exponent_block"), block.get("activation_block")
    if bits is None:
        return ""
    cut = {"filter": " of a filter", "channel": " of a filter's channels"}.get(block.get("exponent_axis") or "", "")
    weights = "" if shared is None else f" in blocks of {int(shared)}{cut}"
    return f"{int(bits)} bits{weights}" + ("" if inputs is None else f", inputs in blocks of {int(inputs)}")
