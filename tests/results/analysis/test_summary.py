import pytest

from layers.errors import UsageError
from results.analysis.summary import summarize
from results.formatting import cost_axis, format_metrics, percent
from results.pareto.front import front, hypervolume, knee
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
    assert summarize(ledger, "demo").baseline == UNCOMPRESSED


def test_figures_are_said_in_units_people_read():
    row = {"val_top1": 0.92345, "size_bytes": 12_345, "flops": 1_234_567, "latency_ms": 1.2345}
    assert format_metrics(row) == "92.34 % · 12.3 kB · 1.23 MFLOPs · 1.23 ms"
    assert format_metrics({"latency_ms": 1.2345, "latency_b64_ms": 30.04}) == "1.23 ms · 30 ms for 64"
    assert cost_axis("latency_b64_ms") == ("latency at batch 64 (ms)", 1.0)
    assert format_metrics({"val_top1": None, "size_bytes": 5_000_000}) == "5,000.0 kB"
    assert percent(None) == "-"
    with pytest.raises(UsageError, match="cost 'speed' is unknown; allowed are size_bytes, flops"):
        cost_axis("speed")
