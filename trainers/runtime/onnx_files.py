"""The ONNX file of a trial's model, as an export writes it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from spaces.packed import save_model
from spaces.portable import check_format, write

__all__ = ["OnnxFiles"]


class OnnxFiles:
    """Writes the files of all models that are made from one uncompressed network, for images of one shape."""

    def __init__(self, baseline: nn.Module, shape: tuple[int, int, int]) -> None:
        """Take the network and the images' (C, H, W); raise `UsageError` if a package is missing."""
        check_format("onnx")
        self._baseline = baseline
        self._shape = shape

    def file(self, model: nn.Module) -> bytes:
        """Return the content of a compressed model's file."""
        channels, *size = self._shape
        card = {"model": ":trial", "classes": 1, "channels": channels, "image_size": size}
        with tempfile.TemporaryDirectory() as folder:
            packed, target = Path(folder) / "model.safetensors", Path(folder) / "model.onnx"
            save_model(model, packed, card=card)
            write(packed, target, format="onnx", card=card, model=self._baseline)
            return target.read_bytes()
