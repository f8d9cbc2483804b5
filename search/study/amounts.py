"""Amounts of bytes and arithmetic as people write them: 40kB, 5M."""

from __future__ import annotations

import re
from fractions import Fraction
from numbers import Real

from layers.errors import UsageError

__all__ = ["Amount", "parse_amount"]

Amount = int | float | str
"""A number, or a text with a decimal prefix such as `40kB` or `5M`."""

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)\s*(b|bytes|flops?)?\s*", re.IGNORECASE)


def parse_amount(amount: Amount, *, name: str) -> int:
    """Return the whole number that is meant, with decimal prefixes (1 kB = 1,000 bytes).

    Raises `UsageError`, which calls the option `name`.
    """
    whole = _whole_number(amount)
    if whole is None or whole < 1:
        raise UsageError(f"{name} (={amount!r}) must be an amount above 0 such as 40kB, 1.5MB, 5M or 250000")
    return whole


def _whole_number(amount: Amount) -> int | None:
    """Return the nearest whole number, exact however large; None for what is no amount."""
    if isinstance(amount, str):
        match = _AMOUNT.fullmatch(amount)
        return None if match is None else round(Fraction(match[1]) * _PREFIXES[match[2].lower()])
    if isinstance(amount, bool) or not isinstance(amount, Real):
        return None
    try:
        return round(amount)
    except (OverflowError, ValueError):  # infinite, not a number
        return None
