"""The papers' rows: counts as printed, networks that can take their own rows, and where a report places them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from layers import compress_model
from layers.blockfloat import BlockFormat, quantize
from spaces import BlockConfig, Network, NetworkConfig, Preset, Space, build_model, presets, published_rows

SMALL = ("resnet8", "resnet20", "resnet32", "resnet56", "vgg16")
LARGE = ("resnet18", "convnext_tiny", "mobilenet_v2", "efficientnet_b0")


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    def network(model: str) -> Network:
        image, classes = ((3, 32, 32), 10) if model in SMALL else ((3, 224, 224), 1000)
        with torch.device("meta"):
            return Network.from_module(build_model(model, classes=classes, channels=3), image)

    return {model: network(model) for model in (*SMALL, *LARGE)}


def named(model: str, network: Network) -> dict[str, Preset]:
    return {preset.name: preset for preset in presets(model, network)}


def counted(network: Network, config: NetworkConfig) -> int:
    """Parameters as the paper counts, without those of norms."""
    return network.cost(config).parameters - network.rest.parameters


@pytest.mark.parametrize("model", [*SMALL, *LARGE])
def test_every_row_is_a_network_and_canonical(model: str, networks: dict[str, Network]) -> None:
    network = networks[model]
    rows = presets(model, network)
    assert rows
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert network.canonical(row.config) == row.config
        assert 0 < network.cost(row.config).size_bytes < network.cost(NetworkConfig()).size_bytes
        assert NetworkConfig.from_json(json.loads(json.dumps(row.config.to_json()))) == row.config
        assert (row.published_top1 is None) == (row.published_base is None)


@pytest.mark.parametrize(
    ("model", "count"), [("resnet20", 10), ("resnet32", 10), ("resnet18", 36), ("convnext_tiny", 9)]
)
def test_the_tables_are_whole(model: str, count: int, networks: dict[str, Network]) -> None:
    rows = presets(model, networks[model])
    assert len(rows) == count
    assert all(row.published_top1 is not None and "Costain & Prisacariu, Table" in row.source for row in rows)


def test_counts_of_whole_networks(networks: dict[str, Network]) -> None:
    """Every parameter except those of norms."""
    assert counted(networks["resnet18"], NetworkConfig()) == 11_679_912
    assert counted(networks["resnet32"], NetworkConfig()) == 461_882


def test_compressible_parameters_of_table_3(networks: dict[str, Network]) -> None:
    """The weights of the 18 depthwise layers and of the patches' layer."""
    network = networks["convnext_tiny"]
    shapes = {name: shape for name, shape in network.shapes.items() if shape.kernel in ((7, 7), (4, 4))}
    assert sum(shape.kernel == (7, 7) for shape in shapes.values()) == 18
    weights = (network.block_cost(name, BlockConfig(), 8).parameters - shapes[name].out_channels for name in shapes)
    assert sum(weights) == 324_576 + 4_608


@pytest.mark.parametrize("short", ["cos", "cheb"])
@pytest.mark.parametrize(
    ("model", "harmonics", "percent"),
    [
        ("resnet18", "6,3,3,3,3", 99.98),
        ("resnet18", "6,3,3,3,2", 60.70),
        ("resnet18", "6,3,3,2,2", 50.88),
        ("resnet18", "6,3,2,2,2", 48.43),
        ("resnet18", "5,3,3,3,3", 99.96),  # printed 94.10, an erratum
        ("resnet18", "5,3,3,3,2", 60.68),
        ("resnet18", "5,3,3,2,2", 50.86),
        ("resnet18", "4,3,3,3,2", 60.67),
        ("resnet18", "4,3,3,2,2", 50.85),
        ("resnet32", "3,3,3,2", 57.88),  # printed 57.74, an erratum
        ("resnet32", "3,3,2,2", 47.35),
        ("resnet32", "3,2,2,2", 44.57),
        ("resnet32", "2,2,2,3", 86.65),
        ("resnet32", "2,2,2,2", 44.52),  # printed 44.48, an erratum
    ],
)
def test_percentages_of_tables_1_and_2(
    model: str, harmonics: str, percent: float, short: str, networks: dict[str, Network]
) -> None:
    network = networks[model]
    config = named(model, network)[f"{short}-{harmonics}"].config
    assert 100 * counted(network, config) / counted(network, NetworkConfig()) == pytest.approx(percent, abs=0.005)


