"""The report of a study: one HTML file that opens anywhere, without a network."""

import os
from pathlib import Path

from plotly.offline import get_plotlyjs

from layers.errors import UsageError, translate_errors
from layers.files import atomic_write
from results.analysis.effects_table import effects_table
from results.analysis.importance import importance
from results.analysis.summary import confidence_by_trial, summarize
from results.ledger.ledger import Ledger
from results.report.data import report_data
from results.report.page import page, web_file
from results.report.sections import sections

__all__ = ["write_report"]

_SCRIPTS = ("core", "budgets", "details", "front", "charts", "knobs", "table", "start")


def write_report(ledger: Ledger, study: str, out: str | os.PathLike[str]) -> Path:
    """Write a study's report into an `.html` file, whole or not at all; return its path.

    The page holds the front to explore, how the search went, which knobs matter, and every trial. Raises `UsageError`
    for any other kind of file, and `OvertoneError` if the file cannot be written. `results.report.plot.plot_front`
    draws pictures.
    """
    path = Path(out)
    if path.suffix in (".png", ".svg"):
        raise UsageError(f"out (={str(path)!r}) must end in .html: `overtone plot front` draws the front as a picture")
    if path.suffix != ".html":
        raise UsageError(f"out (={str(path)!r}) must end in .html")
    text = _document(ledger, study)
    with translate_errors(f"cannot write {str(path)!r}", OSError):
        atomic_write(path, text.encode())
    return path


def _document(ledger: Ledger, study: str) -> str:
    summary = summarize(ledger, study)
    confidence = confidence_by_trial(ledger, summary)
    data = report_data(summary, confidence, ledger.models(), importance(ledger, study))
    body = "\n".join(sections(summary, data, effects_table(ledger, study)))
    title = f"Overtone: {study}"
    if not summary.finished.num_rows:
        return page(title=title, body=body)
    return page(title=title, body=body, data=data, scripts=[get_plotlyjs(), _script()])


def _script() -> str:
    """Return the page's own scripts as one, with a scope of its own."""
    return "(() => {\n'use strict';\n" + "\n".join(web_file(f"{name}.js") for name in _SCRIPTS) + "})();\n"
