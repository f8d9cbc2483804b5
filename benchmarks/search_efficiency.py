"""Hypervolume against seconds spent: our search and what Optuna's samplers find by themselves.

    python benchmarks/search_efficiency.py [--seeds 20] [--trials 100]

Each search is replayed on `digits_grid.parquet` (see `digits_grid.py`), in which every config of the space was trained:
accuracies are means over five folds, seconds of each phase medians over them. So a trial costs what it took there,
calibration and validation before fine-tuning included, and one that is stopped early what it took until then. Searches
run one trial at a time; what a sampler itself takes is not counted here, `search_overhead.py` has that.

- `random`, `NSGA-II`, `TPE`: Optuna's samplers as a user has them, default settings, told accuracy, size and flops;
  what is drawn twice is trained twice, as Ray Tune would.
- `TPE, our searcher`: the sampler in `overtone search --sampler tpe`: it begins with the uncompressed network and the
  extremes, and trains nothing twice.
- `ehvi`: our sampler, `overtone search --miss-rate 0`; `ehvi, stopping`: our default, which stops trials early. Both
  first measure effects of single blocks, as a study does (`digits_effects.json`, a library for each fold; seed s has
  that of fold s mod 5), and their seconds count; `ehvi without effects` does not.

The last runs on for twice as many trials, since seconds are compared.

Hypervolume is the study's own (accuracy from 0, costs from the uncompressed network's), and told as what is missing of
the whole grid's; beside it that of accuracies from 90 % up alone. Writes `search_efficiency.parquet`, `.md` and `.png`.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import torch
from digits_grid import EFFECTS, EPOCHS, TABLE, grid_configs, grid_network, grid_space
from replays import Grid, Measured, Replay, alone, dominates, ours, volume
from rich.progress import track

from spaces.effects import Effects

__all__ = ["digits_grid"]

_ACCURACIES = ("init_score", *(f"val_top1_{epoch}" for epoch in range(1, EPOCHS + 1)))
_FLOOR = 0.9
_BEST_OF_OTHERS = ("random", "NSGA-II", "TPE")
_OURS = "ehvi, stopping"
_KINDS = {"harmonics": ("harmonics_y", "harmonics_x"), "templates": ("pruning_rate",), "bits": ("bits",)}


@cache
def digits_grid(table: Path = TABLE) -> Grid:
    """Return the grid of the ResNet-8 on digits, means over its folds."""
    space = grid_space(grid_network())
    network = space.network
    trained = pd.read_parquet(table)
    rows, images = trained.groupby("config_digest"), int(trained.groupby("fold").val_images.first().sum())
    seconds = rows[["compress_s", "evaluate_s", *(f"epoch_s_{epoch}" for epoch in range(1, EPOCHS + 1))]].median()
    accuracies, costs = rows[list(_ACCURACIES)].mean(), rows[["size_bytes", "flops"]].first()
    found = {}
    for digest in accuracies.index:
        start, evaluate, *epochs = seconds.loc[digest]
        found[digest] = Measured(
            costs=costs.loc[digest].astype(float).to_dict(),
            accuracies=tuple(accuracies.loc[digest]),
            seconds=(start + evaluate, *epochs),
        )
    lacking = sum(network.digest(config) not in found for _, config in grid_configs(space))
    if lacking:
        raise SystemExit(
            f"{table} lacks {lacking} configs of the space; `python benchmarks/digits_grid.py` trains them."
        )
    libraries = [Effects.from_json(library) for library in json.loads(EFFECTS.read_text())]
    return Grid("resnet8", space, found, libraries, images)


_SEARCHES: dict[str, Callable[[Grid, int, int], Replay]] = {
    "random": lambda grid, *given: alone(grid, lambda seed: optuna.samplers.RandomSampler(seed=seed), *given),
    "NSGA-II": lambda grid, *given: alone(grid, lambda seed: optuna.samplers.NSGAIISampler(seed=seed), *given),
    "TPE": lambda grid, *given: alone(grid, lambda seed: optuna.samplers.TPESampler(seed=seed), *given),
    "TPE, our searcher": lambda grid, *given: ours(grid, "tpe", 0.0, *given),
    "ehvi without effects": lambda grid, *given: ours(grid, "ehvi", 0.0, *given),
    "ehvi": lambda grid, *given: ours(grid, "ehvi", 0.0, *given, effects=True),
    "ehvi, stopping": lambda grid, *given: ours(grid, "ehvi", 0.1, *given, effects=True),
}


def _replay(name: str, seed: int, trials: int, table: Path) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    grid = digits_grid(table)
    best = _best(grid)
    rows, seconds, known = [], 0.0, list[tuple[float, float, float]]()
    for number, spent in enumerate(_SEARCHES[name](grid, seed, trials * (1 + (name == _OURS)))):
        seconds += spent.seconds
        belongs = not any(dominates(other, spent.losses) for other in known)
        if belongs and not spent.stopped:
            known = [other for other in known if not dominates(spent.losses, other)] + [spent.losses]
        rows.append(
            {
                "search": name,
                "seed": seed,
                "trial": number,
                "seconds": seconds,
                "stopped": spent.stopped,
                "stopped_wrongly": spent.stopped and belongs,
                "entered": belongs and not spent.stopped,
                "missing": 1 - volume(known, 1.0) / best[1.0],
                "missing_floor": 1 - volume(known, 1 - _FLOOR) / best[1 - _FLOOR],
            }
        )
    return rows


def _alone_and_together(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Compare the front of one kind of knob alone with our search over all knobs in as many trials."""
    grid = digits_grid(table)
    best = _best(grid)
    together, found = rows[rows.search == _OURS], []
    for kind, words in (
        ("harmonics", ("harmonics_y", "harmonics_x")),
        ("templates", ("pruning_rate",)),
        ("bits", ("bits",)),
    ):
        losses = [
            grid.losses(grid.of(config))
            for point, config in grid_configs(grid.space)
            if all(value == _uncompressed(name) for name, value in point.items() if not name.endswith(words))
        ]
        same = together[together.trial == len(losses) - 1]
        missing = {worst: 1 - volume(losses, worst) / whole for worst, whole in best.items()}
        found.append(
            {
                "knobs": kind,
                "configs": len(losses),
                "missing": missing[1.0],
                "missing_floor": missing[1 - _FLOOR],
                "together_missing": same.missing.mean(),
                "together_missing_floor": same.missing_floor.mean(),
            }
        )
    return pd.DataFrame(found)


