import io
from dataclasses import replace

import pytest
from rich.console import Console

from search.api.survey import survey
from search.commands.survey_table import show_survey
from spaces import Network, Space, build_model
from trainers.estimate import TrialEstimate


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_survey_shows_the_papers_rows_under_the_blocks(console: Console) -> None:
    space = Space.default(Network.from_module(build_model("resnet20", classes=10, channels=3), (3, 32, 32)))
    found = survey(space, model="resnet20", train_images=0, epochs=5)
    presets = {preset["name"]: preset for preset in found.to_json()["presets"]}
    assert len(presets) == 10
    row, norms = presets["cos-3,3,2,2"], space.network.rest.parameters
    assert row["published_top1"] == 89.55
    assert row["published_base"] == 91.73
    whole = found.uncompressed
    assert row["percent_size"] == pytest.approx(100 * row["size_bytes"] / whole["size_bytes"])
    assert row["percent_flops"] == pytest.approx(100 * row["flops"] / whole["flops"])
    assert row["percent_parameters"] == pytest.approx(100 * (row["parameters"] - norms) / (whole["parameters"] - norms))
    show_survey(console, found, "resnet20")
    above, _, below = _shown(console).partition("Costain & Prisacariu, Table 1 (CIFAR-10)")
    assert "conv1" in above
    line = next(line for line in below.splitlines() if "cos-3,3,2,2" in line)
    assert f"{row['size_bytes'] / 1e3:.1f} kB ({row['percent_size']:.1f}%)" in line
    assert f"{row['percent_parameters']:.2f}%" in line
    assert "89.55 (-2.18)" in line


def test_a_survey_shows_what_a_trial_takes_by_its_parts(console: Console) -> None:
    space = Space.default(Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8)))
    parts = {"weights": 1, "gradients": 2, "optimizer": 3, "activations": 1400, "validation": 40, "images": 50}
    trial = TrialEstimate(
        device="cpu",
        threads=2,
        training_s=250,
        validation_s=20,
        **{f"{part}_bytes": megabytes * 1_000_000 for part, megabytes in parts.items()},
    )
    show_survey(console, survey(space, model="resnet8", train_images=1000, epochs=5, trial=trial), "resnet8")
    shown = _shown(console)
    assert "a trial: about 4 min 30 s on cpu (2 threads), 1.5 GB, up to 22.4 GFLOPs of fine-tuning" in shown
    assert "time: training 4 min 10 s, validation 20 s; compression is extra" in shown
    assert "memory: weights 1.0 MB, gradients 2.0 MB, optimizer 3.0 MB, activations 1.4 GB, validation 40 MB" in shown


def test_a_survey_names_what_its_flops_leave_out(console: Console) -> None:
    network = Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8))
    for names in ((), ("aten._fft_r2c", "mine.product")):
        space = Space.default(replace(network, uncounted=names))
        found = survey(space, model="resnet8", train_images=0, epochs=5)
        assert found.to_json()["uncounted"] == list(names)
        show_survey(console, found, "resnet8")
        assert ("without the products of aten._fft_r2c, mine.product" in _shown(console)) == bool(names)


def test_a_survey_of_any_network_has_generic_rows(console: Console) -> None:
    space = Space.default(Network.from_module(build_model("resnet8", classes=10, channels=1), (1, 8, 8)))
    show_survey(console, survey(space, model="resnet8", train_images=0, epochs=5), "resnet8")
    line = next(line for line in _shown(console).splitlines() if "cos-from-layer3" in line)
    assert line.split()[-2] == "-"
