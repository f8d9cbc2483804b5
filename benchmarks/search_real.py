"""Real searches against configs that a person would write down: ResNet-20, CIFAR-10 as JPEG images.

    python benchmarks/search_real.py --data DIR --weights FILE [--minutes 600] [--only hand stage layer tpe] [--seed 0]

Every trial is one of `overtone search`: the calibrated start, then five epochs over the first 5,000 training images,
half of the targets from the uncompressed network. The weights have seen all training images, so scores are those on
5,000 of the test images. Searches have all defaults:

- `stage`: stages are the blocks, 40 trials; `layer`: single layers are; each with three seeds;
- `tpe`: Optuna's TPE in our searcher, stages, 60 trials with one seed;
- `hand`: ten configs written by hand, trained in the same way with the same seeds.

Searches run in this process, one trial at a time and with one thread, from the searcher that `overtone search` makes.
A trial is kept as it ends, in `search_real/STUDY-SEED.parquet`, and the same command goes on from there; `--minutes`
ends it in time, after a trial. Several may run side by side if each has studies of its own (`--only`, `--seed`). A
config that any study has trained with a seed is not trained again with that seed, and its seconds are charged again.
Seconds are those of the processor, of the effects of single blocks (at most one trial's, kept beside the studies), of
the trials and of the searcher: what else the machine does tells in them little.

Writes `search_real.md` and `search_real.png`. `--tiny` tries all of it on digits in a few seconds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import moocore
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measured_effects import measured_effects
from resnet20_trials import device
from threadpoolctl import threadpool_limits
from torch import nn

from results.analysis.effects import EffectModel
from search.optimize.forecast import Forecast
from search.optimize.initial import first_configs
from search.runner.effects import planned_effects
from search.runner.launch import make_searcher
from search.study.budget import Budget, extremes
from search.study.plan import StudyPlan
from search.study.workload import Workload, make_space
from spaces import BlockConfig, Network, NetworkConfig, Space, state_sha256
from spaces.blocks import Granularity
from spaces.effects import Effects
from spaces.network import NORMS_AND_BIASES
from trainers.data import Data, DataSpec, load_data
from trainers.runtime.device import keep_freed_memory
from trainers.spec import TrialSpec
from trainers.train import random_network, train_model
from trainers.training.recipe import RECIPES
from trainers.trial import Trial, load_baseline

STUDIES: dict[str, dict[str, Any]] = {
    "hand": {},
    "stage": {"granularity": "stage", "trials": 40},
    "layer": {"granularity": "layer", "trials": 40},
    "tpe": {"granularity": "stage", "trials": 60, "sampler": "tpe"},
}
"""What each has besides defaults."""
_ONE_SEED = ("tpe",)
_FLOOR = 0.8
_BETTER, _WITHIN, _SMALLER = 0.005, 0.003, 0.8
"""What counts as better than a config written by hand: so many points more at no more bytes and FLOPs, or within so
many points at such a share of the bytes and no more FLOPs."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What all studies share."""

    plan: StudyPlan
    data: Data
    baseline: nn.Module
    trials: int | None
    """Trials of each search, None for its own number."""

    @classmethod
    def load(cls, arguments: argparse.Namespace) -> "Subject":
        """Load what the options name; for `--tiny` train a ResNet-8 on digits."""
        recipe = RECIPES["finetune"]
        if arguments.tiny:
            data = load_data(DataSpec(train_limit=128))
            baseline = random_network("resnet8", data, seed=0)
            train_model(baseline, data, RECIPES["baseline"], epochs=2, seed=0, device="cpu")
            plan = StudyPlan(model="resnet8", weights="", data=DataSpec(train_limit=128), recipe=recipe, epochs=4)
            return cls(plan, data, baseline.eval(), trials=4)
        spec = DataSpec(name=f"parquet:{arguments.data}", val_from="test", train_limit=arguments.train_limit)
        data = load_data(spec)
        baseline, _ = load_baseline("resnet20", arguments.weights, data)
        plan = StudyPlan(model="resnet20", weights="", recipe=recipe, epochs=arguments.epochs)
        return cls(plan, data, baseline, trials=None)

    def workload(self, granularity: Granularity = "stage") -> Workload:
        """Return what all trials share, the network in these blocks."""
        return Workload(
            data=self.data,
            baseline=self.baseline,
            network=Network.from_module(self.baseline, self.data.val.image_shape, granularity),
            weights_sha256=state_sha256(self.baseline),
            network_identity={},
        )


