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
