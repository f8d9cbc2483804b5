"""The command line's options, each declared once: its name, its help, and the panel of the help page that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from results.objectives import COSTS
from search.study.parsing import SETTINGS
from search.study.plan import StudyPlan
from trainers.data.spec import INTERPOLATIONS
from trainers.score import SCORE_NAME
from trainers.training.recipe import RECIPES

__all__ = [
    *("Address", "AsJson", "BatchSize", "Channels", "Classes", "Concurrency", "Config", "CpusPerTrial", "DataDir"),
    *("Dataset", "Device", "Distillation", "Epochs", "FileRuntime", "GpusPerTrial", "Granularity", "ImageSize"),
    *("Init", "InspectRuntime", "Interpolation", "Keep", "LatencyThreads", "Layer", "LearningRate", "LrSchedule"),
    *("MaxFlops", "MaxSize", "Mean", "MinimumTemplates", "MissRate", "Model", "MovedData", "MovedWeights"),
    *("Objectives", "OptionalDataset", "OptionalWeights", "OptunaStorage", "Picture", "Precision", "PruningRate"),
    *("Recipe", "Rerun", "RerunDevice", "ResizeSize", "Runtime", "Saliency", "Sampler", "Seed", "Settings"),
    *("SpaceFile", "Std", "Store", "Stream", "Study", "TensorBoardFolder", "TrainEpochs", "TrainLimit", "Trials"),
    *("ValFrom", "WarmStart", "Weights", "Where"),
    *("CLUSTER", "NETWORK", "OUTPUT", "SEARCH", "SPACE", "STUDY", "TRAINING", "TRIALS", "PANELS", "option"),
]

NETWORK = "Network and data"
SPACE = "Search space"
TRAINING = "Training"
SEARCH = "Search"
STUDY = "Study"
TRIALS = "Trials"
CLUSTER = "Cluster"
OUTPUT = "Output"
PANELS = (NETWORK, SPACE, TRAINING, SEARCH, STUDY, TRIALS, CLUSTER, OUTPUT)
"""Titles of groups of options, in the order of a help page."""


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    """Return the declaration of an option; its name is the parameter's unless `names` gives another."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


_DATASETS = (
    "digits (part of scikit-learn, no download), cifar10, parquet:DIR (Hugging Face image layout) or imagefolder:DIR "
    "(ImageNet's layout)."
)

Model = Annotated[
    str,
    option(
        NETWORK,
        "resnet8, resnet20, resnet32, resnet44, resnet56 or vgg16 for small images, the name of a torchvision "
        "classification model, or package.module:factory.",
    ),
]
Weights = Annotated[
    str,
    option(
        NETWORK,
        "Trained weights: a safetensors file, a checkpoint of torch, or the name that torchvision gives its own, such "
        "as DEFAULT. FILE#KEY takes one of several networks in a file, such as last.ckpt#ema.",
    ),
]
OptionalWeights = Annotated[
    str | None,
    option(
        NETWORK,
        "Trained weights, as `overtone search` takes them. Default: random ones. Weights for other images than the "
        "network's usual ones need --dataset, or --channels and --classes.",
    ),
]
MovedWeights = Annotated[
    str | None,
    option(NETWORK, "Where the study's weights are now, if they have moved. Default: where it was begun with them."),
]
MovedData = Annotated[
    str | None,
    option(
        NETWORK,
        "Where the study's images are now, if they have moved: the folder, or imagefolder:DIR. Default: where it was "
        "begun with them.",
    ),
]
Dataset = Annotated[str, option(NETWORK, _DATASETS)]
OptionalDataset = Annotated[
    str | None,
    option(NETWORK, f"{_DATASETS} Default: no images, only the shape that the network is usually used with."),
]
DataDir = Annotated[str, option(NETWORK, "Folder of cifar10, which is downloaded if it is not there.")]
TrainLimit = Annotated[
    int | None, option(NETWORK, "Use at most this many training images, for short runs. Default: all.")
]
ValFrom = Annotated[
    str,
    option(
        NETWORK,
        "train: hold validation images out of the training images. test: take half of the test images for validation "
        "and keep the other half as the test set, for weights that have seen all training images. validation: take the "
        "validation-*.parquet beside test-*.parquet.",
    ),
]
Stream = Annotated[
    bool,
    option(
        NETWORK,
        "Decode training images as they are needed, for a folder whose decoded images do not fit in memory.",
        "--stream",
    ),
]
ImageSize = Annotated[
    int | None,
    option(
        NETWORK,
        "Side of the images in pixels. Those of a folder are resized and their center is cropped. Default: 224 for "
        "imagefolder, the images' own for other sets; without images 32 for small networks, else 224.",
        min=1,
    ),
]
ResizeSize = Annotated[
    int | None,
    option(
        NETWORK,
        "Length in pixels to which a folder's images are resized at their shorter side, before the center is cropped. "
        "Default: 8/7 of the image size.",
        min=1,
    ),
]
Interpolation = Annotated[
    str | None, option(NETWORK, f"How a folder's images are resized: {', '.join(INTERPOLATIONS)}. Default: bilinear.")
]
Channels = Annotated[
    int | None,
    option(
        NETWORK,
        "Channels of the images: 3 keeps gray images as color, 1 turns color into gray. Default: 1 if all images are "
        "gray, else 3.",
        min=1,
    ),
]
Mean = Annotated[
    str | None,
    option(
        NETWORK,
        "Mean of the images that the weights were trained with, of pixels in [0, 1]: a number, or one a channel, such "
        "as 0.49,0.48,0.45. With torchvision's weights it is torchvision's. Default: ImageNet's, of digits their own.",
    ),
]
Std = Annotated[str | None, option(NETWORK, "Standard deviation that goes with --mean.")]
Classes = Annotated[
    int | None,
    option(NETWORK, "Number of classes. Default: 10 for small networks, else 1,000.", min=1, max=10**6),
]
Layer = Annotated[str, option(NETWORK, "Convolution of more than one tap, by its name in the network.")]
Config = Annotated[
    str | None,
    option(
        NETWORK,
        "Train a compressed network instead, from random weights: the name of a preset that `overtone inspect` lists, "
        "or a JSON file of its blocks, such as the config.json of an export.",
    ),
]

