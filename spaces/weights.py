"""Weights of uncompressed networks: reading, writing, and their identity by content."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError
from layers.errors import translate_errors
from layers.files import atomic_write
from spaces.models import without_auxiliary

__all__ = ["load_weights", "save_weights", "state_sha256"]

_STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints of a training hold the state dict."""
_PREFIXES = ("module.", "_orig_mod.")
"""What data parallelism and `torch.compile` put before all names."""


def load_weights(model: nn.Module, source: str, *, name: str) -> None:
    """Fill the model called `name` from a file or from a torchvision weight name such as `IMAGENET1K_V1`.

    The file is safetensors or a state dict, which is loaded without pickle's code; it may be part of a training's
    checkpoint, or come from a network in data parallelism. Raises `UsageError` if the file is missing or does not fit,
    naming the first tensor at fault, and `OvertoneError` if it cannot be read or downloaded.
    """
    state = _read_file(Path(source)) if Path(source).is_file() else _read_torchvision(name, source)
    state = without_auxiliary(name, _without_prefixes(state, model))
    misfit = f"weights {source!r} do not fit the model {name!r}"
    own = model.state_dict()
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in state:
            raise UsageError(f"{misfit}: they lack {key!r}")
        if state[key].shape != value.shape:
            raise UsageError(f"{misfit}: {key!r} is {tuple(state[key].shape)}, not {tuple(value.shape)}")
    for key in state:
        if key not in own:
            raise UsageError(f"{misfit}, which has no {key!r}")
    model.load_state_dict(state, strict=False)


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the model's state dict as safetensors, all or nothing; equal states and metadata give equal files.

    Raises `OvertoneError` if the file cannot be written.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = safetensors.torch.save(state, {"overtone": json.dumps(dict(metadata))})
    with translate_errors(f"cannot write weights to {str(path)!r}", OSError):
        atomic_write(Path(path), content)


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, independent of the file that they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_file(path: Path) -> dict[str, Tensor]:
    failure = f"cannot read weights from {str(path)!r}"
    with translate_errors(failure, Exception):  # torch.load raises anything at all on a damaged file
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise OvertoneError(f"{failure}: it holds more than a state dict of tensors") from error
    for name in _STATE_KEYS:
        state = state[name] if isinstance(state, dict) and isinstance(state.get(name), dict) else state
    dense = isinstance(state, dict) and all(isinstance(v, Tensor) and v.layout == torch.strided for v in state.values())
    if not dense:
        raise UsageError(f"weights (={str(path)!r}) must be a state dict, a mapping of names to dense tensors")
    return state


def _without_prefixes(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the state without the prefixes that all names have, in any order, but the model's do not."""
    own = model.state_dict()
    while not any(key in own for key in state):
        prefix = next((p for p in _PREFIXES if state and all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_torchvision(name: str, source: str) -> dict[str, Tensor]:
    import torchvision  # slow to import, and most commands do without

    try:
        weights = torchvision.models.get_model_weights(name)[source]
    except (KeyError, ValueError):
        raise UsageError(f"weights (={source!r}) must be a file or one of torchvision's names for {name!r}") from None
    with translate_errors(f"cannot download the weights {source!r} of {name!r}", OSError):
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return state
