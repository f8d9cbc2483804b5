"""The compressed form of one layer: plain data that says which tensors are stored, and how.

`stored_tensors` alone knows their shapes. The layer allocates them, the cost model counts them, and the packed file
holds them, so the three cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from layers.blockfloat.format import AXES, SCALES, Axis, BlockFormat, Scale, ScaledFormat
from layers.errors import UsageError
from layers.series.basis import Basis, basis_name
from layers.templates.transforms import TRANSFORMS, Transform, parameter_shape

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "ALLOCATIONS",
    "ARITHMETICS",
    "ASSIGNMENTS",
    "MOST_TAPS",
    "PARAMETERS",
    "Arithmetic",
    "LayerForm",
    "LayerShape",
    "StoredIndices",
    "StoredTensor",
    "canonical_form",
    "is_norm",
    "stored_indices",
    "stored_tensors",
]

Allocation = Literal["filter"]
ALLOCATIONS: tuple[Allocation, ...] = ("filter",)
Assignment = Literal["residual"]
ASSIGNMENTS: tuple[Assignment, ...] = ("residual",)
Arithmetic = Literal["float", "int8"]
ARITHMETICS: tuple[Arithmetic, ...] = ("float", "int8")
MOST_TAPS = 256
"""Taps of the largest filter that coefficients can be allocated to: its support is stored as a byte in memory."""

PARAMETERS: dict[Transform, str] = {"scalar": "gains", "rotation": "angles", "affine": "matrices"}
"""The name of the transforms' parameters in a layer; `zero` has none."""


