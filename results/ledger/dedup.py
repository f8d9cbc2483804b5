"""Which row counts if a trial was written more than once: retried, run by two workers, or copied by a compaction.

A finished row wins over one that is not, then the newest `finished_at`, then the higher `score`, then the first.
The rule does not depend on which rows are compared together, so winners may be chosen file by file and then among
the files.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from results.schema import TrialStatus

__all__ = ["KEYS", "deduplicate", "deduplicated_indices"]

KEYS = ("trial", "number", "status", "repeat_of", "finished_at", "score")
"""The columns that decide which row of a trial counts, whether it belongs to the search, and its order."""


def deduplicated_indices(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the positions of the rows that count, ascending, in a table that has the columns `KEYS`."""
    codes = _codes(table.column("trial"))
    repeated = np.bincount(codes, minlength=1)[codes] > 1
    if not repeated.any():
        return np.arange(table.num_rows)
    rivals = np.flatnonzero(repeated)
    order = _preferred(table.select(KEYS).take(rivals))
    _, first = np.unique(codes[rivals][order], return_index=True)
    return np.sort(np.concatenate([np.flatnonzero(~repeated), rivals[order[first]]]))


def deduplicate(table: pa.Table) -> pa.Table:
    """Return the rows that count, by number and then trial."""
    indices = deduplicated_indices(table)
    table = table if len(indices) == table.num_rows else table.take(indices)
    numbers = table.column("number").fill_null(-1).to_numpy()
    if (np.diff(numbers) > 0).all():
        return table
    return table.sort_by([("number", "ascending"), ("trial", "ascending")])


def _codes(trials: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return one number for each trial id: shape (rows,)."""
    ids = pa.chunked_array([trials.fill_null("").combine_chunks()])
    encoded = pc.dictionary_encode(ids).combine_chunks()
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _preferred(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return an order of the rows in which each trial's row that counts comes before its others."""
    unfinished = pc.not_equal(table.column("status"), TrialStatus.FINISHED.value).fill_null(True).to_numpy()
    ended = table.column("finished_at").cast(pa.int64()).fill_null(0).to_numpy()
    score = np.nan_to_num(table.column("score").fill_null(-1.0).to_numpy(), nan=-1.0)
    return np.lexsort((-score, -ended, unfinished))
