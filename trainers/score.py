"""The score of a trial, by name."""

__all__ = ["SCORE_NAME"]

SCORE_NAME = "val_top1"
"""Name of the metric that is the score of a trial."""
