"""What a search costs beside its trials: seconds a trial, where trials take no time.

    python benchmarks/search_overhead.py [--trials 100] [--rounds 3]

Each trial reports six times, as one of five epochs does, and computes nothing. Sides take turns in one Ray:

- `Ray's floor`: Ray Tune's random search over actors that are reused;
- `Ray and Optuna`: Ray's own OptunaSearch (TPE), three objectives, actors reused;
- `overtone`, by sampler: all of `overtone search` on the default space of the ResNet-8 for digits: draws, exact costs,
  forecasts for early stopping, rows, front and models in a ledger on disk, progress;
- `Ray's default`: the floor with a new actor for each trial, as class trainables are run by default.

Seconds a trial are those from the end of the fifth to the end of the last, over `--trials` trials between them, so what
begins and ends a search is not counted. Of ours, what the searcher (suggesting, learning) and the ledger (rows, front,
progress) take is timed where they are called; the rest is Ray's. Writes `search_overhead.parquet` and
`search_overhead.md`.
"""

import argparse
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import pandas as pd
import ray
import torch
from ray import tune
from ray.tune.result import DONE
from ray.tune.search.optuna import OptunaSearch
from resnet20_trials import device

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.api.create import begin_study
from search.optimize.searcher import FrontSearcher
from search.runner import engine
from search.runner.cluster import Resources
from search.runner.study_callback import StudyCallback
from search.runner.trainable import TrialActor
from search.study.objects import NO_OBJECTS
from search.study.plan import StudyPlan
from spaces import build_model, save_weights
from trainers.score import SCORE_NAME
from trainers.spec import TrialSpec

_STEPS = 6
_START = 5
_OBJECTIVES = {"val_top1": "max", "size_bytes": "min", "flops": "min"}

_spent: defaultdict[str, float] = defaultdict(float)
_ends: list[float] = []


class _Clock(tune.Callback):
    """Notes when each trial ended."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _end()


def _end() -> None:
    _ends.append(time.perf_counter())
    if len(_ends) == _START:
        _spent.clear()


class _Idle(tune.Trainable):
    """Reports at once."""

    def setup(self, config: dict[str, Any]) -> None:
        self._config, self._step = config, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config, self._step = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        self._step += 1
        x = float(self._config["x0"])
        return {"val_top1": x, "size_bytes": x * x, "flops": 1 - x, DONE: self._step == _STEPS}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass


class _IdleTrial(TrialActor):
    """A trial of a search that measures nothing: its scores are made up from its config."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._step, self._identity = 0, dict[str, Any]()
        return super().reset_config(new_config)

    def _advance(self) -> dict[str, Any]:
        self._step += 1
        self._identity = self._identity or self._identify()
        noise = int(hashlib.sha256(self._config["trial"].encode()).hexdigest()[:6], 16) / 16**6
        scores = [0.9 + 0.05 * noise + 0.004 * step for step in range(self._step)]
        epoch = {"train_loss": 0.1, "metrics": {"val_top5": 1.0, "val_loss": 0.1}, "lr": 0.01, "seconds": 0.0}
        history = [{"epoch": n + 1, "score": score, **epoch} for n, score in enumerate(scores[1:])]
        names = ("latency_ms", "latency_b64_ms", "compress_s", "finetune_s", "evaluate_s")
        measured = {"score": scores[-1], "init_score": scores[0], "score_name": SCORE_NAME, "metrics": {}}
        result = json.dumps({**self._identity, **measured, **dict.fromkeys(names), "history": history})
        known = {"result": result, "scores": scores, **self._identity["cost"]}
        if self._step < _STEPS:
            return {**self._report("running"), **known}
        packed = {"model_sha256": self._save(self._write)}
        return {**self._report("finished"), **known, "score": scores[-1], **packed, DONE: True}

    def _write(self, path: Path) -> None:
        path.write_bytes(self._config["trial"].encode() * 1000)

    def _identify(self) -> dict[str, Any]:
        """Return what a real trial works out once."""
        spec = TrialSpec.from_json(self._config["spec"])
        cost = self._network.cost(spec.config)
        return {
            "cost": {**asdict(cost), "flops": cost.flops},
            "config_digest": self._network.digest(spec.config),
            "spec_digest": spec.digest(self._network),
        }


def _ray(trials: int, *, reuse: bool, optuna_search: bool, at_once: int) -> None:
    searching: dict[str, Any] = {}
    if optuna_search:
        sampler = optuna.samplers.TPESampler(seed=0)
        searching["search_alg"] = OptunaSearch(
            metric=list(_OBJECTIVES), mode=list(_OBJECTIVES.values()), sampler=sampler
        )
    checkpoints = tune.CheckpointConfig(checkpoint_at_end=False if reuse else None)  # by default there is one
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(_Idle, {"cpu": 1}),
            param_space={f"x{i}": tune.uniform(0, 1) for i in range(8)},
            tune_config=tune.TuneConfig(
                num_samples=trials, reuse_actors=reuse, max_concurrent_trials=at_once, **searching
            ),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, checkpoint_config=checkpoints, callbacks=[_Clock()]
            ),
        ).fit()


