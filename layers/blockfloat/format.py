"""The formats that tensors are held in: their widths, which values share an exponent or scale, their size in bytes.

And the ways to round to one, by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from layers.errors import UsageError

__all__ = ["AXES", "ROUNDINGS", "SCALES", "Axis", "BlockFormat", "Rounding", "Scale", "ScaledFormat"]

Axis = Literal["flat", "filter", "channel"]
AXES: tuple[Axis, ...] = ("flat", "filter", "channel")
Rounding = Literal["nearest", "stochastic"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")
Scale = Literal["bfloat16"]
SCALES: tuple[Scale, ...] = ("bfloat16",)


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """How a tensor is held in block floating point."""

    bits: int
    """Mantissa bits, 1..16, sign not counted."""
    block: int = 1
    """Values that share an exponent, 1..128."""
    exponent_bits: int = 7
    """Bits of a shared exponent, 2..7."""
    axis: Axis = "flat"
    """What blocks are cut from: the flattened tensor, each filter (dim 0), or the channels (dim 1) of each filter at
    each tap; of activations, the channels of each image at each pixel. The last block of each may be short."""

    parts: ClassVar[tuple[str, str]] = ("mantissas", "exponents")
    """What a tensor is packed to."""

    def __post_init__(self) -> None:
        for name, low, high in (("bits", 1, 16), ("block", 1, 128), ("exponent_bits", 2, 7)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise UsageError(f"{name} (={value!r}) must be a whole number from {low} to {high}")
        if self.axis not in AXES:
            raise UsageError(f"axis (={self.axis!r}) must be one of {', '.join(AXES)}")

    @property
    def lowest(self) -> int:
        """The smallest shared exponent; the largest is -lowest - 1."""
        return -(1 << (self.exponent_bits - 1))

    def runs(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return (outer, length, inner): a contiguous tensor of this shape, viewed so, has blocks along `length`.

        Two axes that cut the same blocks give the same runs. Raises `UsageError` if the tensor has no second dimension
        and the axis is not `flat`.
        """
        if self.axis != "flat" and len(shape) < 2:
            raise UsageError(f"axis (={self.axis!r}) must be flat for a tensor of the shape {tuple(shape)}")
        if self.axis == "flat" or self.block == 1:
            return 1, prod(shape), 1
        across = 2 if self.axis == "channel" else len(shape)
        length, inner = prod(shape[1:across]), prod(shape[across:])
        return (1, prod(shape), 1) if inner == 1 and length % self.block == 0 else (shape[0], length, inner)

    def packed_bytes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the bytes of a tensor's packed mantissas with signs, and of its shared exponents."""
        outer, length, inner = self.runs(shape)
        exponents = outer * -(-length // self.block) * inner
        return (prod(shape) * (1 + self.bits) + 7) // 8, (exponents * self.exponent_bits + 7) // 8


@dataclass(frozen=True, kw_only=True)
class ScaledFormat:
    """How a tensor is held as whole numbers, with a bfloat16 scale for each index of its first dimension, a filter."""

    bits: int
    """Bits of a magnitude, 2..7, sign not counted: 3 are integers of 4 bits, 7 of 8."""

    parts: ClassVar[tuple[str, str]] = ("mantissas", "scales")
    """What a tensor is packed to."""

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 7:
            raise UsageError(f"bits (={self.bits!r}) must be a whole number from 2 to 7 with a scale")

    @property
    def highest(self) -> int:
        """The largest magnitude, 2^bits - 1."""
        return (1 << self.bits) - 1

    def packed_bytes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the bytes of a tensor's packed magnitudes with signs, and of its scales."""
        return (prod(shape) * (1 + self.bits) + 7) // 8, 2 * shape[0]
