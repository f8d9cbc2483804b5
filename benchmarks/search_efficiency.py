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
- `ehvi`: our sampler, `overtone search --miss-rate 0`; `ehvi, stopping`: our default, which stops trials early.

The last runs on for twice as many trials, since seconds are compared.

Hypervolume is the study's own (accuracy from 0, costs from the uncompressed network's), and told as what is missing of
the whole grid's; beside it that of accuracies from 90 % up alone. Writes `search_efficiency.parquet`, `.md` and `.png`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import moocore
import numpy as np
import optuna
import pandas as pd
import torch
from digits_grid import EPOCHS, TABLE, grid_configs, grid_network, grid_space
from rich.progress import track

from results.objectives import parse_objectives
from search.optimize.candidates import Candidates
from search.optimize.initial import first_configs
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import ConfigSampler
from search.optimize.searcher import FrontSearcher
from search.study.budget import Budget, extremes
from spaces import Network, NetworkConfig, Space
from trainers.spec import TrialSpec

_OBJECTIVES = parse_objectives(("val_top1", "size_bytes", "flops"), score_name="val_top1")
_ACCURACIES = ("init_score", *(f"val_top1_{epoch}" for epoch in range(1, EPOCHS + 1)))
_FLOOR = 0.9
_BEST_OF_OTHERS = ("random", "NSGA-II", "TPE")
_OURS = "ehvi, stopping"
_KINDS = {"harmonics": ("harmonics_y", "harmonics_x"), "templates": ("pruning_rate",), "bits": ("bits",)}


@dataclass(frozen=True)
class Measured:
    """What the grid knows of a config."""

    costs: dict[str, float]
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]
    """Of the start and its validation, then of each epoch."""


@dataclass(frozen=True)
class Spent:
    """A trial of a replay."""

    seconds: float
    losses: tuple[float, float, float]
    """Error, and costs as shares of the uncompressed network's, at its end, which a stopped trial does not reach."""
    stopped: bool = False


Replay = Iterator[Spent]


@cache
def _grid(table: Path) -> tuple[Network, Space, dict[str, Measured]]:
    network = grid_network()
    space = grid_space(network)
    rows = pd.read_parquet(table).groupby("config_digest")
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
    return network, space, found


def _losses(measured: Measured, network: Network) -> tuple[float, float, float]:
    whole = network.cost(NetworkConfig())
    return (
        1 - measured.accuracies[-1],
        measured.costs["size_bytes"] / whole.size_bytes,
        measured.costs["flops"] / whole.flops,
    )


def _alone(make: Callable[[int], optuna.samplers.BaseSampler], seed: int, trials: int, table: Path) -> Replay:
    """Optuna by itself."""
    network, space, grid = _grid(table)
    knobs = {name: values for name, values in space.knobs.items() if len(values) > 1}
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=make(seed))
    for _ in range(trials):
        trial = study.ask()
        values = {name: choices[trial.suggest_int(name, 0, len(choices) - 1)] for name, choices in knobs.items()}
        measured = grid[network.digest(space.decode(values))]
        study.tell(trial, [measured.accuracies[-1], measured.costs["size_bytes"], measured.costs["flops"]])
        yield Spent(sum(measured.seconds), _losses(measured, network))


