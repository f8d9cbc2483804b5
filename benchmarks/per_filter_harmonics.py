"""Harmonics of each filter's own against harmonics of a layer or a block, at equal bytes, on a ResNet-20.

    python benchmarks/per_filter_harmonics.py --data DIR --weights FILE [--budgets 2,2,2,2] [--finetuned 2,2,2,2]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. Costain & Prisacariu leave open
that each filter may have its own number of harmonics. Here a uniform network's bytes are spent anew where they buy
most: with E_n(h) the mean square residual of output n, fitted with harmonics h to what the uncompressed network
computes there (`layers.calibration`, inputs of the uncompressed network), and gamma, running_var of the norm behind,

    minimise  sum_n gamma_n^2 / running_var_n  E_n(h_n)    within the bytes, by dynamic programming.

Modes: `uniform`; `layers in block`, `layers in network`: each layer has its own harmonics, and the bytes are those of
a block or of all compressed blocks together (the product can say that today: no index is counted); `filters in layer`,
`filters in block`, `filters in network`: each filter has its own, and an index of 4 bits a filter is within the bytes.
Each network is then calibrated in network order (`trainers.calibrate`), every filter on its own support, and
fine-tuned: filters are full series whose coefficients outside the support stay zero.

Finished runs are in `per_filter_harmonics.parquet` at once, and the command goes on from there. Accuracy is that on
the 5,000 validation images, half of the test images; the other half is not looked at.
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
from layers.calibration.series import OutputRegression
from trainers.data import Data, DataSpec, load_data
from trainers.evaluate import evaluate
from trainers.finetune import finetune
from trainers.schedule import Schedule
from trainers.start import begin
from trainers.trial import load_baseline

_CHOICES = [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (3, 3)]
_SIZES = np.array([y * x for y, x in _CHOICES])
_BUDGETS = {"2,2,2,2": (0, [(2, 2)]), "3,2,2,2": (1, [(2, 2)]), "3,3,2,2": (2, [(2, 2)])}
_BUDGETS |= {"6 of 9": (0, [(2, 3), (3, 2)]), "2 of 9": (0, [(1, 2), (2, 1)])}
"""How many of the first blocks are left alone, and the uniform harmonics that set the bytes of the others."""
_OURS = ["layers in block", "layers in network", "filters in layer", "filters in block", "filters in network"]
_MODES = {budget: [*(f"uniform {y}x{x}" for y, x in uniform), *_OURS] for budget, (_, uniform) in _BUDGETS.items()}
_SCHEDULE = Schedule(lr=1e-2, batch_size=128, precision="bf16", distillation=1.0)
Supports = dict[str, list[tuple[int, int]]]
"""The harmonics of each filter, by layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--budgets", nargs="*", default=list(_BUDGETS), choices=list(_BUDGETS))
    parser.add_argument("--finetuned", nargs="*", default=["2,2,2,2"], choices=list(_BUDGETS))
    parser.add_argument("--modes", nargs="*", default=["uniform", *_OURS], help="how they begin")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-limit", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    spec = DataSpec(name=f"parquet:{arguments.data}", validation_from="test", train_limit=arguments.train_limit)
    bench, path = _Bench(load_data(spec), arguments.weights), arguments.out / "per_filter_harmonics.parquet"
    done = pd.read_parquet(path).to_dict("records") if path.exists() else []
    for seed in range(arguments.seeds):
        for budget in sorted(arguments.budgets, key=arguments.finetuned.count):  # what is cheap comes first
            epochs = arguments.epochs if budget in arguments.finetuned else 0
            for mode in _MODES[budget]:
                key = {"budget": budget, "mode": mode, "seed": seed}
                same = [row for row in done if key.items() <= row.items()]
                if mode.startswith(tuple(arguments.modes)) and not any(row["epochs"] >= epochs for row in same):
                    row = {**key, "epochs": epochs, **bench.run(budget, mode, seed, epochs)}
                    done = [*(row for row in done if row not in same), row]
                    _write(pd.DataFrame(done), path)
                    print(row, flush=True)
    print(path.with_suffix(".md").read_text())


