"""Labeled images: where they come from, how they are split, and how they reach a trial."""

from trainers.data.dataset import Data, Split
from trainers.data.load import ProgressFn, load_data
from trainers.data.spec import DataSpec

__all__ = ["Data", "DataSpec", "ProgressFn", "Split", "load_data"]
