"""Calibration of networks that do something along the batch: the pairs that are fitted belong together all the same."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import LayerForm, OvertoneError, UsageError, compress_model
from trainers.start import calibration as module
from trainers.start.calibration import calibrate

SERIES = LayerForm(basis="cosine", harmonics=(2, 2))
FORMS = {"body.0": SERIES, "body.3": LayerForm(basis="cosine", harmonics=(2, 1))}


class Body(nn.Module):
    """Two convolutions with norms; its subclasses say how images reach them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class OneByOne(Body):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(image) for image in x.split(1)])


class ByFives(Body):
    """Takes parts of a batch that are larger than one image, behind a layer that takes all of it."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.body[0](x)
        return torch.cat([self.body[1:](images) for images in first.split(5)])


class ByTwelves(Body):
    """Takes parts that are larger than what is looked at beforehand."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(images) for images in x.split(12)])


class Shuffled(Body):
    """Takes the images in a random order, and puts them back."""

    def forward(self, x: Tensor) -> Tensor:
        order = torch.randperm(len(x))
        return self.body(x[order])[order.argsort()]


class Sorted(Body):
    """Takes the images in an order that depends on what its first layer makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.body[0](x)
        order = first.mean((1, 2, 3)).argsort()
        return self.body[1:](first[order])[order.argsort()]


class Reversed(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flip(0)).flip(0)


class Halved(Body):
    """Takes the upper and lower halves as images of one batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.body(torch.cat(x.chunk(2, dim=2))).chunk(2), dim=2)


class Interleaved(Body):
    """Takes the halves of each image one behind the other."""

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.stack(x.chunk(2, dim=2), dim=1).flatten(0, 1)
        return torch.cat(self.body(halves).unflatten(0, (-1, 2)).unbind(1), dim=2)


def calibrated(net: nn.Module, x: Tensor) -> nn.Module:
    model = compress_model(net, FORMS)
    calibrate(model, net, x)
    return model


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return F.avg_pool2d(torch.randn(30, 3, 8, 8, generator=generator), 3, stride=1)


@pytest.fixture
def plain(generator: torch.Generator, x: Tensor) -> Body:
    net = Body()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
        net.train()(x)
    return net.eval()


def like(kind: type[Body], plain: Body) -> Body:
    net = kind().eval()
    net.load_state_dict(plain.state_dict())
    return net


def same(one: nn.Module, other: nn.Module, **tolerance: float) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.allclose(value, states[1][name], **tolerance) for name, value in states[0].items())


@pytest.mark.parametrize("images_a_piece", [30, 7])
@pytest.mark.parametrize("kind", [OneByOne, ByFives, ByTwelves, Shuffled, Sorted, Reversed])
def test_a_network_that_takes_a_batch_apart_or_reorders_it_is_calibrated_as_if_it_did_not(
    kind, images_a_piece, plain, x, monkeypatch
):
    monkeypatch.setattr(module, "_PIECE_PIXELS", images_a_piece * x.shape[2] * x.shape[3])
    net = like(kind, plain)
    state = torch.get_rng_state()
    assert same(calibrated(net, x), calibrated(plain, x), rtol=1e-3, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [Halved, Interleaved])
def test_a_network_that_makes_several_images_of_one_is_calibrated_on_all_of_them(kind, plain, x):
    halves = torch.cat(x.chunk(2, dim=2))
    assert same(calibrated(like(kind, plain), x), calibrated(plain, halves), rtol=1e-3, atol=1e-4)


class Centered(Body):
    """Reads the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - 0.5 * x.mean(0))


def test_a_network_that_reduces_over_the_batch_sees_the_batch_of_its_own_images_alone(plain, x):
    centered = x - 0.5 * x.mean(0)
    assert same(calibrated(like(Centered, plain), x), calibrated(plain, centered), rtol=1e-3, atol=1e-4)


class Noisy(Body):
    """Draws a new mask each time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(F.dropout(x, 0.5, training=True))


def test_both_networks_draw_the_same_numbers(plain, x, generator):
    net = like(Noisy, plain)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    masked = F.dropout(x, 0.5, training=True)
    torch.set_rng_state(state)
    assert same(calibrated(net, x), calibrated(plain, masked), rtol=1e-3, atol=1e-4)


class Unruly(Body):
    """Draws from what nobody can set back."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * random.SystemRandom().random())


class Turns(Body):
    """Calls one layer or the other, by what the first makes of the images."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.body[0](x)
        weight = self.body[0].weight if isinstance(self.body[0], nn.Conv2d) else None
        return self.body[1:](first) if weight is not None else self.body[3:](first)


class Alone(Body):
    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1, "takes one image"
        return self.body(x)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Unruly, OvertoneError, r"^cannot calibrate a network that gives other outputs for the same image each time$"),
        (
            Turns,
            OvertoneError,
            r"^cannot calibrate a network that calls other layers once it is compressed: 'body\.3', before 'body\.1'$",
        ),
        (Alone, UsageError, r"^calibration images must fit the network, 8 at a time: takes one image$"),
    ],
)
def test_what_cannot_be_paired_is_refused_in_a_sentence(kind, error, message, plain, x):
    net = like(kind, plain)
    model, before = compress_model(net, FORMS), copy.deepcopy(net)
    with pytest.raises(error, match=message):
        calibrate(model, net, x)
    assert same(net, before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in [*model.modules(), *net.modules()])


def test_an_error_of_the_networks_own_code_comes_out_of_the_thread(plain, x):
    class Breaking(Body):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 8:
                raise RuntimeError("too many")
            return self.body(x)

    with pytest.raises(RuntimeError, match=r"^too many$"):
        calibrated(like(Breaking, plain), x)


def test_images_that_only_one_of_the_networks_drops_are_refused(plain, x):
    class Dropping(Body):
        def forward(self, x: Tensor) -> Tensor:
            first = self.body[0](x)
            return self.body[1:](first if isinstance(self.body[0], nn.Conv2d) else first[:, :, :-1])

    with pytest.raises(OvertoneError, match=r"^layer 'body\.1': cannot calibrate it on inputs \(30, 6, 5, 6\), "):
        calibrated(like(Dropping, plain), x)
