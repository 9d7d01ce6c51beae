"""TensorFlow's array namespace against NumPy's, function by function."""

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest
import tensorflow as tf

from iba_core.framework.namespace import array_namespace, log_sigmoid, log_sum_exp, sigmoid
from iba_tf import namespace

RNG = np.random.default_rng(0)
A = RNG.normal(size=(2, 3, 4)).astype(np.float32)
B = RNG.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(A) + 0.1
ROW = RNG.normal(size=4)
SQUARE = RNG.normal(size=(4, 4))
WHOLE = RNG.integers(-3, 4, size=(2, 3, 4))
INDICES = RNG.integers(0, 3, size=(2, 3, 4))
SPECIAL = np.array([0.0, -1.0, np.inf, -np.inf, np.nan], dtype=np.float32)

# Each case is a name and a formula over a namespace `xp` and arrays of its kind.
CASES = {
    "astype": (lambda xp, a: xp.astype(a, xp.int32), A * 10),
    "astype bool": (lambda xp, a: xp.astype(a, xp.bool), WHOLE),
    "asarray": (lambda xp, a: xp.asarray(a), A),
    "asarray dtype": (lambda xp, a: xp.asarray(a, dtype=xp.float64), A),
    "zeros_like": (lambda xp, a: xp.zeros_like(a), A),
    "ones_like dtype": (lambda xp, a: xp.ones_like(a, dtype=xp.int32), A),
    "exp": (lambda xp, a: xp.exp(a), A),
    "log": (lambda xp, a: xp.log(a), POSITIVE),
    "log1p": (lambda xp, a: xp.log1p(a), POSITIVE),
    "sqrt": (lambda xp, a: xp.sqrt(a), POSITIVE),
    "square": (lambda xp, a: xp.square(a), A),
    "tanh": (lambda xp, a: xp.tanh(a), A),
    "maximum": (lambda xp, a, b: xp.maximum(a, b), A, B),
    "maximum scalar": (lambda xp, a: xp.maximum(a, 0), A),
    "maximum of dtypes": (lambda xp, a, b: xp.maximum(a, b), A, B.astype(np.float64)),
    "maximum NaN": (lambda xp, a: xp.maximum(a, 0.0), SPECIAL),
    "logaddexp": (lambda xp, a, b: xp.logaddexp(a, b), 100 * A, 100 * B),
    "logaddexp scalar": (lambda xp, a: xp.logaddexp(a, 0.0), 1000 * A),
    "logaddexp infinite": (lambda xp, a: xp.logaddexp(a, a), np.array([np.inf, -np.inf, 0.0])),
    "logaddexp broadcast": (lambda xp, a, b: xp.logaddexp(a, b), A.astype(float), ROW),
    "where": (lambda xp, a, b: xp.where(a > 0, a, b), A, B),
    "where scalars": (lambda xp, a: xp.where(a > 0, 1.5, a), A),
    "where scalar in float64": (lambda xp, a: xp.where(a > 0, a, 0), ROW),
    "isfinite": (lambda xp, a: xp.isfinite(a), SPECIAL),
    "isfinite integers": (lambda xp, a: xp.isfinite(a), WHOLE),
    "logical_and": (lambda xp, a: xp.logical_and(a > 0, a < 2), WHOLE),
    "logical_not": (lambda xp, a: xp.logical_not(a > 0), WHOLE),
    "sum": (lambda xp, a: xp.sum(a), A),
    "sum axes": (lambda xp, a: xp.sum(a, axis=(0, -1), keepdims=True), A),
    "sum integers": (lambda xp, a: xp.sum(a, axis=1), WHOLE.astype(np.int32)),
    "sum booleans": (lambda xp, a: xp.sum(a > 0, axis=0), A),
    "mean": (lambda xp, a: xp.mean(a, axis=1), A),
    "max": (lambda xp, a: xp.max(a, axis=-1, keepdims=True), A),
    "min": (lambda xp, a: xp.min(a, axis=0), A),
    "all": (lambda xp, a: xp.all(a > -1, axis=(0, 1)), A),
    "argmax": (lambda xp, a: xp.argmax(a, axis=1), WHOLE),
    "argmax flat": (lambda xp, a: xp.argmax(a), A),
    "take": (lambda xp, a: xp.take(a, xp.asarray([2, 0]), axis=1), A),
    "take_along_axis": (lambda xp, a, i: xp.take_along_axis(a, i, axis=1), A, INDICES),
    "take_along_axis first": (lambda xp, a, i: xp.take_along_axis(a, i[:1] % 2, axis=0), A, INDICES),
    "take_along_axis last": (lambda xp, a, i: xp.take_along_axis(a, i[..., :1], axis=-1), A, INDICES),
    "reshape": (lambda xp, a: xp.reshape(a, (4, -1)), A),
    "permute_dims": (lambda xp, a: xp.permute_dims(a, (2, 0, 1)), A),
    "matrix_transpose": (lambda xp, a: xp.matrix_transpose(a), A),
    "expand_dims": (lambda xp, a: xp.expand_dims(a, axis=-1), A),
    "squeeze": (lambda xp, a: xp.squeeze(a[:1], axis=0), A),
    "concat": (lambda xp, a, b: xp.concat([a, b], axis=-1), A, B),
    "concat flat": (lambda xp, a, b: xp.concat([a, b], axis=None), A, ROW),
    "stack": (lambda xp, a, b: xp.stack([a, b], axis=1), A, B),
    "unstack": (lambda xp, a: xp.stack(xp.unstack(a, axis=1)[::-1]), A),
    "repeat": (lambda xp, a: xp.repeat(a, 3, axis=0), A),
    "repeat flat": (lambda xp, a: xp.repeat(a, 2), A),
    "matmul": (lambda xp, a, b: xp.matmul(a, b), A.astype(float), SQUARE),
    "matmul row": (lambda xp, a, b: xp.matmul(b, a), SQUARE, ROW),
    "matmul column": (lambda xp, a, b: xp.matmul(a, b), SQUARE, ROW),
    "matmul inner": (lambda xp, a: xp.matmul(a, a), ROW),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "tf.function"])
