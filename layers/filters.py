"""The filters of a convolution, built in independent steps from the few tensors that are stored.

Coefficients -> (block floating point) -> (each filter's own harmonics) -> series -> templates' taps -> transforms ->
filters. A step is left out if its knob is `None`. Sources: Costain & Prisacariu (series, block floating point); Miles &
Mikolajczyk (templates); the combination is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from layers.errors import UsageError
from layers.form import PARAMETERS, LayerForm, LayerShape, stored_indices, stored_tensors
from layers.integer.rounding import filter_codes
from layers.quantized import QuantizedLayer
from layers.series.allocation import expand_coefficients, index_supports
from layers.series.harmonic import series_taps
from layers.series.sampling import basis_matrix
from layers.templates.assignment import modulo_assignment
from layers.templates.gradual import Residuals
from layers.templates.rebuild import output_operators, rebuild_filters
from layers.templates.transforms import Transform

__all__ = ["EvaluationCache", "FilterLayer"]


class EvaluationCache:
    """Values built from a module's tensors, by name, until one of the tensors changes. A copy starts empty."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, Any]] = {}

    def get(self, name: str, module: nn.Module, build: Callable[[], Any]) -> Any:
        """Return what `build` makes, or made the last time if the module evaluates and no tensor of it has changed."""
        state = None if module.training else _tensor_state(module)
        if state is None:
            return build()
        if name not in self._entries or self._entries[name][0] != state:
            self._entries[name] = (state, build())
        return self._entries[name][1]

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[EvaluationCache], tuple[()]]:
        return EvaluationCache, ()


