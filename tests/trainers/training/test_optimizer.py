import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from layers import LayerForm, compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model
from tests.trainers.training.tiny import (
    AT_REST,
    MEAN,
    STD,
    Recorder,
    data,
    network,
    normalized,
    numbered,
    run,
    same,
    state,
)
from trainers.data import Data
from trainers.evaluation import evaluate
from trainers.start.activations import scale_activations
from trainers.training.optimizer import make_optimizer
from trainers.training.recipe import TrainingRecipe


def decayed(model) -> set[str]:
    optimizer = make_optimizer(model, TrainingRecipe(weight_decay=0.1))
    found = {w for group in optimizer.param_groups if group["weight_decay"] for w in group["params"]}
    trained = {w for group in optimizer.param_groups for w in group["params"]}
    assert trained == set(model.parameters())
    return {name for name, weight in model.named_parameters() if weight in found}


def test_scales_norms_and_biases_of_a_convnext_are_not_decayed():
    model = torchvision.models.convnext_tiny(num_classes=4)
    left = {name for name, _ in model.named_parameters()} - decayed(model)
    assert {name.rpartition(".")[2] for name in decayed(model)} == {"weight"}
    assert any(name.endswith("layer_scale") for name in left)
    assert all(
        name.endswith(("layer_scale", "bias")) or dict(model.named_parameters())[name].dim() == 1 for name in left
    )


def test_coefficients_are_decayed_and_transforms_are_not():
    model = build_model("resnet8", classes=4, channels=3)
    network = Network.from_module(model, (3, 16, 16))
    blocks = {"layer2": BlockConfig(pruning_rate=0.5), "layer3": BlockConfig(basis="cosine", harmonics=(2, 2))}
    found = decayed(compress_model(model, network.forms(NetworkConfig(blocks=blocks))))
    kinds = {name.rpartition(".")[2] for name in found}
    assert kinds == {"weight", "coefficients"}


def by_hand(model: nn.Module, found: Data, recipe: TrainingRecipe, orders: list[list[torch.Tensor]]) -> list[float]:
    """SGD written out: v = m v + g + wd w; w -= lr v; the mean loss of each epoch."""
    model.train()
    velocity = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    losses = []
    for epoch, batches in enumerate(orders):
        total = 0.0
        for step, rows in enumerate(batches):
            images = (found.train.images[rows].float() / 255 - MEAN[0]) / STD[0]
            logits = model(images)
            loss = F.cross_entropy(logits, found.train.labels[rows], label_smoothing=recipe.label_smoothing)
            model.zero_grad()
            loss.backward()
            rate = recipe.lr_at(epoch + step / len(batches), len(orders))
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    decay = recipe.weight_decay if weight.dim() > 1 else 0
                    velocity[name] = recipe.momentum * velocity[name] + weight.grad + decay * weight
                    weight -= rate * velocity[name]
            total += loss.item() * len(rows)
        losses.append(total / sum(len(rows) for rows in batches))
    return losses


@pytest.mark.parametrize("lr_schedule", ["step", "cosine", "one-cycle", "constant"])
def test_training_is_sgd_written_out(lr_schedule):
    recipe = TrainingRecipe(
        lr=0.05, weight_decay=0.1, batch_size=16, lr_schedule=lr_schedule, label_smoothing=0.1, precision="fp32"
    )
    found, model = numbered(40), Recorder(network())
    expected = copy.deepcopy(model.inner)
    history = run(model, found, recipe, epochs=5)
    orders = [model.batches[first : first + 3] for first in range(0, 15, 3)]
    losses = by_hand(expected, found, recipe, orders)
    assert [epoch.train_loss for epoch in history] == pytest.approx(losses, rel=1e-4)
    for one, other in zip(model.inner.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_nesterov_looks_ahead():
    """After one step from rest: w - lr (1 + momentum) g."""
    found, model = data(16), network()
    start = copy.deepcopy(model)
    images = (found.train.images.float() / 255 - MEAN[0]) / STD[0]
    F.cross_entropy(start.train()(images), found.train.labels).backward()
    run(model, found, replace(AT_REST, nesterov=True), epochs=1)
    for one, other in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.1 * 1.9 * other.grad, rtol=1e-3, atol=1e-5)


