"""Every public name has a docstring with an example, and the examples run.

Examples see the names of their own module and of the package that exports them, and a few more. `np` is
NumPy. `model` is a small convolutional network for images of 8 x 8 pixels, with the layers "conv", "relu",
"pool", "flat" and "logits" (three classes). `layer` is "relu", `x` holds two images, `batches` is a list of
batches of images, and `explainer` is an `Explainer` of `model`, fitted at `layer`. Examples of `iba_torch`
also have `torch` and `nn`, those of `iba_tf` have `tf` and `keras`.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import io
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from iba_core import Explainer
from tests.backends import BACKENDS, Activation, AveragePool, Backend, Conv, Dense, Flatten

PACKAGES = [
    "iba_core",
    "iba_core.concepts",
    "iba_core.datasets",
    "iba_core.evaluation",
    "iba_torch",
    "iba_torch.concepts",
    "iba_tf",
    "iba_tf.concepts",
]

# What all users import has its names in `__all__`. Here every public class and function counts.
WINGS = [
    "iba_core.evaluation",
    "iba_core.framework",
    "iba_core.bottleneck",
    "iba_core.readout",
    "iba_core.pictures",
]

FRAMEWORK = {"iba_torch": "torch", "iba_tf": "tensorflow"}

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

LAYERS = [Conv("conv", 4), Activation("relu"), AveragePool("pool", 2), Flatten("flat"), Dense("logits", 3)]


def exported(package: str) -> list[str]:
    """The names in `__all__` of a package, without importing it where its framework is not installed."""
    if not is_installed(package):
        return []
    return [f"{package}.{name}" for name in importlib.import_module(package).__all__]


def is_installed(package: str) -> bool:
    framework = FRAMEWORK.get(package.partition(".")[0])
    return framework is None or importlib.util.find_spec(framework) is not None


def modules(package: str) -> list[Any]:
    """All modules of a package, where its framework is installed."""
    if not is_installed(package):
        return []
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(root.__path__, f"{package}.")
    return [root, *(importlib.import_module(info.name) for info in found)]


def examples_elsewhere() -> dict[str, tuple[str, str]]:
    """Examples of all other docstrings: by the name, the module and the docstring."""
    known = {inspect.getdoc(load(name)) for name in NAMES}
    return {
        test.name: (module.__name__, test.docstring)
        for package in ("iba_core", *FRAMEWORK)
        for module in modules(package)
        for test in doctest.DocTestFinder().find(module)
        if test.examples and inspect.cleandoc(test.docstring) not in known
    }


def public(package: str) -> Iterator[str]:
    """The public classes and functions that the modules of a package define."""
    path = importlib.import_module(package).__path__
    for info in pkgutil.iter_modules(path, f"{package}."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == info.name
            if is_own and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                yield f"{info.name}.{name}"


def load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


NAMES = [name for package in PACKAGES for name in exported(package)]
"""What a user imports: with an example each."""

ELSEWHERE = examples_elsewhere()
"""Examples of methods, and of what is not exported: they run too."""

PARTS = [name for package in WINGS for name in public(package)]
"""What the library is built of: with a docstring each."""


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class that our packages define."""
    if not inspect.isclass(value):
        return
    for name in dir(value):
        member = inspect.getattr_static(value, name)
        member = getattr(member, "__func__", member)
        function = member.fget if isinstance(member, property) else member
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        if function.__module__.partition(".")[0] in ("iba_core", "iba_torch", "iba_tf"):
            yield name, member


def make_names(modules: list[Any], source: str) -> dict[str, Any]:
    """The names that examples may use; what takes time only where it is used."""
    package = modules[0].__name__.partition(".")[0]
    names: dict[str, Any] = {"np": np}
    for module in modules:
        names = {**vars(module), **names}
    installed = [kind for kind in BACKENDS.values() if is_installed(kind.package)]
    backend: Backend = next(kind for kind in installed if kind.package == package or package == "iba_core")()
    if backend.name == "torch":
        names |= {"torch": backend.torch, "nn": backend.torch.nn}
    else:
        names |= {"tf": backend.tf, "keras": backend.keras}
    if re.search(r"\b(model|x|batches|explainer)\b", source):
        images = np.random.default_rng(0).normal(size=(22, 8, 8, 3)).astype(np.float32)
        images = backend.images(images)
        model = backend.network((8, 8, 3), LAYERS)
        tensor = np.asarray if package == "iba_core" else backend.asarray
        batches = [tensor(images[i : i + 11]) for i in (0, 11)]
        names |= {"model": model, "layer": "relu", "x": tensor(images[:2]), "batches": batches}
        if re.search(r"\bexplainer\b", source):
            names["explainer"] = Explainer(model, "relu").fit([images], progbar=False)
    return names


def run(name: str, docstring: str, *module_names: str) -> str:
    """Run the examples of a docstring with the names of some modules; what went wrong, or nothing."""
    test = doctest.DocTestParser().get_doctest(docstring, {}, name, name, 0)
    assert not any(doctest.SKIP in example.options for example in test.examples), "an example is skipped"
    modules = [importlib.import_module(module) for module in module_names]
    test.globs = make_names(modules, "".join(example.source for example in test.examples))
    output = io.StringIO()
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=output.write)
    return output.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Examples write their files here, and draw without a window."""
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("folder")
def test_example(name):
    value = load(name)
    docstring = inspect.getdoc(value) or ""
    assert doctest.DocTestParser().get_examples(docstring), f"the docstring of {name} has no example"
    failures = run(name, docstring, name.rpartition(".")[0], value.__module__)
    assert not failures, f"\n{failures}"


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.usefixtures("folder")
def test_other_example(name):
    module, docstring = ELSEWHERE[name]
    failures = run(name, docstring, module)
    assert not failures, f"\n{failures}"


@pytest.mark.parametrize("name", [*NAMES, *PARTS])
def test_docstring(name):
    value = load(name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    without = [member for member, each in members(value) if not inspect.getdoc(getattr(value, member))]
    assert not without, f"{name} has members without a docstring: {', '.join(without)}"


# -- the check can fail ------------------------------------------------------------------------------


def test_a_wrong_example_fails():
    assert "Expected" in run("wrong", "Adds.\n\n    >>> 1 + 1\n    3\n", "iba_core")
    assert "NameError" in run("unknown", "Adds.\n\n    >>> unknown\n    3\n", "iba_core")
    with pytest.raises(AssertionError, match="is skipped"):
        run("skipped", "Adds.\n\n    >>> 1 + 1  # doctest: +SKIP\n    3\n", "iba_core")


@pytest.mark.parametrize("package", ["iba_core", *FRAMEWORK])
def test_examples_have_a_model(package):
    if not is_installed(package):
        pytest.skip("the framework is not installed")
    text = """Explains.

    >>> tuple(explainer.explain(x, target=2, seed=0).saliency.shape)
    (2, 8, 8)
    >>> explainer.layer
    'relu'
    """
    assert run(package, text, package) == ""
