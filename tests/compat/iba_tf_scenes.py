"""What a user of IBA does in TensorFlow, written once for the published package and for the one here.

`scenes(package, keras)` imports everything from the package of that name. To record what the published
package gives, with its folder IBA on the path, TensorFlow 2.13, tensorflow-probability and scikit-image:

    python -m tests.compat.iba_tf_scenes tests/data/iba_tf_scenes.npz

The package is in no registry. The record was made from the newest of its files that a public archive has,
the `tensorflow_v1.py` with `IBACopyInnvestigate` and the `_keras_graph.py` and `utils.py` that go with it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

PUBLISHED = "IBA"
COPIES = 10
"""Noisy copies of an image, in both packages."""

CHANGED: dict[str, dict[str, Any]] = {
    "default": {},
    "beta": {"beta": 3},
    "floor": {"min_std": 0.6},
    "slow": {"learning_rate": 0.2},
}
"""Settings that both heed. The published one ignores `smooth_std`, `batch_size` and `normalize_beta`."""


class Noise:
    """Numbers the draws of an analysis, so that a published one gets this library's noise of seed 0."""

    steps = count()


def images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((number, 9, 8, 3)).astype(np.float32)


def options_of(package: ModuleType, beta: float = 10, share: float = 1, **settings: Any) -> dict[str, Any]:
    """What makes an analysis comparable: four steps without smoothing, with the noise of seed 0.

    The published classification loss has one row of labels for all copies. TensorFlow takes it for one loss,
    and the gradient of their mean for that of their sum. So a published beta is a tenth of it here. It also
    weighs the mean over the `share` of the features that do not pass anyway, instead of over all.
    """
    if package.__name__.split(".")[0] == PUBLISHED:
        Noise.steps = count()
        return {"steps": 4, "beta": beta, **settings}
    return {"steps": 4, "smooth_std": 0, "seed": 0, "beta": beta / COPIES / share, **settings}


def network(keras: Any, *further: Any) -> Any:
    """A model with weights that every version of Keras draws alike."""
    inputs = keras.layers.Input((9, 8, 3))
    x = keras.layers.Conv2D(5, 3, name="conv")(inputs)
    x = keras.layers.Activation("relu", name="relu")(x)
    for layer in further:
        x = layer(x)
    x = keras.layers.Conv2D(4, 3, name="later")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.models.Model(inputs, keras.layers.Dense(6, name="logits")(x))
    rng = np.random.RandomState(1)
    for name in ("conv", "later", "logits"):
        layer = model.get_layer(name)
        shapes = [tuple(int(size) for size in weight.shape) for weight in layer.weights]
        layer.set_weights(
            [2 * rng.standard_normal(shape) / max(1, np.prod(shape[:-1])) ** 0.5 for shape in shapes]
        )
    return model


def of_a_layer(package: ModuleType, keras: Any) -> dict[str, np.ndarray]:
    iba = package.IBALayer(name="iba")
    model = network(keras, iba)
    found = {"layer.predictions": model.predict(images(3), verbose=0)}
    for batch in np.split(images(24, seed=2), 3):
        iba.fit({model.input: batch})
    for name in ("mean", "std", "active_neurons", "n_samples"):
        found[f"layer.{name}"] = np.asarray(getattr(iba._estimator, name)())
    target = iba.set_classification_loss(model.output)
    feed = {model.input: images(1), target: np.array([2])}
    for name, settings in CHANGED.items():
        found[f"layer.{name}"] = iba.analyze(feed, **options_of(package, **settings))
    passing = np.zeros((1, 7, 6, 5), np.float32)
    passing[:, :3] = 1
    found["layer.passing"] = iba.analyze(feed, pass_mask=passing, **options_of(package, share=4 / 7))
    found["layer.names"] = np.array(iba.available_report_variables())
    # Only what a step's noise does not reach, since the report takes a draw of its own.
    iba.collect(
        "alpha", "lambda", "capacity_mean", "information_loss", "feature", "feature_mean", "feature_std"
    )
    iba.analyze(feed, **options_of(package, beta=1e4))
    report = iba.get_report()
    for entry in ("init", "final"):
        found |= {f"report.{entry}.{name}": np.asarray(value) for name, value in report[entry].items()}
    for step in range(4):
        found[f"report.{step}.information_loss"] = np.asarray(report[step]["information_loss"])
    found["map"] = package.to_saliency_map(found["layer.default"], (9, 8))
    found["map.plain"] = package.to_saliency_map(found["layer.default"])
    return found


def of_a_copy(package: ModuleType, keras: Any) -> dict[str, np.ndarray]:
    model = network(keras)
    copy = package.IBACopy(model.get_layer("relu").output, [model.output.name])
    copy.assert_variables_equal()
    copy.fit_generator(({model.input: batch} for batch in np.split(images(24, seed=2), 3)), progbar=False)
    target = copy.set_classification_loss()
    found = {
        "copy.predictions": copy.predict({model.input: images(3)})[0],
        "copy.feature": copy.get_feature({model.input: images(2)}),
        "copy.shape": np.array([int(size) for size in copy.feature_shape()[1:]]),
    }
    found["copy.default"] = copy.analyze(
        {model.input: images(1)}, {target: np.array([4])}, **options_of(package)
    )
    shape = tuple(found["copy.shape"])
    given = {"feature_mean": np.full(shape, 0.3), "feature_std": np.full(shape, 0.7)}
    known = package.IBACopy(
        model.get_layer("relu").output, model.output, feature_active=np.ones(shape), **given
    )
    target = known.set_classification_loss()
    found["copy.given"] = known.analyze(
        {model.input: images(1)}, {target: np.array([4])}, **options_of(package)
    )
    return found


