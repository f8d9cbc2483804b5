import json
import math
import os

import pandas as pd
import pytest

from layers.errors import OvertoneError, UsageError
from results.analysis.confidence import CONFIDENCE_SCHEMA
from results.pareto.front import front
from results.queries.query import pick, picks, query, sql
from results.queries.tables import TABLES
from results.schema import SCHEMA, TrialStatus, to_records
from tests.results.conftest import UNCOMPRESSED

OWN_NAMES = ["val_top1", "init_top1", "val_top5", "val_loss"]
"""Columns beside the stored ones, of the fixture's study."""


@pytest.fixture
def rows(full_ledger):
    return to_records(full_ledger.trials("demo"))


def test_query_gives_all_columns_by_number(full_ledger):
    frame = query(full_ledger, "demo")
    assert list(frame.columns) == [*SCHEMA.names, *OWN_NAMES]
    assert frame["number"].tolist() == list(range(40))


def test_score_and_metrics_have_their_own_names_too(full_ledger, rows):
    """In conditions, for sorting and as columns, in each table."""
    for name in ("score", "val_top1"):
        frame = query(full_ledger, "demo", where=f"{name} > 0.6", sort=name, columns=["trial", name])
        expected = sorted((r for r in rows if (r["score"] or 0) > 0.6), key=lambda r: (-r["score"], r["number"]))
        assert frame["trial"].tolist() == [row["trial"] for row in expected]
        assert frame[name].tolist() == [row["score"] for row in expected]
    fives = [row["metrics"].get("val_top5") for row in rows]
    frame = query(full_ledger, "demo", columns=["val_top5", "metrics", "history"])
    assert [None if math.isnan(value) else value for value in frame["val_top5"]] == fives
    assert frame["metrics"].tolist() == [row["metrics"] for row in rows]
    assert [list(history) for history in frame["history"]] == [row["history"] for row in rows]
    best = query(full_ledger, "demo", sort="val_top5", where="val_top5 is not null")["val_top5"].tolist()
    assert best == sorted((value for value in fives if value is not None), reverse=True)
    both = sql(full_ledger, "demo", "select val_top1 - score as d, val_top1_mean - score_mean as m from front")
    assert (both == 0).all(axis=None)
    baseline = sql(full_ledger, "demo", "select * from baseline").to_dict("records")[0]
    assert {name: baseline[name] for name in UNCOMPRESSED} == UNCOMPRESSED
    assert (baseline["val_top1"], baseline["val_top5"], baseline["val_loss"]) == (0.97, 0.99, 0.1)
    epochs = sql(full_ledger, "demo", "select score, val_top1, val_loss, metrics from epochs")
    expected = [(e["score"], e["score"], e["metrics"]["val_loss"], e["metrics"]) for r in rows for e in r["history"]]
    assert list(epochs.itertuples(index=False, name=None)) == expected


def test_another_task_has_other_names(ledger, make_row):
    """`results` knows none: names come from the study's record and from the rows."""
    uncompressed = {**UNCOMPRESSED, "score": 0.8, "metrics": {"miou": 0.8, "loss": 0.2}}
    record = {"score_name": "miou", "objectives": ["miou", "flops"], "uncompressed": uncompressed}
    ledger.create_study("streets", record)
    assert query(ledger, "streets", sort="miou", columns=["miou", "init_miou", "loss"]).empty
    for number, score in enumerate((0.5, 0.7, 0.6)):
        metrics = {"miou": score, "loss": 1 - score, "dice": score / 2, "Flops": 1.0, "score": 9.0}
        row = {"study": "streets", "score_name": "miou", "score": score, "init_score": 0.1, "metrics": metrics}
        ledger.append(make_row(number=number, flops=10 + number, **row))
    frame = query(ledger, "streets", sort="miou", where="miou > (select miou from baseline) - 0.25")
    assert frame.columns.tolist() == [*SCHEMA.names, "miou", "init_miou", "loss", "dice"]
    assert frame["score"].tolist() == frame["miou"].tolist() == [0.7, 0.6]
    for name in ("dice", "init_miou"):
        assert query(ledger, "streets", sort=name)[name].is_monotonic_decreasing
    assert query(ledger, "streets", sort="loss")["number"].tolist() == [1, 2, 0]
    names = ["miou", "miou_mean", "miou_low", "miou_high", "miou_repeats", "score_mean"]
    assert query(ledger, "streets", front=True, columns=names)["miou_mean"].tolist() == [0.7, 0.5]
    assert pick(ledger, "streets", "best", where="miou < 0.65")["metrics"]["dice"] == 0.3
    assert set(pick(ledger, "streets", "knee")) == set(SCHEMA.names)
    with pytest.raises(UsageError, match=r"column \(='val_top1'\) must be a column of the study; the closest are"):
        query(ledger, "streets", sort="val_top1")


