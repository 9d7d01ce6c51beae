"""Information bottleneck attribution in the style of Xplique.

It does not need Xplique (T. Fel et al., https://arxiv.org/abs/2206.04394).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from iba_core.errors import InputError
from iba_core.explainer import Explainer
from iba_core.framework.arrays import as_array


class InformationBottleneck:
    """Bits per pixel, with the interface of `xplique.attributions`.

    Args:
        model: a Keras model, or any other model that `Explainer` takes.
        layer: name of the layer that the bottleneck comes after; None for those that `Explainer` chooses.
        data: batches of inputs like those to explain, see `Explainer.fit`.
        batch_size: how many inputs to explain at once; None for all.
        seed: makes the maps reproducible, as metrics that compare maps need it; None for new noise in each
            call.
        **settings: further arguments of `Explainer`.

    Attributes:
        model: the model.
        explainer: the `Explainer` that does the work.

    Raises:
        LayerError: the model has no such layer.

    Example:
        >>> method = InformationBottleneck(model, "relu", data=batches, steps=2)
        >>> method(x, np.eye(3)[[2, 0]]).shape
        TensorShape([2, 8, 8, 1])
    """

    def __init__(
        self,
        model: Any,
        layer: Any = None,
        data: Iterable[Any] = (),
        batch_size: int | None = 64,
        *,
        seed: int | None = 0,
        **settings: Any,
    ) -> None:
        self.model, self.batch_size, self.seed = model, batch_size, seed
        self.explainer = Explainer(model, layer, **settings).fit(data, progbar=False)

    def explain(self, inputs: Any, targets: Any = None) -> tf.Tensor:
        """Compute the bits per pixel of a batch.

        Args:
            inputs: (N, H, W, C), or a `tf.data.Dataset` of batches of inputs and targets.
            targets: one-hot classes, (N, classes); None for the classes predicted.

        Returns:
            Tensor (N, H, W, 1), float32.

        Raises:
            InputError: the targets are not one-hot.
        """
        if isinstance(inputs, tf.data.Dataset):
            return tf.concat([self.explain(*batch) for batch in inputs], axis=0)
        images = tf.convert_to_tensor(inputs)
        classes = None if targets is None else _classes(targets)
        size = self.batch_size or len(images)
        maps = []
        for start in range(0, len(images), size):
            wanted = None if classes is None else classes[start : start + size]
            found = self.explainer.explain(images[start : start + size], wanted, seed=self.seed)
            maps.append(found.saliency)
        return tf.constant(np.concatenate(maps)[..., None], tf.float32)

    def __call__(self, inputs: Any, labels: Any = None) -> tf.Tensor:
        """See `explain`."""
        return self.explain(inputs, labels)


def _classes(targets: Any) -> list[int]:
    encoded = as_array("targets", targets)
    if encoded.ndim != 2 or not (np.sort(encoded, axis=1) == np.eye(encoded.shape[1])[-1]).all():
        raise InputError(
            f"targets has shape {encoded.shape}; one-hot classes (N, classes), with a single 1 in each row, "
            "were expected"
        )
    return [int(index) for index in encoded.argmax(axis=1)]
