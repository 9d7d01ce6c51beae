"""Explains photographs with EfficientNet-Lite0 in both frameworks, for `test_real_network.py`.

    python explain_real_network.py RESULTS.npz

It is a program of its own because TensorFlow must be told, before it starts, to take sums in one order.
Otherwise its threads add in the order in which they finish. The steps amplify that rounding to as much as
0.7 % of the bits from one run to the next.
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
EARLY_STEPS = 3
ROUNDINGS = 3
ROUNDING = 1e-7
"""Relative standard deviation of what is added to the pixels; the spacing of float32 is 0.6e-7 to 1.2e-7."""


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
            early = explainer.explain(x, seed=0, max_batch=30, steps=EARLY_STEPS)
            results |= {
                f"{framework}/{layer}/classes": attribution.classes,
                f"{framework}/{layer}/outputs": attribution.outputs,
                f"{framework}/{layer}/capacity": attribution.capacity_channels_first(),
                f"{framework}/{layer}/bits": attribution.total_bits,
                f"{framework}/{layer}/early_capacity": early.capacity_channels_first(),
            }
            if framework == "torch":
                rounded = [
                    explainer.explain(_rounded(x, key), seed=0, max_batch=30) for key in range(ROUNDINGS)
                ]
                results[f"torch/{layer}/rounded_capacity"] = np.stack(
                    [other.capacity_channels_first() for other in rounded]
                )
    np.savez(path, **results)


def _rounded(x: np.ndarray, key: int) -> np.ndarray:
    """Images that differ from `x` by about the rounding of single precision."""
    noise = np.random.default_rng(key).standard_normal(x.shape)
    return (x * (1.0 + ROUNDING * noise)).astype(x.dtype)


if __name__ == "__main__":
    main(sys.argv[1])
