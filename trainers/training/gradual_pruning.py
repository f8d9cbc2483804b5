"""Gradual pruning: filters that are to be rebuilt stay as they were at first, and leave while the network trains.

Miles & Mikolajczyk, section 4: a linear schedule over the first 40 of 300 epochs. What they leave open is ours: the
templates are chosen before, in each layer the least salient of the others leave first, and in evaluation all of them
have left, so that whatever is measured on the way is measured of the network that remains.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from layers import CompressedConv2d, compressed_layers

__all__ = ["defer_pruning", "advance_pruning", "deferred_params"]


def defer_pruning(model: nn.Module, original: nn.Module, saliency: Mapping[str, Tensor] | None = None) -> None:
    """Keep rebuilt filters of a compressed model as the original's in training, until `advance_pruning`.

    The saliency of convolutions by name says which leave first, elsewhere their magnitude does.
    """
    for name, layer in _template_layers(model).items():
        layer.defer_pruning(original.get_parameter(f"{name}.weight").detach(), (saliency or {}).get(name))


def advance_pruning(model: nn.Module, share: float) -> None:
    """Let so great a share of the filters that are rebuilt, 0 to 1, have left each layer; all of them for good."""
    for layer in _template_layers(model).values():
        layer.advance_pruning(share)


def deferred_params(model: nn.Module) -> list[nn.Parameter]:
    """What trains only until all filters have left."""
    layers = _template_layers(model).values()
    return [layer.residuals.values for layer in layers if layer.residuals is not None]


def _template_layers(model: nn.Module) -> dict[str, CompressedConv2d]:
    layers = compressed_layers(model).items()
    return {
        name: layer for name, layer in layers if isinstance(layer, CompressedConv2d) and layer.template_mask is not None
    }
