"""An epoch of a small network on all of a CPU's threads, and on as many as fine-tuning takes (`trainers.threads`).

    python benchmarks/training_threads.py [--rounds 5]

The ResNet-8 on scikit-learn's digits, trained and validated as `overtone train` does, with torch's own number of
threads: on a quiet machine, and beside as many processes as there are cores that each train on one thread. Sides take
turns, each time in a process of its own, for the system may leave threads for long where it has put them first. The
first epoch does not count, nor does starting. Writes `training_threads.md` and `training_threads.parquet`.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from resnet20_trials import device
from rich.progress import track

from trainers import finetune
from trainers.baseline import random_network
from trainers.data import DataSpec, load_data
from trainers.device import keep_freed_memory
from trainers.schedule import PRESETS

_CONTEXT = multiprocessing.get_context("spawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    most, found = torch.get_num_threads(), []
    for beside in (0, most):
        with _beside(beside):
            for turn in track(range(arguments.rounds), f"beside {beside} others"):
                for side in ("all", "taken")[:: 1 if turn % 2 else -1]:
                    with ProcessPoolExecutor(1, _CONTEXT) as pool:
                        count, seconds = pool.submit(_epoch, most, side == "all").result()
                    found.append({"beside": beside, "round": turn, "side": side, "threads": count, "seconds": seconds})
    runs = pd.DataFrame(found).assign(device=device(), torch=version("torch"))
    runs.to_parquet(arguments.out / "training_threads.parquet", index=False)
    (arguments.out / "training_threads.md").write_text(_markdown(runs))
    print(_markdown(runs))


def _epoch(most: int, everything: bool) -> tuple[int, float]:
    """Threads of a step, and seconds of the second epoch."""
    keep_freed_memory()
    torch.set_num_threads(most)
    with patch.object(finetune, "step_threads", lambda *_, **__: most) if everything else nullcontext():
        training = _training(epochs=2)
    *_, last = training
    return training._threads, last.seconds


def _training(epochs: int) -> finetune.Finetuning:
    data, schedule = load_data(DataSpec()), PRESETS["baseline"]
    model = random_network("resnet8", data, seed=0)
    return finetune.Finetuning(model, data, schedule, epochs=epochs, seed=0, device="cpu")


@contextmanager
def _beside(count: int) -> Iterator[None]:
    """So many processes that train until they are stopped."""
    others = [_CONTEXT.Process(target=_train_on, daemon=True) for _ in range(count)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()


def _train_on() -> None:
    torch.set_num_threads(1)
    for _ in _training(epochs=1_000_000):
        pass


def _markdown(runs: pd.DataFrame) -> str:
    first = runs.iloc[0]
    lines = [
        "# An epoch of a small network on fewer threads",
        "",
        "ResNet-8 on digits, seconds of an epoch with its validation, medians of "
        f"n = {runs['round'].nunique()} processes with ranges; {first.device}, torch {first.torch}.",
        "",
        "| processes beside it that train | on all threads | | as fine-tuning takes them | | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for beside, same in runs.groupby("beside"):
        sides = [same[same.side == side] for side in ("all", "taken")]
        told = [
            f"{s.threads.iloc[0]} | {s.seconds.median():.2f} ({s.seconds.min():.2f} to {s.seconds.max():.2f})"
            for s in sides
        ]
        lines.append(
            f"| {beside} | {told[0]} | {told[1]} | {sides[0].seconds.median() / sides[1].seconds.median():.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
