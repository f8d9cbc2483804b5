"""Every config of a space of a trained ResNet-20, calibrated and never trained: a second grid that searches replay.

    python benchmarks/zero_shot_grid.py --data DIR --weights FILE [--jobs 2]

CIFAR-10 as JPEG. Each config's start is fitted to 128 training images; loss and accuracy are those of 1,500 test images
that nothing was trained on. What studies would measure first, effects of single blocks, is in `zero_shot_effects.json`.
Each process has one thread, and seconds are those of its processor. Rows are kept in `zero_shot_grid.parquet` as they
come, and the same command goes on from there.
"""

import argparse
import json
import multiprocessing
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from measured_effects import measured_effects
from replays import Grid, Measured
from resnet20_trials import device
from rich.progress import track
from torch import nn

from layers import compress_model
from search.optimize.effect_plan import effect_plan
from search.runner.effects import EFFECTS_TRIALS
from spaces import Network, NetworkConfig, Space, build_model
from spaces.effects import Effects
from spaces.space import Value
from trainers.data import DataSpec, load_data
from trainers.effects import affordable_effects
from trainers.runtime.determinism import eval_mode
from trainers.runtime.device import keep_freed_memory
from trainers.start.calibration import calibrate
from trainers.start.start import calibration_images
from trainers.trial import load_baseline

__all__ = ["zero_shot_grid"]

TABLE = Path(__file__).with_name("zero_shot_grid.parquet")
EFFECTS = Path(__file__).with_name("zero_shot_effects.json")

_CALIBRATION_IMAGES = 128
_IMAGES = 1_500
_LIBRARIES, _EPOCHS = 3, 5
"""Libraries of effects, and the epochs of a study's trials, whose cost bounds them."""
_CHOICES: dict[str, dict[str, list[Any]]] = {
    "all": {"basis": ["cosine"], "harmonics": [3], "allocation": [None], "pruning_rate": [None], "bits": [None]},
    "layer1": {"harmonics_y": [2, 3], "bits": [3, 4, None]},
    "layer2": {"harmonics_x": [2, 3], "bits": [3, None]},
    "layer3": {"harmonics_y": [2, 3], "harmonics_x": [2, 3], "pruning_rate": [None, 0.5], "bits": [3, 4, None]},
    "norms_and_biases": {"bits": [None]},
}
"""As a space file of `overtone search` has them; one group, scalar transforms."""

_shared: dict[str, Any] = {}


def zero_shot_network() -> Network:
    """Return the ResNet-20; its costs do not depend on its weights."""
    return Network.from_module(build_model("resnet20", classes=10, channels=3), (3, 32, 32))


def zero_shot_space(network: Network) -> Space:
    """Return the space whose every config is in the grid."""
    everything = {**_CHOICES["all"], "groups": [1]}
    return Space.default(network).restrict({**_CHOICES, "all": everything})


def zero_shot_configs(space: Space) -> Iterator[tuple[dict[str, Value], NetworkConfig]]:
    """All points of the space: the knobs that have a choice, and the config that they make."""
    knobs = {name: values for name, values in space.knobs.items() if len(values) > 1}
    for values in product(*knobs.values()):
        point = dict(zip(knobs, values, strict=True))
        yield point, space.decode(point)


def zero_shot_grid() -> Grid:
    """Return the grid for replays."""
    space = zero_shot_space(zero_shot_network())
    rows = pd.read_parquet(TABLE)
    found = {
        row.config_digest: Measured(
            costs={"size_bytes": float(row.size_bytes), "flops": float(row.flops)},
            accuracies=(row.top1,),
            seconds=(row.compress_s + row.evaluate_s,),
        )
        for row in rows.itertuples()
    }
    lacking = sum(space.network.digest(config) not in found for _, config in zero_shot_configs(space))
    if lacking:
        raise SystemExit(f"{TABLE} lacks {lacking} configs of the space; `benchmarks/zero_shot_grid.py` measures them.")
    libraries = [Effects.from_json(library) for library in json.loads(EFFECTS.read_text())]
    return Grid("resnet20", space, found, libraries, _IMAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", required=True, help="safetensors of the trained ResNet-20")
    parser.add_argument("--jobs", type=int, default=2, help="configs at a time, each with one thread")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    network = zero_shot_network()
    configs = {network.digest(config): (point, config) for point, config in zero_shot_configs(zero_shot_space(network))}
    done = pd.read_parquet(arguments.out).to_dict("records") if arguments.out.exists() else []
    known = {row["config_digest"] for row in done}
    missing = [digest for digest in configs if digest not in known]
    random.Random(0).shuffle(missing)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, _prepare, (arguments.data, arguments.weights)) as pool:
        if not EFFECTS.exists():
            EFFECTS.write_text(json.dumps(list(pool.map(_effects, range(_LIBRARIES))), indent=1))
        futures = [pool.submit(_run, *configs[digest]) for digest in missing]
        for number, future in enumerate(track(as_completed(futures), f"{len(missing)} configs", total=len(missing))):
            done.append(future.result())
            if number % 25 == 0:
                _write(done, arguments.out)
    _write(done, arguments.out)


def _prepare(folder: str, weights: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    data = load_data(DataSpec(name=f"parquet:{folder}", val_from="test", train_limit=5_000))
    baseline, network = load_baseline("resnet20", weights, data)
    images = calibration_images(data, seed=0, device=torch.device("cpu"), count=_CALIBRATION_IMAGES)
    val = data.val.take(torch.arange(_IMAGES))
    _shared.update(data=data, baseline=baseline, network=network, images=images)
    _shared.update(inputs=data.normalize(val), labels=data.val.labels[:_IMAGES])


def _effects(seed: int) -> dict[str, Any]:
    """Return the effects that a study of this seed would measure on 5,000 training images, as JSON data."""
    data, network = _shared["data"], _shared["network"]
    space = zero_shot_space(network)
    planned = islice(effect_plan(space), affordable_effects(data, trials=EFFECTS_TRIALS, epochs=_EPOCHS))
    minimum = space.minimum_templates
    return measured_effects(planned, data, _shared["baseline"], network, minimum_templates=minimum, seed=seed).to_json()


def _run(point: Mapping[str, Value], config: NetworkConfig) -> dict[str, Any]:
    network: Network = _shared["network"]
    baseline: nn.Module = _shared["baseline"]
    started = time.process_time()
    model = compress_model(baseline, network.forms(config))
    calibrate(model, baseline, _shared["images"])
    compressed = time.process_time()
    loss, top1 = _measure(model)
    ended = time.process_time()
    cost = network.cost(config)
    return {
        **{name: -1 if value is None else value for name, value in point.items()},
        "config_digest": network.digest(config),
        "loss": loss,
        "top1": top1,
        "compress_s": compressed - started,
        "evaluate_s": ended - compressed,
        "size_bytes": cost.size_bytes,
        "flops": cost.flops,
        "device": device(),
        "torch": version("torch"),
    }


def _measure(model: nn.Module) -> tuple[float, float]:
    """Return the mean loss and the accuracy of the validation images."""
    with torch.no_grad(), eval_mode(model):
        outputs = torch.cat([model(images) for images in _shared["inputs"].split(500)])
    labels = _shared["labels"]
    loss = nn.functional.cross_entropy(outputs, labels)
    return float(loss), float((outputs.argmax(1) == labels).double().mean())


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    scratch = path.with_name(f".{path.name}.tmp")
    pd.DataFrame(rows).sort_values("config_digest").to_parquet(scratch, index=False)
    scratch.replace(path)


if __name__ == "__main__":
    main()
