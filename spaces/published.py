"""Rows that the two papers published, to be seen beside a study of the same network.

- P1: T. W. Costain, V. A. Prisacariu, "Approximating Continuous Convolutions for Deep Network Compression", tables 1 to
  3, CosConv, top-1 after 5 epochs of fine-tuning. What each row stores and computes is counted here from its
  configuration (`spaces.Network.cost`), not copied: the printed parameter shares of ResNet-18's 5,3,3,3,3 (94.10 %,
  it is 99.96 %) and of ResNet-32's 3,3,3,2 and 2,2,2,2 (57.74 and 44.48 %, they are 57.88 and 44.52 %) are misprints.
- P2: R. Miles, K. Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations", tables 1 and 2. How
  many templates each layer kept is not published, so the printed shares of FLOPs and parameters stand, the latter
  for the size too.

Neither comes from the study's data, weights or training, so a row is placed by what it *changed*: the published loss of
accuracy is taken off the study's own baseline, and the published share is taken of the baseline's costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise

import torch

from spaces import BlockConfig, Network, NetworkConfig, build_model

__all__ = ["PaperResult", "published_rows"]

_P1 = "Costain & Prisacariu, CosConv"
_P2 = "Miles & Mikolajczyk"


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """One row of a paper: accuracies in percent as printed, costs as shares of the uncompressed network's."""

    paper: str
    name: str
    """What the paper calls the configuration."""
    data: str
    """What the paper trained and tested on."""
    top1: float
    baseline_top1: float
    size: float
    flops: float
    counted: bool
    """Whether the shares were counted from the configuration; otherwise they are as printed."""

    def on(self, baseline: Mapping[str, float]) -> dict[str, float]:
        """Where the row would lie beside a study with this baseline; what the baseline lacks is left out."""
        placed = {}
        if "val_top1" in baseline:
            placed["val_top1"] = min(1.0, baseline["val_top1"] + (self.top1 - self.baseline_top1) / 100)
        for name, share in (("size_bytes", self.size), ("flops", self.flops)):
            if name in baseline:
                placed[name] = share * baseline[name]
        return placed


def published_rows(model: str, dataset: str) -> list[PaperResult]:
    """What was published for a model of this name, in the papers' order; nothing for other models, nor for digits."""
    if dataset == "digits":
        return []
    return [*_series_rows(model), *_template_rows(model)]


_CIFAR, _IMAGENET = "CIFAR-10", "ImageNet"
_SERIES: Mapping[str, tuple[str, float, Mapping[str, float]]] = {
    "resnet20": (
        _CIFAR,
        91.73,
        {"3,3,3,2": 90.75, "3,3,2,2": 89.55, "3,2,2,2": 86.99, "2,2,2,3": 86.87, "2,2,2,2": 85.98},
    ),
    "resnet32": (
        _CIFAR,
        92.78,
        {"3,3,3,2": 91.51, "3,3,2,2": 90.99, "3,2,2,2": 88.40, "2,2,2,3": 88.64, "2,2,2,2": 87.87},
    ),
    "resnet18": (
        _IMAGENET,
        69.76,
        {"6,3,3,3,3": 70.19, "6,3,3,3,2": 68.97, "6,3,3,2,2": 67.90, "6,3,2,2,2": 66.89, "5,3,3,3,3": 69.80}
        | {"5,3,3,3,2": 68.53, "5,3,3,2,2": 67.48, "4,3,3,3,2": 68.05, "4,3,3,2,2": 66.84},
    ),
    "convnext_tiny": (
        _IMAGENET,
        82.10,
        {"7x3,7x3,7x9,6x3": 81.19, "7x3,7x3,7x4,6x5,6x3": 80.87, "7x3,7x3,6x9,6x3": 79.94, "7x3,6x3,6x9,6x3": 79.44}
        | {"7x3,7x3,5x9,5x3": 79.28, "7x3,7x3,5x9,4x3": 78.39, "7x3,7x3,4x9,4x3": 75.94, "6x3,6x3,6x9,6x3": 76.26}
        | {"5x3,5x3,5x9,5x3": 77.29},
    ),
}
"""Training data, baseline, and accuracy of each row. ConvNeXt: harmonics x layers, over its 18 depthwise 7x7 layers."""

_TEMPLATES: Mapping[str, tuple[str, float, Sequence[tuple[float, float, float]]]] = {
    "vgg16": (_CIFAR, 93.26, ((93.92, 45.56, 56.77), (93.62, 61.38, 81.15), (92.74, 80.89, 95.26))),
    "resnet56": (_CIFAR, 93.60, ((94.18, 35.91, 51.64), (93.35, 48.27, 71.24), (92.81, 56.36, 80.05))),
    "resnet50": (_IMAGENET, 76.20, ((75.59, 47.0, 40.0),)),
}
"""Training data, baseline, and (accuracy, FLOPs saved in percent, parameters saved in percent) of each row."""


def _series_rows(model: str) -> list[PaperResult]:
    data, baseline, rows = _SERIES.get(model, ("", 0.0, {}))
    shares = _series_shares(model) if rows else {}
    return [
        PaperResult(
            paper=_P1,
            name=name,
            data=data,
            top1=top1,
            baseline_top1=baseline,
            size=shares[name][0],
            flops=shares[name][1],
            counted=True,
        )
        for name, top1 in rows.items()
    ]


def _template_rows(model: str) -> list[PaperResult]:
    data, baseline, rows = _TEMPLATES.get(model, ("", 0.0, ()))
    return [
        PaperResult(
            paper=_P2,
            name=f"{flops:.3g} % fewer FLOPs",
            data=data,
            top1=top1,
            baseline_top1=baseline,
            size=1 - parameters / 100,
            flops=1 - flops / 100,
            counted=False,
        )
        for top1, flops, parameters in rows
    ]


@cache
def _series_shares(model: str) -> dict[str, tuple[float, float]]:
    """Shares of size and FLOPs that each row keeps of the network as the paper has it."""
    classes, side = (10, 32) if _SERIES[model][0] == _CIFAR else (1000, 224)
    with torch.random.fork_rng(devices=[]):
        network = Network.from_module(build_model(model, classes=classes, channels=3), (3, side, side))
    whole = network.cost(NetworkConfig())
    costs = {name: network.cost(_config(network, name)) for name in _SERIES[model][2]}
    return {name: (cost.size_bytes / whole.size_bytes, cost.macs / whole.macs) for name, cost in costs.items()}


def _config(network: Network, name: str) -> NetworkConfig:
    """`3,3,2,2`: harmonics of the stages, first to last; `7x6,6x9`: of six depthwise layers, then of nine."""
    terms = [tuple(map(int, term.split("x"))) for term in name.split(",")]
    if len(terms[0]) == 1:
        return _harmonics({block: n for block, (n,) in zip(network.blocks, terms, strict=False)})
    layers = [layer for layer, shape in network.shapes.items() if shape.kernel == (7, 7)]
    ends = [0, *accumulate(count for _, count in terms)]
    spans = zip(terms, pairwise(ends), strict=True)
    return _harmonics({layer: n for (n, _), (start, end) in spans for layer in layers[start:end]})


def _harmonics(by_block: Mapping[str, int]) -> NetworkConfig:
    return NetworkConfig(blocks={block: BlockConfig(basis="cosine", harmonics=(n, n)) for block, n in by_block.items()})