class Trained:
    """One config's training, as far as it is known or asked for: scores and seconds of the start and of each epoch."""

    def __init__(self, workload: Workload, spec: TrialSpec, known: Row | None, checkpoint: Path):
        self.scores = [] if known is None else list(known["scores"])
        self.seconds = [] if known is None else list(known["seconds"])
        self._workload, self._spec, self._checkpoint = workload, spec, checkpoint
        self._trial: Trial | None = None

    def until(self, rungs: int) -> None:
        """Train until there are so many scores."""
        while len(self.scores) < rungs:
            started = time.process_time()
            if self._trial is None:
                self._begin()
                started = time.process_time() if self.scores else started
            assert self._trial is not None
            if self.scores:
                next(self._epochs)
            history = self._trial.history
            self.scores.append(history[-1].score if history else self._trial.initial.top1)
            self.seconds.append(time.process_time() - started)

    def keep(self) -> None:
        """Leave a checkpoint of a training that may be asked for more."""
        if self._trial is not None and self._trial.history and not self._trial.ended:
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
            self._trial.checkpoint(self._checkpoint)

    def _begin(self) -> None:
        """Begin the training, or go on with it from where its scores are known."""
        self._trial = Trial(
            self._spec,
            data=self._workload.data,
            baseline=self._workload.baseline,
            network=self._workload.network,
            device="cpu",
            resume_from=self._checkpoint if self.scores and self._checkpoint.exists() else None,
        )
        self._epochs = self._trial.epochs()
        while 1 + len(self._trial.history) < len(self.scores):
            next(self._epochs)


