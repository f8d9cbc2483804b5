"""A block's form as a few numbers, part by part: what the effect of compressing it is predicted from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, log2, prod

from layers.form import LayerForm, LayerShape
from spaces.config import BlockConfig
from spaces.network import Network

__all__ = ["PARTS", "Numbers", "Part", "form_parts"]

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """What is known of a part before any measurement: by how much each of its numbers moves the log of its effect."""

    slopes: Numbers
    shared: Numbers
    """Standard deviations of the slopes, all blocks alike."""
    own: Numbers
    """Those of a block's own slopes around them."""


PARTS: Mapping[str, Part] = {
    "series": Part((9.0, 9.0, -2.0, 0.0), (3.0, 3.0, 2.0, 0.5), (1.5, 1.5, 1.0, 0.3)),
    "templates": Part((5.0, 0.0, 1.0), (3.0, 0.5, 1.0), (1.5, 0.2, 0.5)),
    "bits": Part((-log(4), 0.2, 0.0), (0.3, 0.2, 1.0), (0.1, 0.1, 0.3)),
    "inputs": Part((-log(4), 0.2), (0.3, 0.2), (0.1, 0.1)),
    "int8": Part((1.0,), (1.0,), (0.0,)),
    "vectors": Part((-log(4),), (0.3,), (0.1,)),
}
"""The numbers of each part:

- `series`: the share of harmonics that are left out, low ones counting more; or, if coefficients are allocated, the
  share of taps without one; whether they are; whether the basis is a Chebyshev one;
- `templates`: the share of filters that are rebuilt, log2 of groups, whether they are zero;
- `bits`: mantissa bits, log2 of the weights that share an exponent, whether the scale is real;
- `inputs`: mantissa bits, log2 of the channels that share an exponent;
- `int8`: the share of layers that run in it;
- `vectors`: mantissa bits.
"""


def form_parts(network: Network, block: str, config: BlockConfig, minimum_templates: int) -> dict[str, Numbers]:
    """Return the numbers of each part of a block's form, without the parts that it does not have.

    They are averages over the block's layers, weighted by their weights; those of a layer are 0 where it lacks a part,
    but bits, which are averaged over the layers that have them.
    """
    forms = network.block_forms(block, config, minimum_templates)
    shapes = {name: network.shapes.get(name) or network.norms[name] for name in network.layers_in(block)}
    layers = [(_weights(shape), _layer_parts(shape, forms[name])) for name, shape in shapes.items() if name in forms]
    total = sum(map(_weights, shapes.values()))
    parts = {}
    for part in PARTS:
        having = [(weight, numbers[part]) for weight, numbers in layers if part in numbers]
        if having:
            whole = sum(weight for weight, _ in having) if part in _ROUNDING else total
            columns = zip(*(numbers for _, numbers in having), strict=True)
            weights = [weight / whole for weight, _ in having]
            parts[part] = tuple(round(_mean(weights, column), 9) for column in columns)
    return parts


_ROUNDING = ("bits", "inputs", "vectors")


def _mean(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _weights(shape: LayerShape) -> int:
    return 1 if shape.kind == "norm" else shape.out_channels * shape.filter_channels * prod(shape.kernel)


@lru_cache(maxsize=1 << 14)
def _layer_parts(shape: LayerShape, form: LayerForm) -> dict[str, Numbers]:
    parts: dict[str, Numbers] = {}
    if form.harmonics is not None:
        allocated = form.allocation is not None
        share = 1 - prod(form.harmonics) / prod(shape.kernel)
        lows = (0.0, share) if allocated else (_left_out(shape.kernel, form.harmonics), 0.0)
        parts["series"] = (*lows, float(allocated), float(str(form.basis).startswith("cheb")))
    if form.templates is not None:
        rebuilt = 1 - form.templates / shape.out_channels
        parts["templates"] = (rebuilt, log2(form.groups), float(form.transform == "zero"))
    if form.bits is not None:
        parts["bits"] = (float(form.bits), log2(form.exponent_block), float(form.scale is not None))
    if form.activation_bits is not None:
        parts["inputs"] = (float(form.activation_bits), log2(form.activation_block))
    if form.arithmetic != "float":
        parts["int8"] = (1.0,)
    if form.vector_bits is not None:
        parts["vectors"] = (float(form.vector_bits),)
    return parts


@lru_cache
def _left_out(kernel: tuple[int, int], harmonics: tuple[int, int]) -> float:
    """Return the share of a kernel's harmonics (i, j) that is left out, weighted by 1 / (1 + i^2 + j^2)."""

    def total(sizes: tuple[int, int]) -> float:
        return sum(1 / (1 + i * i + j * j) for i in range(sizes[0]) for j in range(sizes[1]))

    return 1 - total(harmonics) / total(kernel)
