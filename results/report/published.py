"""The papers' rows for a study's model, beside the study."""

from typing import NamedTuple

from results.analysis.summary import Summary
from spaces.papers import PaperResult, published_rows

__all__ = ["PlacedResult", "published_beside"]


class PlacedResult(NamedTuple):
    """A paper's row, and where it stands beside a study."""

    result: PaperResult
    at: dict[str, float]
    """Its `score` and costs, relative to the study's baseline; those that the baseline lacks are left out."""


def published_beside(summary: Summary) -> list[PlacedResult]:
    """Return what was published for the study's model, in the papers' order."""
    rows = published_rows(str(summary.record.get("model", "")), str(summary.record.get("dataset", "")))
    return [PlacedResult(row, row.relative_to(summary.baseline)) for row in rows]
