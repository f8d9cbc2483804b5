"""A network as the search sees it: its blocks, its layers' shapes, and what a `NetworkConfig` makes of them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from layers import Cost, LayerForm, LayerShape, UsageError, layer_cost, network_cost, remaining_cost
from layers.form import Assignment, canonical_form, is_norm, stored_tensors
from layers.series.basis import BASES, Basis, basis_matrix
from layers.templates.rebuild import template_count
from spaces.blocks import Granularity, find_blocks, trace
from spaces.config import BlockConfig, NetworkConfig

__all__ = ["NORMS_AND_BIASES", "Network"]

NORMS_AND_BIASES = "norms_and_biases"
"""The block of all biases and norms, which takes bits alone; it has a name of its own, for norms are in no block."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Blocks and shapes of one network for one image size; plain data, made once by `Network.from_module`."""

    blocks: Mapping[str, tuple[str, ...]]
    """Layer names of each block, in network order."""
    shapes: Mapping[str, LayerShape]
    """Shape of each convolution and linear layer, in network order."""
    rest: Cost
    """Cost of everything else: norms, and what products there are that no layer of `shapes` makes (attention's)."""
    norms: Mapping[str, LayerShape] = field(default_factory=dict)
    """Shape of each norm."""

    @classmethod
    def from_module(cls, model: nn.Module, image: tuple[int, int, int], granularity: Granularity = "stage") -> Network:
        """Look at a model that takes (channels, height, width) images."""
        traced = trace(model, image)
        shapes = traced.shapes
        blocks = find_blocks(shapes, granularity)
        if NORMS_AND_BIASES in blocks:
            raise UsageError(
                f"The network's part {NORMS_AND_BIASES!r} needs another name, which biases and norms have here."
            )
        norms = {name: LayerShape.from_module(module) for name, module in model.named_modules() if is_norm(module)}
        counted = network_cost(shapes, {}, Cost()).macs
        rest = remaining_cost(model, shapes) + Cost(macs=max(0, traced.macs - counted))
        return cls(blocks=blocks, shapes=shapes, norms=norms, rest=rest)

    def forms(self, config: NetworkConfig) -> dict[str, LayerForm]:
        """The form of every layer that the config changes, by layer name.

        This is what the config *means*: knobs without effect (as many harmonics as taps, a pruning rate that prunes
        nothing) leave no trace here. Raises `UsageError` for an unknown block or a value that its layers cannot take.
        """
        forms, seen = dict[str, LayerForm](), set[str]()
        for block, asked in config.blocks.items():
            if block == NORMS_AND_BIASES:
                continue
            layers = self.layers_in(block)
            if seen.intersection(layers):
                raise UsageError(f"block (={block!r}) holds layers that another block of the config holds too.")
            seen.update(layers)
            forms.update(self.block_forms(block, asked, config.minimum_templates))
        vectors = self._norm_and_bias_forms(config.blocks.get(NORMS_AND_BIASES, BlockConfig()))
        return forms | {
            name: dataclasses.replace(forms.get(name, LayerForm()), vector_bits=form.vector_bits)
            for name, form in vectors.items()
        }

    def layers_in(self, block: str) -> tuple[str, ...]:
        """Names of a block's layers; a block is any part of the network, a single layer too, by its module path.

        The block `norms_and_biases` is what has a bias, and the norms.
        """
        if block == NORMS_AND_BIASES:
            return (*(name for name, shape in self.shapes.items() if shape.bias), *self.norms)
        layers = tuple(name for name in self.shapes if name == block or name.startswith(f"{block}."))
        if not layers:
            close = difflib.get_close_matches(block, [*self.blocks, *self.shapes], n=1) or list(self.blocks)
            raise UsageError(f"block (={block!r}) must be a part of the network, such as {', '.join(close)}.")
        return layers

    def block_forms(self, block: str, asked: BlockConfig, minimum_templates: int) -> dict[str, LayerForm]:
        """The forms of one block's layers, without those that stay as they were."""
        if block == NORMS_AND_BIASES:
            return self._norm_and_bias_forms(asked)
        forms = {name: _layer_form(self.shapes[name], asked, minimum_templates) for name in self.layers_in(block)}
        return {name: form for name, form in forms.items() if form != LayerForm()}

    def equivalent(self, block: str, one: BlockConfig, other: BlockConfig, minimum_templates: int) -> bool:
        """Whether two configs of a block give its layers the same forms."""
        return one == other or (
            self.block_forms(block, one, minimum_templates) == self.block_forms(block, other, minimum_templates)
        )

    def cost(self, config: NetworkConfig) -> Cost:
        """What the compressed network costs, exactly, without building it."""
        plain = sum((layer_cost(shape, LayerForm()) for shape in self.norms.values()), Cost())
        return network_cost({**self.shapes, **self.norms}, self.forms(config), self.rest - plain)

    def norms_and_biases_cost(self) -> Cost:
        """Cost of all biases and norms as they were."""
        biases = (Cost(shape.out_channels, 4 * shape.out_channels) for shape in self.shapes.values() if shape.bias)
        return sum((layer_cost(shape, LayerForm()) for shape in self.norms.values()), sum(biases, Cost()))

    def block_cost(self, block: str, asked: BlockConfig, minimum_templates: int) -> Cost:
        """Return the cost of one block's layers; of `norms_and_biases` what it adds to the others, which is negative.

        So that the costs of all blocks and the rest add up to the network's.
        """
        forms = self.block_forms(block, asked, minimum_templates)
        shapes = {name: self.shapes.get(name) or self.norms[name] for name in self.layers_in(block)}
        cost = network_cost(shapes, forms, Cost())
        return cost - network_cost(shapes, {}, Cost()) if block == NORMS_AND_BIASES else cost

    def digest(self, config: NetworkConfig) -> str:
        """Identity of the network that the config builds: equal for two spellings of one network."""
        forms = {name: _fields(form) for name, form in self.forms(config).items()}
        return hashlib.sha256(json.dumps(forms, sort_keys=True).encode()).hexdigest()

    def canonical(self, config: NetworkConfig) -> NetworkConfig:
        """The config without the knobs that change no layer, blocks in order.

        Where several values of a knob are the same it has the first: `cosine` where both families agree, `filter` where
        its exponent blocks are those of `channel`, an activation block no longer than a layer has channels.
        """
        self.forms(config)
        blocks = {}
        for block in sorted(config.blocks, key=self._place):
            asked = config.blocks[block]
            if asked.activation_block is not None and block != NORMS_AND_BIASES:
                most = max(self.shapes[layer].in_channels for layer in self.layers_in(block))
                asked = dataclasses.replace(asked, activation_block=min(asked.activation_block, most))
            forms = self.block_forms(block, asked, config.minimum_templates)
            for simple in _SIMPLER:
                changes = {k: v for k, v in simple.items() if getattr(asked, k) not in (None, v)}
                other = dataclasses.replace(asked, **changes) if changes else asked
                if changes and self.block_forms(block, other, config.minimum_templates) == forms:
                    asked = other
            if asked != BlockConfig():
                blocks[block] = asked
        return NetworkConfig(blocks=blocks, minimum_templates=config.minimum_templates)

    def _place(self, block: str) -> int:
        """Where a block is in the network; `norms_and_biases` come last."""
        return len(self.shapes) if block == NORMS_AND_BIASES else list(self.shapes).index(self.layers_in(block)[0])

    def _norm_and_bias_forms(self, asked: BlockConfig) -> dict[str, LayerForm]:
        if asked != BlockConfig(bits=asked.bits):
            raise UsageError(f"block (={NORMS_AND_BIASES!r}) takes bits alone; {asked} was given.")
        if asked.bits is None:
            return {}
        return dict.fromkeys(self.layers_in(NORMS_AND_BIASES), LayerForm(vector_bits=asked.bits))


