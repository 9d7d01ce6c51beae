"""The same weights select the same embeddings in both frameworks."""

import numpy as np
import pytest
import tensorflow as tf
import torch

from iba_core.state import read_state, write_state
from iba_tf.concepts import SelectorZU as KerasSelector
from iba_torch.concepts import SelectorZU as TorchSelector
from tests.selector import SIZES, judge, random_arrays

X = np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)


def test_weights_go_from_one_framework_to_the_other(tmp_path):
    torch.manual_seed(0)
    ours, theirs = TorchSelector(**SIZES, temperature=0.5), KerasSelector(**SIZES, temperature=0.5)
    write_state(tmp_path / "selector", ours.to_arrays(), "selector")
    theirs.load_arrays(read_state(tmp_path / "selector", "selector")[0])
    expected = ours(torch.as_tensor(X)).detach()
    np.testing.assert_allclose(theirs(tf.constant(X)), expected, rtol=1e-5, atol=1e-6)
    back = TorchSelector(**SIZES, temperature=0.5)
    back.load_arrays(theirs.to_arrays())
    np.testing.assert_array_equal(back(torch.as_tensor(X)).detach(), expected)


def test_gradients_agree():
    sides = np.random.default_rng(2).normal(size=(7, 5, 4)).astype(np.float32)
    ours, theirs = TorchSelector(**SIZES), KerasSelector(**SIZES)
    ours.load_arrays(random_arrays())
    theirs.load_arrays(random_arrays())
    (ours(torch.as_tensor(X)) * torch.as_tensor(sides)).sum().backward()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(theirs(tf.constant(X)) * sides)
    ours_memory, theirs_memory = ours.memory.weight, theirs.memory.embeddings
    ours_kernel, theirs_kernel = ours.selector[2].weight, theirs.selector.layers[2].kernel
    gradients = tape.gradient(loss, [theirs_memory.value, theirs_kernel.value])
    np.testing.assert_allclose(gradients[0], ours_memory.grad, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.transpose(gradients[1]), ours_kernel.grad, rtol=1e-4, atol=1e-5)
    step = 1e-4

    def value(sign):
        arrays = random_arrays()
        arrays["memory.weight"] = arrays["memory.weight"].astype(np.float64)
        arrays["memory.weight"][3, 7] += sign * step
        return (judge(arrays, X, 1.0, "slots") * sides).sum()

    assert float(ours_memory.grad[3, 7]) == pytest.approx((value(1) - value(-1)) / (2 * step), rel=1e-3)
