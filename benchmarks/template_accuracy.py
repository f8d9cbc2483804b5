"""Filters rebuilt from templates on a ResNet-20, as in Miles & Mikolajczyk's ablations, after a short fine-tuning.

    python benchmarks/template_accuracy.py --data DIR --weights FILE [--train-limit 5000] [--jobs 2]

Trials are those of `resnet20_trials.py`, templates are the filters of largest magnitude, the same share of each layer.
All convolutions but the first are pruned, with at least 2 templates a layer and group. Questions:

- `family`: plain pruning (`zero`) against gains, rotations and affine maps at the pruning rates 0.5, 0.7 and 0.9;
- `groups`: G = 1, 2, 4 at the rate 0.9, gains;
- `minimum`: at least 2, 4, 8 templates at the rate 0.9, gains;
- `saliency`: magnitude against gradient, each a share of every layer or one threshold over all, at the rate 0.7, gains;
- `assignment`: the template that serves a filter best (`residual`) against r mod M (`modulo`), families and rates as
  above;
- `start`: calibrated, against gains nearest to the filters (`least_squares`), and against filters that begin as copies
  of template r mod M (`identity`: the paper gives no other start), rates as above;
- `gradual`: all filters pruned before the first step against 40/300 (the paper's share) or half of all epochs, gains.

It writes `template_accuracy.parquet`, `.md` and `.png`.
"""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from resnet20_trials import Run, about, accuracies, load_subject, parser, run_trials

from spaces import BlockConfig, NetworkConfig
from spaces.global_pruning import global_rates
from trainers.start.saliency import filter_saliency

_BLOCKS = ("layer1", "layer2", "layer3")
_FAMILIES = ("zero", "scalar", "rotation", "affine")
_RATES = (0.5, 0.7, 0.9)
_KEY = ["family", "rate", "groups", "minimum", "saliency", "scope", "assignment", "start", "gradual", "seed"]
_GRADUAL = (round(40 / 300, 3), 0.5)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    data, baseline, network = load_subject(arguments, "layer")
    inside = {name for block in _BLOCKS for name in network.layers_in(block)}

    def config(run: Run) -> NetworkConfig:
        if run["scope"] == "layer":
            return _config(run)
        saliency = filter_saliency(run["saliency"], baseline, data, seed=run["seed"])
        saliency = {name: value for name, value in saliency.items() if name in inside}
        rates = global_rates(network, saliency, run["rate"], run["minimum"])
        blocks = {
            name: BlockConfig(pruning_rate=rate, groups=run["groups"], transform=run["family"])
            for name, rate in rates.items()
            if rate
        }
        return NetworkConfig(blocks=blocks, minimum_templates=run["minimum"])

    run_trials(arguments, "template_accuracy", _runs(arguments.seeds), config, _write)
    print((arguments.out / "template_accuracy.md").read_text())


def _runs(seeds: int) -> list[Run]:
    families = [(family, rate, 1, 2) for rate in reversed(_RATES) for family in _FAMILIES]
    others = [("scalar", 0.9, 2, 2), ("scalar", 0.9, 4, 2), ("scalar", 0.9, 1, 4), ("scalar", 0.9, 1, 8)]
    control = ("as it was", 0.0, 1, 2)
    usual = ("magnitude", "layer", "residual", "calibrated", 0.0)
    plain = [(*row, *usual) for row in (*families, control, *others)]
    chosen = [("gradient", "layer"), ("magnitude", "network"), ("gradient", "network")]
    salient = [("scalar", 0.7, 1, 2, *how, *usual[2:]) for how in chosen]
    gradual = [("scalar", rate, 1, 2, *usual[:4], share) for share in _GRADUAL for rate in reversed(_RATES)]
    modulo = [(*row, *usual[:2], "modulo", *usual[3:]) for row in families if row[0] != "zero"]
    starts = [
        ("scalar", rate, 1, 2, *usual[:2], *how, 0.0)
        for how in (("modulo", "identity"), ("residual", "least_squares"))
        for rate in reversed(_RATES)
    ]
    rows = [(*row, seed) for seed in range(seeds) for row in (*plain, *gradual, *salient, *modulo, *starts)]
    return [dict(zip(_KEY, row, strict=True)) for row in rows]


def _config(run: Run) -> NetworkConfig:
    if not run["rate"]:
        return NetworkConfig()
    block = BlockConfig(pruning_rate=run["rate"], groups=run["groups"], transform=run["family"])
    return NetworkConfig(blocks=dict.fromkeys(_BLOCKS, block), minimum_templates=run["minimum"])


def _write(runs: pd.DataFrame, out: Path) -> None:
    (out / "template_accuracy.md").write_text(_markdown(runs))
    _draw(runs, out / "template_accuracy.png")


def _markdown(runs: pd.DataFrame) -> str:
    words = (
        "`minimum` is of templates in each layer and group; the uncompressed network has 1,084.4 kB and 81.6 MFLOPs."
    )
    lines = ["# Filters rebuilt from templates, ResNet-20", "", f"{about(runs)} {words}", ""]
    heads = ("rate", "family", "G", "minimum", "saliency", "of each", "template", "start", "gradual")
    lines += [f"| {' | '.join(heads)} | kB | MFLOPs | n | before | after |", "|---" * (len(heads) + 5) + "|"]
    order = {name: place for place, name in enumerate(("as it was", *_FAMILIES))}
    for _, same in runs.assign(rank=runs.family.map(order)).groupby(
        ["rate", "groups", "minimum", "rank", "scope", "saliency", "gradual", "start", "assignment"]
    ):
        first = same.iloc[0]
        cells = [str(first.rate), first.family, str(first.groups), str(first.minimum), first.saliency, first.scope]
        cells += [first.assignment, first.start, f"{first.gradual:g}"]
        cells += [f"{first.size_bytes / 1000:.1f}", f"{first.flops / 1e6:.1f}", str(len(same)), *accuracies(same)]
        lines.append(f"| {' | '.join(cells)} |")
    missing = len(_runs(1)) - len(runs[runs.seed == 0])
    return "\n".join([*lines, "", *([f"{missing} rows are not run yet.", ""] if missing else [])])


def _draw(runs: pd.DataFrame, path: Path) -> None:
    """Accuracy on all 10,000 images against the pruning rate, a line a family, before (dotted) and after."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    plain = runs[(runs.groups == 1) & (runs.minimum == 2) & (runs.saliency == "magnitude") & (runs.scope == "layer")]
    plain = plain[(plain.assignment == "residual") & (plain.start == "calibrated") & (plain.gradual == 0)]
    for color, family in enumerate(_FAMILIES):
        same = plain[plain.family == family].groupby("rate")
        for when, style in (("pre", ":"), ("post", "-")):
            top1 = (same[f"{when}_test"].mean() + same[f"{when}_val"].mean()) / 2
            label = family if when == "post" else None
            axes.plot(top1.index, top1, style, marker="o", markersize=4, color=f"C{color}", label=label)
    axes.set(xlabel="pruning rate", ylabel="top-1 of 10,000 images, %", title="dotted: before fine-tuning")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
