"""Which graph a layer gets, by times that are given, and in a runtime."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model
from spaces.portable import tuning
from spaces.portable.skeleton import Skeleton, make_skeleton
from spaces.portable.tuning import Runtime, choose_executions

SERIES = LayerForm(basis="cosine", harmonics=(1, 1))
IMAGE = (64, 8, 8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    layers = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1, groups=2)).eval()


@pytest.fixture(scope="module")
def skeleton(net: nn.Module) -> Skeleton:
    return make_skeleton(net, IMAGE)


@pytest.mark.parametrize(
    ("single", "batch", "chosen"), [(0.9, 1.0, True), (0.91, 0.5, False), (0.3, 1.01, False), (0.3, 0.3, True)]
)
def test_two_stages_must_be_faster_alone_and_no_slower_in_a_batch(
    net: nn.Module, skeleton: Skeleton, monkeypatch: pytest.MonkeyPatch, single: float, batch: float, chosen: bool
) -> None:
    timed = []

    def ratio(runs: Sequence[Callable[[Any], Any]], shape: tuple[int, ...], clock: object) -> float:
        timed.append(shape)
        return {1: single, 64: batch}[shape[0]]

    monkeypatch.setattr(tuning, "_ratio", ratio)
    monkeypatch.setattr(tuning, "_chosen", {})
    forms = {"0": SERIES, "1": SERIES, "2": LayerForm(bits=8), "3": LayerForm(templates=16, transform="scalar")}
    model = compress_model(net, forms).eval()
    for _ in range(2):
        assert choose_executions(skeleton, model) == ({"0": "factored", "1": "factored"} if chosen else {})
    assert timed == [(1, *IMAGE), (64, *IMAGE)][: 1 + (single <= 0.9)]  # once for both layers, and no other


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_graphs_run_where_they_are_timed(net: nn.Module, skeleton: Skeleton, runtime: Any) -> None:
    templates = LayerForm(templates=8, transform="scalar", groups=2)
    forms = {"0": SERIES, "1": LayerForm(templates=8, transform="zero"), "2": templates}
    model = compress_model(net, forms).eval()
    with torch.no_grad():
        chosen = choose_executions(skeleton, model, Runtime(runtime))
    assert set(chosen.items()) <= {("0", "factored"), ("1", "pruned"), ("2", "two_stage")}
