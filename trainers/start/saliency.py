"""How much each filter of a trained network matters: the most salient stay as templates (Miles & Mikolajczyk, 3.1).

`magnitude`: the filter's L2 norm, relative to the root mean square over its layer, because the scale of a layer's
filters means nothing before a norm. `gradient`: the change of the loss, to first order, if the filter were zero,
squared (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, eq. 8, all weights of a filter in
one group), averaged over batches of labeled training images; this has one scale in all layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import UsageError
from trainers.data import Data
from trainers.runtime.determinism import deterministic_cudnn, epoch_generator, eval_mode
from trainers.start.choices import SALIENCIES

__all__ = ["filter_saliency"]

_IMAGES = 512
_BATCH = 64


def filter_saliency(
    kind: str, network: nn.Module, data: Data | None, *, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return the saliency (N,) of the filters of each convolution by its name, float64 on the CPU.

    The network is not changed. The seed draws the images of `gradient`, which is 0 in a layer that is never called.
    Raises `UsageError` for another kind, and for `gradient` without data.
    """
    if kind not in SALIENCIES:
        raise UsageError(f"saliency (={kind!r}) must be one of {', '.join(SALIENCIES)}")
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv1d | nn.Conv2d)}
    if kind == "magnitude":
        norms = {name: layer.weight.detach().double().flatten(1).norm(dim=1).cpu() for name, layer in layers.items()}
        return {name: norm / norm.square().mean().sqrt().clamp_min(1e-300) for name, norm in norms.items()}
    if data is None:
        raise UsageError(f"saliency (={kind!r}) must be 'magnitude' without labeled training images")
    rows = torch.randperm(len(data.train), generator=epoch_generator(seed, 0, torch.device("cpu")))[:_IMAGES]
    saliency = {name: torch.zeros(len(layer.weight), dtype=torch.float64) for name, layer in layers.items()}
    home = next(network.parameters()).device
    batches = rows.split(_BATCH)
    with eval_mode(network.to(device)), deterministic_cudnn(), torch.enable_grad():
        for batch in batches:
            images = data.normalize(data.train.take(batch).to(device))
            loss = F.cross_entropy(network(images), data.train.labels[batch].to(device))
            weights = [layer.weight for layer in layers.values()]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
            for name, weight, gradient in zip(layers, weights, gradients, strict=True):
                change = (weight.detach() * gradient).double().flatten(1).sum(dim=1)
                saliency[name] += change.square().cpu() / len(batches)
    network.to(home)
    return saliency
