"""How long a call takes on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["median_ms"]


def median_ms(call: Callable[[], Any], device: torch.device, *, runs: int, warm_up: int) -> float:
    """Median time of one call in milliseconds, of `runs` that are timed after `warm_up` that are not.

    CUDA is timed by its own events, so what the host does between launches counts only where the device waits for it.
    """
    times = [_elapsed_ms(call, device) for _ in range(warm_up + runs)]
    return statistics.median(times[warm_up:])


def _elapsed_ms(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start_s = time.perf_counter()
    call()
    return (time.perf_counter() - start_s) * 1000
