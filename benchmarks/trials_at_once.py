"""Trials an hour by how many run at a time on one device.

    python benchmarks/trials_at_once.py --data DIR --weights FILE [--at-once 1 2 4] [--device cpu] [--train-limit N]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE a trained ResNet-20. A trial is what a search runs: the
calibrated start, then an epoch over `--train-limit` images, validation before and after, for a config of its own. Each
process runs trials one after another, as an actor of a search does, with its share of the CPU's threads; all share one
GPU where `--device cuda` says so, as `overtone search --gpus-per-trial` lets them. What loads the data is not timed;
rounds of all settings take turns, after a trial in each process that is not timed. Writes `trials_at_once.parquet` and
`trials_at_once.md`.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from importlib.metadata import version
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pandas as pd
import torch

from spaces import BlockConfig, NetworkConfig, state_sha256
from trainers.data import DataSpec, load_data
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.training.recipe import TrainingRecipe
from trainers.trial import Trial, load_baseline

_BLOCKS = ("conv1", "layer1", "layer2", "layer3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of a trained ResNet-20")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trials", type=int, default=4, help="trials of a setting and round, in all its processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-limit", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows = []
    for number in range(arguments.rounds):
        for at_once in arguments.at_once:
            seconds = _seconds(at_once, arguments)
            trials = at_once * (arguments.trials // at_once)
            rows.append({"round": number, "at_once": at_once, "trials": trials, "seconds": seconds})
            print(f"round {number + 1}, {at_once} at a time: {3600 * trials / seconds:,.0f} trials an hour", flush=True)
    _write(pd.DataFrame(rows), arguments)


def _seconds(at_once: int, arguments: argparse.Namespace) -> float:
    """From when all processes have run a trial for nothing to when all have run theirs."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(at_once + 1)
    work = [context.Process(target=_run, args=(number, at_once, gate, arguments)) for number in range(at_once)]
    for process in work:
        process.start()
    gate.wait()
    begun = time.perf_counter()
    for process in work:
        process.join()
    if any(process.exitcode for process in work):
        raise RuntimeError(f"a process of {at_once} ended with an error")
    return time.perf_counter() - begun


def _run(number: int, at_once: int, gate: Barrier, arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // at_once))
    spec = DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=arguments.train_limit)
    data = load_data(spec)
    baseline, network = load_baseline("resnet20", arguments.weights, data)

    def trial(seed: int) -> None:
        blocks = {
            name: BlockConfig(basis="cosine", harmonics=(2, 2 + (seed + i) % 2)) for i, name in enumerate(_BLOCKS)
        }
        asked = TrialSpec(
            model="resnet20",
            weights=arguments.weights,
            weights_sha256=sha256,
            data=spec,
            data_fingerprint=data.fingerprint,
            config=NetworkConfig(blocks=blocks),
            recipe=TrainingRecipe(batch_size=arguments.batch_size),
            epochs=1,
            seed=seed,
        )
        run = Trial(asked, data=data, baseline=baseline, network=network, device=arguments.device)
        for _ in run.epochs():
            pass
        run.result()

    sha256 = state_sha256(baseline)
    trial(0)
    gate.wait()
    for turn in range(arguments.trials // at_once):
        trial(1 + turn * at_once + number)


def _write(runs: pd.DataFrame, arguments: argparse.Namespace) -> None:
    runs["per_hour"] = 3600 * runs.trials / runs.seconds
    runs["device"] = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    runs["cores"], runs["torch"] = len(os.sched_getaffinity(0)), version("torch")
    runs.to_parquet(arguments.out / "trials_at_once.parquet", index=False)
    first = runs[runs.at_once == arguments.at_once[0]].set_index("round").per_hour
    lines = ["# Trials an hour", ""]
    lines += [
        f"ResNet-20, calibrated start, one epoch over {arguments.train_limit:,} images, {runs.device[0]}, "
        f"{runs.cores[0]} cores shared out, torch {runs.torch[0]}, n = {arguments.rounds} rounds; medians with ranges.",
        "",
        f"| at a time | trials an hour | range | against {arguments.at_once[0]} at a time | range |",
        "|---|---|---|---|---|",
    ]
    for at_once in arguments.at_once:
        found = runs[runs.at_once == at_once].set_index("round").per_hour
        ratio = found / first
        lines.append(
            f"| {at_once} | {statistics.median(found):,.0f} | {found.min():,.0f} to {found.max():,.0f} | "
            f"{statistics.median(ratio):.2f} | {ratio.min():.2f} to {ratio.max():.2f} |"
        )
    (arguments.out / "trials_at_once.md").write_text("\n".join([*lines, ""]))
    print((arguments.out / "trials_at_once.md").read_text())


if __name__ == "__main__":
    main()
