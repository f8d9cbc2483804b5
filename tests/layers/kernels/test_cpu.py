import ctypes

import pytest

from layers.kernels import cpu


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", ""])
def test_without_a_compiler_that_works_there_is_no_library(compiler, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert cpu.library("gather.c") is None


@pytest.mark.usefixtures("without_compiler")
def test_sources_that_do_not_compile_and_files_that_do_not_load_are_none(monkeypatch, tmp_path):
    monkeypatch.delenv("CC")
    (tmp_path / "broken.c").write_text("int x = ;")
    assert cpu.library(str(tmp_path / "broken.c")) is None
    assert cpu._loaded(tmp_path / "none.so") is None


def test_a_library_is_compiled_once():
    found = cpu.library("gather.c")
    if found is None:
        pytest.skip("there is no C compiler")
    assert isinstance(found, ctypes.CDLL)
    assert cpu.library("gather.c") is found
