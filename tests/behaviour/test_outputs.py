"""Models that end in a sigmoid, return several outputs, or let information pass the layer by."""

import warnings

import numpy as np
import pytest
from scipy.special import expit

from iba_core import Attribution, ClassTarget, DistributionTarget, Explainer, InputError, LogitTarget
from tests.backends import smooth_images

IMAGES = smooth_images(4)
SETTINGS = {"steps": 3, "samples": 2, "beta": 1.0}


def torch_model(end, units):
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.layer = nn.ReLU()
            self.inner = nn.Conv2d(4, 4, 1)
            self.embed = nn.Linear(4, 6)
            self.classifier = nn.Linear(6, units)

        def forward(self, x):
            x = self.layer(self.stem(x))
            h = self.embed((x + self.inner(x).tanh()).mean((2, 3)))
            scores = self.classifier(h)
            match end:
                case "sigmoid":
                    return scores.sigmoid()
                case "squashed":
                    return 0.9 * scores.sigmoid()
                case "dict":
                    return {"loss": None, "embedding": h, "logits": scores}
                case "unclear":
                    return {"embedding": h, "scores": scores}
            return scores

    torch.manual_seed(3)
    return Model().double().eval()


def keras_model(end, units):
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((12, 12, 3))
        x = layers.ReLU(name="layer")(layers.Conv2D(4, 3, padding="same")(inputs))
        inner = layers.Conv2D(4, 1, activation="tanh", name="inner")(x)
        h = layers.Dense(6)(layers.GlobalAveragePooling2D()(layers.add([x, inner])))
        scores = layers.Dense(units)(h)
        match end:
            case "sigmoid":
                return keras.Model(inputs, layers.Activation("sigmoid")(scores))
            case "squashed":
                return keras.Model(inputs, layers.Rescaling(0.9)(layers.Activation("sigmoid")(scores)))
            case "dict":
                return keras.Model(inputs, {"embedding": h, "logits": scores})
            case "unclear":
                return keras.Model(inputs, {"embedding": h, "scores": scores})
        return keras.Model(inputs, scores)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)


@pytest.fixture
def explainer(backend):
    def make(end, units=5, layer="layer", **options):
        model = {"torch": torch_model, "tensorflow": keras_model}[backend.name](end, units)
        found = Explainer(model, layer, **SETTINGS, **options)
        return found.fit([backend.images(IMAGES)], progbar=False)

    return make


@pytest.fixture
def x(backend):
    return backend.images(IMAGES[:2])


def log(backend, array):
    return backend.torch.log(array) if backend.name == "torch" else backend.tf.math.log(array)


def log_sigmoid(backend, array):
    if backend.name == "torch":
        return backend.torch.nn.functional.logsigmoid(array)
    return backend.tf.math.log_sigmoid(array)


def assert_same_maps(one, other):
    np.testing.assert_allclose(one.capacity, other.capacity, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.model_losses, other.model_losses, rtol=1e-9)


def test_a_sigmoid_keeps_its_own_probability(backend, explainer, x):
    found = explainer("sigmoid")
    classes = found.explain(x, 3, seed=0)
    assert_same_maps(classes, found.explain(x, lambda p: log(backend, p[:, 3]), seed=0))
    assert classes.activation == "sigmoid"
    np.testing.assert_array_equal(classes.probabilities, classes.outputs)
    assert (classes.outputs.sum(axis=1) > 1.01).any()


def test_one_sigmoid_is_a_classifier_of_two_classes(backend, explainer, x):
    found = explainer("sigmoid", units=1)
    present, absent = found.explain(x, 1, seed=0), found.explain(x, 0, seed=0)
    assert_same_maps(present, found.explain(x, lambda p: log(backend, p[:, 0]), seed=0))
    assert_same_maps(absent, found.explain(x, lambda p: log(backend, 1 - p[:, 0]), seed=0))
    assert present.probabilities.shape == (2, 2)
    np.testing.assert_allclose(present.probabilities.sum(axis=1), 1.0)
    predicted = found.explain(x, seed=0)
    np.testing.assert_array_equal(predicted.classes, predicted.outputs[:, 0] > 0.5)


