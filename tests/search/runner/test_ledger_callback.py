"""Why a worker died, as the row of its trial has it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from layers import OvertoneError
from results.ledger.ledger import Ledger
from results.schema import TrialRow
from search.runner.ledger_callback import LedgerCallback
from search.study.plan import StudyPlan
from search.study.study_ledger import StudyLedger
from spaces import Network, NetworkConfig

ACTOR = """The actor died unexpectedly before finishing this task.
\tclass_name: TrialActor
\tactor_id: 6e86bd3c44e3291e6b81cafa01000000
\tpid: 15075
\tnamespace: f52e3a8d-2a32-4353-9ebb-4450bb40951e
\tip: 192.0.2.2
"""
ABORTED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed "
    "unexpectedly due to SIGSEGV or another unexpected error."
)
ADVICE = " If the process was killed by the kernel OOM killer (verifiable by checking for OOM in dmesg), consider x."
OUT_OF_MEMORY = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 192.0.2.2) was 30.03GB / 31.00GB (0.97), which exceeds the memory usage threshold."
)
TRACEBACK = (
    "The actor died because of an error raised in its creation task, \x1b[36mray::TrialActor.__init__()\x1b[39m\n"
    'Traceback (most recent call last):\n  File "x.py", line 3, in setup\n    raise ValueError("no such device")\n'
    "ValueError: no such device"
)


class _Rows(LedgerCallback):
    def __init__(self, study: StudyLedger, network: Network) -> None:
        super().__init__(study, network, wanted=1, ended={})
        self.rows: list[TrialRow] = []

    def write(self, row: TrialRow) -> None:
        self.rows.append(row)

    def publish(self, row: TrialRow | None) -> None: ...


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (ACTOR + ABORTED + ADVICE, f"the worker died: {ABORTED}"),
        (OUT_OF_MEMORY, "the worker died: " + OUT_OF_MEMORY.replace("\n", " ")),
        (TRACEBACK, "ValueError: no such device"),
        ("", "the worker died"),
        (None, "the worker died"),
    ],
    ids=["aborted", "memory", "raised", "nothing", "no file"],
)
def test_the_row_of_a_dead_worker_says_in_one_line_what_ray_knows(
    ledger: Ledger, plan: StudyPlan, network: Network, tmp_path: Path, said: str | None, error: str
) -> None:
    if said is not None:
        earlier = "Failure # 1 (occurred at 2026-11-30_14-55-07)\nanother reason\n"
        (tmp_path / "error.txt").write_text(f"{earlier}Failure # 2 (occurred at 2026-11-30_14-55-09)\n{said}\n")
    callback = _Rows(StudyLedger(ledger, "s"), network)
    spec = plan.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d")
    config = {"trial": "a", "number": 0, "spec": json.loads(json.dumps(spec.to_json()))}
    callback.on_trial_error(
        0, [], SimpleNamespace(trial_id="0", config=config, last_result={}, error_file=str(tmp_path / "error.txt"))
    )
    assert [row.error for row in callback.rows] == [error]


def test_nothing_is_written_once_another_process_has_the_study(
    ledger: Ledger, plan: StudyPlan, network: Network
) -> None:
    def lost() -> None:
        raise OvertoneError("taken over")

    callback = _Rows(StudyLedger(ledger, "s"), network)
    callback._ensure_held = lost
    spec = plan.spec(NetworkConfig(), weights_sha256="w", data_fingerprint="d")
    config = {"trial": "a", "number": 0, "spec": json.loads(json.dumps(spec.to_json()))}
    report = {"status": "failed", "error": "x"}
    callback.on_trial_complete(0, [], SimpleNamespace(trial_id="0", config=config, last_result=report))
    assert callback.rows == []
    assert str(callback.failure) == "taken over"
