"""The ledger: studies, their trials, fronts and packed models, in one store.

    studies/NAME.json                        the study record: what was asked for
    studies/NAME.progress.json               the progress that the running search reported last
    trials/study=NAME/TRIAL-<uuid>.parquet   one file an append, never changed afterwards
    trials/study=NAME/segment.<uuid>.parquet many rows: a batch, or what compaction made of many files
    fronts/study=NAME/front.parquet          the front, rewritten as trials end
    models/<sha256>.safetensors              packed models, by content
    effects/<sha256>.json                    effects of single blocks, by what they were measured on

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

from layers.errors import OvertoneError, UsageError, translate_errors
from results.ledger.codec import check_version, refuse_prerelease
from results.ledger.compaction import Compaction
from results.ledger.model_cache import cached_file
from results.ledger.names import check_name, check_new_name
from results.ledger.store import Store
from results.ledger.trials import StudyTrials
from results.objectives import SCORE, Objective, parse_objectives
from results.schema import SCHEMA, TrialRow, TrialStatus, to_table

__all__ = ["RECORD_FORMAT", "Ledger"]

RECORD_FORMAT = 2
"""The version of study records, their key `format`. In version 1 `bits` of a block rounded its layers' inputs too."""

_SCORE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FIXED_KEYS = ("name", "score_name", "objectives", "created_at", "format")


