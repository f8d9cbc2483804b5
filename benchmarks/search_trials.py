"""Hypervolume against trials: our search and what Optuna's samplers find by themselves, on two grids, by workers.

    python benchmarks/search_trials.py [--seeds 20] [--jobs 2]

Searches are replayed on `digits_grid.parquet` (a ResNet-8, every config trained) and on `zero_shot_grid.parquet` (a
ResNet-20 on CIFAR-10, every config calibrated; its zero-shot accuracy stands for the score). A trial is a trial here,
stopped ones too, whatever its seconds. Effects of single blocks, which `ehvi` measures first, cost at most what one
trial does: they count as one. With several workers as many trials run at a time.

It writes `search_trials.parquet` and `.md`.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from replays import Grid, Replay, alone, ours, volume
from rich.progress import track
from search_efficiency import digits_grid
from zero_shot_grid import zero_shot_grid

from search.runner.effects import EFFECTS_TRIALS

_GRIDS: dict[str, Callable[[], Grid]] = {
    "ResNet-8 on digits, trained": digits_grid,
    "ResNet-20 on CIFAR-10, zero-shot": zero_shot_grid,
}
_SEARCHES: dict[str, Callable[[Grid, int, int], Replay]] = {
    "random": lambda grid, *given: alone(grid, lambda seed: optuna.samplers.RandomSampler(seed=seed), *given),
    "TPE, multivariate": lambda grid, *given: alone(
        grid, lambda seed: optuna.samplers.TPESampler(multivariate=True, seed=seed), *given
    ),
    "ehvi without effects": lambda grid, *given: ours(grid, "ehvi", 0.0, *given),
    "ehvi": lambda grid, *given: ours(grid, "ehvi", 0.0, *given, effects=True),
    "ehvi, 8 workers": lambda grid, *given: ours(grid, "ehvi", 0.0, *given, effects=True, workers=8),
    "ehvi, 64 workers": lambda grid, *given: ours(grid, "ehvi", 0.0, *given, effects=True, workers=64),
}
_AT = (10, 20, 40, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    runs = list(product(_GRIDS, _SEARCHES, range(arguments.seeds)))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = [row for part in track(pool.map(_replay, runs), total=len(runs)) for row in part]
    _write(pd.DataFrame(rows), arguments.out)


@cache
def _grid(name: str) -> tuple[Grid, float]:
    """Return a grid and the hypervolume of all its configs."""
    grid = _GRIDS[name]()
    return grid, volume([grid.losses(measured) for measured in grid.found.values()], 1.0)


def _replay(run: tuple[str, str, int]) -> list[dict[str, Any]]:
    name, search, seed = run
    torch.set_num_threads(1)
    grid, whole = _grid(name)
    charged = EFFECTS_TRIALS if search.startswith("ehvi") and "without" not in search else 0
    known, rows = [], []
    for number, spent in enumerate(_SEARCHES[search](grid, seed, max(_AT)), start=1 + charged):
        known.append(spent.losses)
        if number in _AT:
            row = {"grid": name, "search": search, "seed": seed, "trials": number}
            rows.append({**row, "share": volume(known, 1.0) / whole})
    return rows


def _write(rows: pd.DataFrame, out: Path) -> None:
    rows.to_parquet(out / "search_trials.parquet", index=False)
    lines = [
        "# Share of a grid's hypervolume by trials",
        "",
        f"Means over n = {rows.seed.nunique()} seeds, with standard errors; effects of single blocks count as "
        f"{EFFECTS_TRIALS}. optuna {version('optuna')}.",
    ]
    for name, group in rows.groupby("grid", sort=False):
        lines += ["", f"## {name}", "", "| search | " + " | ".join(f"{count} trials" for count in _AT) + " |"]
        lines += ["|---|" + "---|" * len(_AT)]
        for search, same in group.groupby("search", sort=False):
            shares = same.groupby("trials").share
            told = [f"{mean:.4f} +- {error:.4f}" for mean, error in zip(shares.mean(), shares.sem(), strict=True)]
            lines.append(f"| {search} | {' | '.join(told)} |")
    (out / "search_trials.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
