import itertools
import math

import pytest
import torch
from torch import nn

from layers import LayerForm, compress_model
from layers.errors import OvertoneError, UsageError
from tests.trainers.training.tiny import (
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
    untimed,
)
from trainers.evaluation import evaluate
from trainers.training.checkpoint import read_checkpoint, write_checkpoint
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

LAST = torch.channels_last


@pytest.mark.parametrize("augment", ["none", "shift", "crop-flip"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(augment, precision):
    recipe = TrainingRecipe(batch_size=16, precision=precision)
    runs = []
    for seed in (3, 3, 4):
        model = network(dropout=0.3)
        torch.rand(7)  # what the caller draws in between makes no difference
        runs.append((untimed(run(model, data(augment=augment), recipe, seed=seed)), state(model)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    assert not same(runs[0][1], runs[2][1])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stochastic_rounding_is_for_training_and_repeats_by_seed(precision):
    form = LayerForm(bits=3, exponent_block=4, activation_bits=3, activation_block=4)
    runs = []
    for rounding, seed in (("nearest", 3), ("stochastic", 3), ("stochastic", 3), ("stochastic", 4)):
        model = compress_model(network(), {"0": form, "6": form})
        recipe = TrainingRecipe(batch_size=16, precision=precision, rounding=rounding)
        torch.rand(7)
        runs.append((untimed(run(model, data(), recipe, seed=seed)), state(model), model))
    assert runs[1][0] == runs[2][0]
    assert same(runs[1][1], runs[2][1])
    assert not same(runs[0][1], runs[1][1])
    assert not same(runs[3][1], runs[1][1])
    found, (_, weights, model) = data(), runs[1]
    twice = [evaluate(model, found.val, found.normalize, device="cpu") for _ in range(2)]
    plain = compress_model(network(), {"0": form, "6": form})
    plain.load_state_dict(weights)
    assert twice[0] == twice[1] == evaluate(plain, found.val, found.normalize, device="cpu")


def test_the_callers_random_state_is_untouched():
    before = torch.get_rng_state()
    run(network(dropout=0.5), data(augment="shift"), TrainingRecipe(batch_size=16))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_happens_between_two_epochs_does_not_change_the_next():
    recipe = TrainingRecipe(batch_size=16)
    expected = network(dropout=0.3)
    run(expected, data(), recipe, epochs=3)
    model = network(dropout=0.3)
    for _ in TrainingLoop(model, data(), recipe, epochs=3, seed=0, device="cpu"):
        torch.manual_seed(torch.seed() % 1000)
        model.eval()
    assert same(state(model), state(expected))


def batches_of(train: int, batch_size: int, epochs: int) -> list[list[torch.Tensor]]:
    found, model = numbered(train), Recorder(network())
    run(model, found, TrainingRecipe(batch_size=batch_size), epochs=epochs)
    steps = len(model.batches) // epochs
    return [model.batches[first : first + steps] for first in range(0, len(model.batches), steps)]


@pytest.mark.parametrize(("setting", "value"), [("mixup_alpha", 0.4), ("cutmix_alpha", 1.0), ("rotation", 20.0)])
def test_further_augmentation_reaches_the_network_in_training_alone(setting, value):
    found = data(16)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    model = network()
    model.register_forward_pre_hook(lambda m, args: seen[m.training].append(args[0].clone()))
    run(model, found, TrainingRecipe(batch_size=16, precision="fp32", **{setting: value}), epochs=1)
    plain = normalized(found)
    order = torch.stack([(plain - image).abs().amax((1, 2, 3)).argmin() for image in seen[True][0]])
    assert not torch.allclose(seen[True][0], plain[order])
    torch.testing.assert_close(seen[False][0], (found.val.images.float() / 255 - MEAN[0]) / STD[0])


HARD = [
    {},
    {"precision": "bf16", "nesterov": True},
    {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05},
    {"ema_decay": 0.9, "mixup_alpha": 0.2, "cutmix_alpha": 1.0, "rotation": 10.0},
    {"distillation": 0.5, "lr_schedule": "step", "milestones": (1.0, 2.0)},
]


@pytest.mark.parametrize("settings", HARD)
@pytest.mark.parametrize("stop", [1, 3])
def test_interrupted_and_resumed_equals_uninterrupted(settings, stop, tmp_path):
    recipe = TrainingRecipe(**{"lr": 0.05, "batch_size": 16, "precision": "fp32", **settings})

    def training(model: nn.Module) -> TrainingLoop:
        found, teacher = data(augment="crop-flip"), network()
        return TrainingLoop(model, found, recipe, epochs=4, seed=0, device="cpu", teacher=teacher)

    expected = network(dropout=0.3)
    history = list(training(expected))
    first = training(network(dropout=0.3))
    begun = list(itertools.islice(first, stop))
    write_checkpoint(tmp_path / "c", {}, first.state_dict())
    model = network(dropout=0.3)
    with torch.no_grad():
        model[0].weight.add_(1)  # nothing of where it begins may matter
    second = training(model)
    second.load_state_dict(read_checkpoint(tmp_path / "c", {}))
    assert second.done == stop
    assert untimed([*begun, *second]) == untimed(history)
    assert same(state(model), state(expected))


@pytest.mark.parametrize(("kind", "outcomes"), [("none", 1), ("shift", 9), ("crop-flip", 18)])
def test_training_images_are_augmented_as_the_data_say_and_validation_images_are_not(kind, outcomes):
    found = data(200, augment=kind)
    found.train.images[:] = found.train.images[:1].clone()
    found.val.images[:] = found.train.images[:1]
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen[self.training].update(image.contiguous().numpy().tobytes() for image in images)
            return self.inner(images)

    run(Watching(), found, TrainingRecipe(batch_size=50))
    assert len(seen[True]) == outcomes
    assert len(seen[False]) == 1
    assert seen[False] <= seen[True]


@pytest.mark.parametrize(("train", "sizes"), [(48, [16, 16, 16]), (50, [16, 16, 16, 2]), (49, [16, 16, 16]), (9, [9])])
def test_a_last_batch_is_used_unless_it_is_one_image(train, sizes):
    for batches in batches_of(train, 16, 2):
        assert [len(rows) for rows in batches] == sizes
        rows = torch.cat(batches).tolist()
        assert len(set(rows)) == len(rows) == sum(sizes)


def test_every_epoch_has_an_order_of_its_own():
    one, other = (torch.cat(batches) for batches in batches_of(60, 16, 2))
    assert not torch.equal(one, other)
    assert sorted(one.tolist()) == sorted(other.tolist()) == list(range(60))


def test_each_epoch_reports_the_model_as_it_then_is():
    model, found = network(), data()
    recipe = TrainingRecipe(lr=0.1, batch_size=16, lr_schedule="step")
    for number, epoch in enumerate(TrainingLoop(model, found, recipe, epochs=4, seed=0, device="cpu"), start=1):
        expected = evaluate(model, found.val, found.normalize, device="cpu")
        assert (epoch.score, epoch.metrics) == (expected.top1, expected.metrics("val"))
        assert epoch.epoch == number
        assert epoch.lr == pytest.approx(0.1 if number <= 3 else 0.01)
        assert epoch.seconds > 0
        assert model.training
    assert number == 4


def test_it_learns_what_can_be_learnt():
    history = run(network(), data(200, augment="shift"), TrainingRecipe(lr=0.1, batch_size=16), epochs=8)
    assert history[-1].score > 0.9
    assert history[-1].train_loss < history[0].train_loss


def test_bf16_trains_float32_weights_about_as_well():
    curves = {}
    for precision in ("fp32", "bf16"):
        model = network()
        curves[precision] = run(model, data(200), TrainingRecipe(lr=0.05, batch_size=16, precision=precision), epochs=4)
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert curves["bf16"][-1].train_loss != curves["fp32"][-1].train_loss
    assert curves["bf16"][-1].train_loss == pytest.approx(curves["fp32"][-1].train_loss, abs=0.05)


class Exploding(nn.Module):
    """Its output becomes a bad number at one training step."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__()
        self.inner, self.value, self.step, self.seen = network(), value, step, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        if self.training:
            self.seen += 1
            if self.seen == self.step:
                logits = logits * self.value
        return logits


@pytest.mark.parametrize(
    ("value", "step", "said"),
    [
        (math.nan, 1, "nan in epoch 1, step 1"),
        (math.inf, 6, r"\w+ in epoch 2, step 2"),
        (math.nan, 8, "epoch 2, step 4"),
    ],
)
def test_a_loss_that_is_no_number_names_its_epoch_and_step(value, step, said):
    history = []
    with pytest.raises(OvertoneError, match=f"the training loss became .*{said}"):
        history.extend(
            TrainingLoop(
                Exploding(value, step), data(64), TrainingRecipe(batch_size=16), epochs=3, seed=0, device="cpu"
            )
        )


def test_a_bad_loss_ends_a_long_epoch_early():
    model = Exploding(math.nan, 3)
    with pytest.raises(OvertoneError, match="epoch 1, step 3"):
        run(model, data(400), TrainingRecipe(batch_size=2))
    assert model.seen == 50


def test_a_network_that_explodes_in_its_last_step_is_caught_in_validation():
    class Bad(Exploding):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * (1.0 if self.training else math.nan)

    with pytest.raises(OvertoneError, match="epoch 1: the network's outputs are infinite or not numbers for 40 of 40"):
        run(Bad(1.0, 0), data(), TrainingRecipe(batch_size=16))


def test_epochs_are_checked_at_once():
    with pytest.raises(UsageError, match=r"epochs \(=0\) must be at least 1"):
        TrainingLoop(network(), data(), TrainingRecipe(), epochs=0, seed=0, device="cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_repeats_itself_bit_for_bit():
    states = []
    for _ in range(2):
        model = network(dropout=0.3)
        list(
            TrainingLoop(
                model, data(augment="crop-flip"), TrainingRecipe(batch_size=16), epochs=3, seed=0, device="cuda"
            )
        )
        states.append(state(model))
    assert same(*states)


def test_weights_and_activations_have_their_channels_last():
    model, last = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 3), *network()[4:6], nn.Linear(20, 4)), []
    model[1].register_forward_pre_hook(lambda _, args: last.append(args[0].is_contiguous(memory_format=LAST)))
    run(model, data(32), TrainingRecipe(batch_size=16), epochs=1)
    assert all(last)
    assert model[1].weight.is_contiguous(memory_format=LAST)


def test_the_checkpoint_of_another_network_is_refused():
    found, recipe = data(32), TrainingRecipe(batch_size=16)
    first = TrainingLoop(network(), found, recipe, epochs=2, seed=0, device="cpu")
    next(iter(first))
    other = TrainingLoop(network(norm=False), found, recipe, epochs=2, seed=0, device="cpu")
    with pytest.raises(UsageError, match=r"^the checkpoint is of another network; delete it to start anew$"):
        other.load_state_dict(first.state_dict())


def test_a_schedule_that_is_all_warm_up_is_refused_before_a_step():
    with pytest.raises(UsageError, match=r"warmup_epochs \(=2\) must be below the 2 epochs"):
        run(network(), data(32), TrainingRecipe(lr_schedule="cosine", warmup_epochs=2.0), epochs=2)
