"""Images of a set that cannot be used: a few are left out with a warning that names them, many refuse the set."""

from collections.abc import Sequence

from layers.errors import OvertoneError

__all__ = ["check_unreadable"]

_PERCENT = 1
_NAMED = 3


def check_unreadable(name: str, errors: Sequence[str], total: int) -> str:
    """Return the warning about the images that are left out of `total`, '' if there are none.

    `errors` has a clause for each unusable image ('FILE is empty'), of which the warning repeats three. Raises
    OvertoneError if more than 1 % of the images are unusable.
    """
    if not errors:
        return ""
    named = ", ".join(errors[:_NAMED]) + (", ..." if len(errors) > _NAMED else "")
    count = f"{len(errors)} of {total} images of {name!r} cannot be used"
    if len(errors) * 100 > total * _PERCENT:
        sizes = "; --image-size brings images of several sizes to one" if " where the first measures " in named else ""
        raise OvertoneError(f"{count}: {named}; at most {_PERCENT} % of a split may be left out{sizes}")
    return f"{count} and are left out: {named}"
