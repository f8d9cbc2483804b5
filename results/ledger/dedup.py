"""Which row counts where a trial was written more than once: retried, run by two workers, or copied by a compaction.

A finished row wins over one that is not, then the newest `finished_at`, then the higher `val_top1`, then the first.
The rule does not depend on which rows are looked at together, so winners may be chosen file by file and then among
the files.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.schema import TrialStatus

__all__ = ["KEYS", "deduplicate", "deduplicated_indices"]

KEYS = ("trial", "number", "status", "repeat_of", "finished_at", "val_top1")
"""The columns that decide which row of a trial counts, whether it is one of the search, and its place."""


def deduplicated_indices(table: pa.Table) -> npt.NDArray[np.int64]:
    """The positions of the rows that count, ascending, of a table that has the columns `KEYS`."""
    codes = _codes(table.column("trial"))
    repeated = np.bincount(codes, minlength=1)[codes] > 1
    if not repeated.any():
        return np.arange(table.num_rows)
    among = np.flatnonzero(repeated)
    order = _preferred(table.select(KEYS).take(among))
    _, first = np.unique(codes[among][order], return_index=True)
    return np.sort(np.concatenate([np.flatnonzero(~repeated), among[order[first]]]))


def deduplicate(table: pa.Table) -> pa.Table:
    """The rows that count, by number and then trial."""
    kept = deduplicated_indices(table)
    table = table if len(kept) == table.num_rows else table.take(kept)
    numbers = table.column("number").fill_null(-1).to_numpy()
    if (np.diff(numbers) > 0).all():
        return table
    return table.sort_by([("number", "ascending"), ("trial", "ascending")])


def _codes(trials: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The same number for the same trial: shape (rows,)."""
    whole = pa.chunked_array([trials.fill_null("").combine_chunks()])
    encoded = pc.dictionary_encode(whole).combine_chunks()
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _preferred(table: pa.Table) -> npt.NDArray[np.int64]:
    """An order of the rows in which, of each trial, the one that counts comes first."""
    unfinished = pc.not_equal(table.column("status"), TrialStatus.FINISHED.value).fill_null(True).to_numpy()
    ended = table.column("finished_at").cast(pa.int64()).fill_null(0).to_numpy()
    accuracy = np.nan_to_num(table.column("val_top1").fill_null(-1.0).to_numpy(), nan=-1.0)
    return np.lexsort((-accuracy, -ended, unfinished))