class Studies:
    """The rows of all studies, a file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def rows(self, study: str, seed: int) -> list[Row]:
        """Return the rows of one study so far."""
        path = self._path(study, seed)
        rows: list[Row] = pq.read_table(path).to_pylist() if path.exists() else []
        return rows

    def all_rows(self) -> pd.DataFrame:
        """Return the rows of all studies, as `STUDIES` has them."""
        paths = [path for name in STUDIES for path in sorted(self.folder.glob(f"{name}-*.parquet"))]
        return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True) if paths else pd.DataFrame()

    def known(self, digest: str, seed: int) -> Row | None:
        """Return the row of this config and seed that has most epochs, of any study."""
        found = [row for name in STUDIES for row in self.rows(name, seed) if row["config_digest"] == digest]
        return max(found, key=lambda row: len(row["scores"]), default=None)

    def append(self, study: str, seed: int, row: Row) -> None:
        """Keep a row."""
        path = self._path(study, seed)
        scratch = path.with_name(f".{path.name}.tmp")
        pq.write_table(pa.Table.from_pylist([*self.rows(study, seed), row]), scratch)
        scratch.replace(path)

    def _path(self, study: str, seed: int) -> Path:
        return self.folder / f"{study}-{seed}.parquet"


class Clock:
    """Says when it is too late to begin another trial."""

    def __init__(self, minutes: float | None) -> None:
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes
        self._longest = 0.0

    def trials(self) -> Iterator[None]:
        """Yield for each trial that will end in time, as long as the longest took."""
        while self._ends is None or time.monotonic() + self._longest < self._ends:
            started = time.monotonic()
            yield
            self._longest = max(self._longest, time.monotonic() - started)
        raise TimeoutError("the minutes are over; the same command goes on from here")


def hand_configs() -> dict[str, NetworkConfig]:
    """Ten configs that a practitioner would write down; norms and biases have 8 bits in all."""
    return {
        "2 x 2 per filter, 4 bits": everywhere((2, 2, 2, 2), 4, allocation="filter"),
        "2 x 2 per filter, 3 bits": everywhere((2, 2, 2, 2), 3, allocation="filter"),
        "8 bits": everywhere((3, 3, 3, 3), 8),
        "4 bits": everywhere((3, 3, 3, 3), 4),
        "3 bits": everywhere((3, 3, 3, 3), 3),
        "rate 0.5, 4 bits": everywhere((3, 3, 3, 3), 4, rate=0.5),
        "rate 0.75, 4 bits": everywhere((3, 3, 3, 3), 4, rate=0.75),
        "3,3,3,2, 4 bits": everywhere((3, 3, 3, 2), 4),
        "3,3,2,2, 4 bits": everywhere((3, 3, 2, 2), 4),
        "3,2,2,2, 4 bits": everywhere((3, 2, 2, 2), 4),
    }


def everywhere(
    harmonics: Sequence[int], bits: int, *, allocation: Any = None, rate: float | None = None
) -> NetworkConfig:
    plain = BlockConfig(bits=bits, exponent_block=16)
    blocks = {"linear": plain, NORMS_AND_BIASES: BlockConfig(bits=8)}
    for stage, n in zip(("conv1", "layer1", "layer2", "layer3"), harmonics, strict=True):
        series: dict[str, Any] = {"basis": "cosine", "harmonics": (n, n), "allocation": allocation} if n < 3 else {}
        blocks[stage] = replace(plain, **series, pruning_rate=rate)
    return NetworkConfig(blocks=blocks)


def run_hand(subject: Subject, studies: Studies, seed: int, scratch: Path, clock: Iterator[None]) -> None:
    """Train the configs written by hand, those that are missing."""
    workload = subject.workload()
    plan = replace(subject.plan, seed=seed)
    done = {row["name"] for row in studies.rows("hand", seed)}
    for number, (name, config) in enumerate(hand_configs().items()):
        if name in done:
            continue
        next(clock)
        spec = plan.spec(workload.network.canonical(config), **workload.hashes())
        trained = _trained(workload, studies, spec, scratch)
        trained.until(1 + plan.epochs)
        row = _row(workload, spec, trained, 1 + plan.epochs, study="hand", number=number, name=name)
        studies.append("hand", seed, row)
        _tell(row)


def run_search(study: str, subject: Subject, studies: Studies, seed: int, scratch: Path, clock: Iterator[None]) -> None:
    """Search as `overtone search` does, from where the study's rows end."""
    plan = replace(subject.plan, seed=seed, **STUDIES[study])
    plan = plan if subject.trials is None else replace(plan, trials=subject.trials)
    past = studies.rows(study, seed)
    if len(past) >= plan.trials:
        return
    workload = subject.workload(plan.granularity)
    space = make_space(plan, workload.network)
    limits = extremes(space, Budget())
    forecast, effects_s = _forecast(studies.folder / f"{study}-{seed}.effects.json", workload, space, plan, clock)
    learned = [_as_ledger_row(row, plan, workload) for row in past]
    searcher = make_searcher(plan, space, limits, workload, learned, forecast)
    first = first_configs(space, plan.model, limits, forecast=forecast is not None)
    searcher.begin(plan.trials - len(past), first=first)
    for trial in map(str, range(len(past), plan.trials)):
        next(clock)
        started = time.process_time()
        suggestion = searcher.suggest(trial)
        if not isinstance(suggestion, dict):
            return
        searcher_s = time.process_time() - started
        spec = TrialSpec.from_json(suggestion["spec"])
        trained = _trained(workload, studies, spec, scratch)
        costs = _costs(workload.network, spec.config)
        for rungs in range(1, plan.epochs + 2):
            trained.until(rungs)
            report: Row = {**costs, "scores": trained.scores[:rungs]}
            started = time.process_time()
            stopped = rungs <= plan.epochs and searcher.should_stop(trial, report)
            searcher_s += time.process_time() - started
            if stopped:
                trained.keep()
                break
        started = time.process_time()
        searcher.on_trial_complete(trial, report | {"status": "finished", "score": report["scores"][-1]})
        searcher_s += time.process_time() - started
        row = _row(workload, spec, trained, rungs, study=study, number=suggestion["number"], name="")
        row["searcher_s"], row["effects_s"] = searcher_s, 0.0 if trial != "0" else effects_s
        studies.append(study, seed, row)
        _tell(row)


def _forecast(
    path: Path, workload: Workload, space: Space, plan: StudyPlan, clock: Iterator[None]
) -> tuple[Forecast | None, float]:
    """Return what the effects of single blocks say, and their seconds; measured first unless they are in the file."""
    planned = planned_effects(space, workload, plan.epochs)
    if plan.sampler != StudyPlan.sampler or not planned:
        return None, 0.0
    if not path.exists():
        next(clock)
        effects = measured_effects(
            planned,
            workload.data,
            workload.baseline,
            workload.network,
            minimum_templates=plan.minimum_templates,
            seed=plan.seed,
        )
        path.write_text(json.dumps(effects.to_json()))
    effects = Effects.from_json(json.loads(path.read_text()))
    model = EffectModel.fit(effects, space.network, plan.minimum_templates)
    return Forecast.of(model, workload.reference()["score"]), effects.seconds


