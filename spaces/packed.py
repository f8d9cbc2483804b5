"""Packed models: one safetensors file that holds a compressed network and says how to build it again.

The file's payload is one tensor, `packed`, of the bytes of `layers.pack`'s, exactly `size_bytes` long (until version 2
each had its own entry); its metadata has one key, `overtone`, with a JSON card: `version`, `model`, `classes`,
`channels`, `forms` and whatever the writer adds. `docs/packed-format.md` has
it all. Reading runs no code from the file, and takes memory in proportion to the file, whatever the file says.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from layers import (
    CompressedConv2d,
    LayerForm,
    OvertoneError,
    UsageError,
    compress_model,
    compressed_layers,
    join_state,
    pack_state,
    split_state,
    unpack_state,
)
from layers.files import atomic_write
from spaces.card import PACKED_VERSION, decode_card, decode_forms, encode_card
from spaces.meta_device import build_on_meta, convert_layers, materialize, packed_bytes
from spaces.models import is_factory

__all__ = ["PACKED_VERSION", "load_model", "read_card", "save_model"]


def save_model(model: nn.Module, path: str | Path, *, card: Mapping[str, Any]) -> None:
    """Write the compressed model with its card, all or nothing.

    The card names `model`, `classes` and `channels` as `build_model` takes them; the forms are read off the model.
    """
    path = Path(path)
    text = encode_card(card, {name: layer.form for name, layer in compressed_layers(model).items()})
    content = safetensors.torch.save({"packed": join_state(pack_state(model))}, {"overtone": text})
    try:
        atomic_write(path, lambda scratch: scratch.write_bytes(content))
    except OSError as error:
        raise OvertoneError(f"The packed model cannot be written to {path}: {error}.") from error


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a packed model, `forms` by layer whatever the version.

    Raises `OvertoneError` where the file is not a packed model, or is newer than this version reads.
    """
    return _read(path)[0]


def load_model(path: str | Path, *, factory: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The compressed network of a packed file, in eval mode, giving the predictions that were measured.

    A network that came from a user's own `package.module:factory` is built by `factory`, never by what the file says.
    Raises `OvertoneError` where the file is not a packed model or does not hold the network that it names.
    """
    card, tensors = _read(path)
    if factory is None and is_factory(card["model"]):
        raise UsageError(f"{path} holds the network {card['model']!r}: pass its factory to load_model.")
    with _sentences(path, "does not describe a network"):
        forms = decode_forms(card)
        if factory is None:
            model = _empty(card, forms, sum(tensor.nbytes for tensor in tensors.values()))
        else:
            model = compress_model(factory(classes=card["classes"], channels=card["channels"]), forms)
        packed = split_state(model, _only(tensors)) if card["version"] > 2 else tensors
        if factory is None:
            _check_indices(model, packed)
            materialize(model)
        unpack_state(model, packed)
        _check_kept(model)
    return model.eval()


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card, and the tensors as they lie in the file."""
    with _sentences(path, "is not a packed model of Overtone"):
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if "overtone" not in metadata:
                raise ValueError("its metadata have no card")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return decode_card(metadata["overtone"], most=8 * os.path.getsize(path)), tensors


def _only(tensors: Mapping[str, Tensor]) -> Tensor:
    """The one tensor of a file since version 3."""
    if tensors.keys() != {"packed"}:
        raise OvertoneError(f"its tensors are {', '.join(map(repr, tensors)) or 'none'}, and not 'packed' alone")
    return tensors["packed"]


def _empty(card: Mapping[str, Any], forms: Mapping[str, LayerForm], held: int) -> nn.Module:
    """The named network in its forms, still without memory; `OvertoneError` where it is not of as many bytes."""
    model = build_on_meta(card["model"], classes=card["classes"], channels=card["channels"])
    needed = packed_bytes(model, forms)
    if needed != held:
        raise OvertoneError(f"the network that its card describes takes {needed} bytes, its tensors have {held}")
    convert_layers(model, forms)
    return model


def _check_indices(model: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Indices that a network computes when it is built are never another's."""
    for name, value in model.state_dict().items():
        if value.dtype == torch.int64 and name in packed and not torch.equal(value, packed[name]):
            raise OvertoneError(f"the tensor {name!r} is not that of the network")


def _check_kept(model: nn.Module) -> None:
    for name, layer in compressed_layers(model).items():
        if not isinstance(layer, CompressedConv2d) or layer.template_mask is None:
            continue
        if int(layer.template_mask.sum()) != layer.form.templates:
            raise OvertoneError(f"{name!r} keeps {int(layer.template_mask.sum())} filters, not {layer.form.templates}")
        if layer.template_index is not None and (layer.template_index >= layer.form.templates).any():
            raise OvertoneError(
                f"{name!r} rebuilds a filter from template {int(layer.template_index.max())}, which it lacks"
            )


@contextlib.contextmanager
def _sentences(path: str | Path, what: str) -> Iterator[None]:
    """Whatever a file brings about as one sentence that names it."""
    try:
        yield
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
        *(MemoryError, OvertoneError, safetensors.SafetensorError),
    ) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 500, placeholder=" ...").rstrip(".")
        raise OvertoneError(f"{path} {what}: {reason}.") from error
