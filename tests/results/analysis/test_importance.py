"""Planted effects are found, and knobs without any get what chance gives: nothing."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
import pytest
from optuna.importance import PedAnovaImportanceEvaluator

from results.analysis.importance import _divergence, importance
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.pareto.front import front
from results.schema import SCHEMA, TrialRow, TrialStatus, to_table

CHOICES = {
    "a": {"harmonics_y": [1, 2, 3], "harmonics_x": [1, 2, 3], "pruning_rate": [None, 0.5], "groups": [1, 2]},
    "b": {"bits": [4, 6, 8, None], "exponent_block": [16]},
}
RECORD = {
    "score_name": "val_top1",
    "objectives": ["val_top1", "size_bytes", "flops"],
    "uncompressed": {},
    "choices": CHOICES,
}
Rule = Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]]


class _Known(Ledger):
    """A ledger whose trials are in memory."""

    def __init__(self, root: Path, trials: pa.Table, record: dict[str, Any]) -> None:
        super().__init__(Store(root))
        self.create_study("demo", record)
        self._known = trials

    def trials(self, study: str) -> pa.Table:
        return self._known


def _study(root: Path, rng: np.random.Generator, count: int, rule: Rule, record: dict[str, Any] = RECORD) -> Ledger:
    """Configs drawn blindly from CHOICES, measured by `rule`; every tenth trial fails."""
    rows, now = [], datetime.now(UTC)
    for number in range(count):
        y, x = rng.integers(1, 4, 2).tolist()
        rate, bits = [None, 0.5][rng.integers(2)], [4, 6, 8, None][rng.integers(4)]
        full = (y, x) == (3, 3)
        a = {"block": "a", "basis": None if full else ["cosine", "chebyshev"][rng.integers(2)], "harmonics_y": y}
        a |= {"harmonics_x": x, "pruning_rate": rate, "groups": None if rate is None else int(rng.integers(1, 3))}
        if full:
            a |= {"harmonics_y": None, "harmonics_x": None}
        b = {"block": "b", "bits": bits, "exponent_block": None if bits is None else 16}
        measured = rule({"y": y, "x": x, "rate": rate, "groups": a["groups"], "bits": bits}, rng)
        values = {"score": 0.5, "size_bytes": 1000, "flops": 1000} | measured
        ended: dict[str, Any] = {"status": TrialStatus.FINISHED}
        if number % 10 == 9:
            ended, values["score"] = {"status": TrialStatus.FAILED, "error": "x"}, None
        rows.append(
            TrialRow(
                **dict.fromkeys(("study", "model", "dataset", "init", "config_digest", "spec_digest", "spec"), "x"),
                **dict.fromkeys(("seed", "epochs", "epochs_run", "parameters", "macs"), 0),
                started_at=now,
                finished_at=now,
                score_name="val_top1",
                trial=f"t{number}",
                number=number,
                **{"blocks": [a, b], **values, **ended},
            )
        )
    return _Known(root, to_table(rows), record)


def _could_allocate(block: Mapping[str, Any]) -> bool:
    several = block["basis"] is not None and block["harmonics_y"] * block["harmonics_x"] > 1
    return several and block["pruning_rate"] is None


def _bits_decide(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Only `b.bits` matters: 6 bits are better in every objective."""
    good = knobs["bits"] == 6
    return {
        "score": float(rng.uniform(0.8, 0.9) if good else rng.uniform(0.3, 0.7)),
        "size_bytes": 100 if good else 900,
    }


def test_a_planted_knob_takes_all_and_dead_ones_nothing(tmp_path: Path, np_rng: np.random.Generator) -> None:
    found = importance(_study(tmp_path, np_rng, 2000, _bits_decide), "demo")
    shares = {row["knob"]: row["share"] for row in found["importance"]}
    assert found["importance"][0]["knob"] == "b.bits"
    assert shares["b.bits"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share < 0.06 for knob, share in shares.items() if knob != "b.bits")
    assert set(shares) == {"a.basis", "a.harmonics_y", "a.harmonics_x", "a.pruning_rate", "a.groups", "b.bits"}
    assert found["importance"][0]["chance"] < 1e-9
    assert {row["block"]: row["share"] for row in found["blocks"]}["b"] == pytest.approx(shares["b.bits"])


