"""A running search for other programs to show: TensorBoard's files, and an Optuna storage for optuna-dashboard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from layers.errors import OvertoneError, UsageError, translate_errors
from results.schema import TrialRow

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from search.runner.progress import RunProgress

__all__ = ["DashboardOptions", "Dashboards", "Observer", "TensorBoard", "open_storage"]


class Observer(Protocol):
    """Follows a run of trials."""

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """Show the progress; `row` is a trial that ended just now."""


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """Where else a running study can be seen."""

    tensorboard: Path | None = None
    """Folder of TensorBoard's files."""
    optuna_storage: str | None = None
    """URL of the storage that optuna-dashboard opens."""

    def open(self, study: str) -> Dashboards:
        """Open them for writing; raise `OvertoneError` if that is not possible."""
        storage = None if self.optuna_storage is None else open_storage(self.optuna_storage)
        return Dashboards(storage, [] if self.tensorboard is None else [TensorBoard(self.tensorboard, study)])


class Dashboards(NamedTuple):
    """The opened dashboards of a study."""

    storage: BaseStorage | None
    observers: Sequence[Observer]


class TensorBoard:
    """Writes a TensorBoard run for the study, and one for each trial that ends."""

    def __init__(self, folder: str | Path, study: str) -> None:
        """Raise `OvertoneError` if TensorBoard is not installed or the folder cannot be written."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OvertoneError("--tensorboard needs TensorBoard: pip install tensorboard") from error
        self._folder = Path(folder) / study
        self._make_writer = SummaryWriter
        with translate_errors(f"cannot write TensorBoard's files to {str(folder)!r}", OSError):
            self._study = SummaryWriter(str(self._folder))

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """Add an ended trial's curve over epochs, and the study's progress over trials."""
        if row is None:
            return
        for name, value in progress.to_json().items():
            if isinstance(value, int | float):
                self._study.add_scalar(f"study/{name}", value, progress.done)
        self._study.flush()
        with self._make_writer(str(self._folder / f"{row.number:05d}-{row.trial}")) as trial:
            for name, value, step in _scalars(row):
                if value is not None:
                    trial.add_scalar(f"trial/{name}", value, step)
            trial.add_text("trial/status", str(row.status))
            trial.add_text("trial/spec", f"```{row.spec}```")


def _scalars(row: TrialRow) -> Iterator[tuple[str, Any, int]]:
    """Yield name, value and step: the score before training, each epoch's figures, and costs."""
    score_name = row.score_name or "score"
    yield score_name, row.init_score, 0
    for epoch in row.history:
        figures = {score_name: epoch["score"], **dict(epoch["metrics"])}
        for name, value in {**figures, "train_loss": epoch["train_loss"], "lr": epoch["lr"]}.items():
            yield name, value, epoch["epoch"]
    yield "size_bytes", row.size_bytes, 0
    yield "flops", row.flops, 0


def open_storage(url: str) -> BaseStorage:
    """Open an Optuna storage: `sqlite:///FILE` or another database's URL, or `journal:FILE`, which suits NFS.

    Raises `UsageError` if it cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    failure = f"optuna_storage (={url!r}) must be journal:FILE, sqlite:///FILE or a database's URL"
    with translate_errors(failure, Exception, to=UsageError):  # SQLAlchemy and the drivers have errors of their own
        if url.startswith("journal:"):
            return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
        if "://" not in url:
            raise ValueError("it is no URL")
        return RDBStorage(url)
