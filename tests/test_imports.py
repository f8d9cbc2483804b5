"""What an import brings along, and the names that packages give on demand."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("layers", "spaces", "trainers", "results", "search", "overtone")
HEAVY = ("torch", "torchvision", "ray", "optuna", "matplotlib", "plotly")
TABLES = ("pandas", "duckdb", "scipy", "sklearn", "rich")
ARRAYS = ("numpy", "pyarrow")
PLAIN = (
    *("layers", "layers.blockfloat", "layers.blockfloat.format", "layers.cost", "layers.errors", "layers.files"),
    *("layers.form", "layers.series.basis", "layers.templates.count", "layers.templates.transforms"),
    *("spaces", "spaces.blocks", "spaces.card", "spaces.config", "spaces.effects"),
    *("spaces.network", "spaces.papers", "spaces.portable", "spaces.space"),
    *("trainers", "trainers.data", "trainers.data.spec", "trainers.score", "trainers.spec", "trainers.start.choices"),
    *("trainers.training.recipe", "results", "results.formatting", "results.objectives"),
    *("search", "search.commands.cli", "search.study.objects", "search.study.parsing", "search.study.plan", "overtone"),
)
IMPORT_ALL = """
import sys
from importlib import import_module
modules, heavy = (set(argument.split()) for argument in sys.argv[1:])
for module in sorted(modules):
    import_module(module)
    if brought := heavy & sys.modules.keys():
        sys.exit(f"{module} brings {', '.join(sorted(brought))}")
"""


def _modules(*rooms: str) -> tuple[str, ...]:
    paths = (path for room in rooms for path in sorted((ROOT / room).glob("*.py")) if path.stem != "__init__")
    return tuple(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        pytest.param(PLAIN, HEAVY + TABLES + ARRAYS, id="plain data"),
        pytest.param(_modules("results/ledger", "results/pareto"), HEAVY + TABLES, id="ledger"),
        pytest.param(_modules("results/queries", "results/analysis"), HEAVY, id="queries and analysis"),
    ],
)
def test_an_import_brings_nothing_heavy(modules, heavy):
    command = [sys.executable, "-c", IMPORT_ALL, " ".join(modules), " ".join(heavy)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_help_pages_bring_nothing_heavy(command_names):
    """Pydantic is what typer coerces values with."""
    code = (
        "import sys\n"
        "from search.commands.cli import run\n"
        "for command in sys.argv[1].split(','):\n"
        "    assert run([*command.split(), '--help']) == 0, command\n"
        "brought = sorted(set(sys.argv[2].split()) & sys.modules.keys())\n"
        "assert not brought, brought\n"
    )
    heavy = " ".join((*HEAVY, *TABLES, *ARRAYS, "pydantic", "yaml"))
    command = [sys.executable, "-c", code, ",".join(["", *command_names]), heavy]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stderr.strip(), done.returncode) == ("", 0)
    assert all(f"overtone {name} " in " ".join(done.stdout.split()) for name in command_names)


def _source(package: str) -> Path:
    folder = ROOT / package.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def _lazy_packages() -> Iterator[str]:
    for root in PACKAGES:
        sub_packages = (".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / root).rglob("__init__.py"))
        for package in sorted({root, *sub_packages}):
            if "lazy_names(" in _source(package).read_text():
                yield package


def _submodules(package: ModuleType) -> Iterator[str]:
    """Names of all modules below a package, with its own, but those that run when they are imported."""
    found = pkgutil.walk_packages(getattr(package, "__path__", ()), f"{package.__name__}.")
    return (module.name for module in found if not module.name.endswith("__main__"))


@pytest.fixture(scope="module")
def _all_imported() -> None:
    for package in PACKAGES:
        for name in _submodules(import_module(package)):
            import_module(name)


def _typed_homes(tree: ast.Module) -> dict[str, list[str]]:
    """The names that an `if TYPE_CHECKING:` imports, by the module that has them."""
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {str(node.module): [alias.name for alias in node.names] for node in imports}


def _lazy_homes(tree: ast.Module) -> dict[str, list[str]]:
    """The names that `lazy_names` is given, by the module that has them."""
    (call,) = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "lazy_names")
    return {home: list(names) for home, names in ast.literal_eval(call.args[1]).items()}


def _defined(module: str) -> set[str]:
    """The names that a module defines itself."""
    defined = set()
    for node in ast.parse(_source(module).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined.update(target.id for target in targets if isinstance(target, ast.Name))
    return defined


@pytest.mark.parametrize("name", tuple(_lazy_packages()))
@pytest.mark.usefixtures("_all_imported")
def test_a_package_gives_the_names_of_its_modules_on_demand(name):
    package, tree = import_module(name), ast.parse(_source(name).read_text())
    homes = _lazy_homes(tree)
    assert homes == _typed_homes(tree)
    assert sorted(package.__all__) == sorted(name for names in homes.values() for name in names)
    below = {module.name for module in pkgutil.iter_modules(getattr(package, "__path__", ()))}
    assert below.isdisjoint(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for home, names in homes.items():
        assert set(names) <= _defined(home)
        for public in names:
            vars(package).pop(public, None)
            value = getattr(package, public)
            assert value is getattr(import_module(home), public)
            assert value is vars(package)[public]
            assert not isinstance(value, ModuleType)
    with pytest.raises(AttributeError, match=f"^module '{name}' has no attribute 'nothing'$"):
        package.nothing  # noqa: B018
