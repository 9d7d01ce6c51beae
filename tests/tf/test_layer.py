"""The bottleneck as a Keras layer, from the reference's example to every argument."""

import asyncio
import copy
import gc
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from keras import layers
from keras.layers import Activation, Conv2D, Dense, Flatten
from keras.layers import BatchNormalization as BatchNorm

from iba_core import Explainer, WelfordEstimator
from iba_core.errors import InputError, LayerError, NotEstimatedError, StateError
from iba_tf import IBALayer, Sequential, to_saliency_map
from iba_tf.framework import TensorFlowFramework, eagerly

IMAGES = np.random.default_rng(0).normal(size=(12, 8, 8, 3)).astype(np.float32)


def build(**options):
    """A small trained-looking classifier with a bottleneck, and the bottleneck."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="conv1")(inputs)
    skip = x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    iba = IBALayer(name="iba", **options)
    x = layers.Conv2D(6, 3, padding="same", name="conv2")(iba(x))
    x = layers.Dropout(0.5, name="dropout")(layers.Add(name="add")([x, skip]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        values = rng.normal(0, 0.6, weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return model, iba


@pytest.fixture
def bound():
    """A model, its bottleneck with an estimated distribution, and the symbolic target."""
    model, iba = build(steps=4, batch_size=5)
    target = iba.set_classification_loss(model.output)
    iba.fit({model.input: IMAGES})
    return SimpleNamespace(model=model, iba=iba, target=target)


@pytest.fixture
def traced(bound, monkeypatch):
    """Batch sizes of the feature maps that enter the layer after the bottleneck, one for each trace."""
    layer, sizes = bound.model.get_layer("conv2"), []
    call = layer.call
    monkeypatch.setattr(layer, "call", lambda x: (sizes.append(x.shape[0]), call(x))[1])
    return sizes


def features_of(model, images):
    """The features at the bottleneck."""
    return keras.Model(model.input, model.get_layer("relu").output)(images).numpy()


def without_bottleneck(model):
    """The same layers without the bottleneck between them."""
    inputs = keras.Input((8, 8, 3))
    skip = x = model.get_layer("norm")(model.get_layer("conv1")(inputs))
    x = model.get_layer("conv2")(model.get_layer("relu")(x))
    x = model.get_layer("dropout")(model.get_layer("add")([x, skip]))
    return keras.Model(inputs, model.get_layer("logits")(model.get_layer("pool")(x)))


@keras.saving.register_keras_serializable("iba_tests")
class Scaled(layers.Layer):
    """A custom layer with a weight."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], initializer="ones", name="scale")

    def call(self, x):
        return keras.ops.tanh(x * self.scale)


def test_the_references_example_runs():
    keras = SimpleNamespace(Sequential=Sequential, Input=tf.keras.Input)
    rng = np.random.default_rng(0)

    def data_generator():
        return ((rng.normal(size=(10, 32, 32, 3)), None) for _ in range(3))

    def get_explained_image():
        return rng.normal(size=(1, 32, 32, 3)), 7

    model = keras.Sequential()
    model.add(keras.Input((32, 32, 3)))

    # add some layer
    model.add(Conv2D(64, 3, 3))
    model.add(BatchNorm())
    model.add(Activation("relu"))
    # ... more layers

    # add iba in between
    iba = IBALayer()
    model.add(iba)

    # ... more layers
    model.add(Conv2D(64, 3, 3))
    model.add(Flatten())
    model.add(Dense(10))

    # set classification cross-entropy loss
    target = iba.set_classification_loss(model.output)

    # estimate the feature mean and std.
    for imgs, _ in data_generator():
        iba.fit({model.input: imgs})

    # explain target for image
    ex_image, ex_target = get_explained_image()
    saliency_map = iba.analyze({model.input: ex_image, target: ex_target})

    assert iba.estimator.n_samples() == 30
    assert saliency_map.shape == (10, 10, 64)
    assert saliency_map.sum() > 0
    assert to_saliency_map(saliency_map, (32, 32)).shape == (32, 32)


def test_the_signatures_are_the_references():
    def arguments(function):
        return {
            name: p.default
            for name, p in inspect.signature(function).parameters.items()
            if p.kind is p.POSITIONAL_OR_KEYWORD and name != "self"
        }

    empty = inspect.Parameter.empty
    overrides = dict.fromkeys(
        ("batch_size", "steps", "beta", "learning_rate", "min_std", "smooth_std", "normalize_beta")
    )
    assert arguments(IBALayer.__init__) == {
        **dict.fromkeys(("estimator", "feature_mean", "feature_std", "feature_active")),
        "batch_size": 10,
        "steps": 10,
        "beta": 10,
        "learning_rate": 1,
        "min_std": 0.01,
        "smooth_std": 1.0,
        "normalize_beta": True,
    }
    assert arguments(IBALayer.set_default) == overrides
    assert arguments(IBALayer.analyze) == {
        "feed_dict": empty,
        **overrides,
        "session": None,
        "pass_mask": None,
        "progbar": False,
    }
    assert arguments(IBALayer.fit) == {"feed_dict": empty, "session": None, "run_kwargs": None}
    assert arguments(IBALayer.fit_generator) == {
        "generator": empty,
        "n_samples": 5000,
        "progbar": True,
        "session": None,
        "run_kwargs": None,
    }
    assert list(arguments(IBALayer.set_classification_loss)) == ["logits", "optimizer_cls"]
    assert list(arguments(IBALayer.set_model_loss)) == ["model_loss", "optimizer_cls"]
    assert arguments(IBALayer.restrict_flow) == {"session": None}
    assert arguments(to_saliency_map) == {"capacity": empty, "shape": None, "data_format": None}


