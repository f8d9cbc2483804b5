"""Trials of a trained ResNet-20 on CIFAR-10 as JPEG images, for benchmarks that compare what can be made of it.

A trial is the calibrated start (or another, where a run names it), then some epochs of one cycle of SGD to 1e-2 in
bfloat16 with the uncompressed network's outputs as targets, over the first `--train-limit` images of the training
split. The weights have seen all training images, so validation images are 5,000 of the test images and the other 5,000
the test images. Each trial runs in a process of its own with one thread. Rows are kept as trials end, and the same
command goes on from there.
"""

import argparse
import multiprocessing
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from rich.progress import track
from torch import nn

from layers import CompressedConv2d, LayerForm, compressed_layers
from layers.calibration.series import OutputRegression
from layers.calibration.templates import TemplateRegression
from spaces import Network, NetworkConfig, state_sha256
from spaces.blocks import Granularity
from trainers.data import Data, DataSpec, Split, load_data
from trainers.evaluation import evaluate
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.start import calibration
from trainers.training.recipe import TrainingRecipe
from trainers.trial import Trial, load_baseline

RECIPE = TrainingRecipe(lr=1e-2, batch_size=128, precision="bf16", distillation=1.0)

Run = dict[str, Any]
"""What a row is known by: plain values, `seed` among them."""

_STARTS = {"identity": "least_squares", "least_squares": "least_squares"}
"""What a trial's start is called where it is not calibrated, by a run's; the identity is put in its place."""

_RECIPE = ("lr", "batch_size", "distillation", "precision")
"""Settings of the recipe that a run may have of its own."""

_shared: dict[str, Any] = {}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that these benchmarks share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    found.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    found.add_argument("--train-limit", type=int, default=5_000, help="training images of each run")
    found.add_argument("--epochs", type=int, default=5)
    found.add_argument("--seeds", type=int, default=1)
    found.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    found.add_argument("--out", type=Path, default=Path(__file__).parent)
    return found


def run_trials(
    arguments: argparse.Namespace,
    table: str,
    runs: Sequence[Run],
    config: Callable[[Run], NetworkConfig],
    write: Callable[[pd.DataFrame, Path], None],
) -> None:
    """Run what is missing in `table`.parquet, and have `write` tell of all rows after each."""
    path, key = arguments.out / f"{table}.parquet", list(runs[0])
    done = pd.read_parquet(path).set_index(key) if path.exists() else pd.DataFrame()
    missing = [run for run in runs if tuple(run.values()) not in done.index]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, _load, (arguments,)) as pool:
        futures = [pool.submit(_run, run, config(run)) for run in missing]
        for future in track(as_completed(futures), f"{len(missing)} runs", total=len(missing)):
            row = pd.DataFrame([future.result()]).set_index(key)
            done = pd.concat([done, row]) if len(done) else row
            scratch = path.with_name(f".{path.name}.tmp")
            done.reset_index().to_parquet(scratch, index=False)
            scratch.replace(path)
            write(done.reset_index(), arguments.out)
    if len(done):
        write(done.reset_index(), arguments.out)


def about(rows: pd.DataFrame) -> str:
    """How the rows came about, in sentences."""
    last = rows.iloc[-1]
    return (
        f"{last.train_images:,} training images, {last.epochs} epochs, calibrated start where no other is said, "
        f"bfloat16, {last.device}, {last.jobs} at a time with 1 thread each, torch {last.torch}. Accuracy in % "
        f"on the {last.test_images:,} test images that nothing was chosen on, and on all "
        f"{last.test_images + last.val_images:,} in brackets; mean over n seeds."
    )


def accuracies(rows: pd.DataFrame) -> list[str]:
    """Mean accuracy before and after fine-tuning of the rows of several seeds, as cells of a table."""
    both = [(rows[f"{when}_test"].mean(), rows[f"{when}_val"].mean()) for when in ("pre", "post")]
    return [f"{test:.2f} ({(test + val) / 2:.2f})" for test, val in both]  # as many images in each