SpaceFile = Annotated[
    Path | None,
    option(
        SPACE,
        "YAML file of the values that knobs may take, such as `all: {bits: [8, 4]}` or `layer3: {harmonics: [1, 2]}`; "
        "`overtone inspect` shows blocks and knobs. A pruning_rate of `global 0.5` becomes the rate of each block when "
        "half of the whole network's filters are pruned, least salient first.",
        "--space",
    ),
]
Granularity = Annotated[str, option(SPACE, "What one block of the space is: a stage, or a single layer.")]
MinimumTemplates = Annotated[
    int, option(SPACE, "Fewest templates that a layer keeps, at whatever pruning rate; 32 suits ImageNet.")
]
Saliency = Annotated[
    str,
    option(
        SPACE,
        "How filters are ranked that may stay as templates: magnitude, or gradient (how much the loss would rise "
        "without the filter, to first order, on labeled training images).",
    ),
]
PruningRate = Annotated[float, option(SPACE, "Share of filters to prune, between 0 and 1.")]

Epochs = Annotated[int, option(TRAINING, "Epochs of fine-tuning in a trial.")]
TrainEpochs = Annotated[int, option(TRAINING, "Epochs of training.")]
Recipe = Annotated[
    str, option(TRAINING, f"Settings to begin with, which the options below change: {', '.join(RECIPES)}.")
]
LearningRate = Annotated[float | None, option(TRAINING, "Highest learning rate. Default: the recipe's.", "--lr")]
BatchSize = Annotated[int | None, option(TRAINING, "Images in each step. Default: the recipe's.")]
LrSchedule = Annotated[
    str | None,
    option(TRAINING, "Learning rate over time: one-cycle, cosine, step or constant. Default: the recipe's."),
]
Precision = Annotated[
    str | None,
    option(
        TRAINING,
        "Number format of training: auto (bf16 if the device computes in it), bf16 or fp32. Default: the recipe's.",
    ),
]
Distillation = Annotated[
    float | None,
    option(
        TRAINING,
        "Share of the loss, 0 to 1, that compares with the uncompressed network's outputs instead of the labels. "
        "Default: the recipe's.",
    ),
]
Settings = Annotated[
    list[str] | None,
    option(
        TRAINING,
        "Any other setting of the recipe, such as ema_decay=0.999 or milestones=30,60; repeat it for each. Settings "
        f"are {', '.join(SETTINGS)}.",
        "--set",
        metavar="NAME=VALUE",
    ),
]
Init = Annotated[
    str,
    option(
        TRAINING,
        "How compressed weights begin: calibrated (fitted to the network's outputs on unlabeled training images), "
        "least_squares (fitted to its filters) or gradient_descent (the same, found as the paper does).",
    ),
]

