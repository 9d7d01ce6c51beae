"""The memory selector: the same weights select the same embeddings in every framework."""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest

from iba_core.concepts import selection
from iba_core.errors import InputError
from iba_core.framework.namespace import array_namespace
from iba_core.state import read_state, write_state

SIZES = {"in_features": 6, "memory_size": 3, "exogenous_size": 4, "out_features": 5}


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def random_arrays(seed=0, bias=True):
    rng = np.random.default_rng(seed)
    shapes = {
        "memory.weight": (5, 12),
        "selector.0.weight": (4, 6),
        "selector.0.bias": (4,),
        "selector.2.weight": (15, 4),
        "selector.2.bias": (15,),
    }
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
        if bias or name != "selector.2.bias"
    }


def judge(arrays, x, temperature, over):
    """The selection in NumPy and float64, from the weights."""
    a = {name: value.astype(np.float64) for name, value in arrays.items()}
    hidden = x @ a["selector.0.weight"].T + a["selector.0.bias"]
    hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    scores = hidden @ a["selector.2.weight"].T + a.get("selector.2.bias", 0.0)
    weights = softmax(scores.reshape(*x.shape[:-1], 5, 3) / temperature, -1 if over == "slots" else -2)
    return np.einsum("...tm,tme->...te", weights, a["memory.weight"].reshape(5, 3, 4))


@pytest.fixture
def selector_class(backend):
    """The framework's selector."""
    return backend.module("concepts").SelectorZU


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(7, 6)).astype(np.float32)


# -- soft selection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["slots", "concepts"])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_soft_selection_is_that_of_the_weights(backend, x, over, temperature):
    make, tensor, _ = backend
    selector = make(**SIZES, temperature=temperature, attention_over=over)
    selector.load_arrays(random_arrays())
    selected = to_numpy(selector(tensor(x)))
    assert selected.shape == (7, 5, 4)
    np.testing.assert_allclose(selected, judge(random_arrays(), x, temperature, over), rtol=1e-4, atol=1e-5)


def test_the_default_is_attention_over_slots(backend, x):
    make, tensor, _ = backend
    selector = make(**SIZES)
    selector.load_arrays(random_arrays())
    np.testing.assert_allclose(
        to_numpy(selector(tensor(x))), judge(random_arrays(), x, 1.0, "slots"), rtol=1e-4, atol=1e-5
    )
    assert selector.attention_over == "slots"
    assert selector.temperature == 1.0


def test_inputs_may_have_more_leading_axes(backend, x):
    make, tensor, _ = backend
    selector = make(**SIZES)
    flat = to_numpy(selector(tensor(x)))
    folded = to_numpy(selector(tensor(np.stack([x, x]))))
    assert folded.shape == (2, 7, 5, 4)
    np.testing.assert_allclose(folded, np.stack([flat, flat]), rtol=1e-5, atol=1e-6)


def test_cold_attention_takes_the_best_slot(backend, x):
    make, tensor, _ = backend
    selector = make(**SIZES, temperature=1e-4)
    arrays = random_arrays()
    selector.load_arrays(arrays)
    slots = arrays["memory.weight"].reshape(5, 3, 4)
    distance = np.abs(to_numpy(selector(tensor(x)))[:, :, None] - slots).max(axis=-1).min(axis=-1)
    np.testing.assert_allclose(distance, 0, atol=1e-5)


def test_a_bias_can_be_left_out(backend, x):
    make, tensor, name = backend
    argument = "bias" if name == "torch" else "use_bias"
    selector = make(**SIZES, **{argument: False})
    arrays = random_arrays(bias=False)
    selector.load_arrays(arrays)
    expected = judge(arrays, x, 1.0, "slots")
    np.testing.assert_allclose(to_numpy(selector(tensor(x))), expected, rtol=1e-4, atol=1e-5)


# -- weights -----------------------------------------------------------------------------------------


def test_weights_go_from_one_framework_to_the_other(x, tmp_path):
    torch, tf = pytest.importorskip("torch"), pytest.importorskip("tensorflow")
    from iba_tf.concepts import SelectorZU as KerasSelector
    from iba_torch.concepts import SelectorZU as TorchSelector

    torch.manual_seed(0)
    ours, theirs = TorchSelector(**SIZES, temperature=0.5), KerasSelector(**SIZES, temperature=0.5)
    write_state(tmp_path / "selector", ours.to_arrays(), "selector")
    theirs.load_arrays(read_state(tmp_path / "selector", "selector")[0])
    expected = to_numpy(ours(torch.as_tensor(x)))
    np.testing.assert_allclose(to_numpy(theirs(tf.constant(x))), expected, rtol=1e-5, atol=1e-6)
    back = TorchSelector(**SIZES, temperature=0.5)
    back.load_arrays(theirs.to_arrays())
    np.testing.assert_array_equal(to_numpy(back(torch.as_tensor(x))), expected)


def test_arrays_are_copies(backend):
    make, _, _ = backend
    selector = make(**SIZES)
    arrays = random_arrays()
    selector.load_arrays(arrays)
    for array in (*arrays.values(), *selector.to_arrays().values()):
        array[:] = 0
    for name, value in random_arrays().items():
        np.testing.assert_array_equal(selector.to_arrays()[name], value)


def test_gradients_agree(x):
    torch, tf = pytest.importorskip("torch"), pytest.importorskip("tensorflow")
    from iba_tf.concepts import SelectorZU as KerasSelector
    from iba_torch.concepts import SelectorZU as TorchSelector

    sides = np.random.default_rng(2).normal(size=(7, 5, 4)).astype(np.float32)
    ours, theirs = TorchSelector(**SIZES), KerasSelector(**SIZES)
    ours.load_arrays(random_arrays())
    theirs.load_arrays(random_arrays())
    (ours(torch.as_tensor(x)) * torch.as_tensor(sides)).sum().backward()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(theirs(tf.constant(x)) * sides)
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
        return (judge(arrays, x, 1.0, "slots") * sides).sum()

    assert float(ours_memory.grad[3, 7]) == pytest.approx((value(1) - value(-1)) / (2 * step), rel=1e-3)