class TestAnalysis:
    def test_it_is_the_explainers(self, bound):
        """The layer, and the Explainer on the model without it, give the same map."""
        explainer = Explainer(without_bottleneck(bound.model), layer="relu", steps=4, samples=5)
        explainer.fit([IMAGES], progbar=False)
        expected = explainer.explain(IMAGES[:2], target=[1, 3], seed=7).capacity
        found = bound.iba.analyze({bound.model.input: IMAGES[:2], bound.target: [1, 3]}, seed=7)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)

    def test_one_image_gives_one_map_and_several_give_theirs(self, bound):
        together = bound.iba.analyze(IMAGES[:3], target=[0, 1, 2], seed=0)
        assert together.shape == (3, 8, 8, 6)
        for index in range(3):
            alone = bound.iba.analyze(IMAGES[index : index + 1], target=index, seed=0)
            assert alone.shape == (8, 8, 6)
            np.testing.assert_allclose(alone, together[index], rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("given", [2, [2], [[2]], np.int64(2), np.array([2], np.int32), tf.constant([2])])
    def test_a_class_may_come_in_any_form(self, bound, given):
        expected = bound.iba.analyze(IMAGES[:1], target=2, seed=0)
        np.testing.assert_array_equal(
            bound.iba.analyze({bound.model.input: IMAGES[:1], bound.target: given}, seed=0), expected
        )

    def test_inputs_may_go_by_name_or_alone(self, bound):
        expected = bound.iba.analyze({bound.model.input: IMAGES[:1], bound.target: 2}, seed=0)
        for feed in (IMAGES[:1], {"image": IMAGES[:1]}, tf.constant(IMAGES[:1])):
            np.testing.assert_array_equal(bound.iba.analyze(feed, target=2, seed=0), expected)

    def test_one_trace_serves_all_images_of_a_shape(self, bound, traced):
        for index in range(4):
            bound.iba.analyze(IMAGES[index : index + 1], target=index)
        assert traced == [1, 2, 5]  # the model by itself and the tail, which must agree, and the step

    def test_a_hundred_images_leave_nothing(self, bound, traced):
        bound.iba.analyze(IMAGES[:1], target=0)
        process, default = psutil.Process(), tf.compat.v1.get_default_graph()
        for index in range(100):
            bound.iba.analyze(IMAGES[index % 12][None], target=index % 5, steps=2)
            if index == 20:
                gc.collect()
                memory = process.memory_info().rss
        gc.collect()
        assert traced == [1, 2, 5]
        assert process.memory_info().rss - memory < 20 * 2**20
        assert default.get_operations() == []

    def test_threads_share_it(self, bound):
        def analyze(index):
            return bound.iba.analyze(IMAGES[index : index + 1], target=index % 5, seed=index)

        expected = [analyze(index) for index in range(8)]
        with ThreadPoolExecutor(4) as threads:
            for found, alone in zip(threads.map(analyze, range(8)), expected, strict=True):
                np.testing.assert_array_equal(found, alone)

    def test_a_batch_passes_in_parts_that_suit_the_device(self, bound, traced, monkeypatch):
        mask = np.random.default_rng(0).random((12, 8, 8, 6)) < 0.1
        classes = np.arange(12) % 5
        bound.iba.collect("capacity", "eps", "loss", "perturbed_feature")
        expected = bound.iba.analyze(IMAGES, target=classes, seed=0, pass_mask=mask)
        whole = bound.iba.get_report()
        with bound.iba.restrict_flow():
            tf.random.set_seed(0)
            restricted = bound.model(IMAGES)
        monkeypatch.setattr(TensorFlowFramework, "preferred_batch", lambda self, shape, like: 22)
        traced.clear()
        found = bound.iba.analyze(IMAGES, target=classes, seed=0, pass_mask=mask)
        assert set(traced) == {1, 8, 20}  # 1 and 8 to check the tail against the model
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        for entry, values in bound.iba.get_report().items():
            for name, value in values.items():
                np.testing.assert_allclose(value, whole[entry][name], rtol=1e-3, atol=1e-4)
        with bound.iba.restrict_flow():
            tf.random.set_seed(0)
            np.testing.assert_allclose(bound.model(IMAGES), restricted, rtol=1e-3, atol=1e-4)
        with pytest.raises(InputError, match="max_batch=0 must be a whole number, 1 or more"):
            bound.iba.analyze(IMAGES, target=classes, max_batch=0)

    @pytest.mark.parametrize(
        "override",
        [
            {"beta": 0.0},
            {"beta": 100.0},
            {"smooth_std": 0},
            {"min_std": 0.5},
            {"learning_rate": 0.5},
            {"steps": 1},
            {"batch_size": 2},
            {"normalize_beta": False},
        ],
        ids=str,
    )
    def test_an_override_acts_and_does_not_stay(self, bound, override):
        plain = bound.iba.analyze(IMAGES[:1], target=0, seed=0)
        defaults = bound.iba.get_default()
        changed = bound.iba.analyze(IMAGES[:1], target=0, seed=0, **override)
        assert not np.allclose(changed, plain, rtol=1e-4)
        assert bound.iba.get_default() == defaults
        bound.iba.set_default(**override)
        assert bound.iba.get_default() == {**defaults, **override}
        np.testing.assert_array_equal(bound.iba.analyze(IMAGES[:1], target=0, seed=0), changed)

    def test_a_rate_of_0_gives_the_capacity_at_the_start(self, bound):
        """At alpha = 5 the mask is 0.9933 everywhere; the formula for it is short."""
        capacity = bound.iba.analyze(IMAGES[:1], target=0, steps=1, learning_rate=0)
        mask = 1 / (1 + np.exp(-5.0))
        x = features_of(bound.model, IMAGES)
        r = (x[0] - np.mean(x, axis=0)) / np.maximum(np.std(x, axis=0, ddof=1), 0.01)
        expected = -0.5 * (1 + 2 * np.log(1 - mask) - (r * mask) ** 2 - (1 - mask) ** 2)
        active = np.mean(np.asarray(x) != 0, axis=0) > 0.01
        np.testing.assert_allclose(capacity, expected * active, rtol=1e-4)

    def test_more_beta_leaves_less(self, bound):
        totals = [
            bound.iba.analyze(IMAGES[:1], target=0, beta=beta, seed=0).sum() for beta in (0.1, 10, 1000)
        ]
        assert totals[0] > totals[1] > totals[2]

    def test_the_pass_mask_spares_features(self, bound):
        mask = np.zeros((8, 8, 6), bool)
        mask[:4] = True
        capacity = bound.iba.analyze(IMAGES[:1], target=0, pass_mask=mask)
        assert np.all(capacity[:4] == 0)
        assert capacity[4:].sum() > 0
        with bound.iba.restrict_flow():
            found = bound.iba(features_of(bound.model, IMAGES[:1]))
        np.testing.assert_array_equal(found[0, :4], features_of(bound.model, IMAGES[:1])[0, :4])

    def test_max_batch_bounds_what_runs_at_once(self, bound, traced):
        limited = bound.iba.analyze(IMAGES[:1], target=0, seed=0, max_batch=2)
        assert max(traced) == 2
        np.testing.assert_allclose(
            limited, bound.iba.analyze(IMAGES[:1], target=0, seed=0), rtol=1e-3, atol=1e-5
        )


class TestLosses:
    def test_a_loss_per_row_equals_the_classification(self, bound):
        expected = bound.iba.analyze(IMAGES[:2], target=[1, 2], seed=0)
        label = keras.Input((), dtype="int32", name="label")
        loss = keras.losses.sparse_categorical_crossentropy(label, bound.model.output, from_logits=True)
        bound.iba.set_model_loss(loss)
        found = bound.iba.analyze({bound.model.input: IMAGES[:2], label: [1, 2]}, seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)

    def test_a_mean_loss_equals_the_loss_per_row_for_one_image(self, bound):
        expected = bound.iba.analyze(IMAGES[:1], target=1, seed=0)
        bound.iba.set_model_loss(-keras.ops.mean(keras.ops.log_softmax(bound.model.output)[:, 1]))
        found = bound.iba.analyze({bound.model.input: IMAGES[:1]}, seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        with pytest.raises(InputError, match="2 images, and a scalar model_loss cannot tell them apart"):
            bound.iba.analyze(IMAGES[:2])

    def test_fitting_needs_no_labels(self, bound):
        label = keras.Input((5,), name="label")
        bound.iba.set_model_loss(keras.losses.mean_squared_error(label, bound.model.output))
        bound.iba.fit({bound.model.input: IMAGES})
        assert bound.iba.estimator.n_samples() == 24
        with pytest.raises(InputError, match=r"given for \['image'\]; the model takes .*'label'"):
            bound.iba.analyze({bound.model.input: IMAGES[:1]})

    def test_a_model_stands_for_its_only_output(self, bound):
        expected = bound.iba.analyze(IMAGES[:1], target=1, seed=0)
        bound.iba.set_classification_loss(bound.model)
        np.testing.assert_array_equal(bound.iba.analyze(IMAGES[:1], target=1, seed=0), expected)

    @pytest.mark.parametrize(
        "end",
        [
            layers.Dense(3, activation="softmax"),
            lambda x: layers.Softmax()(layers.Dense(3)(x)),
            lambda x: layers.Activation("softmax")(layers.Dense(3)(x)),
            lambda x: keras.ops.softmax(layers.Dense(3)(x)),
        ],
        ids=["argument", "layer", "activation", "operation"],
    )
    def test_a_softmax_is_refused(self, end):
        inputs = keras.Input((4,))
        iba = IBALayer()
        with pytest.raises(InputError, match=r"comes from a softmax.*model_wo_softmax"):
            iba.set_classification_loss(end(iba(inputs)))

    def test_wrong_arguments_are_named(self, bound):
        with pytest.raises(InputError, match=r"logits has shape \(None, 8, 8, 6\)"):
            bound.iba.set_classification_loss(bound.model.get_layer("add").output)
        with pytest.raises(InputError, match="logits of type ndarray is no symbolic tensor"):
            bound.iba.set_classification_loss(np.zeros((1, 5)))
        with pytest.raises(InputError, match=r"model_loss has shape \(None, 5\)"):
            bound.iba.set_model_loss(bound.model.output)
        with pytest.raises(InputError, match="optimizer_cls='SGD' is not Adam"):
            bound.iba.set_classification_loss(bound.model.output, optimizer_cls=keras.optimizers.SGD)
        with pytest.raises(LayerError, match="'other' runs 0 times on the way"):
            IBALayer(name="other").set_classification_loss(bound.model.output)

    def test_the_references_optimizer_is_accepted(self, bound):
        bound.iba.set_classification_loss(bound.model.output, tf.compat.v1.train.AdamOptimizer)


class TestEstimating:
    def test_a_generator_is_stopped_at_the_sample(self):
        model, iba = build()
        taken = []

        def generator():
            for _ in range(10):
                taken.append(len(IMAGES))
                yield {model.input: IMAGES}

        iba.fit_generator(generator(), n_samples=30, progbar=False)
        assert iba.estimator.n_samples() == 30
        assert len(taken) == 3
        reference = WelfordEstimator()
        features = keras.Model(model.input, model.get_layer("relu").output)(IMAGES)
        for part in (features, features, features[:6]):
            reference.fit(part)
        np.testing.assert_allclose(iba.estimator.std(), reference.std(), rtol=1e-5, atol=1e-6)

    def test_tuples_and_arrays_are_taken_too(self):
        model, iba = build()
        iba.fit_generator([(IMAGES, np.zeros(12)), IMAGES], progbar=False)
        iba.fit(IMAGES)
        assert iba.estimator.n_samples() == 36
        assert model.input is not None

    def test_a_target_in_a_feed_is_passed_over(self, bound):
        bound.iba.fit({bound.target: 3, bound.model.input: IMAGES})
        assert bound.iba.estimator.n_samples() == 24

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_a_fit_that_fails_changes_nothing(self, bound, error):
        def generator():
            yield IMAGES[:6]
            raise error

        before = bound.iba.estimator.state_dict()
        with pytest.raises(error):
            bound.iba.fit_generator(generator(), progbar=False)
        with pytest.raises(InputError, match="finite"):
            bound.iba.fit_generator([IMAGES, np.full_like(IMAGES, np.nan)], progbar=False)
        for name, value in bound.iba.estimator.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
        bound.iba.fit(IMAGES)
        assert bound.iba.estimator.n_samples() == 24

    def test_an_estimator_has_a_fit_of_its_own(self):
        class OfTheFirst(WelfordEstimator):
            batches = 0

            def fit(self, x):
                self.batches += 1
                super().fit(x[:1])

        estimator = OfTheFirst()
        _, iba = build(estimator=estimator)
        iba.fit_generator([IMAGES, IMAGES], progbar=False)
        with pytest.raises(InputError, match="finite"):
            iba.fit_generator([IMAGES, np.full_like(IMAGES, np.nan)], progbar=False)
        assert iba.estimator is estimator
        assert (estimator.batches, estimator.n_samples()) == (2, 2)

    def test_an_empty_generator_is_an_error(self):
        _, iba = build()
        with pytest.raises(InputError, match="gave no samples"):
            iba.fit_generator([], progbar=False)

    def test_given_statistics_take_the_place_of_the_estimator(self, bound):
        expected = bound.iba.analyze(IMAGES[:1], target=1, seed=0)
        estimator = bound.iba.estimator
        active = estimator.active_neurons()
        for options in (
            {"estimator": estimator},
            {"feature_mean": estimator.mean(), "feature_std": estimator.std(), "feature_active": active},
        ):
            model, iba = build(steps=4, batch_size=5, **options)
            iba.set_classification_loss(model.output)
            np.testing.assert_allclose(
                iba.analyze(IMAGES[:1], target=1, seed=0), expected, rtol=1e-4, atol=1e-6
            )

    def test_inactive_features_carry_nothing(self, bound):
        estimator = bound.iba.estimator
        active = np.arange(6) % 2 == 0
        model, iba = build(
            feature_mean=estimator.mean(),
            feature_std=estimator.std(),
            feature_active=np.broadcast_to(active, (8, 8, 6)),
        )
        iba.set_classification_loss(model.output)
        capacity = iba.analyze(IMAGES[:1], target=1, steps=2)
        assert np.all(capacity[..., 1::2] == 0)
        assert np.all(capacity[..., ::2] > 0)

    def test_statistics_are_given_once_and_whole(self):
        ones = np.ones(3)
        with pytest.raises(InputError, match="either estimator or feature_mean"):
            IBALayer(estimator=WelfordEstimator(), feature_mean=ones, feature_std=ones)
        with pytest.raises(InputError, match="feature_mean and feature_std are given together"):
            IBALayer(feature_mean=ones)
        with pytest.raises(InputError, match=r"feature_std has shape \(4,\); shape \(3,\) was expected"):
            IBALayer(feature_mean=ones, feature_std=np.ones(4))
        with pytest.raises(InputError, match=r"steps=-1"):
            IBALayer(steps=-1)


class TestWrongUse:
    def test_no_loss(self):
        _, iba = build()
        iba.fit(IMAGES)
        with pytest.raises(InputError, match="no model loss yet: call set_classification_loss"):
            iba.analyze(IMAGES[:1], target=0)

    def test_no_statistics(self):
        model, iba = build()
        iba.set_classification_loss(model.output)
        with pytest.raises(NotEstimatedError, match="0 samples seen"):
            iba.analyze(IMAGES[:1], target=0)
        iba.fit(IMAGES[:1])
        with pytest.raises(NotEstimatedError, match="1 samples seen"):
            iba.analyze(IMAGES[:1], target=0)

    def test_no_model(self):
        with pytest.raises(LayerError, match="'alone' is in no model yet"):
            IBALayer(name="alone").fit(IMAGES)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (None, "gives no class"),
            (5, "target=5 is outside the model's 5 classes"),
            (-1, "outside"),
            (1.5, "whole number"),
            ([1, 2, 3], r"target has shape \(3,\) for 1 images"),
        ],
    )
    def test_wrong_targets(self, bound, target, message):
        with pytest.raises(InputError, match=message):
            bound.iba.analyze(IMAGES[:1], target=target)

    def test_wrong_inputs(self, bound):
        with pytest.raises(InputError, match=r"'image' has shape \(8, 8, 3\)"):
            bound.iba.analyze(IMAGES[0], target=0)
        with pytest.raises(InputError, match=r"'image' has shape \(1, 3, 8, 8\)"):
            bound.iba.analyze(IMAGES[:1].transpose(0, 3, 1, 2), target=0)
        broken = IMAGES[:1].copy()
        broken[0, 1, 2, 0] = np.nan
        with pytest.raises(InputError, match=r"feed_dict\['image'\] holds nan at index \(0, 1, 2, 0\)"):
            bound.iba.analyze(broken, target=0)
        with pytest.raises(InputError, match="empty batch"):
            bound.iba.analyze(IMAGES[:0], target=0)

    def test_the_pass_mask_must_fit(self, bound):
        with pytest.raises(InputError, match=r"pass_mask has shape \(3,\)"):
            bound.iba.analyze(IMAGES[:1], target=0, pass_mask=np.ones(3, bool))


