"""The networks of many trials in little room: each different form of a block once, and who has which."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from results.formatting_network import format_block
from results.schema import SCHEMA

__all__ = ["encode_configs"]

_KNOBS = tuple(field.name for field in SCHEMA.field("blocks").type.value_type if field.name != "block")


def encode_configs(blocks: pa.ChunkedArray) -> dict[str, Any]:
    """The ledger's column `blocks` as `names`, `forms`, `rows`.

    `names` are all blocks, in network order; `forms[i]` says what was done to a block, as text and knob by knob
    (without those that are null); `rows[b][t]` is the form of block `names[b]` in trial t, -1 where nothing was done.
    """
    lists = blocks.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # an empty column stays chunked in some versions
        lists = pa.concat_arrays([*lists.chunks, pa.array([], type=blocks.type)])
    flat = lists.flatten()
    owners = np.asarray(pc.list_parent_indices(lists))
    frame = pd.DataFrame({name: flat.field(name).to_pandas() for name in ("block", *_KNOBS)})
    kinds = frame.groupby(list(frame.columns), dropna=False, sort=False).ngroup().to_numpy()
    kept = np.unique(kinds, return_index=True)[1]
    records = flat.take(pa.array(kept, type=pa.int64())).to_pylist()
    names = _in_order(frame["block"], owners)
    rows = np.full((len(names), len(lists)), -1)
    places = {name: place for place, name in enumerate(names)}
    rows[frame["block"].map(places).to_numpy(dtype=np.int64), owners] = kinds
    rows[np.isin(rows, [index for index, record in enumerate(records) if not _knobs(record)])] = -1
    forms = [
        {"text": format_block(record).removeprefix(f"{record['block']}: "), "knobs": _knobs(record)}
        for record in records
    ]
    return {"names": names, "forms": forms, "rows": rows.tolist()}


def _text(record: Mapping[str, Any]) -> str:
    return format_block(record).removeprefix(f"{record['block']}: ")


def _knobs(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in _KNOBS if record[name] is not None}


def _in_order(names: pd.Series, owners: np.ndarray) -> list[str]:
    """All names, as the trials that name most blocks list them: a trial leaves out what it does not compress."""
    if names.empty:
        return []
    counts = np.bincount(owners)
    order = np.argsort(-counts[owners], kind="stable")
    return [str(name) for name in names.iloc[order].drop_duplicates()]
