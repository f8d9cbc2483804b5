"""How long a call takes on a device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["median_ms"]


_LEAST = 3


def median_ms(
    call: Callable[[], Any], device: torch.device, *, runs: int, warm_up: int, budget_s: float = math.inf
) -> float:
    """Median time of one call in milliseconds, of `runs` that are timed after `warm_up` that are not.

    Once all calls together have taken `budget_s` seconds there are no more of them, and of those that there were, the
    first ones are warm-up; one call that is not timed and three that are there always are.
    CUDA is timed by its own events, so what the host does between launches counts only where the device waits for it.
    """
    times: list[float] = []
    least = min(warm_up, 1) + min(runs, _LEAST)
    while len(times) < least or (len(times) < warm_up + runs and sum(times) < 1000 * budget_s):
        times.append(_elapsed_ms(call, device))
    return statistics.median(times[min(warm_up, len(times) - min(runs, _LEAST)) :])


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
