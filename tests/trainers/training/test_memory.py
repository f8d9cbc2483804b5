import pytest
import torch
from torch import nn

from layers.errors import OvertoneError
from tests.trainers.training.tiny import (
    data,
    network,
    run,
    state,
)
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe


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
