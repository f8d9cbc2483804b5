import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layers import OvertoneWarning
from layers.files import cache_folder
from layers.kernels import CSRC, cpu
from layers.templates import kernels
from layers.templates.gather import template_gather

MIRRORS = {"gather.c": ("Gather", kernels._Gather), "fused.c": ("Layer", kernels._Convolution)}


@pytest.fixture
def _forgotten(monkeypatch, tmp_path):
    """A process that has loaded no library, whose cache folder is empty."""
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "cache"))
    cpu.library.cache_clear()
    cpu._version.cache_clear()
    yield
    cpu.library.cache_clear()
    cpu._version.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path, _forgotten):
    """A C compiler of a version that a file names, and the file in which it notes down what it compiles."""
    real = shutil.which("cc")
    if real is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path / "compiler"
    folder.mkdir()
    (folder / "version").write_text("our cc 1.0\nand more\n")
    (folder / "log").touch()
    script = folder / "cc"
    script.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(folder))}\n"
        f'if [ "$1" = --version ]; then cat version; else echo "$@" >> log; exec {real} "$@"; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return folder


@pytest.fixture
def source(tmp_path):
    """A source that gives the number of its header, plus one if ONE is defined."""
    (tmp_path / "outer.h").write_text('  #  include "inner.h"\n')
    (tmp_path / "inner.h").write_text("#define NUMBER 3\n")
    path = tmp_path / "number.c"
    path.write_text(
        '#include "outer.h"\n#ifndef ONE\n#define ONE 0\n#endif\nint number(void) { return NUMBER + ONE; }\n'
    )
    return path


def number_of(source, macros=()):
    """The number that a new process gets from the source."""
    cpu.library.cache_clear()
    library = cpu.library(str(source), macros)
    return None if library is None else library.number()


def compiled(compiler):
    return len((compiler / "log").read_text().splitlines())


def kept():
    return sorted((cache_folder() / "kernels").glob("*"))


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", ""])
def test_without_a_compiler_that_works_there_is_no_library(compiler, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    assert cpu.library("gather.c") is None


@pytest.mark.usefixtures("compiler")
def test_sources_that_do_not_compile_are_none_and_leave_nothing(tmp_path):
    (tmp_path / "broken.c").write_text("int x = ;")
    assert cpu.library(str(tmp_path / "broken.c")) is None
    assert kept() == []


def test_a_library_is_loaded_once():
    found = cpu.library("gather.c")
    if found is None:
        pytest.skip("there is no C compiler")
    assert isinstance(found, ctypes.CDLL)
    assert cpu.library("gather.c") is found


def test_the_next_process_compiles_nothing(compiler, source):
    assert number_of(source) == number_of(source) == 3
    assert compiled(compiler) == 1
    (path,) = kept()
    assert re.fullmatch(r"number-[0-9a-f]{64}\.so", path.name)


@pytest.mark.parametrize("change", ["source", "header", "macro", "version", "processor", "flags", "compiler"])
def test_what_is_made_from_other_things_is_compiled_anew(change, compiler, source, monkeypatch, tmp_path):
    assert number_of(source) == 3
    expected, macros = 3, ()
    if change == "source":
        source.write_text(source.read_text() + "\n")
    elif change == "header":
        (tmp_path / "inner.h").write_text("#define NUMBER 5\n")
        expected = 5
    elif change == "macro":
        expected, macros = 4, ("ONE=1",)
    elif change == "version":
        (compiler / "version").write_text("our cc 1.1\n")
        cpu._version.cache_clear()
    elif change == "processor":
        monkeypatch.setattr(cpu, "_processor", lambda: "another")
    elif change == "flags":
        monkeypatch.setattr(cpu, "_TUNED", ((),))
    else:
        other = shutil.copy(compiler / "cc", compiler / "other")
        monkeypatch.setenv("CC", str(other))
    assert number_of(source, macros) == expected
    assert compiled(compiler) == 2
    assert len(kept()) == 2


def test_more_lines_of_the_compilers_version_do_not_count(compiler, source):
    number_of(source)
    (compiler / "version").write_text("our cc 1.0\nand something else\n")
    cpu._version.cache_clear()
    number_of(source)
    assert compiled(compiler) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda code: b"",
        lambda code: b"not a library",
        lambda code: code[: len(code) // 2],
        lambda code: code[:-1],
        lambda code: code[: len(code) // 2] + bytes(len(code) - len(code) // 2),
        lambda code: code[:-32],
    ],
)
def test_a_kept_file_that_is_not_whole_is_compiled_anew(spoil, compiler, source):
    assert number_of(source) == 3
    (path,) = kept()
    content = path.read_bytes()
    path.write_bytes(spoil(content))
    assert number_of(source) == 3
    assert compiled(compiler) == 2
    assert kept() == [path]
    assert number_of(source) == 3
    assert compiled(compiler) == 2


def test_a_kept_file_that_this_machine_cannot_load_is_compiled_anew(compiler, source):
    assert number_of(source) == 3
    (path,) = kept()
    foreign = b"\x7fELF of another machine"
    path.write_bytes(foreign + hashlib.sha256(foreign).digest())
    assert number_of(source) == 3
    assert compiled(compiler) == 2


def test_where_nothing_can_be_kept_every_process_compiles(compiler, source, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OVERTONE_CACHE", str(tmp_path / "file" / "cache"))
    assert number_of(source) == number_of(source) == 3
    assert compiled(compiler) == 2


def test_a_disk_that_is_full_and_a_missing_home_are_no_failure(compiler, source, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cpu, "atomic_write", full)
    assert number_of(source) == 3
    monkeypatch.setattr(cpu, "cache_folder", full)
    assert number_of(source) == 3
    assert compiled(compiler) == 2


@pytest.mark.usefixtures("compiler")
def test_others_may_read_what_is_kept(source):
    before = os.umask(0o022)
    try:
        number_of(source)
    finally:
        os.umask(before)
    assert [entry.stat().st_mode & 0o777 for entry in kept()] == [0o644]


def test_two_processes_at_once_both_have_a_library_and_leave_one_whole_file(compiler, source):
    code = f"from layers.kernels import cpu; assert cpu.library({str(source)!r}).number() == 3"
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=CSRC.parents[1]) for _ in range(2)]
    assert [process.wait(timeout=100) for process in both] == [0, 0]
    before = compiled(compiler)
    assert number_of(source) == 3
    assert compiled(compiler) == before
    assert len(kept()) == 1


