"""Costain & Prisacariu's Table 1 on a ResNet-20: their way of compressing and fine-tuning it, and ours.

    python benchmarks/approxconv_table1.py --data DIR --weights FILE [--jobs 2] [--seeds 1] [--harsh-seeds 3]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. Each run is one trial of 5 epochs
over all 50,000 training images in bfloat16, in a process of its own with `--threads` threads. Finished runs are in
`approxconv_table1.parquet` at once; the command goes on from there, and writes `approxconv_table1.md` after each.

The weights have seen all training images, so validation images are 5,000 of the test images and the other 5,000 the
test images; our recipe was chosen on the validation images. Arms:

- `paper`: coefficients by gradient descent (eq. 5), basis functions as the paper writes them, not scaled to unit
  length, SGD at 1e-4, a tenth of it after epoch 3;
- `calibrated`: our start, then the paper's recipe;
- `ours`: our start, one cycle of SGD to 1e-2, the uncompressed network's outputs as targets;
- `ours per filter`: the same, as many coefficients spent across each layer's filters (`allocation: filter`).

The control row is the uncompressed network by the same recipe.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from resnet20_trials import device, top1_of_test
from rich.progress import track
from torch import nn

from layers import compressed_layers
from layers.conv import CompressedConv2d
from layers.form import Allocation
from layers.series.basis import Basis
from spaces import BlockConfig, NetworkConfig, state_sha256
from trainers.data import DataSpec, load_data
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.training.recipe import RECIPES, TrainingRecipe
from trainers.trial import Trial, load_baseline

_BLOCKS = ("conv1", "layer1", "layer2", "layer3")
_ROWS = ("3,3,3,2", "3,3,2,2", "3,2,2,2", "2,2,2,3", "2,2,2,2")
_HARSH = ("3,2,2,2", "2,2,2,3", "2,2,2,2")
_CONTROL = "3,3,3,3"
_FAMILIES: tuple[Basis, ...] = ("cosine", "chebyshev")
_PAPER = replace(RECIPES["approxconv"], precision="bf16")
_OURS = TrainingRecipe(lr=1e-2, batch_size=128, precision="bf16", distillation=1.0)
_ARMS: dict[str, tuple[str, TrainingRecipe, Allocation | None]] = {
    "paper": ("gradient_descent", _PAPER, None),
    "calibrated": ("calibrated", _PAPER, None),
    "ours": ("calibrated", _OURS, None),
    "ours per filter": ("calibrated", _OURS, "filter"),
}
_KEY = ["arm", "family", "harmonics", "seed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--arms", nargs="+", default=list(_ARMS), choices=list(_ARMS))
    parser.add_argument("--rows", nargs="+", default=[_CONTROL, *_ROWS], choices=[_CONTROL, *_ROWS])
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every row")
    parser.add_argument("--harsh-seeds", type=int, default=3, help=f"seeds of {', '.join(_HARSH)}")
    parser.add_argument("--train-limit", type=int, help="use fewer training images, for a look; not what we report")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    done = _done(arguments.out)
    runs = [run for run in _runs(arguments) if tuple(run[name] for name in _KEY) not in done.index]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, _load, (arguments,)) as pool:
        futures = [pool.submit(_run, run) for run in runs]
        for future in track(as_completed(futures), f"{len(runs)} runs", total=len(runs)):
            row = pd.DataFrame([future.result()]).set_index(_KEY)
            done = pd.concat([done, row]) if len(done) else row
            _write(done, arguments.out)
            print(row.T.to_string(header=False), flush=True)
    print((arguments.out / "approxconv_table1.md").read_text())


def _runs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the runs, the most telling first."""
    runs = []
    for seed in range(max(arguments.seeds, arguments.harsh_seeds)):
        rows = [row for row in reversed(_ROWS) if seed < arguments.seeds or row in _HARSH]
        for family in _FAMILIES:
            for row in rows:
                runs += [
                    {"arm": arm, "family": family, "harmonics": row, "seed": seed}
                    for arm in ("ours", "ours per filter", "paper")
                    if family == "cosine" or (arm == "paper" and seed < arguments.seeds)
                ]
            if family == "cosine" and seed == 0:
                runs += [{"arm": arm, "family": family, "harmonics": _CONTROL, "seed": 0} for arm in ("ours", "paper")]
        if seed < arguments.seeds:
            runs += [{"arm": "calibrated", "family": "cosine", "harmonics": row, "seed": seed} for row in rows]
    return [run for run in runs if run["arm"] in arguments.arms and run["harmonics"] in arguments.rows]


_shared: dict[str, Any] = {}


def _load(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the processes of trials do
    spec = DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=arguments.train_limit)
    data = load_data(spec)
    baseline, network = load_baseline("resnet20", arguments.weights, data)
    _shared.update(arguments=arguments, spec=spec, data=data, baseline=baseline, network=network)


def _run(run: dict[str, Any]) -> dict[str, Any]:
    data, network, arguments = _shared["data"], _shared["network"], _shared["arguments"]
    init, recipe, allocation = _ARMS[run["arm"]]
    spec = TrialSpec(
        model="resnet20",
        weights=arguments.weights,
        weights_sha256=state_sha256(_shared["baseline"]),
        data=_shared["spec"],
        data_fingerprint=data.fingerprint,
        config=_config(run["harmonics"], run["family"], allocation),
        recipe=recipe,
        init=init,
        epochs=arguments.epochs,
        seed=run["seed"],
    )
    trial = Trial(spec, data=data, baseline=_shared["baseline"], network=network, device="cpu")
    if run["arm"] == "paper":
        _unscale(trial.model, run["family"])
    before = top1_of_test(trial)
    for _ in trial.epochs():
        pass
    result = trial.result()
    whole = network.cost(NetworkConfig())
    return {
        **run,
        "pre_val": 100 * result.init_score,
        "pre_test": 100 * before,
        "post_val": 100 * result.score,
        "post_test": 100 * top1_of_test(trial),
        "percent_parameters": 100 * _paper_count(result.cost) / _paper_count(whole),
        "size_bytes": result.cost.size_bytes,
        "flops": result.cost.flops,
        "start_s": result.compress_s,
        "finetune_s": result.finetune_s,
        "train_images": len(data.train),
        "val_images": len(data.val),
        "test_images": len(data.test),
        "epochs": arguments.epochs,
        "init": init,
        "recipe": str(asdict(recipe)),
        "threads": arguments.threads,
        "jobs": arguments.jobs,
        "device": device(),
        "torch": version("torch"),
    }


