"""What a person sees while a search runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from results.schema import TrialRow, TrialStatus
from trainers.training.loop import Epoch

__all__ = [
    "ALIVE_S",
    "HEARTBEAT_S",
    "Progress",
    "StudyProgress",
    "RunProgress",
    "decoding_bar",
    "duration",
    "epoch_line",
]

HEARTBEAT_S = 5.0
"""How often a search says that it is alive, whatever happens."""
ALIVE_S = 60.0
"""A search that has said nothing for so long is taken for stopped."""


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Where a run of trials stands."""

    wanted: int
    done: int
    """Ended trials, failed and pruned ones among them."""
    failed: int
    pruned: int
    """Stopped early, because they could not enter the front."""
    running: int
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def line(self) -> str:
        """All in a line."""
        return f"{self._counts()}{self._left()}"

    def _counts(self) -> str:
        others = ((self.pruned, "pruned"), (self.failed, "failed"))
        return ", ".join([f"{self.running} running", *(f"{count} {name}" for count, name in others if count)])

    def _left(self) -> str:
        waits = self.seconds_left is not None and self.done < self.wanted
        return f", {duration(self.seconds_left or 0)} left" if waits else ""


@dataclass(frozen=True, kw_only=True)
class StudyProgress(RunProgress):
    """Where a study stands."""

    front: int
    """Trials on the front."""
    hypervolume: float
    """Share of the box between the reference point and the ideal that the front dominates."""
    hours: float = 0.0
    """What trials took, on all workers together."""
    gpus: float = 0.0
    """GPUs that each of them had."""

    def line(self) -> str:
        """All in a line."""
        took = f"{self.hours * self.gpus:.2f} GPU-hours" if self.gpus else f"{self.hours:.2f} worker-hours"
        return f"{self._counts()}, front {self.front}, hypervolume {self.hypervolume:.4f}, {took}{self._left()}"


class Progress:
    """Shows where a run stands, and each trial as it ends."""

    def __init__(self, console: Console, what: str = "trials") -> None:
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
        self._task = self._bar.add_task(what, total=None, line="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """Bring the display up to date; `row` is a trial that ended just now."""
        self._bar.update(self._task, completed=progress.done, total=progress.wanted, line=progress.line())
        if row is None:
            return
        if not self._console.is_terminal:
            self._console.print(
                f"[{progress.done}/{progress.wanted}] {_outcome(row)}; {progress.line()}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        elif row.status == TrialStatus.FAILED:
            self._bar.console.print(_outcome(row), markup=False, highlight=False)


@contextmanager
def decoding_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """What `load_data` tells of the images that it decodes, as a bar; only where it decodes any, and on a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = RichProgress(*columns, console=console, transient=True)
    task = bar.add_task("decoding images, once on this machine", total=None)
    with ExitStack() as shown:

        def told(done: int, total: int) -> None:
            if console.is_terminal and not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        yield told


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Where a training stands after an epoch, and how long the rest takes at that pace."""
    left = epoch.seconds * (epochs - epoch.epoch)
    rest = f", about {duration(left)} left" if epoch.epoch < epochs else ""
    measured = f"train_loss {epoch.train_loss:.4f}, val_top1 {epoch.val_top1:.4f}"
    return f"epoch {epoch.epoch}/{epochs}: {measured}, {epoch.seconds:.1f} s{rest}"


def _outcome(row: TrialRow) -> str:
    if row.status == TrialStatus.FAILED:
        return f"{row.trial} failed: {(row.error or '').strip().splitlines()[-1]}"
    size, compute = (row.size_bytes or 0) / 1e3, (row.flops or 0) / 1e6
    costs = f"{size:.1f} kB, {compute:.2f} MFLOPs"
    if row.status == TrialStatus.PRUNED:
        reached = row.history[-1]["val_top1"] if row.history else row.init_score
        return f"{row.trial} stopped after {row.epochs_run} of {row.epochs} epochs at {reached:.4f}, {costs}"
    repeats = "" if row.repeat_of is None else f" (seed {row.seed} of {row.repeat_of})"
    reused = "" if row.reused_from is None else f" (known from study {row.reused_from})"
    return f"{row.trial}{repeats}{reused} val_top1 {row.val_top1:.4f}, {costs}"
