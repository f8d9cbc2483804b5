"""Harmonics of each filter's own against harmonics of a layer and of a block, at equal bytes, on a ResNet-20.

    python benchmarks/per_filter_harmonics.py --data DIR --weights FILE [--finetuned 2,2,2,2]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. Costain & Prisacariu leave open
that each filter may have its own number of harmonics. Here the bytes of a uniform network are spent again, by what
they buy: with residual E_n(h) of output filter n fitted with harmonics h to the uncompressed network's outputs
(`layers.calibration`, on the uncompressed network's inputs), minimise

    sum_n gamma_n^2 / running_var_n  E_n(h_n)    subject to the bytes of the uniform network,

gamma and running_var being those of the batch norm that follows. Dynamic programming finds the minimum itself. Modes:

- `uniform`: every filter of a compressed block has the same harmonics;
- `layers in block`, `layers in network`: every layer has its own, and the bytes of its block or of the network are
  spent together (the product can do that today, so there is no index);
- `filters in layer`, `filters in block`, `filters in network`: every filter has its own.

An index of 4 bits a filter is part of a filter mode's bytes. All modes are then calibrated in network order, each
filter on its own support (`trainers.calibrate`), and fine-tuned; a filter is a full series whose coefficients outside
its support stay zero. Finished runs are in `per_filter_harmonics.parquet` at once; the command goes on from there.
Accuracy is of the 5,000 validation images (of the test images; the other 5,000 are not looked at).
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from layers import LayerForm, compress_model, compressed_layers
from layers.calibration import OutputRegression
from trainers.augment import normalise
from trainers.calibrate import calibrate
from trainers.data import Data, DataSpec, load_data
from trainers.evaluate import evaluate
from trainers.finetune import finetune
from trainers.repeatable import epoch_generator
from trainers.schedule import Schedule
from trainers.start import CALIBRATION_IMAGES
from trainers.trial import load_baseline

_CHOICES = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (3, 3)]
_FULL = (3, 3)
_BLOCKS = ("conv1", "layer1", "layer2", "layer3")
_BUDGETS = {"2,2,2,2": (4, 4), "3,2,2,2": (4, 3), "3,3,2,2": (4, 2), "6 of 9": (6, 4), "2 of 9": (2, 4)}
"""Coefficients of a channel's filter in a uniform network, and how many of the last blocks are compressed."""
_WIDE = ("2,2,2,2",)
"""Budgets that are also spent over the whole network."""
_UNIFORM = {4: ["uniform 2x2"], 6: ["uniform 2x3", "uniform 3x2"], 2: ["uniform 1x2", "uniform 2x1"]}
_SCHEDULE = Schedule(lr=1e-2, batch_size=128, precision="bf16", distillation=1.0)
Supports = dict[str, list[tuple[int, int]]]
"""The harmonics of each filter of each layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--budgets", nargs="*", default=list(_BUDGETS), choices=list(_BUDGETS))
    parser.add_argument("--finetuned", nargs="*", default=["2,2,2,2"], choices=list(_BUDGETS))
    parser.add_argument("--modes", nargs="*", help="only these modes, such as 'filters in block'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-limit", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = DataSpec(name=f"parquet:{arguments.data}", validation_from="test", train_limit=arguments.train_limit)
    data = load_data(spec)
    baseline, _ = load_baseline("resnet20", arguments.weights, data)
    path = arguments.out / "per_filter_harmonics.parquet"
    done = pd.read_parquet(path).to_dict("records") if path.exists() else []
    done = done or [
        {"budget": "none", "mode": "uncompressed", "seed": 0, "epochs": 0, "zero_shot": _top1(baseline, data)}
    ]
    for seed in range(arguments.seeds):
        images, errors = _calibration_images(data, seed), None
        for budget in sorted(arguments.budgets, key=arguments.finetuned.count):  # what is cheap comes first
            for mode in _modes(budget, arguments.modes):
                key = {"budget": budget, "mode": mode, "seed": seed}
                epochs = arguments.epochs if budget in arguments.finetuned else 0
                same = [row for row in done if key.items() <= row.items()]
                if any(row["epochs"] >= epochs for row in same):
                    continue
                errors = errors or _errors(baseline, images)
                row = _run(key, epochs, data, baseline, images, errors)
                done = [*(row for row in done if row not in same), {**key, "epochs": epochs, **row}]
                _write(pd.DataFrame(done), path)
                print(done[-1], flush=True)
    print(path.with_suffix(".md").read_text())


def _modes(budget: str, wanted: list[str] | None) -> list[str]:
    scopes = ("block", "network") if budget in _WIDE else ("block",)
    ours = [f"{unit}s in {scope}" for scope in scopes for unit in ("layer", "filter")]
    modes = [*_UNIFORM[_BUDGETS[budget][0]], *ours, "filters in layer"]
    return [mode for mode in modes if wanted is None or mode in wanted]


def _run(
    key: dict[str, Any], epochs: int, data: Data, baseline: nn.Module, images: Tensor, errors: dict[str, np.ndarray]
) -> dict[str, Any]:
    supports = _supports(baseline, errors, key["budget"], key["mode"])
    model = _compressed(baseline, images, supports)
    before, after = _top1(model, data), None
    if epochs:
        masks = {name: _masks(found) for name, found in supports.items()}
        layers = compressed_layers(model)
        for name, layer in layers.items():
            layer.coefficients.register_hook(lambda gradient, mask=masks[name]: gradient * mask)
        for epoch in finetune(model, data, _SCHEDULE, epochs=epochs, seed=key["seed"], device="cpu", teacher=baseline):
            after = 100 * epoch.val_top1
        if any((layer.coefficients * ~masks[name]).any() for name, layer in layers.items()):
            raise AssertionError("Coefficients outside a support have moved.")
    filters = [h for found in supports.values() for h in found]
    return {
        "bytes": _bytes(baseline, supports, key["mode"]),
        "error": sum(errors[name][n, _CHOICES.index(h)] for name, own in supports.items() for n, h in enumerate(own)),
        "zero_shot": before,
        "finetuned": after,
        "filters": " ".join(f"{y}x{x}:{filters.count((y, x))}" for y, x in _CHOICES),
        "train_images": len(data.train),
        "val_images": len(data.val),
        "torch": version("torch"),
    }


def _top1(model: nn.Module, data: Data) -> float:
    return 100 * evaluate(model, data.val, mean=data.mean, std=data.std, device="cpu").top1


def _bytes(baseline: nn.Module, supports: Supports, mode: str) -> int:
    """Bytes of the convolutions in the compressed network: those left alone, coefficients, index."""
    total = 0
    for name, conv in baseline.named_modules():
        if isinstance(conv, nn.Conv2d):
            found = supports.get(name, [_FULL] * conv.out_channels)
            total += 4 * conv.in_channels * sum(y * x for y, x in found)
            total += (len(found) + 1) // 2 if mode.startswith("filter") and name in supports else 0
    return total


def _calibration_images(data: Data, seed: int) -> Tensor:
    """The images that `trainers.start` takes."""
    rows = torch.randperm(len(data.train), generator=epoch_generator(seed, 0, torch.device("cpu")))
    return normalise(data.train.images[rows[:CALIBRATION_IMAGES]], data.mean, data.std)


class _Fit(OutputRegression):
    """Fits each filter of a full series on its own support, `layer.support`; the layer keeps hold of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        layer.fit, self.energy, self.places = self, 0.0, 0

    def add(self, x: Tensor, outputs: Tensor) -> None:
        super().add(x, outputs)
        self.energy = self.energy + outputs.double().square().sum((0, 2, 3))
        self.places += outputs[:, 0].numel()

    def solve(self) -> Tensor:
        found = torch.zeros_like(self._start[0])
        for h in set(self.layer.support):
            mine = torch.tensor([own == h for own in self.layer.support])
            found[mine] = self.fitted(h)[0][mine]
        return found.view_as(self.layer.coefficients).to(self.layer.coefficients.dtype)

    def fitted(self, h: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Coefficients (N, C 9) of all filters with harmonics h, as `OutputRegression` finds them; the errors (N,)."""
        inside = _masks([h]).flatten().repeat(self._start.shape[2] // 9)
        gram, start, cross = self._gram[0][inside][:, inside], self._start[0][:, inside], self._cross[0][:, inside]
        system = gram + self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        best = start + torch.linalg.solve(system, (cross - start @ gram).mT).mT
        errors = self.energy - 2 * (best * cross).sum(1) + (best @ gram * best).sum(1)
        return torch.zeros_like(self._start[0]).masked_scatter(inside.expand_as(self._start[0]), best), errors


def _masks(support: list[tuple[int, int]]) -> Tensor:
    """Which harmonics (N, 1, 3, 3) each filter has."""
    taps, support = torch.arange(3), torch.tensor(support)
    return ((taps[:, None] < support[:, 0, None, None]) & (taps < support[:, 1, None, None]))[:, None]


def _compressed(baseline: nn.Module, images: Tensor, supports: Supports) -> nn.Module:
    """The calibrated network; every filter is a full series, with zeros outside its support."""
    model = compress_model(baseline, dict.fromkeys(supports, LayerForm(basis="cosine", harmonics=_FULL)))
    for name, layer in compressed_layers(model).items():
        layer.support = supports[name]
    with patch("trainers.calibrate.OutputRegression", _Fit):
        calibrate(model, baseline, images)
    return model


def _errors(baseline: nn.Module, images: Tensor) -> dict[str, np.ndarray]:
    """Weighted errors a place (N, choices) of each layer's filters, from inputs of the uncompressed network."""
    convs = {name: layer for name, layer in baseline.named_modules() if isinstance(layer, nn.Conv2d)}
    full = _compressed(baseline, images, {name: [_FULL] * layer.out_channels for name, layer in convs.items()})
    errors = {}
    for name in convs:
        norm = baseline.get_submodule(name.replace("conv", "bn"))
        weight = norm.weight.detach().double().square() / (norm.running_var + norm.eps)
        fit = full.get_submodule(name).fit
        errors[name] = torch.stack([fit.fitted(h)[1] * weight for h in _CHOICES], 1).numpy() / fit.places
    return errors


def _supports(baseline: nn.Module, errors: dict[str, np.ndarray], budget: str, mode: str) -> Supports:
    """The harmonics of each filter in the compressed blocks."""
    count, blocks = _BUDGETS[budget]
    groups: dict[str, list[str]] = {}
    for name in errors:
        block = name.partition(".")[0]
        if block in _BLOCKS[-blocks:]:
            scope = {"layer": name, "network": ""}.get(mode.rpartition(" ")[2], block)
            groups.setdefault(scope, []).append(name)
    return {
        name: support
        for names in groups.values()
        for name, support in _spent(baseline, {name: errors[name] for name in names}, count, mode).items()
    }


def _spent(baseline: nn.Module, errors: dict[str, np.ndarray], count: int, mode: str) -> Supports:
    """The harmonics of each filter of layers that share their bytes."""
    filters, channels = {name: len(e) for name, e in errors.items()}, {}
    for name in errors:
        channels[name] = baseline.get_submodule(name).in_channels
    if mode.startswith("uniform"):
        y, x = mode.split()[1].split("x")
        return {name: [(int(y), int(x))] * n for name, n in filters.items()}
    sizes = np.array([y * x for y, x in _CHOICES])
    values = sum(count * filters[name] * channels[name] for name in errors)
    if mode.startswith("layer"):
        costs = np.stack([filters[name] * channels[name] * sizes for name in errors])
        best = _cheapest(costs, np.stack([e.sum(0) for e in errors.values()]), values)
        return {name: [_CHOICES[i]] * filters[name] for name, i in zip(errors, best, strict=True)}
    costs = np.concatenate([np.tile(channels[name] * sizes, (filters[name], 1)) for name in errors])
    index = sum((n + 1) // 2 for n in filters.values())
    best = iter(_cheapest(costs, np.concatenate(list(errors.values())), values - (index + 3) // 4))
    return {name: [_CHOICES[next(best)] for _ in range(n)] for name, n in filters.items()}


def _cheapest(costs: np.ndarray, errors: np.ndarray, budget: int) -> list[int]:
    """The choice of each row of (items, choices) with the least sum of errors among those within the budget."""
    unit = int(np.gcd.reduce(costs, axis=None))
    costs, room = costs // unit, budget // unit
    least, taken = np.zeros(room + 1), np.empty((len(costs), room + 1), np.int8)
    for item, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        with_choice = np.full((len(cost), room + 1), np.inf)
        for choice, c in enumerate(cost):
            with_choice[choice, c:] = least[: max(room + 1 - c, 0)] + error[choice]
        taken[item] = with_choice.argmin(0)
        least = with_choice.min(0)
    choices = []
    for item in reversed(range(len(costs))):
        choices.append(int(taken[item, room]))
        room -= costs[item, choices[-1]]
    return choices[::-1]


def _write(runs: pd.DataFrame, path: Path) -> None:
    order = {budget: place for place, budget in enumerate(["none", *_BUDGETS])}
    runs = runs.sort_values("budget", key=lambda column: column.map(order), kind="stable")
    scratch = path.with_suffix(".tmp")
    runs.to_parquet(scratch, index=False)
    scratch.replace(path)
    path.with_suffix(".md").write_text(_markdown(runs))


def _markdown(runs: pd.DataFrame) -> str:
    last, tuned = runs.iloc[-1], runs[runs.finetuned.notna()]
    about = (
        f"ResNet-20, {runs.zero_shot.iloc[0]:.2f} % uncompressed. Top-1 in % of {last.val_images:,.0f} validation "
        "images, mean over n seeds of calibration images and fine-tuning, lowest and highest in brackets. Bytes are "
        "those of all convolutions with their index. Error is the sum that is minimised, against that of the budget's "
        f"first row. Fine-tuning: {tuned.epochs.max():.0f} epochs of {last.train_images:,.0f} images, bfloat16, CPU. "
        f"torch {last.torch}."
    )
    lines = ["# Harmonics of each filter's own, at equal bytes", "", about, ""]
    lines += [
        "| budget | mode | bytes | error | n | before | n | after fine-tuning |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for budget, same in runs.iloc[1:].groupby("budget", sort=False):
        for mode, found in same.groupby("mode", sort=False):
            first = same[same["mode"] == same["mode"].iloc[0]]
            cells = [budget, mode, f"{found.bytes.mean():,.0f}", f"{found.error.mean() / first.error.mean():.2f}"]
            lines.append(f"| {' | '.join([*cells, *_spread(found.zero_shot), *_spread(found.finetuned.dropna())])} |")
    return "\n".join([*lines, ""])


def _spread(values: pd.Series) -> tuple[str, str]:
    """How many, and their mean and range."""
    return str(len(values)), f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})" if len(values) else ""


if __name__ == "__main__":
    main()
