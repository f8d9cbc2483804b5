"""Whether a network can be compressed truly: the network that trials measure is the one that their files hold.

Code of a network may reach its layers, and read them, in any way. So what compression relies on is tried once, on a
few images of noise, before anything is trained:

- Every layer in a form that changes nothing gives the original's outputs.
- Each compressed layer runs exactly as often as it was traced, in this network and in those of some configs.
- A compressed network that is saved, and loaded into a fresh copy of the original, gives the same outputs.
- It takes a training step: the loss is finite, and there are gradients.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import LayerForm, OvertoneError, UsageError, compress_model, compressed_layers
from layers.errors import OvertoneWarning, first_line
from layers.integer.inputs import unrounded_inputs
from layers.plainness import kept_because
from spaces import Network, NetworkConfig, build_model, load_model, save_model
from spaces.models import copy_module, is_factory, is_object, uncompiled
from spaces.modes import evaluation_mode, quiet
from spaces.packed import OwnModel
from trainers.start.activations import scale_activations

__all__ = ["check_calls", "check_copy", "check_fidelity"]

_IMAGES = 8
_FEW_IMAGES = 2
"""Of networks that compute much: as many as a batch norm takes in training."""
_MUCH = 1e9
"""Multiply-accumulates of an image in such networks."""
_TOLERANCE = 1e-4
"""Largest difference of outputs that count as equal, as a share of what they differ by between images."""
_ROUNDING = 2e-6
"""What is added to it, as a share of the largest of them."""
_ELSEWHERE = "perhaps the network holds it where it cannot be replaced, such as in a closure"
_KINDS = nn.Conv1d | nn.Conv2d | nn.Linear
_SEED = 0
_OTHER_SEED = 1


def check_fidelity(
    name: str,
    model: nn.Module,
    network: Network,
    image: tuple[int, int, int],
    classes: int,
    configs: Sequence[NetworkConfig],
) -> None:
    """Raise `UsageError` naming the first layer at fault unless the model can be compressed truly.

    `model`, on the CPU, is what `build_model(name)` gives, or a copy of a module that was given as an object. It takes
    (C, H, W) images and stays as it is. `network` describes it. The first of `configs` is saved, loaded and trained
    too. Warns of layers that stay as they are because of code of their own.
    """
    count = _IMAGES if network.cost(NetworkConfig()).macs < _MUCH else _FEW_IMAGES
    images = torch.randn(count, *image, generator=torch.Generator().manual_seed(_SEED))
    layers = [*network.shapes, *network.norms]
    calls = _traced_calls(name, model, network, images[:1])
    _check_same_outputs(name, model, layers, images)
    first, *others = {network.digest(config): config for config in configs}.values()
    for config in others:
        with unrounded_inputs():
            _check_calls(name, compress_model(model, network.forms(config)), calls, images[:1])
    compressed = compress_model(model, network.forms(first))
    scale_activations(compressed, images)
    _check_calls(name, compressed, calls, images[:1])
    _check_file(name, model, compressed, images, classes)
    _check_step(name, compressed, images, classes)
    _warn_of_kept(name, model)


def _traced_calls(name: str, model: nn.Module, network: Network, image: Tensor) -> Counter[str]:
    """Return how often each layer runs for an image of noise; as often as in tracing, where it was one of zeros."""
    layers = [path for path, layer in model.named_modules() if isinstance(layer, _KINDS)]
    with _user_errors(f"model (={name!r}) must take images of any values"):
        _, traced = _run(model, layers, torch.zeros_like(image))
        _, calls = _run(model, [*layers, *network.norms], image)
    traced.update({path: len(shape.calls) - traced[path] for path, shape in network.shapes.items()})
    for layer in layers:
        if calls[layer] != traced[layer]:
            raise UsageError(
                f"model (={name!r}) must run its layers equally often for every image: {layer!r} runs "
                f"{traced[layer]} times for an image of zeros, {calls[layer]} times for one of noise"
            )
    return calls


def _check_same_outputs(name: str, model: nn.Module, layers: Sequence[str], images: Tensor) -> None:
    """Check that layers in forms that change nothing change no outputs, and run as often."""
    outputs, calls = _run(model, layers, images)

    def fault(some: Sequence[str]) -> str:
        """Return what goes wrong with these layers replaced."""
        compressed = compress_model(model, dict.fromkeys(some, LayerForm()))
        try:
            others, found = _run(compressed, some, images)
        except Exception as error:  # of the user's own code
            return f"it fails: {type(error).__name__}: {first_line(error)}"
        idle = next((layer for layer in some if found[layer] != calls[layer]), None)
        if idle is not None:
            return f"{idle!r} runs {found[idle]} times and not {calls[idle]}: {_ELSEWHERE}"
        return "" if _equal(outputs, others) else "it gives other outputs"

    if not fault(layers):
        return
    least, most = 0, len(layers)
    while most - least > 1:  # the first `least` layers change nothing, the first `most` do
        middle = (least + most) // 2
        least, most = (least, middle) if fault(layers[:middle]) else (middle, most)
    raise UsageError(
        f"model (={name!r}) must compute the same with its layers replaced: with {layers[most - 1]!r} in a form that "
        f"changes nothing {fault(layers[:most])}"
    )


def check_copy(name: str, module: nn.Module, copied: nn.Module, image: tuple[int, int, int]) -> None:
    """Raise `UsageError` naming the first layer that a module runs for (C, H, W) images, and its copy on the CPU not.

    What is copied is the module alone: a closure of it still holds the layers of the original.
    """
    module = uncompiled(module)
    layers = [path for path, layer in copied.named_modules() if isinstance(layer, _KINDS)]
    given = next(iter(module.parameters()), torch.zeros(0)).device
    with _user_errors(f"model (={name!r}) must take an image"):
        _, calls = _run(module, layers, torch.zeros(1, *image, device=given))
        _, found = _run(copied, layers, torch.zeros(1, *image))
    for layer in layers:
        if found[layer] != calls[layer]:
            raise UsageError(
                f"model (={name!r}) must run its layer {layer!r} as often when it is copied, {calls[layer]} times, not "
                f"{found[layer]}: {_ELSEWHERE}"
            )


def check_calls(name: str, model: nn.Module, compressed: nn.Module, image: Tensor) -> None:
    """Raise `UsageError` naming the first layer that does not run as often in a compressed copy of the model.

    `image` is one image (1, C, H, W). Outputs of any kind will do, where `check_fidelity` needs logits.
    """
    _, calls = _run(model, list(compressed_layers(compressed)), image)
    _check_calls(name, compressed, calls, image)


def _check_calls(name: str, compressed: nn.Module, calls: Mapping[str, int], image: Tensor) -> None:
    """Check that layers run as often in a compressed form, whose outputs may decide what runs."""
    layers = list(compressed_layers(compressed))
    with _user_errors(f"model (={name!r}) must take an image in every compressed form"):
        _, found = _run(compressed, layers, image)
    for layer in layers:
        if found[layer] != calls[layer]:
            raise UsageError(
                f"model (={name!r}) must run its layer {layer!r} as often when it is compressed, {calls[layer]} times, "
                f"not {found[layer]}: {_ELSEWHERE}"
            )


def _check_file(name: str, model: nn.Module, compressed: nn.Module, images: Tensor, classes: int) -> None:
    """Check that a file of the compressed network, loaded into a fresh copy of the model, gives the same outputs."""
    card = {"model": name, "classes": classes, "channels": images.shape[1]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(compressed, path, card=card)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_OTHER_SEED)
            loaded = load_model(path, model=_fresh(name, model))
    if _equal(_outputs(compressed, images), _outputs(loaded, images)):
        return
    at = _first_difference(compressed, loaded, images)
    raise UsageError(
        f"model (={name!r}) must hold all that it computes with in its parameters and buffers: saved and loaded into "
        f"a fresh copy it gives other outputs, first those of its part {at!r}"
    )


def _check_step(name: str, compressed: nn.Module, images: Tensor, classes: int) -> None:
    """Check that the network, which this changes, takes a training step."""
    compressed.to(memory_format=torch.channels_last).train()
    labels = torch.arange(len(images)) % classes
    step = f"model (={name!r}) must take a training step"
    differentiated: set[str] = set()

    def watch(path: str) -> Callable[..., None]:
        def keep(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                differentiated.add(path)

        return keep

    kept = {
        path: layer for path, layer in compressed.named_modules() if isinstance(layer, _KINDS) and kept_because(layer)
    }
    hooks = _hooked({path: watch(path) for path in kept}, compressed)
    with torch.random.fork_rng(devices=[]), quiet(), hooks, _user_errors(step):
        torch.manual_seed(_SEED)
        logits = compressed(images.contiguous(memory_format=torch.channels_last))
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if given != (len(images), classes):
            raise UsageError(
                f"model (={name!r}) must give {(len(images), classes)} logits for {len(images)} images in training "
                f"too, it gives {given}"
            )
        loss = F.cross_entropy(logits.float(), labels)
        if not loss.isfinite():
            raise UsageError(f"{step} on noise with a finite loss, it is {float(loss.detach())}")
        loss.backward()
    for path, layer in kept.items():
        weight = layer._parameters.get("weight") if path in differentiated else None
        if weight is not None and weight.requires_grad and weight.grad is None:
            raise UsageError(
                f"model (={name!r}) must compute with its own weights: its layer {path!r} runs and has no gradient, as "
                "if its forward were a closure that holds another copy of it"
            )
    layers = compressed_layers(compressed)
    trained = [any(weight.grad is not None for weight in layer.parameters()) for layer in layers.values()]
    if layers and not any(trained):
        raise UsageError(f"{step} that gives its layers gradients: {next(iter(layers))!r} has none, nor have others")


def _warn_of_kept(name: str, model: nn.Module) -> None:
    reasons = {path: kept_because(layer) for path, layer in model.named_modules() if isinstance(layer, _KINDS)}
    kept = {path: reason for path, reason in reasons.items() if reason}
    if kept:
        path, reason = next(iter(kept.items()))
        more = f", and {len(kept) - 1} other layers for such reasons" if len(kept) > 1 else ""
        warnings.warn(
            f"the model {name!r} keeps its layer {path!r} as it is: {reason}{more}", OvertoneWarning, stacklevel=3
        )


def _fresh(name: str, model: nn.Module) -> OwnModel | None:
    """Return what a user loads a file into: the factory, or for an object a copy that has other weights."""
    if is_factory(name):
        return lambda **shape: build_model(name, **shape)
    if not is_object(name):
        return None
    copied = copy_module(model)
    with torch.no_grad():
        for value in copied.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return copied


def _first_difference(one: nn.Module, other: nn.Module, images: Tensor) -> str:
    """Return the first part of two networks, in the order of calls, that gives different outputs."""
    pairs = zip(_parts(one, images), _parts(other, images), strict=False)
    return next((name for (name, a), (_, b) in pairs if not _equal(a, b)), "")


def _parts(model: nn.Module, images: Tensor) -> list[tuple[str, Tensor]]:
    """Return the outputs of the model's parts without parts of their own, in the order of calls."""
    outputs: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append((name, output.clone()))

        return keep

    with _hooked({name: watch(name) for name, part in model.named_modules() if not part._modules}, model):
        _outputs(model, images)
    return outputs


def _run(model: nn.Module, layers: Sequence[str], images: Tensor) -> tuple[Tensor, Counter[str]]:
    """Return the logits, and how often each layer runs."""
    calls: Counter[str] = Counter()

    def watch(name: str) -> Callable[..., None]:
        return lambda *_: calls.update([name])

    with _hooked({name: watch(name) for name in layers}, model):
        outputs = _outputs(model, images)
    return outputs, calls


@contextmanager
def _hooked(hooks: Mapping[str, Callable[..., None]], model: nn.Module) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits in evaluation mode, the same for a network that draws there."""
    with evaluation_mode(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        outputs: Tensor = model(images)
    return outputs


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.numel() or not one.dim():
        return torch.equal(one, other)
    finite = one.double().nan_to_num(0.0, 0.0, 0.0)
    spread = (finite.amax(0) - finite.amin(0)).max()
    limit = _TOLERANCE * float(spread) + _ROUNDING * float(finite.abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True)


@contextmanager
def _user_errors(failure: str) -> Iterator[None]:
    try:
        yield
    except OvertoneError:
        raise
    except Exception as error:
        raise UsageError(f"{failure}, it fails: {type(error).__name__}: {first_line(error)}") from error
