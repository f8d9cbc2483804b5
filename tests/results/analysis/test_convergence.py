import pytest

from results.analysis.convergence import anytime_hypervolume
from results.analysis.summary import summarize
from results.schema import TrialStatus


def test_history_counts_the_time_of_all_trials(ledger, make_row):
    """Trials start a minute apart and end after 30 s; a failed one takes time and adds nothing."""
    for number, top1 in enumerate((0.5, 0.4, None, 0.9, 0.8)):
        failed = {"status": TrialStatus.FAILED, "error": "diverged"} if top1 is None else {}
        ledger.append(make_row(number=number, score=top1, total_s=10.0 * (number + 1), **failed))
    summary = summarize(ledger, "demo")
    found = anytime_hypervolume(summary)
    assert found["trials"] == [1, 3, 4]
    assert found["busy_s"] == [10.0, 100.0, 150.0]
    assert found["elapsed_s"] == [30.0, 210.0, 270.0]
    assert found["hypervolume"] == pytest.approx(
        summary.history.column("hypervolume").take([0, 2, 3]).to_pylist(), abs=1e-6
    )


def test_study_without_results_has_spent_nothing(ledger):
    assert anytime_hypervolume(summarize(ledger, "demo")) == {
        "hypervolume": [],
        "trials": [],
        "busy_s": [],
        "elapsed_s": [],
    }
