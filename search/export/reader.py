"""Read an exported file as its user will: in a process of its own, which knows nothing but the file and images.

`python -m search.export.reader FILE OUT` reads a line of JSON from its standard input (`model`, the network's name,
`runtime`, `threads`, and the `shapes` of batches), then the images of each batch as float32. It writes their logits to
OUT, a .npy file. It needs neither Ray nor Optuna, and PyTorch only for files that are PyTorch's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from layers.errors import OvertoneError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainers.data import Data

__all__ = ["check_reader", "factory_of", "logits_in_subprocess"]

_Images = npt.NDArray[np.float32]
_Run = Callable[[_Images], npt.NDArray[Any]]


def check_reader(format: str, runtime: str = "onnxruntime") -> None:
    """Raise `UsageError` if the package that reads files of this format is not installed."""
    if format == "onnx" and importlib.util.find_spec(runtime) is None:
        raise UsageError(f"format 'onnx' is verified by {runtime}: pip install onnx {runtime} onnxscript")


def logits_in_subprocess(path: Path, model: str, data: Data, runtime: str = "onnxruntime") -> tuple[Tensor, Tensor]:
    """Return the logits (n, classes) that an exported file gives the data's validation images, and the test images.

    `model` is the network's name. The reading process has this one's threads and looks for modules where this one does.
    Raises `OvertoneError` with the last line of its errors if it fails.
    """
    import torch

    out = path.with_name(f"{path.name}.npy")
    batched = [(split, torch.arange(len(split)).split(128)) for split in (data.val, data.test)]
    batches = (
        data.normalize(images).contiguous().numpy()
        for split, rows in batched
        for images, _ in split.batches(rows, "cpu")
    )
    shapes = [(len(batch), *split.image_shape) for split, rows in batched for batch in rows]
    job = {"model": model, "runtime": runtime, "threads": torch.get_num_threads(), "shapes": shapes}
    command = [sys.executable, "-P", "-m", "search.export.reader", str(path), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)}
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, env=environment) as reader:
            assert reader.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, and says why
                _send(reader.stdin, job, batches)
        if reader.returncode != 0:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            reason = (lines or [f"it ended with {reader.returncode}"])[-1].rstrip(".")
            raise OvertoneError(f"cannot read the exported {path.suffix[1:]} in a process of its own: {reason}")
    logits = torch.from_numpy(np.load(out))
    out.unlink()
    return logits[: len(data.val)], logits[len(data.val) :]


def _send(stream: IO[bytes], job: dict[str, Any], batches: Iterator[_Images]) -> None:
    stream.write(json.dumps(job).encode() + b"\n")
    for batch in batches:
        stream.write(batch.astype("<f4", copy=False).tobytes())
    stream.close()


def factory_of(model: str) -> Callable[..., nn.Module] | None:
    """Return how to build a network of the user's own code, else None; whoever named it in a study lets it run."""
    from spaces.models import build_model, is_factory

    return (lambda **shape: build_model(model, **shape)) if is_factory(model) else None


def main() -> int:
    """Read a file and write its logits; return 0, or 1 after an error whose text is the last line."""
    path, out = map(Path, sys.argv[1:])
    job = json.loads(sys.stdin.buffer.readline())
    openers = {".safetensors": _open_torch, ".onnx": _open_onnx, ".pt2": _open_torch, ".pte": _open_pte}
    try:
        run = openers[path.suffix](path, job)
        np.save(out, np.concatenate([run(images) for images in _received(job["shapes"])]))
    except OvertoneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _received(shapes: list[list[int]]) -> Iterator[_Images]:
    for shape in shapes:
        yield np.frombuffer(sys.stdin.buffer.read(4 * int(np.prod(shape))), "<f4").reshape(shape)


def _open_torch(path: Path, job: dict[str, Any]) -> _Run:
    from spaces import load_model

    return _in_torch(load_model(path, model=factory_of(job["model"])), job["threads"])


def _in_torch(network: nn.Module, threads: int) -> _Run:
    import torch

    torch.set_num_threads(threads)

    @torch.no_grad()
    def run(images: _Images) -> npt.NDArray[Any]:
        batch = torch.from_numpy(images.copy()).contiguous(memory_format=torch.channels_last)
        logits: npt.NDArray[Any] = network(batch).numpy()
        return logits

    return run


def _open_pte(path: Path, job: dict[str, Any]) -> _Run:
    from spaces.portable.mobile import MobileNetwork

    return _in_torch(MobileNetwork(path), job["threads"])  # it ends with this process


def _open_onnx(path: Path, job: dict[str, Any]) -> _Run:
    if job["runtime"] == "openvino":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": job["threads"], "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda images: np.array(compiled(images)[0])
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (argument.name for argument in session.get_inputs())
    return lambda images: np.asarray(session.run(None, {name: images})[0])


if __name__ == "__main__":
    sys.exit(main())