class Ledger:
    """All studies in a store.

    A ledger object remembers the trial files it has read (they never change): reading again after each trial is cheap.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._trials: dict[str, StudyTrials] = {}

    def create_study(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record of a new study, plain JSON, and return what was written.

        Read here are `score_name`, what the study's score is called; `objectives`, names; and if there is one,
        `uncompressed`, the original network's figures, as the table `baseline` has them. Raises `UsageError` for a bad
        name, unknown objectives, or a study that exists.
        """
        self.check_new_study(name)
        _check_score_name(record.get("score_name"))
        objectives = parse_objectives(record.get("objectives", ()), score_name=record["score_name"])
        stamp = {"name": name, "created_at": datetime.now(UTC).isoformat(), "format": RECORD_FORMAT}
        names = [objective.name for objective in objectives]
        return self._write_json(_record(name), {**record, "objectives": names, **stamp})

    def check_new_study(self, name: str) -> None:
        """Raise `UsageError` for a name that no new study of the store may have."""
        check_new_name(name, self.studies())
        if self.store.exists(_record(name)):
            raise UsageError(f"study {name!r} exists already in store {self.store.label!r}")

    def update_study(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Replace some keys of a study's record (more trials to run) and return it; objectives and name stay."""
        record = self.study(name)
        for key in _FIXED_KEYS:
            if key in changes and changes[key] != record.get(key):
                raise UsageError(f"{key} (={changes[key]!r}) must stay {record.get(key)!r} in study {name!r}")
        return self._write_json(_record(name), {**record, **changes})

    def study(self, name: str) -> dict[str, Any]:
        """Return the record of a study; raise `UsageError` with the closest names if there is none."""
        check_name(name)
        if not self.store.exists(_record(name)):
            raise UsageError(f"study {name!r} does not exist in store {self.store.label!r}; {self._alternatives(name)}")
        record = self._read_json(_record(name))
        if str(record.get("name")).lower() == name.lower() and record["name"] != name:  # the disk ignores case
            raise UsageError(f"study {name!r} does not exist in store {self.store.label!r}; {self._alternatives(name)}")
        path = self.store.path_of(_record(name))
        refuse_prerelease(record, path)
        if not isinstance(record.get("format"), int) or record["format"] < 1:
            raise OvertoneError(f"{path!r} is not a study record of Overtone: its format is no positive integer")
        check_version(record["format"], RECORD_FORMAT, path)
        return record

    def studies(self) -> list[str]:
        """Return the names of all studies, sorted."""
        names = [Path(path).name.removesuffix(".json") for path in self.store.list("studies", ".json")]
        return sorted(name for name in names if not name.endswith(".progress"))

    def score_name(self, name: str) -> str:
        """Return what the score of a study is called, such as `val_miou`."""
        return str(self.study(name)["score_name"])

    def objectives(self, name: str) -> tuple[Objective, ...]:
        """Return the objectives of a study, in the order in which they were named."""
        record = self.study(name)
        return parse_objectives(record["objectives"], score_name=record["score_name"])

    def append(self, row: TrialRow) -> str:
        """Add one trial as one Parquet file, durable when this returns; return the file's name in the store."""
        check_name(row.study)
        return self._trials_of(row.study).append(row)

    def append_many(self, rows: Sequence[TrialRow] | pa.Table) -> str:
        """Add many trials of one study as one segment, all of them durable when this returns or none.

        A table must have the ledger's schema. Returns the file's name in the store.
        """
        table = rows if isinstance(rows, pa.Table) else to_table(rows)
        if table.schema != SCHEMA:
            odd = [field.name for field in SCHEMA if field not in list(table.schema)]
            raise OvertoneError(f"rows must be a table of the ledger's schema; {', '.join(odd) or 'order'} differs")
        studies = table.column("study").unique().to_pylist()
        if len(studies) != 1:
            raise OvertoneError(f"rows must be of one study, not of {', '.join(studies) or 'none'}")
        return self._trials_of(studies[0]).append_many(table, self.objectives(studies[0]))

    def compact(self, study: str) -> Compaction:
        """Merge the small files of a study into few segments, while others append and read; return what was done."""
        return self._trials_of(study).compact(self.objectives(study))

    def trials(self, study: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row for each trial of the search, by number; an empty table of the same schema if there is none.

        With `columns`, return these alone; of a study with segments little else is read then. Trials that only repeat
        another one with a new seed are left out, and configs that were never trained: `repeats` and `sketches` have
        those.

        If a trial id was written more than once (a trial that was retried, or run by two), a finished row wins over
        one that is not, then the newest `finished_at`. An unreadable, foreign or newer file is an `OvertoneError` that
        names it.
        """
        self.study(study)
        unknown = sorted(set(columns or ()) - set(SCHEMA.names))
        if unknown:
            raise UsageError(f"column (={unknown[0]!r}) must be one of {', '.join(SCHEMA.names)}")
        rows = self._trials_of(study).rows(columns)
        if columns is not None:
            rows = rows.select(list(dict.fromkeys([*columns, "repeat_of", "status"])))
        rows = rows.filter(pc.and_not(pc.is_null(rows.column("repeat_of")), _is_sketch(rows)))
        return rows if columns is None else rows.select(columns)

    def repeats(self, study: str) -> pa.Table:
        """Return one row for each trial that repeats another one (column `repeat_of`) with a new seed."""
        self.study(study)
        rows = self._trials_of(study).rows()
        return rows.filter(pc.is_valid(rows.column("repeat_of")))

    def sketches(self, study: str) -> pa.Table:
        """Return one row for each config that was calibrated and measured, and never trained, by number."""
        self.study(study)
        rows = self._trials_of(study).rows()
        return rows.filter(_is_sketch(rows))

    def front(self, study: str) -> pa.Table:
        """Return the front of a study's trials as they are now, computed from all files: whole rows, smallest first."""
        return self._trials_of(study).front(self.objectives(study))

    def write_front(self, study: str, members: pa.Table | None = None) -> pa.Table:
        """Write the front as Parquet beside the trials, and return it.

        `members` spares a running search the scan of all trials at each new one: the front of the last members and the
        new row (`results.pareto.front.front`), which is exact since dominance is transitive, unless a trial is retried.
        """
        check_name(study)
        members = self.front(study) if members is None else members
        self._trials_of(study).write_front(members)
        return members

    def put_model(self, model: str | os.PathLike[str] | bytes) -> str:
        """Store a packed model (a path or its bytes) under its SHA-256, unless it is there; return the SHA-256."""
        data = model if isinstance(model, bytes) else _read_file(Path(model))
        digest = hashlib.sha256(data).hexdigest()
        if not self.store.exists(_model(digest)):
            self.store.write_bytes(_model(digest), data)
        return digest

    def adopt_model(self, name: str, sha256: str) -> None:
        """Move the packed model at `name` in the store to its content address; do nothing if that is there already."""
        if not self.has_model(sha256):
            self.store.move(name, _model(sha256))

    def has_model(self, sha256: str) -> bool:
        """Return whether the packed model is stored; rows have the SHA-256 of models that are not, too."""
        return self.store.exists(_model(sha256))

    def models(self) -> frozenset[str]:
        """Return the SHA-256 of all packed models in the store, of any study."""
        return frozenset(Path(name).stem for name in self.store.list("models", ".safetensors"))

    def model_path(self, sha256: str) -> Path:
        """Return a local file that holds the model: the file of a local store, a checked copy of a remote store's."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise UsageError(f"model (={sha256!r}) must be the 64 hexadecimal digits of its SHA-256")
        if self.store.local_root is None:
            return cached_file(self.store, _model(sha256), sha256)
        if not self.store.exists(_model(sha256)):
            raise OvertoneError(f"cannot read {self.store.path_of(_model(sha256))!r}: it does not exist")
        return self.store.local_root / _model(sha256)

    def write_progress(self, study: str, progress: Mapping[str, Any]) -> None:
        """Replace the reported progress of the running search, plain JSON; a power cut may lose it."""
        check_name(study)
        self._write_json(_progress(study), dict(progress), durable=False)

    def read_progress(self, study: str) -> dict[str, Any] | None:
        """Return the progress that was reported last, None if no search has run or its report was lost."""
        check_name(study)
        if not self.store.exists(_progress(study)) or not self.store.read_bytes(_progress(study)):
            return None
        return self._read_json(_progress(study))

    def _trials_of(self, study: str) -> StudyTrials:
        return self._trials.setdefault(study, StudyTrials(self.store, study))

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.store.path_of(name)
        with translate_errors(f"{path!r} is not readable JSON", ValueError):
            value = json.loads(self.store.read_bytes(name))
        if not isinstance(value, dict):
            raise OvertoneError(f"{path!r} holds {type(value).__name__} where an object belongs")
        return value

    def _write_json(self, name: str, value: dict[str, Any], *, durable: bool = True) -> dict[str, Any]:
        with translate_errors(
            f"cannot write {self.store.path_of(name)!r}: it must be plain JSON", TypeError, ValueError
        ):
            text = json.dumps(value, indent=2 if durable else None, allow_nan=False)
        self.store.write_bytes(name, text.encode(), durable=durable)
        return value

    def _alternatives(self, name: str) -> str:
        studies = self.studies()
        if not studies:
            return "it holds no study"
        close = difflib.get_close_matches(name, studies, n=3, cutoff=0.4)
        return f"the closest are {', '.join(close)}" if close else f"it holds {', '.join(studies[:5])}"


def _is_sketch(rows: pa.Table) -> pa.ChunkedArray:
    return pc.equal(rows.column("status"), TrialStatus.SKETCH.value).fill_null(False)


def _read_file(path: Path) -> bytes:
    return Store(path.parent, check=False).read_bytes(path.name)


def _check_score_name(name: object) -> None:
    taken = set(SCHEMA.names) - {SCORE.name}
    if not isinstance(name, str) or not _SCORE_NAME.fullmatch(name) or name in taken:
        raise UsageError(
            f"score_name (={name!r}) must be lower-case letters, digits and '_', and no other column of the ledger"
        )


def _record(study: str) -> str:
    return f"studies/{study}.json"


def _progress(study: str) -> str:
    return f"studies/{study}.progress.json"


def _model(sha256: str) -> str:
    return f"models/{sha256}.safetensors"
