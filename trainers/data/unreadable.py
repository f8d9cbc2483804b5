"""Images of a set that cannot be used: a few are left out with a warning that names them, many refuse the set."""

from collections.abc import Sequence

from layers.errors import OvertoneError

__all__ = ["check_unreadable"]

_PERCENT = 1
_NAMED = 3


def check_unreadable(name: str, faults: Sequence[str], total: int) -> str:
    """The sentence that says which of so many images are left out ('FILE is empty', three named); '' for no faults.

    Raises OvertoneError where more than 1 % have faults.
    """
    if not faults:
        return ""
    named = ", ".join(faults[:_NAMED]) + (", ..." if len(faults) > _NAMED else "")
    count = f"{len(faults)} of {total} images of {name!r} cannot be used"
    if len(faults) * 100 > total * _PERCENT:
        raise OvertoneError(f"{count}: {named}; at most {_PERCENT} % of a split may be left out.")
    return f"{count} and are left out: {named}."