def _best(grid: Grid) -> dict[float, float]:
    """Return the hypervolume of the whole grid, from an error of 1 and from that of `_FLOOR`."""
    whole = [grid.losses(measured) for measured in grid.found.values()]
    return {worst: volume(whole, worst) for worst in (1.0, 1 - _FLOOR)}


def _uncompressed(knob: str) -> int | None:
    return 3 if "harmonics" in knob else None


def _at(rows: pd.DataFrame, seconds: float, column: str) -> "pd.Series[float]":
    """Of each seed, what was missing when so many seconds were spent; all where no trial had ended."""
    spent = rows[rows.seconds <= seconds].groupby("seed")[column].last()
    return spent.reindex(rows.seed.unique(), fill_value=1.0)


def _seconds_to(rows: pd.DataFrame, level: float, column: str) -> float:
    """When the mean over seeds was no more than the level missing; infinite where it never was."""
    times = np.sort(rows.seconds.unique())
    low, high = 0, len(times)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _at(rows, times[middle], column).mean() <= level else (middle + 1, high)
    return float(times[low]) if low < len(times) else float("inf")


def _write(rows: pd.DataFrame, arguments: argparse.Namespace) -> None:
    rows.to_parquet(arguments.out / "search_efficiency.parquet", index=False)
    grid = digits_grid(arguments.table).found
    budget = float(rows[rows.search.isin(_BEST_OF_OTHERS)].groupby(["search", "seed"]).seconds.max().min())
    shares = (0.1, 0.2, 1 / 3, 0.5, 1.0)
    lines = [
        "# Hypervolume against seconds spent",
        "",
        f"ResNet-8 on digits, all {len(grid)} configs of a space trained for real (`digits_grid.py`), searches "
        f"replayed, one trial at a time; means over n = {rows.seed.nunique()} seeds. The full budget is "
        f"{budget:.0f} s, what {arguments.trials} trials of Optuna's samplers take. optuna {version('optuna')}.",
        "",
    ]
    for column, title in (("missing", "accuracy from 0"), ("missing_floor", f"accuracy from {_FLOOR:.0%}")):
        lines += [f"## Share of the whole grid's hypervolume that is missing, in thousandths, {title}", ""]
        lines += ["| search | " + " | ".join(f"{share:.0%} of the budget" for share in shares) + " | as the best |"]
        lines += ["|---|" + "---|" * (len(shares) + 1)]
        groups = dict(iter(rows.groupby("search", sort=False)))
        level = min(_at(groups[name], budget, column).mean() for name in _BEST_OF_OTHERS if name in groups)
        for name, group in groups.items():
            cells = [_at(group, share * budget, column) for share in shares]
            told = [f"{1e3 * cell.mean():.1f} +- {1e3 * cell.std() / len(cell) ** 0.5:.1f}" for cell in cells]
            share = _seconds_to(group, level, column) / budget
            reached = f"{share:.0%} of the budget" if share < float("inf") else "never"
            lines.append(f"| {name} | {' | '.join(told)} | {reached} |")
        lines += [
            "",
            f"`as the best`: when its mean is what the best of {', '.join(_BEST_OF_OTHERS)} has in the end.",
            "",
        ]
    stopping = rows[rows.search == _OURS]
    stopped, wrongly = int(stopping.stopped.sum()), int(stopping.stopped_wrongly.sum())
    entered = int(stopping.entered.sum())
    lines += [
        "## Early stopping",
        "",
        f"{_OURS}: {stopped} of {len(stopping)} trials were stopped, {wrongly} of them would have entered the front "
        f"of their time, beside {entered} that did: {wrongly / max(1, wrongly + entered):.1%} of those that belonged "
        "there.",
        "",
        "## One kind of knob alone, and all together",
        "",
        "Missing hypervolume in thousandths (accuracy from 0; from 90 %): of the complete front of one kind of knob, "
        "all others at the uncompressed network's, and of our search over all knobs after as many trials. Bits save no "
        "compute, so bits alone dominate nothing in three objectives.",
        "",
        "| knobs | trials | alone | all knobs |",
        "|---|---|---|---|",
    ]
    for row in _alone_and_together(rows, arguments.table).itertuples():
        alone = f"{1e3 * row.missing:.1f}; {1e3 * row.missing_floor:.1f}"
        together = f"{1e3 * row.together_missing:.1f}; {1e3 * row.together_missing_floor:.1f}"
        lines.append(f"| {row.knobs} | {row.configs} | {alone} | {together} |")
    (arguments.out / "search_efficiency.md").write_text("\n".join([*lines, ""]))
    _draw(rows, budget, arguments.out / "search_efficiency.png")
    print("\n".join(lines))


