"""Commands that ask a study for its trials, and hand them over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from layers import UsageError
from results.analysis.importance import insight as study_insight
from results.ledger.ledger import Ledger
from results.ledger.store import Store as OpenStore
from results.queries.formats import serialize
from results.queries.query import query as query_trials
from results.queries.query import sql as query_sql
from results.queries.tables import TABLES
from results.report.report import write_report
from search.commands import options
from search.commands.display import err_console, export_line, out_console, print_json, say, show_trials
from search.commands.importance_table import show_insight
from trainers.runtime.device import default_device, parse_device

__all__ = ["compact", "export", "insight", "query", "report"]


def query(
    study: options.Study,
    front: Annotated[bool, typer.Option("--front", help="Only trials that no other beats in every objective.")] = False,
    where: options.Where = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; accuracies come highest first.")] = None,
    limit: Annotated[int | None, typer.Option(help="Show at most so many.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, such as trial,val_top1,size_bytes.")] = None,
    sql: Annotated[str | None, typer.Option(help=f"One SELECT over the tables {', '.join(TABLES)}, instead.")] = None,
    format: Annotated[str, typer.Option(help="table, json, csv or parquet.")] = "table",
    store: options.Store = "runs",
) -> None:
    """Ask a study for its trials.

    Example: overtone query --study demo --front --where "size_bytes < 20000" --sort val_top1 --limit 10
    """
    ledger = Ledger(OpenStore(store))
    if sql is not None and (front or where or sort or limit is not None or columns is not None):
        raise UsageError(f"sql (={sql!r}) stands alone: front, where, sort, columns and limit belong in the SELECT.")
    names = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    if sql is None:
        frame = query_trials(ledger, study, front=front, where=where, sort=sort, limit=limit, columns=names)
    else:
        frame = query_sql(ledger, study, sql)
    if format != "table":
        sys.stdout.buffer.write(serialize(frame, format))
        sys.stdout.buffer.flush()
    elif sql is None:
        show_trials(out_console, frame, f"{study}: {len(frame)} {'trials on the front' if front else 'trials'}", names)
    else:
        out_console.print(frame.to_string(index=False), markup=False, highlight=False)


def compact(study: options.Study, store: options.Store = "runs", as_json: options.Json = False) -> None:
    """Merge the many small files of a study into few. A finished search does it itself; others may read and write.

    Example: overtone compact --study demo
    """
    done = Ledger(OpenStore(store)).compact(study).to_json()
    line = f"{study}: {done['files_before']} files became {done['files_after']}, {done['rows_written']} rows rewritten"
    say({"study": study, **done}, line, as_json)


def report(
    study: options.Study,
    out: Annotated[Path, typer.Option(help="File to write: .html (one file, opens offline), .png or .svg.")],
    store: options.Store = "runs",
) -> None:
    """Write the study's front as a page to look at, or as a picture.

    Example: overtone report --study demo --out report.html
    """
    ledger = Ledger(OpenStore(store))
    path = write_report(ledger, study, out, insight=study_insight(ledger, study))
    out_console.print(f"{path}", highlight=False, soft_wrap=True)


def insight(
    study: options.Study,
    limit: Annotated[int, typer.Option(help="Show the most important knobs, at most so many.")] = 8,
    store: options.Store = "runs",
    as_json: options.Json = False,
) -> None:
    """Say which knobs matter, what their values go with, and what the front's members have in common.

    Example: overtone importance --study demo
    """
    if limit < 1:
        raise UsageError(f"limit (={limit}) must be at least 1.")
    found = study_insight(Ledger(OpenStore(store)), study)
    if as_json:
        print_json(found)
    else:
        show_insight(out_console, found, study, limit)


def export(
    study: options.Study,
    out: Annotated[Path, typer.Option(help="New folder to write to.")],
    pick: Annotated[str, typer.Option(help="best (highest val_top1), knee (of the front), or a trial's id.")] = "knee",
    where: options.Where = None,
    format: Annotated[str, typer.Option(help="safetensors (packed), onnx or pt2.")] = "safetensors",
    rerun: options.Rerun = False,
    device: Annotated[str, typer.Option(help="Where --rerun trains: cpu, cuda or cuda:1.")] = default_device(),
    store: options.Store = "runs",
    as_json: options.Json = False,
) -> None:
    """Write a trial's model to a folder, after proving that the file gives the trial's predictions.

    The file is read in a process of its own; onnx and pt2 may say another class for up to 0.5 % of validation images.

    Example: overtone export --study demo --pick best --where "size_bytes < 20000" --out model
    """
    from search.export.verify import export_trial

    card = export_trial(
        Ledger(OpenStore(store)),
        study,
        pick,
        where=where,
        format=format,
        out=out,
        rerun_on=parse_device(device) if rerun else None,
        say=lambda line: err_console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    say({"out": str(out), **card}, export_line(out, card), as_json)
