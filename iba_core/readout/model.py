"""What a readout asks of a model: the features of several layers, and outputs for restricted features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from iba_core.errors import LayerError, UnknownChannelsError
from iba_core.framework.adapter import Inputs
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import inputs_of_batch
from iba_core.framework.layout import DataFormat, Layout, MapOrder
from iba_core.framework.namespace import Array


class NestedPass(NamedTuple):
    """The features that one unrestricted pass of the model gives, without a graph, and the tail for them.

    It is a tuple of arrays and constants, so that a compiled function can take it as an argument.
    """

    features: Array
    """Feature maps (B, *feature map) at the bottleneck."""
    readout_features: tuple[Array, ...]
    """Those of the readout layers, in their order."""
    run: Callable[[Array, tuple[Array, ...]], Any]
    """Maps restricted features and `carry` to the model's outputs, see `iba_core.framework.adapter.Tail`."""
    carry: tuple[Array, ...] = ()
    """What reaches the tail by another way than the features."""

    def outputs(self, z: Array) -> Any:
        """Outputs of the model for the restricted features `z`, differentiable in `z`."""
        return self.run(z, self.carry)


class ReadoutModel(ABC):
    """A model with the layers that a readout needs. It holds nothing about the inputs that it runs on.

    Attributes:
        framework: the framework of the model.
        names: names of the layers, that of the bottleneck first.
        jit_compile: let the framework's compiler make machine code of the steps of a training.
    """

    framework: Framework
    names: list[str]
    jit_compile: bool = False

    @abstractmethod
    def to_inputs(self, inputs: Inputs) -> Inputs:
        """Make tensors of a batch, as the model takes them.

        Raises:
            InputError: an input is missing or of the wrong shape.
        """

    @abstractmethod
    def to_targets(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Make tensors of what comes with the inputs in a batch."""

    def to_batch(self, batch: Any) -> tuple[Inputs, tuple[Any, ...]]:
        """Divide a batch of a data set into the inputs and what comes with them, both as tensors."""
        rest = tuple(batch[1:]) if isinstance(batch, (tuple, list)) else ()
        return self.to_inputs(inputs_of_batch(batch)), self.to_targets(rest)

    @staticmethod
    @contextmanager
    def looking_at(name: str) -> Iterator[None]:
        """Context for a look at the channels of a readout layer, which no argument names.

        Raises:
            LayerError: the model does not show where they are.
        """
        try:
            yield
        except UnknownChannelsError as error:
            raise LayerError(
                f"the model does not show whether the channels of the readout layer {name!r} come first or "
                "last, and no argument says it: name a layer next to it, such as a convolution or a "
                "normalisation"
            ) from error

    @abstractmethod
    def data_formats(self, inputs: Inputs) -> list[DataFormat]:
        """Where the channels of the layers' features are, that of the bottleneck first.

        Args:
            inputs: one image; it may run through the model.
        """

    @abstractmethod
    def map_order(self, layout: Layout, inputs: Inputs) -> MapOrder:
        """How maps of the bottleneck's layer are turned to lie over the input, see `Split.map_order`.

        Args:
            layout: meaning of the axes of the bottleneck's features.
            inputs: what the model is called with; one image may run through it.
        """

    @abstractmethod
    def spatial_shape(self, inputs: Inputs) -> tuple[int, ...]:
        """Sizes of the spatial axes of the first input, after `map_order`; none if it has no channels."""

    @abstractmethod
    def features(self, inputs: Inputs) -> tuple[Array, ...]:
        """Run the model once, unrestricted and without a graph.

        Returns:
            Feature maps (B, *feature map) at the bottleneck, then those of the readout layers.

        Raises:
            LayerError: a layer does not run, or runs more than once.
        """

    @abstractmethod
    def nested_pass(self, inputs: Inputs) -> AbstractContextManager[NestedPass]:
        """Run the model once, unrestricted, and give the features and the tail for `inputs`.

        The tail may be used inside the context only. Nothing in there has a graph unless the framework's
        `value_and_grad` asks for one. The model stays as it is.

        Raises:
            LayerError: a layer does not run, or runs more than once.
        """

    def seeded(self, seed: Sequence[int], like: Array) -> AbstractContextManager[None]:
        """Context in which the order of a shuffling data loader depends on the seed alone.

        Args:
            seed: whole numbers.
            like: a tensor on the device whose random numbers are meant.

        Returns:
            A context that does nothing, if the framework's data sets do not shuffle by a global seed.
        """
        return nullcontext()
