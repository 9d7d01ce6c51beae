"""Class activation maps: show where in an image the evidence for an output, or for a concept, lies.

The classes have the names and arguments of the package pytorch-grad-cam (J. Gildenblat and others). They
work for models of every framework, through the model's adapter. The formulas are in
`iba_core.concepts.activation_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    require_bool,
    require_callable,
    require_data_format,
    require_layer,
    require_number,
    require_whole,
)
from iba_core.concepts.activation_maps import (
    Weighting,
    activation_maps,
    combine_layers,
    grad_cam_plus_plus_weights,
    grad_cam_weights,
    hires_cam_weights,
    layer_cam_weights,
    xgrad_cam_weights,
)
from iba_core.concepts.targets import ClassifierOutputTarget, ScoredOutput
from iba_core.default_layer import everything_passes
from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import (
    Inputs,
    MixedImagesError,
    Model,
    ModelAdapter,
    Split,
    find_adapter,
)
from iba_core.framework.cache import Cache
from iba_core.framework.framework import Framework, require_finite
from iba_core.framework.inputs import arrays_of, batch_size, require_inputs, take
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.framework.namespace import Array, array_namespace, host_array
from iba_core.targets import Target, as_target, common_layer, main_output

ReshapeTransform = Callable[[Array], Array] | Tokens
"""How to read a layer whose output is not a feature map: `Tokens`, or a function that maps the output
(B, ...) to feature maps, with the channels where the model's input has them."""

_BRIGHTNESS = (0.9, 1.0, 1.1)
"""Factors on the input that `aug_smooth` averages over."""


class Method(NamedTuple):
    """The settings in which one class activation map differs from another."""

    weighting: Weighting | None
    """Factors of the activations; None for the activations themselves."""
    principal: bool = False
    """Whether to take the principal component of the channels in every call."""


