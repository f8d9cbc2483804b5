import pytest

from results.analysis.summary import summarize
from results.pareto.front import front, knee
from results.pareto.hypervolume import hypervolume
from results.schema import TrialStatus
from tests.results.conftest import UNCOMPRESSED


def test_summary_agrees_with_its_parts(full_ledger):
    summary = summarize(full_ledger, "demo")
    trials, objectives = full_ledger.trials("demo"), full_ledger.objectives("demo")
    assert summary.front.equals(front(trials, objectives))
    assert summary.knee == knee(trials, objectives)
    assert summary.reference == {"val_top1": 0.0, "size_bytes": 312_000, "flops": 25_000_000}
    assert summary.hypervolume == pytest.approx(hypervolume(trials, objectives, summary.reference))
    statuses = trials.column("status").to_pylist()
    assert [summary.count(status) for status in TrialStatus] == [statuses.count(status) for status in TrialStatus]


def test_summary_of_nothing(ledger):
    summary = summarize(ledger, "demo")
    assert (summary.front.num_rows, summary.knee, summary.hypervolume) == (0, None, 0.0)
    assert summary.count(TrialStatus.FAILED) == 0


def test_baseline_keeps_what_is_a_number(ledger):
    ledger.update_study("demo", {"uncompressed": {**UNCOMPRESSED, "latency_ms": None, "note": "measured"}})
    numbers = {name: value for name, value in UNCOMPRESSED.items() if name != "metrics"}
    assert summarize(ledger, "demo").baseline == numbers
    assert summarize(ledger, "demo").score_name == "val_top1"
