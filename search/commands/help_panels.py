"""Help pages in plain text, with the options of each panel under a title of their own."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from search.commands.options import PANELS

__all__ = ["CommandWithPanels"]


class CommandWithPanels(TyperCommand):
    """A command whose help shows options by panel, as plain text: rich's boxes leave 22 of 80 columns for the help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options of each panel, and last those without one."""
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in (*PANELS, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels[getattr(parameter, "rich_help_panel", None) or "Options"].append(record)
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
