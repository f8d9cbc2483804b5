"""Several Ray nodes on this machine: a search from the command line uses them all, those that join, and loses none."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from ray.cluster_utils import Cluster

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.schema import TrialStatus
from spaces import build_model, save_weights

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(300)]

_NOTICED_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
"""A node that died is noticed in 3 seconds instead of 15."""

_LONGER_THAN_A_START = 60
"""Epochs of a trial that outlasts the start of a worker: Ray Tune gives trials to whichever worker is free first."""


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Ray head, out of reach of any other Ray on this machine, that runs no trials: nodes are added by the test.

    Where the parameter says so it takes jobs and runs their trials: made-up nodes share one folder for what jobs ship.
    """
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # paths of Ray's sockets must be short
        monkeypatch.setenv("RAY_TMPDIR", folder)
        takes_jobs = getattr(request, "param", False)
        head = {"num_cpus": 2 * takes_jobs, "include_dashboard": takes_jobs, "dashboard_agent_listen_port": 0}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": _NOTICED_SOON})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket over the real S3 protocol on this machine, found as on a cluster: by variables of the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "user", "SECRET_ACCESS_KEY": "secret"}
    for name, value in {**given, "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        pafs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")[0].create_dir("bucket")
        yield "s3://bucket/prefix?region=us-east-1"
    finally:
        server.stop()


