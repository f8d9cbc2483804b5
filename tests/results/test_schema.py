import dataclasses
from datetime import datetime

import pytest

from layers.errors import OvertoneError
from results.schema import LEDGER_VERSION, SCHEMA, TrialRow, TrialStatus, block_records, to_records, to_table
from spaces.config import BlockConfig, NetworkConfig
from spaces.space import KNOBS
from tests.results.conftest import BLOCKS


def test_dataclass_and_schema_have_the_same_columns():
    assert {field.name for field in dataclasses.fields(TrialRow)} == set(SCHEMA.names)


def test_rows_come_back_from_the_table_as_they_went_in(make_row, random_rows):
    rows = [*random_rows(20), make_row(number=99, blocks=(), history=(), latency_ms=1.5)]
    rows = [dataclasses.replace(row, latency_ms=None) if row.latency_ms != row.latency_ms else row for row in rows]
    table = to_table(rows)
    assert table.schema == SCHEMA
    assert [TrialRow.from_record(record) for record in table.to_pylist()] == rows
    assert [TrialRow.from_record(record) for record in to_records(table)] == rows
    assert to_records(table) == [row.to_record() for row in rows]
    assert to_records(table.select(["flops"])) == [{"flops": row.flops} for row in rows]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, -0.1, 1.01])
def test_finished_row_needs_a_true_score(make_row, value):
    with pytest.raises(OvertoneError, match=r"'t000000007' is finished: score \(="):
        make_row(number=7, score=value)


def test_finished_row_says_what_its_score_is(make_row):
    with pytest.raises(OvertoneError, match=r"is finished: score_name \(=None\) must say"):
        make_row(score_name=None)


@pytest.mark.parametrize("name", ["parameters", "size_bytes", "macs", "flops"])
def test_finished_row_needs_its_costs(make_row, name):
    with pytest.raises(OvertoneError, match=rf"{name} \(=None\) must be a count"):
        make_row(**{name: None})


def test_failed_row_needs_an_error_text(make_row):
    with pytest.raises(OvertoneError, match=r"error \(=None\) must say why"):
        make_row(status=TrialStatus.FAILED, score=None)
    assert make_row(status=TrialStatus.FAILED, score=None, error="diverged").to_record()["status"] == "failed"


def test_pruned_row_needs_no_result(make_row):
    row = make_row(status=TrialStatus.PRUNED, score=None, size_bytes=None)
    assert to_table([row]).column("status").to_pylist() == ["pruned"]


def test_other_status_and_naive_time_are_refused(make_row):
    with pytest.raises(OvertoneError, match=r"status \(='running'\) must be one of finished, failed, pruned"):
        make_row(status="running")
    with pytest.raises(OvertoneError, match=r"finished_at .* must carry a time zone"):
        make_row(finished_at=datetime(2025, 1, 1))


def test_nan_is_kept_as_null_in_columns_and_curves(make_row):
    epoch = {"epoch": 0, "train_loss": float("nan"), "metrics": {"val_loss": float("inf")}}
    metrics = {"val_top1": 0.9, "val_loss": float("nan")}
    row = make_row(metrics=metrics, latency_ms=float("inf"), history=[epoch])
    record = to_records(to_table([row]))[0]
    assert record["metrics"] == {"val_top1": 0.9, "val_loss": None}
    assert record["latency_ms"] is None
    assert record["history"][0]["train_loss"] is None
    assert record["history"][0]["metrics"] == {"val_loss": None}
    assert record["history"][0]["lr"] is None


def test_record_without_a_column_is_refused(make_row):
    record = make_row().to_record()
    del record["seed"]
    with pytest.raises(OvertoneError, match="lacks the columns seed"):
        TrialRow.from_record(record)


def test_version_is_two():
    assert LEDGER_VERSION == 2


def test_config_becomes_the_rows_of_the_ledger():
    block = BlockConfig(basis="cosine", harmonics=(2, 3), pruning_rate=0.5, groups=2, transform="scalar", bits=8)
    config = NetworkConfig(blocks={"layer1": block}).to_json()
    assert block_records(config, ["conv1", "layer1"]) == list(BLOCKS)
    assert block_records(config) == [BLOCKS[1]]
    assert [record["block"] for record in block_records(config, ["layer2"])] == ["layer2", "layer1"]
    assert block_records({}) == []
    others = {"exponent_block": 16, "exponent_axis": "channel", "activation_bits": 5, "activation_block": 8}
    others |= {"arithmetic": "int8"}
    config = NetworkConfig(blocks={"layer1": dataclasses.replace(block, **others)}).to_json()
    assert block_records(config) == [{**BLOCKS[1], **others}]


def test_rows_have_every_knob_of_a_config():
    knobs = {field.name for field in dataclasses.fields(BlockConfig)} - {"harmonics"} | {"harmonics_y", "harmonics_x"}
    assert BLOCKS[0].keys() == knobs | {"block"}
    assert knobs == set(KNOBS)
