"""Several studies of a store compared: their common front, and what one adds to another."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from layers.errors import UsageError
from results.ledger.ledger import Ledger
from results.objectives import Objective
from results.pareto.front import front
from results.pareto.losses import losses

__all__ = ["merge_fronts", "new_members"]


def merge_fronts(ledger: Ledger, studies: Sequence[str]) -> pa.Table:
    """Return the common front of several studies; the column `study` tells where a member comes from.

    Members of equal values all stay, from any study. Raises `UsageError` if the studies cannot be compared: they
    differ in their objectives or in the data set on which they measured the score.
    """
    names = list(dict.fromkeys(studies))
    if not names:
        raise UsageError("studies (=[]) must name at least one study")
    objectives = _shared_objectives(ledger, names)
    members = pa.concat_tables([ledger.front(name) for name in names])
    datasets = sorted(members.column("dataset").unique().to_pylist())
    if len(datasets) > 1:
        raise UsageError(f"studies {', '.join(names)} cannot be compared: their data sets are {', '.join(datasets)}")
    return front(members, objectives)


def new_members(ledger: Ledger, study: str, other: str) -> pa.Table:
    """Return the members of the front of `other` that no trial of `study` dominates or equals."""
    objectives = _shared_objectives(ledger, [study, other])
    merged = merge_fronts(ledger, [study, other])
    of_other = np.asarray(merged.column("study").to_pylist(), dtype=object) == other
    points = losses(merged, objectives)
    of_study = {tuple(point) for point in points[~of_other]}
    new = [bool(is_other) and tuple(point) not in of_study for is_other, point in zip(of_other, points, strict=True)]
    return merged.filter(pa.array(new, type=pa.bool_()))


def _shared_objectives(ledger: Ledger, studies: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives of the first study; raise `UsageError` unless all others have them, in any order."""
    first = ledger.objectives(studies[0])
    for name in studies[1:]:
        objectives = ledger.objectives(name)
        if set(objectives) != set(first):
            theirs, ours = (", ".join(objective.name for objective in each) for each in (objectives, first))
            raise UsageError(
                f"study {name!r} cannot be compared with {studies[0]!r}: its objectives are {theirs}, not {ours}"
            )
    return first
