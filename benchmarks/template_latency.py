"""Convolutions rebuilt from templates against the dense ones that they replace: P2's figure 7, and more.

    python benchmarks/template_latency.py [--device cpu] [--threads 2] [--rounds 7] [--networks vgg16 resnet50]

Every 3 x 3 convolution of a VGG16 for 32 x 32 images (batches of 32) and of a ResNet-50 for 224 x 224 (batches of 2),
at pruning rates 0.5, 0.75 and 0.875, with 1 and 2 groups, for each family of transforms; forward in evaluation, and
forward with backward in training; float32 and bfloat16, on a GPU float16 too, with cuDNN's own choice of algorithms.
Then a whole VGG16. All sides take turns in one run; a side's time is the median of its rounds. A turn is a call that
does not count and then calls for 10 ms, so a layer alone finds its own inputs and filters in the caches as far as these
hold them; in the whole network, of which a call is longer than a turn, it finds what the layer before has left. Sides:

- `dense`: `nn.Conv2d` on the same input, contiguous and in channels last: the faster of the two counts;
- `two stages`: the pointwise convolution with the templates, then our gather;
- `one pass`: both in one kernel, in evaluation on a CPU;
- `built`: filters built from the templates, once in evaluation, then the dense convolution; in both layouts too.

Ratios say how many times faster than `dense` the fastest of the others is. Ideal is the ratio of
multiply-accumulates (`layers.cost`). It writes `template_latency.parquet` (one row a side and round),
`template_latency_vgg16.parquet`, `template_latency.md` and `template_latency.png`. Other work on the machine spoils
it: the load average is in the table.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from resnet20_trials import device as processor
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from turns import take_turns

from layers import LayerForm, LayerShape, compress_model, compressed_layers, layer_cost
from layers.compress import compress_layer
from layers.conv import CompressedConv2d
from layers.templates.gather import template_gather
from layers.templates.transforms import Transform
from spaces import build_model

_RATES, _GROUPS = (0.5, 0.75, 0.875), (1, 2)
_FAMILIES: tuple[Transform, ...] = ("scalar", "rotation", "affine")
_SHAPES = {  # (channels, filters, side of the input, stride): how many layers have it
    "vgg16": {
        (3, 64, 32, 1): 1,
        (64, 64, 32, 1): 1,
        (64, 128, 16, 1): 1,
        (128, 128, 16, 1): 1,
        (128, 256, 8, 1): 1,
        (256, 256, 8, 1): 2,
        (256, 512, 4, 1): 1,
        (512, 512, 4, 1): 2,
        (512, 512, 2, 1): 3,
    },
    "resnet50": {
        (64, 64, 56, 1): 3,
        (128, 128, 56, 2): 1,
        (128, 128, 28, 1): 3,
        (256, 256, 28, 2): 1,
        (256, 256, 14, 1): 5,
        (512, 512, 14, 2): 1,
        (512, 512, 7, 1): 2,
    },
}
_BATCH = {"vgg16": 32, "resnet50": 2}
_CPU, _GPU = ("float32", "bfloat16"), ("float32", "float16", "bfloat16")
_AIMS = {0.5: 1.6, 0.75: 3.0, 0.875: 5.0}
_KINDS = ("two stages", "one pass", "built", "built, channels last")
_TURNS: dict[str, Any] = {"turn_s": 0.01, "warm": True}
_WHICH = ["network", "channels", "filters", "side_length", "stride", "dtype", "passes"]
Side = tuple[str, float, int, str]
"""Kind, pruning rate, groups, family; a dense side has the kind alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=list(_SHAPES), choices=list(_SHAPES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    device = torch.device(arguments.device)
    dtypes = _GPU if device.type == "cuda" else _CPU
    shapes = [(network, shape) for network in arguments.networks for shape in _SHAPES[network]]
    work = list(product(shapes, dtypes, ("forward", "backward")))
    rows = [
        row
        for (network, shape), dtype, passes in track(work, "convolutions")
        for row in _measure(network, shape, dtype, passes, device, arguments.rounds)
    ]
    about = {"device": _name(device), "threads": torch.get_num_threads(), "torch": version("torch")}
    runs = pd.DataFrame(rows).assign(**about)
    whole = pd.DataFrame(list(_whole(device, dtypes, arguments.rounds))).assign(**about)
    runs.to_parquet(arguments.out / "template_latency.parquet", index=False)
    whole.to_parquet(arguments.out / "template_latency_vgg16.parquet", index=False)
    text = _markdown(runs, whole)
    (arguments.out / "template_latency.md").write_text(text)
    _draw(runs, whole, arguments.out / "template_latency.png")
    print(text)


def _measure(
    network: str, shape: tuple[int, int, int, int], dtype: str, passes: str, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows of all sides of one convolution."""
    channels, filters, side_length, stride = shape
    about = dict(zip(_WHICH, (network, *shape, dtype, passes), strict=True))
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False, device=device)
    x = torch.randn(_BATCH[network], channels, side_length, side_length, device=device, dtype=getattr(torch, dtype))
    sides: dict[Side, tuple[Callable[[], Any], float]] = {}
    for layout, kind in ((torch.contiguous_format, "dense"), (torch.channels_last, "dense, channels last")):
        dense = nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False, device=device, dtype=x.dtype)
        call = _call(dense.to(memory_format=layout), x.contiguous(memory_format=layout), passes)
        sides[kind, 0.0, 1, ""] = call, 1.0
    for rate, groups, family in product(_RATES, _GROUPS, _FAMILIES):
        if channels % groups:
            continue
        form = LayerForm(templates=round((1 - rate) * filters), groups=groups, transform=family)
        ideal = _ideal(LayerShape.from_module(conv), form, side_length, stride)
        for kind, execution in _kinds(passes, device, family == "scalar" or stride == 1):
            layer = compress_layer(conv, form).to(x.dtype)
            assert isinstance(layer, CompressedConv2d)
            layer.execution = execution  # type: ignore[assignment]
            sides[kind, rate, groups, family] = _call(layer, _laid_out(x, kind), passes), ideal
    if passes == "forward":  # the same whatever the filters are made from
        for kind in _KINDS[2:]:
            built = compress_layer(conv, LayerForm(templates=filters // 2, transform="scalar")).to(x.dtype)
            sides[kind, 0.0, 1, ""] = _call(built, _laid_out(x, kind), passes), 1.0
    for side, timing in take_turns({side: call for side, (call, _) in sides.items()}, rounds, device, **_TURNS):
        kind, rate, groups, family = side
        row = {**about, "kind": kind, "rate": rate, "groups": groups, "family": family, "ideal": sides[side][1]}
        yield row | timing


def _kinds(passes: str, device: torch.device, one_pass: bool) -> list[tuple[str, str]]:
    if passes == "backward":
        return [("two stages", "two_stage"), *((kind, "dense") for kind in _KINDS[2:])]
    return [("two stages", "two_stage"), *([("one pass", "fused")] if one_pass and device.type == "cpu" else [])]


def _laid_out(x: torch.Tensor, kind: str) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if kind.endswith("channels last") else x


def _ideal(shape: LayerShape, form: LayerForm, side_length: int, stride: int) -> float:
    """Multiply-accumulates of the dense convolution in those of the form."""
    calls = (((side_length, side_length), (side_length // stride, side_length // stride)),)
    shape = replace(shape, calls=calls)
    return layer_cost(shape, LayerForm()).macs / layer_cost(shape, form).macs


def _call(layer: nn.Module, x: torch.Tensor, passes: str) -> Callable[[], Any]:
    if passes == "forward":
        layer.eval()
        return torch.no_grad()(lambda: layer(x))
    layer.train()
    x = x.detach().requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(layer(x))
    wanted = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x), wanted, grad)


def _whole(device: torch.device, dtypes: tuple[str, ...], rounds: int) -> Iterator[dict[str, Any]]:
    """Return a VGG16 whose convolutions but the first have templates with gains, and the share of each stage."""
    for dtype in dtypes:
        x = torch.randn(_BATCH["vgg16"], 3, 32, 32, device=device, dtype=getattr(torch, dtype))
        dense = build_model("vgg16", classes=10, channels=3).to(device).eval()
        convs = [(name, layer) for name, layer in dense.named_modules() if isinstance(layer, nn.Conv2d)][1:]
        sides: dict[tuple[str, float], Callable[[], Any]] = {}
        for rate in (0.0, *_RATES):
            kept = {name: round((1 - rate) * conv.out_channels) for name, conv in convs}
            forms = {name: LayerForm(templates=count, transform="scalar") for name, count in kept.items()}
            model = (dense if rate == 0 else compress_model(dense, forms)).to(device).eval()
            for kind, execution in (("dense", None),) if rate == 0 else _kinds("forward", device, True):
                copied = build_model("vgg16", classes=10, channels=3) if rate == 0 else compress_model(dense, forms)
                copied.load_state_dict(model.state_dict())
                copied.to(device, x.dtype).eval()
                for layer in compressed_layers(copied).values():
                    layer.execution = execution  # type: ignore[assignment]
                sides[kind, rate] = torch.no_grad()(lambda copied=copied, x=x: copied(x))
                if kind == "two stages":
                    sides |= _stages(copied, x, rate)
        for (kind, rate), timing in take_turns(sides, rounds, device, **_TURNS):
            yield {"dtype": dtype, "kind": kind, "rate": rate} | timing


def _stages(model: nn.Module, x: torch.Tensor, rate: float) -> dict[tuple[str, float], Callable[[], Any]]:
    """Each stage of all layers alone."""
    given: list[tuple[CompressedConv2d, torch.Tensor]] = []
    layers = [layer for layer in compressed_layers(model).values() if isinstance(layer, CompressedConv2d)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: given.append((layer, inputs[0]))) for layer in layers
    ]
    with torch.no_grad():
        model(x)
        first, second = [], []
        for layer, inputs in given:
            taps = layer.templates().permute(0, 3, 4, 1, 2).flatten(0, 3)[..., None, None].contiguous()
            operators, source = layer.operators()
            first.append((inputs, taps))
            second.append((F.conv2d(inputs, taps), operators.to(inputs.dtype), source, [3, 3], [1, 1], [1, 1], [1, 1]))
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def maps() -> None:
        for inputs, taps in first:
            F.conv2d(inputs, taps)

    def gathers() -> None:
        for inputs in second:
            template_gather(*inputs)

    return {("two stages: maps", rate): maps, ("two stages: gather", rate): gathers}


def _medians(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a configuration: dense and each kind in ms, how many times faster the fastest is, and the ideal."""
    keys = [*_WHICH, "rate", "groups", "family"]
    times = runs.groupby([*keys, "kind"], as_index=False).agg(seconds=("seconds", "median"), ideal=("ideal", "first"))
    dense = times[times.kind.str.startswith("dense")].groupby(_WHICH).seconds.min().rename("dense")
    ours = times[times.rate > 0].pivot_table(index=[*keys, "ideal"], columns="kind", values="seconds").reset_index()
    ours = ours.merge(dense.reset_index(), on=_WHICH)
    for kind in _KINDS[2:]:
        once = times[(times.kind == kind) & (times.rate == 0)].set_index(_WHICH).seconds.rename("once")
        ours = ours.merge(once.reset_index(), on=_WHICH, how="left")
        ours[kind] = ours[kind].fillna(ours.pop("once")) if kind in ours else ours.pop("once")
    ours["ratio"] = ours.dense / ours[[kind for kind in _KINDS if kind in ours]].min(axis=1)
    ours["layers"] = [
        _SHAPES[row.network][row.channels, row.filters, row.side_length, row.stride] for row in ours.itertuples()
    ]
    return ours


def _mean(table: pd.DataFrame, column: str) -> float:
    """Geometric mean over all layers of a network."""
    return float(np.exp(np.average(np.log(table[column]), weights=table.layers)))


def _markdown(runs: pd.DataFrame, whole: pd.DataFrame) -> str:
    first, table = runs.iloc[0], _medians(runs)
    gpu = "cuda" not in str(first.device).lower() and "nvidia" not in str(first.device).lower()
    lines = [
        "# Template convolutions against dense ones",
        "",
        f"`python benchmarks/template_latency.py --threads {first.threads} --rounds {runs['round'].max() + 1}`: "
        f"{first.device}, {first.threads} threads, torch {first.torch}, n = {runs['round'].max() + 1} rounds, load "
        f"average {runs.load.min():.1f} to {runs.load.max():.1f}. Times faster than the faster dense layout, geometric "
        "mean over all 3 x 3 layers of the network, each called again and again, and in brackets the ratio of "
        "multiply-accumulates." + (" On a GPU: not measured." if gpu else ""),
        "",
        "| network | type | passes | family | groups | " + " | ".join(f"rate {rate}" for rate in _RATES) + " |",
        "|---|---|---|---|---|" + "---|" * len(_RATES),
    ]
    for key, same in table.groupby(["network", "dtype", "passes", "family", "groups"], sort=False):
        cells = [same[same.rate == rate] for rate in _RATES]
        text = " | ".join(f"{_mean(cell, 'ratio'):.2f} ({_mean(cell, 'ideal'):.1f})" for cell in cells)
        lines.append(f"| {' | '.join(map(str, key))} | {text} |")
    lines += ["", *_beside_contiguous(runs)]
    aims = ", ".join(f"{aim} at {rate}" for rate, aim in _AIMS.items())
    lines += ["", f"Aims on a CPU (vgg16, float32, forward, scalar, 1 group): {aims}.", ""]
    lines += ["## Layer by layer: gains, 1 group", "", "Milliseconds; the layer as it would be run is the fastest.", ""]
    lines += _by_layer(table[(table.family == "scalar") & (table.groups == 1)])
    lines += ["", "## A whole VGG16", "", "All convolutions but the first have gains; milliseconds a batch of 32.", ""]
    times = whole.groupby(["dtype", "rate", "kind"], sort=False).seconds.median().mul(1e3).unstack().reset_index()
    kinds = [
        kind for kind in ("dense", "two stages", "two stages: maps", "two stages: gather", "one pass") if kind in times
    ]
    lines += ["| type | rate | " + " | ".join(kinds) + " |", "|---|---|" + "---|" * len(kinds)]
    for row in times.to_dict("records"):
        cells = ["" if pd.isna(row[kind]) else f"{row[kind]:.2f}" for kind in kinds]
        lines.append(f"| {row['dtype']} | {row['rate']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _beside_contiguous(runs: pd.DataFrame) -> Iterator[str]:
    """How much faster one pass is than the dense layer that is contiguous like it, of gains and 1 group."""
    times = runs[runs.passes == "forward"].groupby([*_WHICH, "kind", "rate", "groups", "family"]).seconds.median()
    dense = times.xs(("dense", 0.0, 1, ""), level=["kind", "rate", "groups", "family"])
    for (network, dtype), same in dense.groupby(level=["network", "dtype"]):
        found = []
        for rate in _RATES if "one pass" in times.index.get_level_values("kind") else ():
            one = times.xs(("one pass", rate, 1, "scalar"), level=["kind", "rate", "groups", "family"])
            layers = [_SHAPES[network][shape[1:5]] for shape in one.index if shape in same.index]
            ratios = [same[shape] / one[shape] for shape in one.index if shape in same.index]
            found.append(f"{np.exp(np.average(np.log(ratios), weights=layers)):.2f} at {rate}")
        if found:
            yield f"- One pass beside contiguous dense layers, {network}, {dtype}: {', '.join(found)}."


def _by_layer(table: pd.DataFrame) -> list[str]:
    kinds = [kind for kind in ("dense", *_KINDS) if kind in table]
    lines = ["| network | layer | type | passes | rate | " + " | ".join(kinds) + " | ratio | ideal |"]
    lines.append("|---|---|---|---|---|" + "---|" * (len(kinds) + 2))
    for row in table.to_dict("records"):
        layer = f"{row['channels']} to {row['filters']}, {row['side_length']}^2" + (
            " / 2" if row["stride"] == 2 else ""
        )
        cells = ["" if pd.isna(row[kind]) else f"{1e3 * row[kind]:.2f}" for kind in kinds]
        ratios = f"{row['ratio']:.2f} | {row['ideal']:.1f}"
        which = f"{row['network']} | {layer} | {row['dtype']} | {row['passes']} | {row['rate']}"
        lines.append(f"| {which} | {' | '.join(cells)} | {ratios} |")
    return lines


def _draw(runs: pd.DataFrame, whole: pd.DataFrame, path: Path) -> None:
    """How many times faster each layer is, and how long a whole VGG16 takes."""
    matplotlib.use("agg")
    table = _medians(runs)
    table = table[(table.family == "scalar") & (table.groups == 1) & (table.passes == "forward")]
    networks, dtypes = list(table.network.unique()), list(table.dtype.unique())
    figure, axes = plt.subplots(
        len(networks) + 1,
        len(dtypes),
        figsize=(6 * len(dtypes), 3.4 * (len(networks) + 1)),
        layout="constrained",
        squeeze=False,
    )
    for (i, network), (j, dtype) in product(enumerate(networks), enumerate(dtypes)):
        same, axis = table[(table.network == network) & (table.dtype == dtype)], axes[i, j]
        for color, rate in enumerate(_RATES):
            part = same[same.rate == rate].sort_values(
                ["side_length", "channels", "filters"], ascending=[False, True, True]
            )
            names = [
                f"{r.channels}-{r.filters}\n{r.side_length}²" + ("/2" if r.stride == 2 else "")
                for r in part.itertuples()
            ]
            axis.plot(names, part.ratio, marker="o", color=f"C{color}", label=f"rate {rate}")
            axis.plot(names, part.ideal, ":", color=f"C{color}")
        axis.axhline(1, color="gray", linewidth=1)
        axis.set(title=f"{network}, {dtype}: times faster than dense (dotted: ideal)", yscale="log")
        axis.tick_params(axis="x", labelsize=7)
        axis.legend(fontsize=8)
    times = whole.groupby(["dtype", "kind", "rate"]).seconds.median().mul(1e3)
    for j, dtype in enumerate(dtypes):
        axis, here = axes[-1, j], times[dtype]
        axis.axhline(here["dense"].iloc[0], color="gray", label="dense")
        for offset, kind in ((-0.2, "two stages: maps"), (0.2, "one pass")):
            if kind in here:
                axis.bar(np.arange(len(_RATES)) + offset, here[kind], width=0.38, label=kind)
        gathers = here["two stages: gather"]
        axis.bar(
            np.arange(len(_RATES)) - 0.2,
            gathers,
            width=0.38,
            bottom=here["two stages: maps"],
            label="two stages: gather",
        )
        axis.set(title=f"whole VGG16, {dtype}, ms a batch of 32", xlabel="pruning rate")
        axis.set_xticks(range(len(_RATES)), map(str, _RATES))
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


if __name__ == "__main__":
    main()