@pytest.mark.parametrize("granularity", ["stage", "layer"])
def test_layers_are_summed_by_their_stage(tmp_path: Path, np_rng: np.random.Generator, granularity: str) -> None:
    names = {"a": "s.a", "b": "s.b"}
    choices = {**{names[block]: knobs for block, knobs in CHOICES.items()}, "t": {}, "u": {}}
    rows = _study(tmp_path / "plain", np_rng, 500, _bits_decide).trials("demo").to_pylist()
    for row in rows:
        row["blocks"] = [{**block, "block": names[block["block"]]} for block in row["blocks"]]
    renamed = pa.Table.from_pylist(rows, schema=SCHEMA)
    record = {**RECORD, "choices": choices, "granularity": granularity}
    found = importance(_Known(tmp_path / "renamed", renamed, record), "demo")
    blocks = {row["block"]: row["share"] for row in found["blocks"]}
    assert blocks.keys() == {"s.a", "s.b"}
    if granularity == "layer":
        assert found["stages"] == [{"stage": "s", "share": pytest.approx(1), "blocks": found["blocks"]}]
    else:
        alone = [{"stage": row["block"], "share": row["share"], "blocks": [row]} for row in found["blocks"]]
        assert found["stages"] == alone


def test_two_planted_knobs_share_by_their_weight(tmp_path: Path, np_rng: np.random.Generator) -> None:
    def rule(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        good = 0.3 * (knobs["bits"] == 6) + 0.1 * (knobs["y"] == 2)
        return {"score": float(0.4 + good + rng.normal(0, 0.03))}

    shares = [row["knob"] for row in importance(_study(tmp_path, np_rng, 2000, rule), "demo")["importance"]]
    assert shares[:2] == ["b.bits", "a.harmonics_y"]


def test_a_knob_that_matters_only_where_filters_are_pruned(tmp_path: Path, np_rng: np.random.Generator) -> None:
    def rule(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"score": float(0.5 + 0.3 * (knobs["groups"] == 2) + rng.normal(0, 0.02))}

    found = importance(_study(tmp_path, np_rng, 2000, rule), "demo")
    assert {row["knob"] for row in found["importance"][:2]} == {"a.groups", "a.pruning_rate"}
    assert [row["value"] for row in found["effects"] if row["knob"] == "a.groups"] == [1, 2]


def test_an_allocation_that_could_be_and_is_not_is_uniform(tmp_path: Path, np_rng: np.random.Generator) -> None:
    """A series of more than one coefficient without templates has one; where no trial has, it is no knob."""

    def rule(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"score": float(rng.uniform(0.3, 0.5)), "size_bytes": 900}

    ledger = _study(tmp_path, np_rng, 600, rule)
    assert "a.allocation" not in {row["knob"] for row in importance(ledger, "demo")["importance"]}
    records = ledger.trials("demo").to_pylist()
    for record in records:
        series = record["blocks"][0]
        if _could_allocate(series) and np_rng.random() < 0.5:
            series["allocation"] = "filter"
            record["score"] = record["score"] and record["score"] + 0.4
    finished = [record["blocks"][0] for record in records if record["status"] == "finished"]
    by_filter, series = sum(a["allocation"] == "filter" for a in finished), sum(map(_could_allocate, finished))
    found = importance(_Known(tmp_path / "filter", pa.Table.from_pylist(records, schema=SCHEMA), RECORD), "demo")
    assert found["importance"][0]["knob"] == "a.allocation"
    effects = [row for row in found["effects"] if row["knob"] == "a.allocation"]
    assert [(row["value"], row["n"]) for row in effects] == [("filter", by_filter), ("uniform", series - by_filter)]
    assert effects[0]["score"] > 0.69 > 0.51 > effects[1]["score"]


def test_exponents_at_their_defaults_are_values_where_there_are_bits(
    tmp_path: Path, np_rng: np.random.Generator
) -> None:
    """The ledger keeps them as null, which says nothing where there are no bits."""

    def rule(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"score": float(rng.uniform(0.3, 0.5)), "size_bytes": 900}

    asked = {"exponent_block": 16, "exponent_axis": "filter"}
    ledger = _study(tmp_path, np_rng, 600, rule)
    assert not {f"b.{knob}" for knob in asked} & {row["knob"] for row in importance(ledger, "demo")["effects"]}
    records = ledger.trials("demo").to_pylist()
    for record in records:
        b = record["blocks"][1]
        for knob, value in asked.items():
            b[knob] = value if b["bits"] is not None and np_rng.random() < 0.5 else None
        b["scale"] = "bfloat16" if b["bits"] is not None and np_rng.random() < 0.5 else None
        b["activation_bits"] = 6 if np_rng.random() < 0.5 else None
        b["activation_block"] = 8 if b["activation_bits"] and np_rng.random() < 0.5 else None
        b["arithmetic"] = "int8" if np_rng.random() < 0.5 else None
        if b["exponent_axis"]:
            record["score"] = record["score"] and record["score"] + 0.4
    found = importance(_Known(tmp_path / "axes", pa.Table.from_pylist(records, schema=SCHEMA), RECORD), "demo")
    assert found["importance"][0]["knob"] == "b.exponent_axis"
    finished = [record["blocks"][1] for record in records if record["status"] == "finished"]
    for knob, values in {"exponent_block": [1, 16], "exponent_axis": ["filter", "flat"]}.items():
        effects = {row["value"]: row["n"] for row in found["effects"] if row["knob"] == f"b.{knob}"}
        assert list(effects) == values
        assert effects[asked[knob]] == sum(b[knob] is not None for b in finished)
        assert sum(effects.values()) == sum(b["bits"] is not None for b in finished)
    running: dict[str, list[Any]] = {"scale": ["bfloat16", "power of two"]}
    running |= {"activation_bits": [6, None], "activation_block": [1, 8], "arithmetic": ["float", "int8"]}
    for knob, values in running.items():
        assert [row["value"] for row in found["effects"] if row["knob"] == f"b.{knob}"] == values


def test_effects_and_shares_are_those_of_a_plain_loop(tmp_path: Path, np_rng: np.random.Generator) -> None:
    def rule(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        costs = {name: int(rng.integers(1, 30)) for name in ("size_bytes", "flops")}
        return {"score": float(rng.uniform()), **costs}

    ledger = _study(tmp_path, np_rng, 200, rule)
    found, frame = importance(ledger, "demo"), ledger.trials("demo").to_pandas()
    frame = frame[frame["status"] == "finished"]
    y = pd.Series([3 if blocks[0]["harmonics_y"] is None else blocks[0]["harmonics_y"] for blocks in frame["blocks"]])
    fronts = set(front(ledger.trials("demo"), ledger.objectives("demo")).column("trial").to_pylist())
    on_front = np.array([trial in fronts for trial in frame["trial"]])
    effects = {row["value"]: row for row in found["effects"] if row["knob"] == "a.harmonics_y"}
    shared = {row["value"]: row for row in found["shared"] if row["knob"] == "a.harmonics_y"}
    assert list(effects) == list(shared) == [1, 2, 3]
    for value, row in effects.items():
        has = (y == value).to_numpy()
        assert row["n"] == has.sum()
        assert row["score"] == pytest.approx(frame["score"][has].mean())
        assert row["size_bytes"] == pytest.approx(np.prod(frame["size_bytes"][has] ** (1.0 / has.sum())))
        assert shared[value]["all"] == pytest.approx(has.mean())
        assert shared[value]["front"] == pytest.approx(has[on_front].mean())
    assert found["trials"] == len(frame) == 180


def test_divergence_above_chance_is_zero_on_average_without_an_effect(np_rng: np.random.Generator) -> None:
    """The closed form taken off is the exact mean over all blind draws; p-values are spread evenly."""
    codes = np.append(np.arange(4), np_rng.choice(4, 56, p=[0.5, 0.2, 0.2, 0.1]))  # each value is there
    values, everyone = pd.Series(np.array([1, 2, 4, None], dtype=object)[codes]), np.bincount(codes) / 60
    active, drawn = np.ones(60, dtype=bool), []
    for _ in range(2000):
        best = np.isin(np.arange(60), np_rng.choice(60, 15, replace=False))
        chosen = np.bincount(codes[best], minlength=4) / 15
        drawn.append(((everyone * (chosen / everyone - 1) ** 2).sum(), *_divergence(values, best, active)))
    raw, kept, chance = np.array(drawn).T
    blind = 3 * 45 / (15 * 59)
    assert abs(raw.mean() - blind) < 4 * raw.std() / np.sqrt(len(raw))
    assert kept == pytest.approx(np.maximum(0, raw - blind))
    assert abs((chance < 0.2).mean() - 0.2) < 0.1


@pytest.mark.filterwarnings("ignore")
def test_ranking_of_a_large_study_is_that_of_optunas_evaluator(tmp_path: Path, np_rng: np.random.Generator) -> None:
    """Two objectives, three knobs of graded effect on both, and dead ones."""

    def rule(knobs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        good = 1.0 * (knobs["bits"] == 6) + 0.5 * (knobs["y"] == 2) + 0.45 * (knobs["rate"] is None)
        return {
            "score": float(np.clip(0.1 + 0.4 * good + rng.normal(0, 0.04), 0, 1)),
            "size_bytes": int(10_000 - 4_000 * good + rng.normal(0, 400)),
        }

    record = {**RECORD, "objectives": ["val_top1", "size_bytes"]}
    ledger = _study(tmp_path, np_rng, 8000, rule, record)
    ours = {row["knob"]: row["share"] for row in importance(ledger, "demo")["importance"]}
    choices = {
        "a.harmonics_y": [1, 2, 3],
        "a.harmonics_x": [1, 2, 3],
        "a.pruning_rate": [None, 0.5],
        "b.bits": [4, 6, 8, None],
    }
    # places of values, not categories: of few categories Optuna's estimator blurs more the more there are
    distributions = {knob: optuna.distributions.IntDistribution(0, len(choices[knob]) - 1) for knob in choices}
    study = optuna.create_study(directions=["maximize", "minimize"])
    for row in ledger.trials("demo").to_pylist():
        if row["status"] == "finished":
            blocks = {block["block"]: block for block in row["blocks"]}
            knobs = {knob: blocks[knob[0]][knob[2:]] for knob in choices}
            full = {knob: 3 if "harmonics" in knob and value is None else value for knob, value in knobs.items()}
            params = {knob: choices[knob].index(value) for knob, value in full.items()}
            values = [row["score"], row["size_bytes"]]
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=values))
    theirs = PedAnovaImportanceEvaluator().evaluate(study)
    assert sorted(distributions, key=lambda knob: -ours[knob]) == list(theirs)
    assert list(theirs) == ["b.bits", "a.harmonics_y", "a.pruning_rate", "a.harmonics_x"]
    assert ours["a.harmonics_x"] < 0.03


def test_little_to_go_by_is_no_error(tmp_path: Path, np_rng: np.random.Generator) -> None:
    empty = importance(_study(tmp_path / "0", np_rng, 0, _bits_decide), "demo")
    nothing: dict[str, list[Any]] = {name: [] for name in ("importance", "blocks", "stages", "effects", "shared")}
    assert empty == {"trials": 0, "best": 0, **nothing}
    one = importance(_study(tmp_path / "1", np_rng, 1, _bits_decide), "demo")
    assert (one["trials"], one["importance"], one["effects"]) == (1, [], [])


def test_without_the_studys_choices_full_harmonics_are_a_value_of_their_own(
    tmp_path: Path, np_rng: np.random.Generator
) -> None:
    record = {key: value for key, value in RECORD.items() if key != "choices"}
    found = importance(_study(tmp_path, np_rng, 300, _bits_decide, record), "demo")
    assert [row["value"] for row in found["effects"] if row["knob"] == "a.harmonics_y"] == [1, 2, 3, None]