def _config(harmonics: str, family: Basis, allocation: Allocation | None) -> NetworkConfig:
    counts = dict(zip(_BLOCKS, map(int, harmonics.split(",")), strict=True))
    blocks = {
        name: BlockConfig(basis=family, harmonics=(n, n), allocation=allocation) for name, n in counts.items() if n < 3
    }
    return NetworkConfig(blocks=blocks)


def _unscale(model: nn.Module, family: str) -> None:
    """Give the basis functions the lengths that a family's formulas give them; the filters stay the same.

    The family is not asked of the layers: at unit length both are one basis there, which goes by the first name.
    """
    for layer in compressed_layers(model).values():
        assert isinstance(layer, CompressedConv2d)
        assert layer.phi_y is not None
        assert layer.phi_x is not None
        with torch.no_grad():
            # phi_0 = 1 and phi_i(0) = 1 at the first tap of Chebyshev; cosine's first tap is at half a sample
            first = torch.arange(layer.phi_y.shape[1])
            angle = torch.pi / 6 if family == "cosine" else 0.0
            length = torch.cos(angle * first) / layer.phi_y[0]
            layer.phi_y *= length
            layer.phi_x *= length
            layer.coefficients.div_(length[:, None] * length)


def _paper_count(cost: Any) -> int:
    """Every parameter except those of norms, as the paper counts."""
    parameters: int = cost.parameters - _shared["network"].rest.parameters
    return parameters


def _done(out: Path) -> pd.DataFrame:
    path = out / "approxconv_table1.parquet"
    return pd.read_parquet(path).set_index(_KEY) if path.exists() else pd.DataFrame()


def _write(done: pd.DataFrame, out: Path) -> None:
    scratch = out / ".approxconv_table1.parquet.tmp"
    done.reset_index().to_parquet(scratch, index=False)
    scratch.replace(out / "approxconv_table1.parquet")
    (out / "approxconv_table1.md").write_text(_markdown(done.reset_index()))


def _markdown(runs: pd.DataFrame) -> str:
    last = runs.iloc[-1]
    about = (
        f"{last.train_images:,} training images, {last.epochs} epochs, bfloat16, {last.device}, {runs.jobs.min()} or "
        f"{runs.jobs.max()} runs at a time with {last.threads} thread each, torch {last.torch}. Accuracy in % on the "
        f"{last.test_images:,} test "
        f"images that nothing was chosen on, and on all {last.test_images + last.val_images:,} in brackets; mean over "
        "n seeds, with the range where n > 1. Seconds depend on what else the machine did. With 3 taps and 2 harmonics "
        "both families are one network when basis functions have unit length: what is not `paper` stands for both."
    )
    lines = ["# Table 1 of Costain & Prisacariu on ResNet-20", "", about, ""]
    lines += ["| harmonics | parameters | arm | basis | kB | n | before | after | drop | start s | fine-tuning s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
    controls = runs[runs.harmonics == _CONTROL]
    best = max(controls.post_test.max(), controls.pre_test.max()) if len(controls) else float("nan")
    for row in (_CONTROL, *_ROWS):
        for arm in _ARMS:
            for family in _FAMILIES:
                found = runs[(runs.harmonics == row) & (runs.arm == arm) & (runs.family == family)]
                if len(found):
                    lines.append(_line(row, arm, family, found, best))
    base = f"Drops are from {best:.2f}, the better of the uncompressed network as it came and after each recipe."
    known = set(zip(runs.harmonics, runs.arm, strict=True))
    wanted = [(_CONTROL, "paper"), (_CONTROL, "ours"), *((row, arm) for row in _ROWS for arm in _ARMS)]
    missing = [f"{row} {arm}" for row, arm in wanted if (row, arm) not in known]
    lines += ["", base if len(controls) else "The control has not been run, so no drops are given."]
    lines += ["", f"Not run: {'; '.join(missing)}."] if missing else []
    return "\n".join([*lines, ""])


def _line(row: str, arm: str, family: str, found: pd.DataFrame, best: float) -> str:
    name = "none (control)" if row == _CONTROL else family if arm == "paper" else "either"
    after = found.post_test.mean()
    cells = [
        row,
        f"{found.percent_parameters.iloc[0]:.2f} %",
        arm,
        name,
        f"{found.size_bytes.iloc[0] / 1000:.1f}",
        str(len(found)),
        _accuracy(found.pre_test, found.pre_val),
        _accuracy(found.post_test, found.post_val),
        "" if best != best else f"{best - after:.2f}",
        f"{found.start_s.mean():.1f}",
        f"{found.finetune_s.mean():.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _accuracy(test: pd.Series, val: pd.Series) -> str:
    both = (test.mean() + val.mean()) / 2  # as many images in each
    spread = f" {test.min():.2f} to {test.max():.2f}" if len(test) > 1 else ""
    return f"{test.mean():.2f}{spread} ({both:.2f})"


if __name__ == "__main__":
    main()