class TestRestrictedFlow:
    def test_it_acts_on_a_model_compiled_before(self, bound):
        before = bound.model.predict(IMAGES[:1], verbose=0)
        bound.iba.analyze(IMAGES[:1], target=0)
        with bound.iba.restrict_flow():
            first = bound.model.predict(IMAGES[:1], verbose=0)
            second = bound.model.predict(IMAGES[:1], verbose=0)
        assert not np.allclose(first, before)
        assert not np.allclose(first, second)
        np.testing.assert_array_equal(bound.model.predict(IMAGES[:1], verbose=0), before)

    def test_what_passes_has_the_distribution_of_the_bottleneck(self, bound):
        bound.iba.collect("lambda")
        bound.iba.analyze(IMAGES[:1], target=0, seed=0, steps=8)
        iba, copies = bound.iba, 4000
        x = features_of(bound.model, IMAGES[:1])
        with iba.restrict_flow():
            drawn = iba(np.repeat(x, copies, axis=0)).numpy()
        mask, active = iba.get_report()["final"]["lambda"][0], iba.estimator.active_neurons()
        mean, std = iba.estimator.mean(), np.maximum(iba.estimator.std(), 0.01)
        expected = np.where(active, mask * x[0] + (1 - mask) * mean, 0)
        spread = np.where(active, (1 - mask) * std, 0)
        assert 0.05 < mask[active].mean() < 0.95
        np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=5 * spread.max() / np.sqrt(copies))
        np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.1, atol=1e-5)

    def test_a_raising_body_restores_the_flow(self, bound):
        expected = bound.model(IMAGES[:1])
        bound.iba.analyze(IMAGES[:1], target=0)
        with pytest.raises(ZeroDivisionError), bound.iba.restrict_flow():
            raise ZeroDivisionError
        np.testing.assert_array_equal(bound.model(IMAGES[:1]), expected)
        with bound.iba.restrict_flow():
            with bound.iba.restrict_flow():
                pass
            assert not np.allclose(bound.model(IMAGES[:1]), expected)

    def test_analysis_within_it_is_as_without(self, bound):
        expected = bound.iba.analyze(IMAGES[:1], target=0, seed=0)
        with bound.iba.restrict_flow():
            np.testing.assert_array_equal(bound.iba.analyze(IMAGES[:1], target=0, seed=0), expected)

    def test_several_images_pass_by_their_own_masks(self, bound):
        bound.iba.analyze(IMAGES[:2], target=[0, 1])
        with bound.iba.restrict_flow():
            assert bound.model.predict(IMAGES[:2], verbose=0).shape == (2, 5)
            with pytest.raises(tf.errors.InvalidArgumentError):
                bound.model(IMAGES[:3])

    def test_overlapping_contexts_end_when_the_last_one_does(self, bound):
        def predict():
            return bound.model.predict(IMAGES[:1], verbose=0)

        free = predict()
        bound.iba.analyze(IMAGES[:1], target=0, beta=1000.0)
        first, second = bound.iba.restrict_flow(), bound.iba.restrict_flow()
        with ThreadPoolExecutor(1) as other:
            first.__enter__()
            other.submit(second.__enter__).result()
            first.__exit__(None, None, None)
            assert not np.allclose(predict(), free)
            # Eager passes are restricted where the context is.
            np.testing.assert_array_equal(bound.model(IMAGES[:1]), bound.model(IMAGES[:1]))
            pair = [other.submit(bound.model, IMAGES[:1]).result() for _ in range(2)]
            assert not np.allclose(*pair)
            other.submit(second.__exit__, None, None, None).result()
            np.testing.assert_array_equal(
                other.submit(bound.model, IMAGES[:1]).result(), bound.model(IMAGES[:1])
            )
        np.testing.assert_array_equal(predict(), free)

    def test_tasks_are_restricted_each_by_itself(self, bound):
        free = bound.model(IMAGES[:1]).numpy()
        bound.iba.analyze(IMAGES[:1], target=0, beta=1000.0)
        differs = []

        async def run(restricted, before, after):
            await asyncio.sleep(before)
            with bound.iba.restrict_flow() if restricted else nullcontext():
                differs.append((restricted, not np.allclose(bound.model(IMAGES[:1]), free)))
                await asyncio.sleep(after)
                differs.append((restricted, not np.allclose(bound.model(IMAGES[:1]), free)))

        async def run_all():
            await asyncio.gather(run(True, 0, 0.05), run(True, 0.02, 0.1), run(False, 0.03, 0.05))

        asyncio.run(run_all())
        assert len(differs) == 6
        assert all(restricted == differed for restricted, differed in differs)
        np.testing.assert_array_equal(bound.model.predict(IMAGES[:1], verbose=0), bound.model(IMAGES[:1]))

    def test_it_needs_an_analysis(self, bound):
        with pytest.raises(NotEstimatedError, match="call analyze before"), bound.iba.restrict_flow():
            pass


