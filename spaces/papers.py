"""The papers' rows: as configs to cost, run and search from, and as results to show beside a study.

With two harmonics on 3 x 3 taps the cosine and the Chebyshev series are the same filters: all of P1's Table 1, and
the 3 x 3 layers of Tables 2 and 4. Both rows are listed although their configs are then equal, because the published
accuracies differ, by up to 1.1 points: that is how far two runs of one network lie apart in the paper.

What a row of P1 stores and computes is counted from its config (`spaces.Network.cost`), not copied. The printed
parameter shares of ResNet-18's 5,3,3,3,3 (94.10 %, it is 99.96 %) and of ResNet-32's 3,3,3,2 and 2,2,2,2 (57.74 and
44.48 %, they are 57.88 and 44.52 %) are misprints. P2 does not publish how many templates each layer keeps in its
Tables 1 and 2, so these rows have no config, and the printed shares of FLOPs and parameters stand, the latter for the
size too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from layers.series.basis import Family
from spaces.config import BlockConfig, NetworkConfig
from spaces.network import Network
from spaces.paper_tables import P1, P2, SERIES_TABLES, TEMPLATE_TABLES, SeriesTable, TemplateTable

__all__ = ["PaperResult", "Preset", "presets", "published_rows"]


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


@dataclass(frozen=True, kw_only=True)
class PaperResult:
    """One row of a paper: scores are top-1 accuracies in percent as printed, costs shares of the uncompressed ones."""

    paper: str
    name: str
    """What the paper calls the configuration."""
    data: str
    """What the paper trained and tested on."""
    score: float
    baseline_score: float
    size: float
    flops: float
    counted: bool
    """Whether the shares were counted from the configuration; otherwise they are as printed."""

    def relative_to(self, baseline: Mapping[str, float]) -> dict[str, float]:
        """Return the row's `score`, `size_bytes` and `flops` relative to a study's baseline; what it lacks is left out.

        A paper's row comes from other data, weights and training, so it is placed by what it *changed*: the published
        loss of top-1 accuracy is taken off the baseline's `score` (a share, at most 1), and the share of each cost is
        multiplied by the baseline's.
        """
        relative = {}
        if "score" in baseline:
            relative["score"] = min(1.0, baseline["score"] + (self.score - self.baseline_score) / 100)
        for name, share in (("size_bytes", self.size), ("flops", self.flops)):
            if name in baseline:
                relative[name] = share * baseline[name]
        return relative


def presets(model: str, network: Network) -> tuple[Preset, ...]:
    """Return the published rows of a network by its name, in the tables' order.

    Configs name stages and layers, whatever the network's blocks are (`spaces.spelling`).

    Networks without rows in P1 have generic ones, which bring the last stage down to K - 1 cosine harmonics, then the
    last two, and so on to the first, as P1's tables do. Sizes of 1 and 2 stay as they are: P1 finds 2 x 2 layers not
    worth a series.
    """
    if model in SERIES_TABLES:
        rows = [row for table in SERIES_TABLES[model] for row in _series_presets(table, network)]
        return _canonical(network, rows)
    rates = _scalar_presets(TEMPLATE_TABLES[model], network) if model in TEMPLATE_TABLES else []
    return (*_canonical(network, rates), *_stepwise(network))


def published_rows(model: str, dataset: str) -> list[PaperResult]:
    """Return what was published for a model of this name, in the papers' order; nothing for digits.

    P1's rows are those of CosConv without quantization.
    """
    if dataset == "digits":
        return []
    return [*_series_results(model), *_template_results(model)]


_FAMILIES: tuple[tuple[str, Family], ...] = (("cos", "cosine"), ("cheb", "chebyshev"))
"""Columns of P1's tables."""

_STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
"""What P1's numbers stand for in a ResNet, one after another."""


def _canonical(network: Network, rows: Iterable[Preset]) -> tuple[Preset, ...]:
    return tuple(replace(row, config=network.canonical(row.config)) for row in rows)


def _series_presets(table: SeriesTable, network: Network) -> Iterator[Preset]:
    """Yield the quantized network without a series, where the table has it, then CosConv's rows, then ChebConv's."""
    source = f"{P1}, Table {table.number} ({table.data})"
    suffix = "" if table.bits is None else f"-{table.bits}bit"
    if table.only_quantized is not None:
        yield Preset(
            name=f"conv{suffix}",
            config=_quantized(NetworkConfig(), table.bits),
            source=source,
            published_top1=table.only_quantized,
            published_base=table.baseline,
        )
    for column, (short, family) in enumerate(_FAMILIES):
        for harmonics, accuracies in table.rows.items():
            if column < len(accuracies):
                yield Preset(
                    name=f"{short}-{harmonics}{suffix}",
                    config=_quantized(_series_config(network, family, harmonics), table.bits),
                    source=source,
                    published_top1=accuracies[column],
                    published_base=table.baseline,
                )


