"""The skeleton of a report page: its style, its scripts and data, and a policy that lets nothing else run or load.

Callers pass finished HTML for the body and plain text for the title; plain text and data are escaped here.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

__all__ = ["json_text", "page", "table", "web_file"]

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src {scripts}; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def page(*, title: str, body: str, data: Mapping[str, Any] | None = None, scripts: Sequence[str] = ()) -> str:
    """Return a whole HTML document that loads nothing: its policy forbids it.

    `title` is plain text, `body` finished HTML. `data` becomes JSON in an element of the id `data`, and after it the
    `scripts` run, in order. No other script can run, whatever a study's texts hold: the policy names the hashes of
    these.
    """
    policy = _POLICY.format(scripts=" ".join(_hash(script) for script in scripts) or "'none'")
    data_element = "" if data is None else f'<script type="application/json" id="data">{json_text(data)}</script>'
    script_elements = "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{web_file("report.css")}</style>
</head>
<body>
{body}
{data_element}
{script_elements}
</body>
</html>
"""


def web_file(name: str) -> str:
    """Return the text of one of the page's own files."""
    return files("results.report").joinpath("web", name).read_text(encoding="utf-8")


def json_text(data: Any) -> str:
    """Return JSON that may stand inside a script element: without `<`, so that no text of a study ends the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(*, label: str, head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls sideways and can be reached by keyboard.

    `head` is (text, class) of each column; the cells of `rows` are finished HTML.
    """
    titles = "".join(f'<th scope="col" class="{escape(kind)}">{escape(text)}</th>' for text, kind in head)
    kinds = [kind for _, kind in head]
    lines = "\n".join(
        "<tr>" + "".join(f'<td class="{escape(k)}">{cell}</td>' for k, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">
<table><thead><tr>{titles}</tr></thead><tbody>
{lines}
</tbody></table></div>"""


def _hash(script: str) -> str:
    """Return the name of an inline script in a policy: the browser hashes exactly what stands between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
