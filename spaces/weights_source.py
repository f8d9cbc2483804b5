"""Where trained weights are, as one text: a file, `FILE#KEY` for one of its networks, or a name of torchvision's."""

from __future__ import annotations

from pathlib import Path

__all__ = ["absolute_weights", "split_weights"]


def split_weights(source: str) -> tuple[Path | None, str]:
    """Return the file, None for a name that is no file, and the key of the network within it, '' for no key."""
    if Path(source).is_file():
        return Path(source), ""
    name, _, key = source.rpartition("#")
    return (Path(name), key) if name and Path(name).is_file() else (None, "")


def absolute_weights(source: str) -> str:
    """Return the same weights for a process with another working directory."""
    file, key = split_weights(source)
    return source if file is None else str(file.resolve()) + (f"#{key}" if key else "")
