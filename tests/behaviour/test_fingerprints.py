"""Two models have one fingerprint if they give the same outputs."""

import subprocess
import sys

import numpy as np
import pytest

from iba_core.framework.adapter import find_adapter
from tests.backends import SIZE, SMALL, Activation, smooth_images

LATER = """
from tests.backends import BACKENDS
from iba_core.framework.adapter import find_adapter
print(find_adapter(BACKENDS[{name!r}]().small()).fingerprint())
"""


def fingerprint(model):
    return find_adapter(model).fingerprint()


def test_a_fingerprint_is_that_of_the_weights_and_the_structure(backend):
    model = backend.small("float32")
    first = fingerprint(model)
    assert len(first) == 32
    find_adapter(model).predict(find_adapter(model).to_inputs(backend.images(smooth_images(2))))
    assert fingerprint(model) == first
    weights = find_adapter(model).weights()
    weights["third"][0][0, 0, 0, 0] = np.nextafter(weights["third"][0][0, 0, 0, 0], 9, dtype=np.float32)
    assert fingerprint(find_adapter(model).with_weights(weights)) != first
    layers = [Activation("act3", "tanh") if layer.name == "act3" else layer for layer in SMALL]
    others = [backend.network((SIZE, SIZE, 3), each, seed=3) for each in (SMALL, layers)]
    assert len({fingerprint(each) for each in others}) == 2


def test_another_process_finds_the_same(backend):
    found = subprocess.run(
        [sys.executable, "-c", LATER.format(name=backend.name)], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == fingerprint(backend.small())


def test_graphs_have_fingerprints():
    tf = pytest.importorskip("tensorflow")
    from iba_tf import GraphModel

    weight = tf.Variable(np.eye(3, dtype=np.float32))
    spec = tf.TensorSpec((None, 3))
    made = [GraphModel.from_function(lambda x: tf.tanh(x @ weight), spec) for _ in range(2)]
    assert fingerprint(made[0]) == fingerprint(made[1])
    before = fingerprint(made[0])
    assert fingerprint(GraphModel.from_function(lambda x: tf.sin(x @ weight), spec)) != before
    weight.assign(2 * np.eye(3, dtype=np.float32))
    assert fingerprint(made[0]) != before


@pytest.mark.filterwarnings("ignore")
def test_constants_in_the_code_and_graphs_of_exported_programs_count():
    torch = pytest.importorskip("torch")
    from torch import nn

    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, x):
            return self.out(x * 1.0)

    class Sine(Times):
        def forward(self, x):
            return self.out(x.sin())

    kinds = Times, type("Times", (Times,), {"forward": lambda self, x: self.out(x * -5.0)}), Sine
    for kind in kinds:
        kind.__qualname__ = kind.__name__ = "Times"
    made = []
    for kind in kinds:
        torch.manual_seed(0)
        made.append(kind().eval())
    assert len({fingerprint(model) for model in made[:2]}) == 2
    programs = [torch.export.unflatten(torch.export.export(model, (torch.ones(2, 3),))) for model in made]
    assert len({fingerprint(program) for program in programs}) == 3
