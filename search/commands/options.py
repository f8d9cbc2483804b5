"""The command line's options: each declared once with its help, and how what was written is read."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from layers import OvertoneWarning, UsageError
from spaces import Network, NetworkConfig, presets
from spaces.blocks import Granularity as BlockGranularity
from trainers.training.recipe import RECIPES, TrainingRecipe

if TYPE_CHECKING:
    from search.runner.cluster import Resources

__all__ = [
    "Address",
    "BatchSize",
    "Granularity",
    "Concurrency",
    "CpusPerTrial",
    "DataDir",
    "Dataset",
    "Distillation",
    "Epochs",
    "Filters",
    "FiltersFile",
    "GpusPerTrial",
    "Json",
    "Keep",
    "LearningRate",
    "Model",
    "OptunaStorage",
    "Precision",
    "Rerun",
    "Recipe",
    "Seed",
    "Settings",
    "LrSchedule",
    "SpaceFile",
    "Store",
    "Stream",
    "Study",
    "TensorBoardFolder",
    "TrainLimit",
    "ValidationFrom",
    "Where",
    "parse_amount",
    "parse_gpus",
    "parse_granularity",
    "parse_image",
    "read_config",
    "read_resources",
    "read_recipe",
    "read_space",
]

_NAMED = ("lr", "batch_size", "lr_schedule", "precision", "distillation")
SETTINGS = tuple(field.name for field in fields(TrainingRecipe) if field.name not in _NAMED)
"""Settings of a schedule that have no option of their own."""

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)\s*(b|bytes|flops?)?\s*", re.IGNORECASE)

Model = Annotated[
    str,
    typer.Option(
        help="resnet8, resnet20, resnet32, resnet44, resnet56 or vgg16 for small images, a torchvision classification "
        "model by its name, or package.module:factory."
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="digits (inside scikit-learn, no download), cifar10, parquet:DIR (Hugging Face image layout) or "
        "imagefolder:DIR (ImageNet's layout)."
    ),
]
DataDir = Annotated[str, typer.Option(help="Folder that cifar10 is kept in, or downloaded to.")]
TrainLimit = Annotated[int | None, typer.Option(help="Use at most so many training images, for short runs.")]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Decode training images as they are needed, for a folder of images that do not fit in memory decoded.",
    ),
]
ValidationFrom = Annotated[
    str,
    typer.Option(
        help="train: hold validation images out of the training images. test: take half of the test images for "
        "validation and keep the other half as the test set, for weights that have seen all training images."
    ),
]
SpaceFile = Annotated[
    Path | None,
    typer.Option(
        "--space",
        help="YAML file that says what knobs may be, such as `all: {bits: [8, 4]}` or `layer3: {harmonics: [1, 2]}`; "
        "`overtone inspect` shows blocks and knobs. A pruning_rate of `global 0.5` is the rate that a block has where "
        "half of all the network's filters, the least salient ones, are pruned.",
    ),
]
Granularity = Annotated[str, typer.Option(help="What is one block of the space: stage, or layer for single layers.")]
Saliency = Annotated[
    str,
    typer.Option(
        help="By what filters stay as templates: magnitude, or gradient (what the loss would lose with the filter, to "
        "first order, on labeled training images)."
    ),
]
Filters = Annotated[
    str | None,
    typer.Option(
        "--filters",
        help="Instead, draw filters of this convolution beside their cosine and Chebyshev series at falling harmonics, "
        "with the L2 error of each; goes with --png.",
    ),
]
RebuiltRate = Annotated[
    float | None,
    typer.Option(
        "--pruning-rate",
        help="With --filters: draw what is rebuilt from templates at this pruning rate, by each family of transforms, "
        "beside plain pruning, instead of series. Without: draw the rate that each block has where this share of all "
        "filters is pruned.",
    ),
]
FiltersFile = Annotated[Path | None, typer.Option("--png", help="File to draw into: .png, or .svg.")]
Epochs = Annotated[int, typer.Option(help="Epochs of fine-tuning in a trial.")]
Recipe = Annotated[str, typer.Option("--recipe", help=f"Settings to begin with: {', '.join(RECIPES)}.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step.")]
LrSchedule = Annotated[str | None, typer.Option(help="Learning rate over time: one-cycle, cosine, step or constant.")]
Precision = Annotated[
    str | None, typer.Option(help="What training computes in: auto (bf16 where the device has it), bf16 or fp32.")
]
Distillation = Annotated[
    float | None, typer.Option(help="Share of the loss, 0 to 1, that asks for the uncompressed network's outputs.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help=f"Repeat for each: any other setting of the schedule, such as ema_decay=0.999 or milestones=30,60; "
        f"{', '.join(SETTINGS)}.",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything that is drawn at random.", show_default=True)
]
Store = Annotated[str, typer.Option(help="Where studies are kept: a folder, NFS, or s3://bucket/prefix.")]
Study = Annotated[str, typer.Option(help="Name of the study.")]
Keep = Annotated[
    str,
    typer.Option(
        help="Whose packed models go into the store: front (trials that none before them dominates; what leaves the "
        "front later stays) or all. Others can be trained again by `overtone export --rerun`."
    ),
]
Rerun = Annotated[
    bool,
    typer.Option(
        "--rerun",
        help="Train the trial again where its model was not kept; stopped by Ctrl-C, the same command goes on.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
Where = Annotated[
    str | None,
    typer.Option(help='Condition on columns of the ledger, in SQL: "size_bytes < 20000 and val_top1 > 0.9".'),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to use, auto or host:port; without it Ray starts on this machine.", show_default=False
    ),
]
CpusPerTrial = Annotated[float, typer.Option(help="CPUs that each trial takes.")]
GpusPerTrial = Annotated[
    str | None,
    typer.Option(
        help="GPUs that each trial takes; 0.25 packs four on one, auto as many as its memory has room for. Default: 1 "
        "where the cluster has GPUs, else 0.",
        show_default=False,
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        help="Most trials at once; 1 makes a study reproducible from its seed. Default: as many as fit.",
        show_default=False,
    ),
]


TensorBoardFolder = Annotated[
    Path | None, typer.Option("--tensorboard", help="Folder to write curves to, for TensorBoard.", show_default=False)
]
OptunaStorage = Annotated[
    str | None,
    typer.Option(
        help="Where optuna-dashboard may look on: journal:FILE, sqlite:///FILE or a database's URL. It is written "
        "anew from the ledger by each run.",
        show_default=False,
    ),
]


def parse_gpus(text: str | None) -> float | Literal["auto"] | None:
    """A number, `auto`, or nothing."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"gpus_per_trial (={text!r}) must be a number of at least 0, or auto.") from error


