"""A network as the search sees it: its blocks, its layers' shapes, and what a `NetworkConfig` makes of them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from layers import Cost, LayerForm, LayerShape, OvertoneWarning, UsageError, layer_cost, network_cost, remaining_cost
from layers.form import Allocation, Assignment, canonical_form, is_norm, stored_tensors
from layers.templates.count import template_count
from spaces.blocks import NORMS_AND_BIASES, Granularity, find_blocks
from spaces.config import BlockConfig, NetworkConfig

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NORMS_AND_BIASES", "Network"]

_FORMS_FORMAT = 2
"""What the fields of a form mean, as part of the digest; until 2 inputs were rounded to as many bits as weights."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Blocks and shapes of one network for one image size, as plain data."""

    blocks: Mapping[str, tuple[str, ...]]
    """Layer names of each block, in network order."""
    shapes: Mapping[str, LayerShape]
    """Shape of each convolution and linear layer, in network order."""
    rest: Cost
    """Cost of everything else: norms, and products that no layer of `shapes` computes (attention's)."""
    norms: Mapping[str, LayerShape] = field(default_factory=dict)
    """Shape of each norm."""
    uncounted: tuple[str, ...] = ()
    """Names of operators that may multiply, and whose products are in no cost (`spaces.products`)."""

    @classmethod
    def from_module(cls, model: nn.Module, image: tuple[int, int, int], granularity: Granularity = "stage") -> Network:
        """Return the network of a module that takes (channels, height, width) images.

        Raises `UsageError` if it cannot take them, or has a part called `norms_and_biases`. Warns (OvertoneWarning) of
        operators whose products cannot be counted.
        """
        from layers.plainness import kept_because  # here, because it imports PyTorch
        from spaces.tracing import trace

        traced = trace(model, image)
        if traced.uncounted:
            named = ", ".join(traced.uncounted)
            message = f"the products of {named} are in no macs and flops of the network: there is no formula for them"
            warnings.warn(message, OvertoneWarning, stacklevel=2)
        shapes = traced.shapes
        blocks = find_blocks(shapes, granularity)
        if NORMS_AND_BIASES in blocks:
            raise UsageError(
                f"the network's part {NORMS_AND_BIASES!r} needs another name: here it is that of all norms and biases"
            )
        norms = {
            name: LayerShape.from_module(module)
            for name, module in model.named_modules()
            if is_norm(module) and not kept_because(module)
        }
        counted = network_cost(shapes, {}, Cost()).macs
        rest = remaining_cost(model, shapes) + Cost(macs=traced.macs - counted)
        return cls(blocks=blocks, shapes=shapes, norms=norms, rest=rest, uncounted=traced.uncounted)

    def forms(self, config: NetworkConfig) -> dict[str, LayerForm]:
        """Return the form of every layer that the config changes, by layer name.

        This is what the config *means*: knobs without effect (as many harmonics as taps, a pruning rate that prunes
        nothing) leave no trace here. Raises `UsageError` for an unknown block or a value that its layers cannot take.
        """
        forms: dict[str, LayerForm] = {}
        seen: set[str] = set()
        for block, block_config in config.blocks.items():
            if block == NORMS_AND_BIASES:
                continue
            layers = self.layers_in(block)
            if seen.intersection(layers):
                raise UsageError(f"block {block!r} holds layers that another block of the config holds too")
            seen.update(layers)
            forms.update(self.block_forms(block, block_config, config.minimum_templates))
        rounded = self._norm_and_bias_forms(config.blocks.get(NORMS_AND_BIASES, BlockConfig()))
        return forms | {
            name: _with_vector_bits(forms.get(name, _DENSE), form.vector_bits) for name, form in rounded.items()
        }

    def layers_in(self, block: str) -> tuple[str, ...]:
        """Return the names of a block's layers; a block is any part of the network, by its module path.

        A single layer is a block too. The block `norms_and_biases` is all layers with a bias, and the norms. Raises
        `UsageError` if there is no such block.
        """
        if block == NORMS_AND_BIASES:
            return (*(name for name, shape in self.shapes.items() if shape.bias), *self.norms)
        layers = self._parts.get(block, ())
        if not layers:
            close = difflib.get_close_matches(block, [*self.blocks, *self.shapes], n=1) or list(self.blocks)
            raise UsageError(f"block (={block!r}) must be a part of the network, such as {', '.join(close)}")
        return layers

    @cached_property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Layer names of each stage, whatever the blocks are."""
        return find_blocks(self.shapes)

    def blocks_in(self, part: str) -> tuple[str, ...]:
        """Return the blocks within a part of the network, by its module path; none if it is smaller or not there."""
        if part == NORMS_AND_BIASES:
            return (part,)
        layers = set(self._parts.get(part, ()))
        return tuple(block for block, members in self.blocks.items() if layers.issuperset(members))

    def block_forms(self, block: str, block_config: BlockConfig, minimum_templates: int) -> dict[str, LayerForm]:
        """Return the forms of one block's layers, without those that stay as they were."""
        if block == NORMS_AND_BIASES:
            return self._norm_and_bias_forms(block_config)
        layers = self.layers_in(block)
        forms = {name: _layer_form(self.shapes[name], block_config, minimum_templates) for name in layers}
        return {name: form for name, form in forms.items() if form != _DENSE}

    def equivalent(self, block: str, one: BlockConfig, other: BlockConfig, minimum_templates: int) -> bool:
        """Return whether two configs of a block give its layers the same forms."""
        return one == other or (
            self.block_forms(block, one, minimum_templates) == self.block_forms(block, other, minimum_templates)
        )

    def cost(self, config: NetworkConfig) -> Cost:
        """Return the exact cost of the compressed network, without building it."""
        return network_cost({**self.shapes, **self.norms}, self.forms(config), self.rest - self._norms_cost())

    def norms_and_biases_cost(self) -> Cost:
        """Return the cost of all uncompressed norms and biases."""
        biases = (Cost(shape.out_channels, 4 * shape.out_channels) for shape in self.shapes.values() if shape.bias)
        return self._norms_cost() + sum(biases, Cost())

    def block_cost(self, block: str, block_config: BlockConfig, minimum_templates: int) -> Cost:
        """Return the cost of one block's layers, such that all blocks' costs and `rest` add up to the network's.

        Biases count with their layers and norms with `rest`, so `norms_and_biases` has only what its form adds to them,
        which is negative.
        """
        forms = self.block_forms(block, block_config, minimum_templates)
        shapes = {name: self.shapes.get(name) or self.norms[name] for name in self.layers_in(block)}
        cost = network_cost(shapes, forms, Cost())
        return cost - network_cost(shapes, {}, Cost()) if block == NORMS_AND_BIASES else cost

    def digest(self, config: NetworkConfig) -> str:
        """Return the identity of the network that the config builds: equal for two spellings of one network."""
        forms = {name: _fields(form) for name, form in self.forms(config).items()}
        meaning = {"format": _FORMS_FORMAT, "forms": forms}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()

    def canonical(self, config: NetworkConfig) -> NetworkConfig:
        """Return the config without the knobs that change no layer, blocks in network order.

        If several values of a knob mean the same, it has the first: `cosine` if both families agree, `filter` if its
        exponent blocks are those of `channel`, an activation block no longer than a layer has channels.
        """
        self.forms(config)
        blocks = {}
        for block in sorted(config.blocks, key=self._index_of):
            simplest = self._simplified(block, config.blocks[block], config.minimum_templates)
            if simplest != BlockConfig():
                blocks[block] = simplest
        return NetworkConfig(blocks=blocks, minimum_templates=config.minimum_templates)

    def _simplified(self, block: str, block_config: BlockConfig, minimum_templates: int) -> BlockConfig:
        if block == NORMS_AND_BIASES:
            return block_config
        return _simplest(tuple(self.shapes[name] for name in self.layers_in(block)), block_config, minimum_templates)

    def _index_of(self, block: str) -> int:
        """Return the index of a block's first layer; `norms_and_biases` come last."""
        return len(self.shapes) if block == NORMS_AND_BIASES else self._order[self.layers_in(block)[0]]

    @cached_property
    def _order(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.shapes)}

    @cached_property
    def _parts(self) -> dict[str, tuple[str, ...]]:
        """Layer names of every part of the network, by its module path."""
        parts: dict[str, list[str]] = {}
        for name in self.shapes:
            for end, letter in enumerate(f"{name}."):
                if letter == ".":
                    parts.setdefault(name[:end], []).append(name)
        return {part: tuple(layers) for part, layers in parts.items()}

    def _norm_and_bias_forms(self, block_config: BlockConfig) -> dict[str, LayerForm]:
        if block_config != BlockConfig(bits=block_config.bits):
            raise UsageError(f"block {NORMS_AND_BIASES!r} takes bits alone, not {block_config}")
        if block_config.bits is None:
            return {}
        return dict.fromkeys(self.layers_in(NORMS_AND_BIASES), LayerForm(vector_bits=block_config.bits))

    def _norms_cost(self) -> Cost:
        return sum((layer_cost(shape, LayerForm()) for shape in self.norms.values()), Cost())


