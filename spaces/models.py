"""Networks by name: our zoo, torchvision's classification models, or a factory of the user's."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from layers import UsageError
from spaces.zoo import CifarResNet, CifarVGG16

__all__ = ["RESNET_DEPTHS", "build_model", "check_outputs", "is_factory", "without_auxiliary"]

RESNET_DEPTHS = (8, 20, 32, 44, 56)
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Torchvision's networks with classifiers for training alone, which are left away, by the names of their tensors. Both
turn ImageNet's normalization of images into their own, as their published weights need it."""


def build_model(name: str, *, classes: int, channels: int) -> nn.Module:
    """A freshly initialized network for (B, channels, H, W) images, giving (B, classes) logits.

    `name` is resnet8/20/32/44/56 or vgg16 (for CIFAR-size images), a torchvision classification model (3 channels),
    or `package.module:factory`, called as `factory(classes=..., channels=...)`. Raises `UsageError` for any other.
    """
    if name in _zoo():
        return _zoo()[name](classes=classes, channels=channels)
    if is_factory(name):
        return _from_factory(name, classes=classes, channels=channels)
    import torchvision  # slow to import, and most commands do without

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(_unknown(name, torchvision.models.list_models(module=torchvision.models)))
    if channels != 3:
        raise UsageError(f"model (={name!r}) takes images of 3 channels, the data have {channels}.")
    plain = {"aux_logits": False, "transform_input": True, "init_weights": True} if name in _AUXILIARY else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **plain)
    return model


def without_auxiliary(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without those of a network's tensors that `build_model` leaves away."""
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY.get(name, ()))}


def check_outputs(name: str, model: nn.Module, image: tuple[int, int, int], classes: int) -> None:
    """Raise `UsageError` where a network of the user's own does not give (B, classes) logits for (C, H, W) images."""
    if not is_factory(name):
        return
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, *image))
    except Exception as error:  # of the user's own code
        raise UsageError(f"model (={name!r}) cannot take two images; {type(error).__name__}: {error}.") from error
    finally:
        model.train(training)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, classes):
        raise UsageError(f"model (={name!r}) must give (2, {classes}) logits for two images, it gives {found}.")


def is_factory(name: str) -> bool:
    """Whether the name says `package.module:factory`, which runs the user's own code."""
    return ":" in name


def _zoo() -> dict[str, Callable[..., nn.Module]]:
    resnets = {f"resnet{depth}": _resnet(depth) for depth in RESNET_DEPTHS}
    return {**resnets, "vgg16": CifarVGG16}


def _resnet(depth: int) -> Callable[..., nn.Module]:
    return lambda *, classes, channels: CifarResNet(depth, classes=classes, channels=channels)


def _unknown(name: str, torchvision_names: list[str]) -> str:
    known = [*_zoo(), *torchvision_names]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else "."
    return f"model (={name!r}) must be one of {', '.join(_zoo())}, a torchvision model or package.module:factory{hint}"


def _from_factory(name: str, *, classes: int, channels: int) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(f"model (={name!r}) must be importable as package.module:factory; {error}.") from error
    try:
        inspect.signature(factory).bind(classes=classes, channels=channels)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model (={name!r}) must take classes=... and channels=...; {error}.") from error
    try:
        model = factory(classes=classes, channels=channels)
    except Exception as error:  # of the user's own code
        raise UsageError(f"model (={name!r}) cannot be built; {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model (={name!r}) must return a torch.nn.Module, not {type(model).__name__}.")
    _check_weights(name, model)
    return model


def _check_weights(name: str, model: nn.Module) -> None:
    """Refuse what has no weights of its own to be copied and compressed: lazy layers, those that compute them, ties."""
    for path, layer in model.named_modules():
        if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
            raise UsageError(f"model (={name!r}) must be given an image in its factory: its layer {path!r} is lazy.")
        plain = "weight" in layer._parameters or not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        if is_parametrized(layer) or not plain:
            raise UsageError(
                f"model (={name!r}) must have plain weights, those of its layer {path!r} are computed (weight or "
                f"spectral norm, say): remove that in its factory."
            )
    known: dict[nn.Parameter, str] = {}
    for path, weight in model.named_parameters(remove_duplicate=False):
        if weight in known:
            raise UsageError(f"model (={name!r}) must hold each weight once, {known[weight]!r} is {path!r} too.")
        known[weight] = path
