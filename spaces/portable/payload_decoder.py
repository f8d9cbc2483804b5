"""The packed bytes of a network as tensors, by plain operators: a few for all tensors of one kind, fewer for each.

A program that holds their graph is therefore short, and loads fast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.blockfloat.format import BlockFormat, ScaledFormat
from layers.blockfloat.reference import cut_blocks, join_blocks
from layers.blockfloat.rounding import power_of_two
from layers.pack import PackedTensor, packed_tensors

__all__ = ["PayloadDecoder"]


@dataclass(frozen=True)
class _Numbers:
    """Packed numbers of so many bits, and what they stand for: mantissas with a sign, steps, or themselves."""

    width: int
    format: BlockFormat | ScaledFormat | None = None
    steps: bool = False

    def values(self, rows: Tensor) -> Tensor:
        """Return what the numbers in rows (R, width) of bytes stand for, (8 R,)."""
        codes = _codes(rows)
        if self.format is None:
            return codes
        bits = self.format.bits
        if self.steps:
            assert isinstance(self.format, BlockFormat)
            return power_of_two(torch.arange(1 << self.width) + (self.format.lowest - bits + 1))[codes]
        magnitudes = torch.arange(1 << bits)
        return torch.cat([magnitudes, -magnitudes]).float()[codes]


class PayloadDecoder:
    """Decodes the payload of a model, (`size_bytes`,) uint8, to the state that it stands for."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = packed_tensors(model)
        parts = {part: kind for name, tensor in self._tensors.items() for part, kind in tensor.parts(name).items()}
        self._bytes = {part: parts[part][0].numel() * parts[part][1].itemsize for part in sorted(parts)}

    def decode(self, payload: Tensor) -> dict[str, Tensor]:
        """Return the state by name."""
        pieces = dict(zip(self._bytes, payload.split([*self._bytes.values()]), strict=True))
        values = self._numbers(pieces) | self._plain(pieces) | self._scales(pieces)
        return {name: _tensor(name, tensor, values) for name, tensor in self._tensors.items()}

    def _numbers(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of packed numbers, in whole rows of bytes and so up to seven too many."""
        kinds: dict[_Numbers, list[str]] = defaultdict(list)
        for name, tensor in self._tensors.items():
            if isinstance(form := tensor.format, ScaledFormat):
                kinds[_Numbers(1 + form.bits, form)].append(f"{name}.mantissas")
            elif form is not None:
                alike = BlockFormat(bits=form.bits, exponent_bits=form.exponent_bits)
                kinds[_Numbers(1 + form.bits, alike)].append(f"{name}.mantissas")
                kinds[_Numbers(form.exponent_bits, alike, steps=True)].append(f"{name}.exponents")
            elif tensor.width is not None:
                kinds[_Numbers(tensor.width)].append(name)
        values: dict[str, Tensor] = {}
        for kind, parts in kinds.items():
            rows = [_padded(pieces[part], kind.width) for part in parts]
            joined = kind.values(torch.cat(rows).view(-1, kind.width))
            values.update(_split(joined, parts, [8 * len(row) // kind.width for row in rows]))
        return values

    def _scales(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scales (N,) of whole numbers."""
        parts = [f"{name}.scales" for name, tensor in self._tensors.items() if isinstance(tensor.format, ScaledFormat)]
        return {part: pieces[part].clone().view(torch.bfloat16).float() for part in parts}

    def _plain(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of tensors that are stored as they are."""
        plain = {name: tensor for name, tensor in self._tensors.items() if tensor.format is None and not tensor.width}
        values: dict[str, Tensor] = {}
        for dtype in {tensor.dtype for tensor in plain.values()}:
            names = [name for name, tensor in plain.items() if tensor.dtype == dtype]
            joined = torch.cat([pieces[name] for name in names]).view(dtype)
            values.update(_split(joined, names, [plain[name].shape.numel() for name in names]))
        return values


def _codes(rows: Tensor) -> Tensor:
    """Return the numbers (8 R,) in rows (R, w) of bytes: w bits each, at most 17, so that three bytes hold one."""
    width = rows.shape[1]
    first = torch.arange(8) * width
    place = torch.arange(3)
    window = (first[:, None] // 8 + place).clamp(max=width - 1)
    joined = (rows[:, window].int() << (16 - 8 * place).int()).sum(-1)
    return ((joined >> (24 - width - first % 8)) & ((1 << width) - 1)).flatten()


def _tensor(name: str, stored: PackedTensor, values: Mapping[str, Tensor]) -> Tensor:
    if (form := stored.format) is None:
        shaped = _shaped(values[name], stored.shape)
        return shaped if stored.width is None else shaped.to(stored.dtype)
    if isinstance(form, ScaledFormat):
        scales = values[f"{name}.scales"].view(-1, *[1] * (len(stored.shape) - 1))
        return _shaped(values[f"{name}.mantissas"], stored.shape) * scales
    whole, steps = values[f"{name}.mantissas"], values[f"{name}.exponents"]
    if form.block == 1:
        return _shaped(whole * steps, stored.shape)
    outer, length, inner = form.runs(stored.shape)
    blocks = -(-length // form.block)
    steps = _shaped(steps, (outer, blocks, 1, inner))
    if length % form.block == 0:
        return (_shaped(whole, (outer, blocks, form.block, inner)) * steps).view(stored.shape)
    return join_blocks(cut_blocks(_shaped(whole, stored.shape), form) * steps, stored.shape, form)


def _padded(piece: Tensor, width: int) -> Tensor:
    """Return the bytes with zeros up to a whole number of rows."""
    missing = -len(piece) % width
    return F.pad(piece, (0, missing)) if missing else piece


def _split(joined: Tensor, names: Sequence[str], sizes: Sequence[int]) -> Iterable[tuple[str, Tensor]]:
    return zip(names, joined.split([*sizes]), strict=True)


def _shaped(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return as many of the values (n,) as the shape has, in this shape, by no operator if they have it."""
    count = torch.Size(shape).numel()
    values = values if len(values) == count else values[:count]
    return values if values.shape == torch.Size(shape) else values.view(*shape)
