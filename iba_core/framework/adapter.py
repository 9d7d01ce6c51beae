"""What the core asks of a model: its layers, its outputs, and a division at a layer into head and tail.

A backend offers a `ModelAdapter` subclass under the entry-point group ``iba.backends``. The entry's name is
the top-level module of its framework (``torch``, ``tensorflow``). A backend is imported only once that
module has been.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

from iba_core.arguments import require_text
from iba_core.errors import InputError, MissingDependencyError, closest
from iba_core.framework.framework import Framework
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import BACKENDS, Array

Model = Any
"""A model of any framework."""

Inputs = Any
"""What a model is called with: one array, or a tuple or dict of arrays with a leading batch axis."""

_ALIASES = {"tf": "tensorflow", "keras": "tensorflow", "pytorch": "torch"}


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a model, as `ModelAdapter.layers` lists it.

    Attributes:
        name: name by which `ModelAdapter.split` finds the layer.
        kind: name of the layer's class.
        output_shape: shape of its output without the batch axis; None if it is not a single array.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Tail:
    """The part of a model after a layer, for the images that the head has run on.

    Everything that the head computed lives in this object alone, so two tails of one model can be open at
    once, also in several threads.

    Attributes:
        features: feature maps (B, *feature map) at the layer.
        run: maps restricted feature maps and `carry` to the model's outputs. It is the same object for all
            images of a shape where `carry` holds all that differs between them.
        carry: arrays (B, ...) that reach the tail by another way than the features, such as a skip
            connection. Empty where `run` keeps them.
        axes: the axes of one of the model's own feature maps, in the order in which `features` has them;
            None if that is the model's own order.
    """

    features: Array
    run: Callable[[Array, tuple[Array, ...]], Any]
    carry: tuple[Array, ...] = ()
    axes: tuple[int, ...] | None = None

    def __call__(self, z: Array) -> Any:
        """Outputs of the model for feature maps, differentiable in `z`.

        Args:
            z: (B * S, *feature map), float32 or float64, its axes in the order of `features`. The S copies of
                an image follow one another. It is cast to the dtype of the features, which may be lower.

        Returns:
            The model's output, batch size B * S.

        Raises:
            LayerError: the output does not depend on the features.
        """
        return self.run(z, self.carry)

    def in_memory_order(self) -> Tail:
        """The same tail with the axes of the feature maps in the order that is fastest to compute with."""
        return self


class Split(ABC):
    """A model divided at a layer into a *head*, up to the layer, and a *tail*, after it.

    It holds nothing about the images that it runs on.

    Attributes:
        layer_name: name of the layer, for messages and files.
        data_format: where the channels of the feature map are.
        input_format: where the channels of the model's input are.
    """

    layer_name: str
    data_format: DataFormat
    input_format: DataFormat

    @abstractmethod
    def features(self, inputs: Inputs) -> Array:
        """Run the head on a batch, without a graph.

        Returns:
            Feature maps (B, *feature map).

        Raises:
            LayerError: the layer does not run, or the model cannot be split there.
        """

    @abstractmethod
    def head(self, inputs: Inputs) -> AbstractContextManager[Tail]:
        """Run the head once on `inputs` (batch size B) and give the tail for them.

        The tail may be used inside the context only. The model stays as it is.

        Raises:
            LayerError: the layer does not run, or the model cannot be split there.
        """


class ModelAdapter(ABC):
    """One framework's way into one model.

    Args:
        model: a model for which `owns` is true.
    """

    framework: ClassVar[Framework]
    """The framework of the model."""

    data_format: DataFormat
    """Where the channels of the model's input and of its feature maps are, unless a `Split` says
    otherwise."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def owns(cls, model: Model) -> bool:
        """Whether `model` belongs to this framework."""

    @classmethod
    @abstractmethod
    def load(cls, source: str) -> Model | None:
        """Load the model that `source` names.

        Args:
            source: name of a pretrained network, or a file.

        Returns:
            The model; None if it is not this backend's.
        """

    @abstractmethod
    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """List the layers in the order in which they run on `inputs`, with the shapes of their outputs."""

    @abstractmethod
    def split(self, layer: Any, end_layer: Any = None) -> Split:
        """Divide the model at the output of `layer`.

        Args:
            layer: a layer object or its name.
            end_layer: where the tail ends: a layer after (or at) the split, whose output the tail gives
                instead of the model's. None for the end of the model.

        Raises:
            LayerError: there is no such layer (the message offers the closest names), or the model
                cannot be split there.
        """

    @abstractmethod
    def predict(self, inputs: Inputs) -> Any:
        """Run the model on `inputs`, in evaluation mode and without a graph."""

    @abstractmethod
    def to_inputs(self, inputs: Inputs) -> Inputs:
        """Make every array of `inputs` a tensor of the model's device and floating-point dtype."""


def backends() -> list[str]:
    """Names of the installed backends, such as ``["tensorflow", "torch"]``; none is imported."""
    return sorted(entry.name for entry in metadata.entry_points(group=BACKENDS))


def load_backend(name: str) -> type[ModelAdapter]:
    """The adapter class of the backend `name` (``"torch"``, ``"tensorflow"`` or ``"tf"``, ...).

    Raises:
        InputError: there is no such backend.
        MissingDependencyError: its framework is not installed.
    """
    require_text("backend", name, "the name of a backend")
    canonical = _ALIASES.get(name, name)
    entries = list(metadata.entry_points(group=BACKENDS, name=canonical))
    if not entries:
        raise InputError(f"backend={name!r} is not installed; {closest(name, backends())}")
    try:
        adapter: type[ModelAdapter] = entries[0].load()
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"the backend {canonical!r} cannot be imported: {error}") from error
    return adapter


def find_adapter(model: Model, backend: str | None = None) -> ModelAdapter:
    """Adapter for `model`, of the backend that owns it.

    Args:
        model: a model of any framework that a backend serves; or an adapter, which is returned.
        backend: name of the backend. If None, it follows from the model.

    Raises:
        InputError: no backend, or not the one named, owns the model.
    """
    if isinstance(model, ModelAdapter):
        if backend is not None and load_backend(backend).framework.name != model.framework.name:
            raise InputError(
                f"backend={backend!r} is not that of the adapter given, {model.framework.name!r}"
            )
        return model
    if backend is not None:
        adapter = load_backend(backend)
        if not adapter.owns(model):
            raise InputError(f"backend={backend!r} does not serve a model of type {_type_name(model)}")
        return adapter(model)
    for name in backends():
        # A model of a framework cannot exist before the framework has been imported.
        if name in sys.modules and (adapter := load_backend(name)).owns(model):
            return adapter(model)
    raise InputError(
        f"model is of type {_type_name(model)}, which no backend serves; "
        f"installed backends: {', '.join(backends()) or 'none'}"
    )


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
