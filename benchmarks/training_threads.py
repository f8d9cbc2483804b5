"""An epoch of a small network on all of a CPU's threads, and on as many as fine-tuning takes
(`trainers.runtime.threads`).

    python benchmarks/training_threads.py [--rounds 5]

The ResNet-8 on scikit-learn's digits, trained and validated as `overtone train` does, with torch's own number of
threads: on a quiet machine, and beside as many processes as there are cores that each train on one thread. Sides take
turns, each time in a process of its own, for the system may leave threads for long where it has put them first. The
first epoch does not count, nor does starting. On a busy machine an epoch takes one time or quite another, so each is
told, and rounds are added to those that `training_threads.parquet` has. Writes `training_threads.md` too.
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

from trainers.data import DataSpec, load_data
from trainers.runtime.device import keep_freed_memory
from trainers.train import random_network
from trainers.training import loop
from trainers.training.recipe import RECIPES

_CONTEXT = multiprocessing.get_context("spawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    path = arguments.out / "training_threads.parquet"
    most, found = torch.get_num_threads(), pd.read_parquet(path).to_dict("records") if path.exists() else []
    about, done = {"device": device(), "torch": version("torch")}, 1 + max((row["round"] for row in found), default=-1)
    for beside in (0, most):
        with _beside(beside):
            for turn in track(range(done, done + arguments.rounds), f"beside {beside} others"):
                for side in ("all", "taken")[:: 1 if turn % 2 else -1]:
                    with ProcessPoolExecutor(1, _CONTEXT) as pool:
                        count, seconds = pool.submit(_epoch, most, side == "all").result()
                    row = {"beside": beside, "round": turn, "side": side, "threads": count, "seconds": seconds}
                    found.append(row | about)
    runs = pd.DataFrame(found)
    runs.to_parquet(path, index=False)
    (arguments.out / "training_threads.md").write_text(_markdown(runs))
    print(_markdown(runs))


def _epoch(most: int, everything: bool) -> tuple[int, float]:
    """Threads of a step, and seconds of the second epoch."""
    keep_freed_memory()
    torch.set_num_threads(most)
    with patch.object(loop, "threads_for_step", lambda *_, **__: most) if everything else nullcontext():
        training = _training(epochs=2)
    *_, last = training
    return training.threads, last.seconds


def _training(epochs: int) -> loop.TrainingLoop:
    data, recipe = load_data(DataSpec()), RECIPES["baseline"]
    model = random_network("resnet8", data, seed=0)
    return loop.TrainingLoop(model, data, recipe, epochs=epochs, seed=0, device="cpu")


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
        "ResNet-8 on digits, seconds of an epoch with its validation, each of "
        f"n = {runs['round'].nunique()} processes from the quickest on; {first.device}, torch {first.torch}.",
        "",
        "| processes beside it that train | threads of a step | | seconds |",
        "|---|---|---|---|",
    ]
    for (beside, side), same in runs.groupby(["beside", "side"]):
        told = ", ".join(f"{seconds:.2f}" for seconds in sorted(same.seconds))
        which = "all" if side == "all" else "as fine-tuning takes them"
        lines.append(f"| {beside} | {same.threads.iloc[0]} | {which} | {told} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
