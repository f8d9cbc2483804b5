"""Timing sides against each other: all take turns within a round, in an order that moves on by one a round."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from resnet20_trials import device as processor

__all__ = ["compare", "machine", "publish", "take_turns"]

_TURN_S = 0.002
_ALIKE = ["model", "device", "precision", "threads"]
"""What tells one measurement from another in the same file."""


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


def machine(device: torch.device) -> dict[str, Any]:
    """Return a row's columns about the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": version("torch")}


def publish(found: pd.DataFrame, path: Path, title: str, what: str, **of: Any) -> None:
    """Add the rows to a Parquet file, in the place of those measured alike, and show it all as Markdown beside it.

    `what` is said of each measurement, with its columns' values in braces; the rest is for `compare`.
    """
    if path.exists():
        before = pd.read_parquet(path).set_index(_ALIKE)
        others = before.index.difference(found.set_index(_ALIKE).index)
        found = pd.concat([before.loc[others].reset_index(), found], ignore_index=True)
    found.to_parquet(path, index=False)
    lines = [f"# {title}", ""]
    for keys, same in found.groupby(_ALIKE, sort=False):
        first, rounds = same.iloc[0], same["round"].max() + 1
        lines += [
            f"## {', '.join(map(str, keys[:-1]))}, {keys[-1]} thread(s)",
            "",
            f"{what.format(**first)}, torch {first.torch}, n = {rounds} rounds, load average {same.load.min():.1f} to "
            f"{same.load.max():.1f}; medians.",
            "",
            *compare(same, **of),
            "",
        ]
    text = "\n".join(lines)
    path.with_suffix(".md").write_text(text)
    print(text)


def compare(rows: pd.DataFrame, sides: Sequence[str], *, column: str, turn: str) -> list[str]:
    """Markdown of the median milliseconds that each side takes for a turn, and of the ratios to those of the first."""
    seconds = rows.pivot(index="round", columns=column, values="seconds")
    median, first = seconds.median(), sides[0]
    lines = [f"| | ms {turn} | of the first | of rounds |", "|---|---|---|---|"]
    for side in sides:
        ratios = seconds[side] / seconds[first]
        told = f"{median[side] / median[first]:.2f} | {ratios.min():.2f} to {ratios.max():.2f}"
        lines.append(f"| {side} | {1e3 * median[side]:.1f} | {told} |")
    return lines