def test_where_sort_and_limit_match_a_plain_loop(full_ledger, rows):
    frame = query(full_ledger, "demo", where="size_bytes < 100000 and val_top1 > 0.4", sort="val_top1", limit=5)
    kept = [row for row in rows if row["size_bytes"] < 100_000 and (row["score"] or 0) > 0.4]
    kept.sort(key=lambda row: (-row["score"], row["number"]))
    assert frame["trial"].tolist() == [row["trial"] for row in kept[:5]]


def test_costs_sort_ascending_unless_asked_and_nulls_come_last(full_ledger, rows):
    sizes = sorted(row["size_bytes"] for row in rows)
    assert query(full_ledger, "demo", sort="size_bytes")["size_bytes"].tolist() == sizes
    assert query(full_ledger, "demo", sort="size_bytes", descending=True)["size_bytes"].tolist() == sizes[::-1]
    for descending in (True, False):
        found = query(full_ledger, "demo", sort="latency_ms", descending=descending)["latency_ms"]
        assert found.notna().tolist() == sorted(found.notna(), reverse=True)


def test_columns_are_those_named_in_their_order_and_sorting_may_use_others(full_ledger, rows):
    frame = query(full_ledger, "demo", columns=["flops", "trial", "flops"], sort="size_bytes")
    assert frame.columns.tolist() == ["flops", "trial"]
    expected = sorted(rows, key=lambda row: (row["size_bytes"], row["number"]))
    assert frame["trial"].tolist() == [row["trial"] for row in expected]
    with pytest.raises(
        UsageError, match=r"column \(='size'\) must be a column of the study; the closest are size_bytes"
    ):
        query(full_ledger, "demo", columns=["trial", "size"])
    with pytest.raises(UsageError, match=r"column \(='seeds'\) must be a column of the study; the closest are seed"):
        query(full_ledger, "demo", columns=["seeds"])
    with pytest.raises(UsageError, match=r"columns \(=''\) must name one column or more"):
        query(full_ledger, "demo", columns=[])


def test_a_condition_may_ask_for_the_baseline(full_ledger, rows):
    frame = query(full_ledger, "demo", where="val_top1 >= (select val_top1 from baseline) - 0.1")
    near = [row["trial"] for row in rows if (row["score"] or 0) >= UNCOMPRESSED["score"] - 0.1]
    assert frame["trial"].tolist() == near


def test_a_front_says_over_how_many_seeds_it_was_measured(ledger, make_row):
    ledger.append(make_row(number=0, score=0.9))
    ledger.append(make_row(number=1, score=0.95, size_bytes=30_000))
    for seed, value in ((1, 0.92), (2, 0.91)):
        ledger.append(make_row(number=1, trial=f"r{seed}", repeat_of="t000000001", seed=seed, score=value))
    frame = query(ledger, "demo", front=True)
    own = [f"val_top1_{name}" for name in ("mean", "low", "high", "repeats")]
    assert frame.columns.tolist() == [*SCHEMA.names, *OWN_NAMES, *CONFIDENCE_SCHEMA.names[1:], *own]
    assert frame["seeds"].tolist() == [1, 3]
    assert frame["score_mean"].tolist() == pytest.approx([0.9, (0.95 + 0.92 + 0.91) / 3])
    assert frame["score_low"].isna().tolist() == [True, False]
    assert frame["val_top1"].tolist() == [0.9, 0.95]
    found = sql(
        ledger,
        "demo",
        "select f.trial, count(*) n from front f join confirmations c on c.repeat_of = f.trial group by all",
    )
    assert found.to_dict("records") == [{"trial": "t000000001", "n": 2}]
    assert len(query(ledger, "demo")) == 2


def test_picks_are_the_front_or_one_trial(full_ledger):
    fronts = to_records(front(full_ledger.trials("demo"), full_ledger.objectives("demo")))
    assert picks(full_ledger, "demo", "front") == fronts
    assert picks(full_ledger, "demo", "best") == [pick(full_ledger, "demo", "best")]
    with pytest.raises(OvertoneError, match="no finished trial is left to pick from"):
        picks(full_ledger, "demo", "front", where="size_bytes < 0")


def test_front_is_that_of_what_is_left(full_ledger):
    frame = query(full_ledger, "demo", front=True, where="number >= 10")
    table = full_ledger.trials("demo").slice(10)
    assert frame["trial"].tolist() == front(table, full_ledger.objectives("demo")).column("trial").to_pylist()


