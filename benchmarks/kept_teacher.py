"""What distillation adds to an epoch of fine-tuning: with a teacher that is asked, and with one whose outputs are kept.

    python benchmarks/kept_teacher.py [--device cuda] [--model resnet20] [--rounds 12]

All trials of a study see the same images, so the first one keeps its teacher's outputs and the others read them
(`trainers.training.distillation`). A ResNet-20 is trained on random images of CIFAR-10's size by the default recipe:
from labels alone, from a teacher that is asked in each step (as the first trial's is), and from outputs that are kept.
A side is a whole epoch of a training of its own, validation on 64 images included; sides take turns within a round.
Rows of other devices and models are kept in `kept_teacher.parquet`; writes `kept_teacher.md` too.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from rich.progress import track
from turns import machine, publish, take_turns

from spaces.models import RESNET_DEPTHS, build_model
from trainers.data import Data, Split
from trainers.runtime.device import keep_freed_memory, parse_device, training_precision
from trainers.training import loop
from trainers.training.recipe import TrainingRecipe

_SIDES = _LABELS, _ASKED, _ = "labels alone", "a teacher that is asked", "a teacher whose outputs are kept"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=parse_device, default=torch.device("cpu"))
    parser.add_argument("--model", default="resnet20", choices=[f"resnet{depth}" for depth in RESNET_DEPTHS])
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, OVERTONE_CACHE=cache):
        found = _measure(arguments)
    path = arguments.out / "kept_teacher.parquet"
    publish(
        found,
        path,
        "What distillation adds to an epoch",
        "{images} images in batches of {batch_size}",
        sides=_SIDES,
        column="side",
        turn="an epoch",
    )


def _measure(arguments: argparse.Namespace) -> pd.DataFrame:
    """One row a side and round."""
    device = arguments.device
    about = {
        "model": arguments.model,
        **machine(device),
        "precision": training_precision(TrainingRecipe().precision, device),
        "images": arguments.images,
        "batch_size": TrainingRecipe().batch_size,
    }
    data = _data(arguments.images)
    sides = {side: _epoch(arguments, data, side) for side in _SIDES}
    turns = take_turns(sides, arguments.rounds, device)
    return pd.DataFrame(
        [{**about, "side": side, **timing} for side, timing in track(turns, "epochs", len(sides) * arguments.rounds)]
    )


def _data(count: int) -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(images: int) -> Split:
        pixels = torch.randint(256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(images=pixels, labels=torch.randint(10, (images,), generator=generator))

    third = (0.5, 0.5, 0.5)
    return Data(
        train=split(count), val=split(64), test=split(64), classes=10, mean=third, std=third, augment="crop-flip"
    )


def _epoch(arguments: argparse.Namespace, data: Data, side: str) -> Callable[[], None]:
    torch.manual_seed(0)
    teacher = build_model(arguments.model, classes=10, channels=3)
    recipe = replace(TrainingRecipe(), distillation=0.0 if side == _LABELS else 0.5)

    def run() -> None:
        torch.manual_seed(1)
        model = build_model(arguments.model, classes=10, channels=3)
        with patch.object(loop, "_MOST_OUTPUTS", 0) if side == _ASKED else nullcontext():
            training = loop.TrainingLoop(
                model, data, recipe, epochs=1, seed=0, device=arguments.device, teacher=teacher
            )
            list(training)

    return run


if __name__ == "__main__":
    main()
