"""Small networks with habits of published ones: how they hold, call and read their layers.

All take (B, 3, 12, 12) images to (B, 4) logits.
"""

import functools
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

IMAGE = (3, 12, 12)
CLASSES = 4


class Base(nn.Module):
    """Two convolutions with norms, called by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(12), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(x)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Listed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.first, self.norm1, nn.ReLU(), self.second, self.norm2, nn.ReLU()]

    def features(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Pair(NamedTuple):
    conv: nn.Module
    norm: nn.Module


class InTuples(Base):
    """Layers in a dict of lists of tuples, some of them named."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = {"a": [Pair(self.first, self.norm1)], "b": [(self.second, self.norm2)]}

    def features(self, x: Tensor) -> Tensor:
        for pairs in self.stages.values():
            for conv, norm in pairs:
                x = F.relu(norm(conv(x)))
        return x


class AsKeys(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm_of = {self.first: self.norm1, self.second: self.norm2}

    def features(self, x: Tensor) -> Tensor:
        for conv, norm in self.norm_of.items():
            x = F.relu(norm(conv(x)))
        return x


class ByMethods(Base):
    """Bound methods and partial functions of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [self.first.__call__, functools.partial(nn.Module.__call__, self.norm1), F.relu]
        self.calls += [functools.partial(_call, layer=self.second), self.norm2.__call__, F.relu]

    def features(self, x: Tensor) -> Tensor:
        for call in self.calls:
            x = call(x)
        return x


def _call(x: Tensor, layer: nn.Module) -> Tensor:
    y: Tensor = layer(x)
    return y


class Runner:
    """An object that is no module, and runs one."""

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers

    def run(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class ByRunner(Base):
    def __init__(self) -> None:
        super().__init__()
        self.runner = Runner(self.first, self.second)

    def features(self, x: Tensor) -> Tensor:
        return self.runner.run(x)


class ByOtherNames(Base):
    """A layer's attribute that is another layer, outside of what is registered."""

    def __init__(self) -> None:
        super().__init__()
        self.first.__dict__["next"] = self.second

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.first.next(F.relu(self.first(x))))


class Reading(Base):
    """Reads what code commonly reads off a layer."""

    def features(self, x: Tensor) -> Tensor:
        conv = self.first
        x = x.to(conv.weight.dtype).to(conv.weight.device)
        assert x.shape[1] == conv.in_channels == conv.weight.shape[1] * conv.groups
        assert conv.out_channels == len(conv.weight) == len(conv.bias) == self.second.in_channels
        assert (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        assert (conv.padding_mode, conv.transposed, conv.output_padding) == ("zeros", False, (0, 0))
        assert self.head.in_features == self.second.out_channels == self.head.weight.shape[1]
        assert self.head.out_features == CLASSES == len(self.head.bias)
        return super().features(x)


class Penalized(Base):
    """Computes with a layer's weight too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.second.weight.square().mean())


class Scaled(Base):
    """Its layers have attributes of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first.scale, self.second.scale = 0.5, 1.5

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x) * self.first.scale)
        return F.relu(self.second(x) * self.second.scale)


class Harmless(nn.Conv2d):
    """Starts otherwise, convolves as torch's."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__(source, target, 3, padding=1)

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class WithHarmless(Base):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Harmless(3, 12), Harmless(12, 16)
        self.head = nn.modules.linear.NonDynamicallyQuantizableLinear(16, CLASSES)


class Dilated(Base):
    """Strides, dilations and paddings that were changed after construction, as segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first.stride, self.second.dilation, self.second.padding = (2, 1), (2, 1), (3, 0)


class Same(Base):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding="same"), nn.Conv2d(12, 16, (2, 4), padding="same")
        self.second.dilation = (1, 2)


class Exchanged(Base):
    """Its first weight was exchanged for one of other shape; `in_channels` still says 5."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(5, 12, 3, padding=1)
        self.first.weight = nn.Parameter(self.first.weight.detach()[:, :3].clone())


class Lazy(Base):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.norm2, self.head = nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(CLASSES)
        with torch.no_grad():
            self(torch.zeros(2, *IMAGE))


class Torchvisions(Base):
    """Classes of torchvision: a block of layers, and a norm that does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Conv2dNormActivation(3, 12, 3, norm_layer=FrozenBatchNorm2d)
        self.second = Conv2dNormActivation(12, 16, 3)