@pytest.mark.parametrize(
    ("runs", "percent"),
    [
        ("7x3,7x3,7x9,6x3", 90.90),
        ("7x3,7x3,7x4,6x5,6x3", 83.32),
        ("7x3,7x3,6x9,6x3", 77.25),
        ("7x3,6x3,6x9,6x3", 74.98),
        ("7x3,7x3,5x9,5x3", 58.01),
        ("7x3,7x3,5x9,4x3", 51.71),
        ("7x3,7x3,4x9,4x3", 42.26),
        ("6x3,6x3,6x9,6x3", 73.84),
        ("5x3,5x3,5x9,5x3", 51.71),
    ],
)
def test_percentages_of_table_3(runs: str, percent: float, networks: dict[str, Network]) -> None:
    network, compressible = networks["convnext_tiny"], 324_576 + 4_608
    config = named("convnext_tiny", network)[f"cos-{runs}"].config
    saved = counted(network, NetworkConfig()) - counted(network, config)
    assert 100 * (1 - saved / compressible) == pytest.approx(percent, abs=0.0051)


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [("conv", (23.4, 17.5)), ("6,3,3,3,2", (14.2, 10.6)), ("6,3,3,2,2", (11.9, 8.9)), ("5,3,3,3,2", (14.2, 10.6))],
)
def test_sizes_of_table_4(name: str, megabytes: tuple[float, float], networks: dict[str, Network]) -> None:
    """The paper's sizes: every parameter at a sign, the mantissa and 7 exponent bits."""
    network = networks["resnet18"]
    rows = named("resnet18", network)
    for bits, printed in zip((8, 4), megabytes, strict=True):
        for short in ("",) if name == "conv" else ("cos-", "cheb-"):
            config = rows[f"{short}{name}-{bits}bit"].config
            assert counted(network, config) * (1 + bits + 7) / 8e6 == pytest.approx(printed, abs=0.05)
            forms = network.forms(config)
            assert set(forms) == set(network.shapes)
            found = {
                (form.bits, form.exponent_block, form.activation_bits, form.activation_block) for form in forms.values()
            }
            assert found == {(bits, 1, bits, 1)}


@pytest.mark.parametrize("name", ["conv-8bit", "cos-5,3,3,3,2-4bit"])
def test_rows_of_table_4_round_weights_and_inputs_of_every_layer(name: str, networks: dict[str, Network]) -> None:
    """As a network does whose weights are rounded by hand, and whose layers round their input first."""
    model = build_model("resnet18", classes=10, channels=3).eval()
    network = Network.from_module(model, (3, 32, 32))
    forms = network.forms(named("resnet18", networks["resnet18"])[name].config)
    bits = {form.bits for form in forms.values()}
    form = BlockFormat(bits=bits.pop())
    plain = {layer: replace(form, bits=None, activation_bits=None) for layer, form in forms.items()}
    rounded = compress_model(model, plain).eval()
    for layer in map(rounded.get_submodule, forms):
        layer.coefficients.data.copy_(quantize(layer.coefficients.data, form))
        layer.register_forward_pre_hook(lambda _, inputs: quantize(inputs[0], form))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = rounded(images)
        assert torch.equal(compress_model(model, forms).eval()(images), expected)
        assert not torch.equal(compress_model(model, plain).eval()(images), expected)


