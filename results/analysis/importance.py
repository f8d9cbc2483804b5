"""Which knobs matter in a study, what their values go with, and what the front's members share.

Importance is PED-ANOVA (Watanabe, Bansal, Hutter, *PED-ANOVA*, IJCAI 2023), with the inactive knobs of its conditional
form (a group count only means something if filters are pruned). It measures how differently a knob's values are
distributed among the best trials and among all trials, by Pearson's divergence

    D = sum_v p_all(v) (p_best(v) / p_all(v) - 1)^2.

The best trials are whole fronts: the front, then what would be the front without it, and so on, until they are a tenth
of the finished trials and at least 10 (or a third of fewer than 30), so that no objective is preferred. The sampler's
own preferences are in both distributions and cancel.

Our deviations. Knobs here have few values, so shares are counted. The paper, and `PedAnovaImportanceEvaluator` of
Optuna, smooth them with a Parzen estimator, which serves continuous parameters. And a sample is never distributed like
its population: n of N trials with K values, drawn blindly, would already give

    E[D] = (K - 1) (N - n) / (n (N - 1)).

That is subtracted, and a negative rest is zero. Without it, many knobs of no effect add up to most of the importance;
in a study of few trials they still add up to much, so beside each share stands `chance`: how often a blind draw would
give a divergence as large (the chi-squared approximation). On large studies the ranking of knobs agrees with Optuna's,
which a test holds. Knobs that the sampler moved together take a part of each other's share, and effects are plain means
over the trials with a value: they tell what goes with it, which need not be what it causes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import scipy

from results.ledger.ledger import Ledger
from results.pareto.dominance import ranks
from results.schema import TrialStatus
from spaces.blocks import stages_of

__all__ = ["importance"]

_DEFAULTS = {
    "exponent_block": ("bits", 1),
    "exponent_axis": ("bits", "flat"),
    "scale": ("bits", "power of two"),
    "activation_block": ("activation_bits", 1),
    "transform": ("pruning_rate", "scalar"),
}
"""Knobs whose null means a default if another knob is set: that knob, and the default."""
_CONDITIONAL = frozenset({"basis", "allocation", "groups", *_DEFAULTS})
"""Knobs that mean something only beside harmonics, a pruning rate, bits or activation bits; null otherwise."""
_BEST_SHARE = 0.1
_BEST_LEAST = 10
_BEST_MOST = 1 / 3
"""The best trials as a share of all, at least how many they are, and at most which share."""

_Bools = npt.NDArray[np.bool_]
_Knobs = Mapping[str, "pd.Series[Any]"]


def importance(ledger: Ledger, study: str) -> dict[str, Any]:
    """Return plain JSON: `importance`, `blocks`, `stages`, `effects`, `shared`, numbers of `trials` and of `best` ones.

    `importance` has `knob` (BLOCK.KNOB), `share` (they sum to 1, largest first; none if no knob stands out from chance)
    and `chance`; `blocks` the same summed over a block's knobs, `stages` summed over a stage's `blocks`, which are the
    stage alone where stages are blocks. `effects` has, for each value of a knob (null:
    uncompressed), `n` trials, their mean `score`, and geometric means of `size_bytes` and `flops`. `shared` has the
    share of the front's members, and of all finished trials, that have the value. Knobs that never varied are left out.
    `allocation` is `uniform` in a block that could have another one and does not; with bits set, null exponent knobs
    are at their defaults, and so are null transforms with a pruning rate set; a null `arithmetic` is float.
    """
    trials = ledger.trials(study)
    finished = trials.filter(pc.equal(trials.column("status"), TrialStatus.FINISHED.value))
    rank = ranks(finished, ledger.objectives(study))
    finished, rank = finished.filter(pa.array(rank >= 0)), rank[rank >= 0]
    record = ledger.study(study)
    choices = record.get("choices") or {}
    knobs = _knobs(finished, choices)
    best = _best(rank)
    shares = _shares(knobs, best)
    blocks = _by_block(shares)
    stages = stages_of(choices or [row["block"] for row in blocks], record.get("granularity", "stage"))
    return {
        "trials": finished.num_rows,
        "best": int(best.sum()),
        "importance": shares,
        "blocks": blocks,
        "stages": _by_stage(blocks, stages),
        "effects": _effects(knobs, finished),
        "shared": _shared(knobs, rank == 0),
    }


def _knobs(trials: pa.Table, choices: Mapping[str, Mapping[str, Sequence[Any]]]) -> _Knobs:
    """Return the value in each trial (None: uncompressed) of each knob that varied, by `BLOCK.KNOB`, in network order.

    The ledger stores as many harmonics as taps as null, unless the other axis has fewer; the study's `choices` tell how
    many taps there are, and both count as one value.
    """
    lists = trials.column("blocks").combine_chunks()
    owners, entries = np.asarray(pc.list_parent_indices(lists)), pc.list_flatten(lists)
    names = np.asarray(entries.field("block").to_pylist(), dtype=object)
    knobs = {}
    for block in dict.fromkeys([*choices, *names]):
        here = names == block
        for field in entries.type:
            if field.name == "block":
                continue
            taps = _taps(choices, block, field.name)
            values = np.full(trials.num_rows, taps, dtype=object)
            values[owners[here]] = [taps if v is None else v for v in _values_of(entries.filter(here), field.name)]
            if len({v for v in values if v is not None or field.name not in _CONDITIONAL}) > 1:
                knobs[f"{block}.{field.name}"] = pd.Series(values, dtype=object)
    return knobs


def _values_of(entries: pa.StructArray, knob: str) -> list[Any]:
    """Return a knob's value in each entry, with the defaults that null stands for.

    A null allocation is uniform in a series of more than one coefficient without templates; elsewhere it means nothing.
    A null knob of `_DEFAULTS` is at its default if the knob beside it is set, a null arithmetic is float.
    """
    column = entries.field(knob)
    if knob == "allocation":
        series = pc.and_(entries.field("basis").is_valid(), entries.field("pruning_rate").is_null())
        several = pc.greater(pc.multiply(entries.field("harmonics_y"), entries.field("harmonics_x")), 1)
        uniform = pc.and_(column.is_null(), pc.and_(series, several.fill_null(False)))
        column = pc.if_else(uniform, "uniform", column)
    if knob == "arithmetic":
        column = pc.fill_null(column, "float")
    if knob in _DEFAULTS:
        beside, default = _DEFAULTS[knob]
        column = pc.if_else(entries.field(beside).is_valid(), pc.fill_null(column, default), column)
    values: list[Any] = column.to_pylist()
    return values


def _taps(choices: Mapping[str, Mapping[str, Sequence[Any]]], block: str, knob: str) -> Any:
    """Return the number of taps that null harmonics of a block stand for; None for other knobs or without choices."""
    return max(choices.get(block, {}).get(knob) or (None,)) if knob.startswith("harmonics") else None


def _best(rank: npt.NDArray[np.int64]) -> _Bools:
    """Return the trials of whole fronts, from the first on until they hold enough."""
    count = min(max(_BEST_LEAST, round(_BEST_SHARE * len(rank))), ceil(_BEST_MOST * len(rank)))
    last = np.sort(rank)[count - 1] if count else 0
    return rank <= last


def _shares(knobs: _Knobs, best: _Bools) -> list[dict[str, Any]]:
    divergences = {knob: _divergence(knobs[knob], best, _active(knobs, knob)) for knob in knobs}
    total = sum(value for value, _ in divergences.values())
    if not total:
        return []
    rows = [{"knob": knob, "share": value / total, "chance": chance} for knob, (value, chance) in divergences.items()]
    return sorted(rows, key=lambda row: -row["share"])


def _active(knobs: _Knobs, knob: str) -> _Bools:
    """Return the trials in which a knob means something: of a conditional knob, those with a value."""
    column, conditional = knobs[knob], knob.rpartition(".")[2] in _CONDITIONAL
    return np.asarray(column.notna()) if conditional else np.ones(len(column), dtype=bool)


def _divergence(values: pd.Series[Any], best: _Bools, active: _Bools) -> tuple[float, float]:
    """Return Pearson's divergence of the best among the active trials, less chance, and the chance of one as large."""
    inside, count = best & active, int(active.sum())
    drawn = int(inside.sum())
    codes, kinds = pd.factorize(values[active], use_na_sentinel=False)
    if drawn in (0, count) or len(kinds) < 2:
        return 0.0, 1.0
    everyone = np.bincount(codes, minlength=len(kinds)) / count
    chosen = np.bincount(codes[inside[active]], minlength=len(kinds)) / drawn
    divergence = float((everyone * (chosen / everyone - 1) ** 2).sum())
    blind = (len(kinds) - 1) * (count - drawn) / (drawn * (count - 1))
    weight = (drawn / best.sum()) ** 2 / (count / len(best))
    chance = float(scipy.special.chdtrc(len(kinds) - 1, divergence / blind * (len(kinds) - 1)))
    return max(0.0, divergence - blind) * float(weight), chance


