"""The benchmark of real searches: it goes on where it stopped, trains nothing twice, and counts as it says."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("search_real")


def run(bench: ModuleType, folder: Path, *given: str) -> pd.DataFrame:
    bench.main(["--tiny", "--seed", "0", "--out", str(folder), "--scratch", str(folder / "scratch"), *given])
    return bench.Studies(folder / "search_real").all_rows()


def known(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows without what a clock says."""
    kept = rows.drop(columns=["seconds", "searcher_s", "effects_s"]).sort_values(["study", "number"], kind="stable")
    return [{**row, "scores": list(row["scores"])} for row in kept.to_dict("records")]


@pytest.mark.slow
def test_a_search_goes_on_where_it_stopped_and_no_config_is_trained_twice(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    make = bench.Trial
    monkeypatch.setattr(bench, "Trial", lambda spec, **given: begun.append(spec.config) or make(spec, **given))
    whole = run(bench, tmp_path / "whole", "--only", "stage", "layer")
    assert len(whole) == 8
    assert len(begun) == whole.config_digest.nunique() < 8
    assert (whole.effects_s > 0).tolist() == (whole.number == 0).tolist()
    assert (tmp_path / "whole" / "search_real.md").read_text().count("| layer |") == 2

    def thrice(clock: Any) -> Iterator[None]:
        yield from (None, None, None)
        raise TimeoutError

    monkeypatch.setattr(bench.Clock, "trials", thrice)
    monkeypatch.setattr(bench, "write", lambda *_: None)
    for trials in (2, 4):  # effects are measured first
        parts = run(bench, tmp_path / "parts", "--only", "stage")
        assert len(parts) == trials
    assert known(parts) == known(whole[whole.study == "stage"])


def test_what_is_known_of_a_stopped_trial_is_not_trained_again(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which holds with its checkpoint, and without."""
    arguments = ["--tiny", "--out", str(tmp_path), "--only", "hand"]
    monkeypatch.setattr(bench, "_run", lambda arguments, studies: found.append(bench.Subject.load(arguments)))
    found: list[Any] = []
    bench.main(arguments)
    workload = found[0].workload()
    config = workload.network.canonical(bench.hand_configs()["3 bits"])
    plan = bench.replace(found[0].plan, epochs=3)
    spec = plan.spec(config, **workload.hashes())
    whole = bench.Trained(workload, spec, None, tmp_path / "none")
    whole.until(4)
    part = bench.Trained(workload, spec, None, tmp_path / "part")
    part.until(2)
    part.keep()
    assert (tmp_path / "part").exists()
    for checkpoint in ("part", "lost"):
        row = {"scores": part.scores, "seconds": part.seconds}
        rest = bench.Trained(workload, spec, row, tmp_path / checkpoint)
        rest.until(2)
        assert rest._trial is None
        rest.until(4)
        assert rest.scores == whole.scores
        assert rest.seconds[:2] == part.seconds
        assert len(rest.seconds) == 4
        assert len(part.scores) == 2


def test_searches_are_compared_with_each_config_written_by_hand(bench: ModuleType) -> None:
    def rows(study: str, *points: tuple[float, float, float]) -> list[dict[str, Any]]:
        return [
            {"study": study, "seed": 0, "number": n, "name": f"{study} {n}", "status": "finished", "score": score}
            | {"size_bytes": size, "flops": flops, "size_share": size / 100, "flops_share": flops / 100}
            for n, (score, size, flops) in enumerate(points)
        ]

    late = [(0.5, 90.0, 90.0)] * 18 + [(0.8905, 30.0, 50.0), (0.887, 15.0, 50.0)]
    search = rows("stage", (0.88, 40.0, 50.0), (0.85, 20.0, 20.0), *late)
    hand = rows("hand", (0.884, 40.0, 50.0), (0.8895, 20.0, 50.0), (0.9, 10.0, 10.0), (0.2, 5.0, 90.0))
    compared = bench.compare(pd.DataFrame([*hand, *search])).set_index("hand")
    assert compared.dominates_at_20.tolist() == [True, True, True, False]
    assert compared.gain_at_40.tolist() == pytest.approx([0.0065, -0.0025, -1.0, -1.0])
    assert compared.bytes_at_40.tolist() == pytest.approx([15 / 40, 15 / 20, float("inf"), 15 / 5])
    assert compared.beaten_at_40.tolist() == [True, True, False, False]


def test_hypervolume_is_counted_in_seconds_of_finished_trials(bench: ModuleType) -> None:
    trials = pd.DataFrame(
        {
            "number": [1, 0, 2],
            "status": ["pruned", "finished", "finished"],
            "score": [None, 0.9, 0.95],
            "size_share": [0.1, 0.5, 0.5],
            "flops_share": [0.1, 0.5, 0.5],
            "seconds": [[1.0], [1.0, 2.0], [4.0]],
            "searcher_s": [0.5, 0.0, 0.0],
            "effects_s": [0.0, 10.0, 0.0],
        }
    )
    found = bench._volumes(trials, 0.2)
    assert found.seconds.tolist() == [13.0, 14.5, 18.5]
    assert found.volume.tolist() == pytest.approx([0.125, 0.125, 0.75 * 0.25])
    assert [bench._at(found, seconds) for seconds in (12.9, 13.0, 18.5)] == pytest.approx([0.0, 0.125, 0.1875])
