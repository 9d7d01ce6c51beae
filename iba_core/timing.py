"""The passes of a model's tail alone, to compare the time of an explanation with."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from iba_core.framework.adapter import Inputs, ModelAdapter, Split
from iba_core.framework.namespace import Array, array_namespace
from iba_core.targets import main_output


class BareTail:
    """Forward and backward passes of the tail of a model over copies of its features, and nothing else.

    The gradients are those of the copies, not of weights. The passes are compiled as the optimiser's steps
    are. Keep the object: it compiles once for each shape.

    Args:
        adapter: the model's adapter.
        split: the model, split at a layer.
    """

    def __init__(self, adapter: ModelAdapter, split: Split) -> None:
        self._adapter = adapter
        self._split = split
        self._pass = adapter.framework.compile(self._value_and_grad)

    def seconds(self, inputs: Inputs, steps: int = 10, samples: int = 10) -> float:
        """Time `steps` passes of `samples` copies of each input, without the head.

        Args:
            inputs: inputs with a leading batch axis.
            steps: number of passes.
            samples: number of copies.

        Returns:
            Seconds.
        """
        framework = self._adapter.framework
        with self._split.head(self._adapter.to_inputs(inputs)) as head:
            tail = head.in_memory_order()
            z = array_namespace(tail.features).repeat(tail.features, samples, axis=0)
            framework.to_numpy(z[:1])
            start = perf_counter()
            last: tuple[Array, ...] = ()
            for _ in range(steps):
                last = ()  # The next pass runs without the memory of this one's results.
                last = self._pass(tail.run, z, tail.carry)
            # A device may still be at work; it is done once its numbers are here.
            for array in last:
                framework.to_numpy(array)
            return perf_counter() - start

    def _value_and_grad(
        self, run: Callable[..., Any], z: Array, carry: tuple[Array, ...]
    ) -> tuple[Array, Array]:
        def objective(z: Array) -> tuple[Array, tuple[()]]:
            outputs = main_output(run(z, carry))
            return array_namespace(outputs).sum(outputs), ()

        value, _, gradient = self._adapter.framework.value_and_grad(objective, z)
        return value, gradient
