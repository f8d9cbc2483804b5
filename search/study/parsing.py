"""Settings as people write them: how a name, text or file becomes a recipe, a config or a search space."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layers.errors import OvertoneWarning, UsageError
from trainers.training.recipe import RECIPES, TrainingRecipe

if TYPE_CHECKING:
    from spaces import Network, NetworkConfig
    from spaces.blocks import Granularity

__all__ = [
    *("SETTINGS", "parse_gpus", "parse_granularity", "parse_numbers", "read_config", "read_recipe", "read_space"),
]

_WITH_OPTION = ("lr", "batch_size", "lr_schedule", "precision", "distillation")
SETTINGS = tuple(field.name for field in fields(TrainingRecipe) if field.name not in _WITH_OPTION)
"""Settings of a recipe that have no option of their own."""


def parse_gpus(text: str | None) -> float | Literal["auto"] | None:
    """Return a number, `auto`, or None for no text."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"gpus_per_trial (={text!r}) must be a number of at least 0, or auto") from error


def parse_numbers(text: str | None, *, name: str) -> tuple[float, ...] | None:
    """Return the numbers of a text such as `0.49,0.48,0.45`, None for no text."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"{name} (={text!r}) must be a number, or one for each channel, such as 0.49,0.48,0.45"
        ) from error


def parse_granularity(text: str) -> Granularity:
    """Return `stage` or `layer`."""
    if text not in ("stage", "layer"):
        raise UsageError(f"granularity (={text!r}) must be stage or layer")
    return "stage" if text == "stage" else "layer"


def read_recipe(name: str, settings: Sequence[str] | None, *, epochs: int, **options: Any) -> TrainingRecipe:
    """Return the recipe of this name with the values of `options` (None changes nothing) and `settings`.

    Each setting is `NAME=VALUE`. Raises `UsageError` for an unknown name and for a recipe that is all warm-up in these
    epochs. Warns if its learning rate is to fall by steps and never does within them.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe (={name!r}) must be one of {', '.join(RECIPES)}")
    changes = {option: value for option, value in options.items() if value is not None}
    for setting in settings or ():
        key, _, text = setting.partition("=")
        if key not in SETTINGS:
            raise UsageError(f"set (={setting!r}) must be NAME=VALUE, with a name of {', '.join(SETTINGS)}")
        changes[key] = _parse_setting(key, text, getattr(TrainingRecipe, key))
    recipe = replace(RECIPES[name], **changes)
    recipe.check_length(epochs)
    if recipe.never_falls(epochs):
        message = f"the learning rate first falls after epoch {recipe.milestones[0]:g}, so never within {epochs} epochs"
        warnings.warn(message, OvertoneWarning, stacklevel=2)
    return recipe


def _parse_setting(name: str, text: str, default: Any) -> Any:
    """Return the value of a setting in the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(float(part) for part in text.split(",") if part)
        return type(default)(text)
    except (KeyError, ValueError) as error:
        kinds = {bool: "true or false", int: "a whole number", tuple: "numbers with commas"}
        raise UsageError(f"{name} (={text!r}) must be {kinds.get(type(default), 'a number')}") from error


def read_config(text: str, model: str, network: Network) -> NetworkConfig:
    """Return the preset of this name, or the config in a JSON file, itself or inside an export's `config.json`.

    Raises `UsageError` unless it is one of them and fits the network.
    """
    from spaces import NetworkConfig, presets
    from trainers.spec import check_format

    named = {preset.name: preset.config for preset in presets(model, network)}
    if text in named:
        return named[text]
    try:
        data = json.loads(Path(text).read_text())
    except (OSError, ValueError, RecursionError) as error:
        allowed = f"a readable JSON file or a preset of {model}: {', '.join(named)}"
        raise UsageError(f"config (={text!r}) must be {allowed}") from error
    data = data.get("spec", data) if isinstance(data, Mapping) else data
    if isinstance(data, Mapping) and "config" in data:
        check_format(data)
        data = data["config"]
    return network.canonical(NetworkConfig.from_json(data))


def read_space(path: Path | None) -> Mapping[str, Any]:
    """Return the limits in a space file, none without a file; raise `UsageError` for a key that comes twice."""
    import yaml

    class UniqueKeys(yaml.SafeLoader):
        """Refuses a key that comes twice; YAML itself would take the last one."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"found {key!r} twice", node.start_mark)
            return super().construct_mapping(node, deep)

    if path is None:
        return {}
    try:
        limits = yaml.load(path.read_text(), UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"space (={str(path)!r}) must be a readable YAML file: {reason}") from error
    if not isinstance(limits, Mapping):
        raise UsageError(f"space (={str(path)!r}) must map blocks, or `all`, to knobs and their values")
    return limits
