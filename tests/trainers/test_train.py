from dataclasses import replace

import pytest
import torch

from layers import UsageError, compress_model
from spaces import BlockConfig, Network, NetworkConfig, load_model, read_card
from spaces.models import build_model
from trainers.data import DataSpec, load_data
from trainers.evaluation import evaluate
from trainers.train import random_network, save_trained, train_model
from trainers.training.loop import TrainingLoop
from trainers.training.recipe import RECIPES


def network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("resnet8", classes=10, channels=1)


def test_every_epoch_is_told_as_it_ends_and_returned():
    data = load_data(DataSpec(train_limit=64))
    told = []
    history = train_model(network(), data, RECIPES["baseline"], epochs=2, seed=1, device="cpu", on_epoch=told.append)
    assert [epoch.epoch for epoch in history] == [1, 2]
    assert told == history
    expected = TrainingLoop(network(), data, RECIPES["baseline"], epochs=2, seed=1, device="cpu")
    assert [epoch.metrics for epoch in history] == [epoch.metrics for epoch in expected]


@pytest.mark.slow
def test_resnet8_reaches_a_respectable_accuracy_on_the_digits():
    data = load_data(DataSpec())
    history = train_model(network(), data, RECIPES["baseline"], epochs=30, seed=0, device="cpu")
    assert history[-1].score >= 0.975  # 98.1 to 99.4 % over seeds
    assert history[-1].lr == pytest.approx(0, abs=1e-3)


def test_a_stopped_training_goes_on_from_its_checkpoint(tmp_path):
    data, recipe = load_data(DataSpec(train_limit=64)), RECIPES["baseline"]
    expected, path = network(), tmp_path / "c"
    history = train_model(expected, data, recipe, epochs=3, seed=1, device="cpu")

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    asked = {"epochs": 3, "seed": 1, "device": "cpu", "checkpoint": path, "about": {"model": "resnet8"}}
    with pytest.raises(KeyboardInterrupt):
        train_model(network(), data, recipe, **asked, on_epoch=stop)
    told, model = [], network()
    resumed = train_model(model, data, recipe, **asked, on_epoch=told.append)
    assert [epoch.epoch for epoch in told] == [3]
    assert [epoch.metrics for epoch in resumed] == [epoch.metrics for epoch in history]
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match="is the checkpoint of a training with model 'resnet8', not 'resnet20'"):
        train_model(network(), data, recipe, **{**asked, "about": {"model": "resnet20"}})
    with pytest.raises(UsageError, match=r"with lr 0.1, not 0.2"):
        train_model(network(), data, replace(recipe, lr=0.2), **asked)


def test_a_compressed_network_trained_from_its_random_start_is_saved_packed(tmp_path):
    data = load_data(DataSpec(train_limit=64))
    layout = Network.from_module(network(), (1, 8, 8))
    config = NetworkConfig(blocks={"layer3": BlockConfig(basis="cosine", harmonics=(2, 2), bits=8)})
    model = compress_model(network(), layout.forms(config))
    recipe = replace(RECIPES["templates-imagenet"], batch_size=16, warmup_epochs=0.5)
    (epoch,) = train_model(model, data, recipe, epochs=1, seed=0, device="cpu")
    save_trained(model, tmp_path / "m.safetensors", "resnet8", data, {"seed": 0})
    loaded = load_model(tmp_path / "m.safetensors")
    found = evaluate(loaded, data.val, data.normalize, device="cpu")
    assert (found.top1, found.loss) == (epoch.score, pytest.approx(epoch.metrics["val_loss"], rel=1e-5))
    card = read_card(tmp_path / "m.safetensors")
    assert (card["model"], card["image_size"], card["seed"]) == ("resnet8", [8, 8], 0)


def test_random_networks_are_drawn_from_their_seed_alone():
    data = load_data(DataSpec(train_limit=64))
    before = torch.get_rng_state()
    one, other = (random_network("resnet8", data, seed=seed).conv1.weight for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, random_network("resnet8", data, seed=0).conv1.weight)
    assert not torch.equal(one, other)