class ChannelsNorm(nn.LayerNorm):
    """A layer norm of images, as in ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class WithChannelsNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelsNorm(12), ChannelsNorm(16)


class Signal(Base):
    """1-D convolutions, whose settings are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 12, 5, stride=2, padding=1), nn.Conv1d(12, 16, 3, padding="same")
        self.norm1, self.norm2 = nn.BatchNorm1d(12), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        x, conv = x.flatten(2), self.first
        length = (x.shape[-1] + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1
        assert (len(conv.stride), conv.weight.shape) == (1, (12, 3, 5))
        x = self.features(x)
        assert x.shape[-1] == length
        logits: Tensor = self.head(x.mean(2))
        return logits


class TwiceCalled(Base):
    def features(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.first(x.flip(-1))
        return F.relu(self.second(x))


class OneByOne(Base):
    """Handles images one at a time in evaluation."""

    def features(self, x: Tensor) -> Tensor:
        if self.training:
            return super().features(x)
        return torch.cat([super(OneByOne, self).features(image[None]) for image in x])


COMPRESSED = [
    *(Base, Listed, InTuples, AsKeys, ByMethods, ByRunner, ByOtherNames, Reading, Penalized, Scaled, WithHarmless),
    *(Dilated, Same, Exchanged, Lazy, Torchvisions, WithChannelsNorm, Signal, TwiceCalled, OneByOne),
]
"""All their convolutions and linear layers are compressed."""


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, self.padding)


class Halved(nn.Conv2d):
    """Changes what torch's forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / 2, bias)


class Activated(nn.Conv2d):
    """Holds an activation, which its caller runs."""

    def __init__(self, *shape: int) -> None:
        super().__init__(*shape, padding=1)
        self.activation = nn.PReLU()


class Masked(nn.Conv2d):
    def __init__(self, *shape: int) -> None:
        super().__init__(*shape, padding=1)
        self.register_buffer("mask", torch.ones(self.weight.shape).tril())


class LowRank(nn.Linear):
    """A layer that holds layers (LoRA)."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__(source, target)
        self.a, self.b = nn.Linear(source, 2, bias=False), nn.Linear(2, target, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        low: Tensor = self.b(self.a(x))
        return super().forward(x) + low


class WithSecond(Base):
    """Its second convolution is of another kind."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.second = second


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.flip(-1)


def _second() -> nn.Module:
    return nn.Conv2d(12, 16, 3, padding=1)


def _absolute(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight.abs(), conv.bias, padding=1)


def _patched() -> nn.Module:
    conv = _second()
    conv.forward = MethodType(_absolute, conv)
    return conv


def _double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def _hooked() -> nn.Module:
    conv = _second()
    conv.register_forward_hook(_double)
    return conv


def _named_as_ours() -> nn.Module:
    conv = _second()
    conv.form = "round"
    return conv


class ReadsForm(WithSecond):
    def features(self, x: Tensor) -> Tensor:
        assert self.second.form == "round"
        return super().features(x)


class WithLowRank(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = LowRank(16, CLASSES)


KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "standardized": (lambda: WithSecond(Standardized(12, 16, 3, padding=1)), "second"),
    "inner forward": (lambda: WithSecond(Halved(12, 16, 3, padding=1)), "second"),
    "patched": (lambda: WithSecond(_patched()), "second"),
    "activation": (lambda: WithSecond(Activated(12, 16, 3)), "second"),
    "buffer": (lambda: WithSecond(Masked(12, 16, 3)), "second"),
    "hooks": (lambda: WithSecond(_hooked()), "second"),
    "attribute": (lambda: ReadsForm(_named_as_ours()), "second"),
    "weight norm": (lambda: WithSecond(parametrizations.weight_norm(_second())), "second"),
    "spectral norm": (lambda: WithSecond(parametrizations.spectral_norm(_second())), "second"),
    "own parametrization": (lambda: WithSecond(register_parametrization(_second(), "weight", Symmetric())), "second"),
    "low rank": (WithLowRank, "head"),
}
"""Networks with a layer that stays as it is, and its name."""


class ByClosure(Base):
    def __init__(self) -> None:
        super().__init__()
        second = self.second
        self.run = lambda x: second(x)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.run(F.relu(self.norm1(self.first(x)))))


class PatchedByClosure(Base):
    """Its layer runs code that holds the layer, but never a copy of it."""

    def __init__(self) -> None:
        super().__init__()
        second = self.second
        second.forward = lambda x: F.conv2d(x, second.weight.abs(), second.bias, padding=1)


class ByDigits(ByClosure):
    """The same for handwritten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 12, 3), nn.Linear(16, 10)


class ByWeakReference(Base):
    def __init__(self) -> None:
        super().__init__()
        self.link = weakref.ref(self.second)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.link()(F.relu(self.norm1(self.first(x)))))


class ByKind(Base):
    """Runs what is a convolution of torch's."""

    def features(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x))
        for layer in (self.second,):
            x = F.relu(layer(x)) if isinstance(layer, nn.Conv2d) else x.repeat(1, 2, 1, 1)[:, :16]
        return x


class Privately(Base):
    """Reads what only torch's own layer has."""

    def features(self, x: Tensor) -> Tensor:
        assert self.second._reversed_padding_repeated_twice
        return super().features(x)


class Unsaved(Base):
    """Computes with random numbers that are neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = [torch.rand(12, 1, 1)]

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x) * self.noise[0]))


class Choosy(Base):
    """Runs a layer for some images alone."""

    def features(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        return self.second(y) if x.any() else y.repeat(1, 2, 1, 1)[:, :16]


class TwoOutputs(Base):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class NoGradients(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class FailsInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("no training here")
        return super().forward(x)


class Infinite(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (0.0 if self.training else 1.0)


_SAME = r"must compute the same with its layers replaced: with 'second' in a form that changes nothing "

REFUSED: dict[type[nn.Module], str] = {
    ByClosure: rf"{_SAME}'second' runs 0 times and not 1: perhaps the network holds it where it cannot be replaced",
    ByWeakReference: rf"{_SAME}'second' runs 0 times and not 1: perhaps the network holds it where it cannot be",
    ByKind: rf"{_SAME}'second' runs 0 times and not 1: ",
    Privately: rf"{_SAME}it fails: AttributeError: .*_reversed_padding",
    Unsaved: r"must hold all that it computes with in its parameters and buffers: .* first those of its part 'second'$",
    TwoOutputs: r"must give \(8, 4\) logits for 8 images in training too, it gives tuple$",
    NoGradients: r"must take a training step, it fails: RuntimeError: .*does not require grad",
    FailsInTraining: r"must take a training step, it fails: RuntimeError: no training here$",
    Infinite: r"must take a training step on noise with a finite loss, it is nan$",
}


def __getattr__(name: str) -> Callable[..., nn.Module]:
    """A factory of each network, for `tests.trainers.odd_networks:make_NAME`."""
    if not name.startswith("make_"):
        raise AttributeError(name)
    return lambda classes, channels: globals()[name.removeprefix("make_")]()
