"""The packed state of a model: what the exported file holds, byte for byte what `layers.cost` counts.

A quantised tensor becomes two byte tensors, `NAME.mantissas` and `NAME.exponents` (`layers.blockfloat.pack`); indices,
such as the kept filters of a template layer, take as many bits each as they need, truth values one, most significant
first; all else stays as the state dict has it. Batch counters of norms are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from layers.blockfloat.format import BlockFormat
from layers.blockfloat.pack import pack_blocks, pack_codes, unpack_blocks, unpack_codes
from layers.compress import compressed_layers
from layers.errors import OvertoneError
from layers.form import stored_indices, stored_tensors

__all__ = ["pack_state", "unpack_state"]


def pack_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors to store, on the CPU. Their bytes add up to the cost model's `size_bytes`.

    Raises `OvertoneError` naming the first tensor that block floating point cannot hold.
    """
    quantised, widths, packed = _formats(model), _widths(model), {}
    for name, value in _kept_state(model).items():
        value = value.detach().cpu().contiguous()
        if name in quantised:
            try:
                packed[f"{name}.mantissas"], packed[f"{name}.exponents"] = pack_blocks(value, quantised[name])
            except OvertoneError as error:
                raise OvertoneError(f"The tensor {name!r} cannot be packed: {error}") from error
        elif name in widths or value.dtype == torch.bool:
            packed[name] = pack_codes(value.flatten().long(), widths.get(name, 1))
        else:
            packed[name] = value
    return packed


def unpack_state(model: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Fill a model, already in its compressed form, from packed tensors.

    Raises `OvertoneError` naming the first tensor that is missing, left over or of the wrong shape.
    """
    quantised, widths, state, left = _formats(model), _widths(model), {}, dict(packed)
    for name, value in _kept_state(model).items():
        if name in quantised:
            form = quantised[name]
            sizes = form.packed_bytes(value.shape)
            mantissas = _take(left, f"{name}.mantissas", torch.Size([sizes[0]]), torch.uint8)
            exponents = _take(left, f"{name}.exponents", torch.Size([sizes[1]]), torch.uint8)
            state[name] = unpack_blocks(mantissas, exponents, form, value.shape)
        elif name in widths or value.dtype == torch.bool:
            width = widths.get(name, 1)
            codes = _take(left, name, torch.Size([(width * value.numel() + 7) // 8]), torch.uint8)
            state[name] = unpack_codes(codes, width, value.numel()).view(value.shape).to(value.dtype)
        else:
            state[name] = _take(left, name, value.shape, value.dtype)
    if left:
        raise OvertoneError(f"The packed model holds a tensor that the network has not: {next(iter(left))!r}.")
    model.load_state_dict(state, strict=False)


def _formats(model: nn.Module) -> dict[str, BlockFormat]:
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


def _kept_state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def _take(left: dict[str, Tensor], name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if name not in left:
        raise OvertoneError(f"The packed model lacks the tensor {name!r}.")
    value = left.pop(name)
    if value.shape != shape or value.dtype != dtype:
        raise OvertoneError(
            f"The packed tensor {name!r} is {value.dtype} {tuple(value.shape)}, not {dtype} {tuple(shape)}."
        )
    return value