# -- sampling ----------------------------------------------------------------------------------------


def test_sampling_takes_one_slot_with_the_attention_s_probability(backend):
    make, tensor, name = backend
    framework = pytest.importorskip(name)
    (framework.manual_seed if name == "torch" else framework.random.set_seed)(0)
    selector = make(**SIZES, temperature=0.3, **({} if name == "torch" else {"seed": 0}))
    arrays = random_arrays()
    arrays["memory.weight"] = np.random.default_rng(3).normal(size=(5, 12)).astype(np.float32)
    arrays["selector.2.weight"] *= 0.3
    selector.load_arrays(arrays)
    x = np.random.default_rng(4).normal(size=(1, 6)).astype(np.float32)
    count = 4000
    selected = to_numpy(selector(tensor(np.repeat(x, count, axis=0)), sampling=True))
    slots = arrays["memory.weight"].reshape(5, 3, 4)
    is_slot = (selected[:, :, None] == slots).all(axis=-1)
    np.testing.assert_array_equal(is_slot.sum(axis=-1), 1)
    # Whatever the temperature, which only softens the gradient, slots are drawn from the scores' softmax.
    one_hot = {**arrays, "memory.weight": np.tile(np.pad(np.eye(3), ((0, 0), (0, 1))).ravel(), (5, 1))}
    probabilities = judge(one_hot, x, 1.0, "slots")[0, :, :3]
    error = np.abs(is_slot.mean(axis=0) - probabilities)
    assert (error < 5 * np.sqrt(probabilities * (1 - probabilities) / count)).all()


def test_sampling_differs_from_draw_to_draw(backend, x):
    make, tensor, _ = backend
    selector = make(**SIZES)
    first, second = (to_numpy(selector(tensor(x), sampling=True)) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("over", "axis"), [("slots", -1), ("concepts", -2)])
def test_straight_through_values_are_hard_and_gradients_soft(framework, over, axis):
    rng = np.random.default_rng(5)
    scores, noise, sides = rng.normal(size=(3, 2, 5, 4))
    temperature = 0.7
    name = type(framework).__name__
    stop = {"NumPy": np.copy, "Torch": lambda a: a.detach()}.get(name) or framework.tf.stop_gradient
    noise_tensor, sides_tensor = framework.asarray(noise), framework.asarray(sides)

    def weights(s):
        return selection.attention(s, temperature, over, noise_tensor, stop_gradient=stop)

    hard = framework.to_numpy(weights(framework.asarray(scores)))
    perturbed = scores + noise
    np.testing.assert_array_equal(hard, perturbed == perturbed.max(axis=axis, keepdims=True))
    np.testing.assert_array_equal(hard.sum(axis=axis), 1)
    soft = softmax(perturbed / temperature, axis)
    expected = soft * (sides - (soft * sides).sum(axis=axis, keepdims=True)) / temperature
    if name == "NumPy":
        expected = np.zeros_like(expected)  # A difference quotient sees the steps alone.

    def total(s):
        products = weights(s) * sides_tensor
        return array_namespace(products).sum(products)

    actual = framework.gradient(total, scores)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("over", "axis"), [("slots", -1), ("concepts", -2)])
def test_attention_sums_to_one_where_it_should(framework, over, axis):
    scores = np.random.default_rng(6).normal(size=(2, 5, 4)) * 300
    weights = framework.to_numpy(selection.attention(framework.asarray(scores, np.float32), 0.01, over))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(axis=axis), 1, rtol=1e-6)
    plain = framework.to_numpy(selection.attention(framework.asarray(scores / 300), 0.5, over))
    np.testing.assert_allclose(plain, softmax(scores / 300 / 0.5, axis), rtol=1e-12)


def test_gumbel_numbers(framework):
    uniform = np.random.default_rng(7).random(200_000)
    numbers = framework.to_numpy(selection.gumbel(framework.asarray(uniform)))
    np.testing.assert_allclose(numbers, -np.log(-np.log(uniform)), rtol=1e-9)
    assert numbers.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert numbers.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    edges = framework.asarray([0.0, np.nextafter(np.float32(1), 0)], np.float32)
    assert np.isfinite(framework.to_numpy(selection.gumbel(edges))).all()


def test_noise_needs_a_way_to_stop_gradients():
    with pytest.raises(InputError, match="stop_gradient is missing"):
        selection.attention(np.zeros((2, 3)), 1.0, noise=np.zeros((2, 3)))


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": 0}, "in_features=0 must be at least 1"),
        ({"memory_size": -1}, "memory_size=-1"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"attention_over": "heads"}, "attention_over='heads' is neither"),
    ],
)
def test_wrong_arguments_are_named(backend, change, message):
    make, _, _ = backend
    with pytest.raises(InputError, match=message):
        make(**{**SIZES, **change})


def test_wrong_inputs_and_weights_are_named(backend, x):
    make, tensor, _ = backend
    selector = make(**SIZES)
    with pytest.raises(InputError, match=r"input has shape \(7, 5\).*in_features=6"):
        selector(tensor(x[:, :5]))
    arrays = random_arrays()
    with pytest.raises(InputError, match=r"arrays\['memory.weight'\] has shape \(4, 12\)"):
        selector.load_arrays({**arrays, "memory.weight": np.zeros((4, 12))})
    arrays.pop("memory.weight")
    with pytest.raises(InputError, match=r"it must hold \['memory.weight'"):
        selector.load_arrays(arrays)
