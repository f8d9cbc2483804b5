"""Amounts as people write them: 40kB, 1.5MB, 5M, 300MFLOPs."""

from __future__ import annotations

import re

from layers import UsageError

__all__ = ["parse_amount"]

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)\s*(b|bytes|flops?)?\s*", re.IGNORECASE)


def parse_amount(text: str, *, name: str) -> int:
    """The whole number that `text` says, with decimal prefixes (1 kB = 1,000 bytes); `UsageError` names the option."""
    match = _AMOUNT.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise UsageError(f"{name} (={text!r}) must be an amount above 0 such as 40kB, 1.5MB, 5M or 250000.")
    return round(float(match[1]) * _PREFIXES[match[2].lower()])
