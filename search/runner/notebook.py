"""A bar in the output of a notebook's cell, updated in place; it needs no widgets."""

from __future__ import annotations

import html
import time
from typing import Any

__all__ = ["NotebookBar"]

_UPDATE_S = 0.2
"""Least seconds between two updates."""


class NotebookBar:
    """The progress of one run."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._handle: Any = None
        self._updated = 0.0

    def show(self, done: int, total: int, line: str = "") -> None:
        """Show how much is done, and a line behind it."""
        now = time.monotonic()
        if now - self._updated < _UPDATE_S and done < total:
            return
        from IPython.display import HTML, display

        self._updated = now
        bar = f'<progress value="{done}" max="{total}" style="width: 20em"></progress>'
        shown = HTML(f"<div>{html.escape(self._description)} {bar} {done}/{total} {html.escape(line)}</div>")
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
