"""The card of a packed model: JSON that says what network the file holds, checked before anything is built from it.

Since version 2 it names the layers of each form, `"forms": [{"layers": ["conv1", "conv2"], "bits": 8}]`; version 1
had the form of each layer, `"forms": {"conv1": {"bits": 8}, "conv2": {"bits": 8}}`, and is read to the same card.
Version 4 added `assignment`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from layers import LayerForm, UsageError

__all__ = ["PACKED_VERSION", "decode_card", "decode_forms", "encode_card"]

PACKED_VERSION = 4
_REQUIRED = ("version", "model", "classes", "channels", "forms")
_LONGEST = 255
"""Characters of a model's or layer's name."""
_JSON = {"int": int, "tuple[int, int]": list}
_KNOBS = {
    field.name: _JSON.get(str(field.type).removesuffix(" | None"), str) for field in dataclasses.fields(LayerForm)
}
"""The JSON type of each knob of a form; what is neither a number nor a pair is a name."""


def encode_card(card: Mapping[str, Any], forms: Mapping[str, LayerForm]) -> str:
    """The JSON of a card of the last version; `UsageError` where it is not plain JSON."""
    groups: dict[LayerForm, list[str]] = {}
    for name, form in forms.items():
        groups.setdefault(form, []).append(name)
    listed = [{"layers": names, **_plain(form)} for form, names in groups.items()]
    try:
        return json.dumps({**card, "version": PACKED_VERSION, "forms": listed}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The card of a packed model must be plain JSON: {error}.") from error


def decode_card(text: str, *, most: int) -> dict[str, Any]:
    """The card of this JSON, of any version, with the form of each layer as plain data.

    `most` bounds `classes` and `channels`. Raises `ValueError` or `RecursionError` where it is not a card, or is of a
    later version.
    """
    card = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    if not isinstance(card, dict):
        raise ValueError("its card is not a JSON object")
    version = card.get("version", PACKED_VERSION)
    if type(version) is not int or not 1 <= version <= PACKED_VERSION:
        raise ValueError(f"its version is {version!r}, and versions 1 to {PACKED_VERSION} are read")
    missing = [key for key in _REQUIRED if key not in card]
    if missing:
        raise ValueError(f"its card lacks {missing[0]!r}")
    card["forms"] = _by_layer(card["forms"]) if version > 1 else card["forms"]
    _check(card, most)
    return card


def decode_forms(card: Mapping[str, Any]) -> dict[str, LayerForm]:
    """The forms of a card by layer; `UsageError` where a value is not allowed."""
    forms = {}
    for name, form in card["forms"].items():
        harmonics = {"harmonics": tuple(form["harmonics"])} if "harmonics" in form else {}
        forms[name] = LayerForm(**{**form, **harmonics})
    return forms


def _check(card: Mapping[str, Any], most: int) -> None:
    if type(card["model"]) is not str or len(card["model"]) > _LONGEST:
        raise ValueError(f"model must be a name of at most {_LONGEST} characters")
    for name in ("classes", "channels"):
        if type(card[name]) is not int or not 1 <= card[name] <= most:
            raise ValueError(
                f"{name} (={card[name]!r}) must be a whole number from 1 to {most}, which the file can hold"
            )
    if not isinstance(card["forms"], dict):
        raise ValueError("forms must say the form of each compressed layer")
    for name, form in card["forms"].items():
        _check_form(name, form)
    _check_images(card)


def _check_form(name: str, form: object) -> None:
    if not name or len(name) > _LONGEST:
        raise ValueError(f"a layer's name must have 1 to {_LONGEST} characters")
    if not isinstance(form, dict) or not form.keys() <= _KNOBS.keys():
        raise ValueError(f"the form of {name!r} must be an object with keys among {', '.join(_KNOBS)}")
    for knob, value in form.items():
        if type(value) is not _KNOBS[knob]:
            raise ValueError(f"{knob} (={value!r}) of {name!r} must be a JSON value of {_KNOBS[knob].__name__}")


def _check_images(card: Mapping[str, Any]) -> None:
    """What the card may say of the images that the network takes."""
    size = card.get("image_size", 1)
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    if not all(type(side) is int and 1 <= side < 1 << 16 for side in sides):
        raise ValueError(f"image_size (={size!r}) must be pixels or [height, width]")
    for name in {"mean", "std"} & card.keys():
        values = card[name]
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != card["channels"]:
            raise ValueError(f"{name} must be a number for each channel")


def _plain(form: LayerForm) -> dict[str, Any]:
    """The form without what is at its default."""
    default = dataclasses.asdict(LayerForm())
    return {name: value for name, value in dataclasses.asdict(form).items() if value != default[name]}


def _by_layer(groups: object) -> dict[str, Any]:
    """The forms as version 1 has them."""
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
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it says {name!r} twice")
        found[name] = value
    return found


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        _refuse(digits)
    return float(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds the number {constant}, which is not finite")
