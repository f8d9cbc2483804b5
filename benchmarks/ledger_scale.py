"""The ledger at 10^4 .. 10^7 trials: appends, bytes a trial, fronts, queries, and what others need for the same.

    python benchmarks/ledger_scale.py [--max 10000000] [--scratch DIR] [--out benchmarks]

Writes `ledger_scale.parquet` (one row a measurement) and `ledger_scale.md`. Trials are synthetic: accuracy saturates
with size, noise on top, 8 blocks and 5 epochs each; generated as Arrow columns and appended as segments. Above
`--blocks-up-to` trials (10^6) the lists `blocks` and `history` are left empty, and the row says so. Every measurement
runs in a fresh process, so that its peak memory is its own. `cold` is a new process that opens the files for the
first time; the operating system's page cache is dropped before it where `posix_fadvise` can do that.

paretoset is not a dependency: `pip install paretoset` for its row; without it the row says so.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.objectives import parse_objectives
from results.pareto.front import front as pareto_front
from results.schema import SCHEMA, TrialRow, TrialStatus, to_table

_RECORD = {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes", "flops"]}
_OBJECTIVES = parse_objectives(_RECORD["objectives"], score_name="val_top1")
_NAMES = [objective.column for objective in _OBJECTIVES]
_BATCH = 250_000
_LEAST = 10**4
_START = datetime(2025, 1, 1, tzinfo=UTC)
_WHERE = "status = 'finished' and size_bytes < 20000 and flops < 5000000"
_WRITERS, _SINGLES = 8, 250
_BLOCK = {"basis": "cosine", "harmonics_y": 3, "harmonics_x": 2, "pruning_rate": 0.5, "groups": 2}


def main() -> None:
    arguments = _arguments()
    sizes = [size for size in (_LEAST, 10**5, 10**6, 10**7) if size <= arguments.max]
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for n, found in _everything(Path(folder), sizes, arguments):
            measured.append({"n": n, **found})
            print(json.dumps(measured[-1]), flush=True)
            _write(measured, arguments.out)


def _everything(folder: Path, sizes: list[int], arguments: argparse.Namespace) -> Iterator[tuple[int, dict[str, Any]]]:
    """Size by size; Optuna last, because it takes the longest by far."""
    for n in sizes:
        for found in _measured(folder, n, arguments):
            yield n, found
        if n != arguments.optuna:
            shutil.rmtree(folder / f"n{n}")
    if arguments.optuna in sizes:
        yield arguments.optuna, _alone(_optuna, str(folder / f"n{arguments.optuna}"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max", type=int, default=10**7, help="the largest number of trials")
    parser.add_argument("--blocks-up-to", type=int, default=10**6, help="above, no blocks and histories are written")
    parser.add_argument("--optuna", type=int, default=10**4, help="the number of trials given to Optuna; 0 for none")
    parser.add_argument("--scratch", default=None, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the results go")
    arguments = parser.parse_args()
    if arguments.max < _LEAST:
        parser.error(f"--max (={arguments.max}) must be at least {_LEAST}.")
    return arguments


def _measured(folder: Path, n: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All measurements at one size, each in a process of its own."""
    uri = str(folder / f"n{n}")
    lists = n <= arguments.blocks_up_to
    Ledger(Store(uri)).create_study("s", _RECORD)
    yield _alone(_fill, uri, n, lists)
    if n == 10**4:
        yield _alone(_append_singles, uri)
        yield _alone(_compact, uri)
        yield _alone(_disk_alone, uri)
    yield _alone(_front_cold, uri)
    yield _alone(_one_more_trial, uri, n)
    yield _alone(_query, uri)
    yield _alone(_frame_front, uri, "pandas + moocore")
    if n <= 10**6:
        yield _alone(_frame_front, uri, "pandas + paretoset")


def _alone(measure: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_with_memory, measure, given).result()