def of_an_analyzer(package: ModuleType, keras: Any) -> dict[str, np.ndarray]:
    found = {}
    for mode, selection in (("index", 3), ("max_activation", None)):
        model = network(keras)
        options = options_of(package)
        seed = {name: options.pop(name) for name in ("seed",) if name in options}
        analyzer = package.IBACopyInnvestigate(
            model, neuron_selection_mode=mode, feature_name=model.get_layer("relu").output.name
        )
        analyzer.set_default(**options)
        analyzer.fit_generator(((batch, None) for batch in np.split(images(24, seed=2), 3)), verbose=0)
        options_of(package)
        found[f"analyzer.{mode}"] = analyzer.analyze(images(1), selection, **seed)
        found[f"analyzer.{mode}.predictions"] = analyzer.predict(images(3))
    return found


def of_a_folder(package: ModuleType) -> dict[str, np.ndarray]:
    from PIL import Image

    found, rng = {}, np.random.RandomState(3)
    with TemporaryDirectory() as folder:
        for name in ("cat", "dog"):
            (Path(folder) / name).mkdir()
            for number in range(2):
                pixels = rng.randint(0, 256, (13, 17, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(Path(folder) / name / f"{number}.png")
        ways = {
            "default": {"target_size": (10, 8), "crop_size": (6, 4)},
            "whole": {"target_size": (26, 34), "class_mode": "sparse"},
            "turned": {"target_size": (9, 9), "classes": ["dog", "cat"], "class_mode": "binary"},
            "some": {"target_size": (5, 4), "classes": ["dog"], "class_mode": "sparse"},
        }
        for key, options in ways.items():
            given = {"crop_size": None, "batch_size": 3, "shuffle": False, **options}
            batches = package.get_imagenet_generator(folder, **given)
            for number, (pictures, targets) in enumerate(islice(batches, 3)):
                found[f"folder.{key}.{number}.images"] = np.asarray(pictures)
                found[f"folder.{key}.{number}.targets"] = np.asarray(targets)
    return found


def scenes(package: str, keras: Any) -> dict[str, np.ndarray]:
    """Everything by its name.

    Args:
        package: name of the package.
        keras: the Keras that its models are built with.
    """
    module = import_module(f"{package}.tensorflow_v1")
    of_models = (of_a_layer, of_a_copy, of_an_analyzer)
    found = {name: value for part in of_models for name, value in part(module, keras).items()}
    return found | of_a_folder(module)


def keras_as_it_was() -> Any:
    """Keras 2.13 with the names, sessions and variables of Keras 2.3, and this library's noise in graphs."""
    import keras
    import tensorflow.compat.v1 as tf
    from keras.src.engine import base_layer_utils, base_layer_v1

    from iba_core.bottleneck.noise import seeded_normal
    from iba_core.framework.layout import Layout

    tf.disable_v2_behavior()
    keras.backend.get_session = tf.keras.backend.get_session
    sys.modules["keras.engine"] = ModuleType("keras.engine")
    sys.modules["keras.engine.network"] = SimpleNamespace(Network=keras.models.Model)
    moved = ("ELU", "LeakyReLU", "PReLU", "Softmax", "ThresholdedReLU")
    keras.layers.advanced_activations = SimpleNamespace(
        **{each: getattr(keras.layers, each) for each in moved}
    )

    make_variable, set_attribute = base_layer_utils.make_variable, base_layer_v1.Layer.__setattr__

    def make_reference_variable(*args: Any, **kwargs: Any) -> Any:
        # Only those can be assigned to in an imported graph.
        return make_variable(*args, **{**kwargs, "use_resource": False})

    def set_without_tracking(self: Any, name: str, value: Any) -> None:
        # Keras 2.13 keeps track of dicts, and wants their keys to be of one type.
        (object.__setattr__ if name == "_log" else set_attribute)(self, name, value)

    def draw(shape: np.ndarray) -> np.ndarray:
        layout = Layout.of(tuple(shape[1:]), "channels_last")
        return seeded_normal(0, next(Noise.steps), int(shape[0]), tuple(map(int, shape[1:])), layout)

    def normal(shape: Any) -> Any:
        noise = tf.py_func(draw, [tf.stack(shape)], tf.float32)
        noise.set_shape([None, *shape[1:]])
        return noise

    base_layer_utils.make_variable = make_reference_variable
    base_layer_v1.Layer.__setattr__ = set_without_tracking
    tf.random.normal = normal
    return keras


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **scenes(PUBLISHED, keras_as_it_was()))