class TestAsALayer:
    def test_it_is_the_identity_without_weights(self, bound):
        np.testing.assert_array_equal(
            bound.model.predict(IMAGES, verbose=0), without_bottleneck(bound.model).predict(IMAGES, verbose=0)
        )
        assert bound.iba.weights == []
        assert bound.iba.compute_output_shape((None, 3, 4)) == (None, 3, 4)

    def test_analysing_leaves_no_trace(self, bound, monkeypatch):
        before = bound.model(IMAGES).numpy()
        weights = [weight.numpy() for weight in bound.model.weights]
        nodes = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in bound.model.layers]
        bound.iba.analyze(IMAGES[:2], target=0)
        monkeypatch.setattr(bound.model.get_layer("conv2"), "call", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bound.iba.analyze(IMAGES[:3], target=0)
        monkeypatch.undo()
        np.testing.assert_array_equal(bound.model(IMAGES), before)
        assert nodes == [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in bound.model.layers]
        for weight, value in zip(bound.model.weights, weights, strict=True):
            np.testing.assert_array_equal(weight, value)
            assert weight.trainable == ("moving" not in weight.path)

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_model_with_it_trains_and_explains_what_it_learnt(self, bound, jit_compile):
        labels = np.arange(12) % 5
        before = bound.iba.analyze(IMAGES[:1], target=0, seed=0)
        bound.model.compile(
            keras.optimizers.Adam(0.05),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
        history = bound.model.fit(IMAGES, labels, epochs=4, verbose=0).history["loss"]
        assert history[-1] < history[0]
        assert not np.allclose(bound.iba.analyze(IMAGES[:1], target=0, seed=0), before, rtol=1e-3)

    def test_it_is_saved_and_loaded_with_its_statistics(self, bound, tmp_path):
        expected = bound.iba.analyze(IMAGES[:1], target=2, seed=0)
        bound.model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        iba = loaded.get_layer("iba")
        assert iba.get_default() == bound.iba.get_default()
        iba.set_classification_loss(loaded.output)
        np.testing.assert_allclose(iba.analyze(IMAGES[:1], target=2, seed=0), expected, rtol=1e-5, atol=1e-7)

    def test_given_statistics_are_saved_too(self, tmp_path):
        mean, std = np.random.default_rng(0).uniform(size=(2, 8, 8, 6))
        model, _ = build(feature_mean=mean, feature_std=std)
        model.save(tmp_path / "model.keras")
        state = keras.saving.load_model(tmp_path / "model.keras").get_layer("iba").state_dict()
        np.testing.assert_array_equal(state["feature_mean"], mean)
        np.testing.assert_array_equal(state["feature_std"], std)
        assert state["feature_active"].all()
        assert state["estimator"] is None

    def test_weights_without_statistics_leave_the_present_ones(self, bound, tmp_path):
        model, _ = build()
        model.save_weights(tmp_path / "model.weights.h5")
        bound.model.load_weights(tmp_path / "model.weights.h5")
        assert bound.iba.estimator.n_samples() == 12

    def test_a_clone_is_independent(self, bound):
        clone = keras.models.clone_model(bound.model)
        iba = clone.get_layer("iba")
        assert iba is not bound.iba
        assert iba.get_default() == bound.iba.get_default()
        iba.set_classification_loss(clone.output)
        iba.fit(IMAGES)
        assert iba.analyze(IMAGES[:1], target=0).shape == (8, 8, 6)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copied_model_has_a_bottleneck_of_its_own(self, bound, way):
        before = bound.iba.analyze(IMAGES[:1], target=0, seed=0)
        copied = way(bound.model)
        iba = copied.get_layer("iba")
        assert iba.get_default() == bound.iba.get_default()
        target = iba.set_classification_loss(copied.output)
        feed = {copied.input: IMAGES[:1], target: 0}
        np.testing.assert_allclose(iba.analyze(feed, seed=0), before, rtol=1e-4, atol=1e-6)
        rng = np.random.default_rng(7)
        for name in ("conv2", "logits"):
            weights = copied.get_layer(name).get_weights()
            copied.get_layer(name).set_weights([rng.normal(0, 2, x.shape) for x in weights])
        found = iba.analyze(feed, seed=0)
        assert not np.allclose(found, before, rtol=1e-2)
        explainer = Explainer(without_bottleneck(copied), layer="relu", estimator=iba.estimator)
        expected = explainer.explain(IMAGES[:1], target=0, seed=0, steps=4, samples=5).capacity[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        with iba.restrict_flow():
            np.testing.assert_array_equal(bound.model(IMAGES[:1]), bound.model(IMAGES[:1]))
        iba.fit(IMAGES)
        assert bound.iba.estimator.n_samples() == 12
        np.testing.assert_array_equal(bound.iba.analyze(IMAGES[:1], target=0, seed=0), before)

    def test_it_is_exported(self, bound, tmp_path):
        bound.model.export(tmp_path / "exported", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "exported"))
        served = loaded.serve(tf.constant(IMAGES))
        np.testing.assert_allclose(served, bound.model(IMAGES), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
    def test_other_precisions(self, policy):
        inputs = keras.Input((6, 6, 3))
        x = layers.Conv2D(4, 3, dtype=policy)(inputs)
        iba = IBALayer(dtype=policy, steps=3)
        x = layers.Flatten(dtype=policy)(iba(x))
        model = keras.Model(inputs, layers.Dense(3, dtype=policy)(x))
        iba.set_classification_loss(model.output)
        x = IMAGES[:, :6, :6]
        iba.fit(x)
        capacity = iba.analyze(x[:1], target=0)
        assert capacity.dtype == (np.float64 if policy == "float64" else np.float32)
        assert np.isfinite(capacity).all()
        with iba.restrict_flow():
            assert np.isfinite(np.asarray(model(x[:1]), np.float32)).all()

    def test_features_of_any_rank(self):
        for shape in ((5,), (7, 5), (4, 3, 5), (3, 2, 4, 5)):
            inputs = keras.Input(shape)
            iba = IBALayer(steps=2)
            x = iba(layers.Dense(6)(inputs))
            model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
            iba.set_classification_loss(model.output)
            x = np.random.default_rng(0).normal(size=(6, *shape))
            iba.fit(x)
            assert iba.analyze(x[:1], target=1).shape == (*shape[:-1], 6)

    def test_a_masked_sequence(self):
        tokens = keras.Input((7,), dtype="int32")
        x = layers.Embedding(20, 6, mask_zero=True)(tokens)
        iba = IBALayer(steps=3)
        x = layers.LSTM(5)(iba(x))
        model = keras.Model(tokens, layers.Dense(3)(x))
        iba.set_classification_loss(model.output)
        sentences = np.random.default_rng(0).integers(1, 20, (10, 7))
        iba.fit(sentences)
        sentences[:, 4:] = 0
        capacity = iba.analyze(sentences[:1], target=0, seed=0, steps=10, beta=1000.0)
        loose = iba.analyze(sentences[:1], target=0, seed=0, steps=1, learning_rate=0)
        # Features that the LSTM does not read can be lost at once.
        assert capacity[4:].sum() < loose[4:].sum() / 2

    def test_inside_a_nested_model(self):
        image = keras.Input((8, 8, 3))
        iba = IBALayer(steps=2)
        backbone = keras.Model(image, layers.Conv2D(4, 3)(iba(layers.Conv2D(6, 3)(image))), name="backbone")
        inputs = keras.Input((8, 8, 3), name="picture")
        model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(backbone(inputs))))
        target = iba.set_classification_loss(model.output)
        iba.fit({model.input: IMAGES})
        assert iba.analyze({model.input: IMAGES[:1], target: 1}).shape == (6, 6, 6)

    def test_two_inputs(self):
        image, table = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="table")
        iba = IBALayer(steps=2)
        x = layers.GlobalAveragePooling2D()(iba(layers.Conv2D(6, 3)(image)))
        model = keras.Model([image, table], layers.Dense(3)(layers.Concatenate()([x, table])))
        target = iba.set_classification_loss(model.output)
        table_values = np.random.default_rng(0).normal(size=(12, 4))
        iba.fit({image: IMAGES})
        iba.fit({image: IMAGES, table: table_values})
        assert iba.analyze({image: IMAGES[:1], table: table_values[:1], target: 1}).shape == (6, 6, 6)
        with pytest.raises(InputError, match=r"one input is given; the model takes 2"):
            iba.analyze(IMAGES[:1], target=1)

    def test_two_inputs_and_two_outputs(self):
        image, table = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="table")
        iba = IBALayer(steps=3, beta=0.001)
        x = layers.GlobalAveragePooling2D()(iba(layers.Conv2D(6, 3)(image)))
        joined = layers.Concatenate()([x, table])
        model = keras.Model([image, table], [layers.Dense(3)(joined), layers.Dense(1, name="score")(joined)])
        values = np.random.default_rng(0).normal(size=(12, 4))
        feed = {image: IMAGES[:1], table: values[:1]}
        target = iba.set_classification_loss(model.outputs[0])
        assert iba.target is target
        iba.fit({image: IMAGES})
        by_class = iba.analyze({**feed, target: 1}, seed=0)
        iba.set_model_loss(keras.ops.square(model.outputs[1] - 1.0))
        by_score = iba.analyze(feed, seed=0)
        assert by_class.shape == by_score.shape == (6, 6, 6)
        assert not np.allclose(by_class, by_score, rtol=1e-3)
        with pytest.raises(InputError, match="has 2 outputs; give one of them"):
            iba.set_classification_loss(model)

    def test_between_custom_layers(self, tmp_path):
        inputs = keras.Input((5, 4))
        iba = IBALayer(steps=2, name="iba")
        x = layers.LSTM(6, return_sequences=True)(Scaled(name="scaled")(inputs))
        model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(5)(Scaled(name="again")(iba(x)))))
        sequences = np.random.default_rng(0).normal(size=(10, 5, 4))
        iba.set_classification_loss(model.output)
        iba.fit(sequences)
        expected = iba.analyze(sequences[:1], target=1, seed=0)
        assert expected.shape == (5, 6)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        again = loaded.get_layer("iba")
        again.set_classification_loss(loaded.output)
        np.testing.assert_allclose(
            again.analyze(sequences[:1], target=1, seed=0), expected, rtol=1e-4, atol=1e-6
        )

    def test_within_a_subclassed_model_the_way_out_is_told(self):
        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.iba, self.dense = IBALayer(name="hidden"), layers.Dense(3)

            def call(self, x):
                return self.dense(self.iba(x))

        model = Model()
        outputs = model(keras.Input((4,)))
        with pytest.raises(LayerError, match=r"'hidden' runs 0 times.*IBACopy"):
            model.iba.set_classification_loss(outputs)

    def test_two_bottlenecks_in_a_model_are_independent(self):
        inputs = keras.Input((8, 8, 3))
        first, second = IBALayer(steps=2), IBALayer(steps=2)
        x = second(layers.Conv2D(4, 3)(first(layers.Conv2D(6, 3)(inputs))))
        model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
        for iba, shape in ((first, (6, 6, 6)), (second, (4, 4, 4))):
            iba.set_classification_loss(model.output)
            iba.fit(IMAGES)
            assert iba.analyze(IMAGES[:1], target=1).shape == shape

    def test_a_layer_called_twice_is_refused(self):
        inputs = keras.Input((4,))
        iba = IBALayer(name="twice")
        with pytest.raises(LayerError, match="'twice' runs 2 times"):
            iba.set_classification_loss(layers.Dense(3)(iba(layers.Dense(4)(iba(inputs)))))


