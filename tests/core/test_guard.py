"""A split must repeat the model's own output, or it is refused."""

from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from iba_core.bottleneck.chunks import AtLayer, Task, explain_in_chunks
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.errors import LayerError
from iba_core.framework.adapter import MixedImagesError, Split, Tail
from iba_core.framework.comparison import OwnOutputs, difference
from iba_core.framework.inputs import batch_size, take

IMAGES = np.random.default_rng(0).normal(size=(3, 4, 2))
WEIGHTS = np.random.default_rng(1).normal(size=(2, 3))


class SmallSplit(Split):
    """Features are the squares of the input. The output adds the input by a skip connection."""

    layer_name = "squares"
    data_format = input_format = "channels_last"

    def __init__(self, read=lambda z, skip: (z + skip).sum(axis=1) @ WEIGHTS, mixes=False, noise=0.0):
        super().__init__()
        self.read, self.mixes_images, self.noise = read, mixes, noise
        self.passes = Counter()

    def run_features(self, inputs):
        self.passes["features", len(inputs)] += 1
        return inputs**2 - (inputs**2).mean(axis=0) * self.mixes_images

    def right(self, z, skip):
        found = (z + skip).sum(axis=1) @ WEIGHTS
        return found + self.noise * np.random.standard_normal(found.shape)

    @contextmanager
    def open_head(self, inputs):
        def run(z, carry):
            self.passes["tail", len(z)] += 1
            return self.read(z, np.repeat(carry[0], len(z) // len(inputs), axis=0))

        yield Tail(inputs**2, run, (inputs.copy(),))

    def own_outputs(self, inputs):
        self.passes["own"] += 1
        one = take(inputs, 0, 1)
        return OwnOutputs(self.right(one**2, one), 1, features=one**2)


def test_a_right_reading_is_checked_once_for_each_shape_of_the_inputs():
    split = SmallSplit()
    for _ in range(3):
        with split.head(IMAGES) as tail:
            assert not tail.one_by_one
    assert split.passes == {"own": 1, ("tail", 6): 2}
    with split.head(IMAGES[:1]):
        assert split.passes == {"own": 2, ("tail", 6): 2, ("tail", 2): 2}
    with split.head(IMAGES[:, :2]):
        assert split.passes["own"] == 3


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda z, skip: z.sum(axis=1) @ WEIGHTS, "its output is off by"),
        (lambda z, skip: (z + skip.mean()).sum(axis=1) @ WEIGHTS, "its output is off by"),
        (lambda z, skip: (z + skip).sum(axis=1) @ WEIGHTS[:, :2], r"shape \(\d, 2\) for"),
        (lambda z, skip: ((z + skip).sum(axis=1) @ WEIGHTS).sum(axis=0), r"shape \(3,\) for"),
        (lambda z, skip: [(z + skip).sum(axis=1) @ WEIGHTS] * 2, "it gives 2 arrays in place of 1"),
    ],
    ids=["no skip", "another skip", "fewer outputs", "no images", "two outputs"],
)
def test_a_wrong_reading_is_refused(images, read, message):
    split = SmallSplit(read)
    for _ in range(2):
        with (
            pytest.raises(LayerError, match=f"after layer 'squares' does not repeat the model: .*{message}"),
            split.head(IMAGES[:images]),
        ):
            pass


def test_a_tail_that_spoils_what_it_remembers_is_refused():
    memory = []

    def read(z, skip):
        memory.append(skip)
        return (z + skip * (len(memory) < 2)).sum(axis=1) @ WEIGHTS

    with pytest.raises(LayerError, match="does not repeat the model"), SmallSplit(read).head(IMAGES):
        pass


