"""How many threads a training step takes: few for little work, and the same for the same network."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from layers import LayerForm, UsageError, compress_model
from spaces import Network, NetworkConfig, build_model
from trainers.data import Data, DataSpec, Split, load_data
from trainers.runtime.threads import num_threads, threads_for_step
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import TrainingRecipe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _many() -> None:
    """As a process on a larger machine has them; what comes after finds its own number."""
    with num_threads(64):
        yield


def _taken(model: nn.Module, image: tuple[int, int, int], batch: int) -> int:
    return threads_for_step(model, image, batch, CPU, streamed=False)


def test_threads_grow_with_the_work_of_a_layer(rng: random.Random) -> None:
    """As many as the cost model's multiply-accumulates ask for; never none, and never more than there are."""
    for _ in range(10):
        channels, side = rng.randint(1, 3), rng.choice([8, 16, 32])
        model = build_model("resnet8", classes=10, channels=channels)
        network = Network.from_module(model, (channels, side, side))
        mean = network.cost(NetworkConfig()).macs / len(network.shapes)
        batches = sorted(rng.sample(range(2, 2000), 5))
        taken = [_taken(model, (channels, side, side), batch) for batch in batches]
        assert taken == sorted(taken)
        for batch, count in zip(batches, taken, strict=True):
            assert count == max(1, min(64, int(batch * mean / 8e6)))


def test_compressed_networks_take_as_many_as_the_one_they_are_made_from() -> None:
    model = build_model("resnet8", classes=10, channels=3)
    shapes = Network.from_module(model, (3, 32, 32)).shapes
    for form in (LayerForm(basis="cosine", harmonics=(2, 2)), LayerForm(templates=4, transform="scalar")):
        names = [name for name, shape in shapes.items() if shape.kernel == (3, 3) and shape.in_channels > 3]
        compressed = compress_model(model, dict.fromkeys(names, form))
        assert _taken(compressed, (3, 32, 32), 128) == _taken(model, (3, 32, 32), 128) > 1


def test_batches_in_pieces_take_as_many_as_a_piece() -> None:
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    split = Split(images=images, labels=torch.tensor([0, 1, 2, 3]))
    third = (0.5, 0.5, 0.5)
    data = Data(train=split, val=split, test=split, classes=10, mean=third, std=third, augment="none")

    def threads(batch_size: int, grad_accum_steps: int = 1) -> int:
        model = build_model("resnet8", classes=10, channels=3)
        recipe = TrainingRecipe(lr=0.1, batch_size=batch_size, grad_accum_steps=grad_accum_steps)
        return TrainingLoop(model, data, recipe, epochs=1, seed=0, device="cpu").threads

    assert threads(128, grad_accum_steps=4) == threads(32) < threads(128)


def test_networks_without_layers_that_multiply_take_one() -> None:
    assert _taken(nn.Flatten(), (3, 32, 32), 4096) == 1


def test_nothing_is_looked_at_where_there_is_no_choice() -> None:
    """On other devices than the CPU threads hardly matter, and of one there is none to spare."""
    model = build_model("resnet20", classes=10, channels=3).to("meta")
    assert threads_for_step(model, (3, 32, 32), 128, torch.device("meta"), streamed=False) == 64
    with num_threads(1):
        assert threads_for_step(model, (3, 32, 32), 128, CPU, streamed=False) == 1


def _seen(data: Data) -> set[tuple[bool, int]]:
    """While the network runs, whether it trains and on how many threads, of four."""
    seen, (_, channels, *_) = set(), data.train.images.shape
    model = build_model("resnet8", classes=data.classes, channels=channels)
    model.register_forward_hook(lambda *_: seen.add((model.training, torch.get_num_threads())))
    with num_threads(4):
        for _ in TrainingLoop(model, data, TrainingRecipe(lr=0.01, batch_size=64), epochs=1, seed=0, device="cpu"):
            assert torch.get_num_threads() == 4
    return seen - {(False, 1)}  # the look at one image


def test_only_training_steps_of_small_networks_run_on_fewer() -> None:
    assert _seen(load_data(DataSpec(train_limit=300))) == {(True, 1), (False, 4)}


def test_where_images_are_decoded_as_they_are_needed_all_threads_stay(parquet_set: Path) -> None:
    spec = DataSpec(name=f"parquet:{parquet_set}", val_from="test")
    assert _seen(load_data(spec)) == {(True, 1), (False, 4)}
    assert _seen(load_data(replace(spec, stream=True))) == {(True, 4), (False, 4)}


def test_a_small_network_learns_the_same_whatever_threads_there_are() -> None:
    data, learned = load_data(DataSpec(train_limit=300)), []
    for count in (1, 2, 3):
        with num_threads(count):
            torch.manual_seed(0)
            model = build_model("resnet8", classes=10, channels=1)
            training = TrainingLoop(model, data, TrainingRecipe(lr=0.01, batch_size=64), epochs=2, seed=0, device="cpu")
            *_, last = training
            learned.append((last.train_loss, model.state_dict()))
    for loss, state in learned[1:]:
        assert loss == learned[0][0]
        assert all(torch.equal(state[name], value) for name, value in learned[0][1].items())


def test_threads_come_back_after_an_error() -> None:
    with pytest.raises(UsageError, match="must be at least 1"), num_threads(3):
        TrainingLoop(nn.Flatten(), None, None, epochs=0, seed=0, device="cpu")
    assert torch.get_num_threads() == 64
