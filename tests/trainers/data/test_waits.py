"""A GPU is given its work ahead; whoever reads a number back, or makes a tensor of Python's, waits until it is done."""

import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from layers import LayerForm, compress_model
from layers.blockfloat import ROUNDINGS
from layers.templates.transforms import TRANSFORMS
from trainers.data import Data, Split
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

aten = torch.ops.aten
RECIPES = {
    "sgd": {},
    "bf16": {"precision": "bf16"},
    "distilled": {"distillation": 0.5, "label_smoothing": 0.1},
    "averaged": {"ema_decay": 0.9, "optimizer": "adamw"},
    "rotated, in pieces": {"rotation": 10.0, "grad_accum_steps": 2},
}
FORMS = {
    "series": LayerForm(basis="cosine", harmonics=(2, 1)),
    "per filter": LayerForm(basis="cosine", harmonics=(2, 2), allocation="filter"),
    "blocks": LayerForm(bits=4, exponent_block=16, activation_bits=4, activation_block=2),
    "scaled": LayerForm(bits=3, scale="bfloat16"),
    **{
        transform: LayerForm(
            templates=3, groups=2, transform=transform, assignment=None if transform == "zero" else "residual"
        )
        for transform in TRANSFORMS
    },
}


class Waits(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (aten.lift_fresh, aten._local_scalar_dense, aten.nonzero, aten.equal):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(288, 3)
    )


def data(count: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    train = Split(images=images, labels=torch.randint(3, (count,), generator=generator))
    val = Split(images=train.images[:16], labels=train.labels[:16])
    whitened = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}
    return Data(train=train, val=val, test=val, classes=3, augment="crop-flip", **whitened)


def waits(model: nn.Module, count: int, recipe: TrainingRecipe) -> Counter[str]:
    training = TrainingLoop(model, data(count), recipe, epochs=1, seed=0, device="cpu", teacher=network())
    with Waits() as found:
        list(training)
    return found.seen


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_no_step_waits(settings):
    recipe = TrainingRecipe(**{"batch_size": 16, "precision": "fp32", **settings})
    waits(network(), 32, recipe)  # what is made once is made
    few, many = waits(network(), 32, recipe), waits(network(), 32 * 8, recipe)
    assert few == many
    assert few["aten.lift_fresh.default"] > 0  # the epoch's own: it is seen


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_step_of_a_compressed_network_waits(form, rounding):
    recipe, model = TrainingRecipe(batch_size=16, rounding=rounding), compress_model(network(), {"3": form})
    waits(model, 32, recipe)
    assert waits(model, 32, recipe) == waits(model, 32 * 8, recipe)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_cuda_says_so_too(settings):
    recipe = TrainingRecipe(**{"batch_size": 16, **settings})

    def told(count: int) -> int:
        training = TrainingLoop(network(), data(count), recipe, epochs=1, seed=0, device="cuda", teacher=network())
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                list(training)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)

    told(64)
    assert 0 < told(64) == told(64 * 8)