def _with_memory(measure: Callable[..., dict[str, Any]], given: tuple[Any, ...]) -> dict[str, Any]:
    """Return the measurement, this process's peak memory with the imports' part, and the machine's load average."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = measure(*given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, "peak_mib": peak / 1024, "import_mib": before / 1024, "load": os.getloadavg()[0]}


def synthetic(first: int, count: int, rng: np.random.Generator, *, lists: bool) -> pa.Table:
    """Rows of the ledger's schema by columns: 3 % failed, the rest on a noisy curve of accuracy against size."""
    size = np.exp(rng.uniform(np.log(4e3), np.log(1e6), count)).round()
    flops = np.exp(np.log(size) + rng.normal(5.0, 0.6, count)).round()
    top1 = 0.93 - 0.6 * np.exp(-0.7 * np.log(size / 2e3)) - np.abs(rng.normal(0, 0.06, count))
    failed = rng.random(count) < 0.03
    number = np.arange(first, first + count)
    ended = np.datetime64(_START.replace(tzinfo=None), "us") + number * np.timedelta64(2_000_000, "us")
    digest = np.array([f"{value:016x}" for value in rng.integers(0, 2**63, count)], dtype=object)
    values: dict[str, Any] = {
        "ledger_version": np.ones(count, dtype=np.int64),
        "trial": [f"{value:010x}" for value in number * 2_654_435_761 % 2**40],
        "number": number,
        "status": np.where(failed, "failed", "finished"),
        "error": pa.array(np.where(failed, "CUDA out of memory", ""), mask=~failed),
        "seed": np.zeros(count, dtype=np.int64),
        "epochs": np.full(count, 5),
        "epochs_run": np.where(failed, 1, 5),
        "score": pa.array((np.clip(top1, 0.1, 1) * 5000).round() / 5000, mask=failed),
        "metrics": _metrics(count, {"val_loss": 2.5 - 2.4 * top1}),
        "train_loss": pa.array(2.4 - 2.4 * top1, mask=failed),
        "parameters": (size / 1.1).astype(np.int64),
        "size_bytes": size.astype(np.int64),
        "macs": (flops / 2).astype(np.int64),
        "flops": flops.astype(np.int64),
        "config_digest": digest,
        "spec_digest": digest,
        "started_at": ended,
        "finished_at": ended + np.timedelta64(90_000_000, "us"),
        "total_s": np.round(rng.uniform(60, 120, count), 3),
    }
    same = {"study": "s", "model": "resnet20", "dataset": "cifar10", "init": "least-squares", "device": "NVIDIA H100"}
    same |= {
        "score_name": "val_top1",
        "host": "node-17",
        "environment": '{"overtone": "0.1.0", "torch": "2.14.1"}',
        "spec": '{"epochs": 5}',
    }
    values |= {name: pa.repeat(value, count) for name, value in same.items()}
    if lists:
        values |= {"blocks": _blocks(count, rng), "history": _histories(count, rng)}
    columns = []
    for field in SCHEMA:
        given = values.get(field.name)
        column = pa.nulls(count, field.type) if given is None else given
        column = column if isinstance(column, pa.Array) else pa.array(column, from_pandas=False)
        columns.append(column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _blocks(count: int, rng: np.random.Generator) -> pa.Array:
    kind = SCHEMA.field("blocks").type.value_type
    values = {"block": np.tile([f"layer{i}" for i in range(8)], count), "bits": rng.integers(4, 9, 8 * count)}
    columns = [pa.array(values[f.name]) if f.name in values else pa.repeat(_BLOCK.get(f.name), 8 * count) for f in kind]
    entries = pa.StructArray.from_arrays(
        [c.cast(f.type) for c, f in zip(columns, kind, strict=True)], fields=list(kind)
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 8 * count + 1, 8, dtype=np.int32)), entries)


def _metrics(count: int, values: Mapping[str, np.ndarray]) -> pa.Array:
    keys = pa.array(list(values) * count)
    items = pa.array(np.stack(list(values.values()), 1).ravel())
    offsets = pa.array(np.arange(0, len(values) * count + 1, len(values), dtype=np.int32))
    return pa.MapArray.from_arrays(offsets, keys, items)


def _histories(count: int, rng: np.random.Generator) -> pa.Array:
    kind = SCHEMA.field("history").type.value_type
    numbers = {"epoch": pa.array(np.tile(np.arange(5), count))}
    numbers["metrics"] = _metrics(5 * count, {"val_loss": rng.random(5 * count).round(4)})
    columns = [numbers.get(field.name, pa.array(rng.random(5 * count).round(4))) for field in kind]
    entries = pa.StructArray.from_arrays(columns, fields=list(kind))
    return pa.ListArray.from_arrays(pa.array(np.arange(0, 5 * count + 1, 5, dtype=np.int32)), entries)


