from pathlib import Path

import pytest

from search.commands.display import confirm_line, export_line, search_line, status_line
from search.runner.confirm import RepeatResult
from search.runner.launch import SearchResult


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
    counts = dict.fromkeys(("finished", "failed", "pruned", "sketches", "running", "wanted", "effects_s"), 0)
    found = {"study": "s", "state": "finished", "seconds_left": None, "hypervolume": 0.5, **counts}
    assert text in status_line({**found, "front": front, "confirmed": confirmed})


def test_a_confirmation_ends_with_what_is_left() -> None:
    ended = RepeatResult(trials=("a", "b"), wanted=6, done=4, failed=1)
    assert confirm_line("s", ended) == "4 of 6 repeats of 2 trials of s done, 1 failed; the same command continues"
    assert (
        confirm_line("s", RepeatResult(trials=("a",), wanted=3, done=3, failed=0))
        == "all 3 repeats of 1 trial of s done"
    )


@pytest.mark.parametrize(
    ("result", "store", "line"),
    [
        ((8, 8, False), "runs", "all 8 trials done; run more with: overtone resume --study s --more 8"),
        ((3, 8, False), "a b", "stopped at 3 of 8 trials; continue with: overtone resume --study s --store 'a b'"),
        ((3, 8, True), "runs", "3 trials done, the space holds no further network"),
    ],
)
def test_a_search_ends_with_the_command_that_continues_it(result: tuple[int, int, bool], store: str, line: str) -> None:
    done, wanted, exhausted = result
    assert search_line("s", store, SearchResult(done=done, wanted=wanted, exhausted=exhausted)) == line


def test_an_export_shows_the_score_under_its_own_name() -> None:
    card = {"trial": "abc", "size_bytes": 1500, "flops": 2_000_000, "score_name": "val_miou", "score": 0.5}
    tests = {"test_metrics": {"test_miou": 0.25, "test_loss": 1.0}, "test_n": 7, "val_n": 9, "differing": 1}
    line = export_line(Path("out"), card | tests)
    assert line.startswith("out: trial abc, 1.5 kB, 2.00 MFLOPs, val_miou 0.5000, test_miou 0.2500 (n = 7); ")
    assert line.endswith("gives the trial's class for 8 of 9 validation images")
