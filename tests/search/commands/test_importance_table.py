import io

import pytest
from rich.console import Console

from search.commands.importance_table import show_importance


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_importance_is_a_table_of_the_most_important_knobs(console: Console) -> None:
    found = {
        "trials": 30,
        "best": 10,
        "importance": [{"knob": f"a.{k}", "share": s, "chance": 0.01} for k, s in (("bits", 0.7), ("groups", 0.3))],
        "blocks": [{"block": "a", "share": 1.0}],
        "effects": [
            {"knob": f"a.{k}", "value": v, "n": 7, "score": 0.5, "size_bytes": 2000.0, "flops": 1e6}
            for k, v in (("bits", 4), ("bits", None), ("groups", 2))
        ],
        "shared": [
            {"knob": f"a.{k}", "value": v, "front": 0.25, "all": 0.5}
            for k, v in (("bits", 4), ("bits", None), ("groups", 2))
        ],
    }
    show_importance(console, found, "s", "val_top1", 1)
    shown = _shown(console)
    assert all(text in shown for text in ("best 10 of 30 trials", "a.bits", "70.0%", "none", "2.0 kB", "a 100%"))
    assert all(text in shown for text in ("val_top1", "50.00%"))
    assert "a.groups" not in shown
    show_importance(console, {**found, "importance": [], "blocks": []}, "s", "val_top1", 1)
    assert "no knob stands out" in _shown(console)
    show_importance(console, {"trials": 0}, "s", "val_top1", 1)
    assert "s: no trial has finished yet" in _shown(console)
