import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from layers.errors import OvertoneError, UsageError
from results.ledger.ledger import RECORD_FORMAT, Ledger
from results.ledger.store import Store
from results.schema import SCHEMA, TrialStatus, to_table

OBJECTIVES = {"score_name": "val_top1", "objectives": ["val_top1", "size_bytes"]}


def test_study_comes_back_with_its_record(ledger):
    written = ledger.create_study("second", {**OBJECTIVES, "seed": 3})
    assert ledger.study("second") == written
    assert written["name"] == "second"
    assert written["seed"] == 3
    assert written["format"] == RECORD_FORMAT == 2
    assert ledger.score_name("second") == "val_top1"
    assert ledger.studies() == ["demo", "second"]


def test_missing_study_names_the_closest(ledger):
    with pytest.raises(UsageError, match=r"study 'dmo' does not exist in store '.*runs'; the closest are demo"):
        ledger.study("dmo")
    with pytest.raises(UsageError, match="it holds demo"):
        ledger.trials("zzzzzz")


def test_empty_store_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"'demo' does not exist .*; it holds no study"):
        Ledger(Store(tmp_path / "none")).study("demo")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../x", "a b", "<script>", "x.progress", "é", "a\n"])
def test_unfit_study_names_are_refused(ledger, name):
    with pytest.raises(UsageError, match=r"study name \(=.*\) must be 1 to 128 letters"):
        ledger.create_study(name, OBJECTIVES)


def test_study_is_created_once_and_with_known_objectives(ledger):
    with pytest.raises(UsageError, match="study 'demo' exists already"):
        ledger.create_study("demo", OBJECTIVES)
    with pytest.raises(UsageError, match=r"objective \(='speed'\) must be one of val_top1, size_bytes"):
        ledger.create_study("other", {"score_name": "val_top1", "objectives": ["val_top1", "speed"]})
    assert ledger.studies() == ["demo"]


@pytest.mark.parametrize("name", [None, "", "Top 1", "trial", "size_bytes", "init_score"])
def test_study_names_its_score_like_no_other_column(ledger, name):
    with pytest.raises(UsageError, match=r"score_name \(=.*\) must be lower-case letters"):
        ledger.create_study("other", {"score_name": name, "objectives": ["score", "size_bytes"]})
    with pytest.raises(UsageError, match=r"score_name \(=None\) must be lower-case letters"):
        ledger.create_study("other", {"objectives": ["score", "size_bytes"]})


def test_record_calls_the_score_by_its_own_name(ledger):
    record = ledger.create_study("other", {"score_name": "miou", "objectives": ["size_bytes", "score"]})
    assert record["objectives"] == ["size_bytes", "miou"]
    assert [(o.name, o.column) for o in ledger.objectives("other")] == [("size_bytes", "size_bytes"), ("miou", "score")]


def test_update_changes_what_may_change(ledger):
    before = ledger.study("demo")
    assert ledger.update_study("demo", {"trials": 48}) == {**before, "trials": 48} == ledger.study("demo")
    with pytest.raises(UsageError, match=r"objectives \(=.*\) must stay \['val_top1', .*\] in study 'demo'"):
        ledger.update_study("demo", OBJECTIVES)
    with pytest.raises(UsageError, match=r"score_name \(='miou'\) must stay 'val_top1' in study 'demo'"):
        ledger.update_study("demo", {"score_name": "miou"})


def test_record_must_be_plain_json(ledger):
    with pytest.raises(OvertoneError, match="must be plain JSON"):
        ledger.create_study("other", {**OBJECTIVES, "lr": float("nan")})
    assert ledger.studies() == ["demo"]


def test_damaged_or_newer_record_is_named(ledger):
    ledger.store.write_bytes("studies/torn.json", b'{"objectives": [')
    with pytest.raises(OvertoneError, match=r"torn\.json' is not readable JSON"):
        ledger.study("torn")
    ledger.store.write_bytes("studies/list.json", b"[]")
    with pytest.raises(OvertoneError, match="holds list where an object belongs"):
        ledger.study("list")
    ledger.store.write_bytes("studies/new.json", json.dumps({**OBJECTIVES, "format": 9}).encode())
    with pytest.raises(OvertoneError, match=rf"new\.json' has version 9, newer than {RECORD_FORMAT}: update overtone"):
        ledger.study("new")
    ledger.store.write_bytes("studies/first.json", json.dumps({**OBJECTIVES, "format": 1}).encode())
    with pytest.raises(
        OvertoneError, match=r"first\.json' has version 1, older than 2: bits rounded the layers' inputs too"
    ):
        ledger.study("first")
    ledger.store.write_bytes("studies/old.json", json.dumps({**OBJECTIVES, "schema_version": 4}).encode())
    with pytest.raises(OvertoneError, match=r"old\.json' is from a pre-release of Overtone"):
        ledger.study("old")
    ledger.store.write_bytes("studies/other.json", json.dumps(OBJECTIVES).encode())
    with pytest.raises(OvertoneError, match=r"other\.json' is not a study record of Overtone: its format"):
        ledger.study("other")


