import numpy as np
import pytest

from layers import UsageError
from search.study.amounts import parse_amount

FACTORS = {"": 1, "k": 10**3, "M": 10**6, "g": 10**9, "T": 10**12}


@pytest.mark.parametrize("prefix", FACTORS)
@pytest.mark.parametrize("unit", ["", "B", "bytes", "FLOPs", "flop"])
def test_a_text_is_a_number_times_its_prefix(rng, prefix, unit):
    number = rng.randrange(1, 10**20)
    assert parse_amount(f" {number} {prefix}{unit} ", name="max_size") == number * FACTORS[prefix]
    thousandths = rng.randrange(1, 10**6) * 1000
    text = f"{thousandths // 1000}.{thousandths % 1000:03}{prefix}{unit}"
    assert parse_amount(text, name="max_size") == thousandths * FACTORS[prefix] // 1000


@pytest.mark.parametrize(
    ("text", "amount"),
    [("40kB", 40_000), ("1.5MB", 1_500_000), ("300MFLOPs", 300_000_000), ("2 g", 2 * 10**9), (".5k", 500)],
)
def test_prefixes_are_decimal(text, amount):
    assert parse_amount(text, name="max_size") == amount


@pytest.mark.parametrize("kind", [int, str, np.int64])
def test_whole_numbers_are_exact(rng, kind):
    number = rng.randrange(2**53, 2**63)
    assert parse_amount(kind(number), name="max_size") == number
    assert type(parse_amount(kind(number), name="max_size")) is int


@pytest.mark.parametrize("number", [10**400, 2**1024], ids=["10**400", "2**1024"])
def test_whole_numbers_may_be_larger_than_any_float(number):
    assert parse_amount(number, name="max_size") == parse_amount(str(number), name="max_size") == number


@pytest.mark.parametrize(
    ("amount", "whole"),
    [(2.4, 2), (2.6, 3), (1e6, 10**6), (0.6, 1), (np.float32(1.5e3), 1500), ("0.6", 1), ("1.", 1), ("1.0006k", 1001)],
)
def test_fractions_are_rounded(amount, whole):
    assert parse_amount(amount, name="max_flops") == whole


@pytest.mark.parametrize(
    "amount",
    [
        *(0, -1, 0.4, -2.5, float("nan"), float("inf"), -float("inf"), np.float64("inf")),
        *(
            "0",
            "0.4",
            "0.0004k",
            "0.0B",
            "",
            " ",
            "k",
            "1e6",
            "-5",
            "1,5",
            "5 kk",
            "kB",
            "5 apples",
            "5 k B x",
            "5kb/s",
            "inf",
            "nan",
            ".",
        ),
        *(None, True, [5], {}, b"5k", 5j),
    ],
)
def test_what_is_no_amount_is_named(amount):
    with pytest.raises(UsageError, match=r"^max_size \(=.*\) must be an amount above 0 such as 40kB, 1.5MB, 5M or 250"):
        parse_amount(amount, name="max_size")
