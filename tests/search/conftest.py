"""A small network on few digits, and one Ray for all tests that search."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from search.export import verify
from search.runner.cluster import Resources
from search.study.plan import StudyPlan
from search.study.record import finished_row
from search.study.workload import Workload
from spaces import BlockConfig, Network, NetworkConfig, Space, build_model, save_weights
from trainers.data import DataSpec
from trainers.trial import run_trial

DIGITS = DataSpec(name="digits", train_limit=96)
CONFIG = NetworkConfig(blocks={"layer3": BlockConfig(basis="cosine", harmonics=(2, 2), bits=6, exponent_block=16)})


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet8.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_weights(build_model("resnet8", classes=10, channels=1), path, {})
    return path


@pytest.fixture(scope="session")
def network() -> Network:
    return Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))


@pytest.fixture(scope="session")
def space(network: Network) -> Space:
    return Space.default(network)


@pytest.fixture
def plan(weights: Path) -> StudyPlan:
    return StudyPlan(model="resnet8", weights=str(weights), data=DIGITS, epochs=1, trials=4)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Store(tmp_path / "runs"))


@pytest.fixture
def run_alone(ledger: Ledger, tmp_path: Path) -> Callable[[StudyPlan], str]:
    """Makes a study `s` of a plan's settings with one trial, `abc`, run without Ray, and keeps its model."""

    def run(plan: StudyPlan) -> str:
        workload = Workload.load(plan)
        ledger.create_study(
            "s", {**plan.to_record(), **workload.identity(), "uncompressed": workload.reference(), "warm_started": 0}
        )
        spec = plan.spec(CONFIG, **workload.hashes())
        trial = run_trial(spec, workload.data, "cpu", on_epoch=lambda epoch: None)
        trial.save(tmp_path / "m.safetensors")
        report = {
            "result": json.dumps(trial.result().to_json()),
            "started": datetime.now(UTC).isoformat(),
            "device": "cpu",
            "threads": torch.get_num_threads(),
        }
        suggestion = {"trial": "abc", "number": 0, "spec": spec.to_json()}
        ledger.append(finished_row("s", suggestion, report, ledger.put_model(tmp_path / "m.safetensors")))
        return "s"

    return run


@pytest.fixture(autouse=True)
def time_export(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What times exports, which most tests leave out."""
    untouched = verify.time_export
    monkeypatch.setattr(verify, "time_export", lambda *_: {})
    return untouched


@pytest.fixture
def console() -> Console:
    return Console(stderr=True)


@pytest.fixture
def resources() -> Resources:
    return Resources(gpus_per_trial=0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, with one GPU that is only a number."""
    import ray

    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