class TestInAVersion1Graph:
    """The layer also works in a graph of TensorFlow 1."""

    @pytest.fixture
    def old(self):
        rng = np.random.default_rng(3)
        first, second = rng.normal(0, 0.6, (4, 6)), rng.normal(0, 0.6, (6, 5))
        v1, graph = tf.compat.v1, tf.Graph()
        with graph.as_default(), v1.Session(graph=graph) as session:
            x = v1.placeholder(tf.float32, (None, 4), name="x")
            iba = IBALayer(name="iba", steps=4, batch_size=5, beta=0.01)
            weights = v1.get_variable("weights", initializer=second.astype(np.float32))
            features = tf.nn.relu(x @ first.astype(np.float32))
            logits = iba(features) @ weights
            session.run(v1.global_variables_initializer())
            yield SimpleNamespace(**{**locals(), "X": rng.normal(size=(12, 4)).astype(np.float32)})

    def test_it_explains_and_restricts(self, old):
        before = old.session.run(old.logits, {old.x: old.X})
        np.testing.assert_allclose(
            before, np.maximum(old.X @ old.first, 0) @ old.second, rtol=1e-5, atol=1e-6
        )
        target = old.iba.set_classification_loss(old.logits)
        assert old.iba.target is target
        # The layer has five variables of its own.
        assert len(old.graph.get_collection("variables")) == 1 + 5
        old.iba.fit({old.x: old.X[:6]}, session=old.session)
        old.iba.fit_generator([{old.x: old.X[6:], target: 0}], progbar=False)
        assert old.iba.estimator.n_samples() == 12
        old.iba.collect("logits")
        capacity = old.iba.analyze({old.x: old.X[:1], target: [2]}, seed=7)
        assert old.iba.get_report()["final"]["logits"].shape == (5, 5)
        with old.iba.restrict_flow():
            restricted = old.session.run(old.logits, {old.x: old.X[:1]})
            with pytest.raises(ZeroDivisionError), old.iba.restrict_flow():
                raise ZeroDivisionError
        assert not np.allclose(restricted, before[:1], rtol=1e-3)
        np.testing.assert_array_equal(old.session.run(old.logits, {old.x: old.X}), before)
        np.testing.assert_allclose(self.expected(old), capacity, rtol=1e-3, atol=1e-5)

    def expected(self, old):
        """By a model of Keras 3, outside of the graph."""
        with eagerly():
            inputs = keras.Input((4,))
            x = layers.Dense(6, activation="relu", name="features")(inputs)
            model = keras.Model(inputs, layers.Dense(5)(x))
            model.set_weights([old.first, np.zeros(6), old.second, np.zeros(5)])
            explainer = Explainer(model, layer="features", steps=4, samples=5, beta=0.01)
            explainer.fit([old.X], progbar=False)
            return explainer.explain(old.X[:1], target=2, seed=7).capacity[0]

    def test_each_session_is_restricted_by_its_own_contexts(self, old):
        target = old.iba.set_classification_loss(old.logits)
        old.iba.fit({old.x: old.X})
        old.iba.analyze({old.x: old.X[:1], target: [2]}, beta=1000)
        before = old.session.run(old.logits, {old.x: old.X[:1]})

        def restricted():
            outputs = [session.run(old.logits, {old.x: old.X[:1]}) for session in (old.session, other)]
            return [not np.allclose(output, before, rtol=1e-3) for output in outputs]

        with tf.compat.v1.Session(graph=old.graph) as other:
            other.run(old.v1.global_variables_initializer())
            with old.iba.restrict_flow(old.session), old.iba.restrict_flow(old.session):
                with old.iba.restrict_flow(other):
                    assert restricted() == [True, True]
                assert restricted() == [True, False]
                overlapping = old.iba.restrict_flow(other)
                overlapping.__enter__()
            assert restricted() == [False, True]
            with old.iba.restrict_flow(old.session):
                overlapping.__exit__(None, None, None)
                assert restricted() == [True, False]
            assert restricted() == [False, False]

    def test_it_follows_the_session(self, old):
        labels = tf.compat.v1.placeholder(tf.int32, (None,), name="labels")
        old.iba.set_model_loss(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=old.logits)
        )
        assert old.iba.target is None
        old.iba.fit({old.x: old.X})
        feed = {old.x: old.X[:1], labels: [2]}
        before = old.iba.analyze(feed, seed=7)
        np.testing.assert_allclose(self.expected(old), before, rtol=1e-3, atol=1e-5)
        old.session.run(tf.compat.v1.assign(old.weights, -old.second))
        assert not np.allclose(old.iba.analyze(feed, seed=7), before, rtol=1e-2)

    def test_wrong_uses(self, old):
        with pytest.raises(NotEstimatedError, match="call analyze before"), old.iba.restrict_flow():
            pass
        with pytest.raises(InputError, match="no model loss yet"):
            old.iba.analyze({old.x: old.X})
        with pytest.raises(InputError, match="fed by a dict whose keys are its placeholders"):
            old.iba.fit(old.X)
        with pytest.raises(LayerError, match="'other' is not in the graph"):
            IBALayer(name="other").set_classification_loss(old.logits)


