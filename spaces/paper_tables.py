"""The two papers' tables as printed, every row once; accuracies are top-1 in percent.

P1 is Costain & Prisacariu, "Approximating Continuous Convolutions for Deep Network Compression": its Tables 1 to 4,
whole, except for other people's methods. Accuracies are after 5 epochs of fine-tuning.

P2 is Miles & Mikolajczyk, "Reconstructing Pruned Filters using Cheap Spatial Transformations". Its Tables 1 and 2
(VGG16, ResNet-56, ResNet-50) print the reductions that came out, not the pruning rates that went in. Its Table 3
(VGG16) prints rates; the scalar rows are here, after 300 epochs of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["P1", "P2", "SERIES_TABLES", "TEMPLATE_TABLES", "SeriesTable", "TemplateTable"]

P1 = "Costain & Prisacariu"
P2 = "Miles & Mikolajczyk"

_CIFAR, _IMAGENET = "CIFAR-10", "ImageNet"


@dataclass(frozen=True, kw_only=True)
class SeriesTable:
    """The rows of one network in one of P1's tables."""

    number: int
    """Of the table in the paper."""
    data: str
    """What the paper trained and tested on."""
    baseline: float
    """Top-1 of the uncompressed network."""
    rows: Mapping[str, tuple[float, ...]]
    """Harmonics as printed -> top-1 of CosConv and, where the paper has it, of ChebConv."""
    bits: int | None = None
    """Mantissa bits of every layer's weights and inputs; `None` for float32."""
    only_quantized: float | None = None
    """Top-1 at these bits without a series."""


@dataclass(frozen=True, kw_only=True)
class TemplateTable:
    """P2's rows of one network."""

    data: str
    """What the paper trained and tested on."""
    baseline: float
    """Top-1 of the uncompressed network, in Tables 1 and 2."""
    rows: tuple[tuple[float, float, float], ...]
    """Top-1, FLOPs saved in percent, and parameters saved in percent, of each row of Tables 1 and 2."""
    scalar_rates: Mapping[float, float] = field(default_factory=dict)
    """Pruning rate -> top-1 with scalar transforms, in Table 3."""


SERIES_TABLES: Mapping[str, tuple[SeriesTable, ...]] = {
    "resnet20": (
        SeriesTable(
            number=1,
            data=_CIFAR,
            baseline=91.73,
            rows={
                "3,3,3,2": (90.75, 90.76),
                "3,3,2,2": (89.55, 89.83),
                "3,2,2,2": (86.99, 87.79),
                "2,2,2,3": (86.87, 87.95),
                "2,2,2,2": (85.98, 86.66),
            },
        ),
    ),
    "resnet32": (
        SeriesTable(
            number=1,
            data=_CIFAR,
            baseline=92.78,
            rows={
                "3,3,3,2": (91.51, 91.48),
                "3,3,2,2": (90.99, 91.16),
                "3,2,2,2": (88.40, 88.48),
                "2,2,2,3": (88.64, 89.26),
                "2,2,2,2": (87.87, 88.16),
            },
        ),
    ),
    "resnet18": (
        SeriesTable(
            number=2,
            data=_IMAGENET,
            baseline=69.76,
            rows={
                "6,3,3,3,3": (70.19, 70.11),
                "6,3,3,3,2": (68.97, 68.62),
                "6,3,3,2,2": (67.90, 67.23),
                "6,3,2,2,2": (66.89, 65.63),
                "5,3,3,3,3": (69.80, 69.74),
                "5,3,3,3,2": (68.53, 68.15),
                "5,3,3,2,2": (67.48, 65.44),
                "4,3,3,3,2": (68.05, 67.34),
                "4,3,3,2,2": (66.84, 64.66),
            },
        ),
        SeriesTable(
            number=4,
            data=_IMAGENET,
            baseline=69.76,
            bits=8,
            only_quantized=69.74,
            rows={
                "6,3,3,3,2": (68.12, 67.39),
                "6,3,3,2,2": (65.23, 65.20),
                "5,3,3,3,2": (67.56, 66.80),
                "5,3,3,2,2": (64.69, 64.47),
            },
        ),
        SeriesTable(
            number=4,
            data=_IMAGENET,
            baseline=69.76,
            bits=4,
            only_quantized=69.28,
            rows={
                "6,3,3,3,2": (66.70, 66.50),
                "6,3,3,2,2": (64.10, 63.88),
                "5,3,3,3,2": (66.38, 65.30),
                "5,3,3,2,2": (62.76, 63.10),
            },
        ),
    ),
    "convnext_tiny": (
        SeriesTable(
            number=3,
            data=_IMAGENET,
            baseline=82.10,
            rows={
                "7x3,7x3,7x9,6x3": (81.19,),
                "7x3,7x3,7x4,6x5,6x3": (80.87,),
                "7x3,7x3,6x9,6x3": (79.94,),
                "7x3,6x3,6x9,6x3": (79.44,),
                "7x3,7x3,5x9,5x3": (79.28,),
                "7x3,7x3,5x9,4x3": (78.39,),
                "7x3,7x3,4x9,4x3": (75.94,),
                "6x3,6x3,6x9,6x3": (76.26,),
                "5x3,5x3,5x9,5x3": (77.29,),
            },
        ),
    ),
}
"""P1. `3,3,2,2` are harmonics of the network's stages; `7x3,6x5` are those of three layers, then of five (ConvNeXt's
7 x 7 depthwise layers, 18 in all)."""

TEMPLATE_TABLES: Mapping[str, TemplateTable] = {
    "vgg16": TemplateTable(
        data=_CIFAR,
        baseline=93.26,
        rows=((93.92, 45.56, 56.77), (93.62, 61.38, 81.15), (92.74, 80.89, 95.26)),
        scalar_rates={0.9: 90.62, 0.7: 92.48},
    ),
    "resnet56": TemplateTable(
        data=_CIFAR,
        baseline=93.60,
        rows=((94.18, 35.91, 51.64), (93.35, 48.27, 71.24), (92.81, 56.36, 80.05)),
    ),
    "resnet50": TemplateTable(data=_IMAGENET, baseline=76.20, rows=((75.59, 47.0, 40.0),)),
}
"""P2."""
