"""Compaction over the real S3 protocol, against moto's server on this machine."""

from collections.abc import Iterator

import pytest

from results.ledger import Ledger
from results.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    server_module = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        store = Store(f"s3://user:secret@bucket/prefix?{options}")
        store._files._fs.create_dir("bucket")
        yield store
    finally:
        server.stop()


def test_compaction_of_an_object_store_keeps_rows_and_front(store, random_rows):
    writer, reader, rows = Ledger(store), Ledger(store), random_rows(30)
    writer.create_study("demo", {"objectives": ["val_top1", "size_bytes"]})
    for row in rows[:20]:
        writer.append(row)
    before = reader.write_front("demo")
    writer.append_many(rows[20:])
    assert writer.compact("demo").files_after == 1
    assert len(store.list("trials/study=demo", ".parquet")) == 1
    expected = sorted(row.number for row in rows)
    for ledger in (writer, reader, Ledger(store)):
        assert ledger.trials("demo").column("number").to_pylist() == expected
        assert ledger.trials("demo", ["trial", "flops"]).column_names == ["trial", "flops"]
        assert ledger.write_front("demo").equals(writer.front("demo"))
    assert before.num_rows
