"""What the core asks of a framework. This file is the whole interface between `iba_core` and a backend.

A backend is a distribution that offers an `Adapter` subclass under the entry-point group
``iba.backends``; the entry's name is the top-level module of its framework (``torch``,
``tensorflow``). It is imported only once that module has been.

An adapter holds no formula. It gets into a model (`Adapter.cut`), differentiates, compiles, draws
random numbers and converts arrays; what is computed with them is written in the core.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from math import prod
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError, MissingDependencyError, closest
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import BACKENDS, Array

Model = Any
"""A model of any framework."""

Inputs = Any
"""Whatever a model is called with: one array, or a tuple or dict of arrays with a leading batch axis."""

F = TypeVar("F", bound=Callable[..., Any])

_ALIASES = {"tf": "tensorflow", "keras": "tensorflow", "pytorch": "torch"}


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a model, as `Adapter.layers` lists it.

    Attributes:
        name: name by which `Adapter.cut` finds the layer.
        kind: name of the layer's class.
        output_shape: shape of its output without the batch axis; None if it is not a single array.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None


class Head(NamedTuple):
    """What the layers before the cut have computed for a batch.

    Attributes:
        features: array at the cut, shape (B, *feature map).
        carry: arrays (B, ...) that reach the tail by another way, such as a skip connection. Empty
            where the adapter keeps them to itself.
    """

    features: Array
    carry: tuple[Array, ...] = ()


class Cut(ABC):
    """A model cut at a layer into a *head*, up to the layer, and a *tail*, behind it.

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
        """Feature maps (B, *feature map) of a batch: one pass of the head, without a graph."""

    @abstractmethod
    def open(self, inputs: Inputs) -> AbstractContextManager[Head]:
        """Run the head once on `inputs` (batch size B) and make `tail` ready for them.

        Inside the context the model is in evaluation mode and gradients for its parameters are off.
        On leaving, also by an exception, the model is as it was: hooks, flags, gradients.
        """

    @abstractmethod
    def tail(self, z: Array, carry: tuple[Array, ...]) -> Any:
        """Outputs of the model for feature maps `z`, differentiable in `z`. Only inside `open`.

        Args:
            z: (B * S, *feature map), float32 or float64; the S copies of an image follow one another. It is
                cast to the dtype of the features, which may be lower.
            carry: as `open` gave it, not repeated.

        Returns:
            The model's output, batch size B * S.
        """


