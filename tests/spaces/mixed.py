"""A small network with every kind of compression, for the tests of what is written from one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layers import compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model, save_model

CARD = {"model": "resnet8", "classes": 10, "channels": 1, "image_size": 8}


def save_mixed(path: Path, card: Mapping[str, Any] = CARD) -> Path:
    """Pack a ResNet-8 for 8x8 images of one channel with `card`, to which its config is added; return the path."""
    model = build_model("resnet8", classes=10, channels=1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
    both = BlockConfig(basis="cosine", harmonics=(2, 3), pruning_rate=0.5, groups=2, bits=8)
    config = NetworkConfig(
        blocks={
            "layer1": both,
            "layer2": BlockConfig(bits=5, activation_bits=5, activation_block=12),
            "layer3": BlockConfig(bits=4),
        }
    )
    compressed = compress_model(model, Network.from_module(model, (1, 8, 8)).forms(config)).eval()
    save_model(compressed, path, card={**card, "config": config.to_json()})
    return path
