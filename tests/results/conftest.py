"""Rows and ledgers with fresh random content for the tests of results."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import TrialRow, TrialStatus

RowMaker = Callable[..., TrialRow]

ASSETS = Path(__file__).parent / "ledger" / "assets"
UNCOMPRESSED = {
    "val_top1": 0.97,
    "size_bytes": 312_000,
    "flops": 25_000_000,
    "macs": 12_500_000,
    "parameters": 78_000,
}
BLOCKS = (
    {"block": "conv1", "basis": None, "harmonics_y": None, "harmonics_x": None, "pruning_rate": None, "groups": None}
    | {"allocation": None, "transform": None, "bits": None}
    | dict.fromkeys(("exponent_block", "exponent_axis", "activation_block")),
    {"block": "layer1", "basis": "cosine", "harmonics_y": 2, "harmonics_x": 3, "pruning_rate": 0.5, "groups": 2}
    | {"allocation": None, "transform": "scalar", "bits": 8}
    | dict.fromkeys(("exponent_block", "exponent_axis", "activation_block")),
)
CURVE = (
    {"epoch": 0, "train_loss": 1.2, "val_top1": 0.5, "val_top5": 0.9, "val_loss": 1.1, "lr": 0.1, "seconds": 0.4},
    {"epoch": 1, "train_loss": 0.6, "val_top1": 0.8, "val_top5": 1.0, "val_loss": 0.7, "lr": 0.01, "seconds": 0.4},
)


def version_1(table: pa.Table) -> pa.Table:
    """Rows as version 1 of the schema held them, which had no `allocation`; written anew, they make an old file."""
    return _stamped(_without(version_2(table), "blocks", {"allocation"}), 1)


def version_2(table: pa.Table) -> pa.Table:
    """Rows as version 2 held them: no top-5 accuracy, latency of a batch, axis of exponents, blocks of activations."""
    table = _without(version_3(table).drop_columns(["val_top5", "latency_b64_ms"]), "history", {"val_top5"})
    return _stamped(_without(table, "blocks", {"exponent_axis", "activation_block"}), 2)


def version_3(table: pa.Table) -> pa.Table:
    """Rows as version 3 held them, which did not say where a reused trial had been run."""
    return _stamped(table.drop_columns(["reused_from"]), 3)


def _without(table: pa.Table, column: str, fields: set[str]) -> pa.Table:
    """The table without fields in the entries of a list column."""
    lists = table.column(column).combine_chunks()
    lists = lists if isinstance(lists, pa.Array) else pa.array([], type=table.schema.field(column).type)
    names = [entry.name for entry in lists.type.value_type if entry.name not in fields]
    structs = pa.StructArray.from_arrays([lists.values.field(name) for name in names], names)
    old = pa.ListArray.from_arrays(lists.offsets, structs)
    return table.set_column(table.schema.get_field_index(column), column, old)


def _stamped(table: pa.Table, version: int) -> pa.Table:
    stamps = pa.array([version] * table.num_rows, type=pa.int64())
    return table.set_column(table.schema.get_field_index("ledger_version"), "ledger_version", stamps)


@pytest.fixture(scope="session")
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.fixture(scope="session")
def make_row() -> RowMaker:
    """A finished row; the keywords replace its values."""

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
            "val_top1": 0.9,
            "val_loss": 0.3,
            "parameters": 10_000,
            "size_bytes": 20_000,
            "macs": 1_000_000,
            "flops": 2_000_000,
            "blocks": BLOCKS,
            "history": CURVE,
        }
        return TrialRow(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def random_rows(make_row: RowMaker, rng: np.random.Generator) -> Callable[[int], list[TrialRow]]:
    """Rows with ties and duplicates in every objective, some failed, shuffled."""

    def make(count: int) -> list[TrialRow]:
        rows = []
        for number in rng.permutation(count):
            flops = int(rng.integers(1, 12)) * 1_000_000
            values = {
                "number": int(number),
                "val_top1": round(float(rng.uniform(0.3, 1.0)), 2),
                "size_bytes": int(rng.integers(1, 40)) * 5_000,
                "macs": flops // 2,
                "flops": flops,
                "latency_ms": float(rng.integers(1, 9)) if rng.random() < 0.8 else float("nan"),
                "latency_b64_ms": float(rng.integers(10, 90)) if rng.random() < 0.8 else None,
                "val_top5": round(float(rng.uniform(0.9, 1.0)), 3),
            }
            if rng.random() < 0.15:
                values |= {"status": TrialStatus.FAILED, "error": "out of memory", "val_top1": None}
            rows.append(make_row(**values))
        return rows

    return make


RECORD = {
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
def full_ledger(tmp_path_factory: pytest.TempPathFactory, random_rows: Callable[[int], list[TrialRow]]) -> Ledger:
    """A ledger whose study `demo` has 40 trials and a stored model; shared, so tests only read it."""
    ledger = Ledger(Store(tmp_path_factory.mktemp("full") / "runs"))
    ledger.create_study("demo", RECORD)
    digest = ledger.put_model(b"a packed model")
    for row in random_rows(40):
        ledger.append(TrialRow.from_record({**row.to_record(), "model_sha256": digest}))
    return ledger


@pytest.fixture
def s3_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A bucket over the real S3 protocol, on this machine."""
    server_module = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        store = Store(f"s3://user:secret@bucket/prefix?{options}")
        store._files._fs.create_dir("bucket")
        yield store
    finally:
        server.stop()
