import pytest
import torch
from torch import nn

from trainers.runtime.latency import latency_ms


class Sleeper(nn.Module):
    """Counts its calls and takes the stated time for each."""

    def __init__(self, milliseconds: list[float]) -> None:
        super().__init__()
        self.milliseconds, self.shapes = iter(milliseconds), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        self.clock += next(self.milliseconds) / 1000
        return images

    clock = 0.0


def test_latency_is_the_median_of_the_timed_runs(monkeypatch):
    timed = [*[7.0] * 14, *[3.0] * 14, 1000.0, 2.0]
    model = Sleeper([500.0] * 5 + timed)
    monkeypatch.setattr("layers.timing.time.perf_counter", lambda: model.clock)
    assert latency_ms(model, (3, 6, 6), "cpu") == pytest.approx(5.0)
    assert model.shapes == [(1, 3, 6, 6)] * 35
    assert next(model.milliseconds, None) is None


def test_latency_takes_a_batch():
    model = Sleeper([0.0] * 35)
    latency_ms(model, (1, 4, 4), "cpu", batch_size=64)
    assert set(model.shapes) == {(64, 1, 4, 4)}


def test_slow_passes_are_timed_less_often(monkeypatch):
    model = Sleeper([9000.0, 2000.0, 4000.0, 3000.0])
    monkeypatch.setattr("layers.timing.time.perf_counter", lambda: model.clock)
    assert latency_ms(model, (3, 6, 6), "cpu", batch_size=64) == pytest.approx(3000.0)
    assert model.shapes == [(64, 3, 6, 6)] * 4


def test_the_model_is_left_as_it_was_found_module_by_module():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5))
    model.train()
    model[1].eval()  # a frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    latency_ms(model, (3, 8, 8), "cpu")
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_timed():
    assert latency_ms(nn.Conv2d(3, 8, 3), (3, 8, 8), "cuda") > 0
