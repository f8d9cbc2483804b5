"""A packed model written as a file of another kind.

`safetensors` is the packed file itself, byte for byte, as small as measured. `onnx` holds the same packed tensors and
what decodes them (`spaces.portable.skeleton`), `pt2` the same bytes and a program that decodes them
(`spaces.portable.program`). `pte` is for phones, of networks in int8 alone (`spaces.portable.mobile`).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from layers.errors import OvertoneError, UsageError, translate_errors
from layers.integer.network import int8_layers
from layers.integer.rounding import FILTER_CODES
from spaces.meta_device import build_on_meta, materialize
from spaces.packed import OwnModel, load_model
from spaces.portable.program import StoredNetwork, save_program

if TYPE_CHECKING:
    from spaces.portable.skeleton import Skeleton

__all__ = ["FORMATS", "PLAIN", "WriteOptions", "check_format", "shared_graphs", "tuned_file", "write"]

_Card = Mapping[str, Any]
_Own = OwnModel | None
_GRAPHS: ContextVar[dict[Any, Skeleton] | None] = ContextVar("graphs", default=None)
"""Graphs of the networks that were written within `shared_graphs`."""


@dataclass(frozen=True)
class WriteOptions:
    """How a file is written, where a format leaves a choice."""

    inline: bool = False
    """ONNX without functions of the model's own."""
    dense: bool = False
    """ONNX with the filters as float32 weights."""
    seven_bits: bool = False
    """ONNX with filters in int8 of 7 bits, -63 .. 63, for processors on which sums of 8-bit products saturate."""
    runtime: str | None = None
    """Where the ONNX file is to run, and its layers are timed: onnxruntime by default. openvino takes no functions."""

    @property
    def names(self) -> list[str]:
        """The names of what holds of the file: `inline`, `dense`, `seven_bits`."""
        inline = self.inline or (self.runtime == "openvino" and not self.dense)
        holds = {"inline": inline, "dense": self.dense, "seven_bits": self.seven_bits}
        return [name for name, is_so in holds.items() if is_so]


PLAIN = WriteOptions()


def check_format(format: str, options: WriteOptions = PLAIN) -> None:
    """Raise `UsageError` for a format that is unknown, does not have these options, or lacks its packages."""
    if format not in FORMATS:
        raise UsageError(f"format (={format!r}) must be one of {', '.join(FORMATS)}")
    given = [name for name, value in vars(options).items() if value]
    if given and format != "onnx":
        value = getattr(options, given[0])
        raise UsageError(f"{given[0]} (={value!r}) must be left out for the format {format!r}: it is for onnx alone")
    if options.runtime not in (None, "onnxruntime", "openvino"):
        raise UsageError(f"runtime (={options.runtime!r}) must be onnxruntime or openvino for the format 'onnx'")
    if options.inline and options.dense:
        raise UsageError("inline (=True) must be left out with dense, which has no functions either")
    if format == "pte":
        from spaces.portable.mobile import check_mobile

        check_mobile()
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise UsageError(f"format 'onnx' needs the package {missing[0]}: pip install onnx onnxruntime onnxscript")


def write(
    source: Path, target: Path, *, format: str, card: _Card, model: _Own = None, options: WriteOptions = PLAIN
) -> None:
    """Write the packed model at `source` to the file `target` in one of `FORMATS`.

    `onnx` and `pt2` take batches of any size, `pte` one image; of the card they read `model`, `classes`, `channels` and
    `image_size`.
    `model` is that of `load_model`. Raises `UsageError` as `check_format` does, and `OvertoneError`
    when the model cannot be read or the format cannot express it.
    """
    check_format(format, options)
    FORMATS[format](source, target, card, model, options)


def _write_safetensors(source: Path, target: Path, card: _Card, model: _Own, options: WriteOptions) -> None:
    target.write_bytes(source.read_bytes())