def _overtone(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "search", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _search(
    cluster: Cluster, weights: Path, store: object, *, trials: int, epochs: int = 2, gpus: float = 0
) -> subprocess.Popen[str]:
    study = ["--model", "resnet8", "--weights", weights, "--study", "s", "--store", store, "--trials", trials]
    short = ["--train-limit", 400, "--epochs", epochs, "--gpus-per-trial", gpus]
    return _overtone("search", *study, *short, "--address", cluster.address)


def _finish(process: subprocess.Popen[str]) -> str:
    """What a command that must succeed says, its progress included."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out + err


def _wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"The search ended with {process.poll()} too early: {process.communicate()[1]}")
        time.sleep(0.1)


def _rows(ledger: Ledger) -> int:
    return ledger.trials("s").num_rows if ledger.studies() else 0


def _nodes_of_trials(cluster: Cluster, state: str | None = None) -> list[str]:
    """The node of each actor that Ray knows of, dead ones too, or of those in a state: trials are all the actors."""
    actors = cluster.global_state.actor_table(None, actor_state_name=state).values()
    return [actor["Address"]["NodeID"] for actor in actors]


def _at_once(ledger: Ledger) -> int:
    """Most trials that were running at any moment."""
    rows = ledger.trials("s").to_pylist()
    steps = sorted(step for row in rows for step in ((row["started_at"], 1), (row["finished_at"], -1)))
    return max(itertools.accumulate(change for _, change in steps))


def _check_whole(ledger: Ledger, trials: int) -> None:
    """Every trial is in the ledger once, and none failed."""
    rows = ledger.trials("s").to_pylist()
    assert [row["number"] for row in rows] == list(range(trials))
    assert len({row["config_digest"] for row in rows}) == trials
    assert {row["status"] for row in rows} == {TrialStatus.FINISHED}


def test_trials_run_on_all_nodes(cluster: Cluster, weights: Path, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    said = _finish(_search(cluster, weights, tmp_path, trials=4, epochs=_LONGER_THAN_A_START))
    assert "4 of 4 trials to run, up to 2 at a time" in said
    ledger = Ledger(Store(tmp_path))
    _check_whole(ledger, 4)
    assert _at_once(ledger) == 2
    assert set(_nodes_of_trials(cluster)) == {node.node_id for node in nodes}


def test_half_a_gpu_a_trial_packs_two_on_each_node(cluster: Cluster, weights: Path, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=4, num_gpus=1) for _ in range(2)]
    process = _search(cluster, weights, tmp_path, trials=8, epochs=_LONGER_THAN_A_START, gpus=0.5)
    _wait_until(lambda: len(_nodes_of_trials(cluster, "ALIVE")) == 4, process)
    assert sorted(_nodes_of_trials(cluster, "ALIVE")) == sorted(2 * [node.node_id for node in nodes])
    assert "up to 4 at a time, each on 1 CPU and 0.5 GPU" in _finish(process)
    ledger = Ledger(Store(tmp_path))
    _check_whole(ledger, 8)
    assert _at_once(ledger) == 4


def test_a_node_that_dies_costs_no_trial(cluster: Cluster, weights: Path, tmp_path: Path) -> None:
    _, dying = (cluster.add_node(num_cpus=1) for _ in range(2))
    process = _search(cluster, weights, tmp_path, trials=4, epochs=_LONGER_THAN_A_START)
    ledger = Ledger(Store(tmp_path))
    _wait_until(lambda: ledger.studies() != [] and (ledger.read_progress("s") or {}).get("running") == 2, process)
    died_at = datetime.now(UTC)
    cluster.remove_node(dying, allow_graceful=False)
    assert _rows(ledger) == 0, "both nodes were to be busy with their first trial"
    assert "[4/4]" in (said := _finish(process))
    assert "0 running" in said.rpartition("[4/4]")[2]
    _check_whole(ledger, 4)
    begun_again = [row["number"] for row in ledger.trials("s").to_pylist()[:2] if row["started_at"] > died_at]
    assert len(begun_again) == 1


def test_a_node_that_joins_is_used(cluster: Cluster, weights: Path, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    process = _search(cluster, weights, tmp_path, trials=100, epochs=_LONGER_THAN_A_START)
    ledger = Ledger(Store(tmp_path))
    _wait_until(lambda: _rows(ledger) >= 1, process)
    joined = cluster.add_node(num_cpus=1)
    _wait_until(lambda: joined.node_id in _nodes_of_trials(cluster, "ALIVE") and _at_once(ledger) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    assert "stopped at" in process.communicate(timeout=100)[0]


def test_a_study_lives_in_an_object_store(bucket: str, cluster: Cluster, weights: Path, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2)
    _finish(_search(cluster, weights, bucket, trials=3))
    where = ["--study", "s", "--store", bucket]
    _finish(_overtone("resume", *where, "--more", 2, "--gpus-per-trial", 0, "--address", cluster.address))
    ledger = Ledger(Store(bucket))
    _check_whole(ledger, 5)
    _finish(_overtone("export", *where, "--pick", "best", "--out", tmp_path / "best", "--json"))
    best = max(ledger.trials("s").to_pylist(), key=lambda row: (row["score"], -row["size_bytes"]))
    assert json.loads((tmp_path / "best" / "config.json").read_text())
    assert (tmp_path / "best" / "model.safetensors").stat().st_size >= best["size_bytes"]
    files, prefix = pafs.FileSystem.from_uri(bucket)
    left = files.get_file_info(pafs.FileSelector(f"{prefix}/checkpoints", recursive=True, allow_not_found=True))
    assert [file.path for file in left if file.is_file] == []


_OWN_NETWORK = """
from torch import nn

class Own(nn.Sequential):
    pass

def make(classes, channels):
    convolution = nn.Conv2d(channels, 8, 3, padding=1)
    return Own(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
"""


@pytest.mark.parametrize("cluster", [True], indirect=True)
def test_a_job_brings_a_network_in_its_working_directory(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "own.py").write_text(_OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "job")
    save_weights(build_model("own:make", classes=10, channels=1), tmp_path / "job" / "own.safetensors", {})
    ray = Path(sys.executable).with_name("ray")
    submit = [ray, "job", "submit", "--address", f"http://{cluster.webui_url}", "--working-dir", tmp_path / "job", "--"]
    search = ["search", "--model", "own:make", "--weights", "own.safetensors", "--study", "s", "--store", tmp_path]
    short = ["--trials", "2", "--epochs", "1", "--train-limit", "200", "--address", "auto"]
    command = list(map(str, [*submit, sys.executable, "-m", "search", *search, *short]))
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    _check_whole(Ledger(Store(tmp_path)), 2)
