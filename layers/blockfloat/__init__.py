"""Block floating point: its formats, rounding to them on any device, and its bytes."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from layers.blockfloat.format import AXES, ROUNDINGS, Axis, BlockFormat, Rounding
    from layers.blockfloat.rounding import power_of_two, quantize
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "layers.blockfloat.format": ("AXES", "ROUNDINGS", "Axis", "BlockFormat", "Rounding"),
            "layers.blockfloat.rounding": ("power_of_two", "quantize"),
        },
    )

__all__ = ["AXES", "ROUNDINGS", "Axis", "BlockFormat", "Rounding", "power_of_two", "quantize"]