def _write_onnx(source: Path, target: Path, card: _Card, model: _Own, options: WriteOptions) -> None:
    compressed, image = load_model(source, model=model), _image(card)
    with _exporting("onnx", card):
        skeleton = _skeleton(card, model, image, marked=bool(int8_layers(compressed)))
        target.write_bytes(tuned_file(skeleton, compressed, options))


def tuned_file(skeleton: Skeleton, model: nn.Module, options: WriteOptions = PLAIN, *, threads: int = 1) -> bytes:
    """Return the ONNX file of a compressed copy of a skeleton's network.

    Its layers run in the graphs that are fastest with so many threads in its runtime, if that is here.
    """
    from spaces.portable.tuning import Runtime, choose_executions

    runtime: Literal["onnxruntime", "openvino"] = "openvino" if options.runtime == "openvino" else "onnxruntime"
    is_timed = not options.dense and importlib.util.find_spec(runtime) is not None
    return skeleton.file(
        model,
        executions=choose_executions(skeleton, model, Runtime(runtime, threads)) if is_timed else {},
        inline="inline" in options.names,
        dense=options.dense,
        filter_codes=FILTER_CODES // 2 if options.seven_bits else FILTER_CODES,
        openvino=runtime == "openvino",
    )


@contextmanager
def shared_graphs() -> Iterator[None]:
    """Trace a network once for all ONNX files of it that are written within the block."""
    token = _GRAPHS.set({})
    try:
        yield
    finally:
        _GRAPHS.reset(token)


def _skeleton(card: _Card, model: _Own, image: tuple[int, int, int], *, marked: bool) -> Skeleton:
    from spaces.portable.skeleton import make_skeleton

    graphs, key = _GRAPHS.get(), (card["model"], card["classes"], image, id(model))
    skeleton = (graphs or {}).get(key)
    if skeleton is None or (marked and not skeleton.marks):
        skeleton = make_skeleton(_uncompressed(card, model), image, marked=marked)
    if graphs is not None:
        graphs[key] = skeleton
    return skeleton


def _write_pt2(source: Path, target: Path, card: _Card, model: _Own, options: WriteOptions) -> None:
    network, image = StoredNetwork(load_model(source, model=model)).eval(), _image(card)
    with _exporting("pt2", card):
        shapes = ({0: torch.export.Dim("batch")},)
        example = torch.zeros(2, *image)  # two, because an exporter takes a batch of one for a constant
        save_program(torch.export.export(network, (example,), dynamic_shapes=shapes), target)


def _write_pte(source: Path, target: Path, card: _Card, model: _Own, options: WriteOptions) -> None:
    from spaces.portable.mobile import write_mobile

    compressed, image = load_model(source, model=model), _image(card)
    with _exporting("pte", card):
        write_mobile(compressed, _uncompressed(card, model), image, target)


FORMATS: dict[str, Callable[[Path, Path, _Card, _Own, WriteOptions], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "pt2": _write_pt2,
    "pte": _write_pte,
}
"""What writes each kind of file; the name is the file's suffix too."""


def _image(card: _Card) -> tuple[int, int, int]:
    """Return the channels, height and width of the images that a network takes."""
    size = card.get("image_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if min(height, width) < 1:
        raise OvertoneError(f"image_size (={size!r}) of the packed model's card must be a size in pixels, to trace it")
    return card["channels"], height, width


def _uncompressed(card: _Card, model: _Own) -> nn.Module:
    """Return the uncompressed network; its weights do not matter."""
    if isinstance(model, nn.Module):
        return model
    if model is not None:
        return model(classes=card["classes"], channels=card["channels"])
    network = build_on_meta(card["model"], classes=card["classes"], channels=card["channels"])
    materialize(network)
    return network


@contextmanager
def _exporting(format: str, card: _Card) -> Iterator[None]:
    """Raise `OvertoneError` for whatever the exporters raise, and keep their notes to developers from users."""
    failure = f"cannot write the network {card['model']!r} as {format}"
    with translate_errors(failure, Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