def _trained(workload: Workload, studies: Studies, spec: TrialSpec, scratch: Path) -> Trained:
    digest = workload.network.digest(spec.config)
    known = studies.known(digest, spec.seed)
    return Trained(workload, spec, known, scratch / f"{digest}-{spec.seed}.checkpoint")


def _costs(network: Network, config: NetworkConfig) -> dict[str, int]:
    cost = network.cost(config)
    return {
        "parameters": cost.parameters,
        "size_bytes": cost.size_bytes,
        "macs": cost.macs,
        "flops": cost.flops,
    }


def _row(workload: Workload, spec: TrialSpec, trained: Trained, rungs: int, **about: Any) -> Row:
    """Return what is kept of a trial that ended with so many scores."""
    network = workload.network
    costs, whole = _costs(network, spec.config), _costs(network, NetworkConfig())
    finished = rungs == 1 + spec.epochs
    return {
        **about,
        "seed": spec.seed,
        "config_digest": network.digest(spec.config),
        "config": json.dumps(spec.config.to_json()),
        "status": "finished" if finished else "pruned",
        "score": trained.scores[-1] if finished else None,
        "scores": trained.scores[:rungs],
        "seconds": trained.seconds[:rungs],
        "searcher_s": 0.0,
        "effects_s": 0.0,
        **costs,
        "size_share": costs["size_bytes"] / whole["size_bytes"],
        "flops_share": costs["flops"] / whole["flops"],
        "epochs": spec.epochs,
        "train_images": len(workload.data.train),
        "val_images": len(workload.data.val),
        "device": device(),
        "torch": version("torch"),
    }


def _as_ledger_row(row: Row, plan: StudyPlan, workload: Workload) -> Row:
    """Return a row as the searcher learns from a study's ledger."""
    config = NetworkConfig.from_json(json.loads(row["config"]))
    start, *epochs = row["scores"]
    return {
        **row,
        "spec": json.dumps(plan.spec(config, **workload.hashes()).to_json()),
        "init_score": start,
        "history": [{"score": score} for score in epochs],
    }


def _tell(row: Row) -> None:
    scores = " ".join(f"{100 * score:.2f}" for score in row["scores"])
    print(
        f"{row['study']}-{row['seed']} {row['number']:2d} {row['status']:8s} {row['size_bytes'] / 1e3:7.1f} kB "
        f"{row['flops'] / 1e6:6.1f} MFLOPs  {scores}  {sum(row['seconds']):.0f} s {row['name']}",
        flush=True,
    )