class TestState:
    def test_it_makes_a_round_trip(self, bound):
        bound.iba.set_default(beta=3.0, steps=1, normalize_beta=False, smooth_std=0)
        state = bound.iba.state_dict()
        _, other = build()
        other.load_state_dict(state)
        assert other.get_default() == bound.iba.get_default()
        assert state["feature_name"] == "iba"
        for name in ("mean", "std", "active_neurons", "n_samples"):
            expected = getattr(bound.iba.estimator, name)()
            np.testing.assert_array_equal(getattr(other.estimator, name)(), expected)

    def test_given_statistics_make_it_too(self):
        active = np.random.default_rng(0).random((8, 8, 6)) > 0.5
        _, iba = build(feature_mean=np.ones((8, 8, 6)), feature_std=np.ones((8, 8, 6)), feature_active=active)
        _, other = build()
        other.load_state_dict(iba.state_dict())
        np.testing.assert_array_equal(other.state_dict()["feature_active"], active)
        assert other.state_dict()["estimator"] is None

    def test_a_malformed_state_changes_nothing(self, bound):
        before = bound.iba.state_dict()
        state = {**before, "default_hyperparams": {"steps": -1}}
        with pytest.raises(StateError, match="malformed: steps=-1"):
            bound.iba.load_state_dict(state)
        with pytest.raises(StateError, match="lacks estimator, feature_active"):
            bound.iba.load_state_dict(
                {k: before[k] for k in before if k not in ("estimator", "feature_active")}
            )
        assert bound.iba.get_default() == before["default_hyperparams"]
        assert bound.iba.estimator.n_samples() == 12


