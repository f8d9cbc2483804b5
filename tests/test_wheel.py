"""The wheel holds all of the packages and nothing else, and works where there is no checkout.

It is built from a copy of the checkout and installed in a new environment. That borrows the libraries of the running
one by a path file, which does not run the path files it finds there: an editable install of the checkout stays unseen.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import typer

from search.commands.cli import app

ROOT = Path(__file__).parents[1]
IMPORT_ALL = """
import importlib, json, sys
print(json.dumps({name: importlib.import_module(name).__file__ for name in sys.argv[1:]}))
"""
pytestmark = pytest.mark.slow


def _output(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, without the checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all files that git does not ignore: a build writes beside them."""
    copy = tmp_path_factory.mktemp("checkout")
    listed = _output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not where it was removed and that is not yet committed
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def top_level(checkout: Path) -> tuple[set[str], set[str]]:
    """The packages and the modules that pyproject.toml puts at the top."""
    setuptools = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.partition(".")[0] for name in setuptools["packages"]}
    return packages, set(setuptools.get("py-modules", []))


@pytest.fixture(scope="module")
def sources(checkout: Path, top_level: tuple[set[str], set[str]]) -> set[str]:
    """What the wheel must hold, listed before anything is built: every file of the packages, and the modules."""
    packages, modules = top_level
    files = (path for name in packages for path in (checkout / name).rglob("*") if path.is_file())
    return {path.relative_to(checkout).as_posix() for path in files} | {f"{name}.py" for name in modules}


@pytest.fixture(scope="module")
def wheel(checkout: Path, sources: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    _output(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", out, checkout, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def files(wheel: Path) -> set[str]:
    """The wheel's files without those about it."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if not PurePosixPath(name).parts[0].endswith(".dist-info")}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    python = root / "bin" / "python"
    _output(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=root)
    # Only now: before, pip would have found the running environment's Overtone and replaced it.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root)}))
    lent = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    return root


def test_holds_every_file_of_the_packages_and_nothing_else(files: set[str], sources: set[str]) -> None:
    assert files == sources


def test_every_package_says_that_it_is_typed(files: set[str], top_level: tuple[set[str], set[str]]) -> None:
    packages, _ = top_level
    assert {f"{name}/py.typed" for name in packages} <= files


def test_every_module_imports_away_from_the_checkout(files: set[str], environment: Path, tmp_path: Path) -> None:
    paths = (PurePosixPath(name) for name in files if name.endswith(".py"))
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
    modules = sorted(name for name in names if not name.endswith("__main__"))
    found = json.loads(_output(environment / "bin" / "python", "-c", IMPORT_ALL, *modules, cwd=tmp_path))
    assert list(found) == modules
    elsewhere = {name: path for name, path in found.items() if not Path(path).is_relative_to(environment)}
    assert not elsewhere


def test_command_line_runs_away_from_the_checkout(environment: Path, wheel: Path, tmp_path: Path) -> None:
    overtone, group = environment / "bin" / "overtone", typer.main.get_group(app)
    shown = _output(overtone, "--help", cwd=tmp_path)
    assert set(group.commands) <= {line.split()[0] for line in shown.splitlines() if line.strip()}
    if any("--version" in parameter.opts for parameter in group.params):
        assert wheel.name.split("-")[1] in _output(overtone, "--version", cwd=tmp_path)
