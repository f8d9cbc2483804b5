"""The networks of many trials in little space: each distinct form of a block once, and which trial has which."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from results.formatting import format_block
from results.schema import SCHEMA
from spaces.blocks import stages_of

__all__ = ["encode_configs"]

_KNOBS = tuple(field.name for field in SCHEMA.field("blocks").type.value_type if field.name != "block")


def encode_configs(blocks: pa.ChunkedArray, known: Iterable[str] = (), granularity: str = "stage") -> dict[str, Any]:
    """Return the ledger's column `blocks` as `knobs`, `names`, `stages`, `forms` and `rows`.

    `knobs` are all that a block can have; `names` are all blocks, those `known` first, in network order, and `stages`
    theirs; each of `forms` is a compressed block as `text` and as `knobs` (without those that are null); `rows[b][t]`
    is the index of the form that block `names[b]` has in trial t, -1 for uncompressed.
    """
    lists = blocks.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # an empty column stays chunked in some versions
        lists = pa.concat_arrays([*lists.chunks, pa.array([], type=blocks.type)])
    entries = lists.flatten()
    trials = np.asarray(pc.list_parent_indices(lists))
    frame = pd.DataFrame({name: entries.field(name).to_pandas() for name in ("block", *_KNOBS)})
    form_ids = frame.groupby(list(frame.columns), dropna=False, sort=False).ngroup().to_numpy()
    first_entries = np.unique(form_ids, return_index=True)[1]
    records = entries.take(pa.array(first_entries, type=pa.int64())).to_pylist()
    names = list(dict.fromkeys([*known, *_in_network_order(frame["block"], trials)]))
    block_index = {name: index for index, name in enumerate(names)}
    rows = np.full((len(names), len(lists)), -1)
    rows[frame["block"].map(block_index).to_numpy(dtype=np.int64), trials] = form_ids
    rows[np.isin(rows, [index for index, record in enumerate(records) if not _knobs(record)])] = -1
    forms = [
        {"text": format_block(record).removeprefix(f"{record['block']}: "), "knobs": _knobs(record)}
        for record in records
    ]
    stages = list(stages_of(names, granularity).values())
    return {"knobs": list(_KNOBS), "names": names, "stages": stages, "forms": forms, "rows": rows.tolist()}


def _knobs(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in _KNOBS if record[name] is not None}


def _in_network_order(names: pd.Series, trials: np.ndarray) -> list[str]:
    """Return all block names in the order of the trials that name most: a trial omits blocks that it leaves alone."""
    if names.empty:
        return []
    counts = np.bincount(trials)
    order = np.argsort(-counts[trials], kind="stable")
    return [str(name) for name in names.iloc[order].drop_duplicates()]
