"""Explains photographs with EfficientNet-Lite0 in both frameworks, for `test_real_network.py`.

    python explain_real_network.py RESULTS.npz

A program of its own, since it must be told before TensorFlow starts that sums are to be taken in one order:
its threads add in the order in which they finish, and what is rounding at first grows over the steps to as
much as 0.7 % of the bits from one run to the next.
"""

import sys

import numpy as np
import tensorflow as tf

from iba_core import Explainer
from iba_core.pictures.images import sample_crops, sample_image
from iba_tf.efficientnet_lite import efficientnet_lite0 as keras_lite0
from iba_torch.efficientnet_lite import efficientnet_lite0 as torch_lite0

LAYERS = ("blocks.5", "blocks.10")
PHOTOGRAPHS = ("cat", "coffee", "rocket")


def main(path: str) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    results: dict[str, np.ndarray] = {}
    networks = {"torch": ("channels_first", torch_lite0()), "tensorflow": ("channels_last", keras_lite0())}
    for framework, (data_format, model) in networks.items():
        prepare = model.preprocessing
        x = np.stack([prepare(sample_image(name), data_format) for name in PHOTOGRAPHS])
        for layer in LAYERS:
            explainer = Explainer(model, layer)
            explainer.fit(sample_crops(48, prepare, data_format=data_format), progbar=False)
            attribution = explainer.explain(x, seed=0, max_batch=30)
            results |= {
                f"{framework}/{layer}/classes": attribution.classes,
                f"{framework}/{layer}/outputs": attribution.outputs,
                f"{framework}/{layer}/capacity": attribution.capacity_channels_first(),
                f"{framework}/{layer}/bits": attribution.total_bits,
            }
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