def _series_config(network: Network, family: Family, text: str) -> NetworkConfig:
    """Return the config of a row's harmonics as printed (`3,3,2,2` of stages, `7x3,6x9` of 7 x 7 layers)."""
    layers = [name for name, shape in network.shapes.items() if shape.kernel == (7, 7)]
    blocks = zip(layers if "x" in text else _STAGES, _parse_harmonics(text), strict=False)
    return NetworkConfig(blocks={block: BlockConfig(basis=family, harmonics=(n, n)) for block, n in blocks})


def _parse_harmonics(text: str) -> list[int]:
    """Return one number for each stage or layer: `3,3,2` as [3, 3, 2], `7x2,6x1` as [7, 7, 6]."""
    terms = [term.partition("x") for term in text.split(",")]
    return [int(harmonics) for harmonics, _, times in terms for _ in range(int(times or 1))]


def _quantized(config: NetworkConfig, bits: int | None) -> NetworkConfig:
    """Return the config with every layer of ResNet-18, the linear one too, at these mantissa bits.

    Weights and inputs are in block floating point of block size 1 (appendix C).
    """
    if bits is None:
        return config
    blocks = {block: config.blocks.get(block, BlockConfig()) for block in (*_STAGES, "fc")}
    return NetworkConfig(
        blocks={block: replace(knobs, bits=bits, activation_bits=bits) for block, knobs in blocks.items()}
    )


def _scalar_presets(table: TemplateTable, network: Network) -> list[Preset]:
    """Return P2's rows of one pruning rate in all convolutions, 8 templates at least.

    The table does not say the groups: two here, as in P2's main experiments, and one where the channels are odd (the
    first layer's three). Nor does it have the uncompressed network; the base accuracy is that of Table 1.
    """
    channels = {name: shape.filter_channels for name, shape in network.shapes.items() if shape.kind == "conv2d"}
    return [
        Preset(
            name=f"scalar-{rate}",
            config=NetworkConfig(
                blocks={
                    name: BlockConfig(pruning_rate=rate, groups=1 if count % 2 else 2, transform="scalar")
                    for name, count in channels.items()
                }
            ),
            source=f"{P2}, Table 3 ({table.data}, 300 epochs)",
            published_top1=top1,
            published_base=table.baseline,
        )
        for rate, top1 in table.scalar_rates.items()
    ]


def _stepwise(network: Network) -> Iterator[Preset]:
    """Yield generic rows; canonical as they are: cosine alone, only stages that change, in network order."""
    source = f"K - 1 harmonics from a stage on, as in {P1}'s tables"
    blocks: dict[str, BlockConfig] = {}
    for stage in reversed(network.stages):
        lowered = _one_less(network, stage)
        if lowered:
            blocks = {**lowered, **blocks}
            yield Preset(name=f"cos-from-{stage}", config=NetworkConfig(blocks=blocks), source=source)


def _one_less(network: Network, stage: str) -> dict[str, BlockConfig]:
    """Return K - 1 harmonics for each layer of a stage: under the stage's name if one pair says it, else by layer."""
    kernels = {name: network.shapes[name].kernel for name in network.stages[stage]}
    harmonics = {name: (_less(y), _less(x)) for name, (y, x) in kernels.items() if max(y, x) > 2}
    if not harmonics:
        return {}
    tall, wide = (max(pair[axis] for pair in harmonics.values()) for axis in (0, 1))
    if all((min(tall, y), min(wide, x)) == harmonics.get(name, (y, x)) for name, (y, x) in kernels.items()):
        harmonics = {stage: (tall, wide)}
    return {name: BlockConfig(basis="cosine", harmonics=pair) for name, pair in harmonics.items()}


def _less(size: int) -> int:
    return size - 1 if size > 2 else size


def _series_results(model: str) -> list[PaperResult]:
    tables = [table for table in SERIES_TABLES.get(model, ()) if table.bits is None]
    return [_series_result(model, table, harmonics) for table in tables for harmonics in table.rows]


def _series_result(model: str, table: SeriesTable, harmonics: str) -> PaperResult:
    network = _paper_network(model, table.data)
    whole, cost = network.cost(NetworkConfig()), network.cost(_series_config(network, "cosine", harmonics))
    return PaperResult(
        paper=f"{P1}, CosConv",
        name=harmonics,
        data=table.data,
        score=table.rows[harmonics][0],
        baseline_score=table.baseline,
        size=cost.size_bytes / whole.size_bytes,
        flops=cost.macs / whole.macs,
        counted=True,
    )


@cache
def _paper_network(model: str, data: str) -> Network:
    """Return the network with the classes and the image size of the paper's data."""
    import torch

    from spaces.models import build_model

    classes, side = (10, 32) if data == "CIFAR-10" else (1000, 224)
    with torch.random.fork_rng(devices=[]):
        return Network.from_module(build_model(model, classes=classes, channels=3), (3, side, side))


def _template_results(model: str) -> list[PaperResult]:
    if model not in TEMPLATE_TABLES:
        return []
    table = TEMPLATE_TABLES[model]
    return [
        PaperResult(
            paper=P2,
            name=f"{flops:.3g} % fewer FLOPs",
            data=table.data,
            score=top1,
            baseline_score=table.baseline,
            size=1 - parameters / 100,
            flops=1 - flops / 100,
            counted=False,
        )
        for top1, flops, parameters in table.rows
    ]
