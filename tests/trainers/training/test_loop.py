import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layers import LayerForm, compress_model
from layers.errors import OvertoneError, UsageError
from spaces import build_model
from trainers.data import Data, Split
from trainers.evaluation import evaluate
from trainers.training.checkpoint import read_checkpoint, write_checkpoint
from trainers.training.loop import TrainingLoop, TrainingRecipe
from trainers.training.loss import make_mixer

MEAN, STD = (0.5,), (0.25,)
LAST = torch.channels_last
AT_REST = TrainingRecipe(lr=0.1, weight_decay=0.0, batch_size=16, lr_schedule="constant", precision="fp32")
"""One step from rest over 16 images: what it does can be written down."""


def network(dropout: float = 0.0, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 4),
        )


def split(n: int, seed: int) -> Split:
    """Images whose brightest quadrant is their label, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    images = torch.randint(120, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 80
    return Split(images=images, labels=labels)


def data(train: int = 50, augment: str = "none") -> Data:
    return Data(
        train=split(train, 0), val=split(40, 1), test=split(40, 2), classes=4, mean=MEAN, std=STD, augment=augment
    )


def run(model: nn.Module, found: Data, recipe: TrainingRecipe, epochs: int = 2, seed: int = 0):
    return list(TrainingLoop(model, found, recipe, epochs=epochs, seed=seed, device="cpu"))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def untimed(history):
    return [replace(epoch, seconds=0) for epoch in history]


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
    form = LayerForm(bits=3, exponent_block=4, activation_block=4)
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
    twice = [evaluate(model, found.val, mean=MEAN, std=STD, device="cpu") for _ in range(2)]
    plain = compress_model(network(), {"0": form, "6": form})
    plain.load_state_dict(weights)
    assert twice[0] == twice[1] == evaluate(plain, found.val, mean=MEAN, std=STD, device="cpu")


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


class Recorder(nn.Module):
    """Passes images on and remembers which came: each carries its row in its first pixels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.batches = inner, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            rows = (images[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
            self.batches.append(rows.detach().round().long())
        return self.inner(images)


def numbered(train: int) -> Data:
    found = data(train)
    found.train.images[:, 0, 0, 0] = torch.arange(train, dtype=torch.uint8)
    return found


def batches_of(train: int, batch_size: int, epochs: int) -> list[list[torch.Tensor]]:
    found, model = numbered(train), Recorder(network())
    run(model, found, TrainingRecipe(batch_size=batch_size), epochs=epochs)
    steps = len(model.batches) // epochs
    return [model.batches[first : first + steps] for first in range(0, len(model.batches), steps)]


@pytest.mark.parametrize("lr_schedule", ["step", "cosine", "one-cycle", "constant"])
def test_training_is_sgd_written_out(shape):
    recipe = TrainingRecipe(
        lr=0.05, weight_decay=0.1, batch_size=16, shape=shape, label_smoothing=0.1, precision="fp32"
    )
    found, model = numbered(40), Recorder(network())
    expected = copy.deepcopy(model.inner)
    history = run(model, found, recipe, epochs=5)
    orders = [model.batches[first : first + 3] for first in range(0, 15, 3)]
    losses = by_hand(expected, found, recipe, orders)
    assert [epoch.train_loss for epoch in history] == pytest.approx(losses, rel=1e-4)
    for one, other in zip(model.inner.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


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
    with pytest.raises(UsageError, match=r"distillation \(=0.5\) needs a teacher\."):
        TrainingLoop(network(), data(), TrainingRecipe(distillation=0.5), epochs=1, seed=0, device="cpu")


def test_nesterov_looks_ahead():
    """After one step from rest: w - lr (1 + momentum) g."""
    found, model = data(16), network()
    start = copy.deepcopy(model)
    images = (found.train.images.float() / 255 - MEAN[0]) / STD[0]
    F.cross_entropy(start.train()(images), found.train.labels).backward()
    run(model, found, replace(AT_REST, nesterov=True), epochs=1)
    for one, other in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other - 0.1 * 1.9 * other.grad, rtol=1e-3, atol=1e-5)


def normalized(found: Data) -> torch.Tensor:
    return (found.train.images.float() / 255 - MEAN[0]) / STD[0]


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


def test_a_batch_in_pieces_gives_the_same_gradients():
    states = []
    for pieces in (1, 4):
        model = network(norm=False)
        recipe = TrainingRecipe(lr=0.1, batch_size=16, precision="fp32", grad_accum_steps=pieces, label_smoothing=0.1)
        losses = [epoch.train_loss for epoch in run(model, data(51), recipe)]  # the last batch has three
        states.append((state(model), losses))
    assert states[0][1] == pytest.approx(states[1][1], rel=1e-5)
    for name, value in states[0][0].items():
        torch.testing.assert_close(value, states[1][0][name], rtol=1e-4, atol=1e-6)


class Narrow(nn.Module):
    """Has memory for so many images at a time in training."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.inner, self.room, self.sizes = network(norm=False), room, []
        self.error = error or torch.OutOfMemoryError("no memory")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.sizes.append(len(images))
            if len(images) > self.room:
                raise self.error
        return self.inner(images)


def cpu_error() -> Exception:
    """What a CPU's allocator raises."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), cpu_error()])
def test_where_memory_is_short_batches_are_cut_once_and_for_all(error):
    model, found, recipe = Narrow(5, error), data(32), TrainingRecipe(lr=0.1, batch_size=16, precision="fp32")
    training = TrainingLoop(model, found, recipe, epochs=1, seed=0, device="cpu")
    list(training)
    assert training.pieces == 4
    assert model.sizes == [16, 8, *[4] * 8]
    whole = network(norm=False)
    run(whole, found, recipe, epochs=1)
    for one, other in zip(model.inner.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_other_errors_of_a_step_are_not_taken_for_want_of_memory():
    with pytest.raises(RuntimeError, match="something else"):
        run(Narrow(5, RuntimeError("something else")), data(32), TrainingRecipe(batch_size=16))


def test_a_training_goes_on_in_as_many_pieces_as_it_had_come_to():
    found, recipe = data(32), TrainingRecipe(lr=0.1, batch_size=16, precision="fp32")
    first = TrainingLoop(Narrow(5), found, recipe, epochs=2, seed=0, device="cpu")
    next(iter(first))
    model = Narrow(5)
    second = TrainingLoop(model, found, recipe, epochs=2, seed=0, device="cpu")
    second.load_state_dict(first.state_dict())
    list(second)
    assert model.sizes == [4] * 8


def test_memory_that_never_suffices_is_told():
    with pytest.raises(OvertoneError, match="cpu has no memory for 16 images in 8 pieces"):
        run(Narrow(1), data(32), TrainingRecipe(batch_size=16))


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
    assert history[-1].val_loss == evaluate(averaged, found.val, mean=MEAN, std=STD, device="cpu").loss


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
        expected = evaluate(model, found.val, mean=MEAN, std=STD, device="cpu")
        assert (epoch.val_top1, epoch.val_loss) == (expected.top1, expected.loss)
        assert epoch.epoch == number
        assert epoch.lr == pytest.approx(0.1 if number <= 3 else 0.01)
        assert epoch.seconds > 0
        assert model.training
    assert number == 4


def test_it_learns_what_can_be_learnt():
    history = run(network(), data(200, augment="shift"), TrainingRecipe(lr=0.1, batch_size=16), epochs=8)
    assert history[-1].val_top1 > 0.9
    assert history[-1].train_loss < history[0].train_loss


def test_frozen_weights_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = state(model)
    run(model, data(), TrainingRecipe(batch_size=16))
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[6].weight, before["6.weight"])


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


def test_an_average_forgets_the_start_in_a_short_training_too():
    """The 14 steps here are far fewer than the thousand that 0.999 asks for."""
    found, recipe = data(112), TrainingRecipe(lr=0.05, batch_size=16, precision="fp32")
    plain, averaged = network(), network()
    top1 = run(plain, found, recipe)[-1].val_top1
    assert top1 > 0.5
    assert run(averaged, found, replace(recipe, ema_decay=0.999))[-1].val_top1 > top1 - 0.25
    start, end = state(network())["6.weight"], state(plain)["6.weight"]
    moved = (state(averaged)["6.weight"] - start).norm() / (end - start).norm()
    assert 0.3 < moved < 1.1


def test_mixup_and_cutmix_are_both_drawn_where_both_are_asked_for():
    mixer = make_mixer(TrainingRecipe(mixup_alpha=1.0, cutmix_alpha=1.0), 4)
    images, labels = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 16, 16), torch.arange(8) % 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixed = [mixer(images, labels)[0] for _ in range(40)]
    pasted = [bool((image == image.round()).all()) for image in mixed]  # CutMix takes pixels as they are
    assert {True, False} == set(pasted)


def test_branches_are_dropped_where_the_schedule_asks_for_it():
    models = []
    for rate in (0.0, 0.9):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models.append(build_model("resnet8", classes=4, channels=1))
        run(models[-1], data(32), TrainingRecipe(batch_size=16, drop_path_rate=rate, precision="fp32"), epochs=1)
    assert not same(state(models[0]), state(models[1]))


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
    with pytest.raises(UsageError, match=r"^the checkpoint is of another network; delete it to begin anew\.$"):
        other.load_state_dict(first.state_dict())


def test_a_schedule_that_is_all_warm_up_is_refused_before_a_step():
    with pytest.raises(UsageError, match=r"warmup_epochs \(=2\) must be below the 2 epochs"):
        run(network(), data(32), TrainingRecipe(lr_schedule="cosine", warmup_epochs=2.0), epochs=2)
