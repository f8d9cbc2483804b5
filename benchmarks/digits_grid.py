"""Every config of a small space, trained for real: what any search of that space would have measured.

    python benchmarks/digits_grid.py [--jobs 2]

The ResNet-8 on scikit-learn's digits, a trial as `overtone search` runs it by default: the calibrated start, validation
before fine-tuning, five epochs with validation after each. All 1,797 images are cut into five folds of equal classes;
each config is trained five times on four of them, from a baseline that has seen only these four, and validated on the
fifth. Each process has one thread, and seconds are those of its processor: what else the machine does tells in them
little. (Some 300 of the first rows in the file have wall-clock seconds, of a machine that was not busy.) Rows, one of
each config and fold, are kept in `digits_grid.parquet` as they come, and the same command goes on from there; rows of
networks that the configs no longer build are measured anew. What a study measures before its first trial, the effects
of single blocks, is kept in `digits_effects.json`, a library for each fold.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measured_effects import measured_effects
from resnet20_trials import device
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from torch import nn

from search.optimize.effect_plan import effect_plan
from search.runner.effects import EFFECTS_TRIALS
from spaces import Network, NetworkConfig, Space, state_sha256
from spaces.space import Value
from trainers.data import Data, DataSpec, Split, load_data
from trainers.effects import affordable_effects
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.train import random_network, train_model
from trainers.training.recipe import RECIPES
from trainers.trial import Trial

__all__ = ["EFFECTS", "EPOCHS", "FOLDS", "TABLE", "grid_configs", "grid_network", "grid_space", "load_fold"]

FOLDS = 5
EPOCHS = 5
TABLE = Path(__file__).with_name("digits_grid.parquet")
EFFECTS = Path(__file__).with_name("digits_effects.json")

_BASELINE_EPOCHS = 30
_CHOICES: dict[str, dict[str, list[Any]]] = {
    "all": {"basis": ["cosine"], "harmonics": [3], "allocation": [None], "pruning_rate": [None], "bits": [None]},
    "layer1": {"harmonics_y": [1, 3], "bits": [2, None]},
    "layer2": {"harmonics_y": [1, 3], "pruning_rate": [None, 0.75], "bits": [2, None]},
    "layer3": {"harmonics_y": [1, 3], "harmonics_x": [1, 3], "pruning_rate": [None, 0.875], "bits": [2, None]},
    "norms_and_biases": {"bits": [None]},
}
"""As a space file of `overtone search` has them; one group, scalar transforms."""


def grid_network() -> Network:
    """Return the ResNet-8 for digits; its costs do not depend on its weights."""
    return Network.from_module(random_network("resnet8", load_data(DataSpec()), seed=0), (1, 8, 8))


def grid_space(network: Network) -> Space:
    """Return the space whose every config is in the grid."""
    everything = {**_CHOICES["all"], "groups": [1]}
    return Space.default(network).restrict({**_CHOICES, "all": everything})


def grid_configs(space: Space) -> Iterator[tuple[dict[str, Value], NetworkConfig]]:
    """All points of the space: the knobs that have a choice, and the config that they make."""
    knobs = {name: values for name, values in space.knobs.items() if len(values) > 1}
    for values in itertools.product(*knobs.values()):
        point = dict(zip(knobs, values, strict=True))
        yield point, space.decode(point)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, each with one thread")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    network = grid_network()
    configs = {network.digest(config): (point, config) for point, config in grid_configs(grid_space(network))}
    done = pd.read_parquet(arguments.out).to_dict("records") if arguments.out.exists() else []
    done = [row for row in done if row["config_digest"] in configs]
    known = {(row["config_digest"], row["fold"]) for row in done}
    missing = [key for key in itertools.product(configs, range(FOLDS)) if key not in known]
    random.Random(0).shuffle(missing)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, _prepare) as pool:
        if not EFFECTS.exists():
            EFFECTS.write_text(json.dumps(list(pool.map(_effects, range(FOLDS))), indent=1))
        futures = [pool.submit(_run, *configs[digest], fold) for digest, fold in missing]
        for number, future in enumerate(track(as_completed(futures), f"{len(missing)} trials", total=len(missing))):
            done.append(future.result())
            if number % 25 == 0:
                _write(done, arguments.out)
    _write(done, arguments.out)


def _prepare() -> None:
    """As a trial's process of a search is."""
    torch.set_num_threads(1)
    keep_freed_memory()


@cache
def load_fold(number: int) -> tuple[Data, nn.Module, Network]:
    """Return a fold's data, its trained baseline, and the baseline's `Network`."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(classes).long()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(images, labels)
    train, val = list(folds)[number]
    like = load_data(DataSpec())
    trained, held_out = (Split(images=images[rows], labels=labels[rows]) for rows in (train, val))
    data = replace(like, train=trained, val=held_out, test=held_out)
    baseline = random_network("resnet8", data, seed=number)
    train_model(baseline, data, RECIPES["baseline"], epochs=_BASELINE_EPOCHS, seed=number, device="cpu")
    return data, baseline.eval(), Network.from_module(baseline, data.val.image_shape)


def _effects(fold: int) -> dict[str, Any]:
    """Return the effects that a study of this fold would measure, as JSON data."""
    data, baseline, network = load_fold(fold)
    space = grid_space(network)
    planned = islice(effect_plan(space), affordable_effects(data, trials=EFFECTS_TRIALS, epochs=EPOCHS))
    minimum = space.minimum_templates
    return measured_effects(planned, data, baseline, network, minimum_templates=minimum, seed=fold).to_json()


def _run(point: Mapping[str, Value], config: NetworkConfig, fold: int) -> dict[str, Any]:
    data, baseline, network = load_fold(fold)
    spec = TrialSpec(
        model="resnet8",
        weights=f"fold {fold}",
        weights_sha256=state_sha256(baseline),
        data_fingerprint=data.fingerprint,
        config=config,
        recipe=replace(RECIPES["finetune"], distillation=0.0),
        epochs=EPOCHS,
        seed=fold,
    )
    started, processor = time.perf_counter(), time.process_time()
    trial = Trial(spec, data=data, baseline=baseline, network=network, device="cpu")
    for _ in trial.epochs():
        pass
    result = trial.result()
    busy = (time.process_time() - processor) / (time.perf_counter() - started)
    return {
        **{name: -1 if value is None else value for name, value in point.items()},
        "config_digest": result.config_digest,
        "fold": fold,
        "val_images": len(data.val),
        "init_score": result.init_score,
        **{f"val_top1_{epoch.epoch}": epoch.score for epoch in result.history},
        "compress_s": busy * result.compress_s,
        "evaluate_s": busy * result.evaluate_s,
        **{f"epoch_s_{epoch.epoch}": busy * epoch.seconds for epoch in result.history},
        "size_bytes": result.cost.size_bytes,
        "flops": result.cost.flops,
        "device": device(),
        "torch": version("torch"),
    }


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    pd.DataFrame(rows).sort_values(["config_digest", "fold"]).to_parquet(scratch, index=False)
    scratch.replace(path)


if __name__ == "__main__":
    main()
