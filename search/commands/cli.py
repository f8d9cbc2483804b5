"""The command line: a thin skin over plain functions. Ray and Optuna are imported by the commands that search."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from layers import OvertoneError, OvertoneWarning, UsageError
from search.commands.networks import inspect, train
from search.commands.studies import confirm, resume, search, status
from search.commands.trials import compact, export, insight, query, report

__all__ = ["app", "main"]

app = typer.Typer(
    help="Find the best trade-offs between accuracy, size and compute that a trained CNN can be compressed to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (inspect, train, search, resume, confirm, status, query, compact, report, insight, export):
    app.command()(command)

_CTRL_C = 130
"""What typer gives back where a command was interrupted."""


def main() -> None:
    """Run the command line: 0 done, 1 failed or stopped early, 2 wrong use."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for `--model package.module:factory`; there it shadows nothing
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", OvertoneWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"overtone: {message}", file=sys.stderr)
    try:
        code = app(arguments, standalone_mode=False)
    except UsageError as error:
        return _fail(str(error), 2)
    except OvertoneError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted.", 1)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own errors; their class is private to it
            raise
        message = error.format_message()
        if not arguments:
            print(message)
            return 2
        return _fail(message, 2)
    if code == _CTRL_C:
        return _fail("Interrupted.", 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    text = " ".join(message.split())
    print(f"overtone: {text}", file=sys.stderr)
    return code
