"""The ledger: studies, their trials, fronts and packed models, in one store.

    studies/NAME.json                        the study record: what was asked
    studies/NAME.progress.json               what the running search last said
    trials/study=NAME/TRIAL-<uuid>.parquet   one file an append, never changed afterwards
    trials/study=NAME/segment.<uuid>.parquet many rows: a batch, or what compaction made of many files
    fronts/study=NAME/front.parquet          the front, rewritten as trials end
    models/<sha256>.safetensors              packed models, by content

Files are only ever added or replaced whole, so a reader needs no lock and a crash leaves nothing half-written.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from layers.errors import OvertoneError, UsageError
from results.ledger.compaction import Compaction
from results.ledger.model_cache import cached_file
from results.ledger.store import Store
from results.ledger.trials import Trials
from results.objectives import Objective, parse_objectives
from results.schema import LEDGER_VERSION, SCHEMA, TrialRow, to_table

__all__ = ["Ledger"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Ledger:
    """What is kept of all studies in a store.

    A ledger object remembers the trial files it has read (they never change): asking again after each trial is cheap.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._trials = Trials(store)

    def create_study(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the record of a new study, plain JSON with `objectives` (names) in it; gives back what was written.

        Read here, where given: `uncompressed`, the original network's figures, as the table `baseline` has them. Raises
        UsageError for a bad name, unknown objectives, or a study that is there already.
        """
        _check_name(name)
        parse_objectives(record.get("objectives", ()))
        if self.store.exists(_record(name)):
            raise UsageError(f"study {name!r} exists already in store {self.store.label!r}")
        stamp = {"name": name, "created_at": datetime.now(UTC).isoformat(), "ledger_version": LEDGER_VERSION}
        return self._write_json(_record(name), {**record, **stamp})

    def update_study(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces some keys of a study's record (more trials asked for); objectives and name stay as they were."""
        record = self.study(name)
        for key in ("name", "objectives", "created_at", "ledger_version"):
            if key in changes and changes[key] != record.get(key):
                raise UsageError(f"study {name!r} keeps its {key} (={record.get(key)!r}); {changes[key]!r} was given")
        return self._write_json(_record(name), {**record, **changes})

    def study(self, name: str) -> dict[str, Any]:
        """The record of a study; UsageError with the closest names where there is none."""
        _check_name(name)
        if not self.store.exists(_record(name)):
            raise UsageError(f"study {name!r} does not exist in store {self.store.label!r}; {self._alternatives(name)}")
        record = self._read_json(_record(name))
        version = record.get("ledger_version")
        if not isinstance(version, int) or version > LEDGER_VERSION:
            path = self.store.path_of(_record(name))
            raise OvertoneError(f"{path!r} has schema version {version}, not up to {LEDGER_VERSION}: update overtone")
        return record

    def studies(self) -> list[str]:
        """The names of all studies, sorted."""
        names = [Path(path).name.removesuffix(".json") for path in self.store.list("studies", ".json")]
        return sorted(name for name in names if not name.endswith(".progress"))

    def objectives(self, name: str) -> tuple[Objective, ...]:
        """What a study improves, in the order in which it was asked."""
        return parse_objectives(self.study(name)["objectives"])

    def append(self, row: TrialRow) -> str:
        """Adds one trial as one Parquet file, durable when this returns; gives back the file's name in the store."""
        _check_name(row.study)
        return self._trials.append(row)

    def append_many(self, rows: Sequence[TrialRow] | pa.Table) -> str:
        """Adds many trials of one study as one segment, all of them durable when this returns or none.

        A table must have the ledger's schema. Gives back the file's name in the store.
        """
        table = rows if isinstance(rows, pa.Table) else to_table(rows)
        if table.schema != SCHEMA:
            odd = [field.name for field in SCHEMA if field not in list(table.schema)]
            raise OvertoneError(f"rows must be a table of the ledger's schema; {', '.join(odd) or 'order'} differs")
        studies = table.column("study").unique().to_pylist()
        if len(studies) != 1:
            raise OvertoneError(f"rows must be of one study, not of {', '.join(studies) or 'none'}")
        return self._trials.append_many(studies[0], table, self.objectives(studies[0]))

    def compact(self, study: str) -> Compaction:
        """Merges the small files of a study into few segments, while others append and read; says what it did."""
        return self._trials.compact(study, self.objectives(study))

    def trials(self, study: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One row for each trial of the search, by number; an empty table of the same schema while there is none.

        With `columns`, these alone, which of a study with segments reads little else. Trials that only repeat another
        one with a new seed are left out: `confirmations` has those.

        Where a trial id was written more than once (a trial that was retried, or run by two), a finished row wins over
        one that is not, then the newest `finished_at`. An unreadable, foreign or newer file is an OvertoneError naming
        it.
        """
        self.study(study)
        unknown = sorted(set(columns or ()) - set(SCHEMA.names))
        if unknown:
            raise UsageError(f"column {unknown[0]!r} is unknown; allowed are {', '.join(SCHEMA.names)}")
        if columns is None:
            rows = self._trials.rows(study)
        else:
            rows = self._trials.columns(study, columns).select(list(dict.fromkeys([*columns, "repeat_of"])))
        rows = rows.filter(pc.is_null(rows.column("repeat_of")))
        return rows if columns is None else rows.select(columns)

    def repeats(self, study: str) -> pa.Table:
        """One row for each trial that repeats another one (column `repeat_of`) with a new seed."""
        self.study(study)
        rows = self._trials.rows(study)
        return rows.filter(pc.is_valid(rows.column("repeat_of")))

    def front(self, study: str) -> pa.Table:
        """The front of a study's trials as they are now: whole rows, smallest first."""
        return self._trials.front(study, self.objectives(study))

    def write_front(self, study: str) -> pa.Table:
        """Brings the front up to date, keeps it as Parquet beside the trials, and gives it back."""
        return self._trials.write_front(study, self.objectives(study))

    def put_model(self, model: str | os.PathLike[str] | bytes) -> str:
        """Keeps a packed model (a path or its bytes) under its SHA-256, once however often it is put; gives that."""
        data = model if isinstance(model, bytes) else Store(Path(model).parent).read_bytes(Path(model).name)
        digest = hashlib.sha256(data).hexdigest()
        if not self.store.exists(_model(digest)):
            self.store.write_bytes(_model(digest), data)
        return digest

    def adopt_model(self, name: str, sha256: str) -> None:
        """Keeps the packed model of this SHA-256 that lies in the store under another name, which it then has no more.

        One that is kept already stays, and so does the other file.
        """
        if not self.has_model(sha256):
            self.store.move(name, _model(sha256))

    def has_model(self, sha256: str) -> bool:
        """Whether the packed model was kept; a row says the SHA-256 of one that was not kept too."""
        return self.store.exists(_model(sha256))

    def models(self) -> frozenset[str]:
        """The SHA-256 of all packed models in the store, of whatever study."""
        return frozenset(Path(name).stem for name in self.store.list("models", ".safetensors"))

    def model_path(self, sha256: str) -> Path:
        """A local file that holds the model: the store's own where it is local, a checked copy where it is not."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise UsageError(f"model {sha256!r} must be named by the 64 hexadecimal digits of its SHA-256")
        if self.store.local_root is None:
            return cached_file(self.store, _model(sha256), sha256)
        if not self.store.exists(_model(sha256)):
            raise OvertoneError(f"cannot read {self.store.path_of(_model(sha256))!r}: it does not exist")
        return self.store.local_root / _model(sha256)

    def write_progress(self, study: str, progress: Mapping[str, Any]) -> None:
        """Replaces what the running search last said, plain JSON; a power cut may lose it."""
        _check_name(study)
        self._write_json(_progress(study), dict(progress), durable=False)

    def read_progress(self, study: str) -> dict[str, Any] | None:
        """What the search last said of this study, None where none has run or what it said was lost."""
        _check_name(study)
        if not self.store.exists(_progress(study)) or not self.store.read_bytes(_progress(study)):
            return None
        return self._read_json(_progress(study))

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self.store.read_bytes(name))
        except ValueError as error:
            raise OvertoneError(f"{self.store.path_of(name)!r} is not readable JSON: {error}") from None
        if not isinstance(value, dict):
            raise OvertoneError(f"{self.store.path_of(name)!r} holds {type(value).__name__} where an object belongs")
        return value

    def _write_json(self, name: str, value: dict[str, Any], *, durable: bool = True) -> dict[str, Any]:
        try:
            text = json.dumps(value, indent=2 if durable else None, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise OvertoneError(f"cannot write {self.store.path_of(name)!r}: it must be plain JSON: {error}") from None
        self.store.write_bytes(name, text.encode(), durable=durable)
        return value

    def _alternatives(self, name: str) -> str:
        known = self.studies()
        if not known:
            return "it holds no study"
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        return f"the closest are {', '.join(close)}" if close else f"it holds {', '.join(known[:5])}"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.endswith(".progress"):
        raise UsageError(
            f"study name {name!r} must be 1 to 128 letters, digits, '.', '_' or '-', not start with '.' "
            "and not end with '.progress'"
        )


def _record(study: str) -> str:
    return f"studies/{study}.json"


def _progress(study: str) -> str:
    return f"studies/{study}.progress.json"


def _model(sha256: str) -> str:
    return f"models/{sha256}.safetensors"
