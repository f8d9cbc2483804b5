"""How long the solver takes that `overtone sketch` chooses networks by, in whole stages and in single layers.

    python benchmarks/sketch_solver.py [--model resnet20] [--seeds 5]

Effects are what the rule of `results.analysis.effects` expects of a network of which nothing was measured, times a
sensitivity of each block: the exponential of a standard normal number, drawn by the seed. A front is the solutions of
`search.optimize.sketch` under its whole grid of limits. Seconds are of the processor, on one thread. Prints a table.
"""

import argparse
import platform
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import scipy
from rich.console import Console
from rich.table import Table
from scipy.optimize import milp
from threadpoolctl import threadpool_limits

from results.analysis.effects import EffectModel
from search.optimize import additive_model
from search.optimize.additive_model import AdditiveModel
from search.optimize.sketch import sketch_front
from search.study.budget import Budget
from spaces import BlockConfig, Network, Space, build_model
from spaces.blocks import Granularity
from spaces.effects import Effects
from spaces.models import RESNET_DEPTHS

_POINTS, _WORST = 12, 2.2
"""Networks that are chosen, and the predicted rise of the loss of ten classes that is no better than a guess."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", choices=[f"resnet{depth}" for depth in RESNET_DEPTHS])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    title = f"{arguments.model}, {platform.machine()}, scipy {scipy.__version__}, {arguments.seeds} seeds; processor s"
    table = Table(title=title, title_justify="left")
    columns = "", "blocks", "forms", "useful", "to describe", "solved", "median", "95 %", "most", "a front"
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    granularities: tuple[Granularity, ...] = ("stage", "layer")
    for granularity in granularities:
        with threadpool_limits(1):
            table.add_row(f"{granularity}s", *_figures(arguments.model, granularity, arguments.seeds))
    Console().print(table)


def _figures(model: str, granularity: Granularity, seeds: int) -> list[str]:
    network = Network.from_module(build_model(model, classes=10, channels=3), (3, 32, 32), granularity)
    space = Space.default(network)
    rule = EffectModel.fit(Effects(loss=0.1, score=0.9, images=512, calibration_images=128, seed=0), network)
    rounds = [_round(space, rule, np.random.default_rng(seed)) for seed in range(seeds)]
    solves = [seconds for round in rounds for seconds in round.solves]
    counts = [str(len(space.choices)), str(rounds[0].forms), f"{np.median([round.useful for round in rounds]):.0f}"]
    described, front = (np.median([getattr(round, name) for round in rounds]) for name in ("described_s", "front_s"))
    return [
        *counts,
        f"{described:.2f}",
        str(len(solves)),
        f"{np.median(solves):.3f}",
        f"{np.quantile(solves, 0.95):.2f}",
        f"{max(solves):.2f}",
        f"{front:.1f}",
    ]


@dataclass
class _Round:
    forms: int
    useful: int
    described_s: float
    front_s: float
    solves: list[float]


def _round(space: Space, rule: EffectModel, rng: np.random.Generator) -> _Round:
    sensitivity = {block: float(np.exp(rng.normal())) for block in space.choices}
    forms = Counter[str]()
    solves: list[float] = []

    def effect(block: str, config: BlockConfig) -> float:
        forms[block] += 1
        return sensitivity[block] * rule.loss_increase(block, config)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        found = milp(*arguments, **options)
        solves.append(time.process_time() - started)
        return found

    started = time.process_time()
    useful = AdditiveModel(space, effect).useful
    described = time.process_time() - started
    described_forms = forms.total()
    started = time.process_time()
    with patch.object(additive_model, "milp", timed):
        sketch_front(space, effect, Budget(), points=_POINTS, worst=_WORST)
    return _Round(described_forms, useful, described, time.process_time() - started, solves)


if __name__ == "__main__":
    main()
