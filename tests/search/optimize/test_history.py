"""What a study has drawn: the same as looking at all draws anew."""

import moocore
import numpy as np
import pytest

from results.objectives import parse_objectives
from search.optimize.candidates import Candidates
from search.optimize.history import History
from spaces import Space

COLUMNS = [o.column for o in parse_objectives(("val_top1", "size_bytes", "flops"), score_name="val_top1")]


@pytest.fixture(scope="module")
def candidates(space: Space) -> Candidates:
    return Candidates(space)


def test_a_front_that_grows_is_that_of_all_draws(candidates: Candidates, np_rng: np.random.Generator) -> None:
    history, told = History(candidates, COLUMNS, 0), []
    choices = [len(values) for values in candidates.knobs.values()]
    points = np_rng.integers(choices, size=(30, len(choices)))
    places = [history.add(point) for point in points]
    for place in np_rng.permutation(30):
        told.append([np_rng.uniform(0.5, 1.0), *np_rng.integers(1, 9, 2)])
        history.end(places[place], told[-1])
        values = np.array(told) * [-1, 1, 1]
        front = np.array(told)[moocore.is_nondominated(values, keep_weakly=True)]
        assert sorted(map(tuple, history.front()[1])) == sorted(map(tuple, front))
    assert history.finished == 30
    assert not history.is_new(candidates.describe(points)).any()


def test_scores_come_in_the_order_of_draws(candidates: Candidates) -> None:
    history = History(candidates, COLUMNS, 0)
    point = np.zeros(len(candidates.knobs), dtype=np.int64)
    places = [history.add(point) for _ in range(5)]
    history.end(places[3], [0.9, 5, 5])
    history.end(places[0], None)
    history.end(places[2], None, forecast=0.7)
    history.end(places[1], [0.8, 5, 5])
    _, scores, measured = history.scored()
    assert (scores.tolist(), measured.tolist()) == ([0.8, 0.7, 0.9], [True, False, True])
    assert history.measured()[1].tolist() == [[0.8, 5, 5], [0.9, 5, 5]]
    assert len(history.running()) == 1


def test_a_latency_has_the_worst_so_far_as_its_reference(candidates: Candidates) -> None:
    history = History(candidates, ["score", "latency_ms"], 0)
    for latency in (4.0, 8.0, 2.0):
        history.end(history.add(np.zeros(len(candidates.knobs), dtype=np.int64)), [0.9, latency])
    assert history.losses(np.array([[0.9, 4.0]])) == pytest.approx(np.array([[0.1, 0.5]]))


def test_a_point_is_spelled_as_its_canonical_config(space: Space, small: Space, np_rng: np.random.Generator) -> None:
    for candidates in (Candidates(space), Candidates(small)):
        choices = [len(values) for values in candidates.knobs.values()]
        for point in np_rng.integers(choices, size=(60, len(choices))):
            canonical = candidates.canonical(point)
            assert canonical.tolist() == candidates.point(candidates.config(point)).tolist()
            assert candidates.canonical(canonical).tolist() == canonical.tolist()
