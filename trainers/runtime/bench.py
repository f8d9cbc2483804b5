"""Exported files timed where they will run, alone or against another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from layers.errors import UsageError
from spaces.packed import OwnModel
from trainers.runtime.device import device_name
from trainers.runtime.latency import BATCHES
from trainers.runtime.runtimes import DEFAULT_THREADS, check_threads, runtime_of_file
from trainers.runtime.sessions import Session, open_session
from trainers.runtime.threads import num_threads
from trainers.runtime.turns import Turns, time_by_turns

__all__ = ["bench"]

_BUDGET_S = 4.0


def bench(
    file: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    runtime: str | None = None,
    threads: int = DEFAULT_THREADS,
    batches: Sequence[int] = BATCHES,
    model: OwnModel | None = None,
    budget_s: float = _BUDGET_S,
) -> dict[str, Any]:
    """Return how long a file takes on this machine's CPU for batches of random images, as plain JSON data.

    With `against`, the two files take turns in 7 to 101 rounds a batch size, as the seconds of `budget_s` allow, and
    `ratios` say how long the first takes of the second's time, with a 95 % interval. `runtime` is onnxruntime or
    openvino for .onnx files, and torch for .pt2 and .safetensors; `threads` are those of each pass. `model` is that of
    `load_model`, for a network of your own. Raises `UsageError` for values that are not allowed, and `OvertoneError`
    for a file that the runtime cannot run.
    """
    check_threads(threads)
    for batch in batches:
        if batch < 1:
            raise UsageError(f"batch (={batch}) must be at least 1")
    paths = [Path(path) for path in (file, against) if path is not None]
    runtimes = [runtime_of_file(path, runtime) for path in paths]
    with num_threads(threads):
        sessions = [
            open_session(path, name, threads=threads, model=model) for path, name in zip(paths, runtimes, strict=True)
        ]
        _check_shapes(sessions)
        turns = time_by_turns(sessions, list(dict.fromkeys(batches)), budget_s=budget_s)
    return {
        "device": device_name(torch.device("cpu")),
        "threads": threads,
        "versions": {name: version for session in sessions for name, version in session.versions.items()},
        "files": [_file(path, index, sessions[index], turns) for index, path in enumerate(paths)],
        "ratios": {str(turn.batch): asdict(turn.ratio) for turn in turns if turn.ratio is not None},
        "rounds": {str(turn.batch): turn.rounds for turn in turns},
    }


def _file(path: Path, index: int, session: Session, turns: Sequence[Turns]) -> dict[str, Any]:
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "runtime": session.runtime,
        "latency_ms": {str(turn.batch): turn.ms[index] for turn in turns},
    }


def _check_shapes(sessions: Sequence[Session]) -> None:
    first, last = sessions[0], sessions[-1]
    if first.shape != last.shape:
        sizes = ["x".join(map(str, session.shape)) for session in (first, last)]
        raise UsageError(
            f"against (={last.name!r}) must take images of {sizes[0]} as {first.name!r} does, not {sizes[1]}"
        )
