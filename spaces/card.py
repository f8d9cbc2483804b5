"""The card of a packed model: JSON that says what network the file holds, checked before anything is built from it.

It lists the layers of each form, `"forms": [{"layers": ["conv1", "conv2"], "bits": 8}]`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from layers import LayerForm, UsageError
from layers.errors import first_line

__all__ = ["PACKED_FORMAT", "decode_card", "decode_forms", "encode_card"]

PACKED_FORMAT = 2
_REQUIRED = ("format", "model", "classes", "channels", "forms")
_MAX_CHARACTERS = 255
"""Of a model's or layer's name."""
_JSON_TYPES = {"int": int, "tuple[int, int]": list}
_KNOBS = {
    field.name: _JSON_TYPES.get(str(field.type).removesuffix(" | None"), str) for field in dataclasses.fields(LayerForm)
}
"""The JSON type of each knob of a form; what is neither a number nor a pair is a name."""


def encode_card(card: Mapping[str, Any], forms: Mapping[str, LayerForm]) -> str:
    """Return the JSON of a card with the forms by layer; raise `UsageError` if it is not plain JSON."""
    groups: dict[LayerForm, list[str]] = {}
    for name, form in forms.items():
        groups.setdefault(form, []).append(name)
    listed = [{"layers": names, **_without_defaults(form)} for form, names in groups.items()]
    try:
        return json.dumps({**card, "format": PACKED_FORMAT, "forms": listed}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the card of a packed model must be plain JSON: {first_line(error)}") from error


def decode_card(text: str, *, limit: int) -> dict[str, Any]:
    """Return the card of this JSON, its forms as plain data by layer.

    `limit` bounds `classes` and `channels`. Raises `ValueError` or `RecursionError` if it is not a card of this format.
    """
    card = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_infinite, parse_float=_finite)
    if not isinstance(card, dict):
        raise ValueError("its card is not a JSON object")
    if "version" in card and "format" not in card:
        raise ValueError("it is from a pre-release of Overtone")
    format = card.get("format", PACKED_FORMAT)
    if type(format) is int and 0 < format < PACKED_FORMAT:
        raise ValueError(f"format (={format}) must be {PACKED_FORMAT}: before it, bits rounded the layers' inputs too")
    if type(format) is not int or format != PACKED_FORMAT:
        raise ValueError(f"format (={format!r}) must be {PACKED_FORMAT}, which is all that this Overtone reads")
    missing = [key for key in _REQUIRED if key not in card]
    if missing:
        raise ValueError(f"its card lacks {missing[0]!r}")
    card["forms"] = _by_layer(card["forms"])
    _check(card, limit)
    return card


def decode_forms(card: Mapping[str, Any]) -> dict[str, LayerForm]:
    """Return the forms of a card by layer; raise `UsageError` for a value that is not allowed."""
    forms = {}
    for name, form in card["forms"].items():
        harmonics = {"harmonics": tuple(form["harmonics"])} if "harmonics" in form else {}
        forms[name] = LayerForm(**{**form, **harmonics})
    return forms


def _check(card: Mapping[str, Any], limit: int) -> None:
    if type(card["model"]) is not str or len(card["model"]) > _MAX_CHARACTERS:
        raise ValueError(f"model must be a name of at most {_MAX_CHARACTERS} characters")
    for name in ("classes", "channels"):
        if type(card[name]) is not int or not 1 <= card[name] <= limit:
            raise ValueError(
                f"{name} (={card[name]!r}) must be a whole number from 1 to {limit}, which the file can hold"
            )
    for name, form in card["forms"].items():
        _check_form(name, form)
    _check_images(card)


def _check_form(name: str, form: Mapping[str, Any]) -> None:
    if not name or len(name) > _MAX_CHARACTERS:
        raise ValueError(f"a layer's name must have 1 to {_MAX_CHARACTERS} characters")
    if not form.keys() <= _KNOBS.keys():
        raise ValueError(f"the form of {name!r} must be an object with keys among {', '.join(_KNOBS)}")
    for knob, value in form.items():
        if type(value) is not _KNOBS[knob]:
            raise ValueError(f"{knob} (={value!r}) of {name!r} must be a JSON value of {_KNOBS[knob].__name__}")


def _check_images(card: Mapping[str, Any]) -> None:
    """Check what the card may say about the images that the network takes."""
    size = card.get("image_size", 1)
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(type(side) is int and 1 <= side < 1 << 16 for side in sides):
        raise ValueError(f"image_size (={size!r}) must be pixels or [height, width]")
    for name in {"mean", "std"} & card.keys():
        values = card[name]
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != card["channels"]:
            raise ValueError(f"{name} must be a number for each channel")


def _without_defaults(form: LayerForm) -> dict[str, Any]:
    default = dataclasses.asdict(LayerForm())
    return {name: value for name, value in dataclasses.asdict(form).items() if value != default[name]}


def _by_layer(groups: object) -> dict[str, Any]:
    """Return each layer's form from the list of forms."""
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("forms must be a list of objects")
    pairs = []
    for group in groups:
        names = group.pop("layers", None)
        if not isinstance(names, list) or not all(type(name) is str for name in names):
            raise ValueError("each of the forms must name its layers")
        pairs += [(name, group) for name in names]
    return _unique(pairs)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raise `ValueError` for a key that is there twice."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it says {name!r} twice")
        values[name] = value
    return values


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        _refuse_infinite(digits)
    return float(digits)


def _refuse_infinite(constant: str) -> NoReturn:
    raise ValueError(f"it holds the number {constant}, which is not finite")
