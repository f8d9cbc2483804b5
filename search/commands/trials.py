"""Commands that ask a study for its trials, and hand them over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from layers.errors import UsageError
from results.queries.names import TABLE_NAMES
from search.commands import options
from search.commands.display import export_line, out_console, print_answer, print_json, print_line
from search.study.plan import DEFAULT_STORE

__all__ = ["compact", "export", "importance", "query", "report"]


def query(
    study: options.Study,
    front: Annotated[
        bool, options.option(options.TRIALS, "Only trials that no other beats in every objective.", "--front")
    ] = False,
    sketches: Annotated[
        bool,
        options.option(
            options.TRIALS, "Also what `overtone sketch` measured: never trained, of status sketch.", "--sketches"
        ),
    ] = False,
    where: options.Where = None,
    sort: Annotated[
        str | None,
        options.option(
            options.TRIALS, "Column to sort by; scores come highest first. Default: by number, a front by size."
        ),
    ] = None,
    descending: Annotated[
        bool | None,
        options.option(
            options.TRIALS,
            "Highest or lowest first. Default: highest for scores, other good metrics and times.",
            "--descending/--ascending",
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
        options.option(
            options.TRIALS,
            f"One SELECT over the tables {', '.join(TABLE_NAMES)}, or SHOW TABLES or DESCRIBE, instead of the above.",
        ),
    ] = None,
    format: Annotated[str, options.option(options.OUTPUT, "table, json, csv or parquet.")] = "table",
    store: options.Store = DEFAULT_STORE,
) -> None:
    """Ask a study for its trials.

    Example: overtone query --study demo --front --where "size_bytes < 20000" --sort val_top1 --limit 10
    """
    from results.queries.formats import serialize
    from results.queries.query import ask, ask_sql
    from search.api.create import load_study
    from search.commands.trial_table import show_answer, show_trials

    others = (front, sketches, where, sort, descending is not None, limit is not None, columns is not None)
    if sql is not None and any(others):
        raise UsageError(
            f"sql (={sql!r}) must stand alone: front, sketches, where, sort, descending, columns and limit belong in "
            "the SELECT"
        )
    opened = load_study(study, store=store)
    names = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    if sql is not None:
        answer = ask_sql(opened.ledger, study, sql)
    else:
        answer = ask(
            opened.ledger,
            study,
            where=where,
            front=front,
            sketches=sketches,
            sort=sort,
            descending=descending,
            limit=limit,
            columns=names,
        )
    if format != "table":
        sys.stdout.buffer.write(serialize(answer, format))
    elif sql is None:
        frame = answer.frame()
        kind = "trials on the front" if front else "trials and sketches" if sketches else "trials"
        title = f"{study}: {len(frame)} {kind}"
        shown = None if names is None else answer.table.column_names
        show_trials(out_console(), frame, title, opened.score_name, shown)
    else:
        show_answer(out_console(), answer)


def compact(study: options.Study, store: options.Store = DEFAULT_STORE, as_json: options.AsJson = False) -> None:
    """Merge the many small files of a study into few.

    A search does so at its end. Others may read and write meanwhile.

    Example: overtone compact --study demo
    """
    from search.api.create import load_study

    result = load_study(study, store=store).compact()
    counts = f"{result['files_before']} files became {result['files_after']}"
    print_answer({"study": study, **result}, f"{study}: {counts}, {result['rows_written']} rows rewritten", as_json)


def report(
    study: options.Study,
    out: Annotated[Path, options.option(options.OUTPUT, "HTML file to write; it opens offline.")],
    store: options.Store = DEFAULT_STORE,
) -> None:
    """Write a study's report as one HTML page.

    It shows the front to explore, how the search went, which knobs matter, and every trial.

    Example: overtone report --study demo --out report.html
    """
    from search.api.create import load_study

    print_line(str(load_study(study, store=store).report(out)))


def importance(
    study: options.Study,
    limit: Annotated[int, options.option(options.OUTPUT, "Show at most this many knobs, the most important ones.")] = 8,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Show which knobs matter and what the front has in common.

    Beside each value of a knob stand the means of the trials that had it. Then follows what compressing each block
    alone costs before any training, if the search has measured it.

    Example: overtone importance --study demo
    """
    from results.analysis.effects_table import effects_table
    from results.analysis.importance import importance
    from search.api.create import load_study
    from search.commands.effects_table import show_effects
    from search.commands.importance_table import show_importance

    if limit < 1:
        raise UsageError(f"limit (={limit}) must be at least 1")
    opened = load_study(study, store=store)
    result, effects = importance(opened.ledger, study), effects_table(opened.ledger, study)
    if as_json:
        print_json({**result, "block_effects": effects})
    else:
        show_importance(out_console(), result, study, opened.score_name, limit)
        show_effects(out_console(), effects, study, opened.score_name)


def export(
    study: options.Study,
    out: Annotated[Path, options.option(options.OUTPUT, "New folder to write to.")],
    pick: Annotated[
        str,
        options.option(
            options.TRIALS,
            "best (highest score), knee (of the front), or a trial by its id, the id's first 6 characters or more, or "
            "its number; also a sketch by its id.",
        ),
    ] = "knee",
    where: options.Where = None,
    format: Annotated[
        str, options.option(options.OUTPUT, "safetensors (packed), onnx, pt2, or pte (int8).")
    ] = "safetensors",
    inline: Annotated[
        bool, options.option(options.OUTPUT, "onnx: without functions, for runtimes that refuse them.", "--inline")
    ] = False,
    dense: Annotated[
        bool,
        options.option(
            options.OUTPUT,
            "onnx: filters as float32 weights, for runtimes that compute nothing when loading.",
            "--dense",
        ),
    ] = False,
    runtime: Annotated[
        str | None,
        options.option(
            options.OUTPUT,
            "onnx: where it is to run, onnxruntime or openvino (written inline). Layers are timed and the file is "
            "verified there. Default: where the study takes latency, else onnxruntime.",
        ),
    ] = None,
    rerun: options.Rerun = False,
    device: options.RerunDevice = None,
    weights: options.MovedWeights = None,
    data: options.MovedData = None,
    store: options.Store = DEFAULT_STORE,
    as_json: options.AsJson = False,
) -> None:
    """Write a trial's model to a folder, and verify it.

    The file is read in a process of its own and must give the trial's predictions. Where activations are rounded,
    onnx and pt2 may give another class for up to 0.5 % of the validation images.

    Example: overtone export --study demo --pick best --where "size_bytes < 20000" --out model
    """
    from search.api.create import load_study

    opened = load_study(study, store=store, weights=weights, data=data)
    card = opened.pick(pick, where).export(
        out, format, inline=inline, dense=dense, runtime=runtime, rerun=rerun, device=device
    )
    print_answer({"out": str(out), **card}, export_line(out, card), as_json)
