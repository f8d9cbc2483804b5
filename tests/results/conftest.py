"""Rows and ledgers with fresh random content for the tests of results."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import TrialRow, TrialStatus

RowMaker = Callable[..., TrialRow]

ASSETS = Path(__file__).parent / "ledger" / "assets"
UNCOMPRESSED = {
    "score": 0.97,
    "metrics": {"val_top1": 0.97, "val_top5": 0.99, "val_loss": 0.1},
    "size_bytes": 312_000,
    "flops": 25_000_000,
    "macs": 12_500_000,
    "parameters": 78_000,
}
UNSET = ("exponent_block", "exponent_axis", "activation_bits", "activation_block", "arithmetic")
BLOCKS = (
    {"block": "conv1", "basis": None, "harmonics_y": None, "harmonics_x": None, "pruning_rate": None, "groups": None}
    | {"allocation": None, "transform": None, "bits": None}
    | dict.fromkeys(UNSET),
    {"block": "layer1", "basis": "cosine", "harmonics_y": 2, "harmonics_x": 3, "pruning_rate": 0.5, "groups": 2}
    | {"allocation": None, "transform": "scalar", "bits": 8}
    | dict.fromkeys(UNSET),
)
HISTORY = (
    {"epoch": 0, "train_loss": 1.2, "score": 0.5, "metrics": {"val_top1": 0.5, "val_top5": 0.9, "val_loss": 1.1}}
    | {"lr": 0.1, "seconds": 0.4},
    {"epoch": 1, "train_loss": 0.6, "score": 0.8, "metrics": {"val_top1": 0.8, "val_top5": 1.0, "val_loss": 0.7}}
    | {"lr": 0.01, "seconds": 0.4},
)


@pytest.fixture(scope="session")
def make_row() -> RowMaker:
    """A finished row; the keywords replace its values, and its metrics repeat its score."""

    def make(**changes: Any) -> TrialRow:
        number = changes.get("number", 0)
        start = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        values: dict[str, Any] = {
            "study": "demo",
            "trial": f"t{number:09d}",
            "number": number,
            "status": TrialStatus.FINISHED,
            "model": "resnet8",
            "dataset": "digits",
            "init": "least-squares",
            "seed": 0,
            "epochs": 5,
            "epochs_run": 2,
            "config_digest": f"c{number}",
            "spec_digest": f"s{number}",
            "spec": "{}",
            "started_at": start,
            "finished_at": start + timedelta(seconds=30),
            "score": 0.9,
            "score_name": "val_top1",
            "parameters": 10_000,
            "size_bytes": 20_000,
            "macs": 1_000_000,
            "flops": 2_000_000,
            "blocks": BLOCKS,
            "history": HISTORY,
        }
        values |= changes
        metrics = {} if values["score"] is None else {"val_top1": values["score"], "val_loss": 0.3}
        return TrialRow(**{"metrics": metrics, **values})

    return make


@pytest.fixture
def random_rows(make_row: RowMaker, np_rng: np.random.Generator) -> Callable[[int], list[TrialRow]]:
    """Rows with ties and duplicates in every objective, some failed, shuffled."""
    return lambda count: _random_rows(make_row, np_rng, count)


def _random_rows(make_row: RowMaker, rng: np.random.Generator, count: int) -> list[TrialRow]:
    rows = []
    for number in rng.permutation(count):
        flops = int(rng.integers(1, 12)) * 1_000_000
        score = round(float(rng.uniform(0.3, 1.0)), 2)
        values = {
            "number": int(number),
            "score": score,
            "size_bytes": int(rng.integers(1, 40)) * 5_000,
            "macs": flops // 2,
            "flops": flops,
            "latency_ms": float(rng.integers(1, 9)) if rng.random() < 0.8 else float("nan"),
            "latency_b64_ms": float(rng.integers(10, 90)) if rng.random() < 0.8 else None,
            "metrics": {"val_top1": score, "val_top5": round(float(rng.uniform(0.9, 1.0)), 3)},
        }
        if rng.random() < 0.15:
            values |= {"status": TrialStatus.FAILED, "error": "out of memory", "score": None, "metrics": {}}
        rows.append(make_row(**values))
    return rows


RECORD = {
    "score_name": "val_top1",
    "objectives": ["val_top1", "size_bytes", "flops"],
    "uncompressed": UNCOMPRESSED,
    "model": "resnet8",
    "dataset": "digits",
    "epochs": 5,
    "seed": 0,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with the study `demo`, which has no trials yet."""
    ledger = Ledger(Store(tmp_path / "runs"))
    ledger.create_study("demo", RECORD)
    return ledger


@pytest.fixture(scope="session")
def full_ledger(tmp_path_factory: pytest.TempPathFactory, make_row: RowMaker, session_seed: int) -> Ledger:
    """A ledger whose study `demo` has 40 trials and a stored model; shared, so tests only read it."""
    ledger = Ledger(Store(tmp_path_factory.mktemp("full") / "runs"))
    ledger.create_study("demo", RECORD)
    digest = ledger.put_model(b"a packed model")
    for row in _random_rows(make_row, np.random.default_rng(session_seed), 40):
        ledger.append(TrialRow.from_record({**row.to_record(), "model_sha256": digest}))
    return ledger
