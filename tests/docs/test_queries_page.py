"""Answers of docs/queries.md against a plain loop; its tables are the real ones. `test_blocks.py` runs its examples."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.queries.query import query, sql
from results.queries.tables import TABLES
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "queries.md"


def test_the_page_has_examples_of_each_kind() -> None:
    for language, least in (("bash", 6), ("sql", 6), ("python", 4)):
        assert len([block for block in blocks(language) if block.page == PAGE]) >= least


def test_answers_are_those_of_a_plain_loop(folder: Path) -> None:
    """The first three questions of the page."""
    ledger = Ledger(Store(folder / "runs"))
    rows = [row for row in ledger.trials("demo").to_pylist() if row["status"] == "finished"]
    where = "val_top1 >= (select val_top1 from baseline) - 0.01"
    near = [row for row in rows if row["score"] >= 0.9 - 0.01]
    found = query(ledger, "demo", where=where, sort="size_bytes", limit=1)
    assert found["size_bytes"].tolist() == [min(row["size_bytes"] for row in near)]
    small = [row for row in rows if row["size_bytes"] <= 100e3 and row["flops"] <= 5e6]
    found = query(ledger, "demo", where="size_bytes <= 100e3 and flops <= 5e6", sort="val_top1", limit=1)
    assert found["val_top1"].tolist() == found["score"].tolist() == [max(row["score"] for row in small)]
    found = sql(ledger, "demo", next(block.text for block in blocks("sql") if "layer3" in block.text))
    layer3 = [(row, next(b for b in row["blocks"] if b["block"] == "layer3")) for row in rows]
    for _, group in found.iterrows():
        y = None if pd.isna(group["harmonics_y"]) else group["harmonics_y"]
        same = [row for row, block in layer3 if block["harmonics_y"] == y]
        assert group["trials"] == len(same)
        assert group["mflops"] == pytest.approx(np.mean([row["flops"] for row in same]) / 1e6)


def test_the_tables_are_described_as_they_are(folder: Path) -> None:
    ledger = Ledger(Store(folder / "runs"))
    described = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE))
    assert set(described) == set(TABLES)
    for name, text in described.items():
        columns = TABLES[name](ledger, "demo").column_names
        told = set(re.findall(r"`(\w+)`", text)) - set(TABLES)
        assert told <= set(columns)
        if name in ("epochs", "blocks", "baseline"):
            assert told == set(columns)
