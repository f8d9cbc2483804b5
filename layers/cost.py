"""What a layer costs by its shape and form alone, before anything is built or trained.

`size_bytes` is the payload of the packed file. `macs` are multiply-accumulates of one image in the cheapest exact
form that `layers.execution` has: dense; factored (a series convolution as basis convolutions and a mix,
`layers.series.harmonic`); two-stage (Miles & Mikolajczyk eq. 5, `layers.templates.rebuild`), with maps at all pixels or
sampled; or pruned. Building filters does not count. Convolutions and matrix products count, as usual; norms,
activations, additions and pooling do not, nor do the additions that join identity filters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from layers.form import LayerForm, LayerShape, stored_indices, stored_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Cost", "layer_cost", "network_cost", "remaining_cost"]


@dataclass(frozen=True)
class Cost:
    """Parameters that train, bytes of the packed file, multiply-accumulates of one image."""

    parameters: int = 0
    size_bytes: int = 0
    macs: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations, two a multiply-accumulate."""
        return 2 * self.macs

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.size_bytes + other.size_bytes, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.parameters - other.parameters, self.size_bytes - other.size_bytes, self.macs - other.macs)


@lru_cache(maxsize=1 << 16)
def layer_cost(shape: LayerShape, form: LayerForm) -> Cost:
    """Return the cost of one layer; raise `UsageError` if the layer cannot have the form."""
    tensors = stored_tensors(shape, form).values()
    indices = stored_indices(shape, form).values()
    return Cost(
        parameters=sum(tensor.values for tensor in tensors if tensor.trains),
        size_bytes=sum(tensor.bytes for tensor in tensors) + sum(index.bytes for index in indices),
        macs=sum(_macs(shape, form, source, target) for source, target in shape.calls),
    )


def network_cost(shapes: Mapping[str, LayerShape], forms: Mapping[str, LayerForm], rest: Cost) -> Cost:
    """Return the cost of a network: of its layers, each in its form (none: as it was), and of all else.

    `shapes` and `forms` are by layers' names; `rest` is the `remaining_cost` of the same layers.
    """
    return sum((layer_cost(shape, forms.get(name, LayerForm())) for name, shape in shapes.items()), rest)


def remaining_cost(model: nn.Module, layers: Collection[str]) -> Cost:
    """Return the cost of all parameters and buffers outside the named layers, as `layers.pack` stores them."""
    inside = tuple(f"{name}." for name in layers)
    state = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(inside) and not name.endswith("num_batches_tracked")
    }
    trainable = {name for name, _ in model.named_parameters()}
    return Cost(
        parameters=sum(value.numel() for name, value in state.items() if name in trainable),
        size_bytes=sum(_packed_bytes(value) for value in state.values()),
    )


def _packed_bytes(value: Tensor) -> int:
    import torch

    return (value.numel() + 7) // 8 if value.dtype == torch.bool else value.numel() * value.element_size()


def _macs(shape: LayerShape, form: LayerForm, source: tuple[int, int], target: tuple[int, int]) -> int:
    k_y, k_x = shape.kernel
    outputs = shape.out_channels
    channels = shape.in_channels
    pixels = target[0] * target[1]
    forms = [pixels * k_y * k_x * shape.filter_channels * outputs]
    if form.harmonics is not None and form.templates is None and (form.allocation is None or shape.groups == 1):
        n_y, n_x = form.harmonics if form.allocation is None else shape.kernel
        rows = target[0] * source[1] * channels * n_y * k_y
        columns = pixels * channels * n_y * n_x * k_x
        forms.append(rows + columns + pixels * prod(form.harmonics) * shape.filter_channels * outputs)
    if form.transform == "zero":
        assert form.templates is not None
        forms.append(forms[0] // outputs * form.templates)
    elif form.templates is not None and shape.groups == 1:
        forms.append(_two_stage_macs(shape, form, source[0] * source[1], pixels))
    return min(forms)


def _two_stage_macs(shape: LayerShape, form: LayerForm, input_pixels: int, pixels: int) -> int:
    """Count the maps of the templates, then the gather: eq. 5, and section 2.5 for transforms that mix taps."""
    assert form.templates is not None
    taps, rebuilt = prod(shape.kernel), form.groups * (shape.out_channels - form.templates)
    maps = taps * shape.in_channels * form.templates
    if form.transform == "scalar":
        return min(input_pixels, pixels) * maps + pixels * taps * rebuilt
    neighbors = prod(2 if k > 1 else 1 for k in shape.kernel)
    return input_pixels * maps + pixels * neighbors * taps * rebuilt