_SIMPLER: tuple[Mapping[str, Any], ...] = (
    {"basis": "cosine"},
    {"exponent_axis": "filter"},
    dict.fromkeys(("basis", "harmonics", "allocation")),
    {"allocation": None},
    dict.fromkeys(("pruning_rate", "groups", "transform")),
    {"groups": None},
    {"transform": None},
    dict.fromkeys(("bits", "exponent_block", "exponent_axis", "activation_block")),
    {"exponent_block": None},
    {"exponent_axis": None},
    {"activation_block": None},
)
"""Values that knobs have where they change no layer, those of some together, tried in this order."""


@lru_cache(maxsize=1 << 12)
def _fields(form: LayerForm) -> dict[str, object]:
    return dataclasses.asdict(form)


@lru_cache(maxsize=1 << 16)
def _layer_form(shape: LayerShape, asked: BlockConfig, minimum_templates: int) -> LayerForm:
    form = LayerForm()
    if asked.bits is not None:
        form = dataclasses.replace(
            form,
            bits=asked.bits,
            exponent_block=asked.exponent_block or 1,
            exponent_axis=asked.exponent_axis or "flat",
            activation_block=asked.activation_block or 1,
        )
    if shape.kind == "conv2d":
        form = _with_series(form, shape, asked)
        form = _with_templates(form, shape, asked, minimum_templates)
    stored_tensors(shape, form)
    return canonical_form(shape, form)


def _with_series(form: LayerForm, shape: LayerShape, asked: BlockConfig) -> LayerForm:
    if asked.harmonics is None:
        return form
    harmonics = (min(asked.harmonics[0], shape.kernel[0]), min(asked.harmonics[1], shape.kernel[1]))
    if harmonics == shape.kernel:
        return form
    allocation = None if harmonics == (1, 1) else asked.allocation  # every filter has one coefficient at least
    sampled = harmonics if allocation is None else shape.kernel
    basis = None if asked.basis is None else _first_name(asked.basis, shape.kernel, sampled)
    return dataclasses.replace(form, basis=basis, harmonics=harmonics, allocation=allocation)


@cache
def _first_name(basis: Basis, kernel: tuple[int, int], harmonics: tuple[int, int]) -> Basis:
    """The first basis that is one and the same for these taps: a constant, or two harmonics on three taps, are."""

    def sampled(name: Basis) -> list[Tensor]:
        return [basis_matrix(name, k, n) for k, n in zip(kernel, harmonics, strict=True)]

    def same(name: Basis) -> bool:
        return all(map(partial(torch.allclose, atol=1e-12), sampled(name), sampled(basis)))

    return next(filter(same, BASES))


def _with_templates(form: LayerForm, shape: LayerShape, asked: BlockConfig, minimum: int) -> LayerForm:
    if asked.pruning_rate is None:
        return form
    templates = template_count(asked.pruning_rate, shape.out_channels, minimum)
    if templates == shape.out_channels:
        return form
    transform = asked.transform or "scalar"
    if shape.kernel == (1, 1) and transform in ("rotation", "affine"):
        transform = "scalar"
    if form.allocation is not None:
        form = _with_series(form, shape, dataclasses.replace(asked, allocation=None))
    assignment: Assignment | None = None if templates == 1 or transform == "zero" else "residual"
    return dataclasses.replace(
        form, templates=templates, groups=asked.groups or 1, transform=transform, assignment=assignment
    )
