"""What one draw, one told trial and one status take in a study of 10^2 to 10^5 trials; ResNet-20, default space.

    python benchmarks/long_studies.py [--most 100000] [--draws 15]

Both spaces, of stages and of single layers. Earlier trials are points as a search comes to them: half at random, half
near those; their scores are made up from what the effects rule expects of a network of which nothing was measured, and
noise. A told trial is one of five epochs: early stopping is asked after each. `learned` is the seconds that the
searcher takes to learn from the rows of a study that is resumed. A status is `Study.status()` of a store that holds
such trials, without blocks and histories. Seconds are of the processor, on one thread, medians. Prints a table, and
writes it to `long_studies.md`.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ledger_scale import synthetic
from resnet20_trials import device
from rich.progress import track
from threadpoolctl import threadpool_limits

import overtone as ot
from results.analysis.effects import EffectModel
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.objectives import parse_objectives
from search.optimize.candidates import Candidates, Ints
from search.optimize.forecast import Forecast
from search.optimize.pruner import ConformalPruner
from search.optimize.sampler import ConfigSampler, Observation
from search.optimize.searcher import FrontSearcher
from search.study.budget import Budget, extremes
from spaces import Network, Space, build_model
from spaces.blocks import Granularity
from spaces.effects import Effects
from trainers.spec import TrialSpec

_NAMES = ["val_top1", "size_bytes", "flops"]
_OBJECTIVES = parse_objectives(_NAMES, score_name="val_top1")
_REFERENCE, _IMAGES = 0.9, 5_000
_RUNGS = np.array([-0.02, -0.03, -0.02, -0.01, -0.005, 0.0])
"""What scores lack of the final one, before training and after each epoch."""


class _Study:
    """A searcher of the default space, and trials that never ran."""

    def __init__(self, granularity: Granularity) -> None:
        network = Network.from_module(build_model("resnet20", classes=10, channels=3), (3, 32, 32), granularity)
        self.space = Space.default(network)
        rule = EffectModel.fit(Effects(loss=0.3, score=_REFERENCE, images=512, calibration_images=128, seed=0), network)
        forecast = Forecast.of(rule, _REFERENCE)
        self.candidates = Candidates(self.space, forecast)
        self._slopes = np.array(forecast.slopes)
        self._random = np.random.default_rng(0)
        self._pruner = ConformalPruner(_OBJECTIVES, miss_rate=0.1, forecast=forecast)
        self._sampler = ConfigSampler(self.candidates, _OBJECTIVES, sampler="ehvi", seed=0, images=_IMAGES)
        self.searcher = FrontSearcher(
            self.candidates,
            self._sampler,
            self._pruner,
            budget=Budget(),
            cheapest=extremes(self.space, Budget())[0],
            objectives=_OBJECTIVES,
            make_spec=lambda config: TrialSpec(
                model="resnet20", weights="", weights_sha256="", data_fingerprint="", config=config
            ),
            seed=0,
        )
        self.known = 0

    def learn(self, trials: int) -> float:
        """Learn from as many finished trials as make `trials` in all; return the seconds."""
        seconds = 0.0
        points: list[Ints] = []
        for _ in range(self.known, trials):
            point = self._point(points)
            points = [*points[-63:], point]
            costs, scores = self._measure(point)
            started = time.process_time()
            features = self.candidates.describe(point[None]).features[0]
            self._pruner.observe({**costs, "score": scores[-1]}, scores, features)
            self._sampler.replay(point, Observation(values=[scores[-1], costs["size_bytes"], costs["flops"]]))
            seconds += time.process_time() - started
        self.known = trials
        return seconds

    def draw_and_tell(self, number: int) -> tuple[float, float]:
        """Return the seconds of a draw and of what a trial tells until it ends."""
        started = time.process_time()
        suggestion = self.searcher.suggest(str(number))
        drawn = time.process_time() - started
        assert isinstance(suggestion, dict)
        point = self.candidates.point(TrialSpec.from_json(suggestion["spec"]).config)
        costs, scores = self._measure(point)
        started = time.process_time()
        for rungs in range(1, len(scores) + 1):
            report: dict[str, Any] = {**costs, "scores": scores[:rungs]}
            if rungs < len(scores) and self.searcher.should_stop(str(number), report):
                break
        self.searcher.on_trial_complete(str(number), report | {"status": "finished", "score": report["scores"][-1]})
        return drawn, time.process_time() - started

    def _point(self, points: list[Ints]) -> Ints:
        choices = np.array([len(values) for values in self.candidates.knobs.values()])
        fresh = self._random.integers(choices)
        if not points or self._random.random() < 0.5:
            return fresh
        near = points[self._random.integers(len(points))]
        return np.where(self._random.random(len(choices)) < 0.1, fresh, near)

    def _measure(self, point: Ints) -> tuple[dict[str, float], list[float]]:
        described = self.candidates.describe(point[None])
        rise = float(described.features[0, : len(self._slopes)] @ self._slopes)
        errors = (1 - _REFERENCE) * np.exp(rise + self._random.normal(0, 0.1)) - _RUNGS
        costs = {name: float(values[0]) for name, values in described.costs.items()}
        return costs, np.clip(1 - errors, 0.1, 1.0).tolist()


def _searcher_rows(granularity: Granularity, sizes: list[int], draws: int) -> list[list[str]]:
    study, rows, learned = _Study(granularity), [], 0.0
    study.searcher.begin(10**6)
    for size in track(sizes, f"by {granularity}"):
        learned += study.learn(size)
        seconds = np.array([study.draw_and_tell(size * 100 + number) for number in range(draws)])
        drawn, told = np.median(seconds, axis=0) * 1e3
        study.known += draws
        rows.append([granularity, f"{size:,}", f"{learned:.1f} s", f"{drawn:.0f} ms", f"{told:.1f} ms"])
    return rows


def _status_seconds(size: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Store(folder))
        ledger.create_study("s", {"score_name": "val_top1", "objectives": _NAMES, "trials": 10**6})
        ledger.append_many(synthetic(0, size, np.random.default_rng(0), lists=False))
        seconds = []
        for _ in range(3):
            started = time.process_time()
            ot.load_study("s", store=folder).status()
            seconds.append(time.process_time() - started)
        return float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10**5, help="trials of the longest study")
    parser.add_argument("--draws", type=int, default=15, help="draws that are timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    sizes = [size for size in (10**2, 10**3, 10**4, 10**5) if size <= arguments.most]
    granularities: tuple[Granularity, ...] = ("stage", "layer")
    with threadpool_limits(1):
        rows = [row for name in granularities for row in _searcher_rows(name, sizes, arguments.draws)]
        statuses = [_status_seconds(size) for size in track(sizes, "status")]
    lines = [
        "# Long studies",
        "",
        f"ResNet-20, default space, processor time of one thread, medians of {arguments.draws} draws and of 3 "
        f"statuses; {device()}, numpy {version('numpy')}.",
        "",
        "| blocks | trials | learned, when resumed | one draw | one told trial |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "| trials | one status |",
        "|---|---|",
        *(f"| {size:,} | {seconds:.2f} s |" for size, seconds in zip(sizes, statuses, strict=True)),
        "",
    ]
    (arguments.out / "long_studies.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
