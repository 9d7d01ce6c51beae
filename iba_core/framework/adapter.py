"""What the core asks of a model: its layers, its outputs, and a division at a layer into head and tail.

A backend offers a `ModelAdapter` subclass under the entry-point group ``iba.backends``. The entry's name is
the top-level module of its framework (``torch``, ``tensorflow``). A backend is imported only once that
module has been.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from os import PathLike
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_text
from iba_core.errors import InputError, LayerError, MissingDependencyError, closest
from iba_core.framework.comparison import Difference, OwnOutputs, difference, epsilon_of
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import arrays_of, batch_size, take
from iba_core.framework.layout import DataFormat, FeatureAxes, Layout, MapOrder
from iba_core.framework.namespace import BACKENDS, NAMESPACES, Array
from iba_core.framework.shared import SharedInputs

Model = Any
"""A model of any framework."""

Inputs = Any
"""What a model is called with: one array, or a tuple or dict of arrays with a leading batch axis."""

_FIRST = ("torch", "tensorflow")
"""Order in which backends are asked for the model in a file."""

_PIPELINES = "transformers.pipelines.base"
"""Where the class of Hugging Face's pipelines is."""

_ALIASES = {"tf": "tensorflow", "keras": "tensorflow", "pytorch": "torch"}


Activation = Literal["softmax", "sigmoid", "other"]
"""The function that an output ends in."""


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

    @property
    def depth(self) -> int:
        """How many modules or layers its name says that it lies in.

        Example:
            >>> LayerInfo("blocks.4.conv", "Conv2d", None).depth
            2
        """
        return self.name.count(".") + self.name.count("/")


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
        one_by_one: whether feature maps must pass alone, because the model mixes those of a batch, as a
            normalisation by the statistics of the batch does.
    """

    features: Array
    run: Callable[[Array, tuple[Array, ...]], Any]
    carry: tuple[Array, ...] = ()
    axes: tuple[int, ...] | None = None
    one_by_one: bool = False

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

    @property
    def may_draw(self) -> bool:
        """Whether the model has operations that draw random numbers which no seed governs.

        It is known once the tail has run.
        """
        return False

    def in_memory_order(self) -> Tail:
        """The same tail with the axes of the feature maps in the order that is fastest to compute with."""
        return self

    def differentiated(self, z: Array) -> Any:
        """Outputs for feature maps, computed as they are where a gradient is taken. They come without it."""
        return self(z)

    def activations(self) -> list[Activation | None]:
        """The function that each array of the outputs ends in, in the order of `arrays_of`.

        Returns:
            ``"softmax"``, ``"sigmoid"`` or ``"other"``; None where it cannot be told.
        """
        return []


class Split(ABC):
    """A model divided at a layer into a *head*, up to the layer, and a *tail*, after it.

    It holds nothing about the images that it runs on. For each new shape of the inputs, it checks against the
    model itself that it reads the model rightly, and refuses it otherwise.

    Attributes:
        layer_name: name of the layer, for messages and files.
        data_format: where the channels of the feature map are.
        input_format: where the channels of the model's input are.
        input_has_channels: False if all axes of the input are known to be places, as in a spectrogram.
    """

    layer_name: str
    data_format: DataFormat
    input_format: DataFormat
    input_has_channels: bool = True

    def __init__(self) -> None:
        # Whether the images of a batch are mixed, for each shape of the inputs that has been checked.
        self._mixing: dict[Any, bool] = {}
        self._features_mix: bool | None = None
        self._draws = False

    # -- what a backend gives ---------------------------------------------------------------------------

    @abstractmethod
    def run_features(self, inputs: Inputs) -> Array:
        """Run the head on a batch, without a graph, as `features` says."""

    @abstractmethod
    def open_head(self, inputs: Inputs) -> AbstractContextManager[Tail]:
        """Run the head once and give the tail, as `head` says."""

    @abstractmethod
    def own_outputs(self, inputs: Inputs) -> OwnOutputs:
        """What the model, or the layer that the tail ends at, gives without a split.

        It is for one image of `inputs`, or for several that are all the first image. Their number is not that
        of `inputs`, unless that is one. The features on the way come along.
        """

    def feature_axes(self) -> FeatureAxes | None:
        """What the axes of a feature map come of, once the head has run; None where that is not known."""
        return None

    # -- what the core uses -----------------------------------------------------------------------------

    def map_order(self, layout: Layout) -> MapOrder:
        """How a map of the layer's places is turned to lie over the input, once the head has run.

        Args:
            layout: meaning of the axes of a feature map.

        Raises:
            LayerError: the model exchanges axes, and does not show where all of them are.
        """
        axes = self.feature_axes()
        if axes is None or len(axes.parts) != layout.ndim:
            return MapOrder.unchanged(layout)
        ndim = axes.input_ndim
        has_channels = self.input_has_channels and 1 <= ndim <= 4
        wanted = Layout.of([1] * ndim, self.input_format).spatial_axes if has_channels else range(ndim)
        return MapOrder.of(layout, axes, wanted, self.layer_name)

    def features(self, inputs: Inputs) -> Array:
        """Run the head on a batch, without a graph.

        Returns:
            Feature maps (B, *feature map).

        Raises:
            LayerError: the layer does not run, or the model cannot be split there.
        """
        if self._features_mix:
            return self._one_by_one(inputs)
        found = self.run_features(inputs)
        if self._features_mix is None and int(found.shape[0]) > 1:
            alone = self.run_features(take(inputs, 0, 1))
            own = OwnOutputs(alone, 1)
            self._features_mix = difference(own, found, int(found.shape[0]), epsilon_of(found)) is not None
            if self._features_mix:
                self._warn_of_mixing()
                return self._one_by_one(inputs)
        return found

    def head(self, inputs: Inputs) -> AbstractContextManager[Tail]:
        """Run the head once on `inputs` (batch size B) and give the tail for them.

        The tail may be used inside the context only. The model stays as it is.

        For a new shape of the inputs, the tail must first repeat what the model gives by itself for the first
        image. That takes a pass of the model on one or two images and two passes of the tail.

        Raises:
            LayerError: the layer does not run, the model cannot be split there, or the tail does not repeat
                the model.
            MixedImagesError: the model mixes the images of a batch, and there are several.
        """
        arrays = [inputs] if hasattr(inputs, "shape") else arrays_of(inputs)
        key = tuple((tuple(x.shape), str(x.dtype)) for x in arrays)
        return self._checked_head(inputs, key) if self._mixing.get(key, True) else self.open_head(inputs)

    def require_seeded(self, seed: int | None) -> None:
        """Check that a seed governs all random numbers, once the head has run.

        Raises:
            InputError: the model draws some by itself, and the framework's backend cannot seed them.
        """
        if seed is not None and self._draws:
            raise InputError(
                f"the model draws random numbers by itself, which seed={seed} does not govern: "
                "leave seed= out, or give a model that draws none outside of training"
            )

    # -- the check --------------------------------------------------------------------------------------

    @contextmanager
    def _checked_head(self, inputs: Inputs, key: Any) -> Iterator[Tail]:
        before: _Refusal | None = None
        for _ in range(_LOOKS):
            with self.open_head(inputs) as tail:
                if key not in self._mixing:
                    found = self._refusal(tail, inputs)
                    # A step of a training may have come between the head and what it is compared with. So
                    # only a second look at a model that has stayed as it was says something.
                    if found is not None and (before is None or not before.is_of_the_model_in(found)):
                        before = found
                        continue
                    if found is not None and not found.mixes:
                        raise LayerError(found.text)
                    if found is not None:
                        self._warn_of_mixing()
                    self._mixing[key] = found is not None
                    self._draws = self._draws or (tail.may_draw and self._differs_each_time(inputs))
                if not self._mixing[key]:
                    yield tail
                elif int(tail.features.shape[0]) == 1:
                    yield replace(tail, one_by_one=True)
                else:
                    raise MixedImagesError(self.layer_name)
                return
        raise LayerError(
            f"the model changed in each of {_LOOKS} checks that the part after layer {self.layer_name!r} "
            "repeats it; explain an input of this shape once before the training, or after it"
        )

    def _refusal(self, tail: Tail, inputs: Inputs) -> _Refusal | None:
        """Why a tail does not do as it is; None if it repeats the model."""
        images, epsilon = int(tail.features.shape[0]), epsilon_of(tail.features)
        # Another thread may train the model meanwhile, so one difference alone says nothing.
        for _ in range(2):
            own = self.own_outputs(inputs)
            found = _off(own, tail, images) or _features_off(own, tail.features, epsilon)
            if found is None:
                return None
            again = self.own_outputs(inputs)
            differs = difference(own, again.outputs, again.images, epsilon)
            if differs is not None or _features_off(own, again.features, epsilon) is not None:
                warnings.warn(
                    "the model gives other outputs for the same input each time, so it could not be checked "
                    f"that the part after layer {self.layer_name!r} repeats it",
                    stacklevel=2,
                )
                return None
        assert found is not None, "else it has returned"
        mixes = False
        if not own.together and not found.is_of_shapes:
            with self.open_head(take(inputs, 0, 1)) as alone:
                outputs = alone.differentiated(alone.features)
            differs = difference(own, outputs, 1, epsilon)
            if differs is None and _features_off(own, alone.features, epsilon) is None:
                mixes = True
        return _Refusal(
            f"the part of the model after layer {self.layer_name!r} does not repeat the model: {found.text}; "
            "name another layer, or mark the inputs that all images share with iba_core.Shared",
            own,
            epsilon,
            mixes,
        )

    def _differs_each_time(self, inputs: Inputs) -> bool:
        own, again = self.own_outputs(inputs), self.own_outputs(inputs)
        return difference(own, again.outputs, again.images, 0.0, exactly=True) is not None

    def _warn_of_mixing(self) -> None:
        warnings.warn(
            f"what the model gives for an image at layer {self.layer_name!r} depends on the other images of "
            "the batch, as with a normalisation by the statistics of the batch: each is explained alone",
            stacklevel=2,
        )

    def _one_by_one(self, inputs: Inputs) -> Array:
        images = [self.run_features(take(inputs, i, i + 1)) for i in range(batch_size(inputs))]
        return NAMESPACES[type(images[0])].concat(images, axis=0)


_LOOKS = 5
"""How often a head is checked at most while the model changes."""


class _Refusal(NamedTuple):
    """Why a tail does not do."""

    text: str
    own: OwnOutputs
    """What the model itself gave then."""
    epsilon: float
    mixes: bool
    """Whether it is because the model mixes the images of a batch."""

    def is_of_the_model_in(self, other: _Refusal) -> bool:
        """Whether the model still gives what it gave in another look."""
        own = other.own
        if difference(self.own, own.outputs, own.images, self.epsilon) is not None:
            return False
        return _features_off(self.own, own.features, self.epsilon) is None


class MixedImagesError(LayerError):
    """A model mixes the images of a batch, so each must be explained alone.

    Args:
        layer: name of the layer.

    Example:
        >>> issubclass(MixedImagesError, LayerError)
        True
    """

    def __init__(self, layer: str) -> None:
        super().__init__(
            f"the model mixes the images of a batch at or after layer {layer!r}; explain them one by one"
        )


def _off(own: OwnOutputs, tail: Tail, images: int) -> Difference | None:
    """What is different in the tail's output for the first image, beside other images and copies."""
    # The copies of an image differ from it, unless the outputs are those of all images together.
    found = _compared(own, tail, images, 1.0 if own.together else 0.5)
    if found is not None and found.is_of_shapes and images == 1 and not own.together:
        # A mean over all rows is that of one row if they are equal.
        found = _compared(replace(own, together=True), tail, images, 1.0)
    return found