class FilterLayer(QuantizedLayer):
    """The stored tensors of a convolution, the filters they stand for, and where those are applied.

    A tensor that the form does not store is `None`.
    """

    coefficients: nn.Parameter
    phi_y: Tensor | None
    """Sampled basis (K_y, n_y)."""
    phi_x: Tensor | None
    """Sampled basis (K_x, n_x)."""
    template_mask: Tensor | None
    """Which filters are templates, (N,) bool."""
    template_index: Tensor | None
    """The template of each pruned filter, (N - M,) int32, if the form assigns them."""
    frequency_support: Tensor
    """The support of each filter, (N,) uint8, if coefficients are allocated to filters."""
    support_index: Tensor | None
    """Where each stored row of coefficients stands among (N, K_y, K_x); follows from `frequency_support`."""
    strides: tuple[int, int]
    """In y and in x, as the others; `stride` and the like are those of the convolution that this layer replaces."""
    dilations: tuple[int, int]
    margins: tuple[int, int, int, int]
    """Padding on the left, on the right, at the top, at the bottom."""
    residuals: Residuals | None
    """What pruned filters have besides while they are pruned gradually."""

    def __init__(self, conv: nn.Conv2d, form: LayerForm) -> None:
        """Allocate what the form stores of this convolution; all but the bias is to be filled."""
        super().__init__()
        self.carry_attributes(conv)
        self.shape = LayerShape.from_module(conv)
        self.form = form
        self.prepare_arithmetic()
        self.strides = (conv.stride[0], conv.stride[1])
        self.dilations = (conv.dilation[0], conv.dilation[1])
        self.margins = _margins(conv)
        self.padding_mode = conv.padding_mode
        self.residuals = None
        self.cache = EvaluationCache()
        tensors = stored_tensors(self.shape, form)
        indices = stored_indices(self.shape, form)
        self._register_bases(conv.weight)
        for name in ("template_mask", "template_index", "frequency_support"):
            self.register_buffer(name, None)
        self.register_buffer("support_index", None, persistent=False)
        if form.allocation is not None:
            self.register_load_state_dict_post_hook(FilterLayer._index_supports)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.coefficients = nn.Parameter(conv.weight.new_empty(tensors["coefficients"].shape))
        if "template_index" in indices:
            count = indices["template_index"].values
            self.template_index = torch.zeros(count, dtype=torch.int32, device=conv.weight.device)
        for name in tensors.keys() & set(PARAMETERS.values()):
            self.register_parameter(name, nn.Parameter(conv.weight.new_empty(tensors[name].shape)))

    def _register_bases(self, like: Tensor) -> None:
        bases: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.form.basis is not None and self.form.harmonics is not None:
            harmonics = self.form.harmonics if self.form.allocation is None else self.shape.kernel
            sizes = zip(self.shape.kernel, harmonics, strict=True)
            bases = tuple(basis_matrix(self.form.basis, k, n).to(like) for k, n in sizes)  # type: ignore[assignment]
        self.register_buffer("phi_y", bases[0], persistent=False)
        self.register_buffer("phi_x", bases[1], persistent=False)

    def _index_supports(self, *_: Any) -> None:
        """Follow a change of `frequency_support`; loading calls this too."""
        self.support_index = index_supports(self.frequency_support, self.shape.kernel, len(self.coefficients))

    @property
    def weight(self) -> Tensor:
        """The filters as the convolution that this layer replaces has its weight, built anew; it is stored nowhere."""
        return self.filters()

    def filters(self) -> Tensor:
        """Build the filters (N, C / groups, K_y, K_x), in int8 rounded as they are multiplied.

        In evaluation without gradients they are kept until a stored tensor changes in place or by loading. A change
        behind PyTorch's back (`layer.coefficients.data.add_(1)`) is seen only after `train()` or `eval()`.

        Under autocast they are built in the parameters' precision all the same: if a template's tap is near 0 its gain
        is large, and an error in bfloat16 would grow as much.
        """
        with _without_autocast(self.coefficients.device.type):
            filters: Tensor = self.cache.get("filters", self, self._computed_filters)
        return filters

    def filter_codes(self) -> tuple[Tensor, Tensor]:
        """Return the filters' codes (N, C / groups, K_y, K_x) and scales (N,) in int8, kept as `filters` are."""
        with _without_autocast(self.coefficients.device.type):
            codes: tuple[Tensor, Tensor] = self.cache.get("codes", self, lambda: filter_codes(self._build_filters()))
        return codes

    def _computed_filters(self) -> Tensor:
        return self.computed_filters(self._build_filters())

    def _build_filters(self) -> Tensor:
        templates = self.templates()
        if self.template_mask is None:
            return templates.flatten(0, 1)
        parameters = self._stored_transforms()
        residuals = self.residuals() if self.residuals is not None and self.training else None
        return rebuild_filters(
            templates, self._transform(), parameters, self.template_mask, self.assignment(), residuals
        )

    def templates(self) -> Tensor:
        """Build the taps (G, M, C / G, K_y, K_x) of the templates; of all filters if there are no templates."""
        taps = self.stored_coefficients()
        if self.phi_y is not None and self.phi_x is not None:
            taps = series_taps(taps, self.phi_y, self.phi_x)
        return taps.unflatten(0, (self.form.groups, -1))

    def stored_coefficients(self) -> Tensor:
        """Return the coefficients in their format; (N, C / groups, K_y, K_x), zero outside supports, if allocated."""
        stored = self._stored(self.coefficients)
        return stored if self.support_index is None else self._expanded(stored)

    def operators(self) -> tuple[Tensor, Tensor]:
        """Build each output's tap operator and its template (`layers.templates.rebuild.output_operators`)."""
        assert self.template_mask is not None
        parameters = self._stored_transforms()
        return output_operators(self._transform(), parameters, self.template_mask, self.assignment(), self.shape.kernel)

    def bases(self) -> tuple[Tensor, Tensor]:
        """Return the sampled bases (K_y, n_y) and (K_x, n_x); `UsageError` if the layer is no series."""
        if self.phi_y is None or self.phi_x is None:
            raise UsageError(f"a layer in the form {self.form} has no series")
        return self.phi_y, self.phi_x

    def assignment(self) -> Tensor:
        """Return the template of each pruned filter, (N - M,) int64."""
        if self.template_index is not None:
            return self.template_index.long()
        count = self.form.templates
        assert count is not None
        return modulo_assignment(self.shape.out_channels - count, count, self.coefficients.device)

    def transforms(self) -> Tensor | None:
        """Return the transforms' parameters (N - M, G, ...), or `None` if they have none (`layers.form.PARAMETERS`)."""
        name = None if self.form.transform is None else PARAMETERS.get(self.form.transform)
        return None if name is None else getattr(self, name)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and drop the filters that evaluation keeps."""
        self.cache.clear()
        return super().train(mode)

    def _transform(self) -> Transform:
        assert self.form.transform is not None
        return self.form.transform

    def _stored_transforms(self) -> Tensor:
        """Return the parameters as they are stored, or an empty tensor for as many filters and groups."""
        parameters = self.transforms()
        if parameters is not None:
            return self._stored(parameters)
        assert self.form.templates is not None
        return self.coefficients.new_zeros(self.shape.out_channels - self.form.templates, self.form.groups, 0)

    def _stored(self, tensor: Tensor) -> Tensor:
        return self.quantized(tensor, self.form.weight_format)

    def _expanded(self, stored: Tensor) -> Tensor:
        assert self.support_index is not None
        return expand_coefficients(stored, self.support_index, self.shape.out_channels, self.shape.kernel)


def _margins(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) that the convolution's forward pass uses.

    With zeros that is `padding` as it is now: like strides and dilations it may have been changed after construction.
    """
    if conv.padding_mode != "zeros":
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        return left, right, top, bottom
    if isinstance(conv.padding, str):
        reach = [
            0 if conv.padding == "valid" else d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
        return reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2
    y, x = conv.padding
    return x, x, y, y


def _tensor_state(module: nn.Module) -> Any:
    """Return what changes when a tensor of the module does, or `None` if values must be built anew."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    ordinary = all(type(t) in (Tensor, nn.Parameter) and not t.is_inference() for t in tensors)
    if not ordinary or torch.is_autocast_enabled(tensors[0].device.type):
        return None
    return [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Switch autocast off if it is on; otherwise do nothing, so that an exported graph shows nothing of it."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()