_SIMPLER: tuple[Mapping[str, Any], ...] = (
    {"basis": "cosine"},
    {"exponent_axis": "filter"},
    dict.fromkeys(("basis", "harmonics", "allocation")),
    {"allocation": None},
    dict.fromkeys(("pruning_rate", "groups", "transform")),
    {"groups": None},
    {"transform": None},
    dict.fromkeys(("bits", "exponent_block", "exponent_axis", "scale")),
    {"exponent_block": None},
    {"exponent_axis": None},
    {"activation_block": None},
    {"arithmetic": None},
)
"""Simpler values of knobs, those of some together, tried in this order and taken if they change no layer."""


_DENSE = LayerForm()


@lru_cache(maxsize=1 << 12)
def _with_vector_bits(form: LayerForm, bits: int | None) -> LayerForm:
    return dataclasses.replace(form, vector_bits=bits)


@lru_cache(maxsize=1 << 16)
def _simplest(shapes: tuple[LayerShape, ...], block_config: BlockConfig, minimum_templates: int) -> BlockConfig:
    """Return the config of a block whose layers have these shapes, without the knobs that change none of them."""
    if block_config.activation_block is not None:
        widest = max(shape.in_channels for shape in shapes)
        block_config = dataclasses.replace(block_config, activation_block=min(block_config.activation_block, widest))

    def forms(block_config: BlockConfig) -> list[LayerForm]:
        return [_layer_form(shape, block_config, minimum_templates) for shape in shapes]

    unchanged = forms(block_config)
    for values in _SIMPLER:
        changes = {knob: value for knob, value in values.items() if getattr(block_config, knob) not in (None, value)}
        if not changes:
            continue
        simpler = dataclasses.replace(block_config, **changes)
        if forms(simpler) == unchanged:
            block_config = simpler
    return block_config