def test_adamw_is_written_out():
    """One step from rest: m / (1 - b1) = g and v / (1 - b2) = g^2, so w - lr (g / (|g| + 1e-8) + decay w)."""
    found, model = data(16), network()
    start = copy.deepcopy(model)
    F.cross_entropy(start.train()(normalized(found)), found.train.labels).backward()
    run(model, found, replace(AT_REST, optimizer="adamw", lr=0.01, weight_decay=0.3), epochs=1)
    checked = 0
    for one, other in zip(model.parameters(), start.parameters(), strict=True):
        sure = other.grad.abs() > 1e-4  # the sign of a smaller one hangs on rounding
        decay = 0.3 if other.dim() > 1 else 0.0
        expected = other - 0.01 * (other.grad / (other.grad.abs() + 1e-8) + decay * other)
        torch.testing.assert_close(one[sure], expected[sure], rtol=1e-3, atol=1e-5)
        checked += int(sure.sum())
    assert checked > 100


def test_gains_of_templates_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = compress_model(model, {"0": LayerForm(templates=2, transform="scalar")})
    before = state(model)
    recipe = replace(AT_REST, lr=0.1, momentum=0.0, weight_decay=1.0)
    frozen = {id(p): p.requires_grad_(False) for p in model[3].parameters()}
    assert len(frozen) == 2
    with torch.no_grad():
        model[3].weight.zero_()  # no gradient reaches the layer: only decay can move it
    run(model, data(16), recipe, epochs=1)
    assert torch.equal(model[0].gains, before["0.gains"])
    torch.testing.assert_close(model[0].coefficients, before["0.coefficients"] * 0.9)


def test_frozen_weights_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = state(model)
    run(model, data(), TrainingRecipe(batch_size=16))
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[6].weight, before["6.weight"])


def test_the_average_of_the_weights_is_written_out_measured_and_kept():
    found, models = data(), []
    for ema_decay in (0.0, 0.5):
        model = Recorder(network())
        states = []
        model.register_forward_pre_hook(lambda m, _, s=states: s.append(state(m)) if m.training else None)
        history = run(model, found, TrainingRecipe(lr=0.1, batch_size=16, ema_decay=ema_decay, precision="fp32"))
        models.append((model, states, history))
    (plain, steps, _), (averaged, same_steps, history) = models
    assert all(same(one, other) for one, other in zip(steps, same_steps, strict=True))  # it trains as without
    mean = steps[0]
    for number, step in enumerate([*steps[1:], state(plain)]):
        keep = min(0.5, (1 + number) / (10 + number))
        mean = {k: keep * mean[k] + (1 - keep) * v if v.is_floating_point() else v for k, v in step.items()}
    for name, value in averaged.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-5, atol=1e-6)
    assert history[-1].metrics["val_loss"] == evaluate(averaged, found.val, found.normalize, device="cpu").loss


def test_an_average_forgets_the_start_in_a_short_training_too():
    """The 14 steps here are far fewer than the thousand that 0.999 asks for."""
    found, recipe = data(112), TrainingRecipe(lr=0.05, batch_size=16, precision="fp32")
    plain, averaged = network(), network()
    top1 = run(plain, found, recipe)[-1].score
    assert top1 > 0.5
    assert run(averaged, found, replace(recipe, ema_decay=0.999))[-1].score > top1 - 0.25
    start, end = state(network())["6.weight"], state(plain)["6.weight"]
    moved = (state(averaged)["6.weight"] - start).norm() / (end - start).norm()
    assert 0.3 < moved < 1.1


def test_the_average_of_a_network_in_int8_keeps_its_grids_and_is_what_is_measured():
    found = data()
    model = compress_model(network(), dict.fromkeys(("0", "6"), LayerForm(arithmetic="int8")))
    scale_activations(model, found.normalize(found.train.take(torch.arange(32))))
    grids = {name: value for name, value in state(model).items() if name.endswith(("input_grid", "activation_grids"))}
    assert len(grids) == 3
    plain = copy.deepcopy(model)
    recipe = TrainingRecipe(lr=0.1, batch_size=16, precision="fp32")
    run(plain, found, recipe)
    history = run(model, found, replace(recipe, ema_decay=0.9))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in grids.items())
    assert not torch.equal(model[0].coefficients, plain[0].coefficients)
    fresh = copy.deepcopy(model)
    fresh.load_state_dict(state(model))  # whose filters are built anew
    for measured in (model, fresh):
        evaluation = evaluate(measured, found.val, found.normalize, device="cpu")
        assert (evaluation.top1, evaluation.loss) == (history[-1].score, history[-1].metrics["val_loss"])