class BaseCAM:
    """A method of making class activation maps for one model of any framework.

    A call does not change the model, so the context manager has nothing to undo. It exists because code
    written for pytorch-grad-cam uses it.

    Args:
        model: a trained model of any framework that a backend serves.
        target_layers: layer to use, an object or its name; or a list of several, whose maps are averaged.
            Choose a late layer that still resolves the image: typically the last convolutional block. None
            for the last layer that has two spatial axes and that all information passes.
        reshape_transform: how to read a layer whose output is a sequence of tokens, such as
            ``Tokens(prefix=1, grid=(14, 14))`` for a vision transformer; or a function that makes feature
            maps of the output.
        data_format: where the channels of the target layers' outputs are; None to find that out.
        shared: names or positions of the inputs that all images of a batch share; ``()`` for none. If None,
            it is learnt from the model where an input is as long as the batch.
        output: name or number of the output that targets are about, of a model that has several. If None,
            see `iba_core.targets.main_output`.

    Raises:
        InputError: no backend serves the model.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> with GradCAM(model, target_layers=["conv"]) as cam:
        ...     maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(2)] * 2)
        >>> maps.shape
        (2, 8, 8)
    """

    method: Method

    def __init__(
        self,
        model: Model,
        target_layers: Any = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        data_format: DataFormat | None = None,
        shared: Sequence[str | int] | None = None,
        output: int | str | None = None,
    ) -> None:
        require_data_format("data_format", data_format, optional=True)
        self.data_format = data_format
        self.output = output
        self.adapter: ModelAdapter = find_adapter(model)
        self.model = model
        if shared is not None:
            self.adapter.shared.give(shared)
        several = isinstance(target_layers, (list, tuple))
        if several and not target_layers:
            raise InputError(
                "target_layers is empty; name a layer, or leave it out for the last layer that fits"
            )
        self.target_layers: Sequence[Any] | None = (
            target_layers if several or target_layers is None else [target_layers]
        )
        if not isinstance(reshape_transform, Tokens):
            require_callable("reshape_transform", reshape_transform, "Tokens or a function", optional=True)
        self.reshape_transform = reshape_transform
        # Keep the splits, since a framework may compile the head of each once.
        self._splits: Cache[Split] = Cache(size=16)
        for layer in self.target_layers or ():
            require_layer("target_layers", layer)
            self._split(layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Undo nothing, and let exceptions pass."""

    def __call__(
        self,
        input_tensor: Inputs,
        targets: Any = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Compute the maps of a batch of images.

        Args:
            input_tensor: inputs with a leading batch axis, (B, ...), arrays of NumPy or of the model's
                framework.
            targets: what to look for. None for the predicted class; one target for all images; or a list
                with one target per image. A target is a callable that maps the output for one image to a
                score, the index of a class, a `ConceptEmbedding`, or a `Target`.
            aug_smooth: average the maps of the images and of their mirror images, each also darker and
                brighter by a tenth. This takes six times as long.
            eigen_smooth: take the first principal component of the weighted channels instead of their sum,
                with the sign that makes it grow along with that sum.

        Returns:
            Array (B, *spatial axes of the input), float32, each map from 0 to 1.

        Raises:
            InputError: the inputs are empty or not finite, the targets do not fit, or the maps of a layer
                cannot be resized to the input.
            LayerError: a layer does not run, or runs more than once and the call is not named.
        """
        require_bool("aug_smooth", aug_smooth)
        require_bool("eigen_smooth", eigen_smooth)
        inputs = require_inputs("input_tensor", input_tensor, self.adapter.to_inputs)
        for array in arrays_of(inputs):
            require_finite(self.adapter.framework.to_numpy(array), "input_tensor")
        wanted = self._wanted(targets, batch_size(inputs))
        if self.target_layers is None:
            self.target_layers = [last_spatial_layer(self.adapter, take(inputs, 0, 1))]
        end_layer = common_layer(target.layer for target in wanted)
        splits = [self._split(layer, end_layer) for layer in self.target_layers]
        principal = eigen_smooth or self.method.principal
        if not aug_smooth:
            return self._maps(splits, inputs, wanted, principal)
        image, axis = _single_image(inputs, splits[0].input_format)
        mirrored = _mirrored(self.adapter.framework, image, axis)
        straight = [self._maps(splits, image * factor, wanted, principal) for factor in _BRIGHTNESS]
        crosswise = [self._maps(splits, mirrored * factor, wanted, principal) for factor in _BRIGHTNESS]
        views = [*straight, *(maps[..., ::-1] for maps in crosswise)]
        return np.asarray(np.mean(views, axis=0), dtype=np.float32)

    def _split(self, layer: Any, end_layer: Any = None) -> Split:
        return self._splits.get(
            (layer, end_layer),
            lambda: self.adapter.split(layer, end_layer, data_format=self.data_format),
        )

    def _maps(
        self, splits: list[Split], inputs: Inputs, wanted: list[_Wanted], principal: bool
    ) -> npt.NDArray[np.float32]:
        shape = tuple(int(size) for size in next(arrays_of(inputs)).shape[1:])
        maps = [self._layer_maps(split, inputs, wanted, principal) for split in splits]
        # A split may know the axes of the inputs once it has run.
        return combine_layers(maps, Layout.of(shape, splits[0].input_format).spatial_shape(shape))

    def _layer_maps(self, split: Split, inputs: Inputs, wanted: list[_Wanted], principal: bool) -> Array:
        try:
            return self._maps_of_all(split, inputs, wanted, principal)
        except MixedImagesError:
            maps = [
                self._maps_of_all(split, take(inputs, i, i + 1), _of_image(wanted, i), principal)
                for i in range(batch_size(inputs))
            ]
            return np.concatenate([host_array(image) for image in maps])

    def _maps_of_all(self, split: Split, inputs: Inputs, wanted: list[_Wanted], principal: bool) -> Array:
        with split.head(inputs) as tail:
            activations = tail.features

            def score(z: Array) -> tuple[Array, tuple[()]]:
                outputs = main_output(tail(z), self.output)
                return sum(target.score(outputs[target.images]) for target in wanted), ()

            *_, gradients = self.adapter.framework.value_and_grad(score, activations)
        transform, tokens, data_format = self.reshape_transform, None, split.data_format
        if isinstance(transform, Tokens):
            tokens = transform
        elif transform is not None:
            activations = transform(activations)
            gradients = None if gradients is None else transform(gradients)
            data_format = split.input_format
        layout = Layout.of(activations.shape[1:], data_format, tokens)
        return activation_maps(activations, gradients, self.method.weighting, layout, principal)

    def _wanted(self, targets: Any, images: int) -> list[_Wanted]:
        if hasattr(targets, "shape"):
            targets = host_array(targets).tolist()
        if isinstance(targets, (list, tuple)):
            if len(targets) != images:
                raise InputError(
                    f"targets holds {len(targets)} targets for {images} images; give one for each"
                )
            return [self._want(target, slice(i, i + 1)) for i, target in enumerate(targets)]
        return [self._want(targets, slice(0, images))]

    def _want(self, target: Any, images: slice) -> _Wanted:
        if target is None and self.method.weighting is None:
            return _Wanted(images, _predicted_if_any, None)
        if target is None or isinstance(target, (int, np.integer)):
            target = ClassifierOutputTarget(None if target is None else require_whole("targets", target))
        elif not callable(target) or isinstance(target, type):
            target = as_target(target, "targets")

        framework = self.adapter.framework

        def score(outputs: Array) -> Array:
            xp = array_namespace(outputs)
            if isinstance(target, Target) and not isinstance(target, ScoredOutput):
                loss, rows = target.resolve(framework.to_numpy(outputs))
                return -xp.sum(loss(outputs, *(framework.asarray(row, like=outputs) for row in rows)))
            return sum(xp.sum(_score(target(outputs[i]))) for i in range(int(outputs.shape[0])))

        return _Wanted(images, score, getattr(target, "layer", None) if isinstance(target, Target) else None)


def _score(found: Any) -> Array:
    """The score that a user's function gives."""
    if not hasattr(found, "shape"):
        raise InputError(
            f"targets holds a function that returns {type(found).__name__}; a score was expected"
        )
    return found


class _Wanted(NamedTuple):
    """What to look for in some images of a batch."""

    images: slice
    score: Callable[[Array], Array]
    """Maps the outputs for these images to a scalar."""
    layer: Any
    """Layer that gives these outputs; None for the model's own output."""


def _of_image(wanted: list[_Wanted], image: int) -> list[_Wanted]:
    """What is wanted of one image, once it is a batch of its own."""
    return [one._replace(images=slice(0, 1)) for one in wanted if one.images.start <= image < one.images.stop]


def _predicted_if_any(outputs: Array) -> Array:
    """Score the classes predicted; give 0, which says nothing, where the outputs are no rows of classes."""
    xp = array_namespace(outputs)
    return xp.sum(xp.max(outputs, axis=1)) if len(outputs.shape) == 2 else xp.sum(outputs) * 0


class GradCAM(BaseCAM):
    """Grad-CAM: see `grad_cam_weights` for the formula and `BaseCAM` for the arguments.

    Example:
        >>> GradCAM(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    method: Method = Method(grad_cam_weights)


class GradCAMPlusPlus(BaseCAM):
    """Grad-CAM++: see `grad_cam_plus_plus_weights` for the formula and `BaseCAM` for the arguments.

    Args:
        model: see `BaseCAM`.
        target_layers: see `BaseCAM`.
        reshape_transform: see `BaseCAM`.
        epsilon: 0 for the paper's formula; 1e-6 for the maps of pytorch-grad-cam, which adds that constant
            to a denominator. Where gradients are well below 1e-3, as they are deep in most networks, the two
            are different maps.
        **options: `data_format`, `shared` and `output`, see `BaseCAM`.

    Raises:
        InputError: no backend serves the model, or `epsilon` is negative.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> GradCAMPlusPlus(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    def __init__(
        self,
        model: Model,
        target_layers: Any = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        epsilon: float = 0.0,
        **options: Any,
    ) -> None:
        epsilon = require_number("epsilon", epsilon, 0)
        super().__init__(model, target_layers, reshape_transform, **options)
        self.method: Method = Method(partial(grad_cam_plus_plus_weights, epsilon=epsilon))


class HiResCAM(BaseCAM):
    """HiResCAM: see `hires_cam_weights` for the formula and `BaseCAM` for the arguments.

    Example:
        >>> HiResCAM(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    method: Method = Method(hires_cam_weights)


class LayerCAM(BaseCAM):
    """LayerCAM: see `layer_cam_weights` for the formula and `BaseCAM` for the arguments.

    Example:
        >>> LayerCAM(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    method: Method = Method(layer_cam_weights)


class XGradCAM(BaseCAM):
    """XGrad-CAM: see `xgrad_cam_weights` for the formula and `BaseCAM` for the arguments.

    Example:
        >>> XGradCAM(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    method: Method = Method(xgrad_cam_weights)


class EigenCAM(BaseCAM):
    """Eigen-CAM: see `principal_component` for the formula and `BaseCAM` for the arguments.

    The map depends on the layer alone, but for its sign, which no principal component has of its own. It is
    positive where the evidence for the targets is: where activations times gradients are largest. An output
    that is no batch of rows has no predicted class; with ``targets=None``, the map is then positive where the
    layer is most active.

    Example:
        >>> EigenCAM(model, ["conv"])(x).shape
        (2, 8, 8)
    """

    method: Method = Method(None, principal=True)


def last_spatial_layer(adapter: ModelAdapter, inputs: Inputs) -> str:
    """Find the last layer that has two spatial axes, both longer than 1, and that all information passes.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input.

    Returns:
        The name of the layer.

    Raises:
        LayerError: there is no such layer.
    """
    for info in reversed(adapter.layers(inputs)):
        shape = info.output_shape
        if shape is None or len(shape) != 3:
            continue
        places = Layout.of(shape, adapter.data_format).spatial_shape(shape)
        if min(places) > 1 and everything_passes(adapter, info.name, inputs):
            return info.name
    raise LayerError(
        "no layer with two spatial axes passes all information; name a layer with target_layers="
    )


def _single_image(inputs: Inputs, data_format: DataFormat) -> tuple[Array, int]:
    """Return the only array of the inputs, and its axis from left to right."""
    arrays = list(arrays_of(inputs))
    if len(arrays) != 1 or len(arrays[0].shape) < 3:
        raise InputError("aug_smooth mirrors the input from left to right, so it needs one batch of images")
    (image,) = arrays
    return image, 1 + Layout.of(image.shape[1:], data_format).spatial_axes[-1]


def _mirrored(framework: Framework, image: Array, axis: int) -> Array:
    backwards = framework.asarray(np.arange(int(image.shape[axis]))[::-1].copy(), like=image)
    return array_namespace(image).take(image, backwards, axis=axis)
