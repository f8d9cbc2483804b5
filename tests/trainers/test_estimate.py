import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from spaces import build_model
from trainers.estimate import TrialEstimate, estimate_trial
from trainers.training.recipe import TrainingRecipe

FP32 = TrainingRecipe(precision="fp32")
SHAPE = (1, 8, 8)


def _tiny() -> nn.Module:
    """The rectified plane and its flat view are one piece of memory."""
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


PARAMETERS = 9 + 1 + 64 * 3 + 3


def _estimate(model: nn.Module, recipe: TrainingRecipe = FP32, **changes: Any) -> TrialEstimate:
    asked = {"epochs": 2, "train_images": 100, "val_images": 40, "device": "cpu"}
    return estimate_trial(model, SHAPE, recipe=recipe, **{**asked, **changes})


@pytest.mark.parametrize(
    ("batch_size", "grad_accum_steps", "count"), [(2, 1, 2), (50, 1, 50), (500, 1, 100), (50, 4, 13)]
)
def test_activations_are_counted_by_hand(batch_size: int, grad_accum_steps: int, count: int) -> None:
    recipe = TrainingRecipe(precision="fp32", batch_size=batch_size, grad_accum_steps=grad_accum_steps)
    an_image = 4 * 64 + 4 * 64 + 4 * 3 + 8  # the input, what is rectified, logarithms of the shares, the label
    assert _estimate(_tiny(), recipe).activations_bytes == count * an_image + 4  # and the sum of the loss's weights


def test_activations_in_bf16_are_about_half() -> None:
    network = build_model("resnet8", classes=10, channels=1)
    whole, half = (_estimate(network, TrainingRecipe(precision=name)).activations_bytes for name in ("fp32", "bf16"))
    assert 0.4 < half / whole < 0.75


@pytest.mark.parametrize(
    ("settings", "weights", "moments"),
    [
        ({}, 1, 1),
        ({"momentum": 0.0}, 1, 0),
        ({"optimizer": "adamw"}, 1, 2),
        ({"ema_decay": 0.9}, 2, 1),
        ({"ema_decay": 0.9, "distillation": 0.5}, 3, 1),
    ],
)
def test_weights_and_moments_follow_the_schedule(settings: dict[str, Any], weights: int, moments: int) -> None:
    found = _estimate(_tiny(), TrainingRecipe(precision="fp32", **settings))
    assert found.weights_bytes == 4 * PARAMETERS * weights
    assert found.gradients_bytes == 4 * PARAMETERS
    steps = 4 * 4 if settings.get("optimizer") == "adamw" else 0  # a counter for each parameter
    assert found.optimizer_bytes == 4 * PARAMETERS * moments + steps


def test_frozen_weights_have_no_gradients() -> None:
    network = _tiny()
    network[0].requires_grad_(False)
    assert _estimate(network).gradients_bytes == 4 * (PARAMETERS - 10)


def test_images_and_validation_are_counted_by_hand() -> None:
    found = _estimate(_tiny(), val_images=40)
    assert found.images_bytes == 140 * (64 + 8)
    assert _estimate(_tiny(), streamed=True).images_bytes == 140 * 8
    fewer, most, same = (_estimate(_tiny(), val_images=n).validation_bytes for n in (39, 512, 2000))
    assert found.validation_bytes - fewer == 4 * 3 * 64  # an image, convolved, rectified
    assert most == same
    kept = found.weights_bytes + found.gradients_bytes + found.optimizer_bytes + found.images_bytes
    assert found.memory_bytes == kept + found.activations_bytes + found.validation_bytes
    assert found.to_json()["memory_bytes"] == found.memory_bytes


class _Clocked(nn.Module):
    """Takes a time for each image of a batch, on a clock that all copies share."""

    clock: ClassVar[float] = 0.0
    batches: ClassVar[list[tuple[bool, int]]] = []

    def __init__(self, an_image: float) -> None:
        super().__init__()
        self.an_image, self.linear = an_image, nn.Linear(64, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        _Clocked.clock += self.an_image * len(images)
        _Clocked.batches.append((self.training, len(images)))
        logits: torch.Tensor = self.linear(images.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("an_image", "training", "validation"),
    [(1e-6, 64, 128), (5e-3, 64, 128), (8e-3, 32, 32), (0.04, 8, 8), (0.3, 2, 2), (50.0, 2, 2)],
)
def test_seconds_are_drawn_out_from_as_large_a_batch_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, an_image: float, training: int, validation: int
) -> None:
    monkeypatch.setattr("layers.timing.time.perf_counter", lambda: _Clocked.clock)
    monkeypatch.setattr(_Clocked, "clock", 0.0)
    monkeypatch.setattr(_Clocked, "batches", [])
    found = _estimate(_Clocked(an_image), epochs=3, train_images=1000, val_images=300)
    assert found.training_s == pytest.approx(an_image * 1000 * 3)
    assert found.validation_s == pytest.approx(an_image * 300 * 4)
    assert found.seconds == pytest.approx(found.training_s + found.validation_s)
    for mode, largest in ((True, training), (False, validation)):
        assert max(count for trained, count in _Clocked.batches if trained == mode and count != 3) == largest
    assert _Clocked.clock < max(4.0, 25 * an_image)


def test_the_network_and_the_random_state_are_left_as_they_were() -> None:
    network = build_model("resnet8", classes=10, channels=1).train()
    network.bn1.eval()
    before = copy.deepcopy(network.state_dict())
    modes, state = [module.training for module in network.modules()], torch.get_rng_state()
    _estimate(network, TrainingRecipe(precision="fp32", distillation=0.5))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(weight.grad is None for weight in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_a_network_that_diverges_at_once_can_be_estimated() -> None:
    network = _tiny()
    with torch.no_grad():
        network[3].weight.mul_(1e30)
    assert _estimate(network, TrainingRecipe(precision="fp32", lr=1e9)).seconds > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_holds_what_was_counted() -> None:
    network = build_model("resnet20", classes=10, channels=3)
    recipe = TrainingRecipe(precision="fp32", batch_size=128)
    asked = {"recipe": recipe, "epochs": 1, "train_images": 512, "val_images": 512}
    assert estimate_trial(network, (3, 32, 32), device="cuda", **asked).device == torch.cuda.get_device_name()