class TestReport:
    def test_every_variable_is_reported_at_every_step(self, bound):
        bound.iba.collect_all()
        capacity = bound.iba.analyze(IMAGES[:1], target=2, seed=3)
        report = bound.iba.get_report()
        assert list(report) == ["init", 0, 1, 2, 3, "final"]
        constant = {"feature", "feature_mean", "feature_std", "pass_mask"}
        assert sorted(report["init"]) == bound.iba.available_report_variables()
        assert set(report["final"]) == set(report["init"]) - constant
        np.testing.assert_allclose(report["final"]["capacity"][0], capacity, rtol=1e-5)
        np.testing.assert_array_equal(report["init"]["alpha"], np.full((1, 8, 8, 6), 5.0))
        for entry in (report["init"], report[2], report["final"]):
            assert entry["logits"].shape == (5, 5)
            assert entry["eps"].shape == (5, 8, 8, 6)
            np.testing.assert_allclose(entry["model_loss"], entry["cross_entropy"].mean(), rtol=1e-5)
            np.testing.assert_allclose(
                entry["loss"], entry["model_loss"] + 10 * entry["capacity_mean"], rtol=1e-5
            )
            np.testing.assert_allclose(entry["capacity_mean"], entry["capacity"].mean(), rtol=1e-5)
            np.testing.assert_allclose(entry["lambda_pre_blur"], 1 / (1 + np.exp(-entry["alpha"])), rtol=1e-5)
            mixed = entry["lambda"] * report["init"]["feature"] + (1 - entry["lambda"]) * entry["eps"]
            np.testing.assert_allclose(entry["perturbed_feature"], mixed, rtol=1e-3, atol=1e-3)

    def test_the_gradient_is_what_moves_alpha(self, bound):
        bound.iba.collect("alpha", "grad_loss_wrt_alpha")
        bound.iba.analyze(IMAGES[:1], target=2, seed=3)
        report = bound.iba.get_report()
        assert set(report[0]) == {"alpha", "grad_loss_wrt_alpha"}
        gradient = report[0]["grad_loss_wrt_alpha"]
        # Adam's first step is minus the learning rate times the sign, away from 0.
        np.testing.assert_allclose(
            (report[1]["alpha"] - 5.0)[np.abs(gradient) > 1e-5],
            -np.sign(gradient)[np.abs(gradient) > 1e-5],
            atol=2e-3,
        )

    def test_collecting_changes_no_result(self, bound):
        expected = bound.iba.analyze(IMAGES[:1], target=2, seed=3)
        assert bound.iba.get_report() == {}
        bound.iba.collect("lambda")
        np.testing.assert_array_equal(bound.iba.analyze(IMAGES[:1], target=2, seed=3), expected)
        bound.iba.collect()
        bound.iba.analyze(IMAGES[:1], target=2)
        assert bound.iba.get_report() == {}

    def test_the_pass_mask_is_reported(self, bound):
        mask = np.zeros((8, 8, 6), bool)
        mask[0] = True
        bound.iba.collect("pass_mask", "perturbed_feature_passing")
        bound.iba.analyze(IMAGES[:1], target=2, pass_mask=mask)
        report = bound.iba.get_report()
        np.testing.assert_array_equal(report["init"]["pass_mask"][0], mask)
        expected = features_of(bound.model, IMAGES[:1])[0, 0]
        np.testing.assert_array_equal(report["final"]["perturbed_feature_passing"][4, 0], expected)

    def test_another_loss_has_no_logits(self, bound):
        assert "logits" in bound.iba.available_report_variables()
        bound.iba.set_model_loss(keras.ops.mean(bound.model.output, axis=1))
        assert "logits" not in bound.iba.available_report_variables()
        with pytest.raises(InputError, match="'logits' is no variable to collect"):
            bound.iba.collect("logits")
        bound.iba.collect_all()
        bound.iba.analyze(IMAGES[:1])


