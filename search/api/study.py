"""A study as its user holds it: run it, ask it, take its trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from layers.errors import UsageError
from results.analysis.effects_table import effects_table
from results.analysis.importance import importance
from results.analysis.summary import confidence_by_trial, summarize
from results.ledger.ledger import Ledger
from results.queries.query import pick, query, sql
from search.api.trial import Trial
from search.runner.run_lock import is_running
from search.study.amounts import Amount, parse_amount
from search.study.objects import NO_OBJECTS, Objects
from search.study.places import RECORDED, Places
from search.study.plan import DEFAULT_POINTS, DEFAULT_SEEDS
from search.study.study_ledger import StudyLedger

if TYPE_CHECKING:
    import os

    from torch import nn

    from search.runner.cluster import Resources
    from search.runner.confirm import RepeatResult
    from search.runner.dashboards import DashboardOptions
    from search.runner.launch import SearchResult
    from search.study.workload import Workload
    from trainers.data.objects import ImageObjects

__all__ = ["Interrupted", "Study"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, after what had ended was kept: the same call goes on."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
        """How far the run came."""


class Study:
    """A study of a store, as `create_study` and `load_study` return it.

    Tables come as pandas data frames with the columns of `docs/queries.md`. `model` and `data` are the network and the
    images of a study that was begun with objects; they are needed for what trains or evaluates, and never written.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        model: nn.Module | None = None,
        data: ImageObjects | None = None,
        places: Places = RECORDED,
        workload: Workload | None = None,
    ) -> None:
        """Open the study of this name; raise `UsageError` with the closest names if there is none.

        `places` are those of weights and data, if they moved. `workload` is what `Workload.load` gives for it, if that
        is at hand.
        """
        self.ledger = ledger
        self.name = name
        self.objects = Objects(model=model, data=data) if model is not None or data is not None else NO_OBJECTS
        self.places = places
        self._study = StudyLedger(ledger, name)
        self._workload = workload
        self.record()

    def __repr__(self) -> str:
        return f"Study({self.name!r}, store={self.ledger.store.label!r})"

    @property
    def score_name(self) -> str:
        """What the score is called, such as `val_top1`."""
        return self.ledger.score_name(self.name)

    def record(self) -> dict[str, Any]:
        """Return what was asked for, and the uncompressed network's figures, as plain JSON data."""
        return self._study.record()

    def optimize(
        self,
        n_trials: int | None = None,
        *,
        more: int | None = None,
        resources: Resources | None = None,
        dashboards: DashboardOptions | None = None,
        progress: bool = True,
        model: nn.Module | None = None,
        data: ImageObjects | None = None,
    ) -> SearchResult:
        """Run trials on Ray until the study has `n_trials` of them, those of earlier calls among them.

        Default: as many as were asked for last, 24 in a new study. So the same call goes on after Ctrl-C or a crash;
        `more` adds that many trials instead. Trials that a warm start brought count besides. `model` and `data` are the
        objects that the study was begun with, unless it has them. Raises `UsageError` if the study has more trials than
        `n_trials`, and `Interrupted` after Ctrl-C.
        """
        from search.runner.cluster import Resources
        from search.runner.dashboards import DashboardOptions
        from search.runner.launch import run_study
        from search.runner.progress import make_console
        from search.runner.run_lock import hold

        console = make_console(progress)
        self._wanted(n_trials, more)
        with hold(self._study, console) as claim:
            result = run_study(
                self._study,
                self._load(progress, model, data),
                self._wanted(n_trials, more),
                resources or Resources(),
                console,
                claim,
                dashboards or DashboardOptions(),
            )
        if result.done < result.wanted and not result.exhausted:
            raise Interrupted(f"{result.done} of {result.wanted} trials are done; the same call goes on", result)
        return result

    def confirm(
        self,
        n_seeds: int = DEFAULT_SEEDS,
        *,
        pick: str = "front",
        where: str | None = None,
        resources: Resources | None = None,
        progress: bool = True,
        model: nn.Module | None = None,
        data: ImageObjects | None = None,
    ) -> RepeatResult:
        """Run trials again with this many further seeds each, which gives their scores an interval (see `front`).

        `pick` is `front` (all of it), `best`, `knee` or what `trial` takes, of what the SQL condition `where` leaves.
        The search itself is not touched. `model` and `data` are as for `optimize`. Raises `Interrupted` after Ctrl-C;
        the same call goes on.
        """
        from search.runner.cluster import Resources
        from search.runner.confirm import confirm_trials, rows_to_confirm
        from search.runner.progress import make_console
        from search.runner.run_lock import hold

        console = make_console(progress)
        rows = rows_to_confirm(self._study, pick, where=where, seeds=n_seeds)
        with hold(self._study, console) as claim:
            result = confirm_trials(
                self._study,
                rows,
                self._load(progress, model, data),
                seeds=n_seeds,
                resources=resources or Resources(),
                console=console,
                claim=claim,
            )
        if result.done + result.failed < result.wanted:
            raise Interrupted(f"{result.done} of {result.wanted} repeats are done; the same call goes on", result)
        return result

    def sketch(
        self,
        points: int = DEFAULT_POINTS,
        *,
        resources: Resources | None = None,
        progress: bool = True,
        model: nn.Module | None = None,
        data: ImageObjects | None = None,
    ) -> pd.DataFrame:
        """Predict the front without any training, and measure up to this many of its networks; return them by size.

        What compressing each block alone does is measured first; networks of least predicted loss under limits of size
        and compute are then built and calibrated, and measured on the validation images, on Ray. The rows are of status
        `sketch`, with a score before training alone, and their predicted rise of the loss as `predicted_loss_increase`.
        No other table counts them, and `optimize` begins with them. `model` and `data` are as for `optimize`. Raises
        `Interrupted` after Ctrl-C; the same call goes on.
        """
        from search.runner.cluster import Resources
        from search.runner.progress import make_console
        from search.runner.run_lock import hold
        from search.runner.sketch import sketch_study

        if points < 1:
            raise UsageError(f"points (={points}) must be at least 1")
        console = make_console(progress)
        with hold(self._study, console) as claim:
            result = sketch_study(
                self._study,
                self._load(progress, model, data),
                points=points,
                resources=resources or Resources(),
                console=console,
                claim=claim,
            )
        rows = self.query("status = 'sketch'", sketches=True, sort="size_bytes")
        rows = rows[rows["trial"].isin(result.predicted.keys())].reset_index(drop=True)
        rows.insert(1, "predicted_loss_increase", rows["trial"].map(result.predicted))
        if result.done + result.failed < result.wanted:
            raise Interrupted(f"{result.done} of {result.wanted} sketches are done; the same call goes on", rows)
        return rows

    def status(self) -> dict[str, Any]:
        """Return how far the study is: its `state`, trials by status, front, hypervolume and time left."""
        summary, published = summarize(self.ledger, self.name), self._study.read_progress()
        statuses = summary.trials.column("status").to_pylist()
        running = is_running(self._study)
        state = "running" if running else "finished" if len(statuses) >= summary.record["trials"] else "stopped"
        return {
            "study": self.name,
            "state": state,
            "wanted": summary.record["trials"],
            **{name: statuses.count(name) for name in ("finished", "failed", "pruned")},
            "sketches": summary.sketches.num_rows,
            "running": published.get("running", 0) if running else 0,
            "front": summary.front.num_rows,
            "confirmed": sum(row["seeds"] > 1 for row in confidence_by_trial(self.ledger, summary).values()),
            "hypervolume": summary.hypervolume,
            "effects_s": float(summary.record.get("effects_s", 0.0)),
            "seconds_left": published.get("seconds_left") if running else None,
        }

    def front(self) -> pd.DataFrame:
        """Return the trials that no other beats in every objective, smallest first, with how sure that is."""
        return query(self.ledger, self.name, front=True)

    def query(
        self,
        where: str | None = None,
        *,
        front: bool = False,
        sketches: bool = False,
        sort: str | None = None,
        descending: bool | None = None,
        limit: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Return the trials that meet an SQL condition on columns, such as `size_bytes < 100e3`; all without one.

        With `front`, return the front of those. With `sketches`, also return what `sketch` measured, with the status
        `sketch`. Subqueries may ask the other tables. Scores sort highest first and costs lowest first, unless
        `descending` is set.
        """
        return query(
            self.ledger,
            self.name,
            front=front,
            sketches=sketches,
            where=where,
            sort=sort,
            descending=descending,
            limit=limit,
            columns=columns,
        )

    def sql(self, statement: str) -> pd.DataFrame:
        """Return the answer to one query over the tables trials, front, epochs, blocks, confirmations, sketches and
        baseline.

        It is a SELECT (WITH, FROM and VALUES too), SHOW TABLES or DESCRIBE. Values keep what DuckDB has: integers and
        booleans with nulls have pandas' nullable types, and what pandas has no type for is text.
        """
        return sql(self.ledger, self.name, statement)

    def importance(self) -> pd.DataFrame:
        """Return how much each knob tells the best trials from the others: `knob`, `share`, and its share by `chance`.

        Most important first; without a row if no knob stands out from chance.
        """
        return pd.DataFrame(importance(self.ledger, self.name)["importance"], columns=["knob", "share", "chance"])

    def effects(self) -> pd.DataFrame:
        """Return what compressing each block alone costs before any training, as the search has measured it.

        Columns are `block`, `form`, `loss_increase` in nats and its standard error `loss_error`, `score_change` (on
        training images), `bytes_saved` and `flops_saved`; no row if nothing was measured. The frame's `attrs` say how
        far the rule is off that tells other forms, by leaving each effect out in turn: `held_out_error` in nats,
        `held_out_factor` and their number `held_out`.
        """
        found = effects_table(self.ledger, self.name)
        columns = ["block", "form", "loss_increase", "loss_error", "score_change", "bytes_saved", "flops_saved"]
        frame = pd.DataFrame([] if found is None else found["effects"], columns=columns)
        frame.attrs = {name: found and found[name] for name in ("held_out_error", "held_out_factor", "held_out")}
        return frame

    def best(
        self, where: str | None = None, *, max_size: Amount | None = None, max_flops: Amount | None = None
    ) -> Trial:
        """Return the trial of the highest score, of those within these limits."""
        return self.pick("best", _limited(where, max_size, max_flops))

    def knee(
        self, where: str | None = None, *, max_size: Amount | None = None, max_flops: Amount | None = None
    ) -> Trial:
        """Return the knee of the front, of the trials within these limits."""
        return self.pick("knee", _limited(where, max_size, max_flops))

    def trial(self, id: str | int) -> Trial:
        """Return the trial of an id, of a number, or of 6 characters or more that one id alone begins with."""
        if id in ("best", "knee"):
            raise UsageError(f"id (={id!r}) must be the id of a trial; study.{id}() picks one")
        return self.pick(str(id))

    def pick(self, which: str, where: str | None = None) -> Trial:
        """Return `best`, `knee` or what `trial` takes, of what the SQL condition `where` leaves."""
        row = pick(self.ledger, self.name, which, where=where)
        return Trial(self.ledger, self.name, row, self.objects, self.places)

    def report(self, out: str | os.PathLike[str]) -> Path:
        """Write the study's report, one HTML page that opens offline; return its path."""
        from results.report.report import write_report

        if Path(out).suffix in (".png", ".svg"):
            raise UsageError(f"out (={str(out)!r}) must end in .html; `overtone plot front` draws pictures")
        return write_report(self.ledger, self.name, out)

    def plot_front(self, out: str | os.PathLike[str]) -> Path:
        """Draw the front into a `.png` or `.svg` file; return its path."""
        from results.report.plot import plot_front

        return plot_front(self.ledger, self.name, out)

    def plot_effects(self, out: str | os.PathLike[str]) -> Path:
        """Draw what compressing each block alone costs into a `.png` or `.svg` file; return its path."""
        from results.report.effects_plot import plot_effects

        return plot_effects(self.ledger, self.name, out)

    def compact(self) -> dict[str, Any]:
        """Merge the many small files of the study into few, as a search does at its end; return what was done."""
        return self.ledger.compact(self.name).to_json()

    def _load(self, progress: bool, model: nn.Module | None = None, data: ImageObjects | None = None) -> Workload:
        """Return what trials share, loaded once unless other objects are given."""
        from search.runner.launch import open_workload
        from search.runner.progress import make_console

        objects = Objects(model=model, data=data).or_else(self.objects)
        known = objects.model is self.objects.model and objects.data is self.objects.data
        if self._workload is None or not known:
            self._workload = open_workload(self._study, make_console(progress), objects, self.places)
            self.objects = objects
        return self._workload

    def _wanted(self, n_trials: int | None, more: int | None) -> int:
        """Return how many trials the study is to have, those of a warm start among them."""
        record, done = self.record(), self._study.trials(["trial"]).num_rows
        for name, value in ("n_trials", n_trials), ("more", more):
            if value is not None and value < 1:
                raise UsageError(f"{name} (={value}) must be at least 1")
        if n_trials is not None and more is not None:
            raise UsageError(f"more (={more}) must be left out with n_trials (={n_trials})")
        if more is not None:
            return int(max(record["trials"], done)) + more
        if n_trials is None:
            return int(record["trials"])
        own = done - record["warm_started"]
        if n_trials < own:
            raise UsageError(
                f"n_trials (={n_trials}) must be at least {own}, the trials that study {self.name!r} has; "
                "`overtone resume --more N`, in Python optimize(more=N), adds to them"
            )
        return n_trials + int(record["warm_started"])


def _limited(where: str | None, max_size: Amount | None, max_flops: Amount | None) -> str | None:
    """Return the SQL condition that holds all of these."""
    limits = {"size_bytes": ("max_size", max_size), "flops": ("max_flops", max_flops)}
    conditions = [
        f"{column} <= {parse_amount(value, name=name)}" for column, (name, value) in limits.items() if value is not None
    ]
    conditions += [] if where is None else [f"({where})"]
    return " AND ".join(conditions) or None
