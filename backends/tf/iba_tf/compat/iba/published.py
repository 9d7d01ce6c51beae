"""What the published bottlenecks have besides their documented names.

The tests and notebooks of that package use these names, which begin with an underscore there. For the same
reason the report holds plain numbers where the published one does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from iba_core.bottleneck.estimator import WelfordEstimator
from iba_tf.bottlenecks.per_sample import PerSampleBottleneck
from iba_tf.bottlenecks.report import Report
from iba_tf.framework import eagerly, is_eager_program
from iba_tf.models.v1_graphs import require_session

_SCALARS = ("capacity_mean", "information_loss", "loss", "model_loss")


class Published(PerSampleBottleneck):
    """A bottleneck with the further names."""

    @property
    def _estimator(self) -> WelfordEstimator:
        return self.estimator

    def _get_session(self, session: Any = None) -> Any:
        return _Eager() if session is None and is_eager_program() else require_session(session)

    def get_report(self) -> Report:
        """Return the collected variables of the last analysis.

        Returns:
            NumPy arrays by name, see `iba_tf.IBALayer.available_report_variables`, in the entries ``"init"``,
            the steps from 0, and ``"final"``. Of one image, the losses and the mean capacity are numbers.
        """
        return {
            entry: {
                name: value[0] if name in _SCALARS and value.shape == (1,) else value
                for name, value in values.items()
            }
            for entry, values in super().get_report().items()
        }


class _Eager:
    """Stands for a session where the program has none: it gives the present values of tensors."""

    def run(self, fetches: Any) -> Any:
        """The values of tensors or variables, nested like them."""
        with eagerly():
            return tf.nest.map_structure(lambda tensor: np.asarray(tensor)[()], fetches)
