"""Where else a study can be seen."""

from pathlib import Path

import pytest

from layers import OvertoneError
from search.runner.dashboards import TensorBoard


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OvertoneError, match=r"cannot write TensorBoard's files to"):
        TensorBoard(tmp_path / "file", "s")
