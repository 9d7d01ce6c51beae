"""Which inputs all images share is learnt from the model, or asked for."""

import numpy as np
import pytest

from iba_core.errors import InputError
from iba_core.framework.inputs import Shared, batch_size, map_arrays, take
from iba_core.framework.shared import SharedInputs

GENERATOR = np.random.default_rng(0)


def plain(x):
    return getattr(x, "array", x)


def captions(inputs):
    """Logits (images, captions)."""
    images, texts = map(plain, inputs)
    return images @ texts.T


def masked(inputs):
    """Each image has a mask of its own."""
    return (inputs["x"] * plain(inputs["mask"])).sum(axis=1, keepdims=True)


def weighted(inputs):
    """Images, masks, and weights (places, outputs) for all."""
    x, mask, weights = map(plain, inputs)
    if mask.shape != x.shape:
        raise ValueError("the mask is that of other images")
    return (x * mask) @ weights


@pytest.mark.parametrize("images", [1, 2, 4])
def test_as_many_captions_as_images_are_shared(images):
    x, texts = GENERATOR.normal(size=(images, 3)), GENERATOR.normal(size=(images, 3))
    shared = SharedInputs()
    marked = shared.mark((x, texts), captions)
    assert marked[0] is x
    assert isinstance(marked[1], Shared)
    assert marked[1].array is texts
    # It is known from now on.
    assert isinstance(shared.mark((x, texts), None)[1], Shared)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_masks_belong_to_the_images(images):
    inputs = {"x": GENERATOR.normal(size=(images, 3)), "mask": GENERATOR.normal(size=(images, 3))}
    calls = []
    marked = SharedInputs().mark(inputs, lambda given: calls.append(1) or masked(given))
    assert not any(isinstance(x, Shared) for x in marked.values())
    assert len(calls) == 2


def test_weights_are_told_from_masks():
    x, mask, weights = GENERATOR.normal(size=(3, 4, 4))
    marked = SharedInputs().mark((x, mask, weights), weighted)
    assert [isinstance(array, Shared) for array in marked] == [False, False, True]


def test_what_the_user_says_is_not_learnt():
    shared = SharedInputs()
    shared.give([1])
    assert isinstance(shared.mark((np.ones((2, 3)), np.ones((2, 3))), None)[1], Shared)
    nothing = SharedInputs()
    nothing.give(())
    assert not isinstance(nothing.mark((np.ones((2, 3)), np.ones((2, 3))), None)[1], Shared)
    wrong = SharedInputs()
    wrong.give(["caption"])
    with pytest.raises(InputError, match="shared='caption' is no input; there are \\['x', 'captions'\\]"):
        wrong.mark({"x": np.ones((2, 3)), "captions": np.ones((2, 3))}, None)


def test_it_is_asked_where_the_model_does_not_tell():
    x, other = GENERATOR.normal(size=(2, 3, 4))
    with pytest.raises(
        InputError,
        match=r"each of the 3 images has its own part of the inputs 1, or all .* iba_core.Shared",
    ):
        SharedInputs().mark((x, other), lambda inputs: np.random.standard_normal((len(plain(inputs[0])), 2)))


def test_a_mean_over_the_images_tells_as_much_as_their_outputs():
    x, mask = GENERATOR.normal(size=(2, 3, 4))
    marked = SharedInputs().mark({"x": x, "mask": mask}, lambda given: masked(given).mean())
    assert not any(isinstance(array, Shared) for array in marked.values())


def test_no_pass_is_needed_for_one_input_or_one_of_another_length():
    x = np.ones((2, 3))
    for inputs in (x, (x,), (x, np.ones((5, 3))), {"x": x, "flag": True, "scale": np.float64(3.0)}):
        assert SharedInputs().mark(inputs, None) == inputs if isinstance(inputs, dict) else True
        SharedInputs().mark(inputs, None)


def test_shared_inputs_stay_whole():
    inputs = {"x": np.arange(6).reshape(3, 2), "texts": Shared(np.arange(3))}
    assert batch_size(inputs) == 3
    part = map_arrays(lambda array: array + 1, take(inputs, 1, 2))
    np.testing.assert_array_equal(part["x"], [[3, 4]])
    np.testing.assert_array_equal(part["texts"].array, [1, 2, 3])
    assert batch_size((Shared(np.ones((7, 1))), np.ones((2, 1)))) == 2
