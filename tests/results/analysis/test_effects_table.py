from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from layers.errors import OvertoneError, UsageError
from results.analysis.effects_table import effects_table
from results.ledger.effects import EffectsLibrary
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.report.effects_plot import plot_effects
from results.report.report import write_report
from spaces import BlockConfig
from spaces.effects import Effect, Effects
from tests.results.conftest import RECORD

HALF = BlockConfig(basis="cosine", harmonics=(2, 2))
KNOWN = {"network": {"structure_sha256": "ab", "outputs": [1.0]}}
NOTES = {"held_out": 3, "held_out_error": 0.0125, "held_out_factor": 1.5}


def _effect(block: str, config: BlockConfig, divergence: float) -> Effect:
    saved = {"bytes_saved": 1500, "flops_saved": -2_000_000}
    measured = {"loss": 9.0, "divergence": divergence, "divergence_error": 0.001, "score": 0.85, "seconds": 1.0}
    return Effect(block=block, config=config, **measured, **saved)


@pytest.fixture
def ledger(tmp_path: Path, make_row: Callable) -> Ledger:
    """A study of two stages, in a store that knows effects of a layer too."""
    ledger = Ledger(Store(tmp_path / "runs"))
    ledger.create_study("demo", {**RECORD, "choices": {"conv1": {}, "layer<b>": {}}, **KNOWN})
    effects = (
        *(_effect("layer<b>", BlockConfig(bits=4), 0.25), _effect("conv1", BlockConfig(bits=4), 0.5)),
        *(_effect("layer<b>", HALF, 1.25), _effect("layer1.0", HALF, 9.0), _effect("conv1", BlockConfig(bits=2), 8.0)),
    )
    library = Effects(loss=0.1, score=0.9, images=64, calibration_images=32, seed=0, effects=effects)
    EffectsLibrary(ledger.store, ledger.study("demo")).write(library, NOTES)
    ledger.append(make_row())
    return ledger


def test_the_study_s_own_blocks_have_their_effects_in_network_order(ledger: Ledger) -> None:
    table = effects_table(ledger, "demo")
    rows = table["effects"]
    assert [(row["block"], row["form"]) for row in rows] == [
        ("conv1", "4 bits"),
        ("conv1", "2 bits"),
        ("layer<b>", "4 bits"),
        ("layer<b>", "cosine 2x2"),
    ]
    assert {name: rows[0][name] for name in ("loss_increase", "loss_error", "bytes_saved", "flops_saved")} == {
        "loss_increase": 0.5,
        "loss_error": 0.001,
        "bytes_saved": 1500,
        "flops_saved": -2_000_000,
    }
    assert rows[0]["score_change"] == pytest.approx(-0.05)
    assert table["blocks"] == [
        {"block": "conv1", "loss_increase": pytest.approx(4.25)},
        {"block": "layer<b>", "loss_increase": 0.75},
    ]
    assert {name: table[name] for name in NOTES} == NOTES


def test_a_study_without_effects_has_no_table_and_no_picture(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path / "runs"))
    ledger.create_study("demo", RECORD)
    assert effects_table(ledger, "demo") is None
    with pytest.raises(OvertoneError, match=r"study 'demo' has no effects to draw: a search with the sampler ehvi"):
        plot_effects(ledger, "demo", tmp_path / "effects.png")


def test_the_report_tells_which_block_costs_the_accuracy(ledger: Ledger, tmp_path: Path) -> None:
    text = write_report(ledger, "demo", tmp_path / "report.html").read_text()
    section = text[text.index('<section aria-labelledby="effects">') :]
    section = section[: section.index("</section>")]
    for told in ("conv1", "4.2", "+0.5000 ± 0.0010", "-5.00 %", "-1.5 kB", "+2.00 MFLOPs", "0.013 nats", "(n = 3)"):
        assert told in section, told
    assert "layer<b>" not in section
    assert "layer&lt;b&gt;" in section


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_effects_are_drawn_the_same_each_time(ledger: Ledger, tmp_path: Path, suffix: str) -> None:
    first, second = (plot_effects(ledger, "demo", tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second
    if suffix == ".svg":
        assert ElementTree.fromstring(first).tag.endswith("svg")
    with pytest.raises(UsageError, match=r"must end in .png or .svg"):
        plot_effects(ledger, "demo", tmp_path / "effects.pdf")
