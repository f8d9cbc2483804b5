from collections.abc import Callable

import pytest

from search.commands.cli import run

Overtone = Callable[..., tuple[int, str, str]]


@pytest.fixture
def overtone(capsys: pytest.CaptureFixture[str]) -> Overtone:
    """Runs a command in this process: its exit code, output and errors."""

    def run_command(*argv: str) -> tuple[int, str, str]:
        code = run(list(argv))
        out, err = capsys.readouterr()
        return code, out, err

    return run_command
