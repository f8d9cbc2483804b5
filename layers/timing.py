"""How long a call takes on a device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["median_ms"]

_LEAST_RUNS = 3


def median_ms(
    call: Callable[[], Any], device: torch.device, *, runs: int, warm_up: int, budget_s: float = math.inf
) -> float:
    """Return the median time of one call in milliseconds, of `runs` calls timed after `warm_up` calls that are not.

    There are no more calls once they have taken `budget_s` seconds together; the first of those made are the warm-up
    then. One call that is not timed and three that are timed are always made. CUDA is timed by its own events, so what
    the host does between launches counts only if the device waits for it.
    """
    times: list[float] = []
    least = min(warm_up, 1) + min(runs, _LEAST_RUNS)
    while len(times) < least or (len(times) < warm_up + runs and sum(times) < 1000 * budget_s):
        times.append(_elapsed_ms(call, device))
    return statistics.median(times[min(warm_up, len(times) - min(runs, _LEAST_RUNS)) :])


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