def _fill(uri: str, n: int, lists: bool) -> dict[str, Any]:
    """Batches straight into segments; the time is that of the appends alone."""
    ledger, rng, spent = Ledger(Store(uri)), np.random.default_rng(0), 0.0
    for first in range(0, n, _BATCH):
        table = synthetic(first, min(_BATCH, n - first), rng, lists=lists)
        with _timed() as took:
            ledger.append_many(table)
        spent += took[0]
    size = _size(uri)
    return {"what": "batched append", "lists": lists, "rows_s": n / spent, "seconds": spent, "bytes_a_trial": size / n}


def _append_singles(uri: str) -> dict[str, Any]:
    """Eight processes, a durable file a trial; counted again afterwards."""
    Ledger(Store(uri)).create_study("singles", _RECORD)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_WRITERS, mp_context=context) as pool, context.Manager() as manager:
        barrier = manager.Barrier(_WRITERS)
        spans = list(pool.map(_writer, [uri] * _WRITERS, range(_WRITERS), [barrier] * _WRITERS))
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    files = len(Store(uri).list("trials/study=singles"))
    with _timed() as reading:
        kept = Ledger(Store(uri)).trials("singles").num_rows
    wanted = _WRITERS * _SINGLES
    return {
        "what": "single appends, 8 processes",
        "rows_s": wanted / seconds,
        "seconds": seconds,
        "lost": wanted - kept,
        "files": files,
        "bytes_a_trial": _size(uri, "singles") / files,
        "cold_read_s": reading[0],
    }


def _writer(uri: str, index: int, barrier: Any) -> tuple[float, float]:
    ledger = Ledger(Store(uri))
    table = synthetic(index * _SINGLES, _SINGLES, np.random.default_rng(index), lists=True)
    rows = [TrialRow.from_record({**record, "study": "singles"}) for record in table.to_pylist()]
    barrier.wait()
    start = time.monotonic()
    for row in rows:
        ledger.append(row)
    return start, time.monotonic()


def _compact(uri: str) -> dict[str, Any]:
    with _timed() as took:
        done = Ledger(Store(uri)).compact("singles")
    kept = Ledger(Store(uri)).trials("singles").num_rows
    size = _size(uri, "singles")
    shutil.rmtree(Path(uri) / "trials/study=singles")
    return {
        "what": "compaction of the single appends",
        "rows_s": done.rows_written / took[0],
        "seconds": took[0],
        "files": done.files_after,
        "lost": done.files_before - kept,
        "bytes_a_trial": size / kept,
    }


def _disk_alone(uri: str) -> dict[str, Any]:
    """Measure what the disk allows: 8 KiB written, synced, renamed, the folder synced, by eight threads; no Parquet."""
    store, data = Store(f"{uri}/disk"), os.urandom(8192)
    with _timed() as took, ThreadPoolExecutor(_WRITERS) as pool:
        list(pool.map(lambda index: store.write_bytes(f"f/{index}", data), range(2_000)))
    return {"what": "durable 8 KiB files, no Parquet, 8 threads", "rows_s": 2_000 / took[0], "seconds": took[0]}


def _front_cold(uri: str) -> dict[str, Any]:
    """All files, no stored front: first with the page cache dropped, then again by a new ledger."""
    dropped = _drop_cache(uri)
    with _timed() as cold:
        front = Ledger(Store(uri)).front("s")
    with _timed() as warm:
        Ledger(Store(uri)).front("s")
    return {
        "what": "front of all trials",
        "seconds": cold[0],
        "warm_s": warm[0],
        "members": front.num_rows,
        "cache_dropped": dropped,
    }


def _one_more_trial(uri: str, n: int) -> dict[str, Any]:
    """Measure a further trial in a search's driver, which holds the front in memory: row appended, front written.

    The median of 20; each trial enters the front.
    """
    ledger = Ledger(Store(uri))
    members, seconds = ledger.front("s"), []
    for extra in range(20):
        row = _small_trial(n + extra, size=4_000 - extra)
        with _timed() as took:
            ledger.append(row)
            members = pareto_front(pa.concat_tables([members, to_table([row])]), _OBJECTIVES)
            ledger.write_front("s", members)
        seconds.append(took[0])
    with _timed() as new:
        computed = Ledger(Store(uri)).front("s")
    if not computed.equals(members):
        raise RuntimeError(f"the front of {n} trials and 20 more is not the one that the driver holds")
    return {"what": "a trial more, in the driver", "seconds": float(np.median(seconds)), "new_process_s": new[0]}