def test_one_logit_is_a_class_or_a_score_as_the_user_says(backend, explainer, x):
    found = explainer("none", units=1)
    with pytest.raises(InputError, match="could be the logit of a class or a score"):
        found.explain(x, 1, seed=0)
    assert_same_maps(found.explain(x, LogitTarget(0), seed=0), found.explain(x, lambda y: y[:, 0], seed=0))
    for target, sign in ((1, 1), (0, -1)):
        one = found.explain(x, ClassTarget(target, "sigmoid_logits"), seed=0)
        # The sigmoid is computed in the score, by the frameworks' own function.
        assert_same_maps(
            one, found.explain(x, lambda y, sign=sign: log_sigmoid(backend, sign * y[:, 0]), seed=0)
        )
        np.testing.assert_allclose(one.probabilities[:, 1], expit(one.outputs[:, 0]))
    whole = found.explain(x, DistributionTarget("sigmoid_logits"), seed=0)
    p = expit(whole.outputs[:, 0])
    assert (whole.model_losses[-1] > -(p * np.log(p) + (1 - p) * np.log(1 - p))).all()


def test_a_sigmoid_as_a_whole_is_kept(backend, explainer, x):
    found = explainer("sigmoid").explain(x, DistributionTarget(), seed=0)
    p = found.outputs
    assert (found.model_losses[-1] > -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(axis=1)).all()


def test_numbers_between_0_and_1_need_not_be_probabilities(backend, explainer, x):
    found = explainer("squashed")
    logits = found.explain(x, ClassTarget(3, activation="other"), seed=0)
    assert_same_maps(logits, found.explain(x, 3, seed=0))
    forced = found.explain(x, ClassTarget(3, activation="sigmoid"), seed=0)
    assert_same_maps(forced, found.explain(x, lambda p: log(backend, p[:, 3]), seed=0))


def test_logits_are_found_among_other_outputs(explainer, x):
    plain, found = explainer("none"), explainer("dict")
    assert_same_maps(found.explain(x, 3, seed=0), plain.explain(x, 3, seed=0))
    np.testing.assert_allclose(found.predict(x), plain.predict(x), rtol=1e-12)


def test_it_is_asked_which_output_is_meant(explainer, x):
    plain = explainer("none").explain(x, 3, seed=0)
    unclear = explainer("unclear")
    with pytest.raises(InputError, match=r"\['embedding', 'scores'\]; say which one is meant with output="):
        unclear.explain(x, 3)
    # A callable chooses by itself.
    assert_same_maps(
        unclear.explain(x, lambda out: out["scores"][:, 3], seed=0),
        explainer("none").explain(x, lambda scores: scores[:, 3], seed=0),
    )
    for output in ("scores", 1):
        found = explainer("unclear", output=output)
        assert_same_maps(found.explain(x, 3, seed=0), plain)
        assert found.predict(x).shape == (2, 5)
        restricted = found.predict_restricted(x, found.explain(x, 3, seed=0), samples=2, seed=1)
        assert restricted.shape == (2, 2, 5)


def test_information_that_passes_the_layer_by_is_told_once(explainer, x, tmp_path):
    beside, way_around = explainer("none", layer="inner"), "by a way around layer 'inner'"
    with pytest.warns(UserWarning, match=way_around) as told:
        found = beside.explain(x, 3)
    assert {w.filename for w in told if "way around" in str(w.message)} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        beside.explain(x, 2)
    assert found.complete is False
    found.save(tmp_path / "a.safetensors")
    assert Attribution.load(tmp_path / "a.safetensors").complete is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explainer("none").explain(x, 3).complete is True
