"""Which block costs the accuracy: a study's measured effects as rows that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from results.formatting import format_block
from results.ledger.effects import EffectsLibrary
from results.ledger.ledger import Ledger
from results.schema import block_records
from spaces.effects import Effect, Effects

__all__ = ["effects_table"]


def effects_table(ledger: Ledger, study: str) -> dict[str, Any] | None:
    """Return the effects of a study's blocks as plain JSON data, None if none were measured.

    `effects` has a row for each, blocks in network order, each block's most telling forms first: `block`, `form` (as
    people write it), `loss_increase` in nats and `loss_error` (its standard error), `score_change`, `bytes_saved` and
    `flops_saved`, of this block alone. `blocks` has each block's mean `loss_increase` over the forms that most blocks
    have, the costliest first. `images`, `loss` and `score` are of the uncompressed network. `held_out_error` in nats
    and `held_out_factor` say how far the rule is off that tells other forms (`results.analysis.effects`), from
    `held_out` effects that were left out in turn; null if there are none. Raises `UsageError` if the effects are of
    other weights or data.
    """
    record = ledger.study(study)
    found = EffectsLibrary(ledger.store, record).read()
    if found is None:
        return None
    effects, notes = found
    blocks = list(record.get("choices") or dict.fromkeys(effect.block for effect in effects.effects))
    own = sorted((e for e in effects.effects if e.block in blocks), key=lambda effect: blocks.index(effect.block))
    if not own:
        return None
    rows = [_row(effect, effects) for effect in own]
    return {
        "images": effects.images,
        "loss": effects.loss,
        "score": effects.score,
        "blocks": _costliest(rows),
        "effects": rows,
        **{name: notes.get(name) for name in ("held_out", "held_out_error", "held_out_factor")},
    }


def _row(effect: Effect, effects: Effects) -> dict[str, Any]:
    config = effect.to_json()["config"]
    (record,) = block_records({"blocks": {effect.block: config}})
    return {
        "block": effect.block,
        "form": format_block(record).removeprefix(f"{effect.block}: "),
        "config": config,
        "loss_increase": effect.divergence,
        "loss_error": effect.divergence_error,
        "score_change": effect.score - effects.score,
        "bytes_saved": effect.bytes_saved,
        "flops_saved": effect.flops_saved,
    }


def _costliest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return blocks with their mean loss over the forms that at least half of the blocks have."""
    by_block: dict[str, dict[str, float]] = {}
    for row in rows:
        by_block.setdefault(row["block"], {})[row["form"]] = row["loss_increase"]
    forms = dict.fromkeys(row["form"] for row in rows)
    common = {form for form in forms if 2 * sum(form in own for own in by_block.values()) >= len(by_block)}
    means = {block: _mean(own, common) for block, own in by_block.items()}
    return [{"block": block, "loss_increase": mean} for block, mean in sorted(means.items(), key=lambda item: -item[1])]


def _mean(losses: Mapping[str, float], forms: set[str]) -> float:
    shown = [loss for form, loss in losses.items() if form in forms] or list(losses.values())
    return sum(shown) / len(shown)