def test_trials_of_a_new_study_are_an_empty_table(ledger):
    table = ledger.trials("demo")
    assert table.num_rows == 0
    assert table.schema == SCHEMA
    assert ledger.write_front("demo").num_rows == 0


def test_trials_come_back_by_number_and_only_their_own(ledger, random_rows, make_row):
    rows = random_rows(30)
    for row in rows:
        ledger.append(row)
    ledger.create_study("other", OBJECTIVES)
    ledger.append(make_row(study="other"))
    assert ledger.trials("demo").equals(to_table(sorted(rows, key=lambda row: row.number)))
    assert Ledger(ledger.store).trials("demo").equals(ledger.trials("demo"))


def test_trials_seen_by_a_reader_grow_with_the_writer(ledger, make_row):
    reader = Ledger(ledger.store)
    for number in range(3):
        ledger.append(make_row(number=number))
        assert reader.trials("demo").num_rows == number + 1


def test_repeated_trial_keeps_the_newest_finished_row(ledger, make_row, np_rng):
    row = make_row(number=4, score=0.5)
    newest = replace(row, score=0.7, finished_at=row.finished_at + timedelta(hours=1))
    failed = replace(row, status=TrialStatus.FAILED, error="died", finished_at=row.finished_at + timedelta(hours=2))
    rows = [row, newest, failed, make_row(number=5)]
    for index in np_rng.permutation(len(rows)):
        ledger.append(rows[index])
    assert ledger.trials("demo").equals(to_table([newest, rows[3]]))


def test_many_writers_lose_nothing(ledger, make_row):
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda number: Ledger(ledger.store).append(make_row(number=number)), range(40)))
    assert ledger.trials("demo").column("number").to_pylist() == list(range(40))


def test_foreign_file_is_named(ledger, make_row):
    ledger.append(make_row())
    ledger.store.write_bytes("trials/study=demo/foreign.parquet", b"not parquet")
    with pytest.raises(OvertoneError, match=r"study=demo/foreign\.parquet' is not a readable Parquet file"):
        ledger.trials("demo")


def test_trial_id_must_be_a_file_name(ledger, make_row):
    with pytest.raises(OvertoneError, match=r"trial id \(='\.\./x'\) must be made of letters"):
        ledger.append(make_row(trial="../x"))


def test_append_to_a_store_that_cannot_be_written(tmp_path, make_row):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OvertoneError, match=r"cannot write '.*\.parquet': Not a directory"):
        Ledger(Store(tmp_path / "file" / "runs")).append(make_row())


def test_pandas_and_duckdb_read_the_folder_without_us(full_ledger):
    folder = full_ledger.store.path_of("trials")
    frame = pd.read_parquet(folder)
    rows = duckdb.connect().sql(f"select study, trial from read_parquet('{folder}/*/*.parquet')").fetchall()
    assert len(rows) == len(frame) == 40
    assert {study for study, _ in rows} == set(frame["study"].astype(str)) == {"demo"}


def test_batch_is_one_file_beside_single_rows(ledger, random_rows):
    rows = sorted(random_rows(30), key=lambda row: row.number)
    ledger.append_many(rows[:10])
    ledger.append_many(to_table(rows[10:25]))
    for row in rows[25:]:
        ledger.append(row)
    assert len(ledger.store.list("trials/study=demo")) == 7
    for reader in (ledger, Ledger(ledger.store)):
        assert reader.trials("demo").equals(to_table(rows))


def test_batch_that_is_not_of_one_study_is_refused_whole(ledger, make_row):
    with pytest.raises(OvertoneError, match="rows must be of one study, not of demo, other"):
        ledger.append_many([make_row(), make_row(study="other")])
    with pytest.raises(OvertoneError, match="rows must be of one study, not of none"):
        ledger.append_many([])
    with pytest.raises(OvertoneError, match="the ledger's schema; seed differs"):
        ledger.append_many(to_table([make_row()]).drop_columns(["seed"]))
    with pytest.raises(OvertoneError, match=r"trial id \(='a b'\) must be made of letters"):
        ledger.append_many([make_row(), make_row(trial="a b")])
    with pytest.raises(UsageError, match="study 'gone' does not exist"):
        ledger.append_many([make_row(study="gone")])
    assert ledger.store.list("trials/study=demo") == []


