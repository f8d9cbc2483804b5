import math

import pytest
import torch
from torch import nn

from layers.errors import OvertoneError
from trainers.data import Split
from trainers.evaluation import evaluate, latency_ms, predict

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def network(seed: int = 0, classes: int = 5) -> nn.Module:
    """With batch norm and dropout, so that a wrong mode shows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        )
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model


def split(n: int, classes: int = 5, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Split(images=images, labels=torch.randint(classes, (n,), generator=generator))


def one_by_one(model: nn.Module, data: Split) -> tuple[list[list[int]], float]:
    """The classes from likely to unlikely, and the mean loss, an image at a time, written out."""
    model.eval()
    ranked, loss = [], 0.0
    for image, label in zip(data.images, data.labels, strict=True):
        planes = [(image[c].double() / 255 - MEAN[c]) / STD[c] for c in range(3)]
        with torch.no_grad():
            logits = model(torch.stack(planes).float()[None])[0].double()
        ranked.append(sorted(range(len(logits)), key=lambda c: -float(logits[c])))
        loss -= float(logits[label] - logits.logsumexp(0))
    return ranked, loss / len(data)


@pytest.mark.parametrize(
    ("n", "batch_size", "classes"), [(1, 512, 5), (37, 8, 7), (40, 40, 20), (41, 40, 6), (9, 4, 3)]
)
def test_evaluation_equals_one_image_at_a_time(n, batch_size, classes):
    model, data = network(classes=classes), split(n, classes)
    expected, loss = one_by_one(network(classes=classes), data)
    found = evaluate(model, data, mean=MEAN, std=STD, device="cpu", batch_size=batch_size)
    assert found.n == n
    for share, most in ((found.top1, 1), (found.top5, 5)):
        assert share == sum(b in a[:most] for a, b in zip(expected, data.labels.tolist(), strict=True)) / n
    assert found.loss == pytest.approx(loss, rel=1e-5)
    predicted = predict(model, data, mean=MEAN, std=STD, device="cpu", batch_size=batch_size)
    assert predicted.tolist() == [ranks[0] for ranks in expected]
    assert predicted.dtype == torch.int64


def test_the_model_is_left_as_it_was_found_module_by_module():
    model, data = network(), split(9)
    model.train()
    model[1].eval()  # a frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for call in (
        lambda: evaluate(model, data, mean=MEAN, std=STD, device="cpu"),
        lambda: predict(model, data, mean=MEAN, std=STD, device="cpu"),
        lambda: latency_ms(model, (3, 8, 8), "cpu"),
    ):
        call()
        assert [module.training for module in model] == [True, False, True, True, True, True, True]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.is_grad_enabled()


def test_evaluation_repeats_itself():
    model, data = network(), split(50)
    one, other = (evaluate(model, data, mean=MEAN, std=STD, device="cpu") for _ in range(2))
    assert one == other


class Poisoned(nn.Module):
    """Answers with a bad number for images whose first pixel is 0."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), 4)
        logits[images[:, 0, 0, 0] == -MEAN[0] / STD[0], 2] = self.value
        return logits


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_no_numbers_are_counted_and_refused(value):
    data = split(30)
    data.images[:, 0, 0, 0] = 9
    data.images[[4, 17, 18], 0, 0, 0] = 0
    model = Poisoned(value).train()
    with pytest.raises(OvertoneError, match="outputs are infinite or not numbers for 3 of 30 images"):
        evaluate(model, data, mean=MEAN, std=STD, device="cpu", batch_size=7)
    with pytest.raises(OvertoneError, match="3 of 30"):
        predict(model, data, mean=MEAN, std=STD, device="cpu", batch_size=7)
    assert model.training
    assert torch.is_grad_enabled()


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


@pytest.mark.parametrize("classes", [2, 5])
def test_every_label_is_among_the_five_highest_of_five_classes(classes):
    found = evaluate(network(classes=classes), split(30, classes), mean=MEAN, std=STD, device="cpu")
    assert found.top5 == 1.0
    assert found.top1 < 1.0


def test_slow_passes_are_timed_less_often(monkeypatch):
    model = Sleeper([9000.0, 2000.0, 4000.0, 3000.0])
    monkeypatch.setattr("layers.timing.time.perf_counter", lambda: model.clock)
    assert latency_ms(model, (3, 6, 6), "cpu", batch_size=64) == pytest.approx(3000.0)
    assert model.shapes == [(64, 3, 6, 6)] * 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    model, data = network(), split(64)
    expected = evaluate(model, data, mean=MEAN, std=STD, device="cpu")
    found = evaluate(model, data, mean=MEAN, std=STD, device="cuda")
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
    assert latency_ms(model, (3, 8, 8), "cuda") > 0
