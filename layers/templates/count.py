"""How many templates a pruning rate leaves."""

from layers.errors import UsageError

__all__ = ["template_count"]


def template_count(pruning_rate: float, filters: int, minimum: int) -> int:
    """Return M = max(minimum, round((1 - rate) N)), at most N: the templates that a rate leaves of N filters."""
    if not 0 <= pruning_rate < 1:
        raise UsageError(f"pruning_rate (={pruning_rate}) must be in [0, 1)")
    return min(filters, max(minimum, round((1 - pruning_rate) * filters)))
