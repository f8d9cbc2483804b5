import io

import pytest
from rich.console import Console

from search.runner.progress import decoding_bar


@pytest.mark.parametrize(("terminal", "asked"), [(True, True), (True, False), (False, True)])
def test_the_bar_of_images_is_there_where_some_are_decoded_on_a_terminal(terminal, asked):
    said = io.StringIO()
    with decoding_bar(Console(file=said, force_terminal=terminal, width=100)) as told:
        for done in (64, 128, 150) if asked else ():
            told(done, 150)
    assert ("reading images" in said.getvalue()) == (terminal and asked)
    assert ("150/150" in said.getvalue()) == (terminal and asked)
    assert said.getvalue() == "" or (terminal and asked)
