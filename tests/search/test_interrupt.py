"""A search that is stopped or killed loses nothing that had ended, and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results.ledger import Ledger
from results.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TRIALS = 8


def _start(weights: Path, store: Path) -> subprocess.Popen[str]:
    arguments = ["search", "--model", "resnet8", "--weights", str(weights), "--study", "s", "--store", str(store)]
    arguments += ["--trials", str(TRIALS), "--train-limit", "400", "--gpus-per-trial", "0"]
    return subprocess.Popen(
        [sys.executable, "-m", "search", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for_rows(ledger: Ledger, process: subprocess.Popen[str], rows: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if ledger.studies() and ledger.trials("s").num_rows >= rows:
            return
        time.sleep(0.1)
    pytest.fail(f"The search ended with {process.poll()} before {rows} rows: {process.communicate()[1]}")


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search_goes_on(weights: Path, tmp_path: Path, kind: signal.Signals) -> None:
    ledger = Ledger(Store(tmp_path))
    process = _start(weights, tmp_path)
    _wait_for_rows(ledger, process, 2)
    os.killpg(process.pid, kind)
    out, err = process.communicate(timeout=100)
    before = ledger.trials("s").to_pylist()
    assert 2 <= len(before) < TRIALS
    if kind == signal.SIGINT:
        assert process.returncode == 1
        assert f"stopped at {len(before)} of {TRIALS} trials; go on with: overtone resume --study s" in out
        assert "Traceback" not in err
        assert ledger.read_progress("s")["state"] == "interrupted"

    again = _start(weights, tmp_path)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    after = ledger.trials("s").to_pylist()
    assert [row["number"] for row in after] == sorted({row["number"] for row in after})
    assert len({row["config_digest"] for row in after}) == len(after) == TRIALS
    kept = {row["trial"]: row for row in after}
    assert all(kept[row["trial"]] == row for row in before)
