import pytest

from spaces import BlockConfig, Network, NetworkConfig, build_model
from spaces.published import published_rows


def test_series_rows_keep_what_their_configuration_keeps():
    """ResNet-18 as the paper counts it (Table 2 and its erratum); norms, which stay, add less than 0.1 points."""
    printed = {"6,3,3,3,3": 99.98, "6,3,3,3,2": 60.70, "6,3,3,2,2": 50.88, "6,3,2,2,2": 48.43, "5,3,3,3,3": 99.96}
    printed |= {"5,3,3,3,2": 60.68, "5,3,3,2,2": 50.86, "4,3,3,3,2": 60.67, "4,3,3,2,2": 50.85}
    rows = {row.name: row for row in published_rows("resnet18", "imagefolder:data")}
    assert {name: 100 * row.size for name, row in rows.items()} == pytest.approx(printed, abs=0.1)
    assert all(row.counted and row.data == "ImageNet" for row in rows.values())


def test_convnext_rows_reach_single_layers():
    """Whole-network shares follow from Table 3's shares of the 329,184 compressible parameters."""
    compressible = {"7x3,7x3,7x9,6x3": 90.90, "7x3,7x3,4x9,4x3": 42.26, "5x3,5x3,5x9,5x3": 51.71}
    whole = Network.from_module(build_model("convnext_tiny", classes=1000, channels=3), (3, 32, 32)).cost(
        NetworkConfig()
    )
    rows = {row.name: row for row in published_rows("convnext_tiny", "imagefolder:data")}
    for name, share in compressible.items():
        saved = 4 * 329_184 * (1 - share / 100)
        assert (1 - rows[name].size) * whole.size_bytes == pytest.approx(saved, rel=2e-3)


def test_row_lies_where_its_loss_and_shares_put_it():
    row = next(row for row in published_rows("resnet20", "cifar10") if row.name == "3,3,2,2")
    network = Network.from_module(build_model("resnet20", classes=10, channels=3), (3, 32, 32))
    blocks = {name: BlockConfig(basis="cosine", harmonics=(2, 2)) for name in ("layer2", "layer3")}
    whole, cost = network.cost(NetworkConfig()), network.cost(NetworkConfig(blocks=blocks))
    placed = row.on({"val_top1": 0.885, "size_bytes": whole.size_bytes, "flops": whole.flops, "parameters": 1.0})
    expected = {"val_top1": 0.885 - 0.0218, "size_bytes": cost.size_bytes, "flops": cost.flops}
    assert placed == pytest.approx(expected)
    assert row.on({"flops": 10.0}).keys() == {"flops"}


def test_template_rows_are_as_printed():
    rows = published_rows("resnet56", "cifar10")
    assert [(row.top1, round(1 - row.flops, 4), round(1 - row.size, 4)) for row in rows] == [
        (94.18, 0.3591, 0.5164),
        (93.35, 0.4827, 0.7124),
        (92.81, 0.5636, 0.8005),
    ]
    assert not any(row.counted for row in rows)
    assert rows[0].on({"val_top1": 0.999}) == {"val_top1": 1.0}


@pytest.mark.parametrize(("model", "dataset"), [("resnet8", "cifar10"), ("resnet20", "digits"), ("my.net:make", "x")])
def test_nothing_is_shown_beside_other_networks_or_digits(model, dataset):
    assert published_rows(model, dataset) == []
