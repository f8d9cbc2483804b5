"""Do weights that all configs share rank them better than calibration does?

    python benchmarks/one_shot.py digits
    python benchmarks/one_shot.py resnet20 --data DIR --weights FILE

Once-for-all networks (Cai et al. 2020, BigNAS: Yu et al. 2020) fine-tune one set of weights so that every config is
accurate at once, and rank configs by it. Harmonics and bits are nested, so this can be done here too. Each step trains
the uncompressed network, the smallest config and two random ones (the sandwich rule) towards the outputs of the
uncompressed network as it was; filters are built from the shared ones as our layers build them, and gradients go back
through the series and straight through rounding. After that each config starts from the shared weights as a trial
starts: compressed, calibrated, validated.

What it is compared with, by rank correlation (Spearman) with the accuracy of trained networks: each config's own
accuracy after calibration of the weights as they were, and what the effects of single blocks add up to, which is what
`overtone search` forecasts from. Trained accuracies are those of `digits_grid.parquet` (means over five folds; seeds
are folds), and of the finished trials in `search_real/` whose knobs are those of the default space. Seconds are those
of the processor: `training` of the shared weights, `each` config's start.

Writes `one_shot.parquet` and `one_shot.md`, going on from the rows that are there.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from digits_grid import EFFECTS as DIGITS_EFFECTS
from digits_grid import EPOCHS, FOLDS, TABLE, grid_configs, grid_space, load_fold
from resnet20_trials import device
from rich.progress import track
from scipy.stats import rankdata, spearmanr
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from layers import LayerForm, compress_layer
from results.analysis.effects import EffectModel
from search.optimize.forecast import Forecast
from spaces import BlockConfig, Network, NetworkConfig, Space, state_sha256
from spaces.effects import Effects
from trainers.data import Data, DataSpec, load_data
from trainers.data.augment import augment
from trainers.evaluation import evaluate
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.training.recipe import RECIPES
from trainers.trial import Trial, load_baseline

_NESTED = ("basis", "harmonics", "bits", "exponent_block", "exponent_axis")
_RANDOM = 2
"""Random configs in each step, besides the largest and the smallest."""
_OUT = Path(__file__).with_name("one_shot.parquet")

Row = dict[str, Any]


class _Rebuild(torch.autograd.Function):
    """The filters that a layer's form makes of shared ones: gradients pass the series, and straight through bits."""

    @staticmethod
    def forward(context: Any, weight: Tensor, layer: nn.Module, form: LayerForm) -> Tensor:
        context.layer, context.form = layer, form
        return _built(layer, form, weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        form = context.form
        if form.harmonics is None:
            return gradient, None, None
        series = LayerForm(basis=form.basis, harmonics=form.harmonics)
        return _built(context.layer, series, gradient), None, None


@torch.no_grad()
def _built(layer: nn.Module, form: LayerForm, weight: Tensor) -> Tensor:
    layer.weight.copy_(weight)  # type: ignore[operator]
    built: Tensor = compress_layer(layer, form).eval().weight  # type: ignore[assignment]
    return built.detach()


class _Shared(nn.Module):
    """A layer's parametrization: its filters in the form that is asked for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = [deepcopy(layer)]
        self.form: LayerForm | None = None

    def forward(self, weight: Tensor) -> Tensor:
        if self.form is None:
            return weight
        rebuilt: Tensor = _Rebuild.apply(weight, self.layer[0], self.form)
        return rebuilt


def train_shared(baseline: nn.Module, space: Space, data: Data, *, epochs: int, seed: int) -> nn.Module:
    """Return the network with weights that serve all configs of the space's nested knobs."""
    network, recipe = space.network, RECIPES["finetune"]
    model = deepcopy(baseline).train()
    shared = {name: _Shared(model.get_submodule(name)) for name in network.shapes}
    for name, parametrization in shared.items():
        parametrize.register_parametrization(model.get_submodule(name), "weight", parametrization)
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    steps = -(-len(data.train) // recipe.batch_size)
    for epoch in range(epochs):
        for step, rows in enumerate(torch.randperm(len(data.train), generator=generator).split(recipe.batch_size)):
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch + step / steps, epochs)
            inputs = data.normalize(augment(data.train.take(rows), data.augment, generator))
            with torch.no_grad():
                targets = baseline(inputs).softmax(1)
            optimizer.zero_grad()
            for config in [NetworkConfig(), _smallest(space), *(_nested(space, random) for _ in range(_RANDOM))]:
                forms = network.forms(config)
                for name, parametrization in shared.items():
                    parametrization.form = forms.get(name)
                cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    for name, parametrization in shared.items():
        parametrization.form = None
        parametrize.remove_parametrizations(model.get_submodule(name), "weight")
    _refresh_norms(model, data)
    return model.eval()


@torch.no_grad()
def _refresh_norms(model: nn.Module, data: Data) -> None:
    """Let batch norms see the uncompressed network alone."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for rows in torch.arange(min(len(data.train), 2048)).split(256):
        model(data.normalize(data.train.take(rows)))


def _nested(space: Space, random: np.random.Generator) -> NetworkConfig:
    """Return a random config of the nested knobs."""
    return space.decode({k: v[random.integers(len(v))] if _is_nested(k) else v[0] for k, v in space.knobs.items()})


def _smallest(space: Space) -> NetworkConfig:
    return space.decode(
        {k: min((x for x in v if x is not None), default=None) if _is_size(k) else v[0] for k, v in space.knobs.items()}
    )


def _is_size(knob: str) -> bool:
    return knob.endswith((".harmonics_y", ".harmonics_x", ".bits"))


def _is_nested(knob: str) -> bool:
    return _is_size(knob) or knob.endswith((".basis", ".exponent_block", ".exponent_axis"))


def forecast(effects: Effects, space: Space, reference: float) -> Callable[[NetworkConfig], float]:
    """Return what the effects of single blocks add up to, as the sampler's mean before any trial: lower is better."""
    told = Forecast.of(EffectModel.fit(effects, space.network, space.minimum_templates), reference)

    def total(config: NetworkConfig) -> float:
        values = [told(block, form) for block, form in config.blocks.items()]
        return float(np.sum(np.array(values) @ told.slopes)) if values else 0.0

    return total


def _start(baseline: nn.Module, data: Data, network: Network, config: NetworkConfig, seed: int) -> float:
    """Return the accuracy of a config before any training of its own."""
    spec = TrialSpec(
        model="",
        weights="",
        weights_sha256=state_sha256(baseline),
        data_fingerprint=data.fingerprint,
        config=config,
        epochs=0,
        seed=seed,
    )
    score: float = Trial(spec, data=data, baseline=baseline, network=network, device="cpu").initial.top1
    return score


def digits(arguments: argparse.Namespace, done: Sequence[Row]) -> Iterator[Row]:
    """Yield a row of each config of the digits grid and fold."""
    trained = pd.read_parquet(TABLE)
    libraries = json.loads(DIGITS_EFFECTS.read_text())
    known = {(row["seed"], row["config_digest"]) for row in done if _same(row, "digits", arguments)}
    for fold in range(FOLDS):
        data, baseline, network = load_fold(fold)
        space = grid_space(network)
        rows = trained[trained.fold == fold].set_index("config_digest")
        means = trained.groupby("config_digest")[f"val_top1_{EPOCHS}"].mean()
        reference = float(rows.init_score[network.digest(NetworkConfig())])
        told = forecast(Effects.from_json(libraries[fold]), space, reference)
        configs = {network.digest(config): config for _, config in grid_configs(space)}
        missing = {digest: config for digest, config in configs.items() if (fold, digest) not in known}
        if not missing:
            continue
        started = time.process_time()
        shared = train_shared(baseline, space, data, epochs=arguments.epochs, seed=fold)
        training = time.process_time() - started
        for digest, config in track(missing.items(), f"fold {fold}", total=len(missing)):
            started = time.process_time()
            score = _start(shared, data, network, config, fold)
            yield {
                "grid": "digits",
                "seed": fold,
                "config_digest": digest,
                "nested": _all_nested(config),
                "trained": float(means[digest]),
                "calibrated": float(rows.init_score[digest]),
                "effects": told(config),
                "shared": score,
                "training_s": training,
                "each_s": time.process_time() - started,
                "epochs": arguments.epochs,
            }


def resnet20(arguments: argparse.Namespace, done: Sequence[Row]) -> Iterator[Row]:
    """Yield a row of each trained config of the ResNet-20."""
    spec = DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=arguments.train_limit)
    data = load_data(spec)
    baseline, _ = load_baseline("resnet20", arguments.weights, data)
    network = Network.from_module(baseline, data.val.image_shape, "layer")
    space = Space.default(network)
    known = {row["config_digest"] for row in done if _same(row, "resnet20", arguments)}
    rows = pd.concat([pd.read_parquet(path) for path in sorted(arguments.rows.glob("*-0.parquet"))])
    rows = rows[rows.status == "finished"].drop_duplicates("config_digest").head(arguments.configs)
    effects = Effects.from_json(json.loads((arguments.rows / "layer-0.effects.json").read_text()))
    told = forecast(effects, space, evaluate(baseline, data.val, data.normalize, device="cpu").top1)
    missing = [row for row in rows.itertuples() if row.config_digest not in known]
    if not missing:
        return
    started = time.process_time()
    shared = train_shared(baseline, space, data, epochs=arguments.epochs, seed=0)
    training = time.process_time() - started
    for row in track(missing, "ResNet-20"):
        config = NetworkConfig.from_json(json.loads(row.config))
        started = time.process_time()
        score = _start(shared, data, network, config, 0)
        yield {
            "grid": "resnet20",
            "seed": 0,
            "config_digest": row.config_digest,
            "nested": _all_nested(config),
            "trained": row.score,
            "calibrated": row.scores[0],
            "effects": told(config),
            "shared": score,
            "training_s": training,
            "each_s": time.process_time() - started,
            "epochs": arguments.epochs,
        }


