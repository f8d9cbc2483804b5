"""Labelled images: where they come from, how they are split, and how they reach a trial."""

from trainers.data.faults import DataWarning
from trainers.data.load import load_data
from trainers.data.spec import DataSpec
from trainers.data.split import Data, Split

__all__ = ["Data", "DataSpec", "DataWarning", "Split", "load_data"]
