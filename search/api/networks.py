"""A single network to look at, with its data or only the shape of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from layers import UsageError
from search.runner.progress import decoding_bar, make_console
from search.study.plan import StudyPlan
from search.study.workload import prepared_data
from spaces import Network, build_model, load_weights, weights_transforms
from spaces.blocks import Granularity
from spaces.global_pruning import global_rates
from spaces.models import RESNET_DEPTHS
from trainers.data import Data, DataSpec, load_data
from trainers.data.description import describe_images
from trainers.start.choices import SALIENCIES
from trainers.start.saliency import filter_saliency

__all__ = ["LoadedNetwork", "load_network", "usual_shape"]


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """An uncompressed network and what it is used on."""

    name: str
    module: nn.Module
    image: tuple[int, int, int]
    """Channels, height and width."""
    classes: int
    images: str
    """A line about the images, '' without data."""
    data: Data | None
    trained: bool
    """Whether weights were given; they are random otherwise."""

    def images_json(self) -> dict[str, Any]:
        """Return shape and normalization of the images as plain JSON data; without data nobody knows the latter."""
        mean, std = (None, None) if self.data is None else (list(self.data.mean), list(self.data.std))
        return {"shape": list(self.image), "classes": self.classes, "mean": mean, "std": std}

    def title(self, layer: str = "") -> str:
        """Return the name of the network, or of one of its layers, for a picture."""
        name = f"{self.name} {layer}".rstrip()
        return name if self.trained else f"{name} (random start)"

    def pruning_rates(
        self, rate: float, granularity: Granularity, minimum_templates: int, saliencies: Sequence[str] = ()
    ) -> dict[str, dict[str, float]]:
        """Return each block's pruning rate under one threshold that prunes this share of all filters, by saliency.

        Without `saliencies`, filters are ranked by magnitude, and with data by each of `SALIENCIES`.
        """
        network = Network.from_module(self.module, self.image, granularity)
        kinds = saliencies or (SALIENCIES if self.data is not None else SALIENCIES[:1])
        return {
            kind: dict(
                global_rates(
                    network,
                    filter_saliency(kind, self.module, self.data, seed=StudyPlan.seed),
                    rate,
                    minimum_templates,
                )
            )
            for kind in kinds
        }


def load_network(
    model: str,
    *,
    weights: str | None = None,
    data: DataSpec | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
) -> LoadedNetwork:
    """Load the data if any are named, then the network for them with its weights, random ones from seed 0 without.

    Without data the images are as `image_size`, `channels` and `classes` say, or what the network is usually used with,
    torchvision's weights with a size of their own. Data are prepared as torchvision does for weights of its own. Raises
    `UsageError` if both name the shape, or if the weights do not fit.
    """
    loaded, images = None, ""
    image, usual_classes = usual_shape(model)
    if data is None:
        own = weights_transforms(model, weights) if weights is not None else {}
        side = image_size or own.get("image_size") or image[1]
        image = (channels or image[0], side, side)
        classes = classes or usual_classes
    else:
        for name, value in ("image_size", image_size), ("channels", channels), ("classes", classes):
            if value is not None:
                raise UsageError(f"{name} (={value}) must be left out with a data set, whose images tell it")
        data = prepared_data(data, model, weights or "")
        with decoding_bar(make_console()) as on_progress:
            loaded = load_data(data, on_progress)
        image, classes, images = loaded.val.image_shape, loaded.classes, describe_images(data, loaded)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model(model, classes=classes, channels=image[0])
    if weights is not None:
        load_weights(module, weights, name=model)
    return LoadedNetwork(
        name=model,
        module=module,
        image=image,
        classes=classes,
        images=images,
        data=loaded,
        trained=weights is not None,
    )


def usual_shape(model: str) -> tuple[tuple[int, int, int], int]:
    """Return the image (channels, height, width) and the classes that a network is usually used with.

    They are those of CIFAR-10 or ImageNet.
    """
    small = model in ("vgg16", *(f"resnet{depth}" for depth in RESNET_DEPTHS))
    return ((3, 32, 32), 10) if small else ((3, 224, 224), 1000)
