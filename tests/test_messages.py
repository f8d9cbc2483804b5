"""Errors and warnings have one form: `name (=value) must be ...`, or one lower-case clause; no period at the end."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("layers", "spaces", "trainers", "results", "search")
KINDS = {"UsageError", "OvertoneError"}
NAMES = ("CIFAR-10", "CUDA", "GPU", "ONNX", "Optuna", "OVERTONE_CACHE", "Overtone", "PyTorch", "Ray", "TensorBoard")
"""Words that keep their capitals at the beginning."""
VALUE = "\0"


def _text(node: ast.expr) -> str | None:
    """The text of a literal, values within it as `VALUE`; None for anything that is not written here."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return None


def _messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        warns = name == "warn" and any(getattr(arg, "id", "") == "OvertoneWarning" for arg in node.args)
        text = _text(node.args[0]) if name in KINDS or warns else None
        if text is not None:
            yield node.lineno, text


ALL = [
    (f"{path.relative_to(ROOT)}:{line}", text)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    for line, text in _messages(ast.parse(path.read_text()))
]


def _faults(text: str) -> list[str]:
    faults = []
    if text.rstrip().endswith("."):
        faults.append("ends with a period")
    if text[:1].isupper() and not text.startswith(NAMES):
        faults.append("begins with a capital")
    if "(=" in text and " must " not in text:
        faults.append("names a value and does not say what it must be")
    if "is unknown" in text or "; allowed " in text:
        faults.append("says what is allowed in another form than `must be`")
    return faults


def test_messages_have_one_form():
    faults = [f"{place} {fault}: {text!r}" for place, text in ALL for fault in _faults(text)]
    assert not faults, "\n".join(faults)


def test_most_messages_are_seen():
    assert len(ALL) > 250


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("raise UsageError(f'epochs (={n}) is too small')", "must be"),
        ("raise UsageError('Weights are missing')", "capital"),
        ("raise errors.OvertoneError('it broke.')", "period"),
        ("warnings.warn(f'the wait is {n} s.', OvertoneWarning)", "period"),
        ("raise UsageError(f'format {x!r} is unknown; allowed are a, b')", "another form"),
    ],
)
def test_other_forms_are_found(source, fault):
    (message,) = _messages(ast.parse(source))
    assert any(fault in found for found in _faults(message[1]))


def test_the_form_passes():
    for text in (f"epochs (={VALUE}) must be at least 1", f"cannot write {VALUE}: {VALUE}", "Ray is not running"):
        assert not _faults(text)
