"""Accuracy against bytes in block floating point, on a ResNet-20: filters as they were, and as series.

    python benchmarks/quantization_accuracy.py --data DIR --weights FILE [--train-limit 5000] [--jobs 2]

Trials are those of `resnet20_trials.py`. Stored weights have 8, 6, 4 or 3 mantissa bits, of which 16 consecutive ones
share an exponent; at 4 bits 1 and 64 do too. Rows that share `a filter` are integers of 4 and 8 bits (3 and 7, and a
sign) with one real scale a filter.

- `as it was`: nothing else is done to the network;
- `series`: 2 x 2 harmonics in every filter larger than 1 x 1, each filter with as many of its layer's coefficients as
  it makes use of (`allocation: filter`).

Rows with `inputs` round every layer's input too, to as many bits as its weights (an exponent each): that saves no byte.
Rows with `norms` hold biases and norms in block floating point too. It writes `quantization_accuracy.parquet`, `.md`
and `.png`; the rows that others quote come first, with all seeds, then the others, those of one seed before those of
the next.
"""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from resnet20_trials import Run, about, accuracies, parser, run_trials

from spaces import BlockConfig, NetworkConfig
from spaces.network import NORMS_AND_BIASES

_BLOCKS = ("conv1", "layer1", "layer2", "layer3", "linear")
_SERIES = {"basis": "cosine", "harmonics": (2, 2), "allocation": "filter"}
_FILTERS: dict[str, dict[str, Any]] = {"as it was": {}, "series": _SERIES}
_BITS = (8, 6, 4, 3)
_INPUT_BITS = (8, 4)
_NORM_BITS = (8, 4)
_KEY = ["filters", "bits", "sharing", "inputs", "norms", "seed"]
_QUOTED = 5
"""Rows that README and docs quote."""
_NONE, _FILTER = 0, -1
"""In the table's key: no block floating point, and a real scale a filter."""


def main() -> None:
    arguments = parser(__doc__).parse_args()
    run_trials(arguments, "quantization_accuracy", _runs(arguments.seeds), _config, _write)
    print((arguments.out / "quantization_accuracy.md").read_text())


def _runs(seeds: int) -> list[Run]:
    """Return the runs, those that README and docs quote first."""
    rows = [(filters, bits, 16 if bits else _NONE, _NONE, _NONE) for bits in (_NONE, 4) for filters in _FILTERS]
    rows += [("series", 4, 16, _NONE, norms) for norms in _NORM_BITS]
    rows += [(filters, bits, 16, bits, _NONE) for bits in _INPUT_BITS for filters in _FILTERS]
    rows += [("as it was", bits, _FILTER, _NONE, _NONE) for bits in (3, 7)]
    rows += [(filters, bits, 16, _NONE, _NONE) for bits in _BITS if bits != 4 for filters in _FILTERS]
    rows += [(filters, 4, sharing, _NONE, _NONE) for sharing in (1, 64) for filters in _FILTERS]
    ordered = [(row, seed) for part in (rows[:_QUOTED], rows[_QUOTED:]) for seed in range(seeds) for row in part]
    return [dict(zip(_KEY, (*row, seed), strict=True)) for row, seed in ordered]


def _config(run: Run) -> NetworkConfig:
    shared = {"scale": "bfloat16"} if run["sharing"] == _FILTER else {"exponent_block": run["sharing"]}
    rounding: dict[str, Any] = {"bits": run["bits"], **shared} if run["bits"] else {}
    rounding |= {"activation_bits": run["inputs"]} if run["inputs"] else {}
    layers = {
        block: BlockConfig(**rounding, **({} if block == "linear" else _FILTERS[run["filters"]])) for block in _BLOCKS
    }
    norms = {NORMS_AND_BIASES: BlockConfig(bits=run["norms"])} if run["norms"] else {}
    return NetworkConfig(blocks={**layers, **norms})


def _write(runs: pd.DataFrame, out: Path) -> None:
    (out / "quantization_accuracy.md").write_text(_markdown(runs))
    _draw(runs, out / "quantization_accuracy.png")


def _markdown(runs: pd.DataFrame) -> str:
    words = (
        "Bits are those of stored weights; so many weights share an exponent, or a filter a real scale; `inputs` are "
        "bits of layer inputs, which nothing stores; `norms` are bits of biases and norms. `-` is float32."
    )
    lines = ["# Accuracy against bytes in block floating point, ResNet-20", "", f"{about(runs)} {words}", ""]
    lines += [
        "| filters | bits | share | inputs | norms | kB | n | before | after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = {name: place for place, name in enumerate(_FILTERS)}
    ranked = runs.assign(rank=runs.filters.map(order), most=-runs.bits.replace(_NONE, 99))
    for _, same in ranked.groupby(["rank", "most", "sharing", "norms", "inputs"]):
        first = same.iloc[0]
        cells = [first.filters, *({_NONE: "-", _FILTER: "a filter"}.get(first[n], str(first[n])) for n in _KEY[1:5])]
        cells += [f"{first.size_bytes / 1000:.1f}", str(len(same)), *accuracies(same)]
        lines.append(f"| {' | '.join(cells)} |")
    missing = len(_runs(1)) - len(runs[runs.seed == 0])
    return "\n".join([*lines, "", *([f"{missing} rows are not run yet.", ""] if missing else [])])


def _draw(runs: pd.DataFrame, path: Path) -> None:
    """Accuracy on all 10,000 images against kB: a line for each number of bits, along blocks of 1, 16, 64."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    top1 = runs.assign(top1=(runs.post_test + runs.post_val) / 2, kB=runs.size_bytes / 1000)
    means = top1.groupby(_KEY[:5], as_index=False)[["top1", "kB"]].mean().sort_values("kB")
    alone = (means.norms == _NONE) & (means.inputs == _NONE) & (means.sharing != _FILTER)
    for (filters, bits), same in means[alone].groupby(["filters", "bits"]):
        color, (line, marker) = f"C{(_NONE, *_BITS).index(bits)}", ("-", "o") if filters == "series" else (":", "s")
        name = f"{filters}, {'float32' if bits == _NONE else f'{bits} bits'}"
        axes.plot(same.kB, same.top1, color=color, linestyle=line, marker=marker, markersize=4, label=name)
    others = {"series, norms rounded too": means.norms != _NONE, "inputs rounded too": means.inputs != _NONE}
    others["as it was, a real scale a filter"] = means.sharing == _FILTER
    for (said, chosen), marker in zip(others.items(), "x+1", strict=True):
        rounded = means[chosen]
        axes.scatter(rounded.kB, rounded.top1, marker=marker, color="black", zorder=3, label=said)
    axes.set(xscale="log", xlabel="size_bytes, kB", ylabel="top-1 of 10,000 images, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
