"""Timing sides against each other: all take turns within a round, in an order that moves on by one a round."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["take_turns"]

_CALL_S = 0.002
"""A timing holds as many calls as take so long."""


def take_turns(
    sides: Mapping[Any, Callable[[], Any]], rounds: int, device: torch.device | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Of each side in each round its key, and round, seconds of a call and load average; what warms up is not told."""
    names, calls = list(sides), {}
    for name, call in sides.items():
        call()
        calls[name] = max(1, round(_CALL_S / max(_seconds(call, 1, device), 1e-7)))
    for turn in range(rounds):
        for index in range(len(names)):
            name = names[(turn + index) % len(names)]
            seconds = _seconds(sides[name], calls[name], device)
            yield name, {"round": turn, "seconds": seconds, "load": os.getloadavg()[0]}


def _seconds(call: Callable[[], Any], calls: int, device: torch.device | None) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