def _features_off(own: OwnOutputs, features: Array | None, epsilon: float) -> Difference | None:
    """What is different in the features of the first image, which need not show in the outputs."""
    if own.features is None or features is None:
        return None
    found = difference(OwnOutputs(own.features[:1], 1), features[:1], 1, epsilon)
    return found and replace(found, text=found.text.replace("its output is", "its features are"))


def _compared(own: OwnOutputs, tail: Tail, images: int, scale: float) -> Difference | None:
    features, epsilon = tail.features, epsilon_of(tail.features)
    xp = NAMESPACES[type(features)]
    # As many rows as the model itself was given would not show which axis is that of the images.
    copies = 2 + (2 * images == own.images)
    z = xp.stack([features, *[features * scale] * (copies - 1)], axis=1)
    z = xp.reshape(z, (images * copies, *features.shape[1:]))
    found = difference(own, tail.differentiated(z), images * copies, epsilon)
    # The second pass shows whether the first has spoilt anything.
    return found or difference(own, tail(z), images * copies, epsilon)


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
        self.shared: SharedInputs = SharedInputs()

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
    def split(self, layer: Any, end_layer: Any = None, *, data_format: DataFormat | None = None) -> Split:
        """Divide the model at the output of `layer`.

        Args:
            layer: a layer object or its name.
            end_layer: where the tail ends: a layer after (or at) the split, whose output the tail gives
                instead of the model's. None for the end of the model.
            data_format: where the channels of the feature map are; None to find that out.

        Raises:
            LayerError: there is no such layer (the message offers the closest names), or the model
                cannot be split there.
        """

    @abstractmethod
    def predict(self, inputs: Inputs) -> Any:
        """Run the model on `inputs`, in evaluation mode and without a graph."""

    def features_of(self, inputs: Inputs, layers: Sequence[Any]) -> list[Array]:
        """Run the model once on `inputs`, without a graph, and give the features of many layers.

        Nothing is checked against the model, as `Split.features` does for a batch.

        Args:
            inputs: as `to_inputs` gives them.
            layers: layers or their names, each with a single array as its output. Of a layer that runs
                several times the first is meant.

        Returns:
            Feature maps (B, *feature map) of each layer.

        Raises:
            LayerError: there is no such layer, or it does not run.
        """
        return [self.split(layer).features(inputs) for layer in layers]

    def gradient(self, inputs: Array, score: Callable[[Any], Array]) -> Array:
        """Gradient of a score of the model's output with respect to its input, for nothing else.

        Args:
            inputs: the only input, a floating-point tensor (B, ...), as `to_inputs` gives it.
            score: maps what the model returns to a scalar, differentiably.

        Returns:
            Array of the shape of `inputs`.

        Raises:
            InputError: the backend does not offer it.
            LayerError: the score does not depend on the input.
        """
        raise InputError(f"the backend {self.framework.name!r} gives no gradients with respect to inputs")

    def weights(self) -> dict[str, list[npt.NDArray[Any]]]:
        """Copies of the trained arrays of the layers that have some, by the layers' names, the first first.

        Raises:
            InputError: the arrays of this kind of model cannot be told apart.
        """
        raise InputError(f"the weights of a {_type_name(self.model)} cannot be read; give it as layers")

    def with_weights(self, weights: Mapping[str, Sequence[npt.NDArray[Any]]]) -> Model:
        """A copy of the model, with other arrays in some of its layers. The model stays as it is.

        Args:
            weights: arrays by the names of layers, as `weights` gives them.

        Raises:
            InputError: this kind of model cannot be copied with other weights.
        """
        raise InputError(f"a {_type_name(self.model)} cannot be copied with other weights; give it as layers")

    def described(self) -> tuple[str, Iterable[npt.NDArray[Any]]]:
        """What the model is made of: its structure as text, and its present weights, always in one order.

        The text holds nothing that differs between processes, such as addresses in memory.
        """
        weights = self.weights()
        return _type_name(self.model), (array for name in weights for array in weights[name])

    def fingerprint(self) -> str:
        """Hash of the model's structure and present weights, 32 hexadecimal digits.

        Two models with one fingerprint give the same outputs, unless they differ in code that neither their
        layers nor their graphs show.

        Raises:
            InputError: the weights of this kind of model cannot be read.
        """
        text, arrays = self.described()
        digest = hashlib.sha256(text.encode(errors="backslashreplace"))
        for array in arrays:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:32]

    def place(self, device: str) -> None:
        """Move the model to a device, and explain there.

        Args:
            device: name of the device, such as ``"cpu"`` or ``"cuda:1"``.

        Raises:
            InputError: there is no such device, or the backend cannot move models.
        """
        raise InputError(f"device={device!r}: the backend {self.framework.name!r} cannot move models")

    @abstractmethod
    def as_tensors(self, inputs: Inputs, device: Any = None) -> Inputs:
        """Make every array of `inputs` a tensor of the model's floating-point dtype.

        Args:
            inputs: the inputs. Those that are `Shared` stay marked so.
            device: where to put them; the model's if None.
        """

    def to_inputs(self, inputs: Inputs, device: Any = None) -> Inputs:
        """Make every array of `inputs` a tensor, and mark those that all images share.

        Arguments are those of `as_tensors`.

        Raises:
            InputError: it is not clear which inputs all images share.
        """
        tensors = self.as_tensors(inputs, device)
        return tensors if hasattr(tensors, "shape") else self.shared.mark(tensors, self.predict)


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