@pytest.mark.parametrize("case", CASES, ids=CASES)
def test_function_is_numpys(case, compiled):
    formula, *arrays = CASES[case]
    expected = np.asarray(formula(numpy_namespace, *arrays))

    def run(*tensors):
        return formula(namespace, *tensors)

    found = (tf.function(run, autograph=False) if compiled else run)(*map(tf.constant, arrays)).numpy()

    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6 if found.dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("x", [-200.0, -20.0, -1.0, 0.0, 1.0, 20.0, 200.0])
def test_gradient_of_logaddexp_is_exact_on_both_sides(x, dtype):
    a, b = tf.constant(x, dtype), tf.constant(0.0, dtype)
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        value = namespace.logaddexp(a, b)
    gradients = [g.numpy() for g in tape.gradient(value, [a, b])]

    tiny = 1e-45 if dtype == tf.float32 else 0.0
    expected = [1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))]
    np.testing.assert_allclose(gradients, expected, rtol=1e-5 if dtype == tf.float32 else 1e-12, atol=tiny)


def test_gradient_of_logaddexp_sums_over_a_broadcast_axis():
    a, b = tf.constant(A), tf.constant(ROW, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(b)
        value = tf.reduce_sum(namespace.logaddexp(a, b))
    expected = (1 / (1 + np.exp(A - ROW.astype(np.float32)))).sum(axis=(0, 1))
    np.testing.assert_allclose(tape.gradient(value, b), expected, rtol=1e-5)


def test_core_formulas_run_on_tensors_through_the_registered_namespace():
    x = np.array([-200.0, -5.0, 0.0, 5.0, 200.0], np.float32)
    tensor = tf.constant(x)
    assert array_namespace(tensor) is namespace
    assert array_namespace(2.0, tf.Variable(x)) is namespace
    for formula in (sigmoid, log_sigmoid, log_sum_exp):
        np.testing.assert_allclose(formula(tensor), formula(x), rtol=1e-6, atol=1e-37)


def test_log_sigmoid_has_a_finite_gradient_far_out():
    x = tf.constant([-200.0, -80.0, 80.0, 200.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = log_sigmoid(x)
    np.testing.assert_allclose(tape.gradient(y, x), [1.0, 1.0, np.exp(-80.0), 0.0], rtol=1e-5, atol=1e-45)
