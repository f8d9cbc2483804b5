import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from layers.errors import OvertoneError, UsageError
from layers.series.basis import FAMILIES
from layers.series.sampling import basis_matrix
from results.figures import grid, series
from results.figures.series import filter_errors, get_conv, mean_errors, plot_filters
from results.figures.templates import plot_reconstructions, reconstruction_errors

KERNELS = [(7, 7), (3, 3), (2, 5), (1, 4), (6, 1)]


@pytest.fixture
def weight(np_rng: np.random.Generator):
    """Fresh filters of any shape."""
    generator = torch.Generator().manual_seed(int(np_rng.integers(2**62)))
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def layer(weight):
    """A convolution with fresh filters."""

    def make(outputs: int, channels: int, kernel: Sequence[int]) -> nn.Conv1d | nn.Conv2d:
        conv = nn.Conv2d(channels, outputs, kernel) if len(kernel) == 2 else nn.Conv1d(channels, outputs, kernel)
        with torch.no_grad():
            conv.weight.copy_(weight(*conv.weight.shape))
        return conv

    return make


def _texts(path: Path) -> list[str]:
    """What an SVG says; matplotlib keeps each text in a comment beside its glyphs."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL)]


def _slow_error(taps: np.ndarray, family, harmonics: tuple[int, int]) -> float:
    """Least squares over all taps of one filter at once, without the two axes being apart."""
    phi_y, phi_x = (basis_matrix(family, k, n).numpy() for k, n in zip(taps.shape, harmonics, strict=True))
    design = np.stack([np.outer(y, x).ravel() for y in phi_y.T for x in phi_x.T], axis=1)
    solution = np.linalg.lstsq(design, taps.ravel(), rcond=None)[0]
    return float(np.linalg.norm(taps.ravel() - design @ solution))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_errors_are_those_of_least_squares_on_each_filter(weight, np_rng, family, kernel) -> None:
    taps = weight(4, 3, *kernel)
    harmonics = tuple(int(np_rng.integers(1, k + 1)) for k in kernel)
    found = filter_errors(taps, family, harmonics)
    slow = [[_slow_error(one.double().numpy(), family, harmonics) for one in output] for output in taps]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_errors_fall_as_harmonics_rise_to_none_at_all_taps(weight, family, kernel) -> None:
    taps = weight(5, 2, *kernel)
    steps = [tuple(min(n, k) for k in kernel) for n in range(1, max(kernel) + 1)]
    errors = torch.stack([filter_errors(taps, family, step) for step in steps])
    assert (errors.diff(dim=0) <= 1e-9).all()
    assert errors[-1].max() < 1e-9
    assert errors[0].min() > 1e-3


def test_mean_errors_count_every_filter(layer) -> None:
    conv = layer(6, 4, (5, 5))
    with torch.no_grad():
        conv.weight[0, 0] = 0
    found = mean_errors(conv, name="conv")
    assert {family: list(means) for family, means in found.items()} == {
        family: ["4x4", "3x3", "2x2", "1x1"] for family in FAMILIES
    }
    norms = conv.weight.detach().double().flatten(2).norm(dim=-1)
    shares = (filter_errors(conv.weight.detach(), "chebyshev", (3, 3)) / norms).nan_to_num()
    assert found["chebyshev"]["3x3"] == pytest.approx(float(shares.sum()) / 24, rel=1e-9)


@pytest.mark.parametrize(
    ("kernel", "harmonics"),
    [
        ((3, 3), "3x2 2x3 2x2 1x1"),
        ((2, 2), "1x1"),
        ((7, 3), "6x3 5x3 4x3 3x3 2x2 1x1"),
        ((3, 1), "2x1 1x1"),
        ((16, 16), "15x15 12x12 9x9 7x7 4x4 1x1"),
        ((9,), "1x8 1x7 1x5 1x4 1x2 1x1"),
    ],
)
def test_columns_fall_from_one_less_than_the_taps(layer, kernel, harmonics) -> None:
    found = mean_errors(layer(2, 3, kernel), name="conv")
    assert list(found["cosine"]) == list(found["chebyshev"]) == harmonics.split()


@pytest.mark.parametrize("kernel", [(3, 3), (7, 7), (1, 7), (5, 2), (4,)])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn_the_same_each_time(layer, tmp_path: Path, kernel, suffix) -> None:
    conv = layer(3, 2, kernel)
    paths = [plot_filters(conv, tmp_path / "new" / f"{n}{suffix}", name="a $net$ layer", count=2) for n in range(2)]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"0{suffix}", f"1{suffix}"]


def test_a_picture_says_the_errors(layer, tmp_path: Path) -> None:
    conv = layer(2, 1, (5, 5))
    texts = _texts(plot_filters(conv, tmp_path / "a.svg", name="a layer"))
    assert {"a layer", "Cosine series", "Chebyshev series", "mean error, n = 2", "output 0", "output 1"} <= set(texts)
    taps = conv.weight.detach()
    for family in FAMILIES:
        for n in range(1, 5):
            errors = filter_errors(taps, family, (n, n)).flatten()
            assert {f"{error:#.3g}" for error in errors.tolist()} <= set(texts)
            assert f"{100 * mean_errors(conv, name='')[family][f'{n}x{n}']:.0f} %" in texts


def test_families_that_agree_share_a_panel(layer, tmp_path: Path) -> None:
    texts = _texts(plot_filters(layer(2, 2, (3, 3)), tmp_path / "a.svg", name="conv"))
    assert [text for text in texts if "series" in text and "Above" not in text and len(text) < 60] == [
        "Cosine and Chebyshev series (the same on so few taps)"
    ]


def test_filters_are_picked_from_the_best_served_to_the_worst(tmp_path: Path, np_rng) -> None:
    """Filters of shares 0, 1/8, ... of a wave that two harmonics on three taps cannot hold, in any order."""
    order = np_rng.permutation(9).tolist()
    conv = nn.Conv2d(1, 10, (1, 3))
    with torch.no_grad():
        for output, rank in enumerate(order):
            wave = torch.tensor([1.0, -2.0, 1.0]) / 6**0.5
            conv.weight[output, 0, 0] = (rank / 8) * wave + (1 - (rank / 8) ** 2) ** 0.5 / 3**0.5
        conv.weight[9] = 0
    texts = _texts(plot_filters(conv, tmp_path / "a.svg", name="conv", count=5))
    drawn = [int(text.split()[1]) for text in texts if text.startswith("output ")]
    assert [order[output] for output in drawn] == [0, 2, 4, 6, 8]


def test_a_dead_layer_can_be_drawn(tmp_path: Path) -> None:
    conv = nn.Conv2d(2, 2, 5)
    nn.init.zeros_(conv.weight)
    assert plot_filters(conv, tmp_path / "a.png", name="conv").exists()
    assert set(mean_errors(conv, name="conv")["cosine"].values()) == {0.0}


def _draw_rebuilt(conv: series.Convolution, path: Path, *, name: str) -> Path:
    return plot_reconstructions(conv, path, 0.5, name=name)


@pytest.mark.parametrize(
    ("draw", "kernel", "outputs", "channels"),
    [
        *((plot_filters, *case) for case in (((7, 7), 1000, 3), ((9,), 300, 1), ((3, 3), 512, 512), ((2, 2), 1, 1))),
        *((_draw_rebuilt, *case) for case in (((7, 7), 20, 30), ((9,), 300, 1), ((3, 3), 512, 2), ((2, 2), 2, 1))),
        *((draw, (7, 3), 4, 4) for draw in (plot_filters, _draw_rebuilt)),
    ],
)
def test_no_text_leaves_the_picture_or_lies_upon_another(
    layer, tmp_path: Path, monkeypatch, draw, kernel, outputs, channels
) -> None:
    figure = grid.Figure(dpi=160)
    monkeypatch.setattr(grid, "Figure", lambda: figure)
    name = "efficientnet_v2_large features.1.0.block.0.layers.0 (random start)"
    path = draw(layer(outputs, channels, kernel), tmp_path / "a.png", name=name)
    boxes = {text: text.get_window_extent() for text in figure.axes[0].texts}
    for text, box in boxes.items():
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= 0, text
        assert not [other for other, there in boxes.items() if other is not text and _overlap(box, there)], text
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert max(width, height) <= 2200


def _overlap(one, other) -> bool:
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    return bool(across > 0 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1.5)


def test_misuse_is_named(layer, tmp_path: Path) -> None:
    conv = layer(2, 2, (3, 3))
    with pytest.raises(UsageError, match=r"path \(='.*a\.jpg'\) must end in \.png or \.svg$"):
        plot_filters(conv, tmp_path / "a.jpg", name="conv")
    with pytest.raises(UsageError, match=r"count \(=0\) must be at least 1$"):
        plot_filters(conv, tmp_path / "a.png", name="conv", count=0)
    with pytest.raises(UsageError, match=r"layer \(='point'\) must have filters of more than one tap"):
        plot_filters(layer(2, 2, (1, 1)), tmp_path / "a.png", name="point")
    with torch.no_grad():
        conv.weight[1, 1, 0, 2] = float("nan")
    with pytest.raises(OvertoneError, match=r"^cannot draw the filters of 'conv': some are not finite$"):
        plot_filters(conv, tmp_path / "a.png", name="conv")
    assert list(tmp_path.iterdir()) == []


def test_layers_are_found_by_name() -> None:
    net = nn.Module()
    net.stem, net.body = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 5), nn.Linear(4, 2))
    assert get_conv(net, "stem") is net.stem
    assert get_conv(net, "body.1") is net.body[1]
    for name, message in [
        ("sten", r"layer \(='sten'\) must be a convolution of more than one tap, such as stem$"),
        ("x", r"layer \(='x'\) must be a convolution of more than one tap, such as stem, body\.1$"),
        ("body", r"layer \(='body'\) \(a Sequential\) must be .*, such as body\.1$"),
        ("body.0", r"layer \(='body\.0'\) \(a 1x1 convolution\) must be a convolution of more than one tap"),
        ("body.2", r"layer \(='body\.2'\) \(a Linear\) must be a convolution of more than one tap"),
    ]:
        with pytest.raises(UsageError, match=message):
            get_conv(net, name)
    with pytest.raises(UsageError, match=r"tap, but this network has none$"):
        get_conv(nn.Sequential(nn.Linear(2, 2)), "0")


def _slow_gains(taps: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Each tap's filters over the channels are nearest to a multiple of the template's."""
    gains = (taps * template).sum(0) / (template * template).sum(0)
    return gains * template