def test_where_may_look_into_blocks_and_other_rows(full_ledger, rows):
    where = "list_contains(list_transform(blocks, lambda b: b.bits), 8) and number > (select avg(number) from trials)"
    assert len(query(full_ledger, "demo", where=where)) == 20


def test_columns_are_known_in_any_case(full_ledger):
    frame = query(
        full_ledger, "demo", where="Val_Top1 > 0.5 AND NUMBER > 3", sort="SIZE_bytes", columns=["Trial", "FLOPS"]
    )
    assert frame.equals(
        query(full_ledger, "demo", where="val_top1 > 0.5 and number > 3", sort="size_bytes", columns=["trial", "flops"])
    )
    assert sql(full_ledger, "demo", "SELECT TRIAL FROM Trials").columns.tolist() == ["trial"]


def test_a_condition_may_ask_every_table(full_ledger, rows):
    asked = [
        ("trial IN (SELECT trial FROM blocks WHERE bits = 8)", 40),
        ("trial IN (SELECT trial FROM blocks WHERE bits = 7)", 0),
        ("(SELECT max(epoch) FROM epochs e WHERE e.trial = trials.trial) = 1", 40),
        ("trial NOT IN (SELECT repeat_of FROM Confirmations)", 40),
        ("size_bytes <= (SELECT size_bytes FROM baseline)", 40),
        ("trial IN (FROM front SELECT trial)", full_ledger.front("demo").num_rows),
    ]
    for where, count in asked:
        assert len(query(full_ledger, "demo", where=where)) == count, where
    front = full_ledger.front("demo").column("trial").to_pylist()
    assert pick(full_ledger, "demo", "best", where="trial IN (FROM front SELECT trial)")["trial"] in front


def test_an_order_without_a_column_is_refused(full_ledger):
    with pytest.raises(UsageError, match=r"descending \(=True\) must come with sort, the column to sort by"):
        query(full_ledger, "demo", descending=True)


@pytest.mark.parametrize("column", ["val_top", "Val_topp1", "sizebytes"])
def test_unknown_column_names_the_closest(full_ledger, column):
    close = "size_bytes" if column == "sizebytes" else "val_top1"
    for arguments in ({"sort": column}, {"where": f'"{column}_" > 0'}):
        with pytest.raises(UsageError, match=rf"column \(='{column}_?'\) must be .*; the closest are .*{close}"):
            query(full_ledger, "demo", **arguments)
    with pytest.raises(UsageError, match=rf"column \(='{column}_'\) must be .*; the closest are .*{close}"):
        sql(full_ledger, "demo", f"select {column}_ from trials")


@pytest.mark.parametrize(
    "where",
    [
        "",
        "number > 1; drop table trials",
        "number > 1) union select * from trials --",
        "number > 1 limit 1",
        "number > 1 order by number",
        "number, trial",
        "number >",
        "sum(number) > 1",
        "nosuch(number) > 1",
        "exists(select * from read_csv('/etc/passwd'))",
        "exists(select * from '/etc/passwd')",
    ],
)
def test_bad_condition_is_one_sentence(full_ledger, where):
    with pytest.raises(UsageError, match=r"^the condition [^\n]* is refused: [^\n]+$"):
        query(full_ledger, "demo", where=where)


def test_limit_below_zero_is_refused(full_ledger):
    with pytest.raises(UsageError, match=r"limit \(=-1\) must be 0 or more"):
        query(full_ledger, "demo", limit=-1)
    assert len(query(full_ledger, "demo", limit=0)) == 0
    assert len(query(full_ledger, "demo", limit=10**30)) == 40


@pytest.mark.parametrize("column", ["blocks", "METRICS", "history"])
def test_a_column_without_an_order_is_refused(full_ledger, column):
    with pytest.raises(UsageError, match=rf"sort \(='{column.lower()}'\) must be a column of numbers, texts or times"):
        query(full_ledger, "demo", sort=column)


def test_query_of_an_empty_study_is_empty(ledger):
    assert len(query(ledger, "demo", front=True, where="size_bytes < 5", sort="val_top1")) == 0
    assert query(ledger, "demo", columns=["trial"]).columns.tolist() == ["trial"]
    for table in ("trials", "front", "epochs", "blocks", "confirmations"):
        assert len(sql(ledger, "demo", f"select * from {table}")) == 0