def _by_block(knob_shares: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    shares: dict[str, float] = {}
    for row in knob_shares:
        block = row["knob"].rpartition(".")[0]
        shares[block] = shares.get(block, 0.0) + row["share"]
    return [{"block": block, "share": share} for block, share in sorted(shares.items(), key=lambda item: -item[1])]


def _by_stage(blocks: Sequence[Mapping[str, Any]], stages: Mapping[str, str]) -> list[dict[str, Any]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in blocks:
        found.setdefault(stages.get(row["block"], row["block"]), []).append(row)
    shares = {stage: sum(row["share"] for row in own) for stage, own in found.items()}
    return [{"stage": s, "share": shares[s], "blocks": found[s]} for s in sorted(shares, key=lambda s: -shares[s])]


def _effects(knobs: _Knobs, trials: pa.Table) -> list[dict[str, Any]]:
    score = trials.column("score").to_numpy()
    size, flops = (np.log(np.maximum(trials.column(name).to_numpy(), 1)) for name in ("size_bytes", "flops"))
    return [
        {
            "knob": knob,
            "value": value,
            "n": int(has.sum()),
            "score": float(score[has].mean()),
            "size_bytes": float(np.exp(size[has].mean())),
            "flops": float(np.exp(flops[has].mean())),
        }
        for knob in knobs
        for value, has in _values(knobs, knob)
    ]


def _shared(knobs: _Knobs, front: _Bools) -> list[dict[str, Any]]:
    return [
        {"knob": knob, "value": value, "front": float(has[front].mean()), "all": float(has.mean())}
        for knob in knobs
        for value, has in _values(knobs, knob)
    ]


def _values(knobs: _Knobs, knob: str) -> list[tuple[Any, _Bools]]:
    """Return each value of a knob with its trials, smallest first and null last; inactive trials have no value."""
    column, active = knobs[knob], _active(knobs, knob)
    values = [(value, np.asarray(column == value)) for value in sorted(column.dropna().unique())]
    rest = np.asarray(column.isna()) & active
    return [*values, (None, rest)] if rest.any() else values
