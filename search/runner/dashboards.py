"""A running search for other programs to show: TensorBoard's files, and an Optuna storage (`optuna_board`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layers.errors import OvertoneError, translate_errors
from results.schema import TrialRow
from search.runner.optuna_board import OptunaBoard
from search.study.study_ledger import StudyLedger
from spaces import Space

if TYPE_CHECKING:
    from search.runner.progress import RunProgress

__all__ = ["DashboardOptions", "Observer", "TensorBoard"]


class Observer(Protocol):
    """Follows a run of trials."""

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """Show the progress; `row` is a trial that ended just now."""


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """Where else a running study can be seen."""

    tensorboard: Path | None = None
    """Folder of TensorBoard's files."""
    optuna_storage: str | None = field(default=None, repr=False)
    """URL of the storage that optuna-dashboard opens; it may hold a password."""

    def open(self, study: StudyLedger, space: Space) -> list[Observer]:
        """Open them for writing; raise `OvertoneError` if that is not possible."""
        opened: list[Observer] = []
        if self.optuna_storage is not None:
            opened.append(OptunaBoard(self.optuna_storage, study, space))
        if self.tensorboard is not None:
            opened.append(TensorBoard(self.tensorboard, study.name))
        return opened


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
