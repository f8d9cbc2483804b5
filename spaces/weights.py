"""Weights of uncompressed networks: reading, fitting, naming by content."""

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
from layers.files import atomic_write
from spaces.models import without_auxiliary

__all__ = ["load_weights", "save_weights", "state_sha256"]


_WITHIN = ("state_dict", "model_state_dict", "model")
"""Where the state dict is in the checkpoints that trainings leave."""
_WRAPPERS = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, source: str, *, name: str) -> None:
    """Fill the model called `name` from a safetensors file, a state dict (loaded without pickle's code; also one within
    a training's checkpoint, or of a network in data parallelism), or a torchvision weight name such as `IMAGENET1K_V1`.

    Raises `UsageError` where the file is missing or does not fit, naming the first tensor at fault, and
    `OvertoneError` where it cannot be read or downloaded.
    """
    state = _read_file(Path(source)) if Path(source).is_file() else _read_torchvision(name, source)
    state = without_auxiliary(name, _unwrapped(state, model))
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    for key, value in wanted.items():
        if key not in state:
            raise UsageError(f"weights (={source!r}) do not fit the model {name!r}: they lack {key!r}.")
        if state[key].shape != value.shape:
            given, needed = tuple(state[key].shape), tuple(value.shape)
            raise UsageError(f"weights (={source!r}) do not fit the model {name!r}: {key!r} is {given}, not {needed}.")
    for key in state:
        if key not in model.state_dict():
            raise UsageError(f"weights (={source!r}) do not fit the model {name!r}, which has no {key!r}.")
    model.load_state_dict(state, strict=False)


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the model's state dict as safetensors, all or nothing; equal states and metadata give equal files."""
    path = Path(path)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    content = safetensors.torch.save(state, {"overtone": json.dumps(dict(metadata))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda scratch: scratch.write_bytes(content))
    except OSError as error:
        raise OvertoneError(f"Weights cannot be written to {path}: {error}.") from error


def state_sha256(model: nn.Module) -> str:
    """Content hash of all parameters and buffers, independent of the file that they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OvertoneError(
            f"Weights cannot be read from {path}: it holds more than a state dict of tensors."
        ) from error
    except Exception as error:  # torch.load raises anything at all on a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise OvertoneError(f"Weights cannot be read from {path}: {reason}") from error
    for name in _WITHIN:
        state = state[name] if isinstance(state, dict) and isinstance(state.get(name), dict) else state
    dense = isinstance(state, dict) and all(isinstance(v, Tensor) and v.layout == torch.strided for v in state.values())
    if not dense:
        raise UsageError(f"weights (={str(path)!r}) must be a state dict, a mapping of names to dense tensors.")
    return state


def _unwrapped(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state without what data parallelism and `torch.compile`, in any order, put before all names."""
    own = model.state_dict()
    while not any(key in own for key in state):
        prefix = next((p for p in _WRAPPERS if state and all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_torchvision(name: str, source: str) -> dict[str, Tensor]:
    import torchvision  # slow to import, and most commands do without

    try:
        weights = torchvision.models.get_model_weights(name)[source]
    except (KeyError, ValueError):
        raise UsageError(f"weights (={source!r}) must be a file or one of torchvision's names for {name!r}.") from None
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise OvertoneError(f"Weights {source!r} of {name!r} cannot be downloaded: {error}.") from error
    return state