def _overtone(trials: int, *, sampler: str, weights: Path, at_once: int) -> None:
    plan = StudyPlan(model="resnet8", weights=str(weights), trials=trials, sampler=sampler)
    with tempfile.TemporaryDirectory() as folder:
        study = begin_study(Ledger(Store(folder)), "s", plan, NO_OBJECTS, progress=False)
        study.optimize(resources=Resources(gpus_per_trial=0, concurrency=at_once), progress=False)


def _timed(kind: type, name: str, part: str) -> None:
    """Add up what calls of a method take."""
    method = getattr(kind, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            _spent[part] += time.perf_counter() - start

    setattr(kind, name, call)


def _noted(kind: type[StudyCallback]) -> None:
    """Note when each trial of ours ended, a row and all."""
    method = kind.on_trial_complete

    def call(self: StudyCallback, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        _end()

    patch.object(kind, "on_trial_complete", call).start()


def _seconds(side: Callable[[int], None], trials: int) -> dict[str, float]:
    _spent.clear()
    _ends.clear()
    side(_START + trials)
    return {part: spent / trials for part, spent in {"seconds": _ends[-1] - _ends[_START - 1], **_spent}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--samplers", nargs="+", default=["ehvi", "tpe"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", RAY_AIR_NEW_OUTPUT="0")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ray.init(num_cpus=arguments.at_once, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    patch.object(engine, "TrialActor", _IdleTrial).start()
    for name in ("suggest", "on_trial_complete", "should_stop"):
        _timed(FrontSearcher, name, "searcher_s")
    for name in ("on_trial_start", "on_trial_complete", "on_step_end"):
        _timed(StudyCallback, name, "ledger_s")
    _noted(StudyCallback)
    at_once, rows = arguments.at_once, []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        torch.manual_seed(0)
        save_weights(build_model("resnet8", classes=10, channels=1), weights, {})
        sides: dict[str, Callable[[int], None]] = {
            "Ray's floor": partial(_ray, reuse=True, optuna_search=False, at_once=at_once),
            "Ray and Optuna": partial(_ray, reuse=True, optuna_search=True, at_once=at_once),
            **{
                f"overtone, {sampler}": partial(_overtone, sampler=sampler, weights=weights, at_once=at_once)
                for sampler in arguments.samplers
            },
            "Ray's default": partial(_ray, reuse=False, optuna_search=False, at_once=at_once),
        }
        for turn in range(arguments.rounds):
            for name, side in sides.items():
                each = _seconds(side, arguments.trials)
                rows.append({"side": name, "round": turn, **each, "load": os.getloadavg()[0]})
                print(f"round {turn + 1}, {name}: {1e3 * each['seconds']:.0f} ms a trial", flush=True)
    _write(pd.DataFrame(rows), arguments)


def _range(values: pd.Series) -> str:
    return f"{values.median():.0f} ({values.min():.0f} to {values.max():.0f})"


def _write(rows: pd.DataFrame, arguments: argparse.Namespace) -> None:
    rows["device"], rows["ray"], rows["optuna"] = device(), version("ray"), version("optuna")
    rows.to_parquet(arguments.out / "search_overhead.parquet", index=False)
    rounds = rows.set_index(["side", "round"]).seconds.unstack("side")
    lines = [
        "# Overhead of a search",
        "",
        f"{arguments.trials} trials that compute nothing and report {_STEPS} times, {arguments.at_once} at a time, "
        f"{device()}, ray {version('ray')}, optuna {version('optuna')}; medians (and ranges) over "
        f"n = {arguments.rounds} rounds, load {rows.load.min():.1f} to {rows.load.max():.1f}.",
        "",
        "| side | ms a trial | against Ray's floor | against Ray's default | searcher | ledger | Ray |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, group in rows.groupby("side", sort=False):
        floor, default = (
            (rounds[name] / rounds["Ray's floor"]).median(),
            (rounds["Ray's default"] / rounds[name]).median(),
        )
        parts = ["", "", ""]
        if group.searcher_s.notna().all() if "searcher_s" in group else False:
            rest = group.seconds - group.searcher_s - group.ledger_s
            parts = [f"{1e3 * part.median():.0f} ms" for part in (group.searcher_s, group.ledger_s, rest)]
        lines.append(
            f"| {name} | {_range(1e3 * group.seconds)} | {floor:.2f} x | 1 / {default:.1f} | {' | '.join(parts)} |"
        )
    (arguments.out / "search_overhead.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
