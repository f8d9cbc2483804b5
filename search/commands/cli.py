"""The command line: a thin skin over plain functions. Ray and Optuna are imported by the commands that search."""

from __future__ import annotations

import errno
import os
import sys
import warnings

import typer

from layers.errors import OvertoneError, OvertoneWarning, UsageError, first_line
from layers.files import discard_output
from search.commands.bench import bench
from search.commands.help_panels import CommandWithPanels, GroupOfCommands
from search.commands.inspect import inspect
from search.commands.output import LOST, prepare_output
from search.commands.plot import plot_app
from search.commands.sketch import sketch
from search.commands.studies import confirm, resume, search, status
from search.commands.train import train
from search.commands.trials import compact, export, importance, query, report

__all__ = ["app", "main", "run"]

app = typer.Typer(
    cls=GroupOfCommands,
    help="Find the best trade-offs between accuracy, size and compute that a trained CNN can be compressed to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="`overtone --version` prints the version.",
)
for _command in (inspect, train, sketch, search, resume, confirm, status, query, compact, importance, report):
    app.command(cls=CommandWithPanels)(_command)
app.add_typer(plot_app, name="plot")
app.command(cls=CommandWithPanels)(export)
app.command(cls=CommandWithPanels)(bench)

_CTRL_C = 130
"""What typer returns when a command was interrupted."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed or stopped early, 2 wrong use."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for `--model package.module:factory`; at the end it shadows nothing
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code; errors and our warnings are printed as one line each.

    A closed pipe ends it without a word.
    """
    prepare_output()
    try:
        code = _run_command(argv)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in LOST:
            raise
        discard_output()
        return 1 if error.errno == errno.EPIPE else _fail(f"cannot write the answer: {first_line(error)}", 1)
    return code


def _run_command(argv: list[str]) -> int:
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", OvertoneWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"overtone: {message}", file=sys.stderr)
    try:
        if argv == ["--version"]:
            print(f"overtone {_version()}")
            return 0
        code = app(argv, standalone_mode=False)
    except UsageError as error:
        return _fail(str(error), 2)
    except OvertoneError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors; their class is private to it
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        return _fail(error.format_message(), 2)
    if code == _CTRL_C:
        return _fail("interrupted", 1)
    return code if isinstance(code, int) else 0


def _version() -> str:
    from importlib.metadata import version

    return version("overtone")


def _fail(message: str, code: int) -> int:
    text = " ".join(message.split())
    print(f"overtone: {text}", file=sys.stderr)
    return code
