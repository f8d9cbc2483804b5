"""Names of the transformations that make a template another filter (`layers.templates.operators`), and their sizes."""

from __future__ import annotations

from typing import Literal

from layers.errors import UsageError

__all__ = ["TRANSFORMS", "Transform", "parameter_shape"]

Transform = Literal["scalar", "rotation", "affine", "zero"]
TRANSFORMS: tuple[Transform, ...] = ("scalar", "rotation", "affine", "zero")


def parameter_shape(transform: Transform, kernel: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the parameters of one filter and group; `zero` has none."""
    if transform not in TRANSFORMS:
        raise UsageError(f"transform (={transform!r}) must be one of {', '.join(TRANSFORMS)}")
    shapes: dict[str, tuple[int, ...]] = {"scalar": kernel, "rotation": (1,), "affine": (2, 3), "zero": (0,)}
    return shapes[transform]
