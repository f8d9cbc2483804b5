import json
import warnings
from pathlib import Path

import pytest

from layers import OvertoneWarning, UsageError
from search.study.amounts import parse_amount
from search.study.parsing import read_config, read_recipe
from spaces import Network


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("40kB", 40_000),
        ("1.5MB", 1_500_000),
        ("5M", 5_000_000),
        ("300MFLOPs", 300_000_000),
        ("2 g", 2 * 10**9),
        ("250000", 250_000),
        (".5k", 500),
    ],
)
def test_amounts_are_decimal(text: str, amount: int) -> None:
    assert parse_amount(text, name="max_size") == amount


@pytest.mark.parametrize("text", ["", "kB", "-5k", "5 apples", "0", "1e6", "nan"])
def test_what_is_no_amount_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"max_size \(=.*\) must be an amount above 0"):
        parse_amount(text, name="max_size")


def test_a_recipe_that_cannot_do_its_work_in_so_many_epochs_is_told() -> None:
    with pytest.warns(OvertoneWarning, match=r"^the learning rate first falls after epoch 82, so never within 30 epo"):
        read_recipe("resnet", None, epochs=30)
    with pytest.raises(UsageError, match=r"warmup_epochs \(=5\) must be below"):
        read_recipe("templates-imagenet", None, epochs=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_recipe("resnet", None, epochs=164).milestones == (82, 123)
        assert read_recipe("templates-imagenet", ["warmup_epochs=1"], epochs=5).warmup_epochs == 1


def test_options_and_settings_change_a_recipe() -> None:
    recipe = read_recipe("baseline", ["ema_decay=0.9", "nesterov=false"], epochs=3, lr=None, batch_size=32)
    assert (recipe.lr, recipe.batch_size, recipe.ema_decay, recipe.nesterov) == (0.1, 32, 0.9, False)


def test_a_config_is_a_preset_or_in_a_file(network: Network, tmp_path: Path) -> None:
    config = read_config("cos-from-layer3", "resnet8", network)
    for data in (config.to_json(), {"config": config.to_json()}, {"spec": {"config": config.to_json()}}):
        (tmp_path / "config.json").write_text(json.dumps(data))
        read = read_config(str(tmp_path / "config.json"), "resnet8", network)
        assert network.digest(read) == network.digest(config)