Objectives = Annotated[
    list[str] | None,
    option(
        SEARCH,
        f"What to optimize, repeated for each: {SCORE_NAME} (or score) and costs: {', '.join(COSTS)}. Default: "
        f"{', '.join(StudyPlan.objectives)}.",
        "--objective",
    ),
]
MaxSize = Annotated[str | None, option(SEARCH, "Try no network above this size, such as 40kB. Default: no limit.")]
MaxFlops = Annotated[str | None, option(SEARCH, "Try no network above this compute, such as 5M. Default: no limit.")]
Sampler = Annotated[
    str,
    option(
        SEARCH,
        "How networks are chosen: ehvi (ours: exact costs, forecast accuracy, largest expected gain in hypervolume), "
        "or Optuna's tpe, nsga2, nsga3, gp or random.",
    ),
]
Trials = Annotated[int, option(SEARCH, "Trials to run in all.")]
MissRate = Annotated[
    float,
    option(
        SEARCH,
        "Stop a trial once it cannot enter the front even at the upper bound of its forecast score; at most this share "
        "of trials may exceed that bound. 0 runs every trial to its end.",
    ),
]
WarmStart = Annotated[
    list[str] | None,
    option(
        SEARCH,
        "Begin with the finished trials of another study of the same network, data and recipe; repeat it for each.",
    ),
]
Keep = Annotated[
    str,
    option(
        SEARCH,
        "Which packed models the store keeps: front (of trials that no earlier one dominates) or all. Others can be "
        "trained again by `overtone export --rerun`.",
    ),
]
Seed = Annotated[int, option(SEARCH, "Seed of all random numbers.", min=0, max=2**32 - 1)]

Study = Annotated[
    str,
    option(
        STUDY,
        "Name of the study: letters, digits, '.', '_' and '-', that nobody takes for a number, a date, true or null.",
    ),
]
Store = Annotated[str, option(STUDY, "Where studies are kept: a folder, NFS, or s3://bucket/prefix.")]
Where = Annotated[
    str | None,
    option(
        TRIALS,
        'SQL condition on the columns of the ledger, such as "size_bytes < 20000 and val_top1 > 0.9"; '
        "subqueries may ask the tables of `overtone query --sql`. Default: all trials.",
    ),
]
Rerun = Annotated[
    bool,
    option(
        TRIALS,
        "Train the trial again if its model was not kept. After Ctrl-C the same command continues.",
        "--rerun",
    ),
]

Runtime = Annotated[
    str,
    option(
        SEARCH,
        "Where latency is taken, if it is an objective: torch (the model, on the trial's device), onnxruntime or "
        "openvino (the trial's ONNX file, on the CPU).",
    ),
]
InspectRuntime = Annotated[
    str | None,
    option(
        SEARCH,
        "Take the uncompressed network's latency too, in torch, onnxruntime or openvino, as trials of `overtone search "
        "--runtime` do. Default: none is taken.",
    ),
]
LatencyThreads = Annotated[
    int | None,
    option(SEARCH, "CPU threads of that. Default: those of the trial in torch, 1 in the others.", min=1),
]
FileRuntime = Annotated[
    str | None,
    option(
        TRIALS,
        "onnxruntime or openvino for .onnx files, torch for .pt2 and .safetensors. Default: onnxruntime, torch.",
    ),
]

_DEVICE = "cpu, cuda or cuda:1. Default: cuda if there is a GPU, else cpu."
Device = Annotated[str | None, option(TRAINING, f"Device that trains: {_DEVICE}")]
RerunDevice = Annotated[str | None, option(TRIALS, f"Device on which --rerun trains: {_DEVICE}")]

Address = Annotated[
    str | None,
    option(CLUSTER, "Ray cluster to use: auto or host:port. Default: a new one on this machine."),
]
CpusPerTrial = Annotated[float, option(CLUSTER, "CPUs that each trial takes.")]
GpusPerTrial = Annotated[
    str | None,
    option(
        CLUSTER,
        "GPUs that each trial takes: 0.25 runs four on one, auto as many as its memory has room for. Default: 1 if the "
        "cluster has GPUs, else 0.",
    ),
]
Concurrency = Annotated[
    int | None,
    option(
        CLUSTER,
        "Most trials at once; 1 makes a study reproducible from its seed. Default: as many as fit.",
    ),
]

TensorBoardFolder = Annotated[
    Path | None, option(OUTPUT, "Folder for TensorBoard's curves. Default: none are written.", "--tensorboard")
]
OptunaStorage = Annotated[
    str | None,
    option(
        OUTPUT,
        "Storage for optuna-dashboard: journal:FILE, sqlite:///FILE or the URL of a database. Each run adds the trials "
        "that it lacks; studies of others are left alone. Default: none.",
    ),
]
Picture = Annotated[Path, option(OUTPUT, "File to draw into: .png or .svg.")]
AsJson = Annotated[bool, option(OUTPUT, "Print JSON for a script to read.", "--json")]
