"""Every public callable answers wrong arguments in the library's own words.

The tables of doors say what each argument may be. Hundreds of wrong values are tried here, all of them in
``make soak``.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.totals import write_totals
from tests.robustness.walk import Door, run, walk

SHARE = 0.02
"""Part of the cases that the short run tries."""

TABLES = {"core": None, "torch": "torch", "tf": "tensorflow"}
"""Tables of doors, each with the framework that it needs."""

PAGES = Path(__file__).parents[2] / "docs" / "reference"

KINDS = (
    "tried",
    "doors",
    "arguments",
    "clear sentences",
    "with a meaning",
    "without the name",
    "raw errors",
    "wrongly accepted",
    "endless",
)
"""What the long run counts."""

NOT_WALKED = {
    "Framework|Split|Tail|LayerInfo|ModelAdapter": "for authors of backends, called by the library only",
    "EpochReport|Hyperplane|LayerResult|ConceptAnalysisResult|Attribution$|Repeats|SurvivalCurve": "results",
    "AnnotatedMask|AnnotatedPicture": "results",
    r"datasets\.Record$": "what a run holds",
    "Error$": "exceptions",
    r"evaluation\.(Case|Estimate|Evaluation|Metric|RandomizationResult)$": "results, and what metrics get",
    r"evaluation\.(ModelComparison|(Output|Layer|Map)Difference)$": "results",
    r"\.compat\.": "names of other packages for what is walked under its own",
    "get_tqdm|ifnone": "take anything, or nothing",
    "BatchReduction|iba_core.Shared": "an enumeration, and a mark",
    "distribution_cross_entropy": "a formula inside of compiled steps; `DistributionTarget` checks",
    "iba_core.Target$": "abstract",
    "efficientnet_lite0": "loads pretrained weights",
    "packaged_facts": "takes nothing",
    "packaged_readout": "needs pretrained weights; tested in tests/agreement/test_packaged_statistics.py",
    "token_statistics": "needs a model of texts; tested in tests/core/test_text.py",
    "GraphModel|iba_tf.Sequential|Hyperparameters": "built from a framework's own objects, or plain values",
    "(LayerCAM|XGradCAM|HiResCAM|EigenCAM|EigenGradCAM|GradCAMElementWise)$": "arguments of `GradCAM`",
}
"""Public names that no table has, by a pattern, and why."""


def tables() -> list[str]:
    """The tables whose framework is installed."""
    return [table for table, needed in TABLES.items() if needed is None or importlib.util.find_spec(needed)]


@cache
def doors(table: str) -> list[Door]:
    """The doors of a table, made once."""
    found: list[Door] = import_module(f"tests.robustness.doors_{table}").doors()
    return found


def public_names() -> Iterator[str]:
    """What `__all__` and the reference name."""
    packages = ["iba_core"] + [f"iba_{table}" for table in tables() if table != "core"]
    for package in packages:
        for module in (package, f"{package}.concepts"):
            yield from (f"{module}.{name}" for name in import_module(module).__all__)
    for page in PAGES.glob("*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            if name.partition(".")[0] in packages:
                yield name


def load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("table", tables())
def test_wrong_arguments_are_answered_in_one_sentence(table):
    totals: Counter[str] = Counter()
    faults = [fault for door in doors(table) for fault in walk(door, SHARE, totals)]
    assert not faults, "\n".join(faults)
    assert totals["tried"] > 100


@pytest.mark.soak
@pytest.mark.parametrize("table", tables())
def test_all_wrong_arguments_are_answered_in_one_sentence(table):
    totals: Counter[str] = Counter()
    faults = []
    for door in doors(table):
        run(door)  # arguments that are right work
        faults += walk(door, 1.0, totals)
        totals["arguments"] += len(door.arguments)
        totals["doors"] += 1
    kinds = (
        "tried",
        "doors",
        "arguments",
        "clear sentences",
        "with a meaning",
        "without the name",
        "raw errors",
    )
    counts = {kind.replace(" ", "_"): totals[kind] for kind in (*kinds, "wrongly accepted", "endless")}
    write_totals(f"arguments_{table}", counts)
    assert not faults, "\n".join(faults)


def test_every_public_callable_has_a_door():
    known = {re.sub(r"\[.*\]", "", door.name) for table in tables() for door in doors(table)}
    walked = {id(load(name)) for name in public_names() if name in known}
    missing = {
        name
        for name in public_names()
        if id(load(name)) not in walked and not any(re.search(pattern, name) for pattern in NOT_WALKED)
    }
    assert not missing


def test_every_argument_of_a_door_is_walked():
    missing = []
    for table in tables():
        for door in doors(table):
            parameters = inspect.signature(door.call()).parameters.values()
            named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            missing += [f"{door.name}({name})" for name in named - set(door.arguments) - OPEN]
    assert not missing


OPEN = {
    "self",
    "session",
    "run_kwargs",
    "graph",
    "copy_session_config",
    "data_format",
    "output",
    "bias",
    "call",
    "dtype",
    "name",
    "trainable",
}
"""Arguments that take a framework's own objects, or that other doors of the same check have."""
