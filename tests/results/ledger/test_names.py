"""Names that every reader takes as they are, against the readers themselves."""

import contextlib
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from layers.errors import UsageError
from results.ledger.ledger import Ledger
from results.ledger.names import check_name, check_new_name
from results.ledger.store import Store
from tests.results.conftest import RECORD

TAKEN_FOR_ANOTHER_TYPE = [
    *(
        "007",
        "0",
        "42",
        "-1",
        "1.5",
        "1e5",
        "1E-5",
        "0x1F",
        "0b1",
        "1_000",
        "1.2.3",
        "2024-01-01",
        "20240101",
        "2024-1",
    ),
    *(
        "2024-01-01T12",
        "20240101T000000Z",
        "2024-01-01Z",
        "true",
        "False",
        "TRUE",
        "null",
        "NULL",
        "None",
        "nan",
        "NaN",
    ),
    *("inf", "-inf", "Infinity", "epoch", "NA", "yes", "off", "__HIVE_DEFAULT_PARTITION__", "-", "_", "1_"),
]
NAMES = [
    *(
        "demo",
        "a",
        "n",
        "e5",
        "x1e5",
        "resnet20",
        "3d",
        "1st",
        "2024-01-01-run",
        "run-2024-01-01",
        "true_",
        "nanometre",
    ),
    *("Null-model", "inference", "_1a", "-x", "a.b", "v1.2", "epochs", "0xg", "1e5x", "10k", "t", "study_007"),
]


def _as_read(folder: Path, name: str) -> list[object]:
    """Return what each reader gives for the documented question after a study's trials."""
    path = folder / "trials" / f"study={name}"
    path.mkdir(parents=True)
    pq.write_table(pa.table({"trial": ["abc"]}), path / "x.parquet")
    found: list[object] = []
    with contextlib.suppress(pa.ArrowException, ValueError, TypeError):
        found.append(pd.read_parquet(folder / "trials", filters=[("study", "=", name)])["study"].tolist())
        found.append(ds.dataset(folder / "trials", partitioning="hive").to_table()["study"].to_pylist())
    source = f"read_parquet('{folder}/trials/**/*.parquet', hive_partitioning = true, union_by_name = true)"
    with contextlib.suppress(duckdb.Error):
        answer = duckdb.execute(f"SELECT study FROM {source} WHERE study = ?", [name]).fetchall()
        found.append([value for (value,) in answer])
    return found


@pytest.mark.parametrize("name", TAKEN_FOR_ANOTHER_TYPE)
def test_a_name_that_readers_take_for_a_value_is_refused(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^study name \(='{name}'\) must not be what readers take for a number, a date"
    ):
        check_new_name(name, [])
    check_name(name)
    suggested = f"study_{name.strip('-')}"
    check_new_name(suggested, [])


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_finds_a_study_by_its_name(name: str, tmp_path: Path) -> None:
    check_new_name(name, NAMES)
    assert _as_read(tmp_path, name) == [[name]] * 3


def test_random_names_are_refused_or_found(np_rng: np.random.Generator, tmp_path: Path) -> None:
    """Of the characters that numbers, dates and special values are made of."""
    taken = 0
    for index in range(400):
        name = "".join(np_rng.choice(list("0123456789012-._eExtTzZinfa"), np_rng.integers(1, 9)))
        try:
            check_new_name(name, [])
        except UsageError:
            continue
        taken += 1
        assert _as_read(tmp_path / str(index), name) == [[name]] * 3, name
    assert taken > 50


@pytest.mark.parametrize("name", ["con", "NUL", "aux.1x", "com1", "LPT9.run", "demo."])
def test_a_name_that_windows_reserves_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"must be a file's on every system: Windows has no file of this name"):
        check_new_name(name, [])
    check_new_name(f"{name}-a".replace(".", "_"), [])


def test_names_differ_in_more_than_case(ledger: Ledger) -> None:
    with pytest.raises(
        UsageError, match=r"study name \(='Demo'\) must differ from 'demo' in more than upper and lower"
    ):
        ledger.create_study("Demo", RECORD)
    with pytest.raises(UsageError, match=r"study 'demo' exists already"):
        ledger.create_study("demo", RECORD)
    assert ledger.studies() == ["demo"]
    data = ledger.store.read_bytes("studies/demo.json")
    ledger.store.write_bytes("studies/DEMO.json", data)  # what a disk that ignores case would answer
    with pytest.raises(UsageError, match=r"study 'DEMO' does not exist"):
        ledger.study("DEMO")


def test_a_study_of_an_older_name_is_still_read(ledger: Ledger) -> None:
    record = ledger.store.read_bytes("studies/demo.json").replace(b'"name": "demo"', b'"name": "007"')
    ledger.store.write_bytes("studies/007.json", record)
    assert Ledger(Store(ledger.store.uri)).study("007")["name"] == "007"
