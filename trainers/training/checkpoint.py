"""The state of a training after an epoch, from which it continues bit for bit: one safetensors file, written whole.

Tensors are named after what they belong to (`model/layer1.0.conv1.coefficients`, `optimizer/3.momentum_buffer`); the
metadata's one key, `overtone`, is JSON: the file's format, the identity of the training, and all other plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from layers.errors import OvertoneError, UsageError, translate_errors
from layers.files import atomic_write

__all__ = ["read_checkpoint", "write_checkpoint"]

_FORMAT = 1


def write_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a state whose values are plain JSON, or tensors by name, all or nothing.

    The identity, plain JSON, is what `read_checkpoint` compares. Raises OvertoneError if the file cannot be written.
    """
    groups = {name: value for name, value in state.items() if _is_tensors(value)}
    plain = {name: value for name, value in state.items() if name not in groups}
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, group in groups.items()
        for key, tensor in group.items()
    }
    card = json.dumps({"format": _FORMAT, "identity": dict(identity), "groups": list(groups), "plain": plain})
    with translate_errors(f"cannot write the checkpoint {str(path)!r}", OSError, safetensors.SafetensorError):
        atomic_write(path, lambda scratch: safetensors.torch.save_file(tensors, scratch, {"overtone": card}))


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that was written; raise UsageError naming the first difference if the identity is another.

    Raises OvertoneError if the file is damaged or not a checkpoint.
    """
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            card = json.loads((file.metadata() or {})["overtone"])
        version = card["format"]
        stored = dict(card["identity"])
        state = dict(card["plain"])
        for name in card["groups"]:
            state[name] = {key.partition("/")[2]: v for key, v in tensors.items() if key.startswith(f"{name}/")}
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise OvertoneError(f"{str(path)!r} is not a readable checkpoint; delete it to start anew") from error
    if version != _FORMAT:
        raise OvertoneError(f"{str(path)!r} is a checkpoint of format {version!r}; this Overtone reads {_FORMAT}")
    expected = json.loads(json.dumps(dict(identity)))
    for name in {**expected, **stored}:  # a name that only one of them has is a difference too
        if stored.get(name) != expected.get(name):
            raise UsageError(
                f"{str(path)!r} is the checkpoint of a training with {name} {stored.get(name)!r}, not "
                f"{expected.get(name)!r}; delete it to start anew"
            )
    return state


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, torch.Tensor) for item in value.values())
