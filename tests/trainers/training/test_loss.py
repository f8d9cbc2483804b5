import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layers.errors import UsageError
from tests.trainers.training.tiny import (
    AT_REST,
    MEAN,
    STD,
    data,
    network,
    run,
    same,
    state,
)
from trainers.training.loop import TrainingLoop
from trainers.training.loss import make_mixer
from trainers.training.recipe import TrainingRecipe


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_is_written_out(share):
    """(1 - share) cross-entropy + share T^2 KL(teacher || student) of outputs divided by T = 2, one step from rest."""
    found, model = data(16), network()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
    before, expected = state(teacher), copy.deepcopy(model)
    images = (found.train.images.float() / 255 - MEAN[0]) / STD[0]
    soft = F.softmax(teacher.eval()(images).detach() / 2, 1)
    teacher.train()
    logits = expected.train()(images)
    distance = (soft * (soft.log() - F.log_softmax(logits / 2, 1))).sum(1).mean()
    loss = (1 - share) * F.cross_entropy(logits, found.train.labels) + share * 4 * distance
    loss.backward()
    recipe = replace(AT_REST, momentum=0.0, distillation=share)
    (epoch,) = TrainingLoop(model, found, recipe, epochs=1, seed=0, device="cpu", teacher=teacher)
    assert epoch.train_loss == pytest.approx(loss.item(), rel=1e-5)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.1 * other.grad, rtol=1e-4, atol=1e-6)
    assert same(before, state(teacher))
    assert teacher.training


def test_a_teacher_without_a_share_changes_nothing():
    found, runs = data(), []
    for teacher in (None, network()):
        model = network()
        list(TrainingLoop(model, found, TrainingRecipe(batch_size=16), epochs=1, seed=0, device="cpu", teacher=teacher))
        runs.append(state(model))
    assert same(*runs)


def test_distillation_needs_a_teacher():
    with pytest.raises(UsageError, match=r"distillation \(=0.5\) must be 0 without a teacher$"):
        TrainingLoop(network(), data(), TrainingRecipe(distillation=0.5), epochs=1, seed=0, device="cpu")


def test_mixed_labels_are_trained_on():
    """With a network that says nothing (equal logits), the gradient of the last bias is 1/4 minus the mean target."""
    found, model = data(16), network()
    with torch.no_grad():
        model[6].weight.zero_()
        model[6].bias.zero_()
    before = state(model)
    run(model, found, replace(AT_REST, momentum=0.0, mixup_alpha=0.4, cutmix_alpha=1.0), epochs=1)
    target = F.one_hot(found.train.labels, 4).float().mean(0)  # mixing with the rolled batch leaves the mean as it is
    torch.testing.assert_close(model[6].bias, before["6.bias"] - 0.1 * (0.25 - target), rtol=1e-4, atol=1e-6)


def test_mixup_and_cutmix_are_both_drawn_where_both_are_asked_for():
    mixer = make_mixer(TrainingRecipe(mixup_alpha=1.0, cutmix_alpha=1.0), 4)
    images, labels = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16), torch.arange(8) % 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixed = [mixer(images, labels)[0] for _ in range(40)]
    pasted = [bool((image == image.round()).all()) for image in mixed]  # CutMix takes pixels as they are
    assert {True, False} == set(pasted)
