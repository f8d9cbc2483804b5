import json
import warnings
from pathlib import Path

import pytest

from layers import OvertoneWarning, UsageError
from search.study.parsing import read_config, read_recipe
from spaces import Network


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
    spec = {"format": 2, "config": config.to_json()}
    for data in (config.to_json(), spec, {"spec": spec}):
        (tmp_path / "config.json").write_text(json.dumps(data))
        read = read_config(str(tmp_path / "config.json"), "resnet8", network)
        assert network.digest(read) == network.digest(config)
    for data in ({"config": config.to_json()}, {"spec": {"config": config.to_json()}}):
        (tmp_path / "config.json").write_text(json.dumps(data))
        with pytest.raises(UsageError, match=r"^the spec has no format: in its pre-release of Overtone, bits rounded"):
            read_config(str(tmp_path / "config.json"), "resnet8", network)