def read_resources(cpus: float, gpus: str | None, concurrency: int | None, address: str | None) -> Resources:
    """What each trial takes, and how many run at once."""
    from search.runner.cluster import Resources

    return Resources(cpus_per_trial=cpus, gpus_per_trial=parse_gpus(gpus), concurrency=concurrency, address=address)


def parse_amount(text: str, *, name: str) -> int:
    """The whole number that `text` says, with decimal prefixes (1 kB = 1,000 bytes); `UsageError` names the option."""
    match = _AMOUNT.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{name} (={text!r}) must be an amount above 0 such as 40kB, 1.5MB, 5M or 250000.")
    return round(float(match[1]) * _PREFIXES[match[2].lower()])


def parse_granularity(text: str) -> BlockGranularity:
    """`stage` or `layer`."""
    if text not in ("stage", "layer"):
        raise UsageError(f"granularity (={text!r}) must be stage or layer.")
    return "stage" if text == "stage" else "layer"


def parse_image(text: str) -> tuple[int, int, int]:
    """(channels, height, width) of `3x32x32`."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"image (={text!r}) must be CHANNELSxHEIGHTxWIDTH, such as 3x32x32.")
    channels, height, width = map(int, parts)
    return channels, height, width


def read_recipe(preset: str, settings: Sequence[str] | None, *, epochs: int, **given: Any) -> TrainingRecipe:
    """The preset with what was given in its place (`None` was not), and the settings, each `NAME=VALUE`.

    Warns of one that does not do within so many epochs what it is for.
    """
    if preset not in RECIPES:
        raise UsageError(f"schedule (={preset!r}) must be one of {', '.join(RECIPES)}.")
    changes = {name: value for name, value in given.items() if value is not None}
    for setting in settings or ():
        name, _, text = setting.partition("=")
        if name not in SETTINGS:
            raise UsageError(f"setting (={setting!r}) must be NAME=VALUE, with a name of {', '.join(SETTINGS)}.")
        changes[name] = _parse_setting(name, text, getattr(TrainingRecipe(), name))
    recipe = replace(RECIPES[preset], **changes)
    recipe.check_length(epochs)
    if recipe.never_falls(epochs):
        said = (
            f"the learning rate would first fall after epoch {recipe.milestones[0]:g}; within {epochs} it never does."
        )
        warnings.warn(said, OvertoneWarning, stacklevel=2)
    return recipe


def _parse_setting(name: str, text: str, like: Any) -> Any:
    """The value of a setting in the type of its default."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, tuple):
            return tuple(float(part) for part in text.split(",") if part)
        return type(like)(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a whole number", tuple: "numbers with commas"}.get(type(like), "a number")
        raise UsageError(f"setting {name} (={text!r}) must be {kind}.") from error


def read_config(text: str, model: str, network: Network) -> NetworkConfig:
    """The preset of that name, or what a JSON file holds: a config, or something with one in it, such as an export's
    `config.json`.
    """
    named = {preset.name: preset.config for preset in presets(model, network)}
    if text in named:
        return named[text]
    try:
        found = json.loads(Path(text).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"config (={text!r}) must be a readable JSON file or a preset of {model}: {', '.join(named)}."
        ) from error
    for part in ("spec", "config"):
        found = found.get(part, found) if isinstance(found, Mapping) else found
    return network.canonical(NetworkConfig.from_json(found))


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that comes twice, of which the last one would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"found {key!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_space(path: Path | None) -> Mapping[str, Any]:
    """The limits in a space file, none without a file."""
    if path is None:
        return {}
    try:
        limits = yaml.load(path.read_text(), _UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"space (={str(path)!r}) must be a readable YAML file; {reason}.") from error
    if not isinstance(limits, Mapping):
        raise UsageError(f"space (={str(path)!r}) must map blocks, or `all`, to knobs and their values.")
    return limits
