import warnings

import pytest

from layers import OvertoneWarning, UsageError
from search.commands.options import parse_amount, read_recipe


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


def test_a_schedule_that_cannot_do_its_work_in_so_many_epochs_is_told() -> None:
    with pytest.warns(OvertoneWarning, match=r"^the learning rate would first fall after epoch 82; within 30 it never"):
        read_recipe("resnet", None, epochs=30)
    with pytest.raises(UsageError, match=r"warmup_epochs \(=5\) must be below the 5 epochs"):
        read_recipe("templates-imagenet", None, epochs=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_recipe("resnet", None, epochs=164).milestones == (82, 123)
        assert read_recipe("templates-imagenet", ["warmup_epochs=1"], epochs=5).warmup_epochs == 1
