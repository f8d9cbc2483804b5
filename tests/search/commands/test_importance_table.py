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
        "stages": [{"stage": "a", "share": 1.0, "blocks": [{"block": "a", "share": 1.0}]}],
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
    show_importance(console, {**found, "importance": [], "blocks": [], "stages": []}, "s", "val_top1", 1)
    assert "no knob stands out" in _shown(console)
    show_importance(console, {"trials": 0}, "s", "val_top1", 1)
    assert "s: no trial has finished yet" in _shown(console)


def test_layers_are_shown_below_their_stage(console: Console) -> None:
    layers = [{"block": f"layer1.{n}", "share": share} for n, share in ((0, 0.5), (1, 0.2), (2, 0.0))]
    stages = [
        {"stage": "layer1", "share": 0.7, "blocks": layers},
        {"stage": "fc", "share": 0.3, "blocks": [{"block": "fc", "share": 0.3}]},
    ]
    found = {"trials": 30, "best": 10, "importance": [], "blocks": [], "stages": stages, "effects": [], "shared": []}
    show_importance(console, found, "s", "val_top1", 1)
    lines = [line.strip(" │|").split() for line in _shown(console).splitlines()]
    shown = [[word for word in line if word not in "│|"] for line in lines]
    parts = [line for line in shown if len(line) == 2 and line[1].endswith("%") and "." in line[1]]
    assert parts == [["layer1", "70.0%"], ["layer1.0", "50.0%"], ["layer1.1", "20.0%"], ["fc", "30.0%"]]
    assert "by stage: layer1 70%, fc 30%" in _shown(console)
