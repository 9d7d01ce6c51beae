"""The passes of a model's tail alone, as they are run here, to compare the time of an explanation with."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from iba_core.framework.adapter import Adapter, Cut, Inputs
from iba_core.framework.namespace import Array, array_namespace
from iba_core.targets import main_output


class BareTail:
    """Forward and backward passes of the tail of a model over noisy copies, and nothing else.

    The gradients are those of the copies, not of weights. The passes are compiled as the optimiser's
    steps are. Keep the object: it compiles once for each shape.

    Args:
        adapter: the model's framework.
        cut: the model, cut at a layer.
    """

    def __init__(self, adapter: Adapter, cut: Cut) -> None:
        self._adapter = adapter
        self._cut = cut
        self._pass = adapter.compile(self._value_and_grad)

    def seconds(self, inputs: Inputs, steps: int = 10, samples: int = 10) -> float:
        """Time of `steps` passes of `samples` copies of each input; the head is not counted.

        Args:
            inputs: with a leading batch axis.
            steps: number of passes.
            samples: number of copies.
        """
        with self._cut.open(self._adapter.to_inputs(inputs)) as head:
            xp = array_namespace(head.features)
            # In memory as the features are, so that no pass begins with a copy.
            axes = self._adapter.axes_in_memory(head.features)
            z = xp.repeat(xp.permute_dims(head.features, axes), samples, axis=0)
            z = xp.permute_dims(z, tuple(int(axis) for axis in np.argsort(axes)))
            self._adapter.to_numpy(z[:1])
            start = perf_counter()
            last: tuple[Array, ...] = ()
            for _ in range(steps):
                last = ()  # What a pass gives is not held while the next one runs.
                last = self._pass(z, head.carry)
            # A device may still be at work; it is done once its numbers are here.
            for array in last:
                self._adapter.to_numpy(array)
            return perf_counter() - start

    def _value_and_grad(self, z: Array, carry: tuple[Array, ...]) -> tuple[Array, Array]:
        def objective(z: Array) -> tuple[Array, tuple[()]]:
            outputs = main_output(self._cut.tail(z, carry))
            return array_namespace(outputs).sum(outputs), ()

        value, _, gradient = self._adapter.value_and_grad(objective, z)
        return value, gradient
