"""A child that is forked during an explanation does not hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")

PROGRAM = """
import os, signal, sys, threading, time
import numpy as np
from iba_core import Explainer, to_saliency_map
from tests.backends import BACKENDS
from tests.robustness.networks import LAYER, images, network

backend = BACKENDS[sys.argv[1]]()
forks = int(sys.argv[2])
model, x = network(backend), images(backend, 2)
explainer = Explainer(model, LAYER, steps=2, samples=2).fit([x], progbar=False)
expected = explainer.explain(x, 1, seed=0)
stop, slow = threading.Event(), threading.Event()


def work():
    while not stop.is_set():
        # Another explainer each time, so that much is made that threads share.
        fresh = Explainer(model, LAYER, estimator=explainer.estimator, steps=2, samples=2)
        fresh.explain(x, 1, seed=0)
        explainer.explain(x, 1, seed=0)


def child():
    # TensorFlow's own threads do not exist in a child, so nothing of it can run there.
    if backend.name == "torch":
        found = explainer.explain(x, 1, seed=0).capacity
        assert np.array_equal(found, expected.capacity)
        fresh = Explainer(model, LAYER, estimator=explainer.estimator, steps=2, samples=2)
        assert np.array_equal(fresh.explain(x, 1, seed=0).capacity, expected.capacity)
    explainer.save(sys.argv[3])
    assert to_saliency_map(expected.capacity[0], (8, 8)).shape == (8, 8)


threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
generator = np.random.default_rng(0)
for number in range(forks):
    time.sleep(generator.uniform(0, 0.05))
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(60)
            child()
            code = 0
        except BaseException as error:
            print(f"child {number}: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"child {number} ended with {status}"
stop.set()
for thread in threads:
    thread.join(60)
assert np.array_equal(explainer.explain(x, 1, seed=0).capacity, expected.capacity)
print("all children have ended")
"""

WHILE_A_RESULT_IS_MADE = """
import os, signal, threading, time
from iba_core.framework.cache import Cache

cache, begun = Cache(size=2), threading.Event()
make = lambda: (begun.set(), time.sleep(5))
threading.Thread(target=lambda: cache.get("a", make), daemon=True).start()
begun.wait()
pid = os.fork()
if not pid:
    signal.alarm(3)
    os._exit(0 if cache.get("b", lambda: 7) == 7 else 1)
print("status", os.waitpid(pid, 0)[1], flush=True)
os._exit(0)
"""


def run_program(*command: str) -> str:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    options = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "timeout": 600}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", *command], check=False, **options)
    return done.stdout + done.stderr[-2000:]


def test_a_result_that_another_thread_makes_does_not_stop_a_child():
    assert run_program(WHILE_A_RESULT_IS_MADE) == "status 0\n"


def run_forks(name: str, forks: int, folder: Path) -> str:
    return run_program(PROGRAM, name, str(forks), str(folder / "state.safetensors"))


@pytest.mark.parametrize("name", ["torch", "tensorflow"])
def test_a_child_forked_during_an_explanation_does_not_hang(name, tmp_path):
    pytest.importorskip(name)
    assert "all children have ended" in run_forks(name, 8 if name == "torch" else 2, tmp_path)


@pytest.mark.soak
def test_children_forked_at_many_moments_do_not_hang(tmp_path):
    pytest.importorskip("torch")
    assert "all children have ended" in run_forks("torch", 300, tmp_path)