def _same(row: Row, grid: str, arguments: argparse.Namespace) -> bool:
    return row["grid"] == grid and row["epochs"] == arguments.epochs


def _all_nested(config: NetworkConfig) -> bool:
    return all(
        replace(block, **dict.fromkeys(_NESTED)) == BlockConfig() or name == "norms_and_biases"
        for name, block in config.blocks.items()
    )


_PREDICTORS: Mapping[str, Callable[[pd.DataFrame], Any]] = {
    "calibrated": lambda rows: rows.calibrated,
    "effects": lambda rows: -rows.effects,
    "shared weights": lambda rows: rows.shared,
    "effects and calibrated": lambda rows: rankdata(-rows.effects) + rankdata(rows.calibrated),
    "effects and shared weights": lambda rows: rankdata(-rows.effects) + rankdata(rows.shared),
}


def write(rows: pd.DataFrame, path: Path) -> None:
    """Write and print how each predictor ranks the configs."""
    lines = [
        "# One fine-tuning of shared weights, or calibration alone",
        "",
        "Rank correlation (Spearman) with the accuracy of trained networks, mean over seeds (least to most).",
        "",
    ]
    for (grid, epochs), of_grid in rows.groupby(["grid", "epochs"], sort=False):
        for title, part in (("all configs", of_grid), ("series and bits alone", of_grid[of_grid.nested])):
            groups = [group for _, group in part.groupby("seed")]
            if not groups or min(map(len, groups)) < 5:
                continue
            sizes = sorted({len(group) for group in groups})
            lines += [
                f"## {grid}, {title}, {epochs} epochs of shared weights",
                "",
                f"{' or '.join(map(str, sizes))} configs, {len(groups)} seeds; the shared weights took "
                f"{part.training_s.mean():.0f} s, the start of each config {part.each_s.mean():.2f} s.",
                "",
                "| ranked by | correlation |",
                "|---|---|",
            ]
            for name, predictor in _PREDICTORS.items():
                found = [float(spearmanr(predictor(group), group.trained).statistic) for group in groups]
                lines.append(f"| {name} | {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f}) |")
            lines.append("")
    lines.append(f"{device()}, one thread, torch {version('torch')}.")
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main(given: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=["digits", "resnet20"])
    parser.add_argument("--data", help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", help="safetensors of the trained ResNet-20")
    parser.add_argument("--train-limit", type=int, default=5_000)
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("search_real"))
    parser.add_argument("--configs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, help="measure so many configs alone")
    parser.add_argument("--out", type=Path, default=_OUT)
    arguments = parser.parse_args(given)
    if arguments.grid == "resnet20" and not (arguments.data and arguments.weights):
        raise SystemExit("--data and --weights must be given")
    torch.set_num_threads(1)
    keep_freed_memory()
    rows: list[Row] = pd.read_parquet(arguments.out).to_dict("records") if arguments.out.exists() else []
    measure = digits if arguments.grid == "digits" else resnet20
    with threadpool_limits(1, user_api="blas"):
        for row in islice(measure(arguments, tuple(rows)), arguments.limit):
            rows.append(row)
            if len(rows) % 20 == 0:
                pd.DataFrame(rows).to_parquet(arguments.out, index=False)
    pd.DataFrame(rows).to_parquet(arguments.out, index=False)
    write(pd.DataFrame(rows), arguments.out.with_suffix(".md"))


if __name__ == "__main__":
    main()