def _small_trial(number: int, *, size: int) -> TrialRow:
    """Return a trial that is smaller than all others, so that it enters the front."""
    ended = _START + timedelta(days=10_000, seconds=number)
    return TrialRow(
        study="s", trial=f"more{number}", number=number, status=TrialStatus.FINISHED, model="resnet20",
        dataset="cifar10", init="least-squares", seed=0, epochs=5, epochs_run=5, config_digest="c",
        spec_digest=f"s{number}", spec="{}", started_at=ended, finished_at=ended, score=0.5, score_name="val_top1",
        parameters=size, size_bytes=size, macs=size, flops=2 * size,
    )  # fmt: skip


def _query(uri: str) -> dict[str, Any]:
    """Ask DuckDB for the ten most accurate within a budget, over the segments."""
    dropped = _drop_cache(uri)
    files = f"{uri}/trials/study=s/*.parquet"
    question = (
        f"select trial, number, score, size_bytes, flops from read_parquet('{files}', union_by_name = true) "
        f"where {_WHERE} order by score desc, size_bytes limit 10"
    )
    with _timed() as cold, duckdb.connect() as connection:
        connection.sql(question).fetchall()
    with _timed() as warm, duckdb.connect() as connection:
        found = connection.sql(question).fetchall()
    return {
        "what": "filtered query, DuckDB",
        "seconds": cold[0],
        "warm_s": warm[0],
        "members": len(found),
        "cache_dropped": dropped,
    }


def _frame_front(uri: str, how: str) -> dict[str, Any]:
    """Pandas reads the same columns of the same files, a library finds the front; same page cache as `warm`."""
    with _timed() as reading:
        frame = pd.read_parquet(f"{uri}/trials/study=s", columns=["trial", "status", *_NAMES], partitioning=None)
        frame = frame[(frame["status"] == TrialStatus.FINISHED.value) & frame["score"].notna()]
    points = frame[_NAMES].astype(float)
    if how.endswith("moocore"):
        import moocore

        signs = [-1.0 if objective.direction == "max" else 1.0 for objective in _OBJECTIVES]
        with _timed() as computing:
            kept = moocore.is_nondominated(points.to_numpy() * signs, keep_weakly=True)
    else:
        try:
            from paretoset import paretoset
        except ModuleNotFoundError:
            return {"what": f"front, {how}", "note": "paretoset is not installed"}
        directions = [objective.direction for objective in _OBJECTIVES]
        paretoset(points.head(2), sense=directions, distinct=False)  # numba compiles it, in each process
        with _timed() as computing:
            kept = paretoset(points, sense=directions, distinct=False)
    spent = reading[0] + computing[0]
    return {"what": f"front, {how}", "warm_s": spent, "read_s": reading[0], "members": int(np.sum(kept))}


