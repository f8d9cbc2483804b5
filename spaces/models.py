"""Networks: our zoo and torchvision's classification models by name, a factory of the user's, or a module of theirs."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from layers import UsageError
from layers.errors import first_line
from spaces.modes import evaluation_mode, quiet
from spaces.zoo import CifarResNet, CifarVGG16

__all__ = [
    *("RESNET_DEPTHS", "build_model", "check_outputs", "copy_module", "describe_module", "is_factory", "is_object"),
    *("uncompiled", "without_auxiliary"),
]

RESNET_DEPTHS = (8, 20, 32, 44, 56)
_OBJECT = "object:"
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Torchvision's networks with auxiliary classifiers, which serve training alone and are left out -> prefixes of these
tensors' names. Both networks turn ImageNet's normalization of images into their own, as their published weights need
it."""


def build_model(name: str, *, classes: int, channels: int) -> nn.Module:
    """Return a freshly initialized network that gives (B, classes) logits for (B, channels, H, W) images.

    `name` is resnet8/20/32/44/56 or vgg16 (for CIFAR-size images), a torchvision classification model (3 channels),
    or `package.module:factory`, called as `factory(classes=..., channels=...)`. Raises `UsageError` for any other, and
    for the name of a module that was given as an object.
    """
    if is_object(name):
        raise UsageError(f"the network {name!r} was given as an object: give it again in Python, as model")
    if name in _zoo():
        return _zoo()[name](classes=classes, channels=channels)
    if is_factory(name):
        return _from_factory(name, classes=classes, channels=channels)
    import torchvision  # slow to import, and most commands do without

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(_unknown_model(name, torchvision.models.list_models(module=torchvision.models)))
    if channels != 3:
        raise UsageError(f"channels (={channels}) must be 3 for the model {name!r}")
    plain = {"aux_logits": False, "transform_input": True, "init_weights": True} if name in _AUXILIARY else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **plain)
    return model


def without_auxiliary(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without those of a network's tensors that `build_model` leaves out."""
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY.get(name, ()))}


def check_outputs(name: str, model: nn.Module, image: tuple[int, int, int], classes: int) -> None:
    """Raise `UsageError` if a user's own network does not give (B, classes) logits for (C, H, W) images."""
    if not (is_factory(name) or is_object(name)):
        return
    try:
        with evaluation_mode(model):
            logits = model(torch.zeros(2, *image))
    except Exception as error:  # of the user's own code
        raise UsageError(f"the model {name!r} cannot take two images: {_described(error)}") from error
    output = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if output != (2, classes):
        raise UsageError(f"model (={name!r}) must give (2, {classes}) logits for two images, it gives {output}")


def is_factory(name: str) -> bool:
    """Return whether the name has the form `package.module:factory`, which runs the user's own code."""
    return ":" in name and not is_object(name)


def is_object(name: str) -> bool:
    """Return whether the name is that of a module which was given as an object, by `describe_module`."""
    return name.startswith(_OBJECT)


def describe_module(module: nn.Module) -> str:
    """Return the name under which studies and files know a module that is given as an object: that of its class.

    Where the class is defined does not matter, as one moves from a notebook to a file.
    """
    return f"{_OBJECT}{type(uncompiled(module)).__name__}"


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` was given, or the module itself; what it compiled cannot be changed."""
    return module.get_submodule("_orig_mod") if _is_compiled(module) else module


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy of a user's module on the CPU, in evaluation mode, whose weights can all be trained.

    Whether the module's own are frozen does not count: a trial's result depends on their values alone. Raises
    `UsageError` if it cannot be copied, or has weights that are no float32, shared or computed by hooks.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"model (={module!r}) must be a torch.nn.Module")
    name = describe_module(module)
    module = uncompiled(module)
    _check_weights(name, module)
    for path, weight in module.named_parameters():
        if weight.dtype != torch.float32:
            kind = str(weight.dtype).removeprefix("torch.")
            raise UsageError(f"model (={name!r}) must have float32 weights: {path!r} is {kind}")
    try:
        return copy.deepcopy(module).cpu().eval().requires_grad_()
    except Exception as error:  # of the user's own code
        raise UsageError(f"cannot copy the model {name!r}: {_described(error)}") from error


def _zoo() -> dict[str, Callable[..., nn.Module]]:
    resnets = {f"resnet{depth}": _resnet(depth) for depth in RESNET_DEPTHS}
    return {**resnets, "vgg16": CifarVGG16}


def _resnet(depth: int) -> Callable[..., nn.Module]:
    return lambda *, classes, channels: CifarResNet(depth, classes=classes, channels=channels)


def _unknown_model(name: str, torchvision_names: list[str]) -> str:
    close = difflib.get_close_matches(name, [*_zoo(), *torchvision_names], n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return f"model (={name!r}) must be one of {', '.join(_zoo())}, a torchvision model or package.module:factory{hint}"


def _from_factory(name: str, *, classes: int, channels: int) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        with _own_program():
            factory = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # of the user's own code
        reason = first_line(error) if isinstance(error, _NOT_THERE) else _described(error)
        raise UsageError(f"model (={name!r}) must be importable as package.module:factory: {reason}") from error
    try:
        inspect.signature(factory).bind(classes=classes, channels=channels)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model (={name!r}) must take classes=... and channels=...: {first_line(error)}") from error
    try:
        with _own_program():
            model = factory(classes=classes, channels=channels)
    except (Exception, SystemExit) as error:  # of the user's own code
        raise UsageError(f"cannot build the model {name!r}: {_described(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model (={name!r}) must return a torch.nn.Module, not {type(model).__name__}")
    model = uncompiled(model)
    _check_weights(name, model)
    return model


_NOT_THERE = (ImportError, AttributeError, ValueError, TypeError)


@contextmanager
def _own_program() -> Iterator[None]:
    """Run code of the user's as a program without arguments: ours are not for it, and workers have others."""
    given = sys.argv
    sys.argv = given[:1]
    try:
        with quiet():
            yield
    finally:
        sys.argv = given


def _check_weights(name: str, model: nn.Module) -> None:
    """Raise `UsageError` for layers without weights of their own: lazy ones, shared weights, those that hooks compute.

    And for what neither compresses nor trains here: scripted modules, weights of more than four dimensions.
    """
    for path, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            part = f"its part {path!r}" if path else "it"
            raise UsageError(f"model (={name!r}) must be ordinary Python: {part} is scripted or traced")
        if _is_compiled(layer):
            raise UsageError(f"model (={name!r}) must be compiled as a whole, if at all, not its part {path!r} alone")
        if any(map(is_lazy, (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))):
            raise UsageError(f"model (={name!r}) must be given an image in its factory: its layer {path!r} is lazy")
        plain = "weight" in layer._parameters or not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
        if not plain and not is_parametrized(layer):
            raise UsageError(
                f"model (={name!r}) must have plain weights: those of its layer {path!r} are computed by a hook, such "
                "as nn.utils.weight_norm's; nn.utils.parametrizations has what can be copied"
            )
    paths: dict[nn.Parameter, str] = {}
    for path, weight in model.named_parameters(remove_duplicate=False):
        if weight in paths:
            raise UsageError(f"model (={name!r}) must hold each weight once: {paths[weight]!r} is {path!r} too")
        paths[weight] = path
        if weight.dim() > 4:
            raise UsageError(
                f"model (={name!r}) must have weights of four dimensions at most: {path!r} has {weight.dim()}"
            )


def _described(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the program, as one does that wants arguments of its own"
    return f"{type(error).__name__}: {first_line(error)}"
