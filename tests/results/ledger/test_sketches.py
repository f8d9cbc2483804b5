"""Sketches lie among a study's rows, and no figure of the study knows them."""

from dataclasses import replace

import pytest

from layers.errors import OvertoneError
from results.analysis.confidence import study_confidence
from results.analysis.importance import importance
from results.analysis.summary import summarize
from results.ledger.ledger import Ledger
from results.queries.query import ask, pick
from results.queries.tables import TABLES
from results.schema import TrialStatus, to_table

SKETCH = {"status": TrialStatus.SKETCH, "score": None, "history": (), "epochs": 0, "epochs_run": 0}


@pytest.fixture
def sketches(make_row, np_rng):
    """Rows that would be better than any trial in every objective, if they counted."""
    rows = [make_row(number=number, init_score=1.0, size_bytes=1, flops=2, macs=1, **SKETCH) for number in range(5)]
    return [replace(row, trial=f"s{np_rng.integers(1 << 30)}", latency_ms=1e-3) for row in rows]


def _figures(ledger):
    summary = summarize(ledger, "demo")
    return {
        "trials": ledger.trials("demo"),
        "columns": ledger.trials("demo", ["flops", "trial"]),
        "repeats": ledger.repeats("demo"),
        "front": ledger.front("demo"),
        "written": ledger.write_front("demo"),
        "confidence": study_confidence(ledger, "demo"),
        "importance": importance(ledger, "demo"),
        "summary": (summary.hypervolume, summary.knee, summary.reference, summary.trials, summary.finished),
        **{name: TABLES[name](ledger, "demo") for name in TABLES if name != "sketches"},
        "query": ask(ledger, "demo").table,
        "picks": [pick(ledger, "demo", which) for which in ("best", "knee", "0")],
    }


@pytest.mark.parametrize("batch", [False, True])
def test_no_figure_of_a_study_knows_its_sketches(ledger, random_rows, make_row, sketches, batch):
    rows = [*random_rows(25), make_row(number=90, trial="again", repeat_of="t000000003", seed=1)]
    for row in rows:
        ledger.append(row)
    expected = _figures(ledger)
    if batch:
        ledger.append_many(sketches)
    for row in () if batch else sketches:
        ledger.append(row)
    assert _figures(ledger) == expected == _figures(Ledger(ledger.store))
    by_number = to_table(sketches)
    assert ledger.sketches("demo").equals(by_number)
    ledger.compact("demo")
    for reader in (ledger, Ledger(ledger.store)):
        assert _figures(reader) == expected
        assert reader.sketches("demo").equals(by_number)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_score": None}, r"is a sketch: init_score \(=None\) must be a number from 0 to 1"),
        ({"init_score": float("nan")}, r"is a sketch: init_score \(=nan\) must be"),
        ({"score": 0.9}, r"never trained: score \(=0\.9\) must be None and epochs_run \(=0\) 0"),
        ({"epochs_run": 1}, r"never trained: score \(=None\) must be None and epochs_run \(=1\) 0"),
        ({"flops": None}, r"is a sketch: flops \(=None\) must be a count"),
        ({"score_name": None}, r"is a sketch: score_name \(=None\) must say"),
    ],
)
def test_a_sketch_has_a_score_before_training_and_no_other(make_row, changes, message):
    with pytest.raises(OvertoneError, match=message):
        make_row(**{**SKETCH, "init_score": 0.5, **changes})
