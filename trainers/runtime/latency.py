"""How fast a network is: a model on a device, or a file in a runtime, one at a time on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from layers.timing import median_ms
from layers.tuning import autotuned
from trainers.runtime.determinism import eval_mode
from trainers.runtime.device import device_name
from trainers.runtime.sessions import Images, open_session
from trainers.runtime.threads import num_threads
from trainers.runtime.timing_lock import timing_lock

__all__ = ["BATCHES", "Latency", "file_latency", "latency_ms", "model_latency", "random_images"]

BATCHES = (1, 64)
"""Batch sizes that latency is taken at."""
_WARM_UP = 5
_TIMED = 30
_BUDGET_S = 5.0
_FILE_WARM_UP = 2
_FILE_TIMED = 300
_FILE_BUDGET_S = 0.6
"""A search times the file of every trial: seconds for each batch size."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median times of a pass over 1 and 64 images, and where they were taken: comparable if all of that is equal."""

    latency_ms: float
    latency_b64_ms: float
    latency_runtime: str
    latency_threads: int | None
    """CPU threads, None on a GPU."""
    latency_device: str


def model_latency(
    model: nn.Module, shape: tuple[int, int, int], device: torch.device, *, threads: int | None = None
) -> Latency:
    """Return the latency of a model in PyTorch, with the process's threads unless others are asked for."""
    with timing_lock(), num_threads(threads or torch.get_num_threads()):
        single, batch = (latency_ms(model, shape, device, batch_size=size) for size in BATCHES)
        return _latency("torch", single, batch, device, torch.get_num_threads())


def file_latency(file: Path, runtime: str, *, threads: int, content: bytes | None = None) -> Latency:
    """Return the latency of a file on the CPU; arguments and errors are those of `open_session`.

    Each is a median of up to 300 passes in 0.6 seconds, after 2 untimed ones.
    """
    device = torch.device("cpu")
    with timing_lock(), num_threads(threads):
        session = open_session(file, runtime, threads=threads, content=content)
        calls = [session.call(random_images(size, session.shape)) for size in BATCHES]
        single, batch = (
            median_ms(call, device, runs=_FILE_TIMED, warm_up=_FILE_WARM_UP, budget_s=_FILE_BUDGET_S) for call in calls
        )
        return _latency(runtime, single, batch, device, threads)


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


def _latency(runtime: str, single: float, batch: float, device: torch.device, threads: int) -> Latency:
    return Latency(
        latency_ms=single,
        latency_b64_ms=batch,
        latency_runtime=runtime,
        latency_threads=threads if device.type == "cpu" else None,
        latency_device=device_name(device),
    )
