"""How well effects of single blocks tell what compressing a whole network does, before any training; and their rule.

    python benchmarks/effects.py --data DIR --weights FILE [--configs 60] [--effects 80]

DIR holds CIFAR-10 as Parquet (Hugging Face image layout), FILE the trained ResNet-20. Effects are measured as a study
measures them (`trainers.effects`), the most informative first (`search.optimize.effect_plan`), with stages and with
single layers as blocks. Then whole networks are drawn from the default space, half of them by stage and half by layer:
each block stays as it is with a probability that is drawn for each network, or has one of its forms. Each is
calibrated as a trial has it, and its accuracy taken on 1,000 of the test images without any training. Rules that tell
a network's loss from the effects, each block's forecast added up:

- `process`: ours, `results.analysis.effects`;
- `curves`: one curve for each part of a form, linear in what describes it, and one sensitivity for each block;
- `nearest`: a part of a form has the effect of the nearest measured form of this block, in what describes it;
- `size`: no effects at all: the more bytes, the better.

Told are Spearman's rank correlation of the sum with the measured accuracy, after so many effects of the plan, and by
how much each rule is off where one effect at a time is left out. Seconds are those of the processor, on one thread.
Rows are kept in `effects.parquet` as they come, and the same command goes on from there; it writes `effects.md`.
"""

import argparse
import itertools
import json
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from scipy.stats import spearmanr
from torch import nn

from layers import compress_model
from results.analysis.effects import EffectModel
from results.analysis.form_parts import PARTS, form_parts
from search.optimize.effect_plan import effect_plan
from spaces import BlockConfig, Network, NetworkConfig, Space
from spaces.blocks import Granularity
from spaces.effects import Effect, Effects
from trainers.data import Data, DataSpec, Split, load_data
from trainers.effects import EffectMeter, effect_passes
from trainers.evaluation import evaluate
from trainers.start.start import initialize
from trainers.trial import load_baseline

_GRANULARITIES: tuple[Granularity, ...] = ("stage", "layer")
_VAL_IMAGES = 1000
_CALIBRATIONS = (64, 128, 512)
"""Images that blocks are calibrated on where the bias of few is measured."""
_COUNTS = (12, 25, 50, 80)
_LEAST = 1e-5
_SEEN = 1e-3