def _ours(sampler: str, miss_rate: float, seed: int, trials: int, table: Path) -> Replay:
    """Search as `overtone search` does, with the grid's answers."""
    network, space, grid = _grid(table)
    candidates, limits = Candidates(space), extremes(space, Budget())
    searcher = FrontSearcher(
        candidates,
        ConfigSampler(candidates, _OBJECTIVES, sampler=sampler, seed=seed),
        ConformalPruner(_OBJECTIVES, miss_rate=miss_rate),
        budget=Budget(),
        cheapest=limits[0],
        objectives=_OBJECTIVES,
        make_spec=lambda config: TrialSpec(
            model="resnet8", weights="", weights_sha256="", data_fingerprint="", config=config
        ),
        seed=seed,
    )
    searcher.begin(trials, first=first_configs(space, "resnet8", limits, forecast=False))
    for number in range(trials):
        suggestion = searcher.suggest(str(number))
        if not isinstance(suggestion, dict):
            return
        measured = grid[network.digest(NetworkConfig.from_json(suggestion["spec"]["config"]))]
        for run in range(1, len(measured.accuracies) + 1):
            report: dict[str, Any] = {**measured.costs, "scores": list(measured.accuracies[:run])}
            if run < len(measured.accuracies) and searcher.should_stop(str(number), report):
                break
        stopped = str(number) in searcher.stopped
        searcher.on_trial_complete(str(number), report | {"status": "finished", "score": measured.accuracies[-1]})
        yield Spent(sum(measured.seconds[:run]), _losses(measured, network), stopped)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


_SEARCHES: dict[str, Callable[[int, int, Path], Replay]] = {
    "random": lambda *given: _alone(lambda seed: optuna.samplers.RandomSampler(seed=seed), *given),
    "NSGA-II": lambda *given: _alone(lambda seed: optuna.samplers.NSGAIISampler(seed=seed), *given),
    "TPE": lambda *given: _alone(lambda seed: optuna.samplers.TPESampler(seed=seed), *given),
    "TPE, our searcher": lambda *given: _ours("tpe", 0.0, *given),
    "ehvi": lambda *given: _ours("ehvi", 0.0, *given),
    "ehvi, stopping": lambda *given: _ours("ehvi", 0.1, *given),
}


def _volume(losses: Sequence[Sequence[float]], worst: float) -> float:
    """Dominated hypervolume, as a share of the box below an error of `worst` and the uncompressed network's costs."""
    points = np.array([[error / worst, *costs] for error, *costs in losses])
    points = points[(points < 1).all(axis=1)] if len(points) else points
    return float(moocore.hypervolume(points, ref=np.ones(3))) if len(points) else 0.0


def _replay(name: str, seed: int, trials: int, table: Path) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    network, _, grid = _grid(table)
    whole = [_losses(measured, network) for measured in grid.values()]
    best = {worst: _volume(whole, worst) for worst in (1.0, 1 - _FLOOR)}
    rows, seconds, known = [], 0.0, list[tuple[float, float, float]]()
    for number, spent in enumerate(_SEARCHES[name](seed, trials * (1 + (name == _OURS)), table)):
        seconds += spent.seconds
        belongs = not any(_dominates(other, spent.losses) for other in known)
        if belongs and not spent.stopped:
            known = [other for other in known if not _dominates(spent.losses, other)] + [spent.losses]
        rows.append(
            {
                "search": name,
                "seed": seed,
                "trial": number,
                "seconds": seconds,
                "stopped": spent.stopped,
                "stopped_wrongly": spent.stopped and belongs,
                "entered": belongs and not spent.stopped,
                "missing": 1 - _volume(known, 1.0) / best[1.0],
                "missing_floor": 1 - _volume(known, 1 - _FLOOR) / best[1 - _FLOOR],
            }
        )
    return rows


def _alone_and_together(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """Compare the front of one kind of knob alone with our search over all knobs in as many trials."""
    network, space, grid = _grid(table)
    whole = [_losses(measured, network) for measured in grid.values()]
    best = {worst: _volume(whole, worst) for worst in (1.0, 1 - _FLOOR)}
    ours, found = rows[rows.search == _OURS], []
    for kind, words in (
        ("harmonics", ("harmonics_y", "harmonics_x")),
        ("templates", ("pruning_rate",)),
        ("bits", ("bits",)),
    ):
        losses = [
            _losses(grid[network.digest(config)], network)
            for point, config in grid_configs(space)
            if all(value == _uncompressed(name) for name, value in point.items() if not name.endswith(words))
        ]
        same = ours[ours.trial == len(losses) - 1]
        missing = {worst: 1 - _volume(losses, worst) / volume for worst, volume in best.items()}
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
    grid = _grid(arguments.table)[2]
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