def _draw(rows: pd.DataFrame, budget: float, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    times = np.linspace(budget / 100, budget, 120)
    for axis, column, title in zip(
        axes, ("missing", "missing_floor"), ("accuracy from 0", f"accuracy from {_FLOOR:.0%}"), strict=True
    ):
        for name, group in rows.groupby("search", sort=False):
            cells = [_at(group, seconds, column) for seconds in times]
            mean = np.array([cell.mean() for cell in cells])
            error = np.array([cell.std() / len(cell) ** 0.5 for cell in cells])
            (line,) = axis.plot(times, mean, label=name, linewidth=2.2 if name == _OURS else 1.3)
            axis.fill_between(times, mean - error, mean + error, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xlabel="seconds of trials", ylabel="missing share of hypervolume", yscale="log", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("ResNet-8 on digits: searches replayed on a grid of real trainings (mean, standard error)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=100, help="trials of each search")
    parser.add_argument("--searches", nargs="+", default=list(_SEARCHES), choices=list(_SEARCHES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    runs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.searches]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        futures = [pool.submit(_replay, name, seed, arguments.trials, arguments.table) for name, seed in runs]
        rows = [row for future in track(futures, f"{len(runs)} searches") for row in future.result()]
    _write(pd.DataFrame(rows), arguments)


if __name__ == "__main__":
    main()
