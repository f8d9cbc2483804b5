"""How much each filter of a trained network matters: by which of them stay as templates (Miles & Mikolajczyk, 3.1).

`magnitude`: the filter's L2 norm, relative to the root mean square over its layer, since before a norm the scale of a
layer's filters means nothing. `gradient`: what the loss would change by to first order if the filter were zero, squared
(Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, eq. 8, all weights of a filter in one
group), on average over batches of labeled training images; of all layers on one scale by itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import UsageError
from trainers.data import Data
from trainers.data.augment import normalize
from trainers.evaluation import eval_mode
from trainers.runtime.determinism import deterministic_cudnn, epoch_generator

__all__ = ["SALIENCIES", "filter_saliency"]

SALIENCIES = ("magnitude", "gradient")

_IMAGES, _BATCH = 512, 64


def filter_saliency(
    kind: str, network: nn.Module, data: Data | None, *, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Saliency (N,) of the filters of each convolution by its name, float64 on the CPU; the network stays as it is.

    The seed draws the images of `gradient`, which is 0 in a layer that is never called. Raises `UsageError` for another
    kind, and for `gradient` without data.
    """
    if kind not in SALIENCIES:
        raise UsageError(f"saliency (={kind!r}) must be one of {', '.join(SALIENCIES)}.")
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv1d | nn.Conv2d)}
    if kind == "magnitude":
        norms = {name: layer.weight.detach().double().flatten(1).norm(dim=1).cpu() for name, layer in layers.items()}
        return {name: norm / norm.square().mean().sqrt().clamp_min(1e-300) for name, norm in norms.items()}
    if data is None:
        raise UsageError(f"saliency (={kind!r}) needs labeled training images.")
    rows = torch.randperm(len(data.train), generator=epoch_generator(seed, 0, torch.device("cpu")))[:_IMAGES]
    found = {name: torch.zeros(len(layer.weight), dtype=torch.float64) for name, layer in layers.items()}
    home = next(network.parameters()).device
    batches = rows.split(_BATCH)
    with eval_mode(network.to(device)), deterministic_cudnn(), torch.enable_grad():
        for batch in batches:
            images = normalize(data.train.take(batch).to(device), data.mean, data.std)
            loss = F.cross_entropy(network(images), data.train.labels[batch].to(device))
            weights = [layer.weight for layer in layers.values()]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            for name, weight, gradient in zip(layers, weights, gradients, strict=True):
                change = (weight.detach() * gradient).double().flatten(1).sum(dim=1)
                found[name] += change.square().cpu() / len(batches)
    network.to(home)
    return found
