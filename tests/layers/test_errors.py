import errno
import os

import pytest

from layers import OvertoneError, OvertoneWarning, UsageError
from layers.errors import first_line, translate_errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a text"), "a text"),
        (ValueError("a text."), "a text"),
        (ValueError("\n  a text.\nand more.\n"), "a text"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (KeyError("name"), "'name'"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/some/path"), "No space left on device"),
        (FileNotFoundError("no such file in the archive.\n"), "no such file in the archive"),
        (OSError(), "OSError"),
    ],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected


def test_an_error_of_those_kinds_becomes_ours():
    cause = KeyError("name")
    with (
        pytest.raises(OvertoneError, match=r"^cannot read 'x': 'name'$") as raised,
        translate_errors("cannot read 'x'", ValueError, LookupError),
    ):
        raise cause
    assert type(raised.value) is OvertoneError
    assert raised.value.__cause__ is cause


def test_it_may_become_a_usage_error():
    with (
        pytest.raises(UsageError, match=r"^cannot read 'x': no such thing$"),
        translate_errors("cannot read 'x'", ValueError, to=UsageError),
    ):
        raise ValueError("no such thing.\nReally.")


@pytest.mark.parametrize(
    "error", [OvertoneError("ours"), UsageError("ours"), TypeError("ours"), KeyboardInterrupt("ours")]
)
def test_our_own_errors_and_other_kinds_pass(error):
    with (
        pytest.raises(type(error), match=r"^ours$") as raised,
        translate_errors("cannot read 'x'", ValueError, OSError),
    ):
        raise error
    assert raised.value is error


def test_a_block_without_an_error_is_left_alone():
    with translate_errors("cannot read 'x'", ValueError):
        found = 3
    assert found == 3


def test_wrong_use_is_a_value_error_and_a_warning_is_for_users():
    assert issubclass(UsageError, ValueError)
    assert issubclass(UsageError, OvertoneError)
    assert issubclass(OvertoneWarning, UserWarning)
