"""The loss at the end of a cut model, by which a bottleneck is optimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from iba_core.bottleneck.optimization import BottleneckOptimizer, Problem
from iba_core.framework.adapter import Adapter, Cut
from iba_core.framework.layout import Layout
from iba_core.targets import Loss, main_output


@dataclass
class TailLoss:
    """What a model is asked to keep: a loss of its tail's outputs.

    Attributes:
        adapter: of the model from its inputs to the outputs that the loss is of.
        cut: that model, cut where the bottleneck is.
        loss: of the tail's outputs and of rows of data for each image, where the outputs are those of a
            classifier; None where the tail itself ends in losses.
        classes: number of classes of a classifier.
        by_image: whether there is a loss for each row, and not one for all.
    """

    adapter: Adapter
    cut: Cut
    loss: Loss | None = None
    classes: int = 0
    by_image: bool = True
    _optimizer: BottleneckOptimizer | None = field(default=None, repr=False)

    @property
    def is_classification(self) -> bool:
        """Whether the tail's outputs are those of a classifier."""
        return self.loss is not None

    def __call__(self, z: tf.Tensor, carry: tuple[tf.Tensor, ...], rows: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """The losses of restricted features, see `iba_core.bottleneck.optimization.ModelLoss`."""
        outputs = tf.cast(main_output(self.cut.tail(z, carry)), z.dtype)
        if self.loss is None:
            return outputs
        return self.loss(outputs, *(tf.repeat(row, z.shape[0] // row.shape[0], axis=0) for row in rows))

    def extras(self, z: tf.Tensor, problem: Problem) -> dict[str, tf.Tensor]:
        """The variables of a classification, to be reported."""
        logits = main_output(self.cut.tail(z, problem.carry))
        return {"logits": logits, "cross_entropy": self(z, problem.carry, problem.targets)}

    def optimizer(self, feature_shape: Sequence[int]) -> BottleneckOptimizer:
        """What optimises the bottleneck for feature maps of a shape; the step it compiles is kept."""
        layout = Layout.of(feature_shape, self.cut.data_format)
        if self._optimizer is None or self._optimizer.layout != layout:
            self._optimizer = BottleneckOptimizer(self.adapter, self, layout)
        return self._optimizer
