"""The check of calls finds what is wrong."""

import pytest

from tests.docs.calls import called, check_calls


class Study:
    def optimize(self, n_trials: int = 24, *, more: int | None = None) -> None: ...


def test_calls_that_fit_are_counted() -> None:
    code = "from json import dumps\nimport json\nstudy.optimize(100, more=None)\nprint(json.loads(dumps({})))"
    assert sorted(check_calls(code, {"study": Study})) == ["dumps", "json.loads", "study.optimize"]
    assert called(code) == {"optimize", "print", "loads", "dumps"}


@pytest.mark.parametrize("call", ["study.optimize(trials=3)", "study.optimize(1, 2)"])
def test_arguments_that_do_not_fit_are_named(call: str) -> None:
    with pytest.raises(TypeError, match=r"^study\.optimize: (got an unexpected keyword|too many positional)"):
        check_calls(call, {"study": Study})


@pytest.mark.parametrize("code", ["study.optimise()", "print(study.fronts)", "import json\njson.load_all()"])
def test_names_that_are_not_there_are_found(code: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute"):
        check_calls(code, {"study": Study})
