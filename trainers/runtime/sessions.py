"""A network's file, opened in a runtime to be run.

ONNX files may be anyone's that take one batch of float32 images. OpenVINO computes in float32 where the file does, and
gets the file's functions inlined, which it refuses. Networks of a user's own code come with the code or not at all:
no file makes Overtone import any.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from layers.errors import OvertoneError, UsageError
from layers.tuning import autotune
from spaces.models import is_factory, is_object
from spaces.packed import OwnModel, load_model, read_card

__all__ = ["Images", "Session", "open_session"]

Images = NDArray[np.float32]
"""A batch (n, C, H, W)."""
_MAX_REASON = 300


@dataclass(frozen=True, kw_only=True)
class Session:
    """A file that is open in a runtime."""

    name: str
    runtime: str
    threads: int
    versions: dict[str, str]
    shape: tuple[int, ...]
    """Of an image."""
    batch: int | None
    """The number of images that it takes, None for any."""
    prepare: Callable[[Images], Callable[[], Any]]
    """Returns the function that runs a batch and gives its outputs."""

    def call(self, images: Images) -> Callable[[], Any]:
        """Return what runs the network on these images; raise `UsageError` if it takes batches of another size."""
        if self.batch is not None and len(images) != self.batch:
            raise UsageError(f"batch (={len(images)}) must be {self.batch}, which is all that {self.name!r} takes")
        with _opening(self.name, self.runtime):
            return self.prepare(images)


def open_session(
    file: Path, runtime: str, *, threads: int, content: bytes | None = None, model: OwnModel | None = None
) -> Session:
    """Return a file opened in a runtime that `runtime_of_file` allows for it.

    `content` is the file's, if it is only in memory; `model` is that of `spaces.load_model`. torch has its threads from
    its process: set them while the session is used. Raises `OvertoneError` if the file is damaged or no such network.
    """
    openers = {"torch": _open_torch, "onnxruntime": _open_onnxruntime, "openvino": _open_openvino}
    if content is None and not file.is_file():
        raise UsageError(f"file (={str(file)!r}) must be a file that exists")
    with _opening(str(file), runtime):
        shape, prepare = openers[runtime](file, content, threads, model)
        batch, *image = shape
        if not image or not all(isinstance(side, int) and side > 0 for side in image):
            raise OvertoneError(f"it takes {_show(shape)}, where an image has a size of its own")
    return Session(
        name=str(file),
        runtime=runtime,
        threads=threads,
        versions={runtime: version(runtime)},
        shape=tuple(image),
        batch=batch if isinstance(batch, int) else None,
        prepare=prepare,
    )


_Opened = tuple[tuple[Any, ...], Callable[[Images], Callable[[], Any]]]
"""Shape of a batch, in which sides that are free are no whole numbers; and how a batch is run."""


def _open_torch(file: Path, content: bytes | None, threads: int, model: OwnModel | None) -> _Opened:
    return _open_pt2(file) if file.suffix == ".pt2" else _open_packed(file, model)


def _open_packed(file: Path, model: OwnModel | None) -> _Opened:
    card = read_card(file)
    if model is None and (is_factory(card["model"]) or is_object(card["model"])):
        raise UsageError(
            f"{str(file)!r} holds the network {card['model']!r} of your own code, which no file brings: time its .onnx "
            "or .pt2 instead, or give it in Python as model"
        )
    network = load_model(file, model=model)
    size = card.get("image_size")
    sides = (size, size) if isinstance(size, int) else tuple(size or ())

    def prepare(images: Images) -> Callable[[], Any]:
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        autotune(network, batch)
        return torch.inference_mode()(lambda: network(batch))

    return (None, card["channels"], *sides), prepare


def _open_pt2(file: Path) -> _Opened:
    network = load_model(file)
    assert isinstance(network, fx.GraphModule)
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or inputs[0].meta["val"].dtype != torch.float32:
        raise OvertoneError(f"it takes {len(inputs)} inputs, or none of float32 images")

    def prepare(images: Images) -> Callable[[], Any]:
        batch: Tensor = torch.from_numpy(images)
        return torch.inference_mode()(lambda: network(batch))

    return tuple(inputs[0].meta["val"].shape), prepare


def _open_onnxruntime(file: Path, content: bytes | None, threads: int, model: OwnModel | None) -> _Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads leave the cores to other files
    session = onnxruntime.InferenceSession(content or str(file), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise OvertoneError(f"it takes {', '.join(f'{i.name} {i.type}' for i in inputs)}, not one tensor(float)")
    (argument,) = inputs
    return tuple(argument.shape), lambda images: lambda: session.run(None, {argument.name: images})


def _open_openvino(file: Path, content: bytes | None, threads: int, model: OwnModel | None) -> _Opened:
    import openvino

    core = openvino.Core()
    source = core.read_model(_inlined(file, content))
    if len(source.inputs) != 1 or source.inputs[0].element_type != openvino.Type.f32:
        raise OvertoneError(f"it takes {len(source.inputs)} inputs, or none of float32 images")
    shape = [side.get_length() if side.is_static else None for side in source.inputs[0].partial_shape]
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(source, "CPU", settings).create_infer_request()
    return tuple(shape), lambda images: lambda: request.infer([images])


def _inlined(file: Path, content: bytes | None) -> bytes | str:
    """Return an ONNX file without functions: its path or content, as it is if it has none."""
    given = str(file) if content is None else content
    if importlib.util.find_spec("onnx") is None:
        return given
    import onnx
    import onnx.inliner

    proto = onnx.load_model(file) if content is None else onnx.load_model_from_string(content)
    return onnx.inliner.inline_local_functions(proto).SerializeToString() if proto.functions else given


def _show(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


@contextmanager
def _opening(name: str, runtime: str) -> Iterator[None]:
    """Raise `OvertoneError` for whatever makes a runtime refuse a file; the last line of its reason says what."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # of any library, about what anyone may have written
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = lines[-1].rstrip(".")[:_MAX_REASON]
        raise OvertoneError(f"cannot run {name!r} in {runtime}: {reason}") from error
