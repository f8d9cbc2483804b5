"""Accuracy against bytes in block floating point, on a ResNet-20: filters as they were, and as series.

    python benchmarks/quantisation_accuracy.py --data DIR --weights FILE [--train-limit 10000] [--jobs 2]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. Each run is one trial: the
calibrated start, then 5 epochs of one cycle of SGD to 1e-2 in bfloat16 with the uncompressed network's outputs as
targets, over the first `--train-limit` images of the training split, in a process of its own with one thread. Weights
and layer inputs have 8, 6, 4 or 3 mantissa bits; 1, 16 or 64 consecutive weights share an exponent (inputs: none do).

- `as it was`: nothing else is done to the network;
- `series`: 2 x 2 harmonics in every filter larger than 1 x 1, each filter with as many of its layer's coefficients as
  it makes use of (`allocation: filter`).

Rows with `vectors` hold biases and norms in block floating point too. The weights have seen all training images, so
validation images are 5,000 of the test images and the other 5,000 the test images.

Finished runs are in `quantisation_accuracy.parquet` at once; the command goes on from there, and writes
`quantisation_accuracy.md` and `quantisation_accuracy.png`.
"""

import argparse
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt
from rich.progress import track

from spaces import BlockConfig, NetworkConfig, state_sha256
from spaces.network import VECTORS
from trainers.data import DataSpec, load_data
from trainers.evaluate import evaluate
from trainers.schedule import Schedule
from trainers.spec import TrialSpec
from trainers.trial import Trial, load_baseline

