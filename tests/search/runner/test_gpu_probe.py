"""How many trials share a GPU."""

import dataclasses

import pytest
import ray
from rich.console import Console

from layers import OvertoneError, UsageError
from search.runner.cluster import Resources
from search.runner.gpu_probe import _few_steps, gpu_share, share_of
from search.study.parsing import parse_gpus
from search.study.plan import StudyPlan
from search.study.workload import Workload

GB = 10**9


@pytest.mark.parametrize(
    ("used", "total", "trials"),
    [(GB, 80 * GB, 8), (10 * GB, 80 * GB, 6), (30 * GB, 80 * GB, 2), (70 * GB, 80 * GB, 1), (200 * GB, 80 * GB, 1)],
)
def test_as_many_trials_share_a_gpu_as_its_memory_has_room_for(used: int, total: int, trials: int) -> None:
    assert share_of(used, total) == 1 / trials


def test_auto_asks_for_a_share_where_there_are_gpus_and_for_none_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16, "GPU": 2})
    found = Resources(gpus_per_trial="auto").resolved(lambda: 0.25)
    assert (found.gpus_per_trial, found.concurrency) == (0.25, 8)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4})
    assert Resources(gpus_per_trial="auto").resolved(lambda: 0.25).gpus_per_trial == 0


@pytest.mark.parametrize("text", ["some", "", "1/4"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=rf"gpus_per_trial \(={text!r}\) must be a number of at least 0, or auto"):
        parse_gpus(text)


def test_numbers_auto_and_nothing_are_read() -> None:
    assert [parse_gpus(text) for text in ("0.25", "auto", None)] == [0.25, "auto", None]
    with pytest.raises(UsageError, match="gpus_per_trial"):
        Resources(gpus_per_trial=parse_gpus("nan"))


def test_the_probe_trains_on_whole_batches_however_few_images_there_are(plan: StudyPlan) -> None:
    data, recipe = Workload.load(plan).data, dataclasses.replace(plan.recipe, batch_size=128)
    few = _few_steps(data, recipe)
    assert len(data.train) < 128
    assert len(few.train) == 3 * 128
    assert few.val is data.val


@pytest.mark.usefixtures("ray_cluster")
def test_a_gpu_that_is_only_a_number_cannot_be_probed(plan: StudyPlan) -> None:
    with pytest.raises(OvertoneError, match=r"cannot try a trial on a GPU for --gpus-per-trial auto: .*no GPU"):
        gpu_share(Workload.load(plan), plan.recipe, Console(quiet=True))
