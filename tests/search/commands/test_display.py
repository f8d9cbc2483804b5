import io

import pandas as pd
import pytest
from rich.console import Console

from search.commands.display import accuracy, confirm_line, show_survey, show_trials, status_line
from search.commands.importance_table import show_insight
from search.commands.survey import survey
from search.runner.confirm import RepeatResult
from spaces import Network, Space, build_model
from trainers.estimate import TrialEstimate


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_accuracy_says_over_how_many_seeds() -> None:
    repeated = {"val_top1_mean": 0.975, "val_top1_low": 0.971, "val_top1_high": 0.979, "seeds": 4}
    assert accuracy(repeated) == "97.50% ±0.40 (n=4)"
    assert (
        accuracy(repeated | {"val_top1_mean": 0.99, "val_top1_low": 0.97, "val_top1_high": 1.0}) == "99.00% ±2.00 (n=4)"
    )
    assert accuracy({"val_top1_mean": 0.975, "seeds": 1}) == "97.50% (1 seed)"


def test_trials_with_seeds_show_them_and_named_columns_stay_plain(console: Console) -> None:
    sure = {
        "seeds": 1,
        "val_top1_mean": 0.9,
        "val_top1_low": None,
        "val_top1_high": None,
        "probability_dominated": 0.25,
    }
    frame = pd.DataFrame(
        [{"trial": "abc", "val_top1": 0.9, "size_bytes": 1500, "error": "[Errno 5]", "history": [1, 2]} | sure]
    )
    show_trials(console, frame, "t")
    assert all(text in _shown(console) for text in ("90.00% (1 seed)", "25.0%", "P(dominated)", "1.5 kB"))
    assert "Errno" not in _shown(console)
    show_trials(console, frame, "t", ["error", "history", "val_top1"])
    shown = _shown(console).rpartition("history")[2]
    assert "[Errno 5]" in shown
    assert "2 epochs" in shown
    assert "(1 seed)" not in shown


@pytest.mark.parametrize(
    ("front", "confirmed", "text"),
    [
        (8, 0, "front 8 (8 of a single seed)"),
        (8, 3, "front 8 (3 over several seeds, 5 of a single seed)"),
        (2, 2, "front 2 (2 over several seeds)"),
        (0, 0, "front 0 (0 of a single seed)"),
    ],
)
def test_status_marks_single_seeds(front: int, confirmed: int, text: str) -> None:
    counts = dict.fromkeys(("finished", "failed", "pruned", "running", "wanted"), 0)
    found = {"study": "s", "state": "finished", "seconds_left": None, "hypervolume": 0.5, **counts}
    assert text in status_line({**found, "front": front, "confirmed": confirmed})


def test_a_confirmation_ends_with_what_is_left() -> None:
    ended = RepeatResult(trials=("a", "b"), wanted=6, done=4, failed=1)
    assert confirm_line("s", ended) == "4 of 6 repeats of 2 trials of s done, 1 failed; the same command goes on"
    assert (
        confirm_line("s", RepeatResult(trials=("a",), wanted=3, done=3, failed=0))
        == "all 3 repeats of 1 trial of s done"
    )


def test_insight_is_a_table_of_the_most_important_knobs(console: Console) -> None:
    found = {
        "trials": 30,
        "best": 10,
        "importance": [{"knob": f"a.{k}", "share": s, "chance": 0.01} for k, s in (("bits", 0.7), ("groups", 0.3))],
        "blocks": [{"block": "a", "share": 1.0}],
        "effects": [
            {"knob": f"a.{k}", "value": v, "n": 7, "val_top1": 0.5, "size_bytes": 2000.0, "flops": 1e6}
            for k, v in (("bits", 4), ("bits", None), ("groups", 2))
        ],
        "shared": [
            {"knob": f"a.{k}", "value": v, "front": 0.25, "all": 0.5}
            for k, v in (("bits", 4), ("bits", None), ("groups", 2))
        ],
    }
    show_insight(console, found, "s", 1)
    shown = _shown(console)
    assert all(text in shown for text in ("best 10 of 30 trials", "a.bits", "70.0%", "none", "2.0 kB", "a 100%"))
    assert "a.groups" not in shown
    show_insight(console, {**found, "importance": [], "blocks": []}, "s", 1)
    assert "No knob stands out" in _shown(console)
    show_insight(console, {"trials": 0}, "s", 1)
    assert "s: no trial has finished yet" in _shown(console)


def test_no_rows_are_said_in_words(console: Console) -> None:
    show_trials(console, pd.DataFrame(columns=["trial", "val_top1"]), "demo: 0 trials")
    assert _shown(console).strip() == "demo: 0 trials"


def test_a_survey_shows_the_papers_rows_under_the_blocks(console: Console) -> None:
    space = Space.default(Network.from_module(build_model("resnet20", classes=10, channels=3), (3, 32, 32)))
    found = survey(space, model="resnet20", train_images=0, epochs=5)
    presets = {preset["name"]: preset for preset in found.to_json()["presets"]}
    assert len(presets) == 10
    row, norms = presets["cos-3,3,2,2"], space.network.rest.parameters
    assert row["published_top1"] == 89.55
    assert row["published_base"] == 91.73
    whole = found.uncompressed
    assert row["percent_size"] == pytest.approx(100 * row["size_bytes"] / whole["size_bytes"])
    assert row["percent_flops"] == pytest.approx(100 * row["flops"] / whole["flops"])
    assert row["percent_parameters"] == pytest.approx(100 * (row["parameters"] - norms) / (whole["parameters"] - norms))
    show_survey(console, found, "resnet20")
    above, _, below = _shown(console).partition("Costain & Prisacariu, Table 1 (CIFAR-10)")
    assert "conv1" in above
    line = next(line for line in below.splitlines() if "cos-3,3,2,2" in line)
    assert f"{row['size_bytes'] / 1e3:.1f} kB ({row['percent_size']:.1f}%)" in line
    assert f"{row['percent_parameters']:.2f}%" in line
    assert "89.55 (-2.18)" in line


def test_a_survey_shows_what_a_trial_takes_by_its_parts(console: Console) -> None:
    space = Space.default(Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8)))
    parts = {"weights": 1, "gradients": 2, "optimizer": 3, "activations": 1400, "validation": 40, "images": 50}
    trial = TrialEstimate(
        device="cpu",
        threads=2,
        training_s=250,
        validation_s=20,
        **{f"{part}_bytes": megabytes * 1_000_000 for part, megabytes in parts.items()},
    )
    show_survey(console, survey(space, model="resnet8", train_images=1000, epochs=5, trial=trial), "resnet8")
    shown = _shown(console)
    assert "a trial: about 4 min 30 s on cpu (2 threads), 1.5 GB, up to 22.4 GFLOPs of fine-tuning" in shown
    assert "time: training 4 min 10 s, validation 20 s; the start is extra" in shown
    assert "memory: weights 1.0 MB, gradients 2.0 MB, optimizer 3.0 MB, activations 1.4 GB, validation 40 MB" in shown


def test_a_survey_of_any_network_has_generic_rows(console: Console) -> None:
    space = Space.default(Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8)))
    show_survey(console, survey(space, model="resnet8", train_images=0, epochs=5), "resnet8")
    line = next(line for line in _shown(console).splitlines() if "cos-from-layer3" in line)
    assert line.split()[-2] == "-"
