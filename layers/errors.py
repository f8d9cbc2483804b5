"""Errors and warnings that users see, and how the errors of other libraries become them.

The form of an error about a given value is `name (=value) must be ...`; any other is one lower-case clause. Neither
ends with a period.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["OvertoneError", "OvertoneWarning", "UsageError", "first_line", "translate_errors"]


class OvertoneError(Exception):
    """A failure outside the call (a file, a store, a trial); the command line exits with 1."""


class UsageError(OvertoneError, ValueError):
    """A call that asks for what is not allowed; the command line exits with 2."""


class OvertoneWarning(UserWarning):
    """A notice that stops nothing; the command line shows it, and no other warnings."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its period, or the error's type if it has no text.

    Of an `OSError` it is the system's own words (`No space left on device`), without the number and the path.
    """
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


@contextmanager
def translate_errors(
    failure: str, *kinds: type[BaseException], to: type[OvertoneError] = OvertoneError
) -> Iterator[None]:
    """Raise `to` with the text `failure: first line` if the block raises one of `kinds`.

    Our own errors pass as they are.
    """
    try:
        yield
    except OvertoneError:
        raise
    except kinds as error:
        raise to(f"{failure}: {first_line(error)}") from error