def load_subject(arguments: argparse.Namespace, blocks: Granularity = "stage") -> tuple[Data, nn.Module, Network]:
    """Load the data and the trained network of all runs."""
    data = load_data(_data_spec(arguments))
    return data, *load_baseline("resnet20", arguments.weights, data, blocks)


def _data_spec(arguments: argparse.Namespace) -> DataSpec:
    return DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=arguments.train_limit)


def _load(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as the processes of trials do
    data, baseline, network = load_subject(arguments)
    _shared.update(arguments=arguments, spec=_data_spec(arguments), data=data, baseline=baseline, network=network)


def _run(run: Run, config: NetworkConfig) -> Run:
    data, network, arguments = _shared["data"], _shared["network"], _shared["arguments"]
    if run.get("assignment") == "modulo":
        network = _Modulo(**{part.name: getattr(network, part.name) for part in fields(network)})
    spec = TrialSpec(
        model="resnet20",
        weights=arguments.weights,
        weights_sha256=state_sha256(_shared["baseline"]),
        data=_shared["spec"],
        data_fingerprint=data.fingerprint,
        config=config,
        recipe=replace(RECIPE, gradual_pruning=run.get("gradual", 0.0), **{k: run[k] for k in _RECIPE if k in run}),
        init=_STARTS.get(run.get("start", ""), "calibrated"),
        saliency=run.get("saliency", "magnitude"),
        epochs=arguments.epochs,
        seed=run["seed"],
    )
    with _rounding(run.get("rounding", "outputs")):
        trial = Trial(spec, data=data, baseline=_shared["baseline"], network=network, device="cpu")
    if run.get("start") == "identity":
        _set_identity(trial.model)
    before = {split: _top1(trial, images) for split, images in (("val", data.val), ("test", data.test))}
    for _ in trial.epochs():
        pass
    result = trial.result()
    return {
        **run,
        "pre_val": 100 * before["val"],
        "pre_test": 100 * before["test"],
        "post_val": 100 * result.score,
        "post_test": 100 * top1_of_test(trial),
        "size_bytes": result.cost.size_bytes,
        "flops": result.cost.flops,
        "start_s": result.compress_s,
        "finetune_s": result.finetune_s,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "test_images": len(data.test),
        "epochs": arguments.epochs,
        "jobs": arguments.jobs,
        "device": device(),
        "torch": version("torch"),
    }


@contextmanager
def _rounding(kind: str) -> Iterator[None]:
    """Let starts round each value to its nearest, as `values`, or as they do."""
    if kind == "outputs":
        yield
        return
    with ExitStack() as patches:
        patches.enter_context(patch.object(calibration, "_COARSE", 0))
        patches.enter_context(patch.object(OutputRegression, "rounded", lambda _, coefficients: coefficients))
        patches.enter_context(
            patch.object(TemplateRegression, "_rounded_templates", lambda _, rows, __: torch.cat(rows))
        )
        patches.enter_context(patch.object(TemplateRegression, "_rounded_gains", lambda _, gains, __: gains))
        yield


class _Modulo(Network):
    """The network when rebuilt filters have the paper's templates, r mod M."""

    def forms(self, config: NetworkConfig) -> dict[str, LayerForm]:
        return {name: replace(form, assignment=None) for name, form in super().forms(config).items()}


def _set_identity(model: nn.Module) -> None:
    """Let every filter that is rebuilt by gains be a copy of its template."""
    for layer in compressed_layers(model).values():
        if isinstance(layer, CompressedConv2d) and layer.form.transform == "scalar":
            gains = layer.transforms()
            assert gains is not None
            nn.init.ones_(gains)


def top1_of_test(trial: Trial) -> float:
    """Accuracy on the test images, a share."""
    return _top1(trial, trial.data.test)


def _top1(trial: Trial, images: Split) -> float:
    return evaluate(trial.model, images, trial.data.normalize, device="cpu").top1


def device() -> str:
    """Return the processor's name as the system has it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
