import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

from layers import OvertoneError, UsageError
from search.runner.cluster import Resources, connected


def _with(monkeypatch: pytest.MonkeyPatch, **have: float) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: have)


def test_trials_take_a_gpu_each_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, CPU=16, GPU=2)
    found = Resources().resolved()
    assert (found.gpus_per_trial, found.concurrency) == (1, 2)


def test_a_quarter_of_a_gpu_packs_four(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, CPU=16, GPU=2)
    assert Resources(gpus_per_trial=0.25).resolved().concurrency == 8
    assert Resources(gpus_per_trial=0.25, concurrency=3).resolved().concurrency == 3


def test_nodes_that_join_a_running_cluster_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, CPU=2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert Resources(concurrency=8).resolved().ceiling == 2
    for running in (Resources(concurrency=8, address="auto"), Resources(address="10.0.0.1:6379")):
        found = running.resolved()
        assert (found.concurrency, found.ceiling) == (2, running.concurrency)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert Resources().resolved().ceiling is None


def test_without_gpus_trials_run_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, CPU=6)
    found = Resources(cpus_per_trial=2).resolved()
    assert (found.gpus_per_trial, found.concurrency) == (0, 3)


def test_a_gpu_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, CPU=6)
    with pytest.raises(UsageError, match=r"gpus_per_trial \(=0.25\) must be 0: the Ray cluster has no GPU"):
        Resources(gpus_per_trial=0.25).resolved()


def test_more_than_the_cluster_has_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, CPU=2, GPU=1)
    with pytest.raises(UsageError, match="a trial needs 4 CPUs and 1 GPUs, the Ray cluster has 2 and 1 in all"):
        Resources(cpus_per_trial=4).resolved()


@pytest.mark.parametrize(("name", "value"), [("cpus_per_trial", 0), ("gpus_per_trial", -1), ("concurrency", 0)])
def test_nonsense_is_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"{name} \(={value}\) must be"):
        Resources(**{name: value})  # type: ignore[arg-type]


def test_an_unreachable_cluster_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(OvertoneError, match=r"cannot reach the Ray cluster at address '127.0.0.1:1': "),
        connected("127.0.0.1:1"),
    ):
        pass


def _started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments that Ray is started in."""
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: environments.append(dict(os.environ)))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return environments


def test_a_home_that_cannot_be_written_is_not_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environments = _started(monkeypatch)
    for home in (tmp_path / "file", tmp_path / "home"):
        monkeypatch.setenv("HOME", str(home))
        with connected(None):
            pass
    without, with_home = environments
    assert len(without["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in with_home
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert list((tmp_path / "home" / ".ray").iterdir()) == []


def test_a_temporary_folder_that_cannot_be_written_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environments = _started(monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    with connected(None):
        pass
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with connected(None):
        pass
    without, with_folder = environments
    assert Path(without["RAY_TMPDIR"]).is_dir()
    assert "RAY_TMPDIR" not in with_folder


def test_no_temporary_folder_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    _started(monkeypatch)

    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with (
        pytest.raises(OvertoneError, match=r"^cannot start Ray on this machine: No usable temporary dir"),
        connected(None),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/tmp/ray"), r"No space left on device \('/tmp/ray'\)$"),
        (ConnectionError("refused."), "refused$"),
        (ray.exceptions.AuthenticationError("no token"), "no token"),
    ],
)
def test_whatever_keeps_ray_from_starting_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    _started(monkeypatch)

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(OvertoneError, match=rf"^cannot start Ray on this machine: {message}"), connected(None):
        pass
    with pytest.raises(OvertoneError, match=r"^cannot reach the Ray cluster at address 'auto': "), connected("auto"):
        pass


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_runs_without_a_home_and_a_temporary_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = "import ray; from search.runner.cluster import connected\n"
    code += "with connected(None): print(ray.cluster_resources()['CPU'])"
    environment = {**os.environ, "HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "nowhere")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) >= 1
