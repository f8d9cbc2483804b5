"""The network that a command is about, with its data or only the shape of its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from layers import UsageError
from search.commands.display import err_console
from search.commands.option_groups import ImageOptions
from search.runner.progress import decoding_bar
from spaces import build_model, load_weights
from spaces.models import RESNET_DEPTHS
from trainers.data import Data, load_data

__all__ = ["LoadedNetwork", "load_network", "usual_shape"]


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """An uncompressed network and what it is used on."""

    name: str
    module: nn.Module
    image: tuple[int, int, int]
    """Channels, height and width."""
    classes: int
    data: Data | None
    trained: bool
    """Whether weights were given; they are random otherwise."""

    def title(self, layer: str = "") -> str:
        """Return the name of the network, or of one of its layers, for a picture."""
        name = f"{self.name} {layer}".rstrip()
        return name if self.trained else f"{name} (random start)"


def load_network(model: str, options: ImageOptions, weights: str | None) -> LoadedNetwork:
    """Load the data if any are named, then the network for them with its weights, random ones from seed 0 without.

    Without data the shape is that of the options, or what the network is usually used with. Raises `UsageError` if
    both name it, or if the weights do not fit.
    """
    spec, data = options.data_spec(), None
    image, classes = usual_shape(model)
    if spec is None:
        size = options.image_size
        image = (options.channels or image[0], size or image[1], size or image[2])
        classes = options.classes or classes
    else:
        for name in ("image_size", "channels", "classes"):
            if (value := getattr(options, name)) is not None:
                raise UsageError(f"{name} (={value}) must be left out with --dataset, whose images tell it")
        with decoding_bar(err_console) as on_progress:
            data = load_data(spec, on_progress)
        image, classes = data.val.image_shape, data.classes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model(model, classes=classes, channels=image[0])
    if weights is not None:
        load_weights(module, weights, name=model)
    return LoadedNetwork(
        name=model, module=module, image=image, classes=classes, data=data, trained=weights is not None
    )


def usual_shape(model: str) -> tuple[tuple[int, int, int], int]:
    """Return the image (channels, height, width) and the classes that a network is usually used with.

    They are those of CIFAR-10 or ImageNet.
    """
    small = model in ("vgg16", *(f"resnet{depth}" for depth in RESNET_DEPTHS))
    return ((3, 32, 32), 10) if small else ((3, 224, 224), 1000)
