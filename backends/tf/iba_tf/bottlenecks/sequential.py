"""Sequential models that have an `input` and an `output`, as they had before Keras 3."""

from __future__ import annotations

import keras
from keras import KerasTensor


@keras.saving.register_keras_serializable("iba_tf")
class Sequential(keras.Sequential):
    """`keras.Sequential` whose symbolic input and output can be named as soon as it is built.

    Keras 3 gives them only by `inputs` and `outputs`, as lists. Nothing else differs.
    """

    @property
    def input(self) -> KerasTensor:
        """The symbolic input."""
        return self.inputs[0]

    @property
    def output(self) -> KerasTensor:
        """The symbolic output."""
        return self.outputs[0]
