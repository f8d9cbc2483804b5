"""A finished network as a folder to ship: the model, its facts as JSON, and a model card for people.

The folder appears whole at the end, or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layers.errors import translate_errors
from layers.files import atomic_folder, atomic_write
from results.export.model_card import model_card
from spaces.packed import OwnModel, read_card
from spaces.portable import PLAIN, WriteOptions, check_format, write

__all__ = ["export_model"]


def export_model(
    model_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    format: str,
    options: WriteOptions = PLAIN,
    card: Mapping[str, Any],
    model: OwnModel | None = None,
    prove: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:
    """Write `model.<format>`, `config.json` and `README.md` into `out_dir`, which must be new or empty.

    `card` adds to the packed file's own card, plain JSON; `results.export.model_card` says which facts it prints.
    `model` is that of `load_model`, for a user's own network; `options` are those of `spaces.portable.write`. `prove`
    takes the path of the written model and returns more facts for the card; when it raises, nothing is left. Raises
    `UsageError` for an unknown format, an `out_dir` in use, or missing packages, and `OvertoneError` when the model
    cannot be read or the format cannot express it.
    """
    check_format(format, options)
    source, out = Path(model_path), Path(out_dir)
    facts = {**read_card(source), **card, "file_format": format}
    if format == "onnx":
        facts["file_options"] = options.names
    with translate_errors(f"cannot write {str(out)!r}", OSError), atomic_folder(out) as folder:
        file = folder / f"model.{format}"
        write(source, file, format=format, card=facts, model=model, options=options)
        if prove is not None:
            facts |= prove(file)
        atomic_write(folder / "config.json", (json.dumps(facts, indent=2) + "\n").encode())
        atomic_write(folder / "README.md", model_card(facts, file.stat().st_size).encode())
    return out
