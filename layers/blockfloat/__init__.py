"""Block floating point, and whole numbers with a scale: formats, rounding to them on any device, and their bytes."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from layers.blockfloat.format import AXES, ROUNDINGS, SCALES, Axis, BlockFormat, Rounding, Scale, ScaledFormat
    from layers.blockfloat.rounding import power_of_two, quantize
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "layers.blockfloat.format": (
                "AXES",
                "ROUNDINGS",
                "SCALES",
                "Axis",
                "BlockFormat",
                "Rounding",
                "Scale",
                "ScaledFormat",
            ),
            "layers.blockfloat.rounding": ("power_of_two", "quantize"),
        },
    )

__all__ = [
    "AXES",
    "ROUNDINGS",
    "SCALES",
    "Axis",
    "BlockFormat",
    "Rounding",
    "Scale",
    "ScaledFormat",
    "power_of_two",
    "quantize",
]
