"""Packed models: one safetensors file that holds a compressed network and says how to build it again.

The payload is one tensor, `packed`: the bytes of `layers.pack`'s tensors, exactly `size_bytes` of them. The metadata
have one key, `overtone`, with a JSON card: `format`, `model`, `classes`, `channels`, `forms` and whatever the writer
adds. `docs/packed-format.md` describes it all. Reading runs no code from the file, and takes memory in proportion to
the file, whatever the file says.
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
from layers.errors import first_line, translate_errors
from layers.files import atomic_write
from spaces.activations import check_activations, describe_activations, restore_activations
from spaces.card import PACKED_FORMAT, decode_card, decode_forms, encode_card
from spaces.meta_device import build_on_meta, convert_layers, materialize, packed_bytes
from spaces.models import copy_module, is_factory, is_object

__all__ = ["PACKED_FORMAT", "OwnModel", "load_model", "read_card", "save_model"]

OwnModel = nn.Module | Callable[..., nn.Module]
"""A user's own network: a module, or what builds one."""

_MAX_REASON = 500
"""Characters of the reason in an error about a file, which can quote what the file says."""


def save_model(model: nn.Module, path: str | Path, *, card: Mapping[str, Any]) -> None:
    """Write the compressed model with its card, all or nothing.

    The card names `model`, `classes` and `channels` as `build_model` takes them; the forms are read off the model, and
    so are the scales of activations in int8.
    """
    if (activations := describe_activations(model)) is not None:
        card = {**card, "activations": activations}
    text = encode_card(card, {name: layer.form for name, layer in compressed_layers(model).items()})
    content = safetensors.torch.save({"packed": join_state(pack_state(model))}, {"overtone": text})
    with translate_errors(f"cannot write the packed model {str(path)!r}", OSError):
        atomic_write(Path(path), content)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a packed model, with `forms` by layer.

    Raises `OvertoneError` if the file is not a packed model, or is of another format than this version reads.
    """
    return _read(path)[0]


def load_model(path: str | Path, *, model: OwnModel | None = None) -> nn.Module:
    """Return the compressed network of a packed file, in eval mode; it gives the predictions that were measured.

    `model` is the uncompressed network where it came from a user's own code: a module, of which a copy is taken, or
    its factory, called as `factory(classes=..., channels=...)`. What the file says builds no such network. Raises
    `OvertoneError` if the file is not a packed model or does not hold the network that it names.

    Of an exported `.pt2` it is a module that gives logits, its filters built once. That file needs no `model`, and must
    not come from a stranger: PyTorch may run code of it.
    """
    if Path(path).suffix == ".pt2":
        from spaces.portable.program import load_program

        with _file_errors(f"cannot read the program {str(path)!r}"):
            return load_program(Path(path))
    card, joined = _read(path)
    if model is None and (is_factory(card["model"]) or is_object(card["model"])):
        raise UsageError(
            f"{str(path)!r} holds the network {card['model']!r} of your own: pass it, or its factory, as model"
        )
    factory = None if model is None else _as_factory(model)
    with _file_errors(f"cannot build the network of {str(path)!r}"):
        forms = decode_forms(card)
        check_activations(card.get("activations"), [name for name, form in forms.items() if form.arithmetic == "int8"])
        if factory is None:
            network = _empty_network(card, forms, joined.nbytes)
        else:
            network = compress_model(factory(classes=card["classes"], channels=card["channels"]), forms)
        packed = split_state(network, joined)
        if factory is None:
            _check_computed_indices(network, packed)
            materialize(network)
        unpack_state(network, packed)
        _check_templates(network)
        restore_activations(network, card.get("activations"))
    return network.eval()


def _as_factory(model: OwnModel) -> Callable[..., nn.Module]:
    """Return what builds the network anew; a module is copied now, so that its faults are the caller's."""
    if not isinstance(model, nn.Module):
        return model
    copied = copy_module(model)
    return lambda **shape: copied


def _read(path: str | Path) -> tuple[dict[str, Any], Tensor]:
    """Return the card and the payload."""
    with (
        _file_errors(f"cannot read the packed model {str(path)!r}"),
        safetensors.safe_open(str(path), framework="pt") as file,
    ):
        metadata = file.metadata() or {}
        if "overtone" not in metadata:
            raise ValueError("its metadata have no card")
        card = decode_card(metadata["overtone"], limit=8 * os.path.getsize(path))
        names = list(file.keys())
        if names != ["packed"]:
            raise ValueError(f"its tensors are {', '.join(map(repr, names)) or 'none'}, and not 'packed' alone")
        return card, file.get_tensor("packed")


def _empty_network(card: Mapping[str, Any], forms: Mapping[str, LayerForm], payload: int) -> nn.Module:
    """Return the named network in its forms, still without memory.

    Raises `OvertoneError` if its packed size is not `payload` bytes.
    """
    model = build_on_meta(card["model"], classes=card["classes"], channels=card["channels"])
    needed = packed_bytes(model, forms)
    if needed != payload:
        raise OvertoneError(f"the network that its card describes takes {needed} bytes, its payload has {payload}")
    convert_layers(model, forms)
    return model


def _check_computed_indices(model: nn.Module, packed: Mapping[str, Tensor]) -> None:
    """Check that indices which a network computes when it is built are not replaced by others."""
    for name, value in model.state_dict().items():
        if value.dtype == torch.int64 and name in packed and not torch.equal(value, packed[name]):
            raise OvertoneError(f"the tensor {name!r} is not that of the network")


def _check_templates(model: nn.Module) -> None:
    """Check that as many filters are templates as the form says, and that no filter is made from one beyond them."""
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
def _file_errors(failure: str) -> Iterator[None]:
    """Raise `OvertoneError` with `failure` and the reason for whatever the content of a file makes fail.

    Unlike `translate_errors` this covers our own errors too, also those about values that a file gives: the user gave
    none of them.
    """
    try:
        yield
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
        *(MemoryError, OvertoneError, safetensors.SafetensorError),
    ) as error:
        reason = textwrap.shorten(first_line(error), _MAX_REASON)
        raise OvertoneError(f"{failure}: {reason}") from error
