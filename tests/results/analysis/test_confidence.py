from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from results.analysis.confidence import CONFIDENCE_SCHEMA, confidence, study_confidence
from results.analysis.intervals import wilson_interval
from results.analysis.summary import confidence_by_trial, summarize
from results.objectives import parse_objectives
from results.pareto.front import front
from results.queries.query import query, sql
from results.schema import to_table
from tests.results.conftest import UNCOMPRESSED

OBJECTIVES = parse_objectives(["val_top1", "size_bytes", "flops"], score_name="val_top1")
IMAGES = 5000


def _tables(make_row, runs: Sequence[Sequence[float]], costs: Sequence[tuple[int, int]]) -> tuple[pa.Table, pa.Table]:
    """A trial for each list of accuracies, its own first; the others are its repeats."""
    trials, repeats = [], []
    for number, (accuracies, (size, flops)) in enumerate(zip(runs, costs, strict=True)):
        common = {"number": number, "size_bytes": size, "flops": flops}
        trials.append(make_row(**common, score=accuracies[0]))
        for seed, value in enumerate(accuracies[1:], 1):
            name = f"r{number:04d}{seed}"
            repeats.append(make_row(**common, trial=name, repeat_of=f"t{number:09d}", seed=seed, score=value))
    return to_table(trials), to_table(repeats)


def _by_trial(table: pa.Table) -> dict[str, dict]:
    return {row["trial"]: row for row in table.to_pylist()}


def test_means_and_intervals_are_students(make_row, np_rng):
    runs = [list(np_rng.normal(0.6 + 0.1 * i, 0.01, np_rng.integers(2, 7))) for i in range(4)]
    costs = [(1000 * (i + 1), 10) for i in range(4)]
    trials, repeats = _tables(make_row, runs, costs)
    failed = make_row(trial="rx", repeat_of="t000000000", status="failed", error="x", score=None)
    repeats = pa.concat_tables([repeats, to_table([failed])]).take(np_rng.permutation(repeats.num_rows + 1))
    found = confidence(trials, repeats, OBJECTIVES, val_images=None)
    assert found.schema == CONFIDENCE_SCHEMA
    assert found.column("trial").to_pylist() == front(trials, OBJECTIVES).column("trial").to_pylist()
    for number, values in enumerate(runs):
        row = _by_trial(found)[f"t{number:09d}"]
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (row["score_low"], row["score_high"]) == pytest.approx((expected.low, min(1.0, expected.high)))
        assert row["score_mean"] == pytest.approx(sum(values) / len(values))
        assert row["score_repeats"] == pytest.approx(sum(values[1:]) / (len(values) - 1))
        assert (row["seeds"], row["spread"]) == (len(values), "seeds")


def test_intervals_cover_the_true_mean_as_often_as_they_say(make_row, np_rng):
    """Unselected networks, 4 runs each: 95 % of 600 intervals hold the truth, up to 4 standard errors."""
    truth = np.sort(np_rng.uniform(0.3, 0.9, 600))
    runs = np_rng.normal(truth[:, None], 0.004, (len(truth), 4))
    ordered = [runs[i].tolist() for i in range(len(truth))]
    tables = _tables(make_row, ordered, [(i + 1, len(truth) - i) for i in range(len(truth))])
    rows = _by_trial(confidence(*tables, OBJECTIVES, val_images=IMAGES))
    assert len(rows) == len(truth)
    held = np.mean(
        [rows[f"t{i:09d}"]["score_low"] <= t <= rows[f"t{i:09d}"]["score_high"] for i, t in enumerate(truth)]
    )
    assert abs(held - 0.95) < 4 * np.sqrt(0.95 * 0.05 / len(truth))


def test_a_single_seed_has_no_interval_and_says_whose_spread_it_borrows(make_row):
    alone = _tables(make_row, [[0.9], [0.95]], [(10, 10), (20, 20)])
    rows = confidence(*alone, OBJECTIVES, val_images=None).to_pylist()
    assert [(r["seeds"], r["score_mean"], r["score_low"], r["spread"]) for r in rows] == [
        (1, 0.9, None, None),
        (1, 0.95, None, None),
    ]
    assert [row["probability_dominated"] for row in rows] == [None, None]
    with_images = confidence(*alone, OBJECTIVES, val_images=400).to_pylist()
    low = [wilson_interval(p, 400) for p in (0.9, 0.95)]
    spread = np.hypot(*[(high - low) / 2 / stats.norm.ppf(0.975) for low, high in low])
    assert [row["spread"] for row in with_images] == ["images", "images"]
    assert with_images[0]["probability_dominated"] == 0
    assert with_images[1]["probability_dominated"] == pytest.approx(stats.norm.cdf(-0.05 / spread), abs=1e-4)
    repeated = confidence(
        *_tables(make_row, [[0.9, 0.91, 0.89], [0.95]], [(10, 10), (20, 20)]), OBJECTIVES, val_images=None
    ).to_pylist()
    assert [row["spread"] for row in repeated] == ["seeds", "pooled"]


def test_seeds_that_agree_leave_the_rounding_of_whole_images(make_row):
    tables = _tables(make_row, [[0.9, 0.9, 0.9]], [(10, 10)])
    row = confidence(*tables, OBJECTIVES, val_images=360).to_pylist()[0]
    half = stats.t.ppf(0.975, 2) / np.sqrt(3) / np.sqrt(12) / 360
    assert row["score_high"] - row["score_mean"] == pytest.approx(half)