def test_a_processor_has_a_name():
    assert cpu._processor().strip()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        assert all(line in text for line in cpu._processor().splitlines()[1:])


@pytest.mark.parametrize("name", MIRRORS)
def test_structs_have_the_same_fields_in_the_same_order(name):
    struct, mirror = MIRRORS[name]
    text = re.sub(r"/\*.*?\*/", "", (CSRC / name).read_text(), flags=re.DOTALL)
    body = re.search(rf"typedef struct \{{([^}}]*)\}} {struct};", text)[1]
    parts = [part.strip() for line in body.split(";") for part in line.split(",") if part.strip()]
    fields = [re.search(r"(\*?)(\w+)((?:\[2\])?)$", part).groups() for part in parts]
    kinds = {ctypes.c_void_p: ("*", ""), ctypes.c_int64: ("", ""), kernels._Pair: ("", "[2]")}
    assert fields == [(kinds[kind][0], field, kinds[kind][1]) for field, kind in mirror._fields_]


@pytest.mark.parametrize("name", MIRRORS)
def test_the_structs_of_c_and_python_are_laid_out_alike(name):
    if cpu.library(name) is None:
        pytest.skip("there is no C compiler")
    assert cpu.library(name, mirror=MIRRORS[name][1]) is not None


class _Short(ctypes.Structure):
    _fields_ = kernels._Gather._fields_[:-1]


class _Shuffled(ctypes.Structure):
    _fields_ = (*kernels._Gather._fields_[:-2], kernels._Gather._fields_[-1], kernels._Gather._fields_[-2])


class _Renamed(ctypes.Structure):
    _fields_ = (*kernels._Gather._fields_[:-1], ("dilations", kernels._Pair))


@pytest.mark.parametrize("mirror", [_Short, _Shuffled, _Renamed])
def test_a_struct_that_is_laid_out_otherwise_is_not_used(mirror):
    if cpu.library("gather.c") is None:
        pytest.skip("there is no C compiler")
    message = rf"^gather\.c is not used: it lays its struct out otherwise than Python \({mirror.__name__}\)$"
    with pytest.warns(OvertoneWarning, match=message):
        assert cpu.library("gather.c", mirror=mirror) is None


@pytest.mark.usefixtures("compiler")
def test_a_source_that_does_not_export_its_struct_is_not_used(source):
    with pytest.warns(OvertoneWarning, match=r"number\.c is not used"):
        assert cpu.library(str(source), mirror=_Short) is None


def test_gathering_goes_on_without_a_struct_that_fits(monkeypatch, normal):
    if cpu.library("gather.c") is None:
        pytest.skip("there is no C compiler")
    arguments = (
        normal(1, 9 * 2, 4, 4).float(),
        normal(3, 1, 9).float(),
        torch.tensor([0, 1, 0]),
        *([[3, 3]] + 3 * [[1, 1]]),
    )
    expected = template_gather(*arguments)
    monkeypatch.setattr(kernels, "_Gather", _Shuffled)
    with pytest.warns(OvertoneWarning, match=r"^gather\.c is not used"):
        found = template_gather(*arguments)
    assert torch.allclose(found, expected, atol=1e-5)