class TrainedSplit(SmallSplit):
    """Another thread trains the model, `steps` times, after its head has run."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.scale = steps, 1.0

    @contextmanager
    def open_head(self, inputs):
        scale = self.scale
        self.passes["head"] += 1
        with super().open_head(inputs) as tail:
            if self.passes["head"] <= self.steps:
                self.scale += 1.0
            yield Tail(tail.features, lambda z, carry: tail.run(z, carry) * scale, tail.carry)

    def own_outputs(self, inputs):
        own = super().own_outputs(inputs)
        return OwnOutputs(own.outputs * self.scale, own.images, features=own.features)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_model_that_is_trained_meanwhile_is_checked_again(steps):
    split = TrainedSplit(steps)
    for _ in range(2):
        with split.head(IMAGES) as tail:
            np.testing.assert_allclose(tail(tail.features), split.right(IMAGES**2, IMAGES) * split.scale)
    assert split.scale == 1 + steps


def test_a_model_that_is_trained_all_the_time_is_refused():
    split = TrainedSplit(1000)
    with pytest.raises(LayerError, match="the model changed in each of 5 checks"), split.head(IMAGES):
        pass
    split.steps = 0
    with split.head(IMAGES):
        pass


def mixing(z, skip):
    found = z + skip
    return (found - found.mean(axis=0) * (len(found) > 1)).sum(axis=1) @ WEIGHTS


def test_a_model_that_mixes_the_images_of_a_batch_is_explained_one_image_at_a_time():
    split, warning = SmallSplit(mixing), "depends on the other images of the batch"
    with (
        pytest.warns(UserWarning, match=warning),
        pytest.raises(MixedImagesError, match="explain them one by one"),
        split.head(IMAGES),
    ):
        pass
    with pytest.warns(UserWarning, match=warning), split.head(IMAGES[:1]) as tail:
        assert tail.one_by_one
    sizes, framework = [], SimpleNamespace(randomness=lambda seed: nullcontext())

    class Recorder:
        def run(self, tail, statistics, rows, settings, *, max_batch, **others):
            sizes.append((len(tail.features), max_batch))

    layer = AtLayer(split, (4, 2), lambda *_: Task(Recorder(), None))
    chunks = explain_in_chunks(framework, [layer], IMAGES, BottleneckSettings(), max_batch=100)
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 1), (1, 2), (2, 3)]
    assert sizes == [(1, 1)] * 3


def test_features_that_depend_on_the_batch_are_computed_one_by_one():
    split = SmallSplit(mixes=True)
    with pytest.warns(UserWarning, match="depends on the other images"):
        features = split.features(IMAGES)
    np.testing.assert_array_equal(features, np.zeros_like(IMAGES))
    plain = SmallSplit()
    for _ in range(2):
        np.testing.assert_array_equal(plain.features(IMAGES), IMAGES**2)
    assert plain.passes == {("features", 3): 2, ("features", 1): 1}


def test_features_that_are_mixed_are_seen_though_no_output_shows_it():
    class Mixing(SmallSplit):
        """The output takes the sign of what is mixed."""

        def right(self, z, skip):
            return np.sign(z).sum(axis=1) @ WEIGHTS

        @contextmanager
        def open_head(self, inputs):
            mixed = inputs**2 * (1 + np.mean(inputs**2) * (len(inputs) > 1))
            yield Tail(mixed, lambda z, _: self.right(z, 0))

    with (
        pytest.warns(UserWarning, match="depends on the other images of the batch"),
        pytest.raises(MixedImagesError),
        Mixing().head(IMAGES),
    ):
        pass


def test_other_features_than_the_models_own_are_refused():
    class Other(SmallSplit):
        @contextmanager
        def open_head(self, inputs):
            yield Tail(2 * inputs**2, lambda z, _: (z / 2 + inputs).sum(axis=1) @ WEIGHTS)

    with pytest.raises(LayerError, match="its features are off by 100 %"), Other().head(IMAGES[:1]):
        pass


def test_a_model_that_draws_random_numbers_is_told_that_it_could_not_be_checked():
    split = SmallSplit(noise=1.0)
    with (
        pytest.warns(UserWarning, match="gives other outputs for the same input each time"),
        split.head(IMAGES),
    ):
        pass


def test_outputs_of_all_images_together_are_compared_as_they_are():
    class Together(SmallSplit):
        def own_outputs(self, inputs):
            return OwnOutputs(self.right(inputs**2, inputs).mean(), batch_size(inputs), together=True)

    with Together(lambda z, skip: ((z + skip).sum(axis=1) @ WEIGHTS).mean()).head(IMAGES):
        pass
    with (
        pytest.raises(LayerError, match="off by"),
        Together(lambda z, skip: (z.sum(axis=1) @ WEIGHTS).mean()).head(IMAGES),
    ):
        pass


def test_images_may_lie_along_any_axis_and_take_several_places():
    own = np.arange(24.0).reshape(3, 2, 4)
    beside = np.concatenate([own, own + 1], axis=1)
    assert difference(OwnOutputs(own, 1), beside, 2, 1e-16) is None
    found = difference(OwnOutputs(own, 1), beside[:, ::-1], 2, 1e-16)
    assert found.text == "its output is off by 21.7 %"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_is_forgiven_and_nothing_more(dtype):
    own = np.array([[1.0, -2.0, np.nan, np.inf]], dtype)
    epsilon = float(np.finfo(dtype).eps)
    near, far = own * dtype(1 + 20 * epsilon), own * dtype(1.2)
    assert difference(OwnOutputs(own, 1), near, 1, epsilon) is None
    assert difference(OwnOutputs(own, 1), far, 1, epsilon) is not None
    assert difference(OwnOutputs(own, 1), np.array([[1.0, -2.0, 0.0, np.inf]], dtype), 1, epsilon) is not None


@dataclass
class Output:
    hidden: np.ndarray
    logits: np.ndarray


def test_outputs_of_any_kind_are_looked_through():
    own, other = np.ones((1, 2)), np.ones((1, 3))
    for pack in (
        lambda logits: Output(other, logits),
        lambda logits: {"hidden": other, "logits": [logits]},
        lambda logits: SimpleNamespace(logits=logits),
    ):
        assert difference(OwnOutputs(pack(own), 1), pack(own), 1, 0.0) is None
        found = difference(OwnOutputs(pack(own), 1), pack(2 * own), 1, 0.0)
        assert found.text == "its output is off by 100 %"
    nothing = SimpleNamespace()
    assert "no array is found" in difference(OwnOutputs(nothing, 1), nothing, 1, 0.0).text