def _front(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the finished trials that no other dominates."""
    finished = rows[rows.status == "finished"]
    return finished[moocore.is_nondominated(_losses(finished))] if len(finished) else finished


def _losses(rows: pd.DataFrame) -> Any:
    return np.column_stack([1 - rows.score.astype(float), rows.size_share, rows.flops_share])


def _dominates_any(hand: Any, front: pd.DataFrame) -> bool:
    """Return whether a config written by hand dominates a point of the front."""
    no_worse = (hand.score >= front.score) & (hand.size_bytes <= front.size_bytes) & (hand.flops <= front.flops)
    better = (hand.score > front.score) | (hand.size_bytes < front.size_bytes) | (hand.flops < front.flops)
    return bool((no_worse & better).any())


def _gain(hand: Any, front: pd.DataFrame) -> float:
    """Return by how much the best score at no more bytes and FLOPs is above a hand-written config's; -1 without one."""
    within = front[(front.size_bytes <= hand.size_bytes) & (front.flops <= hand.flops)]
    return float(within.score.max() - hand.score) if len(within) else -1.0


def _share(hand: Any, front: pd.DataFrame) -> float:
    """Return the least bytes at almost its score and no more FLOPs, as a share of its own; infinite without any."""
    within = front[(front.score >= hand.score - _WITHIN - 1e-9) & (front.flops <= hand.flops)]
    return float(within.size_bytes.min() / hand.size_bytes) if len(within) else float("inf")


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each search, seed and config written by hand that both have."""
    found = []
    for (study, seed), trials in rows[rows.study != "hand"].groupby(["study", "seed"], sort=False):
        early, late = (_front(trials[trials.number < count]) for count in (20, 40))
        for hand in rows[(rows.study == "hand") & (rows.seed == seed)].itertuples():
            gain, share = _gain(hand, late), _share(hand, late)
            found.append(
                {
                    "study": study,
                    "seed": seed,
                    "trials": len(trials),
                    "hand": hand.name,
                    "dominates_at_20": _dominates_any(hand, early),
                    "gain_at_40": gain,
                    "bytes_at_40": share,
                    "beaten_at_40": gain >= _BETTER - 1e-9 or share <= _SMALLER,
                }
            )
    return pd.DataFrame(found)


def _volumes(trials: pd.DataFrame, worst: float) -> pd.DataFrame:
    """Return the hypervolume after each trial of a study, and the seconds until then.

    It is a share of the box below an error of `worst` and the uncompressed network's costs.
    """
    trials = trials.sort_values("number")
    seconds = trials.seconds.map(sum) + trials.searcher_s + trials.effects_s
    volumes, points = list[float](), np.empty((0, 3))
    for row in trials.itertuples():
        if row.status == "finished":
            point = [(1 - row.score) / worst, row.size_share, row.flops_share]
            points = np.vstack([points, point]) if max(point) < 1 else points
        volumes.append(float(moocore.hypervolume(points, ref=np.ones(3))) if len(points) else 0.0)
    return pd.DataFrame({"number": trials.number.to_numpy(), "seconds": seconds.cumsum().to_numpy(), "volume": volumes})


def _at(volumes: pd.DataFrame, seconds: float) -> float:
    spent = volumes[volumes.seconds <= seconds]
    return float(spent.volume.iloc[-1]) if len(spent) else 0.0


def write(rows: pd.DataFrame, out: Path) -> None:
    """Write and print what came out so far."""
    last = rows.iloc[-1]
    counts = rows.groupby(["study", "seed"], sort=False).size()
    lines = [
        "# Real searches against configs written by hand",
        "",
        f"{last.train_images:,} training images, {last.epochs} epochs, scores on {last.val_images:,} images, "
        f"{last.device}, one trial at a time, torch {last.torch}. Trials so far: "
        + ", ".join(f"{study} seed {seed}: {count}" for (study, seed), count in counts.items())
        + ".",
        "",
        *_hand_lines(rows),
        *_volume_lines(rows),
    ]
    (out / "search_real.md").write_text("\n".join(lines))
    _draw(rows, out / "search_real.png")
    print("\n".join(lines))


def _hand_lines(rows: pd.DataFrame) -> list[str]:
    compared = compare(rows)
    if compared.empty:
        return []
    studies = list(dict.fromkeys(compared.study))
    lines = [
        "## Against each config written by hand",
        "",
        "`dominates`: seeds in which it dominates a point of the search's front after 20 trials. After 40: points "
        f"gained at no more bytes and FLOPs; the least share of its bytes within {100 * _WITHIN:.1f} points and no "
        f"more FLOPs (mean, and the worst seed); `beaten`: seeds that gain {100 * _BETTER:.1f} points, or need "
        f"{_SMALLER:g} x the bytes.",
        "",
        "| by hand | kB | MFLOPs | % | "
        + " | ".join(f"{study}: dominates | gain | bytes | beaten" for study in studies)
        + " |",
        "|---|---|---|---|" + "---|---|---|---|" * len(studies),
    ]
    for name, hand in rows[rows.study == "hand"].groupby("name", sort=False):
        cells = [
            f"{hand.size_bytes.iloc[0] / 1e3:.1f}",
            f"{hand.flops.iloc[0] / 1e6:.1f}",
            f"{100 * hand.score.mean():.2f}",
        ]
        for study in studies:
            found = compared[(compared.study == study) & (compared.hand == name)]
            gains, shares = 100 * found.gain_at_40, found.bytes_at_40
            cells += [
                f"{found.dominates_at_20.sum()} of {len(found)}",
                f"{gains.mean():+.2f} ({gains.min():+.2f})",
                f"{shares.mean():.2f} ({shares.max():.2f})",
                f"{found.beaten_at_40.sum()} of {len(found)}",
            ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def _volume_lines(rows: pd.DataFrame) -> list[str]:
    groups = dict(iter(rows[rows.study != "hand"].groupby(["study", "seed"], sort=False)))
    if not groups:
        return []
    lines = ["## Hypervolume at equal seconds", ""]
    for worst, title in ((1.0, "accuracy from 0"), (1 - _FLOOR, f"accuracy from {_FLOOR:.0%}")):
        volumes = {key: _volumes(trials, worst) for key, trials in groups.items()}
        budget = min(float(found.seconds.max()) for found in volumes.values())
        studies = list(dict.fromkeys(study for study, _ in groups))
        shares = (0.25, 0.5, 0.75, 1.0)
        lines += [
            f"{title}; mean over seeds (each); 100 % are {budget:.0f} s, the shortest study's.",
            "",
            "| search | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
            "|---|" + "---|" * len(shares),
        ]
        for study in studies:
            own = [found for (name, _), found in volumes.items() if name == study]
            cells = [[_at(found, share * budget) for found in own] for share in shares]
            told = [f"{np.mean(cell):.4f} ({', '.join(f'{v:.4f}' for v in cell)})" for cell in cells]
            lines.append(f"| {study} | {' | '.join(told)} |")
        lines += ["", *_reached(volumes), ""]
    return lines


def _reached(volumes: Mapping[tuple[str, int], pd.DataFrame]) -> list[str]:
    """Tell after how many trials and seconds the other searches have what TPE has in the end."""
    lines = []
    for (_, seed), tpe in ((key, found) for key, found in volumes.items() if key[0] == "tpe"):
        final = tpe.volume.iloc[-1]
        for study, other in ((key[0], found) for key, found in volumes.items() if key[1] == seed and key[0] != "tpe"):
            there = other[other.volume >= final]
            reached = (
                "never" if there.empty else f"after {len(other) - len(there) + 1} trials, {there.seconds.iloc[0]:.0f} s"
            )
            lines.append(
                f"tpe, seed {seed}, has {final:.4f} after {len(tpe)} trials and {tpe.seconds.max():.0f} s; "
                f"{study}: {reached}."
            )
    return lines


def _draw(rows: pd.DataFrame, path: Path) -> None:
    figure, (fronts, volumes) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colors = dict(zip(STUDIES, ("black", "tab:blue", "tab:orange", "tab:green"), strict=True))
    for (study, seed), trials in rows.groupby(["study", "seed"], sort=False):
        label = study if seed == rows[rows.study == study].seed.min() else None
        front = trials if study == "hand" else _front(trials).sort_values("size_bytes")
        style = {"linestyle": "none", "marker": "x"} if study == "hand" else {"marker": ".", "linewidth": 1.0}
        fronts.plot(front.size_bytes / 1e3, 100 * front.score, label=label, color=colors[study], **style)
        if study != "hand":
            found = _volumes(trials, 1 - _FLOOR)
            volumes.step(
                found.seconds / 60, found.volume, where="post", label=label, color=colors[study], linewidth=1.2
            )
    fronts.set(xlabel="kB", ylabel="accuracy (%)", xscale="log", title="fronts, and configs written by hand")
    if rows[rows.status == "finished"].score.max() > _FLOOR:
        fronts.set_ylim(bottom=100 * _FLOOR)
    volumes.set(xlabel="minutes of the processor", ylabel="hypervolume", title=f"accuracy from {_FLOOR:.0%}")
    for axis in (fronts, volumes):
        axis.grid(alpha=0.3)
        axis.legend() if axis.get_legend_handles_labels()[0] else None
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(given: Sequence[str] | None = None) -> None:
    """Run what is missing of the studies that are asked for, and write of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of train-*.parquet and test-*.parquet")
    parser.add_argument("--weights", help="safetensors of the trained ResNet-20")
    parser.add_argument("--train-limit", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--minutes", type=float, help="begin no trial that would end later")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "search_real")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tiny", action="store_true", help="digits, a few trials")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args(given)
    studies = Studies(arguments.out / "search_real")
    if not arguments.report:
        _run(arguments, studies)
    rows = studies.all_rows()
    if len(rows):
        write(rows, arguments.out)


def _run(arguments: argparse.Namespace, studies: Studies) -> None:
    if not arguments.tiny and not (arguments.data and arguments.weights):
        raise SystemExit("--data and --weights must be given, or --tiny or --report")
    torch.set_num_threads(1)
    keep_freed_memory()
    subject = Subject.load(arguments)
    clock = Clock(arguments.minutes).trials()
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    pairs = [(seed, name) for seed, name in product(seeds, arguments.only) if seed == 0 or name not in _ONE_SEED]
    try:
        with threadpool_limits(1, user_api="blas"):
            for seed, name in pairs:
                if name == "hand":
                    run_hand(subject, studies, seed, arguments.scratch, clock)
                else:
                    run_search(name, subject, studies, seed, arguments.scratch, clock)
    except TimeoutError as error:
        print(error)


if __name__ == "__main__":
    main()
