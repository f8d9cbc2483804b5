import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from results.ledger.effects import EffectsLibrary
from results.ledger.ledger import Ledger
from search.api.study import Study
from search.commands.effects_table import show_effects
from search.study.plan import StudyPlan
from spaces import BlockConfig
from spaces.effects import Effect, Effects

EFFECT = Effect(
    block="layer1",
    config=BlockConfig(bits=4),
    loss=0.5,
    divergence=0.25,
    divergence_error=0.0625,
    score=0.75,
    seconds=1.0,
    bytes_saved=2500,
    flops_saved=1_500_000,
)


@pytest.fixture
def study(ledger: Ledger, plan: StudyPlan) -> tuple[str, ...]:
    """Options of a study without a trial, with effects of one block."""
    known = {"network": {"structure_sha256": "ab", "outputs": [1.0]}}
    ledger.create_study("s", {**plan.to_record(), "uncompressed": {}, "choices": {"layer1": {}}, **known})
    effects = tuple(replace(EFFECT, config=BlockConfig(bits=bits)) for bits in (4, 8, 6, 5, 3))
    library = Effects(loss=0.25, score=0.8, images=64, calibration_images=32, seed=0, effects=effects)
    notes = {"held_out": 5, "held_out_error": 0.5, "held_out_factor": 2.0}
    EffectsLibrary(ledger.store, ledger.study("s")).write(library, notes)
    return ("--study", "s", "--store", ledger.store.uri)


def test_importance_shows_what_single_blocks_cost_and_how_far_the_rule_is_off(
    overtone: Callable[..., tuple[int, str, str]], study: tuple[str, ...]
) -> None:
    code, out, err = overtone("importance", *study)
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    told = (
        "costliest on average: layer1 0.25 nats",
        "+0.2500 ± 0.0625",
        "-5.00%",
        "-2.5 kB",
        "-1.50 MFLOPs",
        "train top1",
    )
    assert all(text in out for text in told), out
    assert "to within 0.5 nats on average, typically a factor of 2 (n = 5)" in out
    assert ("5 bits" in out, "3 bits" in out) == (True, False)
    found = json.loads(overtone("importance", *study, "--json")[1])["block_effects"]
    assert [row["form"] for row in found["effects"]] == ["4 bits", "8 bits", "6 bits", "5 bits", "3 bits"]


def test_effects_are_a_frame_in_python_and_a_picture(
    overtone: Callable[..., tuple[int, str, str]], ledger: Ledger, study: tuple[str, ...], tmp_path: Path
) -> None:
    frame = Study(ledger, "s").effects()
    assert frame["loss_increase"].tolist() == [0.25] * 5
    assert frame.attrs == {"held_out": 5, "held_out_error": 0.5, "held_out_factor": 2.0}
    path = tmp_path / "effects.svg"
    assert overtone("plot", "effects", *study, "--out", str(path)) == (0, f"{path}\n", "")
    assert path.exists()


def test_nothing_is_shown_where_nothing_was_measured(ledger: Ledger, plan: StudyPlan) -> None:
    console = Console(file=io.StringIO())
    show_effects(console, None, "s", "val_top1")
    assert console.file.getvalue() == ""
    ledger.create_study("s", {**plan.to_record(), "uncompressed": {}})
    assert Study(ledger, "s").effects().empty
