"""Timing sides against each other: all take turns within a round, in an order that moves on by one a round."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

__all__ = ["take_turns"]

_TURN_S = 0.002


def take_turns(
    sides: Mapping[Any, Callable[[], Any]],
    rounds: int,
    device: torch.device | None = None,
    *,
    turn_s: float = _TURN_S,
    warm: bool = False,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Of each side in each round its key, and round, seconds of a call and load average; what warms up is not told.

    A turn is as many calls as take so long, one at least. Where it is to be `warm` a call that does not count goes
    before them, so that the caches hold what the side itself has used and not what the others have.
    """
    names, calls = list(sides), {}
    for name, call in sides.items():
        call()
        calls[name] = max(1, round(turn_s / max(_seconds(call, 1, device), 1e-7)))
    for turn in range(rounds):
        for index in range(len(names)):
            name = names[(turn + index) % len(names)]
            if warm:
                sides[name]()
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
