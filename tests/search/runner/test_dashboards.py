"""Where else a study can be seen."""

from pathlib import Path

import optuna
import pytest

from layers import OvertoneError, UsageError
from results.objectives import parse_objectives
from search.optimize.candidates import Candidates
from search.optimize.sampler import ConfigSampler, Observation
from search.runner.dashboards import TensorBoard, open_storage
from spaces import Space

OBJECTIVES = parse_objectives(("val_top1", "size_bytes", "flops"), score_name="val_top1")


@pytest.mark.parametrize("kind", ["journal:{}/optuna.log", "sqlite:///{}/optuna.db"])
def test_an_optuna_storage_holds_the_study_that_is_and_no_older_one(space: Space, tmp_path: Path, kind: str) -> None:
    url = kind.format(tmp_path)
    for trials in (3, 2):
        drawing = ConfigSampler(
            Candidates(space), OBJECTIVES, sampler="random", seed=0, storage=open_storage(url), name="s"
        )
        for number in range(trials):
            drawing.tell(drawing.ask(number)[0], Observation(values=[0.5, 1e4, 1e6]))
    seen = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [trial.values for trial in seen.trials] == [[0.5, 1e4, 1e6]] * 2
    assert seen.metric_names == [objective.name for objective in OBJECTIVES]


@pytest.mark.parametrize("url", ["optuna.db", "oracle://nobody/x", "sqlite:////nowhere/at/all.db"])
def test_a_storage_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(UsageError, match=rf"optuna_storage \(='{url}'\) must be journal:FILE, sqlite:///FILE"):
        open_storage(url)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OvertoneError, match=r"cannot write TensorBoard's files to"):
        TensorBoard(tmp_path / "file", "s")