def test_sql_sees_the_tables_of_the_study(full_ledger, rows):
    assert sql(full_ledger, "demo", "select count(*) as n from trials")["n"].tolist() == [40]
    assert sql(full_ledger, "demo", "select * from baseline")["flops"].tolist() == [UNCOMPRESSED["flops"]]
    fronts = sql(full_ledger, "demo", "select trial from front")["trial"].tolist()
    assert fronts == full_ledger.front("demo").column("trial").to_pylist()
    epochs = sql(full_ledger, "demo", "select trial, number, epoch, val_top1 from epochs order by number, epoch")
    expected = [(row["trial"], row["number"], e["epoch"], e["score"]) for row in rows for e in row["history"]]
    assert list(epochs.itertuples(index=False, name=None)) == expected
    blocks = sql(full_ledger, "demo", "select block, count(*) n, max(bits) bits from blocks group by all order by 1")
    assert json.loads(blocks.to_json(orient="values")) == [["conv1", 40, None], ["layer1", 40, 8]]


@pytest.mark.parametrize(
    "statement",
    [
        "select 1; select 2",
        "drop table trials",
        "copy trials to '/tmp/overtone-smuggled.csv'",
        "select 1; copy trials to '/tmp/overtone-smuggled.csv'",
        "set threads = 1",
        "attach '/tmp/overtone-smuggled.db'",
        "install httpfs",
        "pragma database_list",
        "create table x as select 1",
        "",
        "-- nothing",
    ],
)
def test_only_one_query_is_taken(full_ledger, statement):
    with pytest.raises(UsageError, match="exactly one SELECT is allowed"):
        sql(full_ledger, "demo", statement)
    assert not os.path.exists("/tmp/overtone-smuggled.csv")


