"""Networks by name, and the compressed forms that they can take."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from spaces.config import BlockConfig, NetworkConfig
    from spaces.models import build_model
    from spaces.network import Network
    from spaces.packed import load_model, read_card, save_model
    from spaces.papers import PaperResult, Preset, presets, published_rows
    from spaces.space import Space
    from spaces.weights import load_weights, save_weights, state_sha256, weights_transforms
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "spaces.config": ("BlockConfig", "NetworkConfig"),
            "spaces.models": ("build_model",),
            "spaces.network": ("Network",),
            "spaces.packed": ("load_model", "read_card", "save_model"),
            "spaces.papers": ("PaperResult", "Preset", "presets", "published_rows"),
            "spaces.space": ("Space",),
            "spaces.weights": ("load_weights", "save_weights", "state_sha256", "weights_transforms"),
        },
    )

__all__ = [
    "BlockConfig",
    "Network",
    "NetworkConfig",
    "PaperResult",
    "Preset",
    "Space",
    "build_model",
    "load_model",
    "load_weights",
    "presets",
    "published_rows",
    "read_card",
    "save_model",
    "save_weights",
    "state_sha256",
    "weights_transforms",
]