def test_probability_of_two_normals_and_of_ties_in_cost(make_row, np_rng):
    """Beliefs from many seeds are normal: P(a >= b) is a normal distribution function; equal costs share out one."""
    first, second = np_rng.normal(0.80, 0.02, 400), np_rng.normal(0.801, 0.02, 400)
    first[0], second[0] = 0.7, 0.9  # both on the front
    rows = _by_trial(confidence(*_tables(make_row, [first, second], [(10, 10), (10, 20)]), OBJECTIVES, val_images=None))
    z = (second.mean() - first.mean()) / np.sqrt(first.var(ddof=1) / 400 + second.var(ddof=1) / 400)
    assert rows["t000000000"]["probability_dominated"] == 0
    assert rows["t000000001"]["probability_dominated"] == pytest.approx(stats.norm.cdf(-z), abs=3e-3)
    second[0] = first[0]
    rows = confidence(
        *_tables(make_row, [first, second], [(10, 10), (10, 10)]), OBJECTIVES, val_images=None
    ).to_pylist()
    assert sum(row["probability_dominated"] for row in rows) == pytest.approx(1, abs=1e-3)
    assert {row["probability_dominated"] for row in rows} != {0.5}


@pytest.mark.parametrize("images", [None, IMAGES])
def test_probability_matches_drawing_from_the_beliefs(make_row, np_rng, images):
    """Random fronts with 1 to 5 runs a member, against 200,000 draws of all members' accuracies."""
    count, draws = 9, 200_000
    sizes, flops = np_rng.permutation(count) + 1, np_rng.permutation(count) + 1
    order = np.argsort(sizes)
    runs: list[list[float]] = [[] for _ in range(count)]
    for place, index in enumerate(order):
        runs[index] = list(np.clip(np_rng.normal(0.90 + 0.004 * place, 0.006, np_rng.integers(1, 6)), 0, 1))
    runs[0] += [runs[0][0] + 0.004, runs[0][0] - 0.003]
    trials, repeats = _tables(make_row, runs, list(zip(sizes.tolist(), flops.tolist(), strict=True)))
    found = confidence(trials, repeats, OBJECTIVES, val_images=images).to_pylist()
    numbers = [int(row["trial"][1:]) for row in found]
    several = [values for values in runs if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    pooled = np.sqrt(sum(np.var(values) * len(values) for values in several) / freedom)
    drawn = {}
    for number in numbers:
        values = runs[number]
        alone = len(values) == 1
        scale = pooled if alone else np.std(values, ddof=1) / np.sqrt(len(values))
        drawn[number] = np.mean(values) + scale * np_rng.standard_t(freedom if alone else len(values) - 1, draws)
    for number, row in zip(numbers, found, strict=True):
        cheaper = [o for o in numbers if o != number and sizes[o] <= sizes[number] and flops[o] <= flops[number]]
        beaten = np.zeros(draws, dtype=bool)
        for other in cheaper:
            beaten |= drawn[other] >= drawn[number]
        assert row["probability_dominated"] == pytest.approx(beaten.mean(), abs=0.006)


def test_large_fronts_are_quick_and_huge_ones_go_without(make_row, np_rng):
    table = to_table([make_row(number=0)])
    count = 300
    columns = {name: table.column(name).take(pa.array(np.zeros(count, int))) for name in table.column_names}
    columns |= {"trial": pa.array([f"t{i}" for i in range(count)]), "size_bytes": pa.array(np.arange(count) + 1)}
    columns |= {"flops": pa.array(count - np.arange(count)), "score": pa.array(np_rng.uniform(0.4, 0.9, count))}
    many = pa.table(columns, schema=table.schema)
    found = confidence(many, many.slice(0, 0), OBJECTIVES, val_images=IMAGES)
    assert found.column("probability_dominated").to_pylist() == [0.0] * count
    doubled = pa.concat_tables([many, many.set_column(2, "trial", pa.array([f"u{i}" for i in range(count)]))])
    assert (
        confidence(doubled, many.slice(0, 0), OBJECTIVES, val_images=IMAGES).column("probability_dominated").null_count
        == 2 * count
    )


def test_a_study_tells_its_own(ledger, make_row):
    assert study_confidence(ledger, "demo").num_rows == 0
    ledger.append(make_row(number=0, score=0.9))
    ledger.append(make_row(number=0, trial="again", repeat_of="t000000000", seed=1, score=0.8))
    (row,) = study_confidence(ledger, "demo").to_pylist()
    assert (row["seeds"], row["score_mean"]) == (2, pytest.approx(0.85))


def test_seeds_that_agree_give_the_same_interval_everywhere(ledger, make_row):
    """The rounding of whole images is left, and every way to the interval knows of how many."""
    ledger.update_study("demo", {"uncompressed": {**UNCOMPRESSED, "val_images": 360}})
    ledger.append(make_row(number=0, score=0.9))
    for seed in (1, 2):
        ledger.append(make_row(number=0, trial=f"again{seed}", repeat_of="t000000000", seed=seed, score=0.9))
    half = stats.t.ppf(0.975, 2) / np.sqrt(3) / np.sqrt(12) / 360
    alone = ledger.trials("demo").slice(0, 1)
    found = [
        study_confidence(ledger, "demo").to_pylist()[0],
        study_confidence(ledger, "demo", alone).to_pylist()[0],
        query(ledger, "demo", front=True).to_dict("records")[0],
        sql(ledger, "demo", "select * from front").to_dict("records")[0],
        confidence_by_trial(ledger, summarize(ledger, "demo"))["t000000000"],
    ]
    for row in found:
        assert (row["score_low"], row["score_high"]) == pytest.approx((0.9 - half, 0.9 + half), abs=1e-12)
