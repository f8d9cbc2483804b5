"""Amounts of bytes and arithmetic as people write them: 40kB, 5M."""

from __future__ import annotations

import re

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
    match = _AMOUNT.fullmatch(amount if isinstance(amount, str) else f"{amount:.0f}")
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{name} (={amount!r}) must be an amount above 0 such as 40kB, 1.5MB, 5M or 250000")
    return round(float(match[1]) * _PREFIXES[match[2].lower()])