_Rule = Callable[[Effects, Network], Callable[[str, BlockConfig], float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--configs", type=int, default=60)
    parser.add_argument("--effects", type=int, default=80, help="of each granularity")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("effects.parquet"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=10_000))
    rows = pd.read_parquet(arguments.out).to_dict("records") if arguments.out.exists() else []
    done = {row["key"] for row in rows}
    networks = {kind: load_baseline("resnet20", str(arguments.weights), data, kind) for kind in _GRANULARITIES}
    tasks = list(_tasks(networks, data, arguments.configs, arguments.effects))
    for key, task in track([task for task in tasks if task[0] not in done], description="measurements"):
        started = time.process_time()
        row = task()
        rows.append({"key": key, **row, "cpu_s": time.process_time() - started})
        pd.DataFrame(rows).to_parquet(arguments.out)
    table = pd.DataFrame(rows)
    nets = {kind: network for kind, (_, network) in networks.items()}
    text = _report(table.set_index("key").loc[[key for key, _ in tasks]], nets, data)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


_Task = tuple[str, Callable[[], dict[str, Any]]]


def _tasks(
    networks: Mapping[Granularity, tuple[nn.Module, Network]], data: Data, configs: int, effects: int
) -> Iterator[_Task]:
    """Yield all measurements, each with a key of its own."""
    meters: dict[int | None, EffectMeter] = {}

    def measure(kind: str, pair: tuple[str, BlockConfig], images: int | None = None) -> dict[str, Any]:
        baseline, network = networks["stage"]
        if images not in meters:
            meters[images] = EffectMeter(data, baseline, network, calibration_images=images)
        meter = meters[images]
        effect, head = meter.measure(*pair), json.dumps(meter.reference.to_json())
        told = {"kind": kind, "reference": head, "effect": json.dumps(effect.to_json())}
        return told if images is None else {**told, "images": images}

    def whole(kind: str, baseline: nn.Module, network: Network, config: NetworkConfig) -> dict[str, Any]:
        return {"kind": f"network by {kind}", **_zero_shot(baseline, network, data, config)}

    for kind in _GRANULARITIES:
        for pair in islice(effect_plan(Space.default(networks[kind][1])), effects):
            yield f"{kind} {_text(pair)}", partial(measure, kind, pair)
    draws = {kind: _random_configs(Space.default(networks[kind][1])) for kind in _GRANULARITIES}
    for _, kind in itertools.product(range(configs // 2), _GRANULARITIES):
        baseline, network = networks[kind]
        config = next(draws[kind])
        yield f"{kind} {network.digest(config)}", partial(whole, kind, baseline, network, config)
    forms = BlockConfig(basis="cosine", harmonics=(2, 2)), BlockConfig(pruning_rate=0.5)
    for images in _CALIBRATIONS:
        for pair in itertools.product(("layer1", "layer2", "layer3"), forms):
            yield f"{images} {_text(pair)}", partial(measure, "calibration", pair, images)


def _text(pair: tuple[str, BlockConfig]) -> str:
    return json.dumps(NetworkConfig(blocks=dict([pair])).to_json()["blocks"])


def _random_configs(space: Space) -> Iterator[NetworkConfig]:
    """Yield networks of all strengths, each once."""
    source = random.Random(0)
    choices = {block: list(space.block_configs(block)) for block in space.choices}
    seen = set()
    while True:
        untouched = source.random()
        blocks = {block: source.choice(forms) for block, forms in choices.items() if source.random() > untouched}
        config = space.network.canonical(NetworkConfig(blocks=blocks))
        if config.blocks and (digest := space.network.digest(config)) not in seen:
            seen.add(digest)
            yield config


def _zero_shot(baseline: nn.Module, network: Network, data: Data, config: NetworkConfig) -> dict[str, Any]:
    model = compress_model(baseline, network.forms(config))
    initialize("calibrated", model, baseline, data, seed=0, device=torch.device("cpu"))
    val = Split(images=data.val.take(torch.arange(_VAL_IMAGES)), labels=data.val.labels[:_VAL_IMAGES])
    measured = evaluate(model, val, data.normalize, device="cpu")
    cost = network.cost(config)
    told = {"accuracy": measured.top1, "val_loss": measured.loss, "size_bytes": cost.size_bytes}
    return {"config": json.dumps(config.to_json()), **told}


def _process(effects: Effects, network: Network) -> Callable[[str, BlockConfig], float]:
    return EffectModel.fit(effects, network).loss_increase


def _curves(effects: Effects, network: Network) -> Callable[[str, BlockConfig], float]:
    """Least squares with a weak ridge, over effects of single parts."""
    blocks = sorted({effect.block for effect in effects.effects})
    columns = [*blocks, *((part, index) for part, about in PARTS.items() for index in range(len(about.slopes) + 1))]
    place = {column: index for index, column in enumerate(columns)}

    def row(block: str, part: str, numbers: Sequence[float]) -> np.ndarray:
        values = np.zeros(len(columns))
        values[place[block]] = 1 if block in place else 0
        for index, number in enumerate((1.0, *numbers)):
            values[place[part, index]] = number
        return values

    known = [(e, parts) for e in effects.effects if len(parts := form_parts(network, e.block, e.config, 8)) == 1]
    matrix = np.array([row(e.block, *next(iter(parts.items()))) for e, parts in known])
    logs = np.log([max(e.divergence, _LEAST) for e, _ in known])
    weights = np.linalg.solve(matrix.T @ matrix + 0.01 * np.eye(len(columns)), matrix.T @ logs)

    def told(block: str, config: BlockConfig) -> float:
        parts = form_parts(network, block, config, 8)
        return sum(math.exp(row(block, part, numbers) @ weights) for part, numbers in parts.items())

    return told


def _nearest(effects: Effects, network: Network) -> Callable[[str, BlockConfig], float]:
    known = [(e, parts) for e in effects.effects if len(parts := form_parts(network, e.block, e.config, 8)) == 1]

    def told(block: str, config: BlockConfig) -> float:
        total = 0.0
        for part, numbers in form_parts(network, block, config, 8).items():
            same = [(e, parts[part]) for e, parts in known if part in parts]
            here = [pair for pair in same if pair[0].block == block] or same
            apart = [_apart(numbers, other, PARTS[part].shared) for _, other in here]
            total += here[int(np.argmin(apart))][0].divergence if here else 0.0
        return total

    return told


def _apart(one: Sequence[float], other: Sequence[float], scales: Sequence[float]) -> float:
    return sum(abs(a - b) * scale for a, b, scale in zip(one, other, scales, strict=True))


_RULES: Mapping[str, _Rule] = {"process": _process, "curves": _curves, "nearest": _nearest}


def _report(table: pd.DataFrame, networks: Mapping[Granularity, Network], data: Data) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "scipy", "numpy"))
    libraries = {kind: _library(table, kind) for kind in _GRANULARITIES}
    effects = table[table["kind"].isin(_GRANULARITIES)]
    wholes = table[table["kind"].str.startswith("network")]
    passes = effect_passes(data)
    head = f"""# Effects of single blocks (`benchmarks/effects.py`)

ResNet-20, CIFAR-10 as JPEG, 10,000 training images; {platform.machine()}, one thread, {versions}.
{len(effects)} effects, each on {libraries["stage"].images} held-out training images after calibration on
{libraries["stage"].calibration_images}; {len(wholes)} networks, {_VAL_IMAGES} validation images each, accuracies from
{100 * wholes["accuracy"].min():.1f} to {100 * wholes["accuracy"].max():.1f} %. An effect takes
{effects["cpu_s"].median():.2f} s (median), {passes} passes by its plan; a whole network
{wholes["cpu_s"].median():.2f} s.
"""
    return "\n".join(
        [head, _rank_table(table, libraries, networks), _error_table(libraries, networks), _precision(table)]
    )


def _library(table: pd.DataFrame, kind: str, count: int | None = None) -> Effects:
    rows = table[table["kind"] == kind].head(count if count is not None else len(table))
    effects = tuple(Effect.from_json(json.loads(text)) for text in rows["effect"])
    return replace(Effects.from_json(json.loads(rows["reference"].iloc[0])), effects=effects)


def _rank_table(
    table: pd.DataFrame, libraries: Mapping[Granularity, Effects], networks: Mapping[Granularity, Network]
) -> str:
    """Return the rank correlations as Markdown."""
    lines = ["## Rank correlation with the accuracy of whole networks before training", ""]
    lines += ["| networks | effects of | rule | " + " | ".join(map(str, (*_COUNTS[:-1], "all"))) + " |"]
    lines += ["|---|---|---|" + "---|" * len(_COUNTS)]
    pairs: list[tuple[Granularity, Granularity]] = [("stage", "stage"), ("stage", "layer"), ("layer", "layer")]
    for drawn, blocks in pairs:
        rows = table[table["kind"] == f"network by {drawn}"]
        configs = [NetworkConfig.from_json(json.loads(text)) for text in rows["config"]]
        for name, rule in _RULES.items():
            cells = []
            for count in (*_COUNTS[:-1], None):
                library = replace(libraries[blocks], effects=libraries[blocks].effects[:count])
                told = rule(library, networks[blocks])
                sums = [_told_of(config, told, networks[blocks]) for config in configs]
                cells.append(f"{spearmanr(sums, -rows['accuracy']).statistic:.3f}")
            lines.append(f"| {len(rows)} by {drawn} | {blocks} | {name} | " + " | ".join(cells) + " |")
        by_size = spearmanr(rows["size_bytes"], rows["accuracy"]).statistic
        lines.append(f"| {len(rows)} by {drawn} | - | size | " + " | ".join([f"{by_size:.3f}"] * len(_COUNTS)) + " |")
    return "\n".join([*lines, ""])


def _told_of(config: NetworkConfig, told: Callable[[str, BlockConfig], float], network: Network) -> float:
    """Return the sum over the library's own blocks, a stage's config standing for that of its layers."""
    total = 0.0
    for block, form in config.blocks.items():
        inside = [name for name in network.blocks if name == block or name.startswith(f"{block}.")] or [block]
        total += sum(told(name, form) for name in inside if network.block_forms(name, form, config.minimum_templates))
    return total


def _error_table(libraries: Mapping[Granularity, Effects], networks: Mapping[Granularity, Network]) -> str:
    """Return the held-out errors as Markdown."""
    lines = ["## Each effect left out in turn", "", "| effects of | n | rule | mean error, nats | typical factor |"]
    lines += ["|---|---|---|---|---|"]
    for kind, library in libraries.items():
        for name, rule in _RULES.items():
            errors, logs = [], []
            for effect in library.effects:
                others = tuple(other for other in library.effects if other is not effect)
                told = rule(replace(library, effects=others), networks[kind])(effect.block, effect.config)
                errors.append(abs(told - effect.divergence))
                logs.append(math.log(max(told, _SEEN) / max(effect.divergence, _SEEN)))
            factor = math.exp(math.sqrt(float(np.mean(np.square(logs)))))
            lines.append(f"| {kind} | {len(errors)} | {name} | {np.mean(errors):.4f} | {factor:.2f} |")
    return "\n".join([*lines, ""])


def _precision(table: pd.DataFrame) -> str:
    """Return how precise effects are, as Markdown."""
    effects = [json.loads(text) for text in table[table["kind"].isin(_GRANULARITIES)]["effect"]]
    heads = [json.loads(text) for text in table[table["kind"].isin(_GRANULARITIES)]["reference"]]
    seen = [(e, h) for e, h in zip(effects, heads, strict=True) if e["divergence"] > _SEEN]
    relative = np.median([e["divergence_error"] / e["divergence"] for e, _ in seen])
    few = table[table["kind"] == "calibration"]
    by = {
        count: [json.loads(text)["divergence"] for text in few[few["images"] == count]["effect"]]
        for count in _CALIBRATIONS
    }
    most = by[_CALIBRATIONS[-1]]
    ratios = {count: np.exp(np.mean(np.log(np.divide(by[count], most)))) for count in _CALIBRATIONS[:-1]}
    told = ", ".join(f"{ratio:.2f} x on {count}" for count, ratio in ratios.items())
    raised = [e["loss"] - h["loss"] for e, h in seen]
    agree = spearmanr(raised, [e["divergence"] for e, _ in seen]).statistic
    return f"""## How precise

The standard error of an effect is {100 * relative:.0f} % of it (median of the {len(seen)} above {_SEEN} nats);
divergence and rise of the loss on the labels rank them alike ({agree:.3f}). Calibrated on fewer images than a trial's
{_CALIBRATIONS[-1]}, effects of stages come out as {told} (geometric means of n = {len(most)}).
"""


if __name__ == "__main__":
    main()
