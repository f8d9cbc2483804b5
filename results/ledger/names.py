"""Names of studies, which are names of files and of folders `study=NAME`.

Readers of such folders (pandas, Arrow, DuckDB, Spark) guess the type of NAME: of a study `007` or `2024-01-01` they
find nothing by that name. A new study therefore has a name that all of them, and the file systems of all systems, take
as it is. Studies that exist are opened by whatever name they have.
"""

import re
from collections.abc import Iterable

from layers.errors import UsageError

__all__ = ["check_name", "check_new_name"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_NUMBER_OR_DATE = re.compile(r"[-._\d]*|[-._\d]*\d[-._\d]*(e[-_\d]*|t[-.\d]*z?|z)|-?0(x[_\da-f]*|[bo][_\d]*)")
_VALUES = frozenset(
    [
        *("true", "false", "yes", "no", "on", "off", "null", "none", "nil", "na", "nan", "nat", "inf", "infinity"),
        *("epoch", "now", "today", "tomorrow", "yesterday", "__hive_default_partition__"),
    ]
)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.")


def check_name(name: str) -> None:
    """Raise `UsageError` unless a study may have this name at all."""
    if not _NAME.fullmatch(name) or name.endswith(".progress"):
        raise UsageError(
            f"study name (={name!r}) must be 1 to 128 letters, digits, '.', '_' or '-', not start with '.' "
            "and not end with '.progress'"
        )


def check_new_name(name: str, others: Iterable[str]) -> None:
    """Raise `UsageError` unless a new study may have this name beside the other studies of its store."""
    check_name(name)
    lower = name.lower()
    if _NUMBER_OR_DATE.fullmatch(lower) or lower.lstrip("-") in _VALUES:
        raise UsageError(
            f"study name (={name!r}) must not be what readers take for a number, a date, a truth value or null; "
            f"study_{name.strip('-')} is none of these"
        )
    if _RESERVED.fullmatch(lower):
        raise UsageError(f"study name (={name!r}) must be a file's on every system: Windows has no file of this name")
    for other in others:
        if other.lower() == lower and other != name:
            raise UsageError(
                f"study name (={name!r}) must differ from {other!r} in more than upper and lower case, "
                "which some file systems ignore"
            )