class Adapter(ABC):
    """One framework's way into one model.

    Args:
        model: a model for which `owns` is true.
    """

    name: ClassVar[str]
    """Name of the backend: the top-level module of its framework."""

    data_format: DataFormat
    """Where the channels of the model's input and of its feature maps are, unless a `Cut` says otherwise."""

    jit_compile: bool = False
    """Whether `compile` has the framework's compiler make machine code of a function. That takes seconds to
    minutes for each shape, and what it makes is not always faster: measure it on your device."""

    reuses_memory: bool = False
    """Whether what follows from an array that nothing else needs can take its memory: by ``x += y``, which
    writes into it, or since the framework sees to that."""

    def __init__(self, model: Model) -> None:
        self.model = model

    # -- models -----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def owns(cls, model: Model) -> bool:
        """Whether `model` belongs to this framework."""

    @classmethod
    @abstractmethod
    def load(cls, source: str) -> Model | None:
        """Model that `source` names: a pretrained network's name or a file; None if not this backend's."""

    @abstractmethod
    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """Layers in the order in which they run on `inputs`, with the shapes of their outputs."""

    @abstractmethod
    def cut(self, layer: Any, until: Any = None) -> Cut:
        """Cut the model at `layer`, a layer object or its name; the features are its output.

        Args:
            layer: where the head ends and the tail begins.
            until: where the tail ends: a layer behind (or at) the cut, whose output `Cut.tail` gives then
                instead of the model's. None for the end of the model.

        Raises:
            LayerError: there is no such layer (the message offers the closest names), or the model
                cannot be cut there.
        """

    @abstractmethod
    def predict(self, inputs: Inputs) -> Any:
        """The model's output for `inputs`, in evaluation mode and without a graph."""

    # -- arrays -----------------------------------------------------------------------------------

    @abstractmethod
    def to_inputs(self, inputs: Inputs) -> Inputs:
        """`inputs` with every array as a tensor of the model's device and floating-point dtype."""

    @abstractmethod
    def asarray(self, array: npt.ArrayLike, like: Array) -> Array:
        """`array` as a tensor on the device of `like`; floating-point values take the dtype of `like`."""

    @abstractmethod
    def to_numpy(self, array: Array) -> npt.NDArray[Any]:
        """`array` on the host, detached, bfloat16 widened to float32."""

    @abstractmethod
    def standard_normal(self, shape: Sequence[int], like: Array) -> Array:
        """Standard normal numbers on the device of `like`, others at each call, by the framework's seed."""

    def axes_in_memory(self, x: Array) -> tuple[int, ...]:
        """Axes of a batch in the order in which they lie in memory, the images first.

        What is computed from x, axis by axis or of all copies of an image, is fastest in that order.
        """
        return tuple(range(len(x.shape)))

    def preferred_batch(self, shape: Sequence[int], like: Array) -> int | None:
        """How many feature maps the tail takes best at once, where nobody says: a batch is split so.

        Args:
            shape: of one feature map.
            like: a tensor on the device that the tail runs on.

        Returns:
            `rows_in_cache` on a processor, None (as many as there are) on an accelerator.
        """
        return None

    def reduced_precision(self, precision: str | None, like: Array) -> AbstractContextManager[Any]:
        """Context in which the tail computes in another precision than the model's own.

        Args:
            precision: see `BottleneckSettings`; None changes nothing.
            like: a tensor on the device that the tail runs on.

        Raises:
            InputError: the framework cannot change a model's precision from outside.
        """
        if precision is None:
            return nullcontext()
        raise InputError(
            f"precision={precision!r} is not offered by the backend {self.name!r}; give a model that was "
            "made in that precision"
        )

    # -- functions --------------------------------------------------------------------------------

    @abstractmethod
    def value_and_grad(
        self, function: Callable[[Array], tuple[Array, Any]], x: Array
    ) -> tuple[Array, Any, Array]:
        """Value, auxiliary output and gradient of a scalar function at `x`, and for nothing else.

        Args:
            function: maps `x` to a pair (scalar, anything).
            x: floating-point array.

        Returns:
            ``(value, auxiliary, gradient)``, all without a graph; the gradient has the shape of `x`.
        """

    def after(self, array: Array) -> AbstractContextManager[Any]:
        """Context in which nothing is computed before `array` is.

        A framework that runs operations in an order of its own would compute early what is needed late, and
        hold it all the while.
        """
        return nullcontext()

    def handing_over(self, jit_compile: bool | None = None) -> Callable[[int, Array], Any]:
        """A way to call compiled functions with arrays whose memory they are to have, by `taken`.

        A framework may hold what a function is called with until it returns.

        Args:
            jit_compile: as of `compile`.

        Returns:
            ``hand_over(place, array)``, which gives the argument to call with: of an array that nothing else
            needs, and its number among those of the call. What was handed over under the same number before
            must have been taken.
        """
        return lambda place, array: array

    def taken(self, handed: Any) -> Array:
        """The array that was handed over, once; in the function that was called with it."""
        return handed

    def compile(self, function: F, jit_compile: bool | None = None) -> F:
        """`function` in the form in which the framework runs it best; as machine code with `jit_compile`.

        Args:
            function: a function of its arguments alone, which it may write into; takes and returns nested
                tuples and dicts of arrays, and is called many times with arrays of the same shapes.
            jit_compile: in place of the adapter's own.
        """
        return function


def rows_in_cache(shape: Sequence[int]) -> int:
    """Feature maps of `shape` that a processor takes best at once: 1 MiB of float32, but 16 at least.

    Of more, what a layer of the tail has written is out of the caches when the next one reads it, and
    every map costs more time, not less. Of fewer, the cost of calling a layer tells.
    """
    return max(16, 2**18 // max(1, prod(shape)))


def backends() -> list[str]:
    """Names of the installed backends, such as ``["tensorflow", "torch"]``; none is imported."""
    return sorted(entry.name for entry in metadata.entry_points(group=BACKENDS))


def load_backend(name: str) -> type[Adapter]:
    """The adapter class of the backend `name` (``"torch"``, ``"tensorflow"`` or ``"tf"``, ...).

    Raises:
        InputError: there is no such backend.
        MissingDependencyError: its framework is not installed.
    """
    canonical = _ALIASES.get(name, name)
    entries = list(metadata.entry_points(group=BACKENDS, name=canonical))
    if not entries:
        raise InputError(f"backend={name!r} is not installed; {closest(name, backends())}")
    try:
        adapter: type[Adapter] = entries[0].load()
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"the backend {canonical!r} cannot be imported: {error}") from error
    return adapter


def find_adapter(model: Model, backend: str | None = None) -> Adapter:
    """Adapter for `model`, of the backend that owns it.

    Args:
        model: a model of any framework that a backend serves; or an adapter, which is the answer, made by
            hand to choose its options.
        backend: name of the backend, to leave no choice.

    Raises:
        InputError: no backend, or not the one named, owns the model.
    """
    if isinstance(model, Adapter):
        if backend is not None and load_backend(backend).name != model.name:
            raise InputError(f"backend={backend!r} is not that of the adapter given, {model.name!r}")
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
        f"no backend serves a model of type {_type_name(model)}; "
        f"installed backends: {', '.join(backends()) or 'none'}"
    )


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def require_finite(array: npt.NDArray[Any], argument: str) -> None:
    """Raise an `InputError` naming `argument` and the first bad index if `array` is not finite."""
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(f"{argument} holds {array[index]} at index {index}; every value must be finite")
