"""Fresh random numbers and small networks for the tests of spaces."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from spaces import Network, Space


@pytest.fixture
def fill(generator: torch.Generator) -> Callable[[nn.Module], nn.Module]:
    """Give a module random weights, and its norms random statistics; in eval mode."""

    def filled(module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.2, generator=generator)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.uniform_(0.5, 2.0, generator=generator)
        return module.eval()

    return filled


@pytest.fixture
def images(generator: torch.Generator) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(*shape, generator=generator)


class WideNet(nn.Module):
    """Kernels of 7x7, 1x7, 4x4 and 1x1, a depthwise layer, layers of one name's beginning, and a linear layer."""

    def __init__(self, *, classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 7, padding=3)
        self.body = nn.Sequential(
            nn.Conv2d(16, 24, (1, 7), padding=(0, 3), bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 4, stride=2, groups=24),
            nn.Conv2d(24, 32, 1),
        )
        self.body2 = nn.Conv2d(32, 12, 3, padding=1)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body2(self.body(torch.relu(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture
def wide() -> nn.Module:
    return WideNet()


@pytest.fixture
def wide_network(wide: nn.Module) -> Network:
    return Network.from_module(wide, (3, 12, 12))


@pytest.fixture
def wide_space(wide_network: Network) -> Space:
    return Space.default(wide_network, minimum_templates=2)


@pytest.fixture
def draw(rng: random.Random) -> Callable[[Space], dict[str, str | int | float | None]]:
    """One random value a knob."""
    return lambda space: {knob: rng.choice(values) for knob, values in space.knobs.items()}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, where this machine has one."""
    folder = Path(os.environ.get("OVERTONE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder} (set OVERTONE_TEST_DATA)")
    return folder
