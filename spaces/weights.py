"""Weights of uncompressed networks: reading, writing, and their identity by content."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import pathlib
import pickle
import re
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError
from layers.errors import translate_errors
from layers.files import atomic_write
from spaces.models import without_auxiliary
from spaces.weights_source import split_weights

__all__ = ["load_weights", "recorded_normalization", "save_weights", "state_sha256", "weights_transforms"]

_IGNORED = ("n_averaged",)
"""What `torch.optim.swa_utils.AveragedModel` counts beside its network's tensors."""
_NAMED = 6
"""Names that a message repeats."""


def load_weights(model: nn.Module, source: str, *, name: str) -> None:
    """Fill the model called `name` from a file or from a torchvision weight name such as `IMAGENET1K_V1`.

    The file is safetensors or a checkpoint of torch, which is loaded without pickle's code. The weights may lie
    anywhere in its mappings, under a prefix (`module.`, `model.`); `FILE#KEY` says which are meant where several fit.
    Raises `UsageError` if the file is missing or does not fit, naming the first tensor at fault, and `OvertoneError` if
    it cannot be read or downloaded.
    """
    file, key = split_weights(source)
    own = model.state_dict()
    if file is None:
        views = [_View(label="", tensors=_read_torchvision(name, source), others=())]
    else:
        content = _read_file(file)
        held = (_listed(content) or "nothing") if isinstance(content, Mapping) else type(content).__name__
        views = _named(_views(content, own), key, source, held)
    views = [replace(view, tensors=without_auxiliary(name, view.tensors)) for view in views]
    misfits = [_misfit(view, own, named=view.label == key) for view in views]
    complete = [view for view, misfit in zip(views, misfits, strict=True) if not misfit or misfit.fits]
    if len(complete) > 1 and not all(_equal(view, complete[0], own) for view in complete[1:]):
        raise UsageError(
            f"weights (={source!r}) must say which network of the file is meant, as FILE#KEY: "
            f"{_listed(view.label for view in complete)}"
        )
    fitting = [view for view, misfit in zip(views, misfits, strict=True) if not misfit]
    if not fitting:
        best = max(range(len(views)), key=lambda index: views[index].known(own))
        raise UsageError(
            f"weights {source!r} do not fit the model {name!r}{misfits[best]}{_contents(views, best, own)}"
        )
    model.load_state_dict(fitting[0].tensors, strict=False)


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


@dataclass(frozen=True, kw_only=True)
class _View:
    """Tensors of a file that could be the weights: those of a mapping whose names have one prefix, without it."""

    label: str
    """Keys of the mappings, and the prefix, joined by dots."""
    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    """Names of the mapping's tensors that have another prefix."""

    def known(self, own: Mapping[str, Tensor]) -> int:
        """Return how many names are the model's."""
        return sum(name in own for name in self.tensors)


@dataclass(frozen=True)
class _Misfit:
    """Why tensors are not the model's weights."""

    reason: str
    fits: bool = False
    """Whether all of the model's tensors are there, beside others."""

    def __str__(self) -> str:
        return self.reason


def _misfit(view: _View, own: Mapping[str, Tensor], *, named: bool) -> _Misfit | None:
    """Return the first reason why the view is not the model's weights; a view that was named may have neighbors."""
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in view.tensors:
            return _Misfit(f": they lack {key!r}")
        found = view.tensors[key]
        if found.shape != value.shape:
            return _Misfit(f": {key!r} is {tuple(found.shape)}, not {tuple(value.shape)}")
        if found.is_floating_point() != value.is_floating_point():
            kinds = (str(tensor.dtype).removeprefix("torch.") for tensor in (found, value))
            return _Misfit(": {!r} is {}, not {}, as in a quantized checkpoint".format(key, *kinds))
    extra = next((key for key in view.tensors if key not in own), None)
    if extra is None and not named:
        extra = next((key for key in view.others if key not in _IGNORED), None)
    return None if extra is None else _Misfit(f", which has no {extra!r}", fits=True)


def _equal(view: _View, other: _View, own: Mapping[str, Tensor]) -> bool:
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    return all(torch.equal(view.tensors[name], other.tensors[name]) for name in names)


def _contents(views: list[_View], best: int, own: Mapping[str, Tensor]) -> str:
    """Return what to add about the file's contents: which mappings it has, or which tensors if none is the model's."""
    labels = list(dict.fromkeys(view.label for view in views if view.label and view.known(own)))
    if views[best].others and views[best].known(own):
        return f"; FILE#{views[best].label} takes {views[best].label!r} alone"
    if not views[best].known(own):
        return f"; they are {_listed(views[best].tensors)}"
    return f"; the file has {_listed(labels)}, of which FILE#KEY takes one" if len(labels) > 1 else ""


def _listed(names: Iterable[object]) -> str:
    found = [repr(name) for name in names]
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")


