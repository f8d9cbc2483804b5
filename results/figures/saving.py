"""Saving a figure as a `.png` or `.svg` file: whole or not at all, with the same bytes for the same figure."""

import io
import os
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from layers.errors import UsageError, translate_errors
from layers.files import atomic_write

__all__ = ["check_picture_path", "save_figure"]

_SUFFIXES = (".png", ".svg")
_DPI = 160


def check_picture_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a picture, after raising `UsageError` unless it ends in .png or .svg."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"path (={str(path)!r}) must end in {' or '.join(_SUFFIXES)}")
    return path


def save_figure(figure: Figure, path: str | os.PathLike[str], *, salt: str) -> Path:
    """Write a figure into a `.png` or `.svg` file, whole or not at all; return its path.

    Equal figures give equal bytes with the same libraries: the file holds no date, and the ids inside an SVG are hashed
    from `salt` instead of at random. Raises `UsageError` for any other kind of file, and `OvertoneError` if the file
    cannot be written.
    """
    path = check_picture_path(path)
    kind = path.suffix.removeprefix(".")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    with translate_errors(f"cannot write {str(path)!r}", OSError):
        atomic_write(path, buffer.getvalue())
    return path
