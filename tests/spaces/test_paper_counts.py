"""Parameter counts of Costain & Prisacariu's tables: every parameter except those of norms."""

import pytest
import torch
from torch import nn

from layers import Cost, LayerShape
from spaces import BlockConfig, Network, NetworkConfig, build_model
from spaces.blocks import find_blocks


@pytest.fixture(scope="module")
def networks():
    def network(name: str, granularity="stage", classes: int = 1000) -> Network:
        with torch.device("meta"):
            model = build_model(name, classes=classes, channels=3)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        shapes = {name: LayerShape.from_module(layer) for name, layer in layers.items()}
        return Network(blocks=find_blocks(shapes, granularity), shapes=shapes, rest=Cost())

    return {
        "resnet18": network("resnet18"),
        "resnet32": network("resnet32", classes=10),
        "convnext_tiny": network("convnext_tiny", "layer"),
    }


def series(harmonics: dict[str, int]) -> NetworkConfig:
    return NetworkConfig(
        blocks={block: BlockConfig(basis="cosine", harmonics=(n, n)) for block, n in harmonics.items()}
    )


def test_whole_networks(networks):
    assert networks["resnet18"].cost(NetworkConfig()).parameters == 11_679_912
    assert networks["resnet32"].cost(NetworkConfig()).parameters == 461_882


@pytest.mark.parametrize(
    ("model", "harmonics", "percent"),
    [
        ("resnet18", (6, 3, 3, 3, 3), 99.98),
        ("resnet18", (6, 3, 3, 3, 2), 60.70),
        ("resnet18", (6, 3, 3, 2, 2), 50.88),
        ("resnet18", (6, 3, 2, 2, 2), 48.43),
        ("resnet18", (5, 3, 3, 3, 3), 99.96),  # printed 94.10, an erratum
        ("resnet18", (5, 3, 3, 3, 2), 60.68),
        ("resnet18", (5, 3, 3, 2, 2), 50.86),
        ("resnet18", (4, 3, 3, 3, 2), 60.67),
        ("resnet18", (4, 3, 3, 2, 2), 50.85),
        ("resnet32", (3, 3, 2, 2), 47.35),
        ("resnet32", (3, 2, 2, 2), 44.57),
        ("resnet32", (2, 2, 2, 3), 86.65),
        ("resnet32", (3, 3, 3, 2), 57.88),  # printed 57.74, an erratum
        ("resnet32", (2, 2, 2, 2), 44.52),  # printed 44.48, an erratum
    ],
)
def test_percentages_of_resnets(model, harmonics, percent, networks):
    network = networks[model]
    blocks = ("conv1", "layer1", "layer2", "layer3", "layer4")[: len(harmonics)]
    found = network.cost(series(dict(zip(blocks, harmonics, strict=True)))).parameters
    assert 100 * found / network.cost(NetworkConfig()).parameters == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize(
    ("harmonics", "percent"),
    [
        ([5] * 18, 51.71),
        ([6] * 18, 73.84),
        ([7] * 15 + [6] * 3, 90.90),
        ([7] * 10 + [6] * 8, 83.32),
        ([7] * 6 + [6] * 12, 77.25),
        ([7] * 3 + [6] * 15, 74.98),
        ([7] * 6 + [5] * 12, 58.01),
        ([7] * 6 + [5] * 9 + [4] * 3, 51.71),
        ([7] * 6 + [4] * 12, 42.26),
    ],
)
def test_percentages_of_convnext_layers(harmonics, percent, networks):
    network = networks["convnext_tiny"]
    depthwise = [name for name, shape in network.shapes.items() if shape.kernel == (7, 7)]
    assert len(depthwise) == 18
    compressible = sum(
        network.block_cost(name, BlockConfig(), 8).parameters - shape.out_channels
        for name, shape in network.shapes.items()
        if shape.kernel in ((7, 7), (4, 4))
    )
    assert compressible == 324_576 + 4_608
    config = series(dict(zip(depthwise, harmonics, strict=True)))
    saved = network.cost(NetworkConfig()).parameters - network.cost(config).parameters
    assert 100 * (1 - saved / compressible) == pytest.approx(percent, abs=0.0051)
