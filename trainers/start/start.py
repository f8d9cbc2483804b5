"""How the weights of a compressed network are initialized, before fine-tuning."""

import torch
from torch import nn

from layers import CompressedConv2d, UsageError, compressed_layers
from layers.integer.network import int8_layers
from layers.series.harmonic import descend_coefficients
from trainers.data import Data
from trainers.runtime.determinism import epoch_generator
from trainers.start.activations import scale_activations
from trainers.start.calibration import calibrate
from trainers.start.choices import INITS

__all__ = ["CALIBRATION_IMAGES", "calibration_images", "initialize"]

CALIBRATION_IMAGES = 512


def initialize(
    init: str,
    model: nn.Module,
    baseline: nn.Module,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    calibration: torch.Tensor | None = None,
) -> None:
    """Initialize a compressed model, as `layers.compress_model` returns it, and move it to the device.

    The seed draws the calibration images, unless normalized ones are given as `calibration`, or gradient descent's
    first coefficients. Layers in int8 take the scales of their activations from the calibration images, whatever the
    start.
    """

    def images() -> torch.Tensor:
        return calibration_images(data, seed=seed, device=device) if calibration is None else calibration

    if init not in INITS:
        raise UsageError(f"init (={init!r}) must be one of {', '.join(INITS)}")
    model.to(device)
    if init == "calibrated" and compressed_layers(model):
        calibrate(model, baseline, images())
    elif init == "gradient_descent":
        generator = epoch_generator(seed, 0, torch.device("cpu"))
        for name, layer in compressed_layers(model).items():
            if isinstance(layer, CompressedConv2d) and layer.form.basis and not layer.form.allocation:
                _descend(layer, baseline.get_parameter(f"{name}.weight"), generator)
    if int8_layers(model):
        scale_activations(model, images())


def calibration_images(data: Data, *, seed: int, device: torch.device, count: int = CALIBRATION_IMAGES) -> torch.Tensor:
    """Return normalized training images (n, C, H, W), drawn by the seed, at most `count` of them, on the device."""
    generator = epoch_generator(seed, 0, torch.device("cpu"))
    rows = torch.randperm(len(data.train), generator=generator)[:count]
    return data.normalize(data.train.take(rows).to(device))


def _descend(layer: CompressedConv2d, weight: torch.Tensor, generator: torch.Generator) -> None:
    weight = weight.detach().to(layer.coefficients).view(len(weight), -1, *layer.shape.kernel)
    filters = weight if layer.template_mask is None else weight[layer.template_mask]
    constant = str(layer.form.basis).startswith("chebyshev")
    coefficients = descend_coefficients(filters, *layer.bases(), constant=constant, generator=generator)
    layer.set_coefficients(coefficients, weight)
