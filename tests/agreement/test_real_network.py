"""One seed, one map, on a trained network of 224 pixels and in single precision."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "results.npz"
    program = Path(__file__).with_name("explain_real_network.py")
    done = subprocess.run([sys.executable, program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("layer", ["blocks.5", "blocks.10"])
def test_both_frameworks_give_one_map(results, layer):
    def both(name):
        return (results[f"{framework}/{layer}/{name}"] for framework in ("torch", "tensorflow"))

    ours, theirs = both("outputs")
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()
    np.testing.assert_array_equal(*both("classes"))
    for a, b in zip(*both("capacity"), strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.999
    ours, theirs = both("bits")
    np.testing.assert_allclose(theirs, ours, rtol=0.005)
