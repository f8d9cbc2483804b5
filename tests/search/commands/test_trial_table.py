import io

import pandas as pd
import pytest
from rich.console import Console

from search.commands.trial_table import format_score, show_trials


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_score_says_over_how_many_seeds() -> None:
    repeated = {"score_mean": 0.975, "score_low": 0.971, "score_high": 0.979, "seeds": 4}
    assert format_score(repeated) == "97.50% ±0.40 (n=4)"
    wide = repeated | {"score_mean": 0.99, "score_low": 0.97, "score_high": 1.0}
    assert format_score(wide) == "99.00% ±2.00 (n=4)"
    assert format_score({"score_mean": 0.975, "seeds": 1}) == "97.50% (1 seed)"


def test_trials_with_seeds_show_them_and_named_columns_stay_plain(console: Console) -> None:
    sure = {"seeds": 1, "score_mean": 0.9, "score_low": None, "score_high": None, "probability_dominated": 0.25}
    trial = {"trial": "abc", "score": 0.9, "val_top1": 0.9, "size_bytes": 1500, "error": "[Errno 5]", "history": [1, 2]}
    frame = pd.DataFrame([trial | sure])
    show_trials(console, frame, "t", "val_top1")
    shown = _shown(console)
    assert all(text in shown for text in ("val_top1", "90.00% (1 seed)", "25.0%", "P(dominated)", "1.5 kB"))
    assert "Errno" not in shown
    assert "score" not in shown
    show_trials(console, frame, "t", "val_top1", ["error", "history", "val_top1", "score", "score_mean"])
    shown = _shown(console).rpartition("history")[2]
    assert "[Errno 5]" in shown
    assert "2 epochs" in shown
    assert shown.count("90.00%") == 3
    assert "(1 seed)" not in shown


def test_a_score_of_any_name_is_shown_under_it(console: Console) -> None:
    frame = pd.DataFrame([{"trial": "abc", "score": 0.5, "val_miou": 0.5, "init_miou": 0.25, "status": "finished"}])
    show_trials(console, frame, "t", "val_miou")
    assert all(text in _shown(console) for text in ("val_miou", "50.00%"))
    show_trials(console, frame, "t", "val_miou", ["init_miou"])
    assert "25.00%" in _shown(console)


def test_latencies_say_where_they_were_taken(console: Console) -> None:
    here = {"latency_runtime": "onnxruntime", "latency_threads": 2, "latency_device": "Z80"}
    none = dict.fromkeys(("latency_ms", *here))
    frame = pd.DataFrame([{"trial": "a", "latency_ms": 1.5, **here}, {"trial": "b", **none}])
    show_trials(console, frame, "t", "val_top1")
    assert "latency in onnxruntime on Z80, 2 threads" in _shown(console)
    gpu = {"latency_runtime": "torch", "latency_threads": None, "latency_device": "H200"}
    frame = pd.DataFrame([{"trial": "a", "latency_ms": 1.5, **here}, {"trial": "c", "latency_ms": 2.5, **gpu}])
    show_trials(console, frame, "t", "val_top1")
    assert "latency in onnxruntime on Z80, 2 threads and in torch on H200" in _shown(console)
    show_trials(console, pd.DataFrame([{"trial": "b", **none}]), "plain", "val_top1")
    assert "latency" not in _shown(console).rpartition("plain")[2]


def test_no_rows_are_said_in_words(console: Console) -> None:
    show_trials(console, pd.DataFrame(columns=["trial", "val_top1"]), "demo: 0 trials", "val_top1")
    assert _shown(console).strip() == "demo: 0 trials"
