"""The packed tensors of an ONNX file: one payload of bytes, decoded by few calls.

Tensors of one format stand together, so that a network of many layers is decoded at once and then split; but no more
than a million values, which bounds the memory that loading takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd

import numpy as np
import torch
from onnx import helper
from torch import Tensor

from layers.blockfloat.format import BlockFormat
from layers.blockfloat.pack import block_codes, pack_codes
from spaces.portable.graph import GraphBuilder
from spaces.portable.skeleton import PAYLOAD

__all__ = ["Payload"]

_SPARE_BYTES = 17
"""A decoder reads whole rows of bytes, of at most as many as a number has bits, and so beyond a tensor's end."""
_LOWEST, _HIGHEST = -79, 63
"""Exponents of the steps that a number in block floating point can have."""
_MOST_VALUES = 1 << 20


@dataclass
class _Group:
    """Tensors that are decoded together."""

    names: list[str] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)
    exponents: list[Tensor] = field(default_factory=list)
    whole: str = ""

    @property
    def values(self) -> int:
        return sum(codes.numel() for codes in self.codes)


@dataclass(frozen=True)
class _Blocks:
    """A format of block floating point, and how blocks lie in a tensor."""

    bits: int
    exponent_bits: int
    runs: tuple[int, ...]
    """Values in a block and beside each other; or all of the function `U`'s numbers, if last blocks are short."""


class Payload:
    """Packed tensors, for which there are names before there are nodes."""

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph
        self._bytes = bytearray()
        self._groups: dict[int | _Blocks, list[_Group]] = {}

    def numbers(self, codes: Tensor, width: int) -> str:
        """Take whole numbers below 2^width; return the name of those (n,) as float32."""
        return self._add(width, codes.flatten().long().cpu())

    def values(self, tensor: Tensor, form: BlockFormat, out: str = "") -> str:
        """Take a tensor in block floating point; return the name of its values (n,), `out` if that is given."""
        outer, length, inner = form.runs(tensor.shape)
        runs: tuple[int, ...] = (form.block, inner)
        if length % form.block:
            runs = (outer, length, inner, form.block, -(-length // form.block))
        codes, exponents = block_codes(tensor, form)
        return self._add(_Blocks(form.bits, form.exponent_bits, runs), codes, exponents, out)

    def _add(self, kind: int | _Blocks, codes: Tensor, exponents: Tensor | None = None, out: str = "") -> str:
        groups = self._groups.setdefault(kind, [])
        alone = isinstance(kind, _Blocks) and len(kind.runs) > 2
        if not groups or alone or groups[-1].values + codes.numel() > _MOST_VALUES:
            groups.append(_Group())
        group, name = groups[-1], out or self._graph.name()
        group.names.append(name)
        group.codes.append(codes)
        if exponents is not None:
            group.exponents.append(exponents)
        return name

    def decode(self) -> None:
        """Add the bytes, and the nodes that decode them, before all nodes that were added."""
        later, self._graph.nodes = self._graph.nodes, []
        for kind, groups in self._groups.items():
            for group in groups:
                if isinstance(kind, int):
                    self._decode_numbers(kind, group)
                else:
                    self._decode_values(kind, group)
        self._graph.nodes += later
        if self._bytes:
            self._graph.constant(np.frombuffer(bytes(self._bytes) + bytes(_SPARE_BYTES), np.uint8), PAYLOAD)

    def _decode_numbers(self, width: int, group: _Group) -> None:
        inputs = [PAYLOAD, self._windows(width), self._scalars(2**width)]
        self._graph.call("I", *inputs, out=self._whole(group), i=self._pack(group.codes, width))
        self._split(group)

    def _decode_values(self, kind: _Blocks, group: _Group) -> None:
        extents = [*self._pack(group.exponents, kind.exponent_bits), *self._pack(group.codes, 1 + kind.bits)]
        windows = [self._windows(width) for width in (1 + kind.bits, kind.exponent_bits)]
        place = -(1 << (kind.exponent_bits - 1)) - kind.bits + 1 - _LOWEST
        constants = self._scalars(2 ** (1 + kind.bits), 2**kind.bits, 2**kind.exponent_bits, place)
        powers = self._graph.constant(np.exp2(np.arange(_LOWEST, _HIGHEST + 1)).astype(np.float32))
        outs = self._graph.calls("M", PAYLOAD, *windows, constants, powers, outs=self._graph.names(2), i=extents)
        function, runs = ("B", [-1, *kind.runs]) if len(kind.runs) == 2 else ("U", [*kind.runs])
        self._graph.call(function, *outs, out=self._whole(group), r=runs)
        self._split(group)

    def _whole(self, group: _Group) -> str:
        """Return the name of a group's values, those of a single tensor or of several."""
        group.whole = group.names[0] if len(group.names) == 1 else self._graph.name()
        return group.whole

    def _split(self, group: _Group) -> None:
        """Split the values of several tensors."""
        if len(group.names) > 1:
            sizes = self._graph.constant(np.array([codes.numel() for codes in group.codes], np.int64))
            self._graph.nodes.append(helper.make_node("Split", [group.whole, sizes], group.names))

    def _pack(self, codes: Iterable[Tensor], width: int) -> list[int]:
        """Add numbers; return begin and end of the whole rows of bytes that hold them, and their count."""
        joined = torch.cat(list(codes))
        begin, row = len(self._bytes), width // gcd(width, 8)
        self._bytes += pack_codes(joined, width).numpy().tobytes()
        return [begin, begin + row * -(-joined.numel() * gcd(width, 8) // 8), joined.numel()]

    def _windows(self, width: int) -> str:
        """Return what a row of bytes is multiplied with, (bytes, numbers): it puts each number's last bit at 1.

        A number is at most 17 bits in three bytes; these are exact in float32, whatever the order of additions.
        """
        count, size = 8 // gcd(width, 8), width // gcd(width, 8)
        windows = np.zeros((size, count), np.float32)
        for number in range(count):
            end = (number + 1) * width
            for byte in range(number * width // 8, -(-end // 8)):
                windows[byte, number] = 2.0 ** (end - 8 * (byte + 1))
        return self._graph.constant(windows)

    def _scalars(self, *values: float) -> str:
        return self._graph.constant(np.array(values, np.float32))
