"""What a training leaves at the end of an epoch, to go on from bit for bit: one safetensors file, written whole.

Tensors are named after what they belong to (`model/layer1.0.conv1.coefficients`, `optimizer/3.momentum_buffer`); the
metadata's one key, `overtone`, is JSON: the format's version, what identifies the training, and whatever else is plain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from layers.errors import OvertoneError, UsageError
from layers.files import atomic_write

__all__ = ["read_checkpoint", "write_checkpoint"]

_VERSION = 1


def write_checkpoint(path: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a state whose values are plain JSON, or tensors by name; all or nothing.

    The identity, plain JSON, is all that `read_checkpoint` will compare. Raises OvertoneError where the file cannot be
    written.
    """
    groups = {name: value for name, value in state.items() if _is_tensors(value)}
    plain = {name: value for name, value in state.items() if name not in groups}
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, group in groups.items()
        for key, tensor in group.items()
    }
    about = {"version": _VERSION, "identity": dict(identity), "groups": list(groups), "plain": plain}
    text = json.dumps(about)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda scratch: safetensors.torch.save_file(tensors, scratch, {"overtone": text}))
    except (OSError, safetensors.SafetensorError) as error:
        raise OvertoneError(f"The checkpoint cannot be written to {path}: {error}.") from error


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state that was written; UsageError where it belongs to another training, and names the first difference.

    Raises OvertoneError where the file is damaged or not a checkpoint.
    """
    try:
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})["overtone"])
        version, known, state = about["version"], dict(about["identity"]), dict(about["plain"])
        for name in about["groups"]:
            state[name] = {key.partition("/")[2]: v for key, v in tensors.items() if key.startswith(f"{name}/")}
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise OvertoneError(f"{path} is not a checkpoint that can be read; delete it to begin anew.") from error
    if version != _VERSION:
        raise OvertoneError(f"{path} is a checkpoint of version {version!r}, this Overtone reads {_VERSION}.")
    given = json.loads(json.dumps(dict(identity)))
    for name in {**given, **known}:  # a name that one of both has not tells them apart too
        if known.get(name) != given.get(name):
            raise UsageError(
                f"{path} is the checkpoint of a training with {name} {known.get(name)!r}, {given.get(name)!r} was "
                f"given; delete it to begin anew."
            )
    return state


def _is_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, torch.Tensor) for item in value.values())
