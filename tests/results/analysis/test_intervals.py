import numpy as np
import pytest

from layers.errors import UsageError
from results.analysis.intervals import wilson_interval


def test_ends_solve_the_score_equation(np_rng):
    for _ in range(50):
        n = int(np_rng.integers(1, 5000))
        fraction = int(np_rng.integers(0, n + 1)) / n
        for end in wilson_interval(fraction, n):
            assert abs(fraction - end) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / n), abs=1e-6)


def test_interval_covers_the_truth_about_as_often_as_it_says(np_rng):
    truth, n = 0.9, 360
    hits = [low <= truth <= high for low, high in (wilson_interval(k / n, n) for k in np_rng.binomial(n, truth, 4000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_certain_results_reach_their_end():
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("fraction", [1.1, -0.1, float("nan")])
def test_no_interval_of_what_is_no_share(fraction):
    with pytest.raises(UsageError, match=rf"fraction \(={fraction}\) must be from 0 to 1"):
        wilson_interval(fraction, 10)


def test_no_interval_without_images():
    with pytest.raises(UsageError, match=r"n \(=0\) must be at least 1"):
        wilson_interval(0.5, 0)
