"""Packages that import the home of a public name when it is first asked for, not before (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and the `__dir__` of a package: `homes` has the names that each module gives it.

    The package keeps what it is asked for. A name must differ from those of its own modules, which it would hide.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    module = sys.modules[package]

    def __getattr__(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        value = getattr(import_module(home_of[name]), name)
        setattr(module, name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(module), *home_of})

    return __getattr__, __dir__
