import pytest
import torch

from spaces.models import build_model
from trainers.baseline import BASELINE, train_baseline
from trainers.data import DataSpec, load_data
from trainers.finetune import finetune


def network(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model("resnet8", classes=10, channels=1)


def test_every_epoch_is_told_as_it_ends_and_returned():
    data = load_data(DataSpec(train_limit=64))
    told = []
    curve = train_baseline(network(), data, epochs=2, seed=1, device="cpu", on_epoch=told.append)
    assert [epoch.epoch for epoch in curve] == [1, 2]
    assert told == curve
    expected = finetune(network(), data, BASELINE, epochs=2, seed=1, device="cpu")
    assert [epoch.val_loss for epoch in curve] == [epoch.val_loss for epoch in expected]


@pytest.mark.slow
def test_resnet8_reaches_a_respectable_accuracy_on_the_digits():
    data = load_data(DataSpec())
    curve = train_baseline(network(), data, epochs=30, seed=0, device="cpu")
    assert curve[-1].val_top1 >= 0.975  # 98.1 to 99.4 % over seeds
    assert curve[-1].lr == pytest.approx(0, abs=1e-3)
