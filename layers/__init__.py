"""What a compressed layer computes, costs and packs to."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "layers.compress": ("compress_layer", "compress_model", "compressed_layers"),
            "layers.constructors": ("ChebConv2d", "CosConv2d", "TemplateConv2d"),
            "layers.conv": ("CompressedConv1d", "CompressedConv2d"),
            "layers.cost": ("Cost", "layer_cost", "network_cost", "remaining_cost"),
            "layers.errors": ("OvertoneError", "OvertoneWarning", "UsageError"),
            "layers.form": ("LayerForm", "LayerShape"),
            "layers.linear": ("CompressedLinear",),
            "layers.norm": ("CompressedNorm",),
            "layers.pack": ("join_state", "pack_state", "split_state", "unpack_state"),
            "layers.tuning": ("autotune",),
        },
    )

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
