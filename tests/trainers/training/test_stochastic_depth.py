import pytest
import torch
import torchvision
from torch import nn

from layers.errors import UsageError
from spaces.models import build_model
from tests.trainers.training.tiny import data, run, same, state
from trainers.training.recipe import TrainingRecipe
from trainers.training.stochastic_depth import stochastic_depth


def branches(model: nn.Module, ends: list[nn.Module], rate: float, images: int) -> list[torch.Tensor]:
    """For each branch the share of images that skipped it, and by what the others were scaled."""
    clean, dropped = {}, {}
    for end in ends:
        end.register_forward_hook(lambda m, _, out: clean.__setitem__(m, out))
    with stochastic_depth(model, rate):
        for end in ends:
            end.register_forward_hook(lambda m, _, out: dropped.__setitem__(m, out))
        torch.manual_seed(0)
        model(torch.rand(images, 3, 8, 8))
    return [dropped[end] / clean[end] for end in ends]


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_images_skip_branches_more_often_the_deeper(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(name, classes=10, channels=3).train()
        ends = [module for path, module in model.named_modules() if path.endswith("bn2")]
        ratios = branches(model, ends, 0.5, 400)
    for number, ratio in enumerate(ratios):
        chance = 0.5 * number / (len(ends) - 1)
        whole = torch.nanmedian(ratio.flatten(1), 1).values
        skipped = whole == 0
        torch.testing.assert_close(whole[~skipped], torch.full_like(whole[~skipped], 1 / (1 - chance)))
        assert abs(skipped.float().mean() - chance) < 5 * (chance * (1 - chance) / 400) ** 0.5 + 1e-9


@pytest.mark.parametrize(("name", "end"), [("resnet18", "layer4.1.bn2"), ("resnet50", "layer4.2.bn3")])
def test_torchvisions_blocks_are_known(name, end):
    model = torchvision.models.get_model(name)
    with stochastic_depth(model, 0.3):
        hooked = [path for path, module in model.named_modules() if module._forward_hooks]
    assert hooked[-1] == end
    assert len(hooked) == (8 if name == "resnet18" else 16)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_networks_own_modules_are_used_and_left_as_they_were():
    model = torchvision.models.convnext_tiny()
    own = [module for module in model.modules() if isinstance(module, torchvision.ops.StochasticDepth)]
    before = [module.p for module in own]
    with stochastic_depth(model, 0.4):
        assert [module.p for module in own] == pytest.approx([0.4 * n / (len(own) - 1) for n in range(len(own))])
    assert [module.p for module in own] == before


def test_rate_nought_and_evaluation_change_nothing():
    model, images = build_model("resnet8", classes=10, channels=3).eval(), torch.rand(4, 3, 8, 8)
    expected = model(images)
    with stochastic_depth(model, 0.9):
        assert torch.equal(model(images), expected)
    with stochastic_depth(model, 0.0):
        assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_branches_is_refused():
    with (
        pytest.raises(
            UsageError, match=r"drop_path_rate \(=0.1\) must be 0 for Sequential, which has no known residual branch"
        ),
        stochastic_depth(nn.Sequential(nn.Conv2d(3, 3, 3)), 0.1),
    ):
        pass


def test_branches_are_dropped_where_the_schedule_asks_for_it():
    models = []
    for rate in (0.0, 0.9):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models.append(build_model("resnet8", classes=4, channels=1))
        run(models[-1], data(32), TrainingRecipe(batch_size=16, drop_path_rate=rate, precision="fp32"), epochs=1)
    assert not same(state(models[0]), state(models[1]))
