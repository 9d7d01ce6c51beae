"""The public doors of `iba_tf`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import keras
import numpy as np

import iba_tf
from iba_core import WelfordEstimator
from tests.backends import TensorFlow
from tests.robustness import doors_models
from tests.robustness.doors_core import COUNT, FLAG, OPTIONAL_SEED, SEED, SETTINGS, const, folder
from tests.robustness.doors_models import Network, network
from tests.robustness.walk import Door
from tests.robustness.wrong_values import (
    Argument,
    array,
    boolean,
    either,
    function,
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
    "estimator": A(const(None), optional(nothing)),
    "feature_mean": A(const(np.zeros(FEATURES)), array(), ("feature_std", "feature_active")),
    "feature_std": A(const(np.ones(FEATURES)), array(shape=FEATURES), ("feature_mean",)),
    "feature_active": A(const(np.ones(FEATURES, bool)), optional(array(shape=FEATURES))),
}


def _layers(net: Network) -> Iterator[Door]:
    yield Door("iba_tf.IBALayer", const(iba_tf.IBALayer), {**GIVEN, **OVERRIDES})
    inputs = keras.Input((8, 8, 3))
    iba = iba_tf.IBALayer(steps=2, batch_size=2)
    features = iba(keras.layers.Conv2D(4, 3, padding="same")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(features)))
    target = iba.set_classification_loss(model.output)
    iba.fit(net.images)
    images = A(const(net.images[:2]), net.is_batches, ("x", "input", "inputs", "input_layer", inputs.name))
    yield Door("iba_tf.IBALayer.set_default", const(iba.set_default), OVERRIDES)
    iba.set_default(batch_size=2, steps=2)
    yield Door("iba_tf.IBALayer.fit", const(iba.fit), {"feed_dict": images})
    yield Door(
        "iba_tf.IBALayer.fit_generator",
        const(iba.fit_generator),
        {
            "generator": A(lambda: [net.images], net.is_batches, images.called),
            "n_samples": A(const(4), whole(1)),
            "progbar": A(const(False), boolean),
        },
    )
    del target
    options = {
        **OVERRIDES,
        "pass_mask": A(const(np.zeros(FEATURES, bool)), optional(array(shape=FEATURES))),
        "progbar": A(const(False), boolean),
        "target": A(const(1), either(whole(0, 2), array((0, 1)))),
        "seed": OPTIONAL_SEED,
        "max_batch": A(const(8), optional(whole(1))),
    }
    yield Door("iba_tf.IBALayer.analyze", const(iba.analyze), {"feed_dict": images, **options})
    yield Door(
        "iba_tf.IBALayer.set_model_loss",
        const(iba.set_model_loss),
        {
            "model_loss": A(const(keras.ops.mean(model.output, axis=1))),
            "optimizer_cls": A(const(keras.optimizers.Adam)),
        },
    )
    yield Door(
        "iba_tf.IBALayer.set_classification_loss",
        const(iba.set_classification_loss),
        {"logits": A(const(model.output)), "optimizer_cls": A(const(keras.optimizers.Adam))},
    )
    yield Door(
        "iba_tf.IBALayer.collect", const(iba.collect), {"*": A(const(("alpha",)), nothing, ("var_names",))}
    )
    yield Door("iba_tf.IBALayer.load_state_dict", const(iba.load_state_dict), {"state": A(iba.state_dict)})
    copied = partial(iba_tf.IBACopy, "relu", None, graph=net.model)
    yield Door("iba_tf.IBACopy", const(copied), {**GIVEN, **OVERRIDES})
    copy = copied(steps=2, batch_size=2)
    copy.set_classification_loss()
    copy.fit(net.images)
    yield Door("iba_tf.IBACopy.fit", const(copy.fit), {"feed_dict": images})
    yield Door("iba_tf.IBACopy.predict", const(copy.predict), {"feed_dict": images})
    yield Door("iba_tf.IBACopy.get_feature", const(copy.get_feature), {"feed_dict": images})
    yield Door(
        "iba_tf.IBACopy.analyze",
        const(copy.analyze),
        {
            "feature_feed_dict": images,
            "copy_feed_dict": A(dict, optional(lambda value: value == {})),
            **options,
        },
    )
    yield Door(
        "iba_tf.IBACopyInnvestigate",
        const(partial(iba_tf.IBACopyInnvestigate, net.model)),
        {
            "neuron_selection_mode": A(const("index")),
            "feature_name": A(const("relu"), optional(nothing), ("layer", "feature")),
            **GIVEN,
            **OVERRIDES,
            "disable_model_checks": A(const(False), boolean),
        },
    )


def _others(net: Network) -> Iterator[Door]:
    yield Door(
        "iba_tf.to_saliency_map",
        const(iba_tf.to_saliency_map),
        {
            "capacity": A(const(np.ones((4, 4, 3))), array((1, 2, 3, 4)), ("shape",)),
            "shape": A(const((8, 8)), optional(numbers((2,), whole(1)))),
            "data_format": A(const("channels_last"), optional(nothing)),
        },
    )
    fitted = iba_tf.TFWelfordEstimator()
    fitted.fit(np.ones((4, 3)))
    yield Door(
        "iba_tf.TFWelfordEstimator",
        const(iba_tf.TFWelfordEstimator),
        {"feature_name": A(const(None), optional(lambda value: isinstance(value, str)))},
    )
    yield Door(
        "iba_tf.TFWelfordEstimator.fit",
        const(fitted.fit),
        {
            "feed_dict": A(
                const(np.ones((4, 3))), lambda value: np.shape(value)[1:] == (3,), ("x", "feature_name")
            )
        },
    )
    yield Door("iba_tf.model_wo_softmax", const(iba_tf.model_wo_softmax), {"model": A(const(net.model))})
    yield Door(
        "iba_tf.TensorFlowAdapter",
        const(iba_tf.TensorFlowAdapter),
        {"model": A(const(net.model)), "rewrites": FLAG},
    )
    yield Door(
        "iba_tf.get_imagenet_generator",
        const(iba_tf.get_imagenet_generator),
        {
            "path": A(folder),
            "target_size": A(const((8, 8)), numbers((2,), whole(8))),
            "crop_size": A(const((8, 8)), numbers((2,), whole(1, 8))),
            "batch_size": A(const(2), whole(1)),
            "seed": SEED,
            "preprocess_input": A(const(lambda x: x), optional(function)),
        },
    )


def _readout(net: Network) -> Iterator[Door]:
    def readout() -> iba_tf.IBAReadout:
        return iba_tf.IBAReadout("relu", ["conv", "logits"], net.model)

    yield Door(
        "iba_tf.IBAReadout",
        const(iba_tf.IBAReadout),
        {
            "attach_layer": A(const("relu"), nothing, ("layer",)),
            "readout_layers": A(const(["conv"]), nothing, ("layer",)),
            "model": A(const(net.model)),
            "estimator_type": A(const(WelfordEstimator), optional(nothing)),
            "sigma": SETTINGS["smooth_std"],
            "min_std": SETTINGS["min_std"],
            "initial_alpha": SETTINGS["initial_alpha"],
            "active_neurons_threshold": SETTINGS["active_neurons_threshold"],
            "feature_mean": GIVEN["feature_mean"],
            "feature_std": GIVEN["feature_std"],
            "estimator": A(const(None), optional(nothing)),
            "progbar": A(const(False), boolean),
            "relu": A(const(False), boolean),
            "tokens": A(const(None), optional(nothing)),
            "data_format": A(const("channels_last"), optional(nothing)),
            "jit_compile": A(const(False), boolean),
            "robust": A(const(False), boolean),
        },
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    yield from doors_models.readout_doors(net, readout, loss)


def doors() -> list[Door]:
    """All doors of models of TensorFlow."""
    net = network(TensorFlow)
    return [*doors_models.doors(net), *_layers(net), *_others(net), *_readout(net)]
