"""The report of a study: one HTML file that opens anywhere without a network, or a still picture of its front."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from layers.errors import UsageError
from results.analysis.summary import confidence_by_trial, summarize
from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.report.data import report_data
from results.report.page import page, web_file
from results.report.plot import plot_front
from results.report.sections import sections

__all__ = ["write_report"]

_SCRIPTS = ("core", "budgets", "details", "front", "charts", "knobs", "table", "start")


def write_report(
    ledger: Ledger, study: str, out: str | os.PathLike[str], *, insight: Mapping[str, Any] | None = None
) -> Path:
    """Writes a study's report, whole or not at all, and gives back its path.

    `.html` is the page: the front to explore, how the search went, every trial. `insight` is what the search's
    `insight` gives (`importance`, `effects`, `shared`, plain JSON); without it that section is left out. `.png` and
    `.svg` are the still picture (`plot_front`); another ending is a UsageError.
    """
    path = Path(out)
    if path.suffix in (".png", ".svg"):
        return plot_front(ledger, study, path)
    if path.suffix != ".html":
        raise UsageError(f"out (={os.fspath(out)!r}) must end in .html, .png or .svg")
    summary = summarize(ledger, study)
    data = report_data(summary, confidence_by_trial(ledger, summary), ledger.models(), insight)
    body, title = "\n".join(sections(summary, data)), f"Overtone: {study}"
    if summary.finished.num_rows:
        text = page(title=title, body=body, data=data, scripts=[get_plotlyjs(), _script()])
    else:
        text = page(title=title, body=body)
    Store(path.parent).write_bytes(path.name, text.encode())
    return path


def _script() -> str:
    """The page's own scripts as one, with a scope of their own."""
    return "(() => {\n'use strict';\n" + "\n".join(web_file(f"{name}.js") for name in _SCRIPTS) + "})();\n"
