"""`overtone bench`: how fast exported files are on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands import options
from search.commands.display import bench_lines, print_answer
from trainers.runtime.runtimes import DEFAULT_THREADS

__all__ = ["bench"]


def bench(
    file: Annotated[
        Path, typer.Argument(help="Exported model: .onnx, .pt2 or .safetensors.", rich_help_panel=options.TRIALS)
    ],
    against: Annotated[
        Path | None, options.option(options.TRIALS, "Another file, which takes turns with the first. Default: none.")
    ] = None,
    runtime: options.FileRuntime = None,
    threads: Annotated[int, options.option(options.TRIALS, "CPU threads of each pass.", min=1)] = DEFAULT_THREADS,
    batch: Annotated[
        list[int] | None,
        options.option(options.TRIALS, "Images in each pass; repeat it for each size. Default: 1 and 64.", min=1),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time exported files on this machine's CPU.

    With --against the two files take turns, so that whatever else the machine does meets both alike, and the ratio of
    their times comes with a 95 % interval over the rounds.

    Example: overtone bench model/model.onnx --against original.onnx --threads 4
    """
    from trainers.runtime.bench import bench
    from trainers.runtime.latency import BATCHES

    answer = bench(file, against, runtime=runtime, threads=threads, batches=batch or BATCHES)
    print_answer(answer, "\n".join(bench_lines(answer)), as_json)
