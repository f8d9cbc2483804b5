"""Compaction over the real S3 protocol, against moto's server on this machine."""

import pytest

from results.ledger.ledger import Ledger

pytestmark = pytest.mark.slow


def test_compaction_of_an_object_store_keeps_rows_and_front(s3_store, random_rows):
    writer, reader, rows = Ledger(s3_store), Ledger(s3_store), random_rows(30)
    writer.create_study("demo", {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes"]})
    for row in rows[:20]:
        writer.append(row)
    before = reader.write_front("demo")
    writer.append_many(rows[20:])
    assert writer.compact("demo").files_after == 1
    assert len(s3_store.list("trials/study=demo", ".parquet")) == 1
    expected = sorted(row.number for row in rows)
    for ledger in (writer, reader, Ledger(s3_store)):
        assert ledger.trials("demo").column("number").to_pylist() == expected
        assert ledger.trials("demo", ["trial", "flops"]).column_names == ["trial", "flops"]
        assert ledger.write_front("demo").equals(writer.front("demo"))
    assert before.num_rows
