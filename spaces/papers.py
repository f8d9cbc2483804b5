"""The papers' own rows as configs, so that a network's published compressions can be costed, run and searched from.

P1 is Costain & Prisacariu, "Approximating Continuous Convolutions for Deep Network Compression"; its Tables 1 to 4 are
here whole, but for the uncompressed rows and other people's methods. P2 is Miles & Mikolajczyk, "Reconstructing
Pruned Filters using Cheap Spatial Transformations"; its Table 3 (VGG16) says the rates, and its scalar rows are here.
Its Tables 1 and 2 (VGG16, ResNet-56, ResNet-50) give the reductions that came out, not the rates that went in, and
are left out.

With two harmonics on 3 x 3 taps the cosine and the Chebyshev series are the same filters: all of P1's Table 1, and
the 3 x 3 layers of Tables 2 and 4. Both rows are listed although their configs are then equal, because the published
accuracies differ, by up to 1.1 points: that is how far two runs of one network lie apart in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from layers.series.basis import Family
from spaces.config import BlockConfig, NetworkConfig
from spaces.network import Network

__all__ = ["Preset", "presets"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One row of a paper's table, or a row in its spirit."""

    name: str
    """Unique for one network, such as `cos-3,3,2,2`."""
    config: NetworkConfig
    """Canonical for the network."""
    source: str
    """Paper, table, data."""
    published_top1: float | None = None
    """Top-1 accuracy in percent: P1's after 5 epochs of fine-tuning, P2's after 300 of training; `None` without one."""
    published_base: float | None = None
    """The paper's own top-1 accuracy of the uncompressed network, in percent."""


def presets(model: str, network: Network) -> tuple[Preset, ...]:
    """The published rows of a network by its name, in the tables' order; generic rows for networks without P1 rows.

    Generic rows bring the last block down to K - 1 cosine harmonics, then the last two, and so on to the first, as
    P1's tables do. Sizes of 1 and 2 stay as they are: P1 finds 2 x 2 layers not worth a series.
    """
    if model in _TABLE_1:
        return _canonical(network, _table_1(model))
    if model == "resnet18":
        return _canonical(network, [*_table_2(), *_table_4()])
    if model == "convnext_tiny":
        return _canonical(network, _table_3(network))
    rates = _canonical(network, _scalar(network)) if model == "vgg16" else ()
    return (*rates, *_stepwise(network))


_Rows = Mapping[str, tuple[float, float]]
"""Harmonics of each block -> published top-1 of CosConv and of ChebConv."""

_FAMILIES: tuple[tuple[str, Family], ...] = (("cos", "cosine"), ("cheb", "chebyshev"))

_BLOCKS = ("conv1", "layer1", "layer2", "layer3", "layer4")
"""What P1's numbers stand for, one after another."""

_TABLE_1: Mapping[str, tuple[float, _Rows]] = {
    "resnet20": (
        91.73,
        {
            "3,3,3,2": (90.75, 90.76),
            "3,3,2,2": (89.55, 89.83),
            "3,2,2,2": (86.99, 87.79),
            "2,2,2,3": (86.87, 87.95),
            "2,2,2,2": (85.98, 86.66),
        },
    ),
    "resnet32": (
        92.78,
        {
            "3,3,3,2": (91.51, 91.48),
            "3,3,2,2": (90.99, 91.16),
            "3,2,2,2": (88.40, 88.48),
            "2,2,2,3": (88.64, 89.26),
            "2,2,2,2": (87.87, 88.16),
        },
    ),
}

_RESNET18_BASE = 69.76

_TABLE_2: _Rows = {
    "6,3,3,3,3": (70.19, 70.11),
    "6,3,3,3,2": (68.97, 68.62),
    "6,3,3,2,2": (67.90, 67.23),
    "6,3,2,2,2": (66.89, 65.63),
    "5,3,3,3,3": (69.80, 69.74),
    "5,3,3,3,2": (68.53, 68.15),
    "5,3,3,2,2": (67.48, 65.44),
    "4,3,3,3,2": (68.05, 67.34),
    "4,3,3,2,2": (66.84, 64.66),
}

_TABLE_3: Mapping[str, float] = {
    "7x3,7x3,7x9,6x3": 81.19,
    "7x3,7x3,7x4,6x5,6x3": 80.87,
    "7x3,7x3,6x9,6x3": 79.94,
    "7x3,6x3,6x9,6x3": 79.44,
    "7x3,7x3,5x9,5x3": 79.28,
    "7x3,7x3,5x9,4x3": 78.39,
    "7x3,7x3,4x9,4x3": 75.94,
    "6x3,6x3,6x9,6x3": 76.26,
    "5x3,5x3,5x9,5x3": 77.29,
}
"""`6x5` is six harmonics in each of five layers."""

_TABLE_4: Mapping[int, tuple[float, _Rows]] = {
    8: (
        69.74,
        {
            "6,3,3,3,2": (68.12, 67.39),
            "6,3,3,2,2": (65.23, 65.20),
            "5,3,3,3,2": (67.56, 66.80),
            "5,3,3,2,2": (64.69, 64.47),
        },
    ),
    4: (
        69.28,
        {
            "6,3,3,3,2": (66.70, 66.50),
            "6,3,3,2,2": (64.10, 63.88),
            "5,3,3,3,2": (66.38, 65.30),
            "5,3,3,2,2": (62.76, 63.10),
        },
    ),
}
"""Mantissa bits -> top-1 of the plain convolutions and of the series, quantized."""

