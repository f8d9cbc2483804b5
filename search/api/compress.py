"""Compress one network as one config says, without a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layers import Cost, UsageError, compress_model
from spaces import BlockConfig, Network, NetworkConfig
from spaces.models import copy_module
from spaces.network import NORMS_AND_BIASES
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
    `BlockConfig` has them: `{"all": {"bits": 6}, "layer3": {"harmonics": 2}}`. Knobs of a block win over those of
    `all`, which reach only layers that can take them; `harmonics` may be one number for both axes, of a cosine series
    unless `basis` says otherwise. `images` (n, C, H, W), float and normalized as the network takes them, tell the
    images' size, and without labels fit each layer to the network's outputs (`trainers.start.calibration`); a few
    hundred are enough. With `calibrated=False` weights are those nearest to the network's.

    Raises `UsageError` for an unknown block, a value that its layers cannot take, and images that do not fit.

    Example: `small, cost = compress(net, {"layer3": {"harmonics": 2, "bits": 6}}, images=images)`.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images) or not images.is_floating_point():
        shown = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images (={shown}) must be a float tensor (n, C, H, W) of one image or more")
    dense = copy_module(model)
    channels, height, width = images.shape[1:]
    network = Network.from_module(dense, (channels, height, width))
    if not isinstance(config, NetworkConfig):
        config = NetworkConfig(blocks=_blocks(config, network), minimum_templates=minimum_templates)
    compressed = compress_model(dense, network.forms(config))
    if calibrated:
        calibrate(compressed, dense, images.detach().to("cpu", torch.float32))
    return compressed.eval(), network.cost(config)


def _blocks(config: Mapping[str, Mapping[str, Any]], network: Network) -> dict[str, BlockConfig]:
    """Return the config of each block, those of `all` for every stage that the config does not divide itself."""
    for block, knobs in config.items():
        if not isinstance(knobs, Mapping):
            raise UsageError(f"config (={block!r}: {knobs!r}) must map blocks to knobs and their values")
    own = {block: dict(knobs) for block, knobs in config.items() if block != "all"}
    blocks = {block: _block_config(block, knobs) for block, knobs in own.items()}
    shared = dict(config.get("all", {}))
    if not shared:
        return blocks
    named = {layer for block in own if block != NORMS_AND_BIASES for layer in network.layers_in(block)}
    for stage, layers in network.blocks.items():
        if stage in own:
            blocks[stage] = _block_config(stage, {**shared, **own[stage]})
        elif named.isdisjoint(layers):
            blocks[stage] = _block_config(stage, shared)
        else:
            blocks |= {layer: _block_config(layer, shared) for layer in layers if layer not in named}
    return blocks


def _block_config(block: str, knobs: Mapping[str, Any]) -> BlockConfig:
    values = dict(knobs)
    if "harmonics" in values:
        pair = values["harmonics"]
        values["harmonics"] = (pair, pair) if isinstance(pair, int) else pair and tuple(pair)
        if pair is not None:
            values.setdefault("basis", "cosine")
    try:
        return BlockConfig(**values)
    except TypeError as error:
        allowed = ", ".join(BlockConfig.__dataclass_fields__)
        raise UsageError(f"knobs (={', '.join(values)}) of {block!r} must be among {allowed}") from error