@lru_cache(maxsize=1 << 12)
def _fields(form: LayerForm) -> dict[str, object]:
    return dataclasses.asdict(form)


@lru_cache(maxsize=1 << 16)
def _layer_form(shape: LayerShape, block_config: BlockConfig, minimum_templates: int) -> LayerForm:
    settings: dict[str, Any] = {
        "activation_bits": block_config.activation_bits,
        "activation_block": block_config.activation_block or 1,
        "arithmetic": block_config.arithmetic or "float",
    }
    if block_config.bits is not None:
        settings["bits"] = block_config.bits
        if block_config.scale is None:
            settings["exponent_block"] = block_config.exponent_block or 1
            settings["exponent_axis"] = block_config.exponent_axis or "flat"
        else:
            settings["scale"] = block_config.scale
    if shape.kind == "conv2d":
        templates = _templates(shape, block_config, minimum_templates)
        settings |= templates | _series(shape, block_config, None if templates else block_config.allocation)
    form = LayerForm(**settings)
    stored_tensors(shape, form)
    return canonical_form(shape, form)


def _series(shape: LayerShape, block_config: BlockConfig, allocation: Allocation | None) -> dict[str, Any]:
    if block_config.harmonics is None:
        return {}
    from layers.series.sampling import first_equal_basis  # here, because it imports PyTorch

    y, x = block_config.harmonics
    harmonics = (min(y, shape.kernel[0]), min(x, shape.kernel[1]))
    if harmonics == shape.kernel:
        return {}
    allocation = None if harmonics == (1, 1) else allocation  # every filter has one coefficient at least
    sampled = harmonics if allocation is None else shape.kernel
    basis = None if block_config.basis is None else first_equal_basis(block_config.basis, shape.kernel, sampled)
    return {"basis": basis, "harmonics": harmonics, "allocation": allocation}


def _templates(shape: LayerShape, block_config: BlockConfig, minimum: int) -> dict[str, Any]:
    if block_config.pruning_rate is None:
        return {}
    templates = template_count(block_config.pruning_rate, shape.out_channels, minimum)
    if templates == shape.out_channels:
        return {}
    transform = block_config.transform or "scalar"
    if shape.kernel == (1, 1) and transform in ("rotation", "affine"):
        transform = "scalar"
    assignment: Assignment | None = None if templates == 1 or transform == "zero" else "residual"
    return {
        "templates": templates,
        "groups": block_config.groups or 1,
        "transform": transform,
        "assignment": assignment,
    }
