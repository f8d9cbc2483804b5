"""Every kind of picture is saved in the same way."""

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from layers.errors import OvertoneError, UsageError
from results.figures.pruning_rates import plot_pruning_rates
from results.figures.saving import save_figure
from results.figures.series import plot_filters
from results.figures.templates import plot_reconstructions
from results.report.plot import plot_front

RATES = {"magnitude": {"conv1": 0.2, "layer1": 0.6}, "taylor": {"conv1": 0.1, "layer1": 0.7}}


@pytest.fixture(params=["filters", "reconstructions", "rates", "front"])
def draw(request, full_ledger, np_rng):
    """Draw one kind of picture into a path, each time from the same input."""
    layer = nn.Conv2d(2, 4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np_rng.standard_normal((4, 2, 3, 3))))
    kinds = {
        "filters": lambda path: plot_filters(layer, path, name="a $net$ layer"),
        "reconstructions": lambda path: plot_reconstructions(layer, path, 0.5, name="a $net$ layer"),
        "rates": lambda path: plot_pruning_rates(RATES, path, title="a $net$", rate=0.4),
        "front": lambda path: plot_front(full_ledger, "demo", path),
    }
    return kinds[request.param]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_input_gives_equal_bytes(draw, tmp_path: Path, suffix) -> None:
    paths = [draw(tmp_path / "new" / f"{n}{suffix}") for n in range(2)]
    assert paths == [tmp_path / "new" / f"{n}{suffix}" for n in range(2)]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"\x89PNG\r\n\x1a\n" if suffix == ".png" else b"<?xml")
    assert b"dc:date" not in first
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"0{suffix}", f"1{suffix}"]


def test_a_picture_that_fails_leaves_nothing_or_what_was_there(draw, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(MemoryError("no room")))
    for target in (path, tmp_path / "b.png"):
        with pytest.raises(MemoryError, match="no room"):
            draw(target)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_one_sentence(draw, tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OvertoneError, match=r"^cannot write '.*a\.png': Is a directory$"):
        draw(tmp_path / "a.png")
    with pytest.raises(OvertoneError, match=r"^cannot write '.*file/a\.png': [^\n]+$"):
        draw(tmp_path / "file" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file"]


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.PNG", "png"])
def test_other_kinds_of_files_are_refused(draw, tmp_path: Path, name) -> None:
    with pytest.raises(UsageError, match=rf"^path \(='.*{name}'\) must end in \.png or \.svg$"):
        draw(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_ids_in_an_svg_come_from_the_salt(tmp_path: Path) -> None:
    def saved(salt: str) -> bytes:
        figure = Figure()
        figure.subplots().plot([1, 2])
        return save_figure(figure, tmp_path / "a.svg", salt=salt).read_bytes()

    assert saved("one") == saved("one")
    assert saved("one") != saved("two")