def test_rebuilt_filters_are_those_nearest_to_the_pruned_ones(layer, tmp_path: Path) -> None:
    conv = layer(7, 5, (3, 3))
    taps = conv.weight.detach().double().numpy()
    ranked = np.argsort(-np.linalg.norm(taps.reshape(7, -1), axis=1), kind="stable")
    kept, pruned = sorted(ranked[:2].tolist()), sorted(ranked[2:].tolist())
    tried = {n: [_slow_gains(taps[n], taps[template]) for template in kept] for n in pruned}
    slow = {n: min(found, key=lambda one: float(np.linalg.norm(taps[n] - one))) for n, found in tried.items()}
    errors = {n: np.linalg.norm((taps[n] - found).reshape(5, 9), axis=1) for n, found in slow.items()}
    norms = np.linalg.norm(taps.reshape(7, 5, 9), axis=2)
    found = reconstruction_errors(conv, 0.7, name="conv")
    of_all = np.linalg.norm([errors[n] for n in pruned]) / np.linalg.norm([norms[n] for n in pruned])
    assert found["scalar"] == pytest.approx(of_all, rel=1e-6)
    assert found["zero"] == 1.0
    assert list(found) == ["scalar", "rotation", "affine", "zero"]
    texts = _texts(plot_reconstructions(conv, tmp_path / "a.svg", 0.7, name="a layer", count=100))
    assert {"a layer", "Rebuilt from 2 templates of 7 filters", "error of all 25", "rotation", "45", "9"} <= set(texts)
    assert {f"{error:#.3g}" for n in pruned for error in errors[n]} <= set(texts)
    drawn = {text for text in texts if text.startswith("output ")}
    assert drawn == {f"output {n}, channel {c}" for n in pruned for c in range(5)}


def test_a_filter_that_a_template_gives_exactly_is_found(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 2, 3)
    with torch.no_grad():
        conv.weight[1] = 0.999 * conv.weight[0].flip(-1, -2)  # turned by half a circle
    found = reconstruction_errors(conv, 0.5, name="conv")
    assert found["rotation"] == pytest.approx(0.001, abs=1e-4)
    assert found["affine"] <= found["rotation"] + 1e-9
    assert found["scalar"] > 0.1


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1.0, r"pruning_rate \(=1\.0\) must be in \[0, 1\)"),
        (0.1, r"^pruning_rate \(=0\.1\) must be high enough to prune at least one of the 3 filters$"),
    ],
)
def test_rates_at_which_nothing_can_be_rebuilt_are_refused(layer, tmp_path: Path, rate, message) -> None:
    with pytest.raises(UsageError, match=message):
        plot_reconstructions(layer(3, 2, (3, 3)), tmp_path / "a.png", rate, name="conv")
    assert list(tmp_path.iterdir()) == []
