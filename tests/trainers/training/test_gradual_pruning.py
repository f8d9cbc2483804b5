import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model
from trainers.data import Data, DataSpec, load_data
from trainers.evaluation import evaluate
from trainers.training.checkpoint import read_checkpoint, write_checkpoint
from trainers.training.gradual_pruning import advance_pruning, defer_pruning, deferred_params
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import RECIPES, TrainingRecipe

FORM = LayerForm(templates=3, transform="scalar", assignment="residual")
RECIPE = TrainingRecipe(lr=0.05, batch_size=16, precision="fp32", gradual_pruning=0.5)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataSpec(train_limit=64))


def dense(channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 9, 3, padding=1),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            nn.Conv2d(9, 12, 3, stride=2, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * 9, 10),
        )


def leaving(settings: dict[str, LayerForm] | None = None) -> nn.Module:
    original = dense()
    model = compress_model(original, settings or {"0": FORM, "3": FORM})
    defer_pruning(model, original)
    return model


def training(model: nn.Module, data: Data, recipe: TrainingRecipe = RECIPE, epochs: int = 4) -> TrainingLoop:
    return TrainingLoop(model, data, recipe, epochs=epochs, seed=0, device="cpu", teacher=dense())


def present(model: nn.Module) -> list[int]:
    return [0 if layer.residuals is None else int(layer.residuals.present.sum()) for layer in (model[0], model[3])]


def test_filters_leave_linearly_over_the_share_of_the_epochs(data: Data) -> None:
    model = leaving()
    counts: list[list[int]] = []
    model.register_forward_pre_hook(lambda *_: counts.append(present(model)) if model.training else None)
    for _ in training(model, data):
        pass
    steps = 4  # an epoch
    expected = [[n - round(n * min(1.0, step / (2 * steps))) for n in (6, 9)] for step in range(4 * steps)]
    assert counts == expected
    assert deferred_params(model) == []


def test_at_first_the_network_trains_as_it_was(data: Data) -> None:
    images = data.val.images[:8].float() / 255
    model, original = leaving().train(), dense().train()
    torch.testing.assert_close(model(images), original(images))
    advance_pruning(model, 1.0)
    assert not torch.allclose(model(images), original(images), atol=1e-2)


def test_validation_is_of_the_network_that_remains(data: Data) -> None:
    model = leaving()
    epoch = next(iter(training(model, data, replace(RECIPE, gradual_pruning=0.9))))
    assert present(model) > [0, 0]
    pruned = copy.deepcopy(model)
    advance_pruning(pruned, 1.0)
    expected = evaluate(pruned, data.val, data.normalize, device="cpu")
    assert (epoch.score, epoch.metrics) == (expected.top1, expected.metrics("val"))


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.9}, {"optimizer": "adamw", "lr": 1e-3, "distillation": 0.5}])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_and_resumed_equals_uninterrupted(settings, stop, data: Data, tmp_path) -> None:
    recipe = replace(RECIPE, **settings)
    expected = leaving()
    history = list(training(expected, data, recipe))
    first = training(leaving(), data, recipe)
    begun = list(itertools.islice(first, stop))
    write_checkpoint(tmp_path / "c", {}, first.state_dict())
    model = leaving()
    second = training(model, data, recipe)
    second.load_state_dict(read_checkpoint(tmp_path / "c", {}))
    found = [replace(epoch, seconds=0.0) for epoch in [*begun, *second]]
    assert found == [replace(epoch, seconds=0.0) for epoch in history]
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_the_optimizer_forgets_what_has_left(data: Data) -> None:
    model = leaving()
    run = training(model, data)
    weights = {id(weight) for weight in deferred_params(model)}
    moments = len(run.state_dict()["optimizer"])
    list(run)
    known = {id(weight) for group in run._optimizer.param_groups for weight in group["params"]}
    assert len(weights) == 2
    assert not known & weights
    assert known == {id(weight) for weight in model.parameters()}
    assert moments == 0
    assert len(run.state_dict()["optimizer"]) == len(known)


def test_without_a_schedule_they_leave_before_the_first_step(data: Data) -> None:
    recipe = replace(RECIPE, gradual_pruning=0.0)
    original, model = compress_model(dense(), {"0": FORM, "3": FORM}), leaving()
    for one in (original, model):
        list(training(one, data, recipe, epochs=1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))


def test_the_papers_schedule_is_the_presets() -> None:
    assert RECIPES["templates"].gradual_pruning == 40 / 300
