"""Several studies of a store beside each other: the front of them all, and what one adds to another."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from layers.errors import UsageError
from results.ledger.ledger import Ledger
from results.objectives import Objective, losses
from results.pareto.front import front

__all__ = ["new_members", "merge_fronts"]


def merge_fronts(ledger: Ledger, studies: Sequence[str]) -> pa.Table:
    """The front of several studies together; the column `study` says where a member comes from.

    Members of equal values all stay, whichever study they are from. Raises UsageError where the studies cannot be
    compared: they differ in objectives or in the data set on which they measured accuracy.
    """
    names = list(dict.fromkeys(studies))
    if not names:
        raise UsageError("studies (=none) must name at least one study")
    objectives = _shared_objectives(ledger, names)
    members = pa.concat_tables([ledger.front(name) for name in names])
    data = sorted(members.column("dataset").unique().to_pylist())
    if len(data) > 1:
        raise UsageError(f"studies {', '.join(names)} cannot be compared: their data sets are {', '.join(data)}")
    return front(members, objectives)


def new_members(ledger: Ledger, study: str, other: str) -> pa.Table:
    """What `other` adds to `study`: the members of its front that no trial of `study` dominates or equals."""
    objectives = _shared_objectives(ledger, [study, other])
    both = merge_fronts(ledger, [study, other])
    of_other = np.asarray(both.column("study").to_pylist(), dtype=object) == other
    points = losses(both, objectives)
    known = {tuple(point) for point in points[~of_other]}
    new = [bool(is_other) and tuple(point) not in known for is_other, point in zip(of_other, points, strict=True)]
    return both.filter(pa.array(new, type=pa.bool_()))


def _shared_objectives(ledger: Ledger, studies: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives of the first study, which all others must have in any order."""
    first = ledger.objectives(studies[0])
    for name in studies[1:]:
        found = ledger.objectives(name)
        if set(found) != set(first):
            listed = (", ".join(objective.name for objective in each) for each in (found, first))
            raise UsageError(
                "study {!r} cannot be compared with {!r}: its objectives are {}, not {}".format(
                    name, studies[0], *listed
                )
            )
    return first
