import pytest

from layers.errors import OvertoneError
from trainers.data.unreadable import check_unreadable


def test_no_faults_say_nothing():
    assert check_unreadable("set", [], 10) == ""
    assert check_unreadable("set", [], 0) == ""


def test_few_faults_are_counted_and_three_named():
    assert (
        check_unreadable("set", ["a is empty"], 100)
        == "1 of 100 images of 'set' cannot be used and are left out: a is empty"
    )
    assert check_unreadable("set", list("abcd"), 400).endswith(
        "4 of 400 images of 'set' cannot be used and are left out: a, b, c, ..."
    )


@pytest.mark.parametrize("total", [1, 10, 99])
def test_more_than_one_in_a_hundred_is_refused(total):
    with pytest.raises(
        OvertoneError, match=rf"^1 of {total} images of 'set' cannot be used: a; at most 1 % of a split"
    ):
        check_unreadable("set", ["a"], total)


@pytest.mark.parametrize("total", [700, 2900, 5700])  # where 0.01 * total is no whole number in floating point
def test_exactly_one_in_a_hundred_is_tolerated(total):
    assert check_unreadable("set", ["x"] * (total // 100), total).startswith(f"{total // 100} of {total}")
    with pytest.raises(OvertoneError, match=r"x, x, x, \.\.\.; at most 1 %"):
        check_unreadable("set", ["x"] * (total // 100 + 1), total)
