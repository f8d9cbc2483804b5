"""The packed tensors of an ONNX file: one payload of bytes, decoded by few calls.

Tensors of one format stand together, so that a network of many layers is decoded at once and then split; but no more
than a million values, which bounds the memory that loading takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd, prod

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor

from layers.blockfloat.format import BlockFormat, ScaledFormat
from layers.blockfloat.pack import block_codes, pack_codes, scaled_codes
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
    shared: list[Tensor] = field(default_factory=list)
    """Exponents of blocks, or scales of filters."""
    whole: str = ""

    @property
    def values(self) -> int:
        return sum(codes.numel() for codes in self.codes)


@dataclass(frozen=True)
class _Numbers:
    """Whole numbers of so many bits, and the type in which they are asked for."""

    width: int
    to: int


@dataclass(frozen=True)
class _Blocks:
    """A format of block floating point, and how blocks lie in a tensor."""

    bits: int
    exponent_bits: int
    runs: tuple[int, ...]
    """Values in a block and beside each other; or all of the function `U`'s numbers, if last blocks are short."""


@dataclass(frozen=True)
class _Filters:
    """Whole numbers with a scale a filter, and how many a filter has."""

    bits: int
    length: int


class Payload:
    """Packed tensors, for which there are names before there are nodes."""

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph
        self._bytes = bytearray()
        self._groups: dict[_Numbers | _Blocks | _Filters, list[_Group]] = {}

    def numbers(self, codes: Tensor, width: int, *, to: int = TensorProto.FLOAT) -> str:
        """Take whole numbers below 2^width; return the name of those (n,) as an ONNX type."""
        return self._add(_Numbers(width, to), codes.flatten().long().cpu())

    def values(self, tensor: Tensor, form: BlockFormat | ScaledFormat, out: str = "") -> str:
        """Take a tensor in its format; return the name of its values (n,), `out` if that is given."""
        if isinstance(form, ScaledFormat):
            return self._add(_Filters(form.bits, tensor[0].numel()), *scaled_codes(tensor, form), out)
        outer, length, inner = form.runs(tensor.shape)
        runs: tuple[int, ...] = (form.block, inner)
        if length % form.block and (outer, inner) != (1, 1):
            runs = (outer, length, inner, form.block, -(-length // form.block))
        codes, exponents = block_codes(tensor, form)
        return self._add(_Blocks(form.bits, form.exponent_bits, runs), codes, exponents, out)

    def _add(
        self, kind: _Numbers | _Blocks | _Filters, codes: Tensor, shared: Tensor | None = None, out: str = ""
    ) -> str:
        groups = self._groups.setdefault(kind, [])
        alone = isinstance(kind, _Blocks) and len(kind.runs) > 2
        if not groups or alone or groups[-1].values + codes.numel() > _MOST_VALUES:
            groups.append(_Group())
        group, name = groups[-1], out or self._graph.name()
        group.names.append(name)
        group.codes.append(codes)
        if shared is not None:
            group.shared.append(shared)
        if isinstance(kind, _Blocks) and not alone and (missing := -codes.numel() % prod(kind.runs)):
            group.names.append(self._graph.name())  # zeros fill a tensor's last block, so that the next begins its own
            group.codes.append(codes.new_zeros(missing))
        return name

    def decode(self) -> None:
        """Add the bytes, and the nodes that decode them, before all nodes that were added."""
        later, self._graph.nodes = self._graph.nodes, []
        for kind, groups in self._groups.items():
            for group in groups:
                if isinstance(kind, _Numbers):
                    self._decode_numbers(kind, group)
                elif isinstance(kind, _Filters):
                    self._decode_filters(kind, group)
                else:
                    self._decode_values(kind, group)
        self._graph.nodes += later
        if self._bytes:
            self._graph.constant(np.frombuffer(bytes(self._bytes) + bytes(_SPARE_BYTES), np.uint8), PAYLOAD)

    def _decode_numbers(self, kind: _Numbers, group: _Group) -> None:
        inputs = [PAYLOAD, self._windows(kind.width), self._scalars(2**kind.width)]
        is_float = kind.to == TensorProto.FLOAT
        out = self._whole(group) if is_float else ""
        numbers = self._graph.call("whole_numbers", *inputs, out=out, i=self._pack(group.codes, kind.width))
        if not is_float:
            self._graph.node("Cast", numbers, out=self._whole(group), to=kind.to)
        self._split(group)

    def _decode_values(self, kind: _Blocks, group: _Group) -> None:
        extents = [*self._pack(group.shared, kind.exponent_bits), *self._pack(group.codes, 1 + kind.bits)]
        windows = [self._windows(width) for width in (1 + kind.bits, kind.exponent_bits)]
        place = -(1 << (kind.exponent_bits - 1)) - kind.bits + 1 - _LOWEST
        constants = self._scalars(2 ** (1 + kind.bits), 2**kind.bits, 2**kind.exponent_bits, place)
        powers = self._graph.constant(np.exp2(np.arange(_LOWEST, _HIGHEST + 1)).astype(np.float32))
        outs = self._graph.calls(
            "mantissas_and_scales", PAYLOAD, *windows, constants, powers, outs=self._graph.names(2), i=extents
        )
        function, runs = (
            ("scaled_blocks", [-1, *kind.runs]) if len(kind.runs) == 2 else ("scaled_uneven_blocks", [*kind.runs])
        )
        self._graph.call(function, *outs, out=self._whole(group), r=runs)
        self._split(group)

    def _decode_filters(self, kind: _Filters, group: _Group) -> None:
        constants = self._scalars(2 ** (1 + kind.bits), 2**kind.bits)
        extents = self._pack(group.codes, 1 + kind.bits)
        numbers = self._graph.call("signed_numbers", PAYLOAD, self._windows(1 + kind.bits), constants, i=extents)
        scales = self._graph.constant(torch.cat(group.shared).float().numpy())
        self._graph.call("scaled_blocks", numbers, scales, out=self._whole(group), r=[-1, kind.length, 1])
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
