"""Compress one network as one config says, without a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layers import Cost, UsageError, compress_model
from layers.integer.inputs import unrounded_inputs
from spaces import BlockConfig, Network, NetworkConfig
from spaces.models import copy_module, describe_module
from spaces.network import NORMS_AND_BIASES
from trainers.fidelity import check_calls, check_copy
from trainers.start.activations import scale_activations
from trainers.start.calibration import calibrate

__all__ = ["compress"]


def compress(
    model: nn.Module,
    config: NetworkConfig | Mapping[str, Mapping[str, Any]],
    *,
    images: Tensor,
    calibrated: bool = True,
    minimum_templates: int = NetworkConfig.minimum_templates,
) -> tuple[nn.Module, Cost]:
    """Return a compressed copy of a trained network in evaluation mode, and what it costs; the network stays as it is.

    `config` maps blocks (parts of the network by their module path, or `all` for every stage) to their knobs, as
    `BlockConfig` has them: `{"all": {"bits": 6}, "layer3": {"harmonics": 2}}`. A block has the knobs of `all` too, but
    its own win; they reach only layers that can take them. `harmonics` may be one number for both axes, of a cosine
    series unless `basis` says otherwise. `images` (n, C, H, W), float and normalized as the network takes them, tell
    the images' size, and without labels fit each layer to the network's outputs (`trainers.start.calibration`); a few
    hundred are enough. With `calibrated=False` weights are those nearest to the network's, and images tell no more than
    the scales of activations in int8.

    Raises `UsageError` for an unknown block, a value that its layers cannot take, images that do not fit, and a network
    that calls its layers where they cannot be exchanged, such as in a closure.

    Example: `small, cost = compress(net, {"layer3": {"harmonics": 2, "bits": 6}}, images=images)`.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images) or not images.is_floating_point():
        shown = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images (={shown}) must be a float tensor (n, C, H, W) of one image or more")
    dense = copy_module(model)
    channels, height, width = images.shape[1:]
    network = Network.from_module(dense, (channels, height, width))
    check_copy(describe_module(model), model, dense, (channels, height, width))
    if not isinstance(config, NetworkConfig):
        config = NetworkConfig(blocks=_blocks(config, network), minimum_templates=minimum_templates)
    compressed = compress_model(dense, network.forms(config))
    with unrounded_inputs():
        check_calls(describe_module(model), dense, compressed, images[:1].detach().to("cpu", torch.float32))
    images = images.detach().to("cpu", torch.float32)
    if calibrated:
        calibrate(compressed, dense, images)
    scale_activations(compressed, images)
    return compressed.eval(), network.cost(config)


def _blocks(config: Mapping[str, Mapping[str, Any]], network: Network) -> dict[str, BlockConfig]:
    """Return the config of each block, with the knobs of `all` for every layer."""
    if not isinstance(config, Mapping):
        raise UsageError(f"config (={config!r}) must be a NetworkConfig, or map blocks to knobs and their values")
    for block, knobs in config.items():
        if not isinstance(block, str) or not isinstance(knobs, Mapping):
            raise UsageError(f"config (={block!r}: {knobs!r}) must map blocks to knobs and their values")
    own = {block: knobs for block, knobs in config.items() if block != "all"}
    shared = config.get("all", {})
    blocks = {
        block: _block_config(block, knobs if block == NORMS_AND_BIASES else {**shared, **knobs})
        for block, knobs in own.items()
    }
    if not shared:
        return blocks
    named = {layer for block in own if block != NORMS_AND_BIASES for layer in network.layers_in(block)}
    for stage, layers in network.blocks.items():
        rest = [layer for layer in layers if layer not in named]
        blocks |= {block: _block_config("all", shared) for block in ([stage] if len(rest) == len(layers) else rest)}
    return blocks


def _block_config(block: str, knobs: Mapping[str, Any]) -> BlockConfig:
    values = dict(knobs)
    if "harmonics" in values:
        pair = values["harmonics"]
        values["harmonics"] = (pair, pair) if isinstance(pair, int) else pair
        if pair is not None:
            values.setdefault("basis", "cosine")
    try:
        return BlockConfig(**values)
    except TypeError as error:
        allowed = ", ".join(BlockConfig.__dataclass_fields__)
        raise UsageError(f"knobs (={', '.join(map(str, values))}) of {block!r} must be among {allowed}") from error
