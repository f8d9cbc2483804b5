"""The packed state of a model: what the exported file holds, byte for byte what `layers.cost` counts.

A quantized tensor becomes two byte tensors, `NAME.mantissas` and `NAME.exponents` or `.scales`
(`layers.blockfloat.pack`). Whole
numbers (`layers.form.stored_indices`) take as many bits each as they need, truth values one, most significant first.
All else stays as the state dict has it. Batch counters of norms are left out. A file has them joined, in the order of
their names: names and shapes follow from the network and its forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layers.blockfloat.format import BlockFormat, ScaledFormat
from layers.blockfloat.pack import pack_codes, pack_values, unpack_codes, unpack_values
from layers.compress import compressed_layers
from layers.errors import OvertoneError
from layers.form import stored_indices, stored_tensors
from layers.integer.network import IntegerNetwork, int8_layers

__all__ = ["PackedTensor", "join_state", "pack_state", "packed_tensors", "split_state", "unpack_state"]


@dataclass(frozen=True)
class PackedTensor:
    """How a tensor of a network's state is stored."""

    shape: torch.Size
    dtype: torch.dtype
    format: BlockFormat | ScaledFormat | None = None
    """Of few bits: it is two tensors, its name with each of the format's `parts`."""
    width: int | None = None
    """Bits of each whole number."""

    def parts(self, name: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return shape and type of each tensor that the file has of it, by name."""
        if self.format is not None:
            sizes = self.format.packed_bytes(self.shape)
            kinds = zip(self.format.parts, sizes, strict=True)
            return {f"{name}.{kind}": (torch.Size([size]), torch.uint8) for kind, size in kinds}
        if self.width is not None:
            return {name: (torch.Size([(self.width * self.shape.numel() + 7) // 8]), torch.uint8)}
        return {name: (self.shape, self.dtype)}


def packed_tensors(model: nn.Module) -> dict[str, PackedTensor]:
    """Return how each tensor of the state is stored, in the state's order."""
    formats, widths = _formats(model), _widths(model)
    return {
        name: PackedTensor(
            value.shape, value.dtype, formats.get(name), 1 if value.dtype == torch.bool else widths.get(name)
        )
        for name, value in _stored_state(model).items()
    }


def pack_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to store, on the CPU. Their bytes add up to the cost model's `size_bytes`.

    Raises `OvertoneError` naming the first tensor that its format cannot hold.
    """
    state = _stored_state(model)
    packed: dict[str, Tensor] = {}
    for name, stored in packed_tensors(model).items():
        value = state[name].detach().cpu().contiguous()
        if stored.format is not None:
            try:
                parts = pack_values(value, stored.format)
            except OvertoneError as error:
                raise OvertoneError(f"cannot pack the tensor {name!r}: {error}") from error
            packed |= {f"{name}.{part}": content for part, content in zip(stored.format.parts, parts, strict=True)}
        elif stored.width is not None:
            packed[name] = pack_codes(value.flatten().long(), stored.width)
        else:
            packed[name] = value
    return packed


def unpack_state(model: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Fill a model, already in its compressed form, from packed tensors.

    Raises `OvertoneError` naming the first tensor that is missing, left over or of the wrong shape.
    """
    layout = _layout(model)
    for name, (shape, dtype) in layout.items():
        if name not in packed:
            raise OvertoneError(f"the packed model lacks the tensor {name!r}")
        value = packed[name]
        if value.shape != shape or value.dtype != dtype:
            raise OvertoneError(
                f"the packed tensor {name!r} is {value.dtype} {tuple(value.shape)}, not {dtype} {tuple(shape)}"
            )
    if extra := next((name for name in packed if name not in layout), None):
        raise OvertoneError(f"the packed model holds the tensor {extra!r}, which the network lacks")
    state = {}
    for name, stored in packed_tensors(model).items():
        if stored.format is not None:
            first, second = (packed[f"{name}.{part}"] for part in stored.format.parts)
            try:
                state[name] = unpack_values((first, second), stored.format, stored.shape)
            except OvertoneError as error:
                raise OvertoneError(f"cannot unpack the tensor {name!r}: {error}") from error
        elif stored.width is not None:
            codes = unpack_codes(packed[name], stored.width, stored.shape.numel())
            state[name] = codes.view(stored.shape).to(stored.dtype)
        else:
            state[name] = packed[name]
    model.load_state_dict(state, strict=False)


def join_state(packed: Mapping[str, Tensor]) -> Tensor:
    """Join the bytes of packed tensors, in the order of their names: (`size_bytes`,) uint8."""
    parts = [packed[name].flatten().view(torch.uint8) for name in sorted(packed)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def split_state(model: nn.Module, joined: Tensor) -> dict[str, Tensor]:
    """Return the packed tensors of a model, already in its compressed form, from their joined bytes.

    Raises `OvertoneError` unless there are as many bytes as the model has.
    """
    layout = _layout(model)
    packed = {}
    end = 0
    needed = sum(shape.numel() * dtype.itemsize for shape, dtype in layout.values())
    if joined.shape != (needed,) or joined.dtype != torch.uint8:
        raise OvertoneError(f"the packed model must be {needed} bytes, not {joined.dtype} {tuple(joined.shape)}")
    for name in sorted(layout):
        shape, dtype = layout[name]
        begin, end = end, end + shape.numel() * dtype.itemsize
        packed[name] = joined[begin:end].clone().view(dtype).view(shape)  # a clone begins where any type may
    return packed


def _layout(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and type of each tensor of the file."""
    parts = (stored.parts(name) for name, stored in packed_tensors(model).items())
    return {name: part for some in parts for name, part in some.items()}


def _formats(model: nn.Module) -> dict[str, BlockFormat | ScaledFormat]:
    return {
        f"{layer}.{name}": tensor.format
        for layer, module in compressed_layers(model).items()
        for name, tensor in stored_tensors(module.shape, module.form).items()
        if tensor.format is not None
    }


def _widths(model: nn.Module) -> dict[str, int]:
    return {
        f"{layer}.{name}": indices.bits
        for layer, module in compressed_layers(model).items()
        for name, indices in stored_indices(module.shape, module.form).items()
    }


def _stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state without norms' batch counters, what filters have until they are pruned, and activations' grids.

    The grids are in the card.
    """
    unstored = (".num_batches_tracked", ".residuals.values")
    grids = {f"{name}.input_grid" for name in int8_layers(model)}
    grids |= {"activation_grids"} if isinstance(model, IntegerNetwork) else set()
    state = {name: value for name, value in model.state_dict().items() if name not in grids}
    return {name: value for name, value in state.items() if not f".{name}".endswith(unstored)}
