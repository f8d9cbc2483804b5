"""Where a compressed ResNet-20 starts before any training: what is fitted to what, on how many images.

    python benchmarks/calibrated_start.py --data DIR --weights FILE [--seeds 3]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. Accuracy is that of 5,000 of the
test images before any fine-tuning; a seed draws the calibration images. Writes `calibrated_start.parquet` (one row a
measurement) and `calibrated_start.md`. Starts:

- `filters`: coefficients nearest to the trained filters (Costain & Prisacariu, eq. 5);
- `filters, norms`: the same, norms re-estimated;
- `outputs, original inputs`: each layer's outputs fitted on the inputs that the uncompressed network has there;
- `outputs, own inputs and targets`: on the compressed network's inputs, to what the original filters make of those;
- `outputs`: on the compressed network's inputs, to the uncompressed network's outputs: `trainers.start.calibration`;
- `outputs, norms kept`: the same without re-estimating norms;
- `outputs, norms of these images`: norms take the statistics of the calibration images, whatever was known before.

Columns are harmonics of conv1, layer1, layer2 and layer3, and block floating point alone.
"""

import argparse
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn

from layers import compress_model
from spaces import BlockConfig, NetworkConfig
from trainers.data import Data, DataSpec, load_data
from trainers.evaluation import evaluate
from trainers.start.calibration import Objective, calibrate, match_outputs
from trainers.start.norm_statistics import InputMoments, NormStatistics, corrected_statistics
from trainers.start.start import calibration_images
from trainers.trial import load_baseline

_BLOCKS = ("conv1", "layer1", "layer2", "layer3")
_BITS = "8 bits"
"""Of weights and inputs."""
_ROWS = ("3,3,3,2", "3,3,2,2", "3,2,2,2", "2,2,2,3", "2,2,2,2", _BITS)


def _leave_layer(original: nn.Module, x: Tensor, x0: Tensor, y0: Tensor) -> None:
    return None


def _original_inputs(original: nn.Module, x: Tensor, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    return x0, y0


def _own_targets(original: nn.Module, x: Tensor, x0: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    return x, original(x)


def _trained_statistics(moments: InputMoments, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    return mean, variance


def _statistics_of_images(moments: InputMoments, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    return moments.mean, moments.square - moments.mean.square()


@dataclass(frozen=True, kw_only=True)
class _Start:
    objective: Objective = match_outputs
    statistics: NormStatistics = corrected_statistics
    images: int = 512


_STARTS: dict[str, _Start | None] = {
    "filters": None,
    "filters, norms": _Start(objective=_leave_layer),
    "outputs, original inputs": _Start(objective=_original_inputs),
    "outputs, own inputs and targets": _Start(objective=_own_targets),
    "outputs": _Start(),
    "outputs, norms kept": _Start(statistics=_trained_statistics),
    "outputs, norms of these images": _Start(statistics=_statistics_of_images),
    "outputs, 128 images": _Start(images=128),
    "outputs, 2048 images": _Start(images=2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load_data(DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=4096))
    baseline, network = load_baseline("resnet20", arguments.weights, data)
    asked = [
        (name, row, seed)
        for name in _STARTS
        for row in _ROWS
        for seed in range(1 if name == "filters" else arguments.seeds)
    ]
    found = []
    for name, row, seed in track(asked, "starts"):
        model = compress_model(baseline, network.forms(_config(row)))
        seconds = _calibrate(_STARTS[name], model, baseline, data, seed)
        top1 = evaluate(model, data.val, data.normalize, device="cpu").top1
        about = {"val_images": len(data.val), "threads": arguments.threads, "torch": version("torch")}
        found.append({"start": name, "harmonics": row, "seed": seed, "top1": 100 * top1, "seconds": seconds, **about})
        runs = pd.DataFrame(found)
        runs.to_parquet(arguments.out / "calibrated_start.parquet", index=False)
        (arguments.out / "calibrated_start.md").write_text(_markdown(runs))
    print(_markdown(runs))


def _calibrate(start: _Start | None, model: nn.Module, baseline: nn.Module, data: Data, seed: int) -> float:
    """Calibrate the model, and return the seconds that it took."""
    if start is None:
        return 0.0
    started = time.perf_counter()
    images = calibration_images(data, seed=seed, device=torch.device("cpu"), count=start.images)
    calibrate(model, baseline, images, objective=start.objective, statistics=start.statistics)
    return time.perf_counter() - started


def _config(row: str) -> NetworkConfig:
    if row == _BITS:
        block = BlockConfig(bits=8, exponent_block=16, activation_bits=8)
        return NetworkConfig(blocks=dict.fromkeys((*_BLOCKS, "linear"), block))
    counts = dict(zip(_BLOCKS, map(int, row.split(",")), strict=True))
    return NetworkConfig(
        blocks={name: BlockConfig(basis="cosine", harmonics=(n, n)) for name, n in counts.items() if n < 3}
    )


def _markdown(runs: pd.DataFrame) -> str:
    about = runs.iloc[0]
    lines = [
        "# Accuracy of a compressed ResNet-20 before any training",
        "",
        f"% of {about.val_images:,} images, mean over {runs.seed.max() + 1} draws of calibration images (512 where not "
        f"said; `filters` draws none), in brackets the largest distance from it. Seconds a start, mean, on "
        f"{about.threads} threads of a shared {platform.machine()} machine, torch {about.torch}.",
        "",
        f"| start | {' | '.join(_ROWS)} | seconds |",
        f"|---|{'---|' * len(_ROWS)}---|",
    ]
    for name in runs.start.unique():
        cells = [_cell(runs[(runs.start == name) & (runs.harmonics == row)].top1) for row in _ROWS]
        lines.append(f"| {name} | {' | '.join(cells)} | {runs[runs.start == name].seconds.mean():.1f} |")
    return "\n".join([*lines, ""])


def _cell(top1: pd.Series) -> str:
    if top1.empty:
        return ""
    spread = (top1 - top1.mean()).abs().max()
    return f"{top1.mean():.2f}" + (f" ({spread:.2f})" if len(top1) > 1 else "")


if __name__ == "__main__":
    main()
