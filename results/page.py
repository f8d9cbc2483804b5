"""The skeleton of a report page: style for light and dark, a strict policy against loading anything, copy buttons.

Whoever fills the page hands over finished HTML for the body and plain text for everything else; plain text is escaped
here.
"""

from collections.abc import Sequence
from html import escape

__all__ = ["page", "table"]

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1f2430; --soft: #5b6472; --line: #e2e4e8;
  --accent: #1d4ed8; --mark: #d6336c; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e8eaee; --soft: #a3abb8;
  --line: #333842; --accent: #7aa7ff; --mark: #ff7aa8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
p { max-width: 75ch; } .soft, figcaption { color: var(--soft); } .lead { font-size: 1.05rem; margin-top: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(12.5rem, 1fr)); gap: .1rem 1.5rem;
  margin: 1.4rem 0; padding: 1rem 1.2rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.facts div { padding: .35rem 0; min-width: 0; } dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.note { border-left: 4px solid var(--mark); padding: .1rem 0 .1rem 1rem; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1rem; }
@media (max-width: 900px) { .pair { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0 0 1rem; padding: .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; min-width: 0; }
figcaption { font-size: .88rem; }
.js-plotly-plot text:not(.hovertext text) { fill: var(--ink) !important; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .5rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } th { white-space: nowrap; color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
code { font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.badge { display: inline-block; margin-left: .4rem; padding: 0 .5em; border: 1px solid var(--mark); border-radius: 1em;
  color: var(--mark); font-size: .76rem; } td:first-child { white-space: nowrap; } .network { min-width: 15rem; }
.saving { display: inline-block; min-width: 6.2em; }
.command { min-width: 11rem; } .command details { display: inline-block; max-width: 24rem; }
summary { cursor: pointer; } ul.blocks { margin: .3rem 0 0; padding-left: 1.1rem; }
button { font: inherit; font-size: .8rem; padding: .05rem .6rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--page); color: var(--ink); cursor: pointer; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; } a { color: var(--accent); }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem; }
@media print { button { display: none; } body { background: #fff; } }
"""

_SCRIPT = """
document.addEventListener('click', async (event) => {
  const button = event.target.closest('button[data-copy]');
  if (!button) return;
  const code = button.parentElement.querySelector('code');
  try { await navigator.clipboard.writeText(code.textContent); button.textContent = 'copied'; }
  catch {
    code.closest('details').open = true;
    getSelection().selectAllChildren(code);
    button.textContent = 'selected';
  }
  setTimeout(() => { button.textContent = 'copy'; }, 1500);
});
"""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:; "
    "font-src data:; base-uri 'none'; form-action 'none'"
)


def page(*, title: str, body: str, scripts: Sequence[str] = ()) -> str:
    """A whole HTML document: `title` is plain text, `body` finished HTML, `scripts` JavaScript put in the head once.

    The page loads nothing, from anywhere: its policy forbids it. `unsafe-eval` is what WebGL in plotly.js needs.
    """
    head = "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
{head}
</head>
<body>
<a class="skip" href="#front">Skip to the front's table</a>
<main>
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def table(*, label: str, head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways and is reached by keyboard; `head` is (text, class), cells are finished HTML."""
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