@pytest.mark.parametrize(
    "statement",
    [
        "selec 1",
        "select * from rows",
        "select * from duckdb_tables() as t, nosuch",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/*')",
        "select * from query('copy trials to ''/tmp/overtone-smuggled.csv''')",
        "select nosuch(number) from trials",
        "select * from trials where trial = 1 and number = 'x'",
    ],
)
def test_bad_sql_is_one_sentence(full_ledger, statement):
    rows = pd.DataFrame({"secret": [1]})  # a local name that DuckDB would pick up, were it allowed to
    with pytest.raises(UsageError, match=r"^the SQL [^\n]* is refused: [^\n]+$"):
        sql(full_ledger, "demo", statement)
    assert len(rows) == 1
    assert not os.path.exists("/tmp/overtone-smuggled.csv")


def test_tables_can_be_listed_and_described(full_ledger):
    for statement in ("SHOW TABLES", "show tables;"):
        assert sorted(sql(full_ledger, "demo", statement)["name"]) == sorted(TABLES)
    for name, make in TABLES.items():
        described = sql(full_ledger, "demo", f"DESCRIBE {name}")["column_name"].tolist()
        assert described == make(full_ledger, "demo").column_names
    assert sql(full_ledger, "demo", "DESCRIBE SELECT 1 AS a")["column_name"].tolist() == ["a"]
    for statement in ("FROM baseline", "VALUES (1)", "WITH x AS (FROM trials) FROM x LIMIT 1", "TABLE baseline"):
        assert len(sql(full_ledger, "demo", statement)) == 1
    with pytest.raises(UsageError, match=r"is refused: Binder Error: Can only delete from base table"):
        sql(full_ledger, "demo", "WITH x AS (DELETE FROM trials RETURNING *) FROM x")


def test_texts_of_an_ascii_locale_are_utf_8(full_ledger):
    """Python gives a command's arguments so, under LC_ALL=C."""
    given = "é日".encode().decode("ascii", "surrogateescape")
    assert sql(full_ledger, "demo", f"SELECT '{given}' AS a")["a"].tolist() == ["é日"]
    assert query(full_ledger, "demo", where=f"trial = '{given}'").empty
    for ask in (lambda text: sql(full_ledger, "demo", text), lambda text: query(full_ledger, "demo", where=text)):
        with pytest.raises(UsageError, match=r"the SQL .* is refused: it is not UTF-8"):
            ask("'\udcff'")


def test_an_unknown_table_names_those_there_are(full_ledger):
    with pytest.raises(
        UsageError, match="table 'trial' is none of trials, front, epochs, blocks, confirmations, sketches, baseline"
    ):
        sql(full_ledger, "demo", "select * from trial")


def test_pick_finds_best_knee_and_trial(full_ledger, rows):
    finished = [row for row in rows if row["status"] == "finished"]
    assert pick(full_ledger, "demo", "best")["score"] == max(row["score"] for row in finished)
    assert pick(full_ledger, "demo", "t000000012") == rows[12]
    assert pick(full_ledger, "demo", "t00000001", where="number = 12") == rows[12]
    small = [row for row in finished if row["size_bytes"] < 60_000]
    picked = pick(full_ledger, "demo", "best", where="size_bytes < 60000")
    assert picked["score"] == max(row["score"] for row in small)
    fronts = full_ledger.front("demo").column("trial").to_pylist()
    assert pick(full_ledger, "demo", "knee")["trial"] in fronts


def test_pick_takes_a_whole_id_then_a_number_then_the_start_of_an_id(ledger, make_row):
    ids = {
        0: "950b06fb5c",
        9: "17aa000000",
        17: "9000000000",
        123456: "00123456aa",
        5: "1234567bbb",
        18: "9",
        6: "950b06aaaa",
    }
    for number, trial in ids.items():
        ledger.append(make_row(number=number, trial=trial))
    meant = {
        "9": "9",
        "17": "9000000000",
        "123456": "00123456aa",
        "1234567": "1234567bbb",
        "0": "950b06fb5c",
        "17aa00": "17aa000000",
        "950b06f": "950b06fb5c",
        "9000000000": "9000000000",
        "5": "1234567bbb",
    }
    for which, trial in meant.items():
        assert pick(ledger, "demo", which)["trial"] == trial, which
        assert picks(ledger, "demo", which)[0]["trial"] == trial
    for which, count in [
        ("950b06", "2"),
        ("950b0", "none"),
        ("17aa0", "none"),
        ("1", "none"),
        ("05", "none"),
        ("", "none"),
    ]:
        with pytest.raises(UsageError, match=rf"^pick \(='{which}'\) must be .*; it names {count} of the trials$"):
            pick(ledger, "demo", which)
    with pytest.raises(
        UsageError, match=r"such as 950b06fb5c, 950b06aaaa, its first 6 characters or more where no other"
    ):
        pick(ledger, "demo", "950b06")
    ledger.append(make_row(number=17, trial="twin"))
    with pytest.raises(UsageError, match=r"such as 9000000000, twin, .*; it names 2 of the trials"):
        pick(ledger, "demo", "17")


def test_pick_of_no_trial_says_what_is_allowed(full_ledger):
    with pytest.raises(
        UsageError,
        match=r"pick \(='finest'\) must be best, knee or an id such as .*; it names none of the trials",
    ):
        pick(full_ledger, "demo", "finest")
    with pytest.raises(UsageError, match=r"pick \(='t00000000'\) must be .*; it names 10 of the trials"):
        pick(full_ledger, "demo", "t00000000")
    with pytest.raises(OvertoneError, match="no finished trial is left to pick from"):
        pick(full_ledger, "demo", "best", where="size_bytes < 0")


def test_sketches_are_there_if_they_are_asked_for(ledger, random_rows, make_row):
    """In subqueries they are in their own table alone, and no number means one."""
    for row in random_rows(12):
        ledger.append(row)
    sketched = {"status": TrialStatus.SKETCH, "score": None, "history": (), "epochs_run": 0, "init_score": 0.25}
    for number in (3, 77):
        ledger.append(make_row(number=number, trial=f"sketch{number}", size_bytes=7, **sketched))
    trials = query(ledger, "demo")["trial"].tolist()
    assert len(trials) == 12
    every = query(ledger, "demo", sketches=True)
    assert every["trial"].tolist() == [*trials, "sketch3", "sketch77"]
    where = "trials.size_bytes = 7 and (select count(*) from trials) = 12 and (select count(*) from sketches) = 2"
    found = query(ledger, "demo", sketches=True, where=where, columns=["trial", "val_top1", "init_top1"])
    assert found["trial"].tolist() == ["sketch3", "sketch77"]
    assert found["val_top1"].isna().all()
    assert found["init_top1"].tolist() == [0.25, 0.25]
    assert query(ledger, "demo", where="size_bytes = 7").empty
    assert pick(ledger, "demo", "3")["trial"] == "t000000003"
    assert pick(ledger, "demo", "sketch77")["status"] == "sketch"
    with pytest.raises(UsageError, match=r"pick \(='77'\) must be best, knee or an id"):
        pick(ledger, "demo", "77")
    with pytest.raises(UsageError, match=r"pick \(='sketch'\) .*it names 2 of the trials"):
        pick(ledger, "demo", "sketch")
    with pytest.raises(OvertoneError, match="no finished trial is left to pick from"):
        pick(ledger, "demo", "best", where="size_bytes = 7")
    with pytest.raises(UsageError, match=r"sketches \(=True\) must be left out with front: they were never trained"):
        query(ledger, "demo", sketches=True, front=True)