_SCALAR_RATES = {0.9: 90.62, 0.7: 92.48}
"""Pruning rate -> top-1 of VGG16 with scalar transforms, P2's Table 3."""


def _canonical(network: Network, rows: Iterable[Preset]) -> tuple[Preset, ...]:
    return tuple(replace(row, config=network.canonical(row.config)) for row in rows)


def _table_1(model: str) -> list[Preset]:
    base, rows = _TABLE_1[model]
    return _both_series(rows, source="Costain & Prisacariu, Table 1 (CIFAR-10)", base=base)


def _table_2() -> list[Preset]:
    return _both_series(_TABLE_2, source="Costain & Prisacariu, Table 2 (ImageNet)", base=_RESNET18_BASE)


def _table_3(network: Network) -> list[Preset]:
    """Of the 7 x 7 depthwise layers, first to last; CosConv alone, as printed."""
    depthwise = [name for name, shape in network.shapes.items() if shape.kernel == (7, 7)]
    return [
        Preset(
            name=f"cos-{runs}",
            config=_series("cosine", depthwise, _spread(runs)),
            source="Costain & Prisacariu, Table 3 (ImageNet)",
            published_top1=top1,
            published_base=82.10,
        )
        for runs, top1 in _TABLE_3.items()
    ]


def _table_4() -> list[Preset]:
    """Weights and inputs of every layer in block floating point of block size 1 (appendix C), the linear one too."""
    found, source = [], "Costain & Prisacariu, Table 4 (ImageNet)"
    for bits, (top1, rows) in _TABLE_4.items():
        config = _quantized(NetworkConfig(), bits)
        name, base = f"conv-{bits}bit", _RESNET18_BASE
        found.append(Preset(name=name, config=config, source=source, published_top1=top1, published_base=base))
        found += _both_series(rows, source=source, base=base, bits=bits)
    return found


def _both_series(rows: _Rows, *, source: str, base: float, bits: int | None = None) -> list[Preset]:
    """The rows of CosConv, then those of ChebConv."""
    found = []
    for column, (short, family) in enumerate(_FAMILIES):
        for harmonics, top1 in rows.items():
            name, config = f"{short}-{harmonics}", _series(family, _BLOCKS, map(int, harmonics.split(",")))
            if bits is not None:
                name, config = f"{name}-{bits}bit", _quantized(config, bits)
            found.append(
                Preset(name=name, config=config, source=source, published_top1=top1[column], published_base=base)
            )
    return found


def _series(family: Family, blocks: Iterable[str], harmonics: Iterable[int]) -> NetworkConfig:
    """As many blocks, from the first on, as there are numbers."""
    return NetworkConfig(
        blocks={block: BlockConfig(basis=family, harmonics=(n, n)) for n, block in zip(harmonics, blocks, strict=False)}
    )


def _quantized(config: NetworkConfig, bits: int) -> NetworkConfig:
    """ResNet-18, every layer at these mantissa bits."""
    blocks = {block: config.blocks.get(block, BlockConfig()) for block in (*_BLOCKS, "fc")}
    return NetworkConfig(blocks={block: replace(asked, bits=bits) for block, asked in blocks.items()})


def _spread(runs: str) -> list[int]:
    """`7x2,6x1` as [7, 7, 6]."""
    pairs = [run.split("x") for run in runs.split(",")]
    return [int(harmonics) for harmonics, times in pairs for _ in range(int(times))]


def _scalar(network: Network) -> list[Preset]:
    """VGG16 at a uniform rate, 8 templates at least; the base accuracy is that of P2's Table 1.

    The table does not say the groups: two here, as in P2's main experiments, and one where the channels are odd (the
    first layer's three).
    """
    layers = {name: shape.filter_channels for name, shape in network.shapes.items() if shape.kind == "conv2d"}
    return [
        Preset(
            name=f"scalar-{rate}",
            config=NetworkConfig(
                blocks={
                    name: BlockConfig(pruning_rate=rate, groups=1 if channels % 2 else 2, transform="scalar")
                    for name, channels in layers.items()
                }
            ),
            source="Miles & Mikolajczyk, Table 3 (CIFAR-10, 300 epochs)",
            published_top1=top1,
            published_base=93.26,
        )
        for rate, top1 in _SCALAR_RATES.items()
    ]


def _stepwise(network: Network) -> Iterator[Preset]:
    """Canonical as they are: cosine alone, only blocks that change, in network order."""
    source = "K - 1 harmonics from a block on, as in Costain & Prisacariu's tables"
    blocks: dict[str, BlockConfig] = {}
    for block in reversed(list(network.blocks)):
        lowered = _one_less(network, block)
        if lowered:
            blocks = {**lowered, **blocks}
            yield Preset(name=f"cos-from-{block}", config=NetworkConfig(blocks=blocks), source=source)


def _one_less(network: Network, block: str) -> dict[str, BlockConfig]:
    """K - 1 harmonics for each layer of a block: in the block's name where one pair says it, else layer by layer."""
    kernels = {name: network.shapes[name].kernel for name in network.blocks[block]}
    wanted = {name: (_less(y), _less(x)) for name, (y, x) in kernels.items() if max(y, x) > 2}
    if not wanted:
        return {}
    tall, wide = (max(pair[axis] for pair in wanted.values()) for axis in (0, 1))
    if all((min(tall, y), min(wide, x)) == wanted.get(name, (y, x)) for name, (y, x) in kernels.items()):
        wanted = {block: (tall, wide)}
    return {name: BlockConfig(basis="cosine", harmonics=pair) for name, pair in wanted.items()}


def _less(size: int) -> int:
    return size - 1 if size > 2 else size
