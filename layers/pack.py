"""The packed state of a model: what the exported file holds, byte for byte what `layers.cost` counts.

A quantised tensor becomes two byte tensors, `NAME.mantissas` and `NAME.exponents` (`layers.blockfloat`); truth values,
such as the kept filters of a template layer, become one bit each, most significant first; all else stays as the state
dict has it. Batch counters of norms are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from layers.blockfloat import BlockFormat, pack_blocks, unpack_blocks
from layers.compress import compressed_layers
from layers.errors import OvertoneError
from layers.form import stored_tensors

__all__ = ["pack_state", "unpack_state"]


def pack_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors to store, on the CPU. Their bytes add up to the cost model's `size_bytes`.

    Raises `OvertoneError` naming the first tensor that block floating point cannot hold.
    """
    quantised, packed = _formats(model), {}
    for name, value in _kept_state(model).items():
        value = value.detach().cpu().contiguous()
        if name in quantised:
            try:
                packed[f"{name}.mantissas"], packed[f"{name}.exponents"] = pack_blocks(value, quantised[name])
            except OvertoneError as error:
                raise OvertoneError(f"The tensor {name!r} cannot be packed: {error}") from error
        elif value.dtype == torch.bool:
            packed[name] = torch.from_numpy(np.packbits(value.numpy()))
        else:
            packed[name] = value
    return packed


def unpack_state(model: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Fill a model, already in its compressed form, from packed tensors.

    Raises `OvertoneError` naming the first tensor that is missing, left over or of the wrong shape.
    """
    quantised, state, left = _formats(model), {}, dict(packed)
    for name, value in _kept_state(model).items():
        if name in quantised:
            form = quantised[name]
            sizes = form.packed_bytes(value.numel())
            mantissas = _take(left, f"{name}.mantissas", torch.Size([sizes[0]]), torch.uint8)
            exponents = _take(left, f"{name}.exponents", torch.Size([sizes[1]]), torch.uint8)
            state[name] = unpack_blocks(mantissas, exponents, form, value.shape)
        elif value.dtype == torch.bool:
            bits = _take(left, name, torch.Size([(value.numel() + 7) // 8]), torch.uint8)
            flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=value.numel()).astype(bool))
            state[name] = flat.view(value.shape)
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
