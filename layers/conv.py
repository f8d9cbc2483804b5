"""Compressed convolutions: one weight built in independent steps from the few tensors that are stored.

Coefficients -> (block floating point) -> (each filter's own harmonics) -> series -> templates' taps -> transforms ->
filters; then an ordinary convolution of the input, itself rounded to block floating point. Each step is left out where
its knob is `None`. Sources: Costain & Prisacariu (series, block floating point); Miles & Mikolajczyk (templates); the
combination is ours. A 1-D convolution is one of images with a single row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers.errors import UsageError
from layers.form import PARAMETERS, LayerForm, LayerShape, stored_indices, stored_tensors
from layers.quantized import QuantizedLayer
from layers.series.allocation import allocate, allocated_mix, expand_coefficients, support_slots, supports
from layers.series.basis import basis_matrix
from layers.series.harmonic import basis_responses, factored_conv2d, least_squares_coefficients, padded, series_taps
from layers.templates.assignment import modulo_assignment, residual_assignment
from layers.templates.fused import FusedTemplates, fused_conv2d
from layers.templates.gradual import Residuals
from layers.templates.rebuild import (
    choose_templates,
    fitted_transforms,
    output_operators,
    rebuild_filters,
    two_stage_conv2d,
)
from layers.templates.reference import ConvGeometry
from layers.templates.transforms import Transform

__all__ = ["CompressedConv1d", "CompressedConv2d", "Execution"]

Execution = Literal["dense", "factored", "two_stage", "fused"]


class CompressedConv2d(QuantizedLayer):
    """A convolution in a compressed form, started at the least-squares answer to the filters of a dense one.

    Takes (B, C, H, W) and gives (B, N, H_out, W_out) like the `nn.Conv2d` it is made from, whatever its stride,
    padding, dilation, groups and padding mode, and (C, H, W) too. `execution` picks among exact forms: `dense` builds
    the filters, `factored` (series without templates), `two_stage` and `fused` (templates, ungrouped convolution) do
    not. `fused` is for inference on the CPU; otherwise it runs as `two_stage`.
    """

    phi_y: Tensor | None
    phi_x: Tensor | None
    template_mask: Tensor | None
    template_index: Tensor | None
    frequency_support: Tensor
    support_index: Tensor | None

    def __init__(self, conv: nn.Conv2d, form: LayerForm, saliency: Tensor | None = None) -> None:
        """Saliency (N,) says which filters stay as templates; without it their magnitude does."""
        super().__init__()
        self.shape, self.form = LayerShape.from_module(conv), form
        self.stride = (conv.stride[0], conv.stride[1])
        self.dilation = (conv.dilation[0], conv.dilation[1])
        left, right, top, bottom = conv._reversed_padding_repeated_twice
        self.margins = (left, right, top, bottom)
        self.padding_mode = conv.padding_mode
        self.execution: Execution = "dense"
        self.residuals: Residuals | None = None
        self._known: dict[str, tuple[Any, Any]] = {}
        tensors = stored_tensors(self.shape, form)
        self._register_bases(conv.weight)
        kept = None if form.templates is None else choose_templates(conv.weight, form.templates, saliency)
        self.register_buffer("template_mask", kept)
        self.register_buffer("template_index", None)
        self.register_buffer("frequency_support", None)
        self.register_buffer("support_index", None, persistent=False)
        if form.allocation is not None:
            self.register_load_state_dict_post_hook(CompressedConv2d._place_supports)
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone())
        self.coefficients = nn.Parameter(conv.weight.new_empty(tensors["coefficients"].shape))
        if form.assignment is not None:
            count = stored_indices(self.shape, form)["template_index"].values
            self.template_index = torch.zeros(count, dtype=torch.int32, device=conv.weight.device)
        if kept is not None:
            for name in tensors.keys() & set(PARAMETERS.values()):
                self.register_parameter(name, nn.Parameter(conv.weight.new_empty(tensors[name].shape)))
        kept_filters = conv.weight if kept is None else conv.weight[kept]
        if form.allocation is not None:
            self._begin_allocated(conv.weight.detach())
            return
        if self.phi_y is not None and self.phi_x is not None:
            kept_filters = least_squares_coefficients(kept_filters, self.phi_y, self.phi_x)
        self.set_coefficients(kept_filters, conv.weight)

    @torch.no_grad()
    def set_coefficients(self, coefficients: Tensor, weight: Tensor, assigned: Tensor | None = None) -> None:
        """Take coefficients (M, C / groups, n_y, n_x) of the kept filters, all filters where there are no templates.

        Where they are allocated to filters they are given for all K_y K_x harmonics, and those within each filter's
        support are taken. Transforms become those that bring the templates near to the filters `weight`
        (N, C / groups, K_y, K_x); a form that assigns templates to filters takes `assigned` (N - M,), or the nearest.
        """
        if self.support_index is not None:
            self.coefficients.copy_(coefficients.permute(0, 2, 3, 1).flatten(0, 2)[self.support_index])
            return
        by_group = coefficients.unflatten(1, (self.form.groups, -1)).transpose(0, 1).flatten(0, 1)
        self.coefficients.copy_(by_group)
        parameters = self.transforms()
        if self.template_mask is None or parameters is None:
            return
        rebuilt = self._transform(), weight, self.templates(), self.template_mask
        if self.template_index is not None:
            self.template_index.copy_(residual_assignment(*rebuilt) if assigned is None else assigned)
        parameters.copy_(fitted_transforms(*rebuilt, self.assignment()))

    def kept_coefficients(self) -> Tensor:
        """The coefficients in the order of `set_coefficients`."""
        if self.support_index is not None:
            return self._expanded(self.coefficients)
        return self.coefficients.unflatten(0, (self.form.groups, -1)).transpose(0, 1).flatten(1, 2)

    @torch.no_grad()
    def defer_pruning(self, weight: Tensor, saliency: Tensor | None = None) -> None:
        """Keep rebuilt filters as those of `weight` (N, C / groups, K_y, K_x) in training, until `advance_pruning`.

        The least salient (N,) leave first, by magnitude where it is not given. In evaluation they have left.
        """
        assert self.template_mask is not None
        saliency = weight.double().flatten(1).norm(dim=1) if saliency is None else saliency
        weight, pruned = weight.view(len(weight), -1, *self.shape.kernel).to(self.coefficients), ~self.template_mask
        left = (weight - self._build_filters())[pruned]
        self.residuals = Residuals(left, saliency.to(pruned.device)[pruned])

    def advance_pruning(self, share: float) -> None:
        """Let so great a share of those filters, 0 to 1, have left; all of them for good."""
        if self.residuals is not None:
            self.residuals.leave(share)
        if share >= 1:
            self.residuals = None

    def choose_supports(self, errors: Tensor) -> Tensor:
        """Allocate the coefficients by each filter's error (N, K_y K_x) with each support; gives back the supports."""
        assert self.form.harmonics is not None
        chosen = allocate(errors, self.shape.kernel, self.shape.out_channels * prod(self.form.harmonics))
        self.frequency_support = chosen.to(torch.uint8)
        self._place_supports()
        return chosen

    def _begin_allocated(self, weight: Tensor) -> None:
        """Start at the supports and coefficients whose filters are nearest to the given ones."""
        fitted = []
        for n_y, n_x in supports(self.shape.kernel):
            part = tuple(phi[:, :n] for phi, n in zip(self.bases(), (n_y, n_x), strict=True))
            found = least_squares_coefficients(weight, *part)
            error = (series_taps(found, *part) - weight).square().sum((1, 2, 3))
            fitted.append((F.pad(found, (0, self.shape.kernel[1] - n_x, 0, self.shape.kernel[0] - n_y)), error))
        chosen = self.choose_supports(torch.stack([error for _, error in fitted], 1))
        self.set_coefficients(torch.stack([found for found, _ in fitted])[chosen, torch.arange(len(chosen))], weight)

    def _place_supports(self, *_: Any) -> None:
        """Follow a change of `supports`, by loading too."""
        self.support_index = support_slots(self.frequency_support, self.shape.kernel, len(self.coefficients))

    def _expanded(self, stored: Tensor) -> Tensor:
        assert self.support_index is not None
        return expand_coefficients(stored, self.support_index, self.shape.out_channels, self.shape.kernel)

    def _register_bases(self, like: Tensor) -> None:
        bases: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.form.basis is not None and self.form.harmonics is not None:
            harmonics = self.form.harmonics if self.form.allocation is None else self.shape.kernel
            sizes = zip(self.shape.kernel, harmonics, strict=True)
            bases = tuple(basis_matrix(self.form.basis, k, n).to(like) for k, n in sizes)  # type: ignore[assignment]
        self.register_buffer("phi_y", bases[0], persistent=False)
        self.register_buffer("phi_x", bases[1], persistent=False)

    @property
    def executions(self) -> tuple[Execution, ...]:
        """The exact forms that this layer can run in."""
        if self.template_mask is not None:
            if self.shape.groups > 1:
                return ("dense",)
            return ("dense", "two_stage", "fused") if self._has_one_pass() else ("dense", "two_stage")
        allocated_in_groups = self.form.allocation is not None and self.shape.groups > 1
        return ("dense",) if self.form.basis is None or allocated_in_groups else ("dense", "factored")

    def _has_one_pass(self) -> bool:
        """Whether outputs lie amid their taps, zeros around the image; transforms that mix taps take stride 1."""
        left, right, top, bottom = self.margins
        where = ConvGeometry(self.shape.kernel, self.stride, (top, left), self.dilation)
        mixes = self.form.transform not in ("scalar", "zero") and self.stride != (1, 1)
        return where.is_centered and not mixes and self.padding_mode == "zeros" and (left, top) == (right, bottom)

    def filters(self) -> Tensor:
        """The filters (N, C / groups, K_y, K_x) that the stored tensors stand for.

        In evaluation without gradients they are kept until a stored tensor changes in place or by loading. A change
        behind PyTorch's back (`layer.coefficients.data.add_(1)`) is seen only after `train()` or `eval()`.

        Under autocast they are built in the parameters' precision all the same: where a template's tap is near 0 its
        gain is large, and so would be what an error in bfloat16 grows to.
        """
        with _without_autocast(self.coefficients.device.type):
            found: Tensor = self._kept_in_evaluation("filters", self._build_filters)
        return found

    def _kept_in_evaluation(self, name: str, build: Callable[[], Any]) -> Any:
        """What `build` makes of the stored tensors, or made of them the last time."""
        state = None if self.training else self._stored_state()
        if state is None:
            return build()
        if name not in self._known or self._known[name][0] != state:
            self._known[name] = (state, build())
        return self._known[name][1]

    def _stored_state(self) -> Any:
        """What changes when a stored tensor does; `None` where filters must be built anew."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        tensors = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        plain = all(type(t) in (Tensor, nn.Parameter) and not t.is_inference() for t in tensors)
        if not plain or torch.is_autocast_enabled(tensors[0].device.type):
            return None
        return [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]

    def _build_filters(self) -> Tensor:
        templates = self.templates()
        if self.template_mask is None:
            return templates.flatten(0, 1)
        parameters = self._stored_transforms()
        residuals = self.residuals() if self.residuals is not None and self.training else None
        return rebuild_filters(
            templates, self._transform(), parameters, self.template_mask, self.assignment(), residuals
        )

    def train(self, mode: bool = True) -> Self:
        """Forget the filters that evaluation keeps."""
        self._known.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the input is rounded first where the form has bits."""
        if self.execution not in self.executions:
            raise UsageError(f"execution (={self.execution!r}) does not exist for a layer in the form {self.form}.")
        if x.dim() == 3:
            return self.forward(x[None])[0]
        x = self.rounded(x)
        if self.execution == "dense" or (self.training and self.residuals is not None):
            x, padding = padded(x, self.margins, self.padding_mode)
            bias = self.rounded_bias()
            return F.conv2d(x, self.filters(), bias, self.stride, padding, self.dilation, self.shape.groups)
        bias = self.rounded_bias()
        if self.execution == "fused" and (y := self._fused(x, bias)) is not None:
            return y
        y = self._factored(x) if self.execution == "factored" else self._two_stage(x)
        return y if bias is None else y + bias[:, None, None].to(y.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """The input as the convolution sees it."""
        return self.quantized(x, self.form.activation_format)

    def responses(self, x: Tensor) -> Tensor:
        """Basis responses (B, C n_y n_x, H_out, W_out) to an input; the coefficients mix them into the output."""
        return basis_responses(self.rounded(x), *self.bases(), **self._places())

    def _factored(self, x: Tensor) -> Tensor:
        mix = self._stored(self.coefficients)
        if self.support_index is not None:
            return allocated_mix(self.responses(x), self._expanded(mix), self.frequency_support)
        return factored_conv2d(x, mix, *self.bases(), groups=self.shape.groups, **self._places())

    def bases(self) -> tuple[Tensor, Tensor]:
        """The sampled bases (K_y, n_y) and (K_x, n_x) of a layer that is a series."""
        if self.phi_y is None or self.phi_x is None:
            raise UsageError(f"A layer in the form {self.form} has no series.")
        return self.phi_y, self.phi_x

    def _places(self) -> dict[str, Any]:
        """Where filters are applied, as `layers.series.harmonic` takes it."""
        return {
            "stride": self.stride,
            "margins": self.margins,
            "padding_mode": self.padding_mode,
            "dilation": self.dilation,
        }

    def _two_stage(self, x: Tensor) -> Tensor:
        x, padding = padded(x, self.margins, self.padding_mode)
        return two_stage_conv2d(
            x, self.templates(), *self._operators(), stride=self.stride, padding=padding, dilation=self.dilation
        )

    def _fused(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        layer = self._kept_in_evaluation(
            "fused", lambda: FusedTemplates.from_operators(self.templates(), *self._operators())
        )
        left, _, top, _ = self.margins
        places = {"stride": self.stride, "padding": (top, left), "dilation": self.dilation}
        return fused_conv2d(x, layer, bias, **places)

    def _operators(self) -> tuple[Tensor, Tensor]:
        assert self.template_mask is not None
        parameters, kernel = self._stored_transforms(), self.shape.kernel
        return output_operators(self._transform(), parameters, self.template_mask, self.assignment(), kernel)

    def assignment(self) -> Tensor:
        """The template of each filter that is rebuilt, (N - M,) int64."""
        if self.template_index is not None:
            return self.template_index.long()
        count = self.form.templates
        assert count is not None
        return modulo_assignment(self.shape.out_channels - count, count, self.coefficients.device)

    def transforms(self) -> Tensor | None:
        """The parameters (N - M, G, ...) of the transforms, `None` where there are none (`layers.form.PARAMETERS`)."""
        name = None if self.form.transform is None else PARAMETERS.get(self.form.transform)
        return None if name is None else self.get_parameter(name)

    def _transform(self) -> Transform:
        assert self.form.transform is not None
        return self.form.transform

    def _stored_transforms(self) -> Tensor:
        """The parameters as they are stored; where there are none, an empty tensor of as many filters and groups."""
        parameters = self.transforms()
        if parameters is not None:
            return self._stored(parameters)
        assert self.form.templates is not None
        return self.coefficients.new_zeros(self.shape.out_channels - self.form.templates, self.form.groups, 0)

    def _stored(self, tensor: Tensor) -> Tensor:
        return self.quantized(tensor, self.form.weight_format)

    def templates(self) -> Tensor:
        """Taps (G, M, C / G, K_y, K_x) of the templates."""
        taps = self._stored(self.coefficients)
        if self.support_index is not None:
            taps = self._expanded(taps)
        if self.phi_y is not None and self.phi_x is not None:
            taps = series_taps(taps, self.phi_y, self.phi_x)
        return taps.unflatten(0, (self.form.groups, -1))

    def extra_repr(self) -> str:
        """Shape and form in a line."""
        shape = self.shape
        return f"{shape.in_channels}, {shape.out_channels}, kernel={shape.kernel}, stride={self.stride}, {self.form}"


class CompressedConv1d(CompressedConv2d):
    """A 1-D convolution in a compressed form: (B, C, L) to (B, N, L_out); harmonics are (1, n)."""

    def __init__(self, conv: nn.Conv1d, form: LayerForm, saliency: Tensor | None = None) -> None:
        super().__init__(_with_one_row(conv), form, saliency)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the input is rounded first where the form has bits."""
        return super().forward(x.unsqueeze(-2)).squeeze(-2)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Where autocast is on: elsewhere, and so in an exported graph, nothing is to be seen of it."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def _with_one_row(conv: nn.Conv1d) -> nn.Conv2d:
    """The same convolution of images with a single row."""
    flat = nn.utils.skip_init(
        nn.Conv2d,
        conv.in_channels,
        conv.out_channels,
        (1, conv.kernel_size[0]),
        stride=(1, conv.stride[0]),
        padding=conv.padding if isinstance(conv.padding, str) else (0, conv.padding[0]),
        dilation=(1, conv.dilation[0]),
        groups=conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
    )
    flat.weight = nn.Parameter(conv.weight.detach().unsqueeze(-2))
    flat.bias = conv.bias
    return flat
