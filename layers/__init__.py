"""What a compressed layer computes, costs and packs to."""

from layers.compress import compress_layer, compress_model, compressed_layers
from layers.constructors import ChebConv2d, CosConv2d, TemplateConv2d
from layers.conv import CompressedConv1d, CompressedConv2d
from layers.cost import Cost, layer_cost, network_cost, remaining_cost
from layers.errors import OvertoneError, OvertoneWarning, UsageError
from layers.form import LayerForm, LayerShape
from layers.linear import CompressedLinear
from layers.norm import CompressedNorm
from layers.pack import join_state, pack_state, split_state, unpack_state
from layers.tuning import autotune

__all__ = [
    "ChebConv2d",
    "CompressedConv1d",
    "CompressedConv2d",
    "CompressedLinear",
    "CompressedNorm",
    "CosConv2d",
    "Cost",
    "LayerForm",
    "LayerShape",
    "OvertoneError",
    "OvertoneWarning",
    "TemplateConv2d",
    "UsageError",
    "autotune",
    "compress_layer",
    "compress_model",
    "compressed_layers",
    "join_state",
    "layer_cost",
    "network_cost",
    "pack_state",
    "remaining_cost",
    "split_state",
    "unpack_state",
]
