"""Where weights and data are now."""

from pathlib import Path

import pytest

from layers import OvertoneError, UsageError
from search.study.places import Places
from trainers.data.spec import DataSpec

FOLDER = DataSpec(name="imagefolder:/old/images", train_limit=9, image_size=8)
CIFAR = DataSpec(name="cifar10", data_dir="/old/sets", val_from="test")


@pytest.mark.parametrize(
    ("recorded", "given", "name", "data_dir"),
    [
        (FOLDER, "imagefolder:/new/x", "imagefolder:/new/x", FOLDER.data_dir),
        (FOLDER, "/new/x", "imagefolder:/new/x", FOLDER.data_dir),
        (FOLDER, "x", "imagefolder:/here/x", FOLDER.data_dir),
        (
            FOLDER,
            DataSpec(name="imagefolder:/new/x", train_limit=9, image_size=8),
            "imagefolder:/new/x",
            DataSpec.data_dir,
        ),
        (CIFAR, "/new/sets", "cifar10", "/new/sets"),
        (CIFAR, "cifar10", "cifar10", "/old/sets"),
        (FOLDER, None, FOLDER.name, FOLDER.data_dir),
    ],
)
def test_data_are_where_they_are_said_to_be_and_keep_their_settings(
    recorded: DataSpec,
    given: str | DataSpec | None,
    name: str,
    data_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Places(data=given).of_data(recorded)
    assert here.name == name.replace("/here", str(tmp_path))
    assert Path(here.data_dir) == (Path(data_dir) if given is None else tmp_path / data_dir)
    assert (here.train_limit, here.val_from, here.image_size) == (
        recorded.train_limit,
        recorded.val_from,
        recorded.image_size,
    )


@pytest.mark.parametrize(
    ("recorded", "given", "message"),
    [
        (FOLDER, DataSpec(name="parquet:/x", train_limit=9), r"data \(=.*\) must have the settings that the study was"),
        (FOLDER, DataSpec(name="imagefolder:/x"), r"data \(=.*\) must have the settings that the study was begun with"),
        (CIFAR, DataSpec(name="digits", val_from="test"), r"data \(='digits'\) must be where 'cifar10' is now"),
        (DataSpec(name="object:x"), "/new", r"data \(='/new'\) must be the object 'object:x' that the study was begun"),
    ],
)
def test_a_place_of_other_data_is_refused(recorded: DataSpec, given: str | DataSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Places(data=given).of_data(recorded)


def test_what_is_gone_is_told_with_the_way_to_say_where_it_is(tmp_path: Path) -> None:
    def fail() -> None:
        raise OvertoneError("cannot read it")

    (tmp_path / "w").write_text("")
    gone, there = DataSpec(name=f"imagefolder:{tmp_path}/gone"), DataSpec(name=f"imagefolder:{tmp_path}")
    for places, weights, data, hints in (
        (Places(), "/nowhere/w", gone, ["--weights", "--data"]),
        (Places(), "/nowhere/w", there, ["--weights"]),
        (Places(), "DEFAULT", gone, ["--data"]),
        (Places(), str(tmp_path / "w"), there, []),
        (Places(weights="x", data="y"), "/nowhere/w", gone, []),
    ):
        with pytest.raises(OvertoneError, match=r"^cannot read it") as refused, places.hinted(weights, data):
            fail()
        assert [hint for hint in ("--weights", "--data") if hint in str(refused.value)] == hints
