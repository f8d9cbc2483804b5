"""Block floating point: its formats, rounding to them on any device, and its bytes."""

from layers.blockfloat.format import AXES, Axis, BlockFormat
from layers.blockfloat.rounding import ROUNDINGS, Rounding, power_of_two, quantize

__all__ = ["AXES", "ROUNDINGS", "Axis", "BlockFormat", "Rounding", "power_of_two", "quantize"]