@dataclass(frozen=True, kw_only=True)
class LayerForm:
    """How one layer is compressed. `None` leaves a step out; with nothing but `None` the layer is as it was.

    All but `arithmetic` and the activations' knobs say what is stored; those say what the layer does when it runs.
    """

    basis: Basis | None = None
    """Series basis of the filters."""
    harmonics: tuple[int, int] | None = None
    """Harmonics in y and in x; given together with `basis`."""
    allocation: Allocation | None = None
    """`filter`: the coefficients that `harmonics` make are allocated to the filters (`layers.series.allocation`)."""
    templates: int | None = None
    """Templates M (per group) that all filters are rebuilt from."""
    groups: int = 1
    """Channel groups G of the templates."""
    transform: Transform | None = None
    """How a template becomes a filter; given together with `templates`."""
    assignment: Assignment | None = None
    """`residual`: each pruned filter is rebuilt from its nearest template; else the r-th from template r mod M."""
    bits: int | None = None
    """Mantissa bits of stored weights, in blocks of `exponent_block`."""
    exponent_block: int = 1
    """Stored weights that share one exponent."""
    exponent_axis: Axis = "flat"
    """What blocks of weights are cut from: the flattened tensor, each filter, or a filter's channels at each tap."""
    exponent_bits: int = 7
    """Bits of a shared exponent."""
    scale: Scale | None = None
    """`bfloat16`: stored weights are whole numbers with a real scale a filter (`layers.blockfloat.scaled`)."""
    activation_bits: int | None = None
    """Mantissa bits to which the layer's input is rounded when it runs; that saves no byte, and needs no `bits`."""
    activation_block: int = 1
    """Input channels of a pixel that share one exponent then; 1 in the paper."""
    arithmetic: Arithmetic = "float"
    """What a convolution or linear layer computes in, once its filters are built."""
    vector_bits: int | None = None
    """Mantissa bits of a layer's bias or a norm's vectors; each value has its own exponent."""

    def __post_init__(self) -> None:
        if (self.basis is None) != (self.harmonics is None):
            raise UsageError(f"basis (={self.basis!r}) and harmonics (={self.harmonics}) must be given together")
        if self.harmonics is not None:
            pair = self.harmonics if isinstance(self.harmonics, tuple) else ()
            if len(pair) != 2 or not all(type(n) is int and n >= 1 for n in pair):
                raise UsageError(f"harmonics (={self.harmonics}) must be two whole numbers of at least 1, (y, x)")
        if self.basis is not None:
            object.__setattr__(self, "basis", basis_name(self.basis))
        if self.allocation is not None and (self.allocation not in ALLOCATIONS or self.basis is None or self.templates):
            raise UsageError(
                f"allocation (={self.allocation!r}) must be {', '.join(ALLOCATIONS)}, in a series without templates"
            )
        if (self.templates is None) != (self.transform is None):
            raise UsageError(
                f"templates (={self.templates}) and transform (={self.transform!r}) must be given together"
            )
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise UsageError(f"transform (={self.transform!r}) must be one of {', '.join(TRANSFORMS)}")
        if self.assignment is not None and (
            self.assignment not in ASSIGNMENTS or (self.templates or 1) < 2 or self.transform == "zero"
        ):
            raise UsageError(
                f"assignment (={self.assignment!r}) must be {', '.join(ASSIGNMENTS)}, of two templates or more that "
                "are transformed"
            )
        if not isinstance(self.groups, int) or self.groups < 1:
            raise UsageError(f"groups (={self.groups!r}) must be a whole number of at least 1")
        if self.templates is None and self.groups != 1:
            raise UsageError(f"groups (={self.groups}) must be 1 in a layer without templates")
        self._check_running()
        if self.bits is None and self.exponent_axis != "flat":
            raise UsageError(f"exponent_axis (={self.exponent_axis!r}) must be 'flat' without bits")
        exponents = (self.exponent_block, self.exponent_axis)
        if self.scale is not None and (self.scale not in SCALES or self.bits is None or exponents != (1, "flat")):
            raise UsageError(
                f"scale (={self.scale!r}) must be {', '.join(SCALES)}, of weights with bits that share no exponent"
            )
        _ = self.weight_format, self.activation_format, self.vector_format

    def _check_running(self) -> None:
        for name in ("activation_bits", "vector_bits"):
            bits = getattr(self, name)
            if bits is not None and (type(bits) is not int or not 1 <= bits <= 16):
                raise UsageError(f"{name} (={bits!r}) must be a whole number from 1 to 16")
        if self.activation_bits is None and self.activation_block != 1:
            raise UsageError(f"activation_block (={self.activation_block!r}) must be 1 without activation_bits")
        if self.arithmetic not in ARITHMETICS:
            raise UsageError(f"arithmetic (={self.arithmetic!r}) must be one of {', '.join(ARITHMETICS)}")

    @property
    def weight_format(self) -> BlockFormat | ScaledFormat | None:
        """How stored weights are quantized."""
        if self.bits is None:
            return None
        if self.scale is not None:
            return ScaledFormat(bits=self.bits)
        return BlockFormat(
            bits=self.bits, block=self.exponent_block, exponent_bits=self.exponent_bits, axis=self.exponent_axis
        )

    @property
    def activation_format(self) -> BlockFormat | None:
        """How the layer's input is rounded, as (images, channels, ...)."""
        if self.activation_bits is None:
            return None
        block = self.activation_block
        axis: Axis = "flat" if block == 1 else "channel"
        return BlockFormat(bits=self.activation_bits, block=block, exponent_bits=self.exponent_bits, axis=axis)

    @property
    def vector_format(self) -> BlockFormat | None:
        """How a bias or a norm's vectors are quantized."""
        return (
            None if self.vector_bits is None else BlockFormat(bits=self.vector_bits, exponent_bits=self.exponent_bits)
        )


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Shape of a convolution, linear layer or norm, and of the images with which the network calls it."""

    kind: Literal["conv2d", "linear", "norm"]
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    """Taps in y and x."""
    groups: int = 1
    """Groups of the convolution itself."""
    bias: bool = False
    calls: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    """Input and output (height, width) of each call in a forward pass of one image; (1, rows) for linear layers."""
    vectors: tuple[str, ...] = ()
    """What a norm stores of each channel: `weight`, `bias`, and if it has them `running_mean`, `running_var`."""

    @classmethod
    def from_module(
        cls, layer: nn.Module, calls: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = ()
    ) -> LayerShape:
        """Read the shape off an `nn.Conv2d`, an `nn.Conv1d` (one row), an `nn.Linear`, or a norm (`is_norm`)."""
        from torch import nn

        bias = getattr(layer, "bias", None) is not None
        if isinstance(layer, nn.Linear):
            outputs, inputs = layer.weight.shape  # not `in_features`: whoever exchanges a weight may forget it
            return cls(kind="linear", in_channels=inputs, out_channels=outputs, bias=bias, calls=calls)
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            return cls(
                kind="conv2d",
                in_channels=layer.weight.shape[1] * layer.groups,
                out_channels=layer.weight.shape[0],
                kernel=(1 if layer.weight.dim() == 3 else layer.weight.shape[2], layer.weight.shape[-1]),
                groups=layer.groups,
                bias=bias,
                calls=calls,
            )
        if is_norm(layer):
            vectors = _vectors(layer)
            channels = next(iter(vectors.values())).numel()
            return cls(kind="norm", in_channels=channels, out_channels=channels, vectors=tuple(vectors))
        raise UsageError(f"layer (={type(layer).__name__}) must be a Conv2d, a Conv1d, a Linear or a norm")

    @property
    def filter_channels(self) -> int:
        """Input channels that one filter sees, C / groups."""
        return self.in_channels // self.groups


def is_norm(layer: nn.Module) -> bool:
    """Return whether the layer is a norm whose numbers are vectors, one value a channel."""
    from torch import nn

    norms = nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm
    vectors = _vectors(layer).values() if isinstance(layer, norms) else ()
    return bool(vectors) and all(vector.dim() == 1 for vector in vectors)


def _vectors(norm: nn.Module) -> dict[str, Tensor]:
    named = [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]
    return {name: value for name, value in named if name != "num_batches_tracked"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor that a layer stores: its shape, and its format if it is quantized (else float32)."""

    shape: tuple[int, ...]
    format: BlockFormat | ScaledFormat | None = None
    trains: bool = True

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the packed file."""
        return 4 * self.values if self.format is None else sum(self.format.packed_bytes(self.shape))


@dataclass(frozen=True)
class StoredIndices:
    """Whole numbers that a layer stores, each in this many bits."""

    values: int
    bits: int

    @property
    def bytes(self) -> int:
        """Bytes in the packed file."""
        return (self.values * self.bits + 7) // 8


def stored_tensors(shape: LayerShape, form: LayerForm) -> dict[str, StoredTensor]:
    """Return the tensors of numbers that a layer of this shape stores in this form, by name.

    `coefficients` (G M, C / G, n_y, n_x) are series coefficients of the templates; without a basis the templates' taps;
    without templates those of all filters (G = 1, M = N). If they are allocated to filters they are (N n_y n_x, C), a
    row for each harmonic of each filter. Transforms are `gains` (N - M, G, K_y, K_x), `angles` (N - M, G, 1) or
    `matrices` (N - M, G, 2, 3). `bias` is (N,). A norm stores its vectors (C,), of which statistics do not train.
    `stored_indices` returns what is stored besides. Raises `UsageError` if the shape cannot have this form.
    """
    _check(shape, form)
    if shape.kind == "norm":
        trained = {name: name in ("weight", "bias") for name in shape.vectors}
        return {n: StoredTensor((shape.out_channels,), form.vector_format, trains) for n, trains in trained.items()}
    outputs = shape.out_channels
    templates = outputs if form.templates is None else form.templates
    taps = shape.kernel if form.harmonics is None else form.harmonics
    channels = shape.filter_channels // form.groups
    tensors = {"coefficients": StoredTensor((form.groups * templates, channels, *taps), form.weight_format)}
    if form.allocation is not None:
        tensors["coefficients"] = StoredTensor((outputs * taps[0] * taps[1], channels), form.weight_format)
    if form.templates is not None:
        assert form.transform is not None
        if form.transform in PARAMETERS:
            numbers = (outputs - templates, form.groups, *parameter_shape(form.transform, shape.kernel))
            tensors[PARAMETERS[form.transform]] = StoredTensor(numbers, form.weight_format)
    if shape.bias:
        tensors["bias"] = StoredTensor((outputs,), form.vector_format)
    return tensors


def stored_indices(shape: LayerShape, form: LayerForm) -> dict[str, StoredIndices]:
    """Return the whole numbers that a layer stores besides, by name; they do not train.

    `template_mask` (N,) says which filters are templates, `template_index` (N - M,) from which template each pruned
    filter is rebuilt, `frequency_support` (N,) which harmonics each filter has.
    """
    indices = {}
    if form.templates is not None:
        indices["template_mask"] = StoredIndices(shape.out_channels, 1)
    if form.templates is not None and form.assignment is not None:
        indices["template_index"] = StoredIndices(
            shape.out_channels - form.templates, (form.templates - 1).bit_length()
        )
    if form.allocation is not None:
        supports = prod(shape.kernel)
        indices["frequency_support"] = StoredIndices(shape.out_channels, max(1, (supports - 1).bit_length()))
    return indices


def canonical_form(shape: LayerShape, form: LayerForm) -> LayerForm:
    """Return the canonical form: forms that mean the same for this layer become equal, so that digests agree.

    That is the first axis that cuts the same blocks of all stored tensors, and blocks of activations no longer than the
    layer has channels.
    """

    def runs(axis: Axis) -> list[tuple[int, int, int]]:
        stored = stored_tensors(shape, replace(form, exponent_axis=axis)).values()
        return [tensor.format.runs(tensor.shape) for tensor in stored if isinstance(tensor.format, BlockFormat)]

    if (form.exponent_axis, form.activation_block) == ("flat", 1):
        return form
    flat = form.exponent_axis == "flat"
    axis = "flat" if flat else next(axis for axis in AXES if runs(axis) == runs(form.exponent_axis))
    return replace(form, exponent_axis=axis, activation_block=min(form.activation_block, shape.in_channels))


def _check(shape: LayerShape, form: LayerForm) -> None:
    if shape.kind == "norm" and form != LayerForm(vector_bits=form.vector_bits, exponent_bits=form.exponent_bits):
        raise UsageError("a norm takes vector_bits alone, neither bits nor harmonics nor templates nor arithmetic")
    if shape.kind == "linear" and (form.basis or form.templates):
        raise UsageError("a linear layer takes bits and arithmetic alone, neither harmonics nor templates")
    if form.harmonics is not None and not all(1 <= n <= k for n, k in zip(form.harmonics, shape.kernel, strict=True)):
        raise UsageError(f"harmonics (={form.harmonics}) must be between 1 and the kernel's size {shape.kernel}")
    if form.templates is not None and not 1 <= form.templates <= shape.out_channels:
        raise UsageError(
            f"templates (={form.templates}) must be between 1 and the layer's {shape.out_channels} filters"
        )
    if form.allocation is not None and prod(shape.kernel) > MOST_TAPS:
        raise UsageError(
            f"allocation (={form.allocation!r}) must be None for filters of {shape.kernel} taps, more than {MOST_TAPS}"
        )
    if shape.filter_channels % form.groups:
        raise UsageError(f"groups (={form.groups}) must divide the {shape.filter_channels} channels that a filter sees")