class _Bench:
    def __init__(self, data: Data, weights: str) -> None:
        self.data, (self.baseline, network) = data, load_baseline("resnet20", weights, data)
        self.blocks = [[name for name in names if "conv" in name] for names in network.blocks.values()]
        convs = {name: self.baseline.get_submodule(name) for names in self.blocks for name in names}
        self.channels = {name: conv.in_channels for name, conv in convs.items()}
        self.full = {name: [(3, 3)] * conv.out_channels for name, conv in convs.items()}
        self.errors: dict[int, dict[str, np.ndarray]] = {}
        self.top1_before = self._top1(self.baseline)

    def run(self, budget: str, mode: str, seed: int, epochs: int) -> dict[str, Any]:
        if seed not in self.errors:
            self.errors[seed] = self._errors(seed)
        supports = self._supports(budget, mode, seed)
        model = self._compressed(supports, seed)
        before = self._top1(model)
        filters = [h for support in supports.values() for h in support]
        values = sum(self.channels[name] * y * x for name, h in (self.full | supports).items() for y, x in h)
        return {
            "bytes": 4 * values + mode.startswith("filter") * (len(filters) + 1) // 2,
            "zero_shot": before,
            "finetuned": self._finetuned(model, supports, seed, epochs) if epochs else None,
            "filters": " ".join(f"{y}x{x}:{filters.count((y, x))}" for y, x in _CHOICES),
            "baseline": self.top1_before,
            "train_images": len(self.data.train),
            "val_images": len(self.data.val),
            "torch": version("torch"),
        }

    def _top1(self, model: nn.Module) -> float:
        return 100 * evaluate(model, self.data.val, mean=self.data.mean, std=self.data.std, device="cpu").top1

    def _compressed(self, supports: Supports, seed: int) -> nn.Module:
        """The calibrated network: full series, with zeros outside each filter's support."""
        model = compress_model(self.baseline, dict.fromkeys(supports, LayerForm(basis="cosine", harmonics=(3, 3))))
        for name, layer in compressed_layers(model).items():
            layer.support = supports[name]
        with patch("trainers.calibrate.OutputRegression", _Fit):
            begin("calibrated", model, self.baseline, self.data, seed=seed, device=torch.device("cpu"))
        return model

    def _finetuned(self, model: nn.Module, supports: Supports, seed: int, epochs: int) -> float:
        masks = {layer.coefficients: _mask(supports[name]) for name, layer in compressed_layers(model).items()}
        for coefficients, mask in masks.items():
            coefficients.register_hook(lambda gradient, mask=mask: gradient * mask)
        *_, last = finetune(model, self.data, _SCHEDULE, epochs=epochs, seed=seed, device="cpu", teacher=self.baseline)
        if any((coefficients * ~mask).any() for coefficients, mask in masks.items()):
            raise AssertionError("Coefficients outside a support have moved.")
        return 100 * last.val_top1

    def _errors(self, seed: int) -> dict[str, np.ndarray]:
        """What each choice costs (N, choices), by layer."""
        full, errors = self._compressed(self.full, seed), {}
        for name in self.full:
            norm, fit = self.baseline.get_submodule(name.replace("conv", "bn")), full.get_submodule(name).fit
            weight = norm.weight.detach().double().square() / (norm.running_var + norm.eps) / fit.places
            errors[name] = torch.stack([fit.fitted(h)[1] * weight for h in _CHOICES], 1).numpy()
        return errors

    def _supports(self, budget: str, mode: str, seed: int) -> Supports:
        """The harmonics of each filter in the compressed blocks."""
        alone, uniform = _BUDGETS[budget]
        blocks, (unit, _, scope) = self.blocks[alone:], mode.partition("s in ")
        layers = [name for names in blocks for name in names]
        if not scope:
            return {name: [uniform[_MODES[budget].index(mode)]] * len(self.full[name]) for name in layers}
        found: Supports = {}
        for names in {"layer": [[name] for name in layers], "block": blocks, "network": [layers]}[scope]:
            found |= self._spent(names, unit, uniform[0][0] * uniform[0][1], seed) if names else {}
        return found

    def _spent(self, names: list[str], unit: str, count: int, seed: int) -> Supports:
        """Harmonics for the filters of layers that share the bytes of `count` coefficients a channel and filter."""
        owners = np.repeat(names, [len(self.full[name]) for name in names])
        costs = np.stack([self.channels[name] * _SIZES for name in owners])
        errors = np.concatenate([self.errors[seed][name] for name in names])
        budget = count * int(costs[:, 0].sum())
        if unit == "filter":
            best = np.array(_cheapest(costs, errors, budget - (len(owners) + 7) // 8))  # less 4 bits a filter
            return {name: [_CHOICES[i] for i in best[owners == name]] for name in names}
        sums = [np.stack([part[owners == name].sum(0) for name in names]) for part in (costs, errors)]
        best = _cheapest(*sums, budget)
        return {name: [_CHOICES[i]] * len(self.full[name]) for name, i in zip(names, best, strict=True)}


class _Fit(OutputRegression):
    """Fits each filter of a full series on its own support, `layer.support`; the layer keeps hold of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        layer.fit, self.energy, self.places = self, 0.0, 0

    def add(self, x: Tensor, outputs: Tensor) -> None:
        super().add(x, outputs)
        self.energy = self.energy + outputs.double().square().sum((0, 2, 3))
        self.places += outputs[:, 0].numel()

    def solve(self, importance: Tensor | None = None) -> Tensor:
        fits = {h: self.fitted(h)[0] for h in set(self.layer.support)}
        found = torch.stack([fits[h][n] for n, h in enumerate(self.layer.support)])
        return found.view_as(self.layer.coefficients).to(self.layer.coefficients.dtype)

    def fitted(self, h: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Coefficients (N, C 9) if all filters had harmonics h, as `OutputRegression` finds them; their errors (N,)."""
        inside = _mask([h]).flatten().repeat(self._start.shape[2] // 9)
        gram, start, cross = self._gram[0][inside][:, inside], self._start[0][:, inside], self._cross[0][:, inside]
        system = gram + self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        best = start + torch.linalg.solve(system, (cross - start @ gram).mT).mT
        errors = self.energy - 2 * (best * cross).sum(1) + (best @ gram * best).sum(1)
        return torch.zeros_like(self._start[0]).masked_scatter(inside.expand_as(self._start[0]), best), errors


def _mask(support: list[tuple[int, int]]) -> Tensor:
    """Which harmonics (N, 1, 3, 3) each filter has."""
    taps, (y, x) = torch.arange(3), torch.tensor(support)[:, :, None, None, None].unbind(1)
    return (taps[:, None] < y) & (taps < x)


def _cheapest(costs: np.ndarray, errors: np.ndarray, budget: int) -> list[int]:
    """The choice for each row of (items, choices) with the least sum of errors among those within the budget."""
    unit = int(np.gcd.reduce(costs, axis=None))
    costs, room = costs // unit, budget // unit
    least, taken = np.zeros(room + 1), np.empty((len(costs), room + 1), np.int8)
    for item, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        sums = np.full((len(cost), room + 1), np.inf)
        for choice, c in enumerate(cost):
            sums[choice, c:] = least[: max(room + 1 - c, 0)] + error[choice]
        taken[item], least = sums.argmin(0), sums.min(0)
    choices = []
    for item in reversed(range(len(costs))):
        choices.append(int(taken[item, room]))
        room -= costs[item, choices[-1]]
    return choices[::-1]


def _write(runs: pd.DataFrame, path: Path) -> None:
    order = [(budget, mode) for budget, modes in _MODES.items() for mode in modes]
    places = [(order.index(key[:2]), key[2]) for key in zip(runs.budget, runs["mode"], runs.seed, strict=True)]
    runs = runs.iloc[np.lexsort(np.array(places).T[::-1])]
    runs.to_parquet(path.with_suffix(".tmp"), index=False)
    path.with_suffix(".tmp").replace(path)
    last, tuned = runs.iloc[-1], runs[runs.finetuned.notna()]
    about = (
        f"ResNet-20, uncompressed {last.baseline:.2f} %. Top-1 in % of {last.val_images:,} validation images, mean of "
        "n seeds of calibration and fine-tuning, with the range. Bytes: all convolutions with their index. "
        f"Fine-tuning: {tuned.epochs.max():.0f} epochs of {last.train_images:,} images, bfloat16, CPU, "
        f"torch {last.torch}."
    )
    lines = ["# Harmonics of each filter's own, at equal bytes", "", about, ""]
    lines += ["| budget | mode | bytes | n | before | n | after fine-tuning |", "|---" * 7 + "|"]
    for (budget, mode), found in runs.groupby(["budget", "mode"], sort=False):
        cells = [budget, mode, f"{found.bytes.max():,}"]
        for values in (found.zero_shot, found.finetuned.dropna()):
            some = f"{values.mean():.2f} ({values.min():.2f} to {values.max():.2f})" if len(values) else ""
            cells += [str(len(values)), some]
        lines.append(f"| {' | '.join(cells)} |")
    path.with_suffix(".md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
