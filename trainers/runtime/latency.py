"""How fast a network is: a model on a device, or a file in a runtime, one at a time on a machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from layers.errors import translate_errors
from layers.timing import median_ms
from layers.tuning import autotuned
from spaces.portable.formats import WriteOptions, check_format, tuned_file
from spaces.portable.skeleton import Skeleton, make_skeleton
from trainers.runtime.determinism import eval_mode
from trainers.runtime.place import Latency, Place
from trainers.runtime.runtimes import DEFAULT_RUNTIME, DEFAULT_THREADS
from trainers.runtime.sessions import Images, open_session
from trainers.runtime.threads import num_threads
from trainers.runtime.timing_lock import timing_lock

__all__ = ["BATCHES", "file_latency", "latency_ms", "model_latency", "random_images", "trace_skeleton"]

BATCHES = (1, 64)
"""Batch sizes that latency is taken at."""
_WARM_UP = 5
_TIMED = 30
_BUDGET_S = 5.0
_FILE_WARM_UP = 2
_FILE_TIMED = 300
_FILE_BUDGET_S = 0.6
"""A search times the file of every trial: seconds for each batch size."""


def model_latency(
    model: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device | str,
    *,
    runtime: str = DEFAULT_RUNTIME,
    threads: int | None = None,
    skeleton: Callable[[], Skeleton],
) -> Latency:
    """Return the latency of a model for images (C, H, W): its own in PyTorch, else that of its ONNX file on the CPU.

    The file is made from the network's `skeleton`. Threads are those of `Place.of`.
    """
    place = Place.of(runtime, threads, device)
    if runtime != DEFAULT_RUNTIME:
        with timing_lock(), translate_errors("cannot write the model as onnx", Exception):
            options = WriteOptions(runtime=runtime)
            content = tuned_file(skeleton(), model, options, threads=threads or DEFAULT_THREADS)
        return file_latency(Path("model.onnx"), runtime, threads=threads or DEFAULT_THREADS, content=content)
    with timing_lock(), num_threads(place.latency_threads or torch.get_num_threads()):
        single, batch = (latency_ms(model, shape, device, batch_size=size) for size in BATCHES)
    return Latency(**asdict(place), latency_ms=single, latency_b64_ms=batch)


def trace_skeleton(baseline: nn.Module, shape: tuple[int, int, int]) -> Skeleton:
    """Return the ONNX graph of an uncompressed network for images (C, H, W), from which its copies' files are made.

    Raises `OvertoneError` if the exporter cannot write it, and `UsageError` if a package is missing.
    """
    check_format("onnx")
    with translate_errors("cannot write the network as onnx", Exception):
        return make_skeleton(baseline, shape)


def file_latency(file: Path, runtime: str, *, threads: int, content: bytes | None = None) -> Latency:
    """Return the latency of a file on the CPU; arguments and errors are those of `open_session`.

    Each is a median of up to 300 passes in 0.6 seconds, after 2 untimed ones.
    """
    device = torch.device("cpu")
    with timing_lock(), num_threads(threads):
        session = open_session(file, runtime, threads=threads, content=content)
        calls = (session.call(random_images(size, session.shape)) for size in BATCHES)
        single, batch = (
            median_ms(call, device, runs=_FILE_TIMED, warm_up=_FILE_WARM_UP, budget_s=_FILE_BUDGET_S) for call in calls
        )
    return Latency(**asdict(Place.of(runtime, threads, device)), latency_ms=single, latency_b64_ms=batch)


def latency_ms(
    model: nn.Module, shape: tuple[int, int, int], device: torch.device | str, *, batch_size: int = 1
) -> float:
    """Return the median time of one forward pass over a batch of images (C, H, W), of 30 timed runs after 5 untimed.

    If those take more than 5 seconds there are fewer runs, but always 3 timed ones after an untimed one. Each layer
    runs in the exact form that is fastest here (`layers.autotune`).
    """
    device = torch.device(device)
    images = torch.from_numpy(random_images(batch_size, shape)).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    with eval_mode(model.to(device)), autotuned(model, images):
        return median_ms(lambda: model(images), device, runs=_TIMED, warm_up=_WARM_UP, budget_s=_BUDGET_S)


def random_images(count: int, shape: Sequence[int]) -> Images:
    """Return a batch of images, the same whenever it is asked for."""
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)