@pytest.mark.parametrize("batch", [True, False])
def test_some_columns_are_those_of_all(ledger, random_rows, batch):
    rows = random_rows(20)
    if batch:
        ledger.append_many(rows)
    for row in rows[: 5 if batch else 20]:
        ledger.append(row)
    whole, columns = Ledger(ledger.store).trials("demo"), ["flops", "trial", "study"]
    assert ledger.trials("demo", columns).equals(whole.select(columns))
    with pytest.raises(UsageError, match=r"column \(='speed'\) must be one of ledger_version, study"):
        ledger.trials("demo", ["speed"])


def test_front_is_kept_beside_the_trials(full_ledger):
    front = full_ledger.write_front("demo")
    assert front.num_rows > 0
    assert front.equals(full_ledger.front("demo"))
    kept = pq.read_table(full_ledger.store.path_of("fronts/study=demo/front.parquet"), partitioning=None)
    assert kept.column("trial").to_pylist() == front.column("trial").to_pylist()


def test_members_that_a_search_has_are_written_as_they_are(ledger, make_row, monkeypatch):
    """Nothing is listed or read for them, and nothing is written where they have not changed."""
    members = to_table([make_row(number=3)])
    monkeypatch.setattr(ledger.store, "list", None)
    monkeypatch.setattr(ledger.store, "read_bytes", None)
    assert ledger.write_front("demo", members) is members
    path = Path(ledger.store.path_of("fronts/study=demo/front.parquet"))
    assert pq.read_table(path, partitioning=None).column("number").to_pylist() == [3]
    path.unlink()
    ledger.write_front("demo", to_table([make_row(number=3)]))
    assert not path.exists()
    ledger.write_front("demo", to_table([make_row(number=4)]))
    assert path.exists()


def test_models_are_kept_once_by_content(ledger, tmp_path, np_rng):
    data = np_rng.bytes(1000)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert not ledger.has_model(hashlib.sha256(data).hexdigest())
    digest = ledger.put_model(tmp_path / "model.safetensors")
    assert ledger.has_model(digest)
    assert ledger.models() == {digest}
    assert digest == hashlib.sha256(data).hexdigest() == ledger.put_model(data)
    assert ledger.model_path(digest).read_bytes() == data
    assert len(ledger.store.list("models")) == 1


def test_models_of_a_remote_store_are_checked_copies(tmp_path, monkeypatch, np_rng):
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    ledger, data = Ledger(Store("mock:///bucket")), np_rng.bytes(1000)
    digest = ledger.put_model(data)
    path = ledger.model_path(digest)
    assert path == tmp_path / "cache" / "models" / f"{digest}.safetensors"
    assert path.read_bytes() == data
    path.write_bytes(b"tampered")
    assert ledger.model_path(digest).read_bytes() == data
    ledger.store.write_bytes(f"models/{digest}.safetensors", b"damaged")
    path.unlink()
    with pytest.raises(OvertoneError, match="is damaged: its content does not match its name"):
        ledger.model_path(digest)
    monkeypatch.setenv("OVERTONE_CACHE", str(path.parent.parent / "file"))
    (path.parent.parent / "file").write_text("x")
    with pytest.raises(OvertoneError, match=rf"cannot cache 'mock:///bucket/models/{digest}\.safetensors': Not a"):
        ledger.model_path(digest)


def test_missing_model_is_named(ledger):
    with pytest.raises(OvertoneError, match=r"cannot read '.*models/0{64}\.safetensors': it does not exist"):
        ledger.model_path("0" * 64)
    with pytest.raises(UsageError, match=r"model \(=.*\) must be the 64 hexadecimal digits"):
        ledger.model_path("../../etc/passwd")
    with pytest.raises(OvertoneError, match=r"cannot read '.*/none\.safetensors': it does not exist"):
        ledger.put_model(ledger.store.path_of("none.safetensors"))


def test_a_model_that_a_worker_left_is_taken_once(ledger, np_rng):
    data = np_rng.bytes(100)
    digest = hashlib.sha256(data).hexdigest()
    for name in ("checkpoints/a", "checkpoints/b"):
        ledger.store.write_bytes(name, data)
        ledger.adopt_model(name, digest)
        assert ledger.model_path(digest).read_bytes() == data
    assert not ledger.store.exists("checkpoints/a")
    with pytest.raises(OvertoneError, match=r"^cannot move '.*/checkpoints/a': it does not exist$"):
        ledger.adopt_model("checkpoints/a", "0" * 64)


def test_progress_is_replaced(ledger):
    assert ledger.read_progress("demo") is None
    ledger.write_progress("demo", {"running": 2})
    ledger.write_progress("demo", {"running": 0, "state": "done"})
    assert ledger.read_progress("demo") == {"running": 0, "state": "done"}
    ledger.store.write_bytes("studies/demo.progress.json", b"")  # as a power cut may leave it
    assert ledger.read_progress("demo") is None
    assert ledger.studies() == ["demo"]