def _read_file(path: Path) -> Any:
    """Return what the file holds; its first bytes say what kind of file it is, not its name."""
    failure = f"cannot read weights from {str(path)!r}"
    with translate_errors(failure, Exception):  # torch.load raises anything at all on a damaged file
        if _is_safetensors(path):
            return safetensors.torch.load_file(path)
        try:
            with torch.serialization.safe_globals(_harmless_types()), open(path, "rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            more = f"an object of {found[1]}, whose code is not run" if found else "more than a state dict of tensors"
            raise OvertoneError(f"{failure}: it holds {more}") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether the file begins as safetensors do: with the length of a JSON object, and that object."""
    with open(path, "rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return brace == b"{" and 2 <= length <= path.stat().st_size - 8


@cache
def _harmless_types() -> list[Any]:
    """Return the types of plain data, none of which runs code or opens anything, that trainings put beside weights."""
    numbers = [np.dtype, *(getattr(np.dtypes, name) for name in _NUMPY_NUMBERS)]
    scalar = np.float64(0).__reduce__()[0]
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    paths = [
        (getattr(pathlib, f"Pure{system}Path"), f"{module}.{kind}{system}Path")
        for system in ("Posix", "Windows")
        for kind in ("", "Pure")
        for module in ("pathlib", "pathlib._local")
    ]
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    return [argparse.Namespace, types.SimpleNamespace, *numbers, *scalars, *paths, *times]


_NUMPY_NUMBERS = (
    *("BoolDType", "Int8DType", "Int16DType", "Int32DType", "Int64DType", "UInt8DType", "UInt16DType", "UInt32DType"),
    *("UInt64DType", "Float16DType", "Float32DType", "Float64DType", "StrDType", "BytesDType"),
)


def _views(content: Any, own: Mapping[str, Tensor]) -> list[_View]:
    """Return the views of all mappings that hold dense tensors: one for each prefix before names of the model's."""
    views = []
    for label, tensors in _mappings(content, ""):
        prefixes: Counter[str] = Counter()
        for name in tensors:
            parts = name.split(".")
            ends = (".".join(parts[first:]) for first in range(len(parts)))
            prefixes.update(name.removesuffix(end) for end in ends if end in own)
        if "" in prefixes or not prefixes:
            prefixes = Counter([""])  # names as they are go first: a model may hold another of the same names
        most = max(prefixes.values())
        for prefix in (prefix for prefix, count in prefixes.items() if count == most):
            inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            others = tuple(name for name in tensors if not name.startswith(prefix))
            joined = ".".join(part for part in (label, prefix.rstrip(".")) if part)
            views.append(_View(label=joined, tensors=inside, others=others))
    return views


def _mappings(content: Any, label: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the dense tensors of each mapping within the content that has any, with its keys joined by dots."""
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if _is_dense(value)}
    if tensors:
        yield label, tensors
    for key, value in named.items():
        yield from _mappings(value, f"{label}.{key}" if label else key)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _named(views: list[_View], key: str, source: str, held: str) -> list[_View]:
    """Return the views that the key means, all without one."""
    if not views:
        raise UsageError(
            f"weights (={source!r}) must be a state dict, a mapping of names to dense tensors; it holds {held}"
        )
    chosen = [view for view in views if not key or view.label == key or view.label.startswith(f"{key}.")]
    if not chosen:
        labels = _listed(dict.fromkeys(view.label for view in views if view.label)) or "none"
        raise UsageError(f"weights (={source!r}) must name a key of the file, which has {labels}")
    return chosen


def weights_transforms(name: str, source: str) -> dict[str, Any]:
    """Return how torchvision prepares images for weights of its own of the model `name`, {} for any other weights.

    Keys are `mean` and `std` (by channel), `image_size` of the center crop, `resize_size` of the shorter side before
    it, and `interpolation`.
    """
    if split_weights(source)[0] is not None:
        return {}
    import torchvision  # slow to import, and most commands do without

    try:
        transforms = torchvision.models.get_model_weights(name)[source].transforms()
    except (KeyError, ValueError):
        return {}
    return {
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "image_size": transforms.crop_size[0],
        "resize_size": transforms.resize_size[0],
        "interpolation": transforms.interpolation.value,
    }


def recorded_normalization(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation by channel that a file of `save_weights` says it was trained with, None if it does not.

    They are the texts `mean` and `std` of its metadata, JSON lists.
    """
    file, _ = split_weights(source)
    try:
        with safetensors.safe_open(str(file), framework="pt") as opened:
            written = json.loads((opened.metadata() or {})["overtone"])
        mean, std = (tuple(map(float, json.loads(written[name]))) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OSError, safetensors.SafetensorError):
        return None
    return mean, std


def _read_torchvision(name: str, source: str) -> dict[str, Tensor]:
    import torchvision  # slow to import, and most commands do without

    try:
        weights = torchvision.models.get_model_weights(name)[source]
    except (KeyError, ValueError):
        raise UsageError(f"weights (={source!r}) must be a file or one of torchvision's names for {name!r}") from None
    with translate_errors(f"cannot download the weights {source!r} of {name!r}", OSError):
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return state
