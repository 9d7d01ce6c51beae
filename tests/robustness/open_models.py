"""A program that writes one model in all formats, opens files, and says what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from iba_core import IBAError
from iba_tf import TensorFlowAdapter

X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def write(folder: Path) -> keras.Model:
    """Write the model."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    )
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.export(folder / "saved", verbose=False)
    traced = tf.function(lambda image: model(image, training=False)).get_concrete_function(
        tf.TensorSpec((None, 8, 8, 3), name="image")
    )
    frozen = convert_variables_to_constants_v2(traced).graph.as_graph_def()
    (folder / "frozen.pb").write_bytes(frozen.SerializeToString())
    return model


def outcome(path: str, expected: np.ndarray) -> str:
    """What opening a file gives.

    Returns:
        ``"refused"`` by one sentence, ``"equal"`` or ``"other"`` outputs, ``"fails"`` when it runs, or the
        name of an error that is not the library's.
    """
    try:
        model = TensorFlowAdapter.load(path)
        if model is None:
            return "refused"
        adapter = TensorFlowAdapter(model)
    except IBAError as error:
        return "refused" if "\n" not in str(error) else f"no sentence: {error}"
    except BaseException as error:
        return f"raw {type(error).__name__}: {error}"[:200]
    try:
        found = np.asarray(adapter.framework.to_numpy(adapter.predict(X)))
    # The file is a model, but not of these inputs, or of operations that fail: that is the model's own.
    except Exception:
        return "fails"
    close = found.shape == expected.shape and np.allclose(found, expected, rtol=1e-5, atol=1e-6)
    return "equal" if close else "other"


def main(folder: str) -> None:
    """Answer one line of JSON for each line of input."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    expected = np.asarray(write(Path(folder))(X))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(outcome(line.rstrip("\n"), expected)), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