def test_published_accuracies_are_of_the_right_cell(networks: dict[str, Network]) -> None:
    """A cell of each column of each table, and the differences printed beside them."""
    for model, name, top1, drop in (
        ("resnet20", "cos-2,2,2,3", 86.87, -4.86),
        ("resnet20", "cheb-2,2,2,3", 87.95, -3.78),
        ("resnet32", "cos-3,2,2,2", 88.40, -4.38),
        ("resnet32", "cheb-3,2,2,2", 88.48, -4.30),
        ("resnet18", "cos-5,3,3,2,2", 67.48, -2.28),
        ("resnet18", "cheb-5,3,3,2,2", 65.44, -4.32),
        ("convnext_tiny", "cos-7x3,6x3,6x9,6x3", 79.44, -2.66),
        ("resnet18", "conv-4bit", 69.28, -0.48),
        ("resnet18", "cos-5,3,3,2,2-4bit", 62.76, -7.00),
        ("resnet18", "cheb-5,3,3,2,2-8bit", 64.47, -5.29),
        ("vgg16", "scalar-0.9", 90.62, -2.64),
    ):
        row = named(model, networks[model])[name]
        assert row.published_top1 == top1
        assert row.published_base is not None
        assert row.published_top1 - row.published_base == pytest.approx(drop, abs=0.006)


@pytest.mark.parametrize("model", ["resnet8", "resnet20", "resnet32", "resnet18", "mobilenet_v2", "vgg16"])
def test_rows_by_stage_lie_in_the_default_space(model: str, networks: dict[str, Network]) -> None:
    """Not those with an exponent a weight or a rate of 0.9 or 0.7, which the default space does not offer."""
    network = networks[model]
    space = Space.default(network)
    rows = [
        row for row in presets(model, network) if not row.name.endswith("bit") and not row.name.startswith("scalar")
    ]
    assert rows
    for row in rows:
        assert space.decode(space.encode(row.config)) == row.config


def test_both_families_of_two_harmonics_on_three_taps_are_one_network(networks: dict[str, Network]) -> None:
    rows = named("resnet20", networks["resnet20"])
    for name, row in rows.items():
        assert row.config == rows[name.replace("cheb-", "cos-")].config
    large = named("resnet18", networks["resnet18"])
    assert large["cos-6,3,3,3,2"].config.blocks["conv1"] == BlockConfig(basis="cosine", harmonics=(6, 6))
    assert large["cheb-6,3,3,3,2"].config.blocks["conv1"] == BlockConfig(basis="chebyshev", harmonics=(6, 6))


def test_vgg_rows_prune_every_convolution_at_one_rate(networks: dict[str, Network]) -> None:
    network = networks["vgg16"]
    rows = named("vgg16", network)
    forms = network.forms(rows["scalar-0.7"].config)
    assert set(forms) == {name for name, shape in network.shapes.items() if shape.kind == "conv2d"}
    for name, form in forms.items():
        shape = network.shapes[name]
        assert form.templates == round(0.3 * shape.out_channels)
        assert form.groups == (1 if shape.in_channels == 3 else 2)
    assert network.forms(rows["scalar-0.9"].config)["features.0"].templates == 8


def test_generic_rows_go_down_from_the_last_block(networks: dict[str, Network]) -> None:
    rows = presets("resnet8", networks["resnet8"])
    assert [row.name for row in rows] == [f"cos-from-{block}" for block in ("layer3", "layer2", "layer1", "conv1")]
    two = BlockConfig(basis="cosine", harmonics=(2, 2))
    assert rows[1].config == NetworkConfig(blocks={"layer2": two, "layer3": two})
    assert all(row.published_top1 is None for row in rows)


def test_generic_rows_take_one_harmonic_from_every_kernel(wide: nn.Module, wide_network: Network) -> None:
    """Kernels of several sizes in one block go layer by layer; sizes of 1 stay."""
    rows = presets("wide", wide_network)
    assert [row.name for row in rows] == ["cos-from-body2", "cos-from-body", "cos-from-stem"]
    harmonics = {name: form.harmonics for name, form in wide_network.forms(rows[-1].config).items()}
    assert harmonics == {"stem": (6, 6), "body.0": (1, 6), "body.3": (3, 3), "body2": (2, 2)}
    assert wide_network.canonical(rows[-1].config) == rows[-1].config
    by_layer = Network.from_module(wide, (3, 12, 12), "layer")
    last = presets("wide", by_layer)[-1]
    assert by_layer.digest(last.config) == wide_network.digest(rows[-1].config)