def load_model(source: str | PathLike[str], backend: str | None = None, argument: str = "model") -> Model:
    """Load a model from a file or a folder, by the first backend that knows its kind.

    Args:
        source: a ``.pt2`` file of `torch.export.save`, an ``.onnx`` file, a folder of Hugging Face, a
            ``.keras``, ``.h5`` or ``.pb`` file, a SavedModel folder, or the name of a pretrained network,
            ``"efficientnet-lite0"``.
        backend: name of the backend; None for the first that can load it, PyTorch before TensorFlow.
        argument: name of the argument, for the message.

    Returns:
        The model.

    Raises:
        InputError: no backend can load it.
        MissingDependencyError: a package that the model needs is not installed.
        StateError: the file is damaged, or holds code, which is not run.

    Example:
        >>> load_model("net.txt")
        Traceback (most recent call last):
        iba_core.errors.InputError: model='net.txt' cannot be loaded; give 'efficientnet-lite0', a...
    """
    source = os.fspath(source)
    require_text(argument, source, "the path of a model")
    known = backends()
    order = [name for name in _FIRST if name in known] + [name for name in known if name not in _FIRST]
    missing: list[str] = []
    for name in [backend] if backend else order:
        try:
            model = load_backend(name).load(source)
        except MissingDependencyError as error:
            if backend:
                raise
            missing.append(str(error))
            continue
        if model is not None:
            return model
    if missing:
        raise MissingDependencyError(
            f"no installed backend can load {argument}={source!r}; {'; '.join(missing)}"
        )
    by = f" by the backend {backend!r}" if backend else ""
    raise InputError(
        f"{argument}={source!r} cannot be loaded{by}; give 'efficientnet-lite0', a SavedModel folder, a "
        ".keras, .h5, .pb, .pt2 or .onnx file, or a folder of Hugging Face"
    )


def find_adapter(model: Model, backend: str | None = None, argument: str = "model") -> ModelAdapter:
    """Adapter for `model`, of the backend that owns it.

    Args:
        model: a model of any framework that a backend serves; an adapter, which is returned; a pipeline of
            Hugging Face, whose model is taken; or the path of a model, see `load_model`.
        backend: name of the backend. If None, it follows from the model.
        argument: name of the argument, for the message.

    Raises:
        InputError: no backend, or not the one named, owns the model.
    """
    if isinstance(model, (str, PathLike)):
        model = load_model(model, backend, argument)
    elif any(kind.__module__ == _PIPELINES for kind in type(model).__mro__):
        model = model.model
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
        f"{argument} is of type {_type_name(model)}, which no backend serves; "
        f"installed backends: {', '.join(backends()) or 'none'}"
    )


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