class TestSaliencyMap:
    def test_it_follows_kerass_data_format(self):
        capacity = np.random.default_rng(0).random((4, 5, 6))
        last = capacity.sum(axis=2) / np.log(2)
        np.testing.assert_allclose(to_saliency_map(capacity), last)
        np.testing.assert_allclose(to_saliency_map(capacity, data_format="channels_last"), last)
        first = capacity.sum(axis=0) / np.log(2)
        np.testing.assert_allclose(to_saliency_map(capacity, data_format="channels_first"), first)
        keras.config.set_image_data_format("channels_first")
        try:
            np.testing.assert_allclose(to_saliency_map(capacity), first)
        finally:
            keras.config.set_image_data_format("channels_last")

    def test_the_bits_stay_the_same(self):
        capacity = np.random.default_rng(0).random((4, 5, 6))
        assert to_saliency_map(capacity, (32, 40)).sum() == pytest.approx(capacity.sum() / np.log(2))


def test_a_sequential_has_its_input_and_output():
    model = Sequential([keras.Input((4,)), layers.Dense(3)])
    assert model.input is model.inputs[0]
    assert model.output is model.outputs[0]
    assert not hasattr(Sequential(), "output")
    clone = Sequential.from_config(model.get_config())
    assert clone.output.shape == (None, 3)
