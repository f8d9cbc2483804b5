"""A finished network as a folder to ship: the model, its facts as JSON, and a model card for people.

`safetensors` is the packed file itself, byte for byte, as small as measured. `onnx` and `pt2` hold the network with its
filters rebuilt to ordinary float32 weights, so that other runtimes can run it; they are larger than the packed file.
The folder appears whole at the end, or not at all.
"""

import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layers.errors import OvertoneError, UsageError
from results.export.model_card import model_card
from results.ledger.store import Store
from spaces.packed import load_model, read_card
from spaces.portable.network import portable_model

__all__ = ["FORMATS", "check_format", "export_model"]


def export_model(
    model_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    format: str,
    card: Mapping[str, Any],
    factory: Callable[..., nn.Module] | None = None,
    prove: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:
    """Writes `model.<format>`, `config.json` and `README.md` into `out_dir`, which must be new or empty.

    `card` adds to the packed file's own card, plain JSON; `results.export.model_card` says what of it is told.
    `factory` builds a network that came from a user's own code. `prove` is given the written model and gives what more
    the card is to say; where it raises nothing is left. Raises UsageError for an unknown format, an `out_dir` in use,
    or missing packages, and OvertoneError where the model cannot be read or the format cannot express it.
    """
    check_format(format)
    source, facts = Path(model_path), {**read_card(Path(model_path)), **card, "format": format}
    with _whole_folder(Path(out_dir)) as folder:
        FORMATS[format](source, folder / f"model.{format}", facts, factory)
        facts |= prove(folder / f"model.{format}") if prove else {}
        files = Store(folder)
        files.write_bytes("config.json", (json.dumps(facts, indent=2) + "\n").encode())
        files.write_bytes("README.md", model_card(facts, (folder / f"model.{format}").stat().st_size).encode())
    return Path(out_dir)


def check_format(format: str) -> None:
    """Raises UsageError for a format that is unknown, or whose packages are not installed."""
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is unknown; allowed are {', '.join(FORMATS)}")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise UsageError(f"format 'onnx' needs the package {missing[0]}: pip install 'overtone[onnx]'")


_Facts = Mapping[str, Any]
_Factory = Callable[..., nn.Module] | None


def _write_safetensors(source: Path, target: Path, facts: _Facts, factory: _Factory) -> None:
    target.write_bytes(source.read_bytes())


def _write_onnx(source: Path, target: Path, facts: _Facts, factory: _Factory) -> None:
    model, example = portable_model(load_model(source, factory=factory)), _example(facts)
    with _told("onnx", facts):
        program = torch.onnx.export(
            model,
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


def _write_pt2(source: Path, target: Path, facts: _Facts, factory: _Factory) -> None:
    model, example = portable_model(load_model(source, factory=factory)), _example(facts)
    with _told("pt2", facts):
        shapes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), target)


FORMATS: dict[str, Callable[[Path, Path, _Facts, _Factory], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "pt2": _write_pt2,
}


def _example(facts: _Facts) -> torch.Tensor:
    """Two blank images of the network's size; two, because an exporter takes a batch of one for a constant."""
    size = facts.get("image_size")
    height, width = (size, size) if isinstance(size, int) else tuple(size or (0, 0))
    if min(height, width) < 1:
        raise OvertoneError(f"the packed model's card has image_size {size!r}; a size in pixels is needed to trace it")
    return torch.zeros(2, facts["channels"], height, width)


@contextmanager
def _told(format: str, facts: _Facts) -> Iterator[None]:
    """The exporters' many kinds of failure as one sentence; their notes to developers are kept from users."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except OvertoneError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise OvertoneError(f"the network {facts['model']!r} cannot be written as {format}: {reason}") from error


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name when the block ends well, and is removed when it does not."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"out (={str(out)!r}) exists already; a new or empty folder is allowed")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OvertoneError(f"cannot write {str(out)!r}: {error.strerror}") from None
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, out)
    except OSError as error:
        raise OvertoneError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
