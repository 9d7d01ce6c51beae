"""Tests use what users can use: none reaches into a private attribute of the library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "iba_core", ROOT / "backends" / "torch" / "iba_torch", ROOT / "backends" / "tf" / "iba_tf"]
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))

BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
"""Functions and methods, `monkeypatch.setattr` among them, that take an attribute's name as a string."""


FRAMEWORKS = {"_buffers", "_config", "_forward_hooks", "_mode", "_modules", "_parameters", "_version"}
"""Names of the library that are also names of objects of PyTorch, Keras or TensorFlow."""

PUBLISHED = {
    "_active_neurons",
    "_alpha_grads",
    "_buffer_capacity",
    "_estimator",
    "_get_session",
    "_graph",
    "_information_loss",
    "_loss",
    "_mean",
    "_model_loss",
    "_outputs",
    "_restrict_flow",
    "_session",
    "_std",
    "_use_layer_input",
}
"""Names that the published package IBA gives what its own tests and notebooks use."""


def is_private(name: str) -> bool:
    # Names such as `__len__` and `_repr_html_` are protocols.
    return name.startswith("_") and not name.endswith("_") and name not in FRAMEWORKS


def defined(tree: ast.AST) -> Iterator[str]:
    """The private names that a module defines: functions, classes, variables, attributes and fields."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                yield name


def used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and names of private things that a module takes from elsewhere.

    What a class of the module keeps on `self` is its own.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name):
                names = [name]
            case ast.ImportFrom(names=imported):
                names = [alias.name for alias in imported]
            case ast.Call(
                func=ast.Name(id=function) | ast.Attribute(attr=function),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if function in BY_NAME:
                names = [name.rpartition(".")[2]]
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[ast.Constant(value=str(name)), *_]):
                names = [name.rpartition(".")[2]]
            case _:
                continue
        yield from ((node.lineno, name) for name in names if is_private(name))


@pytest.fixture(scope="module")
def library() -> set[str]:
    """Every private name of the library."""
    modules = (path for package in PACKAGES for path in package.rglob("*.py"))
    return {
        name
        for path in modules
        for name in defined(ast.parse(path.read_text(encoding="utf-8")))
        if is_private(name)
    }


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_no_private_access(library, path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    # A name that the test itself defines is its own.
    own = set(defined(tree))
    if path.parts[:2] == ("tests", "compat"):
        own |= PUBLISHED
    found = sorted({(line, name) for line, name in used(tree) if name in library - own})
    assert not found, "\n" + "\n".join(f"{path}:{line}: {name}" for line, name in found)


CODE = """
from iba_core.cache import _make, make
explainer._head.tail = 1
self._own = explainer.layer
monkeypatch.setattr(explainer, "_other", None)
monkeypatch.setattr("iba_core.cache._table", None)
explainer.__dict__
getattr(explainer, "_third")
"""


def test_the_check_can_fail():
    assert list(used(ast.parse(CODE))) == [
        (2, "_make"),
        (5, "_other"),
        (6, "_table"),
        (8, "_third"),
        (3, "_head"),
    ]
    names = set(defined(ast.parse("class A:\n    def _f(self): self._x = 1\n_y = 2\n    \n")))
    assert {"_f", "_x", "_y"} <= names