_BLOCKS = ("conv1", "layer1", "layer2", "layer3", "linear")
_SERIES = {"basis": "cosine", "harmonics": (2, 2), "allocation": "filter"}
_FILTERS: dict[str, dict[str, Any]] = {"as it was": {}, "series": _SERIES}
_BITS = (8, 6, 4, 3)
_SHARING = (1, 16, 64)
_VECTORS = (8, 6, 4, 3)
_SCHEDULE = Schedule(lr=1e-2, batch_size=128, precision="bf16", distillation=1.0)
_KEY = ["filters", "bits", "sharing", "vectors", "seed"]
_NONE = 0
"""In the table's key: no block floating point."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--train-limit", type=int, default=10_000, help="training images of each run")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    done = _done(arguments.out)
    runs = [run for run in _runs(arguments.seeds) if tuple(run[name] for name in _KEY) not in done.index]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, _load, (arguments,)) as pool:
        futures = [pool.submit(_run, run) for run in runs]
        for future in track(as_completed(futures), f"{len(runs)} runs", total=len(runs)):
            row = pd.DataFrame([future.result()]).set_index(_KEY)
            done = pd.concat([done, row]) if len(done) else row
            _write(done.reset_index(), arguments.out)
    print((arguments.out / "quantisation_accuracy.md").read_text())


def _runs(seeds: int) -> list[dict[str, Any]]:
    """What is to be run: both without block floating point, all bits and blocks, then biases and norms."""
    runs = []
    for seed in range(seeds):
        for filters in _FILTERS:
            runs.append({"filters": filters, "bits": _NONE, "sharing": _NONE, "vectors": _NONE, "seed": seed})
        for bits in _BITS:
            for sharing in _SHARING:
                for filters in _FILTERS:
                    runs.append({"filters": filters, "bits": bits, "sharing": sharing, "vectors": _NONE, "seed": seed})
        for bits in (8, 4):
            for vectors in _VECTORS:
                runs.append({"filters": "series", "bits": bits, "sharing": 16, "vectors": vectors, "seed": seed})
    return runs


def _config(run: dict[str, Any]) -> NetworkConfig:
    rounding = {"bits": run["bits"], "exponent_block": run["sharing"]} if run["bits"] else {}
    layers = {
        block: BlockConfig(**rounding, **({} if block == "linear" else _FILTERS[run["filters"]])) for block in _BLOCKS
    }
    vectors = {VECTORS: BlockConfig(bits=run["vectors"])} if run["vectors"] else {}
    return NetworkConfig(blocks={**layers, **vectors})


_shared: dict[str, Any] = {}


def _load(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    spec = DataSpec(name=f"parquet:{arguments.data}", validation_from="test", train_limit=arguments.train_limit)
    data = load_data(spec)
    baseline, network = load_baseline("resnet20", arguments.weights, data)
    _shared.update(arguments=arguments, spec=spec, data=data, baseline=baseline, network=network)


def _run(run: dict[str, Any]) -> dict[str, Any]:
    data, network, arguments = _shared["data"], _shared["network"], _shared["arguments"]
    spec = TrialSpec(
        model="resnet20",
        weights=arguments.weights,
        weights_sha256=state_sha256(_shared["baseline"]),
        data=_shared["spec"],
        data_fingerprint=data.fingerprint,
        config=_config(run),
        schedule=_SCHEDULE,
        start="calibrated",
        epochs=arguments.epochs,
        seed=run["seed"],
    )
    trial = Trial(spec, data=data, baseline=_shared["baseline"], network=network, device="cpu")
    before = _test_top1(trial)
    for _ in trial.epochs():
        pass
    result = trial.result()
    return {
        **run,
        "pre_val": 100 * result.zero_shot_top1,
        "pre_test": 100 * before,
        "post_val": 100 * result.val_top1,
        "post_test": 100 * _test_top1(trial),
        "size_bytes": result.cost.size_bytes,
        "start_s": result.compress_s,
        "finetune_s": result.finetune_s,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "test_images": len(data.test),
        "epochs": arguments.epochs,
        "jobs": arguments.jobs,
        "device": _device(),
        "torch": version("torch"),
    }


def _test_top1(trial: Trial) -> float:
    data = trial.data
    return evaluate(trial.model, data.test, mean=data.mean, std=data.std, device="cpu").top1


def _device() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _done(out: Path) -> pd.DataFrame:
    path = out / "quantisation_accuracy.parquet"
    return pd.read_parquet(path).set_index(_KEY) if path.exists() else pd.DataFrame()


def _write(runs: pd.DataFrame, out: Path) -> None:
    scratch = out / ".quantisation_accuracy.parquet.tmp"
    runs.to_parquet(scratch, index=False)
    scratch.replace(out / "quantisation_accuracy.parquet")
    (out / "quantisation_accuracy.md").write_text(_markdown(runs))
    _draw(runs, out / "quantisation_accuracy.png")


def _markdown(runs: pd.DataFrame) -> str:
    last = runs.iloc[-1]
    about = (
        f"{last.train_images:,} training images, {last.epochs} epochs, calibrated start, bfloat16, {last.device}, "
        f"{last.jobs} runs at a time with 1 thread each, torch {last.torch}. Accuracy in % on the {last.test_images:,} "
        f"test images that nothing was chosen on, and on all {last.test_images + last.val_images:,} in brackets; mean "
        "over n seeds. Bits are those of weights and layer inputs; so many weights share an exponent; `vectors` are "
        "bits of biases and norms. `-` is float32."
    )
    lines = ["# Accuracy against bytes in block floating point, ResNet-20", "", about, ""]
    lines += ["| filters | bits | share | vectors | kB | n | before | after |", "|---|---|---|---|---|---|---|---|"]
    order = {name: place for place, name in enumerate(_FILTERS)}
    ranked = runs.assign(rank=runs.filters.map(order), most=-runs.bits.replace(_NONE, 99))
    for _, same in ranked.groupby(["rank", "most", "sharing", "vectors"]):
        first = same.iloc[0]
        cells = [first.filters, *("-" if first[name] == _NONE else str(first[name]) for name in _KEY[1:4])]
        cells += [f"{first.size_bytes / 1000:.1f}", str(len(same))]
        cells += [_accuracy(same[f"{when}_test"], same[f"{when}_val"]) for when in ("pre", "post")]
        lines.append(f"| {' | '.join(cells)} |")
    missing = len(_runs(1)) - len(runs[runs.seed == 0])
    return "\n".join([*lines, "", *([f"{missing} rows are not run yet.", ""] if missing else [])])


def _accuracy(test: pd.Series, val: pd.Series) -> str:
    return f"{test.mean():.2f} ({(test.mean() + val.mean()) / 2:.2f})"  # as many images in each


def _draw(runs: pd.DataFrame, path: Path) -> None:
    """Accuracy on all 10,000 images against kB: a line for each number of bits, along blocks of 1, 16, 64."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    top1 = runs.assign(top1=(runs.post_test + runs.post_val) / 2, kB=runs.size_bytes / 1000)
    means = top1.groupby(_KEY[:4], as_index=False)[["top1", "kB"]].mean().sort_values("kB")
    for (filters, bits), same in means[means.vectors == _NONE].groupby(["filters", "bits"]):
        style = {"color": f"C{(_NONE, *_BITS).index(bits)}", "linestyle": "-" if filters == "series" else ":"}
        name = f"{filters}, {'float32' if bits == _NONE else f'{bits} bits'}"
        axes.plot(same.kB, same.top1, marker="o" if filters == "series" else "s", markersize=4, label=name, **style)
    rounded = means[means.vectors != _NONE]
    axes.scatter(rounded.kB, rounded.top1, marker="x", color="black", zorder=3, label="series, vectors rounded too")
    axes.set(xscale="log", xlabel="size_bytes, kB", ylabel="top-1 of 10,000 images, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
