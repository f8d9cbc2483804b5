"""Labelled images: where they come from, how they are split, and how they reach a trial."""

from trainers.data.load import load_data
from trainers.data.spec import DataSpec
from trainers.data.split import Data, Split

__all__ = ["Data", "DataSpec", "Split", "load_data"]
