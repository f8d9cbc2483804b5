import random
from math import comb

import numpy as np
import pytest
import torch

from trainers.runtime import turns
from trainers.runtime.sessions import Session
from trainers.runtime.turns import median_interval, time_by_turns


@pytest.mark.parametrize("n", [6, 9, 15, 31])
def test_the_interval_holds_the_median_as_often_as_it_says(n, rng: random.Random):
    """As narrow as that allows: one value less at each end would hold it less often than in 95 %."""
    ordered = sorted(rng.random() for _ in range(n))
    low, high = median_interval(rng.sample(ordered, n))
    below = ordered.index(low)
    assert ordered.index(high) == n - 1 - below

    def held(rank: int) -> float:
        return sum(comb(n, k) for k in range(rank + 1, n - rank)) / 2**n

    assert held(below) >= 0.95 > held(below + 1)


@pytest.mark.parametrize("unit", [0.001, 0.03])
def test_sides_take_turns_and_the_ratio_is_taken_within_rounds(monkeypatch, unit):
    """Side 0 takes 3 units to side 1's 2; the machine becomes slower from pass to pass."""
    clock, log = [0.0], []
    monkeypatch.setattr("trainers.runtime.turns.time.perf_counter", lambda: clock[0])

    def session(side: int) -> Session:
        def passed() -> None:
            log.append(side)
            clock[0] += (3 - side) * unit * (1 + len(log) / 100)

        return Session(
            name=str(side),
            runtime="torch",
            threads=1,
            versions={},
            shape=(1, 2, 2),
            batch=None,
            prepare=lambda x: passed,
        )

    (found,) = time_by_turns([session(0), session(1)], [4], budget_s=0.0)
    assert (found.batch, found.rounds) == (4, 7)
    one, other = ([1, 1], [0, 0]) if unit < 0.01 else ([1], [0])  # of two passes the first does not count
    assert log[4:] == [*one, *other, *other, *one] * 3 + [*one, *other]
    assert found.ratio is not None
    assert found.ratio.low <= found.ratio.ratio <= found.ratio.high
    assert found.ratio.ratio == pytest.approx(1.5, rel=0.03)
    assert found.ms[0] > 3000 * unit


def test_both_files_get_the_same_images_of_each_size():
    seen: list[np.ndarray] = []
    threads: list[int] = []

    def session(side: int) -> Session:
        def prepare(images: np.ndarray) -> object:
            seen.append(images)
            return lambda: threads.append(torch.get_num_threads())

        return Session(
            name=str(side), runtime="torch", threads=3, versions={}, shape=(2, 3), batch=None, prepare=prepare
        )

    found = time_by_turns([session(0), session(1)], [1, 5], budget_s=1e-9)
    assert [images.shape for images in seen] == [(1, 2, 3)] * 2 + [(5, 2, 3)] * 2
    assert all(np.array_equal(seen[2 * index], seen[2 * index + 1]) for index in range(2))
    assert [turn.batch for turn in found] == [1, 5]
    assert set(threads) == {3}
    assert torch.get_num_threads() == 1
    assert turns.time_by_turns([session(0)], [1], budget_s=0.0)[0].ratio is None
