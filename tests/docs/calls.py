"""Whether the calls in a piece of code fit the signatures of what they call, without running any of it."""

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["called", "check_calls", "names_used"]


def called(code: str) -> set[str]:
    """Return the names of the functions and methods that the code calls."""
    functions = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in functions}


def names_used(code: str) -> set[str]:
    """Return the variables of the code."""
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def check_calls(code: str, instances: Mapping[str, type]) -> list[str]:
    """Return what is called of imported names and of `instances` (variables and their classes).

    Raises AttributeError for a name that is not there, and TypeError for arguments that do not fit.
    """
    tree = ast.parse(code)
    known = {**dict(_imported(tree)), **instances}
    checked = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _resolve(node, known)
        if isinstance(node, ast.Call) and (function := _resolve(node.func, known)) is not None:
            text = ast.unparse(node.func)
            before = [None] if _is_method(node.func, instances) else []
            given = [None] * len(node.args)
            try:
                inspect.signature(function).bind(
                    *before, *given, **{word.arg: None for word in node.keywords if word.arg}
                )
            except TypeError as error:
                raise TypeError(f"{text}: {error}") from error
            checked.append(text)
    return checked


def _imported(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.asname or name.name, importlib.import_module(name.name)) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            yield from ((name.asname or name.name, getattr(module, name.name)) for name in node.names)


def _resolve(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Return what the expression names, None where only running it would tell."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _resolve(node.value, known)) is not None:
        return getattr(owner, node.attr)
    return None


def _is_method(node: ast.expr, instances: Mapping[str, type]) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in instances
