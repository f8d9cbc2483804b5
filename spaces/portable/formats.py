"""A packed model written as a file of another kind.

`safetensors` is the packed file itself, byte for byte, as small as measured. `pt2` holds the same bytes and a program
that decodes them (`spaces.portable.program`). `onnx` holds the network with its filters rebuilt to ordinary float32
weights, so that other runtimes can run it; it is larger than the packed file.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from layers.errors import OvertoneError, UsageError, translate_errors
from spaces.packed import OwnModel, load_model
from spaces.portable.network import portable_model
from spaces.portable.program import StoredNetwork, save_program

__all__ = ["FORMATS", "check_format", "write"]

_Card = Mapping[str, Any]
_Own = OwnModel | None


def check_format(format: str) -> None:
    """Raise `UsageError` for a format that is unknown, or whose packages are not installed."""
    if format not in FORMATS:
        raise UsageError(f"format (={format!r}) must be one of {', '.join(FORMATS)}")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise UsageError(f"format 'onnx' needs the package {missing[0]}: pip install onnx onnxruntime onnxscript")


def write(source: Path, target: Path, *, format: str, card: _Card, model: _Own = None) -> None:
    """Write the packed model at `source` to the file `target` in one of `FORMATS`.

    `onnx` and `pt2` take batches of any size; of the card they read `model`, `channels` and `image_size`. `model` is
    that of `load_model`. Raises `UsageError` as `check_format` does, and `OvertoneError`
    when the model cannot be read or the format cannot express it.
    """
    check_format(format)
    FORMATS[format](source, target, card, model)


def _write_safetensors(source: Path, target: Path, card: _Card, model: _Own) -> None:
    target.write_bytes(source.read_bytes())


def _write_onnx(source: Path, target: Path, card: _Card, model: _Own) -> None:
    network, example = portable_model(load_model(source, model=model)), _example(card)
    with _exporting("onnx", card):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        if program is None:
            raise OvertoneError("the ONNX exporter gave no program")
        program.save(target, external_data=False)


def _write_pt2(source: Path, target: Path, card: _Card, model: _Own) -> None:
    network, example = StoredNetwork(load_model(source, model=model)).eval(), _example(card)
    with _exporting("pt2", card):
        shapes = ({0: torch.export.Dim("batch")},)
        save_program(torch.export.export(network, (example,), dynamic_shapes=shapes), target)


FORMATS: dict[str, Callable[[Path, Path, _Card, _Own], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "pt2": _write_pt2,
}
"""What writes each kind of file; the name is the file's suffix too."""


def _example(card: _Card) -> torch.Tensor:
    """Return two blank images of the network's size; two, because an exporter takes a batch of one for a constant."""
    size = card.get("image_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if min(height, width) < 1:
        raise OvertoneError(f"image_size (={size!r}) of the packed model's card must be a size in pixels, to trace it")
    return torch.zeros(2, card["channels"], height, width)


@contextmanager
def _exporting(format: str, card: _Card) -> Iterator[None]:
    """Raise `OvertoneError` for whatever the exporters raise, and keep their notes to developers from users."""
    failure = f"cannot write the network {card['model']!r} as {format}"
    with translate_errors(failure, Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
