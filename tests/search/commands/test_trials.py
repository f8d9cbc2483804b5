import io
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from results.ledger.ledger import Ledger
from results.schema import TrialRow
from search.study.plan import StudyPlan

Overtone = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(ledger: Ledger, plan: StudyPlan, run_alone: Callable[[StudyPlan], str], tmp_path: Path) -> tuple[str, ...]:
    """Options of a study with one finished trial."""
    return ("--study", run_alone(plan), "--store", str(tmp_path / "runs"))


def test_the_score_is_known_by_both_names(overtone: Overtone, study: tuple[str, ...]) -> None:
    condition = "val_top1 >= 0 and score = val_top1 and init_top1 = init_score"
    for sort in ("score", "val_top1"):
        columns = "trial,score,val_top1,init_score,init_top1,val_top5"
        given = ("--where", condition, "--sort", sort, "--columns", columns, "--format", "csv")
        code, out, err = overtone("query", *study, *given)
        assert code == 0, err
        frame = pd.read_csv(io.StringIO(out))
        assert frame.columns.tolist() == columns.split(",")
        assert frame["trial"].tolist() == ["abc"]
        assert frame["score"].tolist() == frame["val_top1"].tolist()


def test_an_order_is_the_other_way_round_where_asked(
    overtone: Overtone, ledger: Ledger, study: tuple[str, ...]
) -> None:
    """And columns are known in any case."""
    row = ledger.trials("s").to_pylist()[0]
    for number, score in ((1, 0.25), (2, 0.75), (3, 0.5)):
        ledger.append(TrialRow.from_record({**row, "trial": f"t{number}", "number": number, "score": score}))
    scores = sorted([row["score"], 0.25, 0.5, 0.75])
    for given, expected in ((), scores[::-1]), (("--descending",), scores[::-1]), (("--ascending",), scores):
        asked = ("--sort", "Val_Top1", "--columns", "TRIAL,SCORE", "--format", "csv", *given)
        code, out, err = overtone("query", *study, *asked)
        assert (code, err) == (0, "")
        frame = pd.read_csv(io.StringIO(out))
        assert list(frame) == ["trial", "score"]
        assert frame["score"].tolist() == expected
    assert overtone("query", *study, "--ascending")[0] == 2


def test_tables_show_the_score_under_its_own_name(overtone: Overtone, study: tuple[str, ...]) -> None:
    for given in ((), ("--front",)):
        code, out, _ = overtone("query", *study, *given)
        assert code == 0
        assert "val_top1" in out
        assert "score" not in out


def test_importance_is_json_with_the_score(overtone: Overtone, study: tuple[str, ...]) -> None:
    code, out, _ = overtone("importance", *study, "--json")
    answer = json.loads(out)
    assert (code, answer["trials"]) == (0, 1)
    asked = {"trials", "best", "importance", "blocks", "stages", "effects", "shared", "block_effects"}
    assert answer.keys() == asked


def test_a_report_and_an_export_end_with_what_was_written(
    overtone: Overtone, study: tuple[str, ...], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert overtone("report", *study, "--out", str(page)) == (0, f"{page}\n", "")
    code, out, _ = overtone("export", *study, "--out", str(tmp_path / "exported"), "--json")
    card = json.loads(out)
    code, out, _ = overtone("export", *study, "--pick", "best", "--out", str(tmp_path / "again"))
    assert code == 0
    assert f"val_top1 {card['score']:.4f}, test_top1 {card['test_metrics']['test_top1']:.4f}" in out


def test_compacting_ends_with_what_it_did(overtone: Overtone, study: tuple[str, ...]) -> None:
    code, out, _ = overtone("compact", *study)
    assert (code, out) == (0, "s: 1 files became 1, 0 rows rewritten\n")
    code, out, _ = overtone("compact", *study, "--json")
    assert json.loads(out)["study"] == "s"
