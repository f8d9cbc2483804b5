"""Packed models: one safetensors file that holds a compressed network and says how to build it again.

The file's payload is `layers.pack`'s tensors, exactly `size_bytes` long; its metadata has one key, `overtone`, with a
JSON card: `version`, `model`, `classes`, `channels`, `forms` (the form of each compressed layer) and whatever the
writer adds. Reading runs no code from the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from layers import LayerForm, OvertoneError, UsageError, compress_model, compressed_layers, pack_state, unpack_state
from spaces.models import build_model, is_factory

__all__ = ["PACKED_VERSION", "load_model", "read_card", "save_model"]

PACKED_VERSION = 1
_REQUIRED = ("version", "model", "classes", "channels", "forms")


def save_model(model: nn.Module, path: str | Path, *, card: Mapping[str, Any]) -> None:
    """Write the compressed model with its card, all or nothing.

    The card names `model`, `classes` and `channels` as `build_model` takes them; the forms are read off the model.
    """
    path = Path(path)
    forms = {name: _plain(layer.form) for name, layer in compressed_layers(model).items()}
    text = json.dumps({**card, "version": PACKED_VERSION, "forms": forms})
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors.torch.save_file(pack_state(model), scratch, {"overtone": text})
        os.replace(scratch, path)
    except (OSError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise OvertoneError(f"The packed model cannot be written to {path}: {error}.") from error


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a packed model; `OvertoneError` where the file is not one, or is newer than this version reads."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        card = json.loads(metadata["overtone"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise OvertoneError(f"{path} is not a packed model of Overtone: {error}.") from error
    if isinstance(card, dict) and card.get("version", PACKED_VERSION) != PACKED_VERSION:
        raise OvertoneError(f"{path} has version {card['version']!r}, this Overtone reads {PACKED_VERSION}.")
    if not isinstance(card, dict) or any(key not in card for key in _REQUIRED):
        raise OvertoneError(f"{path} is not a packed model of Overtone: its card lacks one of {', '.join(_REQUIRED)}.")
    return card


def load_model(path: str | Path, *, factory: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The compressed network of a packed file, in eval mode, giving the predictions that were measured.

    A network that came from a user's own `package.module:factory` is built by `factory`, never by what the file says.
    """
    card = read_card(path)
    try:
        if factory is None and is_factory(card["model"]):
            raise UsageError(f"{path} holds the network {card['model']!r}: pass its factory to load_model.")
        build = factory or (lambda **kwargs: build_model(card["model"], **kwargs))
        forms = {name: _form(form) for name, form in card["forms"].items()}
        model = compress_model(build(classes=card["classes"], channels=card["channels"]), forms)
        unpack_state(model, safetensors.torch.load_file(path))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, OvertoneError):
            raise
        raise OvertoneError(f"{path} does not describe a network: {error}.") from error
    return model.eval()


def _plain(form: LayerForm) -> dict[str, Any]:
    """The form without what is at its default."""
    default = dataclasses.asdict(LayerForm())
    return {name: value for name, value in dataclasses.asdict(form).items() if value != default[name]}


def _form(data: Mapping[str, Any]) -> LayerForm:
    harmonics = data.get("harmonics")
    return LayerForm(**{**data, "harmonics": None if harmonics is None else tuple(harmonics)})
