"""`overtone train`: a network from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from layers.errors import UsageError
from search.commands import options
from search.commands.display import print_answer
from search.commands.option_groups import BaselineRecipeOptions, DataOptions, with_option_groups
from search.study.parsing import parse_granularity
from search.study.plan import StudyPlan
from trainers.score import SCORE_NAME

__all__ = ["train"]


@with_option_groups
def train(
    model: options.Model,
    out: Annotated[Path, options.option(options.OUTPUT, "Safetensors file to write the weights to.")],
    data: DataOptions,
    recipe: BaselineRecipeOptions,
    config: options.Config = None,
    granularity: options.Granularity = StudyPlan.granularity,
    seed: Annotated[int, options.option(options.TRAINING, "Seed of all random numbers.", min=0, max=2**32 - 1)] = 0,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a network from random weights.

    That is an uncompressed baseline if you have no weights yet, or with --config a compressed network. A checkpoint
    beside the file is written after each epoch. After Ctrl-C or a crash the same command continues.

    Example: overtone train --model resnet8 --dataset digits --out resnet8.safetensors

    Example: overtone train --model resnet20 --dataset cifar10 --epochs 164 --recipe resnet --out resnet20.safetensors
    """
    settings, spec = recipe.training_recipe(), data.data_spec()
    if out.suffix != ".safetensors":
        raise UsageError(f"out (={str(out)!r}) must end in .safetensors")
    from search.api.train import train_network

    last, sha256 = train_network(
        model,
        spec,
        out,
        settings,
        epochs=recipe.epochs,
        config=config,
        granularity=parse_granularity(granularity),
        seed=seed,
        device=device,
    )
    answer: dict[str, Any] = {"out": str(out), **last.metrics, "epochs": recipe.epochs}
    if sha256 is not None:
        answer["weights_sha256"] = sha256
    plural = "" if recipe.epochs == 1 else "s"
    print_answer(answer, f"{out}: {SCORE_NAME} {last.score:.4f} after {recipe.epochs} epoch{plural}", as_json)
