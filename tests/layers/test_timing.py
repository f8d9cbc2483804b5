from itertools import chain, repeat

import pytest
import torch

from layers.timing import median_ms


class _Clock:
    """Calls take these milliseconds one after the other, the last for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
        self.now, self.calls, self._times = 0.0, 0, chain(times, repeat(times[-1]))
        monkeypatch.setattr("layers.timing.time.perf_counter", lambda: self.now)

    def call(self) -> None:
        self.now += next(self._times) / 1000
        self.calls += 1


def _median(clock: _Clock, **asked: float) -> float:
    return median_ms(clock.call, torch.device("cpu"), **asked)


def test_the_median_is_of_the_runs_after_the_warm_up(monkeypatch):
    clock = _Clock(monkeypatch, 900, 800, 1, 5, 2, 700, 3)
    assert _median(clock, runs=5, warm_up=2) == pytest.approx(3)
    assert clock.calls == 7


@pytest.mark.parametrize(
    ("budget_s", "calls", "median"),
    [(10.0, 35, 10), (0.3, 30, 10), (0.1, 10, 10), (0.05, 5, 10), (0.001, 4, 10)],
)
def test_a_budget_means_fewer_runs_but_never_less_than_three(monkeypatch, budget_s, calls, median):
    clock = _Clock(monkeypatch, 10)
    assert _median(clock, runs=30, warm_up=5, budget_s=budget_s) == pytest.approx(median)
    assert clock.calls in (calls, calls + 1)  # sums of floats end a little above or below the budget


def test_where_the_budget_ends_early_the_first_run_is_still_warm_up(monkeypatch):
    clock = _Clock(monkeypatch, 60_000, 4000, 6000, 5000)
    assert _median(clock, runs=30, warm_up=5, budget_s=5.0) == pytest.approx(5000)
    assert clock.calls == 4
    clock = _Clock(monkeypatch, 2000)
    assert _median(clock, runs=1, warm_up=0, budget_s=0.1) == pytest.approx(2000)
    assert clock.calls == 1
