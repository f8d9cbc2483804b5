"""Options that several commands share, as dataclasses: a command takes one parameter for a whole group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, get_type_hints

from layers.errors import UsageError
from search.commands import options
from search.study.parsing import parse_gpus, parse_numbers, read_recipe
from search.study.plan import DEFAULT_RECIPE, StudyPlan
from trainers.data.spec import DataSpec
from trainers.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from search.api.networks import LoadedNetwork
    from search.runner.cluster import Resources
    from search.runner.dashboards import DashboardOptions

__all__ = [
    *("BaselineRecipeOptions", "BoardOptions", "DataOptions", "ImageOptions", "RecipeOptions", "ResourceOptions"),
    *("SpaceOptions", "with_option_groups"),
]


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as typer needs it: the options of a group instead of each parameter that is a dataclass."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _group_parameters(groups[parameter.name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))

    @wraps(command)
    def expanded(**values: Any) -> None:
        built = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **built)

    expanded.__dict__["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


@cache
def _group_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


@dataclass(frozen=True, kw_only=True)
class _AnyDataOptions:
    dataset: options.OptionalDataset = None
    data_dir: options.DataDir = DataSpec.data_dir
    train_limit: options.TrainLimit = DataSpec.train_limit
    val_from: options.ValFrom = DataSpec.val_from
    image_size: options.ImageSize = DataSpec.image_size
    resize_size: options.ResizeSize = DataSpec.resize_size
    interpolation: options.Interpolation = DataSpec.interpolation
    channels: options.Channels = DataSpec.channels
    mean: options.Mean = None
    std: options.Std = None
    stream: options.Stream = DataSpec.stream

    def _spec_of(self, name: str) -> DataSpec:
        return DataSpec(
            name=name,
            data_dir=self.data_dir,
            train_limit=self.train_limit,
            val_from=self.val_from,
            image_size=self.image_size,
            resize_size=self.resize_size,
            interpolation=self.interpolation,
            channels=self.channels,
            mean=parse_numbers(self.mean, name="mean"),
            std=parse_numbers(self.std, name="std"),
            stream=self.stream,
        )


@dataclass(frozen=True, kw_only=True)
class DataOptions(_AnyDataOptions):
    """Which images, and how they are split."""

    dataset: options.Dataset = DataSpec.name

    def data_spec(self) -> DataSpec:
        """Return the data that they name."""
        return self._spec_of(self.dataset)


@dataclass(frozen=True, kw_only=True)
class ImageOptions(_AnyDataOptions):
    """Which images, or only their shape and the number of classes."""

    classes: options.Classes = None

    def load(self, model: str, weights: str | None) -> LoadedNetwork:
        """Load the network of this name for these images."""
        from search.api.networks import load_network

        if self.dataset is not None:
            return load_network(model, weights=weights, data=self._spec_of(self.dataset), classes=self.classes)
        for name in ("mean", "std", "resize_size", "interpolation"):
            if (value := getattr(self, name)) is not None:
                raise UsageError(f"{name} (={value!r}) must be left out without --dataset: there are no images")
        return load_network(
            model, weights=weights, image_size=self.image_size, channels=self.channels, classes=self.classes
        )


@dataclass(frozen=True, kw_only=True)
class SpaceOptions:
    """Which compressed forms of a network may be tried."""

    space: options.SpaceFile = None
    granularity: options.Granularity = StudyPlan.granularity
    minimum_templates: options.MinimumTemplates = StudyPlan.minimum_templates
    saliency: options.Saliency = StudyPlan.saliency


@dataclass(frozen=True, kw_only=True)
class BaselineRecipeOptions:
    """How a network is trained from random weights."""

    epochs: options.TrainEpochs = 30
    recipe: options.Recipe = "baseline"
    lr: options.LearningRate = None
    batch_size: options.BatchSize = None
    lr_schedule: options.LrSchedule = None
    precision: options.Precision = None
    setting: options.Settings = None

    def training_recipe(self) -> TrainingRecipe:
        """Return the recipe, without distillation where there is no network to learn from.

        Raises and warns as `read_recipe` does.
        """
        values = {"distillation": 0.0, **asdict(self)}
        return read_recipe(values.pop("recipe"), values.pop("setting"), **values)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(BaselineRecipeOptions):
    """How each trial is fine-tuned."""

    epochs: options.Epochs = StudyPlan.epochs
    recipe: options.Recipe = DEFAULT_RECIPE
    distillation: options.Distillation = None


@dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """What each trial takes of the cluster, and how many run at once."""

    gpus_per_trial: options.GpusPerTrial = None
    cpus_per_trial: options.CpusPerTrial = 1
    concurrency: options.Concurrency = None
    address: options.Address = None

    def resources(self) -> Resources:
        """Return what they ask for; imports Ray."""
        from search.runner.cluster import Resources

        return Resources(
            cpus_per_trial=self.cpus_per_trial,
            gpus_per_trial=parse_gpus(self.gpus_per_trial),
            concurrency=self.concurrency,
            address=self.address,
        )


@dataclass(frozen=True, kw_only=True)
class BoardOptions:
    """Where else a running study can be seen."""

    tensorboard: options.TensorBoardFolder = None
    optuna_storage: options.OptunaStorage = None

    def dashboards(self) -> DashboardOptions:
        """Return the dashboards; imports Ray and Optuna."""
        from search.runner.dashboards import DashboardOptions

        return DashboardOptions(tensorboard=self.tensorboard, optuna_storage=self.optuna_storage)
