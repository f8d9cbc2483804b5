"""What a search keeps of its trials, without Ray Tune: rows always, packed models where they are worth it."""

import dataclasses
import hashlib
import json
import random
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from rich.console import Console

from results.ledger.ledger import Ledger
from results.schema import TrialRow, TrialStatus
from search.runner.ledger_callback import StopWhenLost
from search.runner.progress import Progress
from search.runner.study_callback import StudyCallback
from search.runner.trainable import checkpoint_name
from search.study.plan import StudyPlan
from spaces import Network


def _row(number: int, top1: float | None, size: int, flops: int, model_sha256: str) -> TrialRow:
    texts = dict.fromkeys(("model", "dataset", "init", "config_digest", "spec_digest"), "x")
    counts = dict.fromkeys(("seed", "epochs", "epochs_run", "parameters", "macs"), 1)
    times = dict.fromkeys(("started_at", "finished_at"), datetime.now(UTC))
    return TrialRow(
        **{**texts, **counts, **times, "study": "s", "trial": f"t{number}", "spec": "{}"},
        number=number,
        status=TrialStatus.FINISHED,
        val_top1=top1,
        size_bytes=size,
        flops=flops,
        model_sha256=model_sha256,
    )


@pytest.mark.parametrize("keep", ["front", "all"])
def test_a_model_is_kept_where_no_trial_so_far_dominates_it(
    ledger: Ledger, network: Network, console: Console, rng: random.Random, keep: str
) -> None:
    ledger.create_study("s", {"objectives": ["val_top1", "size_bytes", "flops"], "uncompressed": {}})
    callback = StudyCallback(ledger, "s", network, [Progress(console)], wanted=40, keep=keep)
    past: list[tuple[float, int, int]] = []
    wanted = set()
    for number in range(40):
        point, content = (rng.randint(0, 5) / 5, rng.randint(1, 6), rng.randint(1, 6)), f"model {number}".encode()
        row = _row(number, *point, model_sha256=hashlib.sha256(content).hexdigest())
        ledger.store.write_bytes(checkpoint_name("s", row.trial), content)
        beaten = any(t >= point[0] and s <= point[1] and f <= point[2] and (t, s, f) != point for t, s, f in past)
        wanted |= set() if beaten and keep == "front" else {row.model_sha256}
        callback.on_trial_start(0, [], SimpleNamespace(trial_id=str(number), config={"trial": row.trial}))
        callback.keep(row)
        assert callback.lost is None
        assert ledger.has_model(row.model_sha256) == (row.model_sha256 in wanted)
        assert not ledger.store.exists(checkpoint_name("s", row.trial))
        past.append(point)
    assert ledger.models() == wanted
    kept = {row["model_sha256"] for row in ledger.front("s").to_pylist()}
    assert kept <= wanted


def test_a_worker_that_cannot_write_stops_the_search_and_leaves_its_trial_for_later(
    ledger: Ledger, network: Network, console: Console
) -> None:
    ledger.create_study("s", {"objectives": ["val_top1", "size_bytes", "flops"], "uncompressed": {}})
    callback = StudyCallback(ledger, "s", network, [Progress(console)], wanted=2, keep="front")
    trial = SimpleNamespace(trial_id="0", config={"trial": "t0"}, last_result={"status": "lost", "error": "disk full"})
    callback.on_trial_start(0, [], trial)
    callback.on_trial_complete(1, [], trial)
    assert str(callback.lost) == "disk full"
    assert StopWhenLost(callback).stop_all()
    callback.close("interrupted")
    assert ledger.trials("s").num_rows == 0
    assert (ledger.read_progress("s") or {})["unfinished"] == [{"trial": "t0"}]


def test_what_a_study_keeps_is_in_its_record_and_older_ones_have_kept_all(plan: StudyPlan) -> None:
    record = json.loads(json.dumps(plan.to_record()))
    assert record["keep"] == StudyPlan.from_record(record).keep == "front"
    assert StudyPlan.from_record({**record, "keep": "all"}).keep == "all"
    del record["keep"]
    assert StudyPlan.from_record(record) == dataclasses.replace(plan, keep="all")
