"""The public doors of `iba_tf`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import keras
import numpy as np

import iba_tf
from iba_core import WelfordEstimator
from tests.backends import TensorFlow
from tests.robustness import doors_evaluation, doors_models
from tests.robustness.doors_core import CALLED, COUNT, FLAG, OPTIONAL_SEED, SEED, SETTINGS, const, folder
from tests.robustness.doors_models import Network, network
from tests.robustness.walk import Door, door
from tests.robustness.wrong_values import (
    Argument,
    array,
    boolean,
    either,
    function,
    given,
    nothing,
    numbers,
    optional,
    whole,
)

A = Argument
FEATURES = (8, 8, 4)

HYPERPARAMETERS = {
    "batch_size": COUNT,
    "steps": COUNT,
    "beta": SETTINGS["beta"],
    "learning_rate": SETTINGS["learning_rate"],
    "min_std": SETTINGS["min_std"],
    "smooth_std": SETTINGS["smooth_std"],
    "normalize_beta": FLAG,
}
OVERRIDES = {name: A(rule.valid, optional(rule.accepts)) for name, rule in HYPERPARAMETERS.items()}
GIVEN = {
    "estimator": given(None, optional(nothing)),
    "feature_mean": given(np.zeros(FEATURES), array(), ("feature_std", "feature_active")),
    "feature_std": given(np.ones(FEATURES), array(shape=FEATURES), ("feature_mean",)),
    "feature_active": given(np.ones(FEATURES, bool), optional(array(shape=FEATURES))),
}


OPTIONS = {
    **OVERRIDES,
    "pass_mask": given(np.zeros(FEATURES, bool), optional(array(shape=FEATURES))),
    "progbar": given(False, boolean),
    "target": given(1, either(whole(0, 2), array((0, 1)))),
    "seed": OPTIONAL_SEED,
    "max_batch": given(8, optional(whole(1))),
}
"""Arguments of `analyze`, of a layer and of a copy."""


def _images(net: Network) -> Argument:
    return given(net.images[:2], net.is_batches, ("x", "input", "inputs", "input_layer", "keras_tensor"))


def _layers(net: Network) -> Iterator[Door]:
    yield door("iba_tf.IBALayer", **GIVEN, **OVERRIDES)
    inputs = keras.Input((8, 8, 3))
    iba = iba_tf.IBALayer(steps=2, batch_size=2)
    features = iba(keras.layers.Conv2D(4, 3, padding="same")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(features)))
    iba.set_classification_loss(model.output)
    iba.fit(net.images)
    images = _images(net)
    yield door("iba_tf.IBALayer.set_default", const(iba), **OVERRIDES)
    iba.set_default(batch_size=2, steps=2)
    yield door("iba_tf.IBALayer.fit", const(iba), feed_dict=images)
    yield door(
        "iba_tf.IBALayer.fit_generator",
        const(iba),
        generator=A(lambda: [net.images], net.is_batches, images.called),
        n_samples=given(4, optional(whole(1))),
        progbar=given(False, boolean),
    )
    yield door("iba_tf.IBALayer.analyze", const(iba), feed_dict=images, **OPTIONS)
    yield door(
        "iba_tf.IBALayer.set_model_loss",
        const(iba),
        model_loss=given(keras.ops.mean(model.output, axis=1)),
        optimizer_cls=given(keras.optimizers.Adam),
    )
    yield door(
        "iba_tf.IBALayer.set_classification_loss",
        const(iba),
        logits=given(model.output),
        optimizer_cls=given(keras.optimizers.Adam),
    )
    yield door("iba_tf.IBALayer.collect", const(iba), **{"*": given(("alpha",), nothing, ("var_names",))})
    yield door("iba_tf.IBALayer.load_state_dict", const(iba), state=A(iba.state_dict))


def _copies(net: Network) -> Iterator[Door]:
    images = _images(net)
    copied = partial(iba_tf.IBACopy, "relu", None, graph=net.model)
    yield Door("iba_tf.IBACopy", const(copied), {**GIVEN, **OVERRIDES})
    copy = copied(steps=2, batch_size=2)
    copy.set_classification_loss()
    copy.fit(net.images)
    yield door("iba_tf.IBACopy.fit", const(copy), feed_dict=images)
    yield door("iba_tf.IBACopy.predict", const(copy), feed_dict=images)
    yield door("iba_tf.IBACopy.get_feature", const(copy), feed_dict=images)
    yield door(
        "iba_tf.IBACopy.analyze",
        const(copy),
        feature_feed_dict=images,
        copy_feed_dict=A(dict, optional(lambda value: value == {}), ("inputs",)),
        **OPTIONS,
    )
    yield Door(
        "iba_tf.IBACopyInnvestigate",
        const(partial(iba_tf.IBACopyInnvestigate, net.model)),
        {
            "neuron_selection_mode": given("index"),
            "feature_name": given("relu", optional(nothing), ("layer", "feature")),
            **GIVEN,
            **OVERRIDES,
            "disable_model_checks": given(False, boolean),
        },
    )


def _others(net: Network) -> Iterator[Door]:
    yield door(
        "iba_tf.to_saliency_map",
        capacity=given(np.ones((4, 4, 3)), array((1, 2, 3, 4)), ("shape",)),
        shape=given((8, 8), optional(numbers((2,), whole(1)))),
        data_format=given("channels_last", optional(nothing)),
        order=given(None, optional(nothing)),
    )
    fitted = iba_tf.TFWelfordEstimator()
    fitted.fit(np.ones((4, 3)))
    yield door(
        "iba_tf.TFWelfordEstimator",
        feature_name=given(None, optional(lambda value: isinstance(value, str))),
    )
    yield door(
        "iba_tf.TFWelfordEstimator.fit",
        const(fitted),
        feed_dict=given(np.ones((4, 3)), lambda value: np.shape(value)[1:] == (3,), ("x", "feature_name")),
    )
    yield door("iba_tf.model_wo_softmax", model=given(net.model))
    is_model = lambda value: callable(value) and not isinstance(value, type)  # noqa: E731  # a rule
    yield door("iba_tf.TensorFlowAdapter", model=given(net.model, is_model), rewrites=FLAG)
    yield door(
        "iba_tf.get_imagenet_generator",
        path=A(folder),
        target_size=given((8, 8), numbers((2,), whole(8))),
        crop_size=given((8, 8), optional(numbers((2,), whole(1, 8)))),
        batch_size=given(2, whole(1, 10**6)),
        seed=SEED,
        preprocess_input=given(lambda x: x, optional(function), passes_on=CALLED),
    )


def _readout(net: Network) -> Iterator[Door]:
    def readout() -> iba_tf.IBAReadout:
        return iba_tf.IBAReadout("relu", ["conv", "logits"], net.model)

    yield door(
        "iba_tf.IBAReadout",
        attach_layer=given("relu", nothing, ("layer",)),
        readout_layers=given(["conv"], nothing, ("layer",)),
        model=given(net.model),
        estimator_type=given(WelfordEstimator, optional(nothing)),
        sigma=SETTINGS["smooth_std"],
        min_std=SETTINGS["min_std"],
        initial_alpha=SETTINGS["initial_alpha"],
        active_neurons_threshold=SETTINGS["active_neurons_threshold"],
        feature_mean=GIVEN["feature_mean"],
        feature_std=GIVEN["feature_std"],
        estimator=given(None, optional(nothing)),
        progbar=given(False, boolean),
        relu=given(False, boolean),
        tokens=given(None, optional(nothing)),
        data_format=given("channels_last", optional(nothing)),
        jit_compile=given(False, boolean),
        robust=given(False, boolean),
        gradients=given(False, boolean),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    yield from doors_models.readout_doors(net, readout, loss)


def doors() -> list[Door]:
    """All doors of models of TensorFlow."""
    net = network(TensorFlow)
    return [
        *doors_models.doors(net),
        *doors_evaluation.doors(net),
        *_layers(net),
        *_copies(net),
        *_others(net),
        *_readout(net),
    ]
