from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.data import DataSpec

Overtone = Callable[..., tuple[int, str, str]]


def test_options_mean_the_same_to_search_inspect_train_and_plot(
    overtone: Overtone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--mean", "0.1,0.2,0.3", "--std", "2", "--channels", "3")
    expected = DataSpec(mean=(0.1, 0.2, 0.3), std=2, channels=3)
    seen: list[DataSpec] = []

    def stop(spec: DataSpec, *_: Any) -> None:
        seen.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr("search.study.workload.load_data", stop)
    monkeypatch.setattr("search.api.networks.load_data", stop)
    monkeypatch.setattr("search.api.train.load_data", stop)
    digits = ("--model", "resnet8", "--dataset", "digits", *given)
    for command in (
        ("search", *digits, "--weights", str(weights), "--study", "s"),
        ("inspect", *digits),
        ("train", *digits, "--out", "x.safetensors"),
        ("plot", "filters", *digits, "--layer", "conv1", "--out", "x.png"),
        ("plot", "rates", *digits, "--pruning-rate", "0.5", "--out", "x.png"),
    ):
        overtone(*command)
    assert [spec.mean for spec in seen] == [expected.mean] * 5
    assert [(spec.std, spec.channels) for spec in seen] == [(expected.std, 3)] * 5
