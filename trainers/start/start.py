"""How the weights of a compressed network begin, before fine-tuning."""

import torch
from torch import nn

from layers import CompressedConv2d, UsageError, compressed_layers
from layers.series.harmonic import descend_coefficients
from trainers.data import Data
from trainers.data.augment import normalize
from trainers.runtime.determinism import epoch_generator
from trainers.start.calibration import calibrate

__all__ = ["CALIBRATION_IMAGES", "INITS", "initialize"]

INITS = ("calibrated", "least_squares", "gradient_descent")
"""`calibrated`: fitted to the uncompressed network's outputs on training images without their labels, norms
re-estimated (`trainers.start.calibration`); `least_squares`: nearest to the trained filters, in closed form;
`gradient_descent`: the same answer, found as Costain & Prisacariu do (eq. 5)."""

CALIBRATION_IMAGES = 512


def initialize(
    init: str, model: nn.Module, baseline: nn.Module, data: Data, *, seed: int, device: torch.device
) -> None:
    """Bring a compressed model, as `layers.compress_model` leaves it, to the start; it is moved to the device.

    The seed draws the calibration images, or gradient descent's first coefficients.
    """
    if init not in INITS:
        raise UsageError(f"init (={init!r}) must be one of {', '.join(INITS)}.")
    model.to(device)
    generator = epoch_generator(seed, 0, torch.device("cpu"))
    if init == "calibrated" and compressed_layers(model):
        rows = torch.randperm(len(data.train), generator=generator)[:CALIBRATION_IMAGES]
        images = data.train.take(rows).to(device)
        calibrate(model, baseline, normalize(images, data.mean, data.std))
    elif init == "gradient_descent":
        for name, layer in compressed_layers(model).items():
            if isinstance(layer, CompressedConv2d) and layer.form.basis and not layer.form.allocation:
                _descend(layer, baseline.get_parameter(f"{name}.weight"), generator)


def _descend(layer: CompressedConv2d, weight: torch.Tensor, generator: torch.Generator) -> None:
    weight = weight.detach().to(layer.coefficients).view(len(weight), -1, *layer.shape.kernel)
    kept = weight if layer.template_mask is None else weight[layer.template_mask]
    constant = str(layer.form.basis).startswith("chebyshev")
    found = descend_coefficients(kept, *layer.bases(), constant=constant, generator=generator)
    layer.set_coefficients(found, weight)
