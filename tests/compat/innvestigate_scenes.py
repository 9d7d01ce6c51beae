"""How innvestigate's analyzers are made, called, saved and refused, for its own ones and for the one here.

`scenes(package, keras, name, **options)` imports everything from the package of that name. To record what
the published package (innvestigate 2.1.2, with TensorFlow 2.13) does with one of its analyzers:

    python -m tests.compat.innvestigate_scenes tests/data/innvestigate_scenes_2_1_2.npz
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

IMAGES = np.random.RandomState(0).standard_normal((4, 10, 8, 3)).astype(np.float32)
WAYS: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    # The mode, the samples, and what else `analyze` gets.
    "predicted": ("max_activation", IMAGES, ()),
    "predicted.one": ("max_activation", IMAGES[:1], ()),
    "predicted.list": ("max_activation", [IMAGES], ()),
    "index.int": ("index", IMAGES, (2,)),
    "index.one": ("index", IMAGES[:1], (2,)),
    "index.list": ("index", IMAGES, ([2, 0, 1, 4],)),
    "index.array": ("index", IMAGES, (np.array([2, 0, 1, 4]),)),
    "index.column": ("index", IMAGES, (np.array([[2], [0], [1], [4]]),)),
    "all": ("all", IMAGES, ()),
    "index.missing": ("index", IMAGES, ()),
    "index.too_many": ("index", IMAGES, ([2, 0, 1],)),
    "predicted.with_index": ("max_activation", IMAGES, (2,)),
}


def network(keras: Any, softmax: str | None = None) -> Any:
    """A model with weights that every version of Keras draws alike."""
    inputs = keras.layers.Input((10, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.models.Model(inputs, keras.layers.Dense(5, activation=softmax, name="logits")(x))
    rng = np.random.RandomState(1)
    model.set_weights([rng.standard_normal(tuple(map(int, weight.shape))) for weight in model.weights])
    return model


def error_of(run: Callable[[], Any]) -> str:
    """Names of the classes of the error that something raises, as far as users catch them."""
    try:
        run()
    except Exception as error:
        known = ("ValueError", "KeyError", "NotAnalyzeableModelException")
        names = {"InputError": "NotAnalyzeableModelException"}
        found = {names.get(kind.__name__, kind.__name__) for kind in type(error).__mro__}
        return " ".join(name for name in known if name in found)
    return "none"


def scenes(package: str, keras: Any, name: str, **options: Any) -> dict[str, np.ndarray]:
    """Everything by its name: shapes, dtypes, whether something holds, and kinds of errors."""
    module, analyzers = import_module(package), import_module(f"{package}.analyzer")
    base = import_module(f"{package}.analyzer.base")
    model, found = network(keras), {}

    def made(mode: str) -> Any:
        analyzer = module.create_analyzer(name, model, neuron_selection_mode=mode, **options)
        if hasattr(analyzer, "fit"):
            analyzer.fit([IMAGES], 2)
        return analyzer

    of_modes = {mode: made(mode) for mode in ("max_activation", "index", "all")}
    for key, (mode, samples, arguments) in WAYS.items():
        analyzer = of_modes[mode]
        found[f"{key}.error"] = np.array(error_of(lambda: analyzer.analyze(samples, *arguments)))  # noqa: B023  # runs at once
        if found[f"{key}.error"] != "none":
            continue
        analysis = analyzer.analyze(samples, *arguments)
        found[f"{key}.shape"] = np.array(analysis.shape)
        found[f"{key}.dtype"] = np.array(str(analysis.dtype))
        found[f"{key}.repeats"] = np.array((analyzer.analyze(samples, *arguments) == analysis).all())
        if not isinstance(samples, list) and len(samples) > 1:
            chosen = (np.asarray(arguments[0]).reshape(-1)[:1],) if arguments else ()
            alone = analyzer.analyze(samples[:1], *chosen)
            found[f"{key}.alone"] = np.array(np.allclose(alone[0], analysis[0], rtol=1e-3, atol=1e-5))
    analyzer = of_modes["index"]
    class_name, state = analyzer.save()
    again = base.AnalyzerBase.load(class_name, state)
    same = np.allclose(again.analyze(IMAGES, 2), analyzer.analyze(IMAGES, 2), rtol=1e-3, atol=1e-5)
    found["saved.name"] = np.array(class_name == type(analyzer).__name__)
    found["saved.kind"] = np.array(isinstance(again, base.AnalyzerBase))
    found["saved.analysis"] = np.array(same)
    found["known"] = np.array(name in analyzers.analyzers)
    create = module.create_analyzer
    found["unknown"] = np.array(error_of(lambda: create("no such analyzer", model)))
    found["mode"] = np.array(error_of(lambda: create(name, model, neuron_selection_mode="some")))
    bare = module.model_wo_softmax(network(keras, "softmax"))
    found["bare"] = np.asarray(bare.predict(IMAGES, verbose=0))
    return found


if __name__ == "__main__":
    import tensorflow as tf
    from tensorflow import keras as of_tensorflow

    tf.compat.v1.disable_eager_execution()
    np.savez_compressed(sys.argv[1], **scenes("innvestigate", of_tensorflow, "gradient"))
