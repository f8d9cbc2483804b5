"""Help pages in plain text, with the options of each panel under a title of their own.

They appear before typer coerces any value, which it does by pydantic: that takes longer to import than all else here.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from search.commands.options import PANELS

__all__ = ["CommandWithPanels", "GroupOfCommands"]


class CommandWithPanels(TyperCommand):
    """A command whose help shows options by panel, as plain text: rich's boxes leave 22 of 80 columns for the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help page if it is asked for, whatever else the arguments are."""
        if any(name in args for name in self.get_help_option_names(ctx)):
            print(self.get_help(ctx))
            ctx.exit()
        return super().parse_args(ctx, args)

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


class GroupOfCommands(TyperGroup):
    """A group whose only option is its help page."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look for the help option only where no command is named, so that its value need not be coerced."""
        self.add_help_option = not args or args[0].startswith("-")
        return super().parse_args(ctx, args)
