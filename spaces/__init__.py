"""Networks by name, and the compressed forms that they can take."""

from spaces.config import BlockConfig, NetworkConfig
from spaces.models import build_model
from spaces.network import Network
from spaces.packed import load_model, read_card, save_model
from spaces.papers import PaperResult, Preset, presets, published_rows
from spaces.space import Space
from spaces.weights import load_weights, save_weights, state_sha256

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
]
