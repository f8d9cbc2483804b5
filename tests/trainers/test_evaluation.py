import math
from functools import partial

import pytest
import torch
from torch import nn

from layers.errors import OvertoneError
from trainers.data import Split
from trainers.data.augment import normalize
from trainers.evaluation import evaluate, predict
from trainers.score import SCORE_NAME

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
NORMALIZE = partial(normalize, mean=MEAN, std=STD)


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
    found = evaluate(model, data, NORMALIZE, device="cpu", batch_size=batch_size)
    assert found.n == n
    for share, most in ((found.top1, 1), (found.top5, 5)):
        assert share == sum(b in a[:most] for a, b in zip(expected, data.labels.tolist(), strict=True)) / n
    assert found.loss == pytest.approx(loss, rel=1e-5)
    predicted = predict(model, data, NORMALIZE, device="cpu", batch_size=batch_size)
    assert predicted.tolist() == [ranks[0] for ranks in expected]
    assert predicted.dtype == torch.int64


def test_the_model_is_left_as_it_was_found_module_by_module():
    model, data = network(), split(9)
    model.train()
    model[1].eval()  # a frozen batch norm
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for call in (
        lambda: evaluate(model, data, NORMALIZE, device="cpu"),
        lambda: predict(model, data, NORMALIZE, device="cpu"),
    ):
        call()
        assert [module.training for module in model] == [True, False, True, True, True, True, True]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.is_grad_enabled()


def test_metrics_are_named_after_the_split():
    found = evaluate(network(), split(9), NORMALIZE, device="cpu")
    assert found.metrics("val") == {"val_top1": found.top1, "val_top5": found.top5, "val_loss": found.loss}
    assert found.metrics("test").keys() == {"test_top1", "test_top5", "test_loss"}
    assert SCORE_NAME in found.metrics("val")


def test_evaluation_repeats_itself():
    model, data = network(), split(50)
    one, other = (evaluate(model, data, NORMALIZE, device="cpu") for _ in range(2))
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
        evaluate(model, data, NORMALIZE, device="cpu", batch_size=7)
    with pytest.raises(OvertoneError, match="3 of 30"):
        predict(model, data, NORMALIZE, device="cpu", batch_size=7)
    assert model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("classes", [2, 5])
def test_every_label_is_among_the_five_highest_of_five_classes(classes):
    found = evaluate(network(classes=classes), split(30, classes), NORMALIZE, device="cpu")
    assert found.top5 == 1.0
    assert found.top1 < 1.0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu():
    model, data = network(), split(64)
    expected = evaluate(model, data, NORMALIZE, device="cpu")
    found = evaluate(model, data, NORMALIZE, device="cuda")
    assert found.loss == pytest.approx(expected.loss, rel=1e-3)
