"""Commands that ask a study for its trials, and hand them over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from layers import UsageError
from results.analysis.importance import importance as study_importance
from results.ledger.ledger import Ledger
from results.ledger.store import Store as OpenStore
from results.queries.formats import serialize
from results.queries.query import query as query_trials
from results.queries.query import sql as query_sql
from results.queries.tables import TABLES
from results.report.report import write_report
from search.commands import options
from search.commands.display import err_console, export_line, out_console, print_answer, print_json, print_line
from search.commands.importance_table import show_importance
from search.commands.trial_table import show_trials
from trainers.runtime.device import default_device, parse_device

__all__ = ["compact", "export", "importance", "query", "report"]


def query(
    study: options.Study,
    front: Annotated[
        bool, options.option(options.TRIALS, "Only trials that no other beats in every objective.", "--front")
    ] = False,
    where: options.Where = None,
    sort: Annotated[
        str | None,
        options.option(
            options.TRIALS, "Column to sort by; scores come highest first. Default: by number, a front by size."
        ),
    ] = None,
    limit: Annotated[int | None, options.option(options.TRIALS, "Show at most this many. Default: all.")] = None,
    columns: Annotated[
        str | None,
        options.option(
            options.TRIALS,
            "Columns to show, such as trial,val_top1,size_bytes. Default: a selection in a table, else all.",
        ),
    ] = None,
    sql: Annotated[
        str | None,
        options.option(options.TRIALS, f"One SELECT over the tables {', '.join(TABLES)}, instead of the above."),
    ] = None,
    format: Annotated[str, options.option(options.OUTPUT, "table, json, csv or parquet.")] = "table",
    store: options.Store = options.DEFAULT_STORE,
) -> None:
    """Ask a study for its trials.

    Example: overtone query --study demo --front --where "size_bytes < 20000" --sort val_top1 --limit 10
    """
    ledger = Ledger(OpenStore(store))
    if sql is not None and (front or where or sort or limit is not None or columns is not None):
        raise UsageError(f"sql (={sql!r}) must stand alone: front, where, sort, columns and limit belong in the SELECT")
    names = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    if sql is None:
        frame = query_trials(ledger, study, front=front, where=where, sort=sort, limit=limit, columns=names)
    else:
        frame = query_sql(ledger, study, sql)
    if format != "table":
        sys.stdout.buffer.write(serialize(frame, format))
        sys.stdout.buffer.flush()
    elif sql is None:
        title = f"{study}: {len(frame)} {'trials on the front' if front else 'trials'}"
        show_trials(out_console, frame, title, ledger.score_name(study), names)
    else:
        out_console.print(frame.to_string(index=False), markup=False, highlight=False)


def compact(
    study: options.Study, store: options.Store = options.DEFAULT_STORE, as_json: options.AsJson = False
) -> None:
    """Merge the many small files of a study into few.

    A search does so at its end. Others may read and write meanwhile.

    Example: overtone compact --study demo
    """
    result = Ledger(OpenStore(store)).compact(study).to_json()
    counts = f"{result['files_before']} files became {result['files_after']}"
    print_answer({"study": study, **result}, f"{study}: {counts}, {result['rows_written']} rows rewritten", as_json)


def report(
    study: options.Study,
    out: Annotated[Path, options.option(options.OUTPUT, "HTML file to write; it opens offline.")],
    store: options.Store = options.DEFAULT_STORE,
) -> None:
    """Write a study's report as one HTML page.

    It shows the front to explore, how the search went, which knobs matter, and every trial.

    Example: overtone report --study demo --out report.html
    """
    if out.suffix in (".png", ".svg"):
        raise UsageError(f"out (={str(out)!r}) must end in .html; `overtone plot front` draws pictures")
    print_line(str(write_report(Ledger(OpenStore(store)), study, out)))


def importance(
    study: options.Study,
    limit: Annotated[int, options.option(options.OUTPUT, "Show at most this many knobs, the most important ones.")] = 8,
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Show which knobs matter and what the front has in common.

    Beside each value of a knob stand the means of the trials that had it.

    Example: overtone importance --study demo
    """
    if limit < 1:
        raise UsageError(f"limit (={limit}) must be at least 1")
    ledger = Ledger(OpenStore(store))
    result = study_importance(ledger, study)
    if as_json:
        print_json(result)
    else:
        show_importance(out_console, result, study, ledger.score_name(study), limit)


def export(
    study: options.Study,
    out: Annotated[Path, options.option(options.OUTPUT, "New folder to write to.")],
    pick: Annotated[
        str, options.option(options.TRIALS, "best (highest score), knee (of the front), or the id of a trial.")
    ] = "knee",
    where: options.Where = None,
    format: Annotated[str, options.option(options.OUTPUT, "safetensors (packed), onnx or pt2.")] = "safetensors",
    rerun: options.Rerun = False,
    device: Annotated[
        str, options.option(options.TRIALS, "Where --rerun trains: cpu, cuda or cuda:1.")
    ] = default_device(),
    store: options.Store = options.DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write a trial's model to a folder, and verify it.

    The file is read in a process of its own and must give the trial's predictions. onnx and pt2 may give another
    class for up to 0.5 % of the validation images.

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
        log=lambda line: err_console.print(line, markup=False, highlight=False, soft_wrap=True),
    )
    print_answer({"out": str(out), **card}, export_line(out, card), as_json)
