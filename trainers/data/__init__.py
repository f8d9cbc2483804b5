"""Labeled images: where they come from, how they are split, and how they reach a trial."""

from typing import TYPE_CHECKING

from layers.lazy import lazy_names

if TYPE_CHECKING:
    from trainers.data.dataset import Data, Split
    from trainers.data.load import ProgressFn, load_data
    from trainers.data.spec import DataSpec
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "trainers.data.dataset": ("Data", "Split"),
            "trainers.data.load": ("ProgressFn", "load_data"),
            "trainers.data.spec": ("DataSpec",),
        },
    )

__all__ = [
    "Data",
    "DataSpec",
    "ProgressFn",
    "Split",
    "load_data",
]