def test_generic_rows_leave_small_kernels_alone() -> None:
    network = Network.from_module(nn.Sequential(nn.Conv2d(3, 8, 2), nn.Flatten(), nn.Linear(8 * 49, 4)), (3, 8, 8))
    assert presets("tiny", network) == ()


def test_series_rows_keep_what_their_configuration_keeps() -> None:
    """ResNet-18 as the paper counts it (Table 2 and its erratum); norms, which stay, add less than 0.1 points."""
    printed = {"6,3,3,3,3": 99.98, "6,3,3,3,2": 60.70, "6,3,3,2,2": 50.88, "6,3,2,2,2": 48.43, "5,3,3,3,3": 99.96}
    printed |= {"5,3,3,3,2": 60.68, "5,3,3,2,2": 50.86, "4,3,3,3,2": 60.67, "4,3,3,2,2": 50.85}
    rows = {row.name: row for row in published_rows("resnet18", "imagefolder:data")}
    assert {name: 100 * row.size for name, row in rows.items()} == pytest.approx(printed, abs=0.1)
    assert all(row.counted and row.data == "ImageNet" for row in rows.values())


def test_convnext_rows_reach_single_layers() -> None:
    """Whole-network shares follow from Table 3's shares of the 329,184 compressible parameters."""
    compressible = {"7x3,7x3,7x9,6x3": 90.90, "7x3,7x3,4x9,4x3": 42.26, "5x3,5x3,5x9,5x3": 51.71}
    whole = Network.from_module(build_model("convnext_tiny", classes=1000, channels=3), (3, 32, 32)).cost(
        NetworkConfig()
    )
    rows = {row.name: row for row in published_rows("convnext_tiny", "imagefolder:data")}
    for name, share in compressible.items():
        saved = 4 * 329_184 * (1 - share / 100)
        assert (1 - rows[name].size) * whole.size_bytes == pytest.approx(saved, rel=2e-3)


def test_row_lies_where_its_loss_and_shares_put_it() -> None:
    row = next(row for row in published_rows("resnet20", "cifar10") if row.name == "3,3,2,2")
    network = Network.from_module(build_model("resnet20", classes=10, channels=3), (3, 32, 32))
    blocks = {name: BlockConfig(basis="cosine", harmonics=(2, 2)) for name in ("layer2", "layer3")}
    whole, cost = network.cost(NetworkConfig()), network.cost(NetworkConfig(blocks=blocks))
    placed = row.relative_to({"score": 0.885, "size_bytes": whole.size_bytes, "flops": whole.flops, "parameters": 1.0})
    expected = {"score": 0.885 - 0.0218, "size_bytes": cost.size_bytes, "flops": cost.flops}
    assert placed == pytest.approx(expected)
    assert row.relative_to({"flops": 10.0}).keys() == {"flops"}


def test_template_rows_are_as_printed() -> None:
    rows = published_rows("resnet56", "cifar10")
    assert [(row.score, round(1 - row.flops, 4), round(1 - row.size, 4)) for row in rows] == [
        (94.18, 0.3591, 0.5164),
        (93.35, 0.4827, 0.7124),
        (92.81, 0.5636, 0.8005),
    ]
    assert not any(row.counted for row in rows)
    assert rows[0].relative_to({"score": 0.999}) == {"score": 1.0}


@pytest.mark.parametrize(("model", "dataset"), [("resnet8", "cifar10"), ("resnet20", "digits"), ("my.net:make", "x")])
def test_nothing_is_shown_beside_other_networks_or_digits(model: str, dataset: str) -> None:
    assert published_rows(model, dataset) == []
