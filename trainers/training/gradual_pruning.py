"""Gradual pruning: filters that templates replace stay as they were at first, and are pruned while the network trains.

Miles & Mikolajczyk, section 4: a linear schedule over the first 40 of 300 epochs. What they leave open is ours: the
templates are chosen before training, in each layer the least salient of the other filters are pruned first, and in
evaluation all of them are pruned, so every measurement on the way is of the network that remains.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from layers import CompressedConv2d, compressed_layers

__all__ = ["advance_pruning", "defer_pruning", "deferred_params"]


def defer_pruning(model: nn.Module, original: nn.Module, saliency: Mapping[str, Tensor] | None = None) -> None:
    """Keep a compressed model's non-template filters as the original's in training, until `advance_pruning`.

    `saliency`, by the name of the convolution, decides which are pruned first; without it, their magnitude.
    """
    for name, layer in _template_layers(model).items():
        layer.defer_pruning(original.get_parameter(f"{name}.weight").detach(), (saliency or {}).get(name))


def advance_pruning(model: nn.Module, share: float) -> None:
    """Prune the given share (0 to 1) of each layer's non-template filters, least salient first; 1 cannot be undone."""
    for layer in _template_layers(model).values():
        layer.advance_pruning(share)


def deferred_params(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train only until all non-template filters are pruned."""
    layers = _template_layers(model).values()
    return [layer.residuals.values for layer in layers if layer.residuals is not None]


def _template_layers(model: nn.Module) -> dict[str, CompressedConv2d]:
    layers = compressed_layers(model).items()
    return {
        name: layer for name, layer in layers if isinstance(layer, CompressedConv2d) and layer.template_mask is not None
    }
