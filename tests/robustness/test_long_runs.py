"""Explaining for long takes no more memory than explaining once."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from iba_core import Explainer
from tests.backends import Backend
from tests.robustness.networks import LAYER, images, network
from tests.robustness.test_faults import SHARE
from tests.robustness.totals import write_totals

pytestmark = pytest.mark.filterwarnings("ignore:the model reads some of its input by a way around")

ROOT = Path(__file__).parents[2]

LIMIT = 0.1
"""Greatest growth of an explanation, in kB."""


def resident() -> float:
    """Memory of the process in kB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return float(line.split()[1])
    raise AssertionError("there is no VmRSS")


def python_growth(call: Callable[[int], Any], count: int) -> float:
    """Growth of Python's memory for each call, in kB; the lesser of two halves, since some is for once."""
    tracemalloc.start()
    try:
        held = []
        for start in (0, count, 2 * count):
            for number in range(start, start + count if start else count):
                call(number)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return min(b - a for a, b in pairwise(held)) / 1024 / count


@pytest.fixture(scope="module")
def explain(backend):
    """Explains one of a few images."""
    return explaining(backend)


def explaining(backend: Backend) -> Callable[[int], Any]:
    """A function that explains one of a few images."""
    x = images(backend, 4)
    explainer = Explainer(network(backend), LAYER, steps=2, samples=2).fit([x], progbar=False)

    def call(number: int) -> Any:
        return explainer.explain(x[number % 4 : number % 4 + 1], number % 3, seed=number)

    for number in range(30):
        call(number)
    return call


def test_an_explanation_holds_nothing(backend):
    """In a process of its own; in the first few hundred explanations, caches fill."""
    program = (
        "from tests.backends import BACKENDS; from tests.robustness.test_long_runs import *; "
        f"print(python_growth(explaining(BACKENDS[{backend.name!r}]()), 200))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert float(run.stdout.splitlines()[-1]) < LIMIT


def test_a_new_model_for_each_explanation_keeps_nothing(backend):
    kept = []
    x = images(backend, 2)

    def one(number: int) -> None:
        model = network(backend)
        explainer = Explainer(model, LAYER, steps=1, samples=2).fit([x], progbar=False)
        explainer.explain(x[:1], 1, seed=0)
        kept.append((weakref.ref(model), weakref.ref(explainer)))

    for number in range(3):
        one(number)
    gc.collect()
    assert not any(reference() is not None for pair in kept for reference in pair)


def test_the_growth_is_seen():
    held: list[bytes] = []
    assert python_growth(lambda number: held.append(bytes(500)), 200) > LIMIT


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_twenty_thousand_explanations_hold_no_more_than_a_few(backend, explain):
    count = max(200, round(20_000 * SHARE))
    for number in range(count // 10):
        explain(number)
    gc.collect()
    before = resident()
    for number in range(count):
        explain(number)
    gc.collect()
    grown = max(0.0, resident() - before) / count
    counts = {
        "explanations": count,
        "kb_each": round(grown, 4),
        "python_kb_each": round(python_growth(explain, 200), 4),
    }
    write_totals(f"long_runs_{backend.name}", counts)
    assert grown < LIMIT


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_new_models_hold_nothing_for_long(backend):
    x, count = images(backend, 2), max(20, round(300 * SHARE))

    def explained(number: int) -> None:
        Explainer(new_model(backend), LAYER, steps=1, samples=2).fit([x], progbar=False).explain(
            x[:1], 1, seed=0
        )

    def run(number: int) -> None:
        """What TensorFlow keeps of a new model whose output is computed in a graph, without the library."""
        if backend.name == "tensorflow":
            import tensorflow as tf

            tf.function(new_model(backend))(tf.constant(x))

    growths = {}
    for act in (run, explained):
        for number in range(2 * count):
            if number == count:
                before = resident()
            act(number)
            gc.collect()
        growths[act] = max(0.0, resident() - before) / count
    own = growths[explained]
    counts = {"models": count, "kb_each": round(own, 2), "kb_each_of_the_framework": round(growths[run], 2)}
    write_totals(f"new_models_{backend.name}", counts)
    assert own < 10 + 3 * growths[run]


def new_model(backend: Any) -> Any:
    """A new model; one of Keras without `tf.custom_gradient`, which TensorFlow never frees in a graph."""
    if backend.name != "tensorflow":
        return network(backend)
    import keras
    from keras import layers

    x = inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = layers.ReLU()(layers.Conv2D(4, 3, padding="same", name=LAYER)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
