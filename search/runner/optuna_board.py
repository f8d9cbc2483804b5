"""A study's trials in an Optuna storage, for optuna-dashboard: written there as they end, and never read to decide.

The sampler has a study of its own in memory, whose parameters are indices; these here are the values of the knobs, as
a person reads them, and the user attribute `trial` is the id in the ledger. A study in the storage is ours if it
carries our mark. Nothing there is ever deleted, and a study without the mark is not touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from layers.errors import OvertoneError, OvertoneWarning, UsageError, first_line
from results.objectives import Objective
from results.schema import TrialRow, TrialStatus
from search.study.record import network_config
from search.study.study_ledger import StudyLedger
from spaces import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from search.runner.progress import RunProgress

__all__ = ["OptunaBoard", "open_storage", "without_password"]

_MARK = "overtone"
"""User attribute of a study in the storage that says of which study of a ledger it shows the trials."""
_ID = "trial"
"""User attribute of its trials: the id in the ledger."""


class OptunaBoard:
    """Adds the trials of a study to one of the same name in an Optuna storage."""

    def __init__(self, url: str, study: StudyLedger, space: Space) -> None:
        """Open the storage, and add the trials that the ledger has and it lacks.

        Raises `UsageError` if the storage cannot be opened, or holds a study of this name that is not this one.
        """
        self._url = url
        self._space = space
        self._objectives = study.objectives()
        self._is_behind = False
        record, storage = study.record(), open_storage(url)
        with _errors(url, f"cannot use optuna_storage {without_password(url)!r}"):
            self._board = _open_study(
                storage, url, study.name, {"study": study.name, "created_at": record["created_at"]}, self._objectives
            )
            shown = {_key(trial) for trial in self._board.get_trials(deepcopy=False)}
            for row in map(TrialRow.from_record, study.trials().to_pylist()):
                if _key(trial := self._trial(row)) not in shown:
                    self._board.add_trial(trial)

    def show(self, progress: RunProgress, row: TrialRow | None) -> None:
        """Add a trial that ended. If the storage fails warn, and leave the rest to the next run."""
        if row is None or self._is_behind:
            return
        try:
            with _errors(self._url, f"cannot write to optuna_storage {without_password(self._url)!r}"):
                self._board.add_trial(self._trial(row))
        except OvertoneError as error:
            self._is_behind = True
            warnings.warn(f"{error}; the next run adds what it lacks", OvertoneWarning, stacklevel=2)

    def _trial(self, row: TrialRow) -> FrozenTrial:
        """Return a row as Optuna's trial; one of a config outside the space has no parameters."""
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        values = [getattr(row, objective.column) for objective in self._objectives]
        states = {TrialStatus.FINISHED: TrialState.COMPLETE, TrialStatus.PRUNED: TrialState.PRUNED}
        state = states.get(TrialStatus(row.status), TrialState.FAIL)
        if state == TrialState.COMPLETE and any(value is None or value != value for value in values):
            state = TrialState.FAIL
        knobs = {name: choices for name, choices in self._space.knobs.items() if len(choices) > 1}
        try:
            chosen = self._space.encode(network_config({"spec": row.spec}))
        except UsageError:
            knobs, chosen = {}, {}
        trial = create_trial(
            state=state,
            values=[float(value) for value in values] if state == TrialState.COMPLETE else None,
            params={name: chosen[name] for name in knobs},
            distributions={name: CategoricalDistribution(choices) for name, choices in knobs.items()},
            user_attrs={_ID: row.trial, "number": row.number, **({"error": row.error} if row.error else {})},
        )
        trial.datetime_start, trial.datetime_complete = (
            time.astimezone().replace(tzinfo=None) for time in (row.started_at, row.finished_at)
        )
        return trial


def _open_study(
    storage: BaseStorage, url: str, name: str, mark: dict[str, str], objectives: tuple[Objective, ...]
) -> Study:
    """Return the study of this name that carries the mark, a new one if there is none of the name."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        board = optuna.create_study(
            directions=["maximize" if o.direction == "max" else "minimize" for o in objectives],
            storage=storage,
            study_name=name,
        )
    except optuna.exceptions.DuplicatedStudyError:
        board = optuna.load_study(study_name=name, storage=storage)
        if board.user_attrs.get(_MARK) != mark:
            owner = "another store" if _MARK in board.user_attrs else "somebody else"
            raise UsageError(
                f"optuna_storage (={without_password(url)!r}) must not hold a study {name!r} of {owner}, which is left "
                "as it is: name another storage"
            ) from None
        return board
    board.set_user_attr(_MARK, mark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's warnings about experimental features
        board.set_metric_names([objective.name for objective in objectives])
    return board


def _key(trial: FrozenTrial) -> tuple[Any, Any]:
    """Return what tells a trial's outcome apart: one that failed may have finished when it was tried again."""
    return trial.user_attrs.get(_ID), trial.state


def open_storage(url: str) -> BaseStorage:
    """Open an Optuna storage: `sqlite:///FILE` or another database's URL, or `journal:FILE`, which suits NFS.

    Raises `UsageError` if it cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    shown = without_password(url)
    failure = f"optuna_storage (={shown!r}) must be journal:FILE, sqlite:///FILE or a database's URL"
    with _errors(url, failure, to=UsageError):
        if url.startswith("journal:"):
            return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
        if "://" not in url:
            raise ValueError("it is no URL")
        return RDBStorage(url)


def without_password(url: str) -> str:
    """Return a storage's URL as it may be shown: without user, password and query."""
    if url.startswith(("journal:", "sqlite:")):
        return url
    scheme, colon, rest = url.partition("://")
    place = (rest if colon else url).rpartition("@")[2].partition("?")[0]
    return f"{scheme}{colon}{place}" if colon else place


@contextmanager
def _errors(url: str, failure: str, to: type[OvertoneError] = OvertoneError) -> Iterator[None]:
    """Raise any failure of the block as `to`; its reason is left out where it shows what the URL keeps secret.

    SQLAlchemy and the drivers of databases have errors of their own. Ours pass as they are.
    """
    try:
        yield
    except OvertoneError:
        raise
    except Exception as error:
        reason = first_line(error)
        if any(secret in reason for secret in _secrets(url)):
            reason = type(error).__name__
        raise to(f"{failure}: {reason}") from None  # the cause may show the password


def _secrets(url: str) -> set[str]:
    """Return what of a URL is not shown: it as a whole, the password, and the values of the query."""
    shown = without_password(url)
    if shown == url:
        return set()
    login = url.partition("://")[2].rpartition("@")[0] or url.rpartition("@")[0]
    values = [part.partition("=")[2] for part in url.partition("?")[2].split("&")]
    found = {url, login, login.partition(":")[2], *values}
    return {text for secret in found for text in (secret, unquote(secret)) if text}
