"""Read an exported file as its user will: in a process of its own, which knows nothing but the file and the data.

`python -m search.export.reader FILE OUT` reads a job from its standard input (`spec`, the trial's as JSON, `threads`,
and `images`, a safetensors file of images that cannot be read by name, or null), and writes the class of each
validation image to OUT, a .npy file. It needs neither Ray nor Optuna.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from layers import OvertoneError, UsageError
from spaces import build_model, load_model
from spaces.models import is_factory
from trainers.data import Data, Split, load_data
from trainers.evaluation import predict
from trainers.spec import TrialSpec

__all__ = ["check_reader", "factory_of", "predict_in_subprocess"]


def check_reader(format: str) -> None:
    """Raise `UsageError` if the package that reads files of this format is not installed."""
    if format == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise UsageError("format 'onnx' is verified by onnxruntime: pip install onnx onnxruntime onnxscript")


def predict_in_subprocess(path: Path, spec: TrialSpec, data: Data) -> Tensor:
    """Return the class (n,), int64, that an exported file gives each validation image of the trial's data.

    The reading process has this one's threads and looks for modules where this one does. It reads the data by name;
    only images that have none lie beside the file for it meanwhile. Raises `OvertoneError` with the last line of its
    errors if it fails.
    """
    out, images = path.with_name(f"{path.name}.npy"), None
    if spec.data.is_object:
        images = path.with_name(f"{path.name}.images")
        batches = data.val.batches(torch.arange(len(data.val)).split(1024), "cpu")
        normalized = torch.cat([data.normalize(batch).contiguous() for batch, _ in batches])
        safetensors.torch.save_file({"images": normalized}, images)
    job = json.dumps(
        {"spec": spec.to_json(), "threads": torch.get_num_threads(), "images": None if images is None else str(images)}
    )
    command = [sys.executable, "-P", "-m", "search.export.reader", str(path), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}
    reader = subprocess.run(command, input=job, env=environment, capture_output=True, text=True, check=False)
    if images is not None:
        images.unlink()
    if reader.returncode != 0:
        lines = reader.stderr.strip().splitlines() or [f"it ended with {reader.returncode}"]
        reason = lines[-1].rstrip(".")
        raise OvertoneError(f"cannot read the exported {path.suffix[1:]} in a process of its own: {reason}")
    classes = torch.from_numpy(np.load(out))
    out.unlink()
    return classes


def factory_of(model: str) -> Callable[..., nn.Module] | None:
    """Return how to build a network of the user's own code, else None; whoever named it in a study lets it run."""
    return (lambda **shape: build_model(model, **shape)) if is_factory(model) else None


def main() -> int:
    """Read a file and write its classes; return 0, or 1 after an error whose text is the last line."""
    path, out = map(Path, sys.argv[1:])
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    try:
        spec = TrialSpec.from_json(job["spec"])
        network = _open(path, spec.model)
        np.save(out, _classes(network, spec, job["images"]).numpy())
    except OvertoneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _classes(network: nn.Module, spec: TrialSpec, images: str | None) -> Tensor:
    if images is None:
        data = load_data(spec.data)
        return predict(network, data.val, data.normalize, device="cpu")
    normalized = safetensors.torch.load_file(images)["images"]
    split = Split(images=normalized, labels=torch.zeros(len(normalized), dtype=torch.int64))
    return predict(network, split, lambda batch: batch.contiguous(memory_format=torch.channels_last), device="cpu")


def _open(path: Path, model: str) -> nn.Module:
    readers: dict[str, Callable[[], nn.Module]] = {
        ".safetensors": lambda: load_model(path, model=factory_of(model)),
        ".onnx": lambda: _Runtime(path),
        ".pt2": lambda: load_model(path),
    }
    return readers[path.suffix]()


class _Runtime(nn.Module):
    """An ONNX file in onnxruntime, called like a network."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (self._input,) = (argument.name for argument in self._session.get_inputs())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes)."""
        return torch.from_numpy(self._session.run(None, {self._input: x.contiguous().numpy()})[0])


if __name__ == "__main__":
    sys.exit(main())
