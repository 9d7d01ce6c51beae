"""The memory selector: the same weights select the same embeddings in every framework."""

from __future__ import annotations

import math

import numpy as np
import pytest

from iba_core.concepts import selection
from iba_core.errors import InputError
from iba_core.framework.namespace import array_namespace
from tests.selector import SIZES, judge, random_arrays, softmax


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
def test_soft_selection_is_that_of_the_weights(backend, selector_class, x, over, temperature):
    selector = selector_class(**SIZES, temperature=temperature, attention_over=over)
    selector.load_arrays(random_arrays())
    selected = backend.to_numpy(selector(backend.asarray(x)))
    assert selected.shape == (7, 5, 4)
    np.testing.assert_allclose(selected, judge(random_arrays(), x, temperature, over), rtol=1e-4, atol=1e-5)


def test_the_default_is_attention_over_slots(backend, selector_class, x):
    selector = selector_class(**SIZES)
    selector.load_arrays(random_arrays())
    np.testing.assert_allclose(
        backend.to_numpy(selector(backend.asarray(x))),
        judge(random_arrays(), x, 1.0, "slots"),
        rtol=1e-4,
        atol=1e-5,
    )
    assert selector.attention_over == "slots"
    assert selector.temperature == 1.0


def test_inputs_may_have_more_leading_axes(backend, selector_class, x):
    selector = selector_class(**SIZES)
    flat = backend.to_numpy(selector(backend.asarray(x)))
    folded = backend.to_numpy(selector(backend.asarray(np.stack([x, x]))))
    assert folded.shape == (2, 7, 5, 4)
    np.testing.assert_allclose(folded, np.stack([flat, flat]), rtol=1e-5, atol=1e-6)


def test_cold_attention_takes_the_best_slot(backend, selector_class, x):
    selector = selector_class(**SIZES, temperature=1e-4)
    arrays = random_arrays()
    selector.load_arrays(arrays)
    slots = arrays["memory.weight"].reshape(5, 3, 4)
    distance = (
        np.abs(backend.to_numpy(selector(backend.asarray(x)))[:, :, None] - slots).max(axis=-1).min(axis=-1)
    )
    np.testing.assert_allclose(distance, 0, atol=1e-5)


def test_a_bias_can_be_left_out(backend, selector_class, x):
    argument = "bias" if backend.name == "torch" else "use_bias"
    selector = selector_class(**SIZES, **{argument: False})
    arrays = random_arrays(bias=False)
    selector.load_arrays(arrays)
    expected = judge(arrays, x, 1.0, "slots")
    np.testing.assert_allclose(backend.to_numpy(selector(backend.asarray(x))), expected, rtol=1e-4, atol=1e-5)


# -- weights -----------------------------------------------------------------------------------------


def test_arrays_are_copies(backend, selector_class):
    selector = selector_class(**SIZES)
    arrays = random_arrays()
    selector.load_arrays(arrays)
    for array in (*arrays.values(), *selector.to_arrays().values()):
        array[:] = 0
    for name, value in random_arrays().items():
        np.testing.assert_array_equal(selector.to_arrays()[name], value)


# -- sampling ----------------------------------------------------------------------------------------


def test_sampling_takes_one_slot_with_the_attention_s_probability(backend, selector_class):
    (backend.torch.manual_seed if backend.name == "torch" else backend.tf.random.set_seed)(0)
    selector = selector_class(**SIZES, temperature=0.3, **({} if backend.name == "torch" else {"seed": 0}))
    arrays = random_arrays()
    arrays["memory.weight"] = np.random.default_rng(3).normal(size=(5, 12)).astype(np.float32)
    arrays["selector.2.weight"] *= 0.3
    selector.load_arrays(arrays)
    x = np.random.default_rng(4).normal(size=(1, 6)).astype(np.float32)
    count = 4000
    selected = backend.to_numpy(selector(backend.asarray(np.repeat(x, count, axis=0)), sampling=True))
    slots = arrays["memory.weight"].reshape(5, 3, 4)
    is_slot = (selected[:, :, None] == slots).all(axis=-1)
    np.testing.assert_array_equal(is_slot.sum(axis=-1), 1)
    # Whatever the temperature, which only softens the gradient, slots are drawn from the scores' softmax.
    one_hot = {**arrays, "memory.weight": np.tile(np.pad(np.eye(3), ((0, 0), (0, 1))).ravel(), (5, 1))}
    probabilities = judge(one_hot, x, 1.0, "slots")[0, :, :3]
    error = np.abs(is_slot.mean(axis=0) - probabilities)
    assert (error < 5 * np.sqrt(probabilities * (1 - probabilities) / count)).all()


def test_sampling_differs_from_draw_to_draw(backend, selector_class, x):
    selector = selector_class(**SIZES)
    first, second = (backend.to_numpy(selector(backend.asarray(x), sampling=True)) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("over", "axis"), [("slots", -1), ("concepts", -2)])
def test_straight_through_values_are_hard_and_gradients_soft(framework, over, axis):
    rng = np.random.default_rng(5)
    scores, noise, sides = rng.normal(size=(3, 2, 5, 4))
    temperature = 0.7
    name = framework.name
    stop = {"numpy": np.copy, "torch": lambda a: a.detach()}.get(name) or framework.tf.stop_gradient
    noise_tensor, sides_tensor = framework.asarray(noise), framework.asarray(sides)

    def weights(s):
        return selection.attention(s, temperature, over, noise_tensor, stop_gradient=stop)

    hard = framework.to_numpy(weights(framework.asarray(scores)))
    perturbed = scores + noise
    np.testing.assert_array_equal(hard, perturbed == perturbed.max(axis=axis, keepdims=True))
    np.testing.assert_array_equal(hard.sum(axis=axis), 1)
    soft = softmax(perturbed / temperature, axis)
    expected = soft * (sides - (soft * sides).sum(axis=axis, keepdims=True)) / temperature
    if name == "numpy":
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
        ({"in_features": 0}, "in_features=0 must be a whole number, 1 or more"),
        ({"memory_size": -1}, "memory_size=-1"),
        ({"temperature": 0.0}, "temperature=0.0 must be a finite number, above 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"attention_over": "heads"}, "attention_over='heads' is neither"),
    ],
)
def test_wrong_arguments_are_named(backend, selector_class, change, message):
    with pytest.raises(InputError, match=message):
        selector_class(**{**SIZES, **change})


def test_wrong_inputs_and_weights_are_named(backend, selector_class, x):
    selector = selector_class(**SIZES)
    with pytest.raises(InputError, match=r"input has shape \(7, 5\).*in_features=6"):
        selector(backend.asarray(x[:, :5]))
    arrays = random_arrays()
    with pytest.raises(InputError, match=r"arrays\['memory.weight'\] has shape \(4, 12\)"):
        selector.load_arrays({**arrays, "memory.weight": np.zeros((4, 12))})
    arrays.pop("memory.weight")
    with pytest.raises(InputError, match=r"it must hold \['memory.weight'"):
        selector.load_arrays(arrays)
