import pytest
import torch
from torch import nn

from layers import UsageError, compress_model
from spaces import BlockConfig, Network, NetworkConfig, build_model
from trainers.data import Data, DataSpec, load_data
from trainers.start.choices import INITS
from trainers.start.start import CALIBRATION_IMAGES, initialize

CPU = torch.device("cpu")
CONFIG = NetworkConfig(
    blocks={
        "conv1": BlockConfig(basis="chebyshev", harmonics=(2, 3)),
        "layer1": BlockConfig(basis="cosine", harmonics=(2, 2)),
        "layer3": BlockConfig(basis="cosine", harmonics=(2, 2), allocation="filter"),
        "layer2": BlockConfig(basis="cosine", harmonics=(2, 3), pruning_rate=0.5, groups=2),
        "linear": BlockConfig(bits=6),
    }
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataSpec())


@pytest.fixture(scope="module")
def baseline() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build_model("resnet8", classes=10, channels=1).eval()


@pytest.fixture
def started(data: Data, baseline: nn.Module):
    def start(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
        model = compress_model(baseline, Network.from_module(baseline, (1, 8, 8)).forms(CONFIG))
        initialize(name, model, baseline, data, seed=seed, device=CPU)
        return model.state_dict()

    return start


def test_gradient_descent_finds_what_least_squares_says(started):
    descended, solved = started("gradient_descent"), started("least_squares")
    assert all(torch.allclose(value, solved[name], rtol=1e-3, atol=1e-4) for name, value in descended.items())


def test_least_squares_is_how_compression_leaves_the_model(started, baseline):
    plain = compress_model(baseline, Network.from_module(baseline, (1, 8, 8)).forms(CONFIG)).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in started("least_squares").items())


def test_the_calibrated_start_depends_on_the_seed_alone(started):
    first, again, other = started("calibrated", 5), started("calibrated", 5), started("calibrated", 6)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    name = "layer1.0.conv1.coefficients"
    assert not torch.equal(first[name], other[name])
    assert not torch.allclose(first[name], started("least_squares")[name], atol=1e-3)


def test_calibration_reads_training_images_and_no_labels(data, baseline, monkeypatch):
    seen = []
    monkeypatch.setattr("trainers.start.start.calibrate", lambda model, base, images: seen.append(images))
    model = compress_model(baseline, Network.from_module(baseline, (1, 8, 8)).forms(CONFIG))
    initialize("calibrated", model, baseline, data, seed=0, device=CPU)
    (images,) = seen
    assert images.shape == (CALIBRATION_IMAGES, 1, 8, 8)
    known = {image.numpy().tobytes() for image in data.train.images}
    pixels = ((images * data.std[0] + data.mean[0]) * 255).round().to(torch.uint8).contiguous()
    assert all(image.numpy().tobytes() in known for image in pixels)


def test_an_unknown_start_is_refused(data, baseline):
    with pytest.raises(UsageError, match=rf"init \(='warm'\) must be one of {', '.join(INITS)}"):
        initialize("warm", baseline, baseline, data, seed=0, device=CPU)
