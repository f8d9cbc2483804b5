"""The page's scripts read what `report_data` returns: all of it and nothing else.

The scripts are read as text. An element of a list has one name in all of them (`NAMES`), so that its keys can be found.
"""

import json
import re
from importlib.resources import files

import pytest

from results.ledger.ledger import Ledger
from results.ledger.store import Store
from results.report.data import FORMAT
from results.report.report import write_report
from results.schema import TrialStatus
from tests.results.conftest import BLOCKS, RECORD

NAMES = {
    "data": (),
    "T": ("trials",),
    "axis": ("axes", 0),
    "member": ("front", 0),
    "base": ("uncompressed", "at"),
    "landmark": ("published", 0),
    "form": ("networks", "forms", 0),
    "important": ("importance", "shares", 0),
    "effect": ("importance", "effects", 0),
    "part": ("importance", "stages", 0),
    "layer": ("importance", "stages", 0, "blocks", 0),
    "shared": ("importance", "shared", 0),
}
"""Variable of the scripts -> where its value stands in the data."""
FREE = {("uncompressed", "at"), ("published", 0, "at"), ("networks", "forms", 0, "knobs"), ("export", "quoted")}
FREE |= {("sketches", 0, "at")}
"""Objects whose keys are data: costs, knobs, and ids of trials."""
SAME = {("uncompressed", "lines"): ("published", 0, "lines")}
SAME |= {("sketches", 0, key): ("published", 0, key) for key in ("at", "lines")}
"""Values that one function of the scripts reads as the same kind of thing."""

SCRIPTS = "\n".join(
    re.sub(r"(^|\s)//.*", "", path.read_text())
    for path in sorted(files("results.report").joinpath("web").iterdir(), key=str)
    if path.name.endswith(".js")
)
STEP = r"\??\.\w+|(?:\?\.)?\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
CHAINS = re.compile(rf"(?<!\w)(?<![\w)\]?]\.)({'|'.join(NAMES)})\b((?:{STEP})+)")
DESTRUCTURED = re.compile(r"const \{([^}]*)\} = data((?:\.\w+)*)")


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_row):
    """The data of a page that shows everything that a page can show."""
    folder = tmp_path_factory.mktemp("contract")
    ledger = Ledger(Store(folder / "runs"))
    ledger.create_study("demo", {**RECORD, "model": "vgg16", "dataset": "cifar10"})
    digest = ledger.put_model(b"a packed model")
    for number in range(12):
        blocks = [{**BLOCKS[1], "bits": 4 + number % 2}]
        values = {"score": 0.5 + 0.04 * number, "size_bytes": 10_000 + 1_000 * number}
        values |= {"latency_ms": 1.0, "latency_b64_ms": 9.0, "total_s": 3.0, "model_sha256": digest}
        ledger.append(make_row(number=number, blocks=blocks, **values))
    ledger.append(make_row(number=12, seed=1, repeat_of="t000000000"))
    ledger.append(make_row(number=13, status=TrialStatus.FAILED, score=None, error="out of memory"))
    ledger.append(make_row(number=0, trial="abc", status=TrialStatus.SKETCH, score=None, init_score=0.5, epochs_run=0))
    text = write_report(ledger, "demo", folder / "report.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def value_at(data, path):
    for step in path:
        data = data[step]
    return data


def given(data, path=()):
    """Yield the path of every key of the data; an element of a list has the step 0."""
    value = value_at(data, path)
    if isinstance(value, dict) and path not in FREE:
        for key in value:
            yield (*path, key)
            yield from given(data, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        yield from given(data, (*path, 0))


def read(data):
    """Yield the path of every key that the scripts read, whether the data have it or not."""
    for name, steps in CHAINS.findall(SCRIPTS):
        yield from _follow(data, NAMES[name], re.findall(STEP, steps))
    for names, steps in DESTRUCTURED.findall(SCRIPTS):
        path = tuple(steps.split(".")[1:])
        yield from ((*path, name.strip()) for name in names.split(","))


def _follow(data, path, steps):
    for step in steps:
        try:
            value = value_at(data, path)
        except (KeyError, IndexError):
            return
        if isinstance(value, dict) and path not in FREE:
            if step.startswith(("[", "?.[")):
                yield from ((*path, key) for key in value if _named(data, key))
                return
            path = (*path, step.lstrip("?."))
            yield path
        elif isinstance(value, list) and step.startswith(("[", "?.[")):
            path = (*path, 0)
        else:
            return  # a method of a list or text, or a free key


def _named(data, key):
    """Whether the scripts can know a key by which they look up: they or an axis name it."""
    return key in {axis["key"] for axis in data["axes"]} or re.search(rf"'{key}'|[{{,] *{key}:", SCRIPTS) is not None


def test_scripts_read_only_what_is_given(data):
    assert sorted(set(read(data)) - set(given(data)), key=str) == []


def test_all_that_is_given_is_read(data):
    keys_read = set(read(data))
    assert [path for path in given(data) if SAME.get(path, path) not in keys_read] == []


@pytest.mark.parametrize(
    "path", [("study",), ("front", 0, "seeds"), ("trials", "errors"), ("networks", "rows"), ("axes", 0, "unit")]
)
def test_a_key_of_another_name_is_noticed(data, path):
    changed = json.loads(json.dumps(data))
    value_at(changed, path[:-1])["renamed"] = value_at(changed, path[:-1]).pop(path[-1])
    assert path in set(read(changed)) - set(given(changed))
    assert (*path[:-1], "renamed") in set(given(changed)) - set(read(changed))


def test_scripts_check_the_format_that_is_written(data):
    assert data["format"] == FORMAT
    assert re.findall(r"data\.format !== (\d+)", SCRIPTS) == [str(FORMAT)]