def _optuna(uri: str) -> dict[str, Any]:
    """Put the same trials into Optuna's SQLite, values and eight parameters each; load them and their `best_trials`."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = Ledger(Store(uri)).trials("s", ["number", "status", *_NAMES]).to_pylist()
    path = f"sqlite:///{uri}/optuna.db"
    study = optuna.create_study(study_name="s", storage=path, directions=["maximize", "minimize", "minimize"])
    bits: optuna.distributions.BaseDistribution = optuna.distributions.IntDistribution(4, 8)
    kinds = {f"layer{i}.bits": bits for i in range(8)}
    frozen = [
        optuna.trial.create_trial(
            values=[float(row[name]) for name in _NAMES], params=dict.fromkeys(kinds, 6), distributions=kinds
        )
        for row in trials
        if row["status"] == TrialStatus.FINISHED.value
    ]
    with _timed() as writing:
        study.add_trials(frozen)
    with _timed() as loading:
        rows = optuna.load_study(study_name="s", storage=path).get_trials(deepcopy=False)
    with _timed() as computing:
        front = optuna.load_study(study_name="s", storage=path).best_trials
    return {
        "what": "Optuna, SQLite",
        "rows_s": len(frozen) / writing[0],
        "warm_s": computing[0],
        "read_s": loading[0],
        "members": len(front),
        "bytes_a_trial": Path(f"{uri}/optuna.db").stat().st_size / len(rows),
    }


def _size(uri: str, study: str = "s") -> int:
    return sum(path.stat().st_size for path in (Path(uri) / f"trials/study={study}").glob("*.parquet"))


def _drop_cache(uri: str) -> bool:
    """Asks the operating system to forget the files' pages."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()
    for path in Path(uri).rglob("*.parquet"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return True


@contextmanager
def _timed() -> Iterator[list[float]]:
    took = [0.0]
    start = time.perf_counter()
    yield took
    took[0] = time.perf_counter() - start


def _write(measured: list[dict[str, Any]], out: Path) -> None:
    table = pa.Table.from_pylist(measured, schema=pa.schema(_columns(measured)))
    about = {"device": _device(), "versions": _versions(), "measured_at": datetime.now(UTC).isoformat()}
    pq.write_table(table.replace_schema_metadata(about), out / "ledger_scale.parquet")
    (out / "ledger_scale.md").write_text(_page(measured, about))


def _columns(measured: list[dict[str, Any]]) -> dict[str, pa.DataType]:
    names = dict.fromkeys(name for row in measured for name in row)
    kinds = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return {name: kinds[type(next(row[name] for row in measured if name in row))] for name in names}


def _page(measured: list[dict[str, Any]], about: dict[str, str]) -> str:
    names = list(_columns(measured))
    rows = [[_shown(row.get(name)) for name in names] for row in measured]
    lines = [f"| {' | '.join(row)} |" for row in ([n.replace("_", " ") for n in names], ["---"] * len(names), *rows)]
    return "\n".join(["# The ledger at scale", "", *(f"{k}: {v}  " for k, v in about.items()), "", *lines, "", _NOTES])


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if value < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _device() -> str:
    model = next((s.split(":")[1].strip() for s in _lines("/proc/cpuinfo") if s.startswith("model name")), "")
    memory = next((int(s.split()[1]) / 2**20 for s in _lines("/proc/meminfo") if s.startswith("MemTotal")), 0.0)
    return f"{model or platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.platform()}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _versions() -> str:
    found = {"python": sys.version.split()[0]}
    for name in ("pyarrow", "duckdb", "moocore", "pandas", "numpy", "optuna", "paretoset"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return ", ".join(f"{name} {number}" for name, number in found.items())


_NOTES = """
Columns: `seconds` is the time of an append, or of a cold front or query; `warm_s` the same again with the files in the
page cache (for pandas and Optuna the whole: reading and computing); `read_s` the reading in it; `peak_mib` the peak
memory of the process, of which `import_mib` is taken by imports; `load` the machine's one-minute load average after the
measurement: above the number of cores, others were working, and times are longer than they need be.

`lists` false: the trials have no `blocks` and `history`. The front is exact, over score, size_bytes and flops, with
every trial id checked for superseded rows. pandas + moocore and pandas + paretoset read the same columns of the same
files, but take every row to be the only one of its trial, and give row numbers rather than whole rows; they see the 20
trials that "a trial more" added, so that their count of members differs by a few. paretoset is left out above
10^6, and its compilation by numba, 4 s in each process, is not counted. Optuna's SQLite holds three values and eight
parameters a trial, without histories, and only at 10^4.

## 10^10 trials

Not measured; arithmetic from the rows above. At 90 to 140 bytes a trial, 10^10 trials are 0.9 to 1.4 TB in 40,000
segments of 250,000 rows. Nobody runs them as one study: at 10^5 studies of 10^5 trials, `study=NAME` prunes a question
about one study to one partition, which is the row n = 10^5 above, whatever lies beside it. A question over all of them
reads the objectives' columns and the trial ids, about 35 bytes a trial, 350 GB. One core takes about 0.5 s for 10^6
trials, 5,000 s for 10^10; spread over Ray Data's `map_batches`, one task a segment, 256 cores need 20 s of
computing and, at 40 GB/s from the store in all, 9 s of reading. Each task gives its segment's front (some 2,000
members), so that 40,000 x 2,000 = 8 x 10^7 points are left: the front of fronts, one further level of 40 tasks of
2 x 10^6 points and a last one of 40 x 5,000. It is exact, because a trial that is dominated in its own segment is
dominated in the whole. Where trials were not retried the first row group of each segment, which holds the segment's own
front, is all that has to be read: 40,000 x 2,000 rows, 3 GB.
"""


if __name__ == "__main__":
    main()
