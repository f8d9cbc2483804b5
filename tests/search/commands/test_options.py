import pytest

from layers import UsageError
from search.commands.options import parse_amount


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
