"""A running search for other programs to show: TensorBoard's files, and an Optuna storage for optuna-dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layers import OvertoneError, UsageError
from results.schema import TrialRow

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from search.runner.progress import RunProgress

__all__ = ["TensorBoard", "Observer", "open_storage"]


class Observer(Protocol):
    """Is told where a run of trials stands."""

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """`row` is a trial that ended just now."""


class TensorBoard:
    """Writes a TensorBoard run for the study, and one for each trial that ends."""

    def __init__(self, folder: str | Path, study: str) -> None:
        """Raises `OvertoneError` where TensorBoard is not installed or the folder cannot be written."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OvertoneError("--tensorboard needs TensorBoard: pip install 'overtone[dashboard]'.") from error
        self._make, self._folder = SummaryWriter, Path(folder) / study
        try:
            self._study = SummaryWriter(str(self._folder))
        except OSError as error:
            raise OvertoneError(f"tensorboard (={str(folder)!r}) cannot be written; {error}.") from error

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """The curve of the trial over epochs, the study's figures over trials."""
        if row is None:
            return
        for name, value in progress.to_json().items():
            if isinstance(value, int | float):
                self._study.add_scalar(f"study/{name}", value, progress.done)
        self._study.flush()
        with self._make(str(self._folder / f"{row.number:05d}-{row.trial}")) as trial:
            points: list[tuple[str, Any, int]] = [("val_top1", row.init_score, 0)]
            for epoch in row.history:
                points += [(name, epoch[name], epoch["epoch"]) for name in ("val_top1", "train_loss", "lr")]
            points += [(name, getattr(row, name), 0) for name in ("size_bytes", "flops")]
            for name, value, step in points:
                if value is not None:
                    trial.add_scalar(f"trial/{name}", value, step)
            trial.add_text("trial/status", str(row.status))
            trial.add_text("trial/spec", f"```{row.spec}```")


def open_storage(url: str) -> BaseStorage:
    """An Optuna storage: `sqlite:///FILE` or another database's URL, or `journal:FILE`, which suits NFS.

    Raises `UsageError` where it cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        if url.startswith("journal:"):
            return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
        if "://" not in url:
            raise ValueError("it is no URL")
        return RDBStorage(url)
    except Exception as error:  # SQLAlchemy's and the drivers' own, which this module does not know
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"optuna_storage (={url!r}) must be journal:FILE, sqlite:///FILE or a database's URL; {reason}."
        ) from error
