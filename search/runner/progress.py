"""The display of a running search: a bar on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from results.formatting import format_duration, format_flops, format_kilobytes
from results.objectives import init_name
from results.schema import TrialRow, TrialStatus
from search.runner.notebook import NotebookBar
from trainers.score import SCORE_NAME
from trainers.training.loop import Epoch

__all__ = ["Progress", "RunProgress", "StudyProgress", "counting_bar", "decoding_bar", "epoch_line", "make_console"]


_READING = "reading images"


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """The progress of a run of trials."""

    wanted: int
    """Trials in all, once the run is finished."""
    done: int
    """Ended trials, failed and pruned ones included."""
    failed: int
    pruned: int
    """Trials that were stopped early, because they could not enter the front."""
    running: int
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    def line(self) -> str:
        """Return all of it in one line."""
        return f"{self._counts()}{self._time_left()}"

    def _counts(self) -> str:
        others = ((self.pruned, "pruned"), (self.failed, "failed"))
        return ", ".join([f"{self.running} running", *(f"{count} {name}" for count, name in others if count)])

    def _time_left(self) -> str:
        if self.seconds_left is None or self.done >= self.wanted:
            return ""
        return f", {format_duration(self.seconds_left)} left"


@dataclass(frozen=True, kw_only=True)
class StudyProgress(RunProgress):
    """The progress of a search."""

    front: int
    """Trials on the front."""
    hypervolume: float
    """Share of the box between the reference point and the ideal that the front dominates."""
    hours: float = 0.0
    """Time that trials took, on all workers together."""
    gpus: float = 0.0
    """GPUs of each worker."""

    def line(self) -> str:
        """Return all of it in one line."""
        spent = f"{self.hours * self.gpus:.2f} GPU-hours" if self.gpus else f"{self.hours:.2f} worker-hours"
        front = f"front {self.front}, hypervolume {self.hypervolume:.4f}"
        return f"{self._counts()}, {front}, {spent}{self._time_left()}"


def make_console(progress: bool = True) -> Console:
    """Return the console of standard error, which prints nothing without `progress`."""
    return Console(stderr=True, quiet=not progress)


class Progress:
    """Shows the progress of a run, and each trial as it ends."""

    def __init__(self, console: Console, description: str = "trials") -> None:
        self._console = console
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(description, total=None, line="")
        self._notebook = NotebookBar(description) if _in_notebook(console) else None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """Update the display; `row` is a trial that ended just now."""
        self._bar.update(self._task, completed=progress.done, total=progress.wanted, line=progress.line())
        if self._notebook is not None:
            self._notebook.show(progress.done, progress.wanted, progress.line())
        if row is None:
            return
        if not self._console.is_terminal and self._notebook is None:
            self._console.print(
                f"[{progress.done}/{progress.wanted}] {_trial_line(row)}; {progress.line()}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        elif row.status == TrialStatus.FAILED:
            self._bar.console.print(_trial_line(row), markup=False, highlight=False)


@contextmanager
def decoding_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yield the progress function that `load_data` calls, which shows a bar once images are read.

    Where there is neither a terminal nor a notebook it shows nothing.
    """
    with counting_bar(console, _READING) as show:
        yield show


@contextmanager
def counting_bar(console: Console, what: str, *, lines: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that is told how many of how many are done, which shows a bar from then on.

    Where there is neither a terminal nor a notebook it shows so many lines in all.
    """
    if _in_notebook(console):
        yield NotebookBar(what).show
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = RichProgress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=None)
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            if console.is_terminal and not bar.live.is_started:
                stack.enter_context(bar)
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and done * lines // total > (done - 1) * lines // total:
                console.print(f"[{done}/{total}] {what}", markup=False, highlight=False)

        yield show


def _in_notebook(console: Console) -> bool:
    return console.is_jupyter and not console.quiet


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Return the progress of a training after an epoch, and how long the rest takes at that pace."""
    left = epoch.seconds * (epochs - epoch.epoch)
    rest = f", about {format_duration(left)} left" if epoch.epoch < epochs else ""
    measured = f"train_loss {epoch.train_loss:.4f}, {SCORE_NAME} {epoch.score:.4f}"
    return f"epoch {epoch.epoch}/{epochs}: {measured}, {epoch.seconds:.1f} s{rest}"


def _trial_line(row: TrialRow) -> str:
    if row.status == TrialStatus.FAILED:
        return f"{row.trial} failed: {(row.error or '').strip().splitlines()[-1]}"
    costs = f"{format_kilobytes(row.size_bytes or 0, '.1f')}, {format_flops(row.flops or 0, '.2f')}"
    if row.status == TrialStatus.PRUNED:
        score = row.history[-1]["score"] if row.history else row.init_score
        epochs = f"{row.epochs_run} of {row.epochs} epochs"
        return f"{row.trial} stopped after {epochs} at {row.score_name} {score:.4f}, {costs}"
    if row.status == TrialStatus.SKETCH:
        return f"{row.trial} {init_name(str(row.score_name))} {row.init_score:.4f}, {costs}"
    repeat = "" if row.repeat_of is None else f" (seed {row.seed} of {row.repeat_of})"
    reused = "" if row.reused_from is None else f" (reused from study {row.reused_from})"
    return f"{row.trial}{repeat}{reused} {row.score_name} {row.score:.4f}, {costs}"
