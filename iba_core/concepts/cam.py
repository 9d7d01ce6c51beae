"""Class activation maps: show where in an image the evidence for an output, or for a concept, lies.

The classes have the names and arguments of the package pytorch-grad-cam (J. Gildenblat and others). They
work for models of every framework, through the model's adapter. The formulas are in
`iba_core.concepts.activation_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

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
    channels_first,
    combine_layers,
    elementwise_weights,
    grad_cam_plus_plus_weights,
    grad_cam_weights,
    hires_cam_weights,
    layer_cam_weights,
    xgrad_cam_weights,
)
from iba_core.concepts.perturbation_maps import ablation_weights, score_cam_weights
from iba_core.concepts.targets import ClassifierOutputTarget, ScoredOutput
from iba_core.default_layer import everything_passes
from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import (
    Inputs,
    MixedImagesError,
    Model,
    ModelAdapter,
    Split,
    Tail,
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
        image, layout = _single_image(
            inputs, splits[0].input_format, "aug_smooth mirrors the input from left to right"
        )
        mirrored = _mirrored(self.adapter.framework, image, 1 + layout.spatial_axes[-1])
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
        maps = [self._turned(each, split) for each, split in zip(maps, splits, strict=True)]
        return combine_layers(maps, Layout.of(shape, splits[0].input_format).spatial_shape(shape))

    def _turned(self, maps: Array, split: Split, lead: int = 1) -> npt.NDArray[np.floating]:
        """Maps with `lead` axes before those of the places, which are put in the order of the input's."""
        found: npt.NDArray[np.floating] = host_array(maps)
        transform = self.reshape_transform
        if not (transform is None or isinstance(transform, Tokens)):
            return found  # The user's own function puts them in order.
        ndim = 2 if transform else found.ndim - lead + 1
        return split.map_order(Layout.of([1] * ndim, split.data_format, transform)).turn(found)

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
        activations, layout = self._read(activations, split)
        gradients = None if gradients is None else self._read(gradients, split)[0]
        return activation_maps(activations, gradients, self.method.weighting, layout, principal)

    def _read(self, features: Array, split: Split) -> tuple[Array, Layout]:
        """Feature maps, or their gradients, in the form that the user gave, and the meaning of their axes."""
        transform = self.reshape_transform
        if transform is None or isinstance(transform, Tokens):
            return features, Layout.of(features.shape[1:], split.data_format, transform)
        features = transform(features)
        return features, Layout.of(features.shape[1:], split.input_format)

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
            return _Wanted(images, None, _predicted_if_any, None)
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

        layer = getattr(target, "layer", None) if isinstance(target, Target) else None
        return _Wanted(images, target, score, layer)


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
    target: Any
    """A `Target`, or a function of the output for one image."""
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


class EigenGradCAM(BaseCAM):
    """Eigen-CAM of activations times gradients, see `principal_component` and `hires_cam_weights`.

    The component is positive where activations times gradients are largest. `BaseCAM` has the arguments.

    Example:
        >>> EigenGradCAM(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    method: Method = Method(hires_cam_weights, principal=True)


class GradCAMElementWise(BaseCAM):
    """HiResCAM of the positive products alone: see `elementwise_weights`, and `BaseCAM` for the arguments.

    Example:
        >>> GradCAMElementWise(model, ["conv"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    method: Method = Method(elementwise_weights)


class _MeasuredCAM(BaseCAM):
    """A method that measures the weights of the channels by running the model, without gradients."""

    method: Method = Method(hires_cam_weights)

    _batch: ClassVar[int]

    def __init__(
        self,
        model: Model,
        target_layers: Any = None,
        reshape_transform: ReshapeTransform | None = None,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        batch_size = self._batch if batch_size is None else require_whole("batch_size", batch_size, 1)
        super().__init__(model, target_layers, reshape_transform, **options)
        self.batch_size = batch_size

    def _maps_of_all(self, split: Split, inputs: Inputs, wanted: list[_Wanted], principal: bool) -> Array:
        with split.head(inputs) as tail:
            activations, layout = self._read(tail.features, split)
            maps = channels_first(activations, layout)
            outputs = main_output(tail(tail.features), self.output)
            measures = [scores for one in wanted for scores in self._measures(one, outputs)]
            end_layer = common_layer(one.layer for one in wanted)
            weights = self._weights(_Measured(inputs, split, end_layer, tail, outputs, maps, measures))
        factors = np.reshape(weights, (*weights.shape, *(1 for _ in maps.shape[2:])))
        factors = self.adapter.framework.asarray(factors, like=maps)
        in_order = Layout.of(maps.shape[1:], "channels_first")
        return activation_maps(maps, factors, self.method.weighting, in_order, principal)

    def _weights(self, found: _Measured) -> npt.NDArray[np.float64]:
        """Weights (B, C) of the channels."""
        raise NotImplementedError

    def _measures(self, wanted: _Wanted, outputs: Array) -> list[_Measure]:
        """For each image, the function that scores outputs for versions of it.

        What a target reads from the unrestricted outputs, such as the class predicted, stays.
        """
        framework, target = self.adapter.framework, wanted.target
        whole = outputs[wanted.images]
        images = range(int(whole.shape[0]))
        if not isinstance(target, Target) or (
            isinstance(target, ScoredOutput) and not isinstance(target, ClassifierOutputTarget)
        ):
            return [partial(_scores_of_rows, framework, target)] * len(images)
        loss, settings = target.resolve(framework.to_numpy(whole))

        def measure(image: int) -> _Measure:
            def scores(rows: Array) -> npt.NDArray[Any]:
                copies = (
                    framework.asarray(
                        np.repeat(row[image : image + 1], int(rows.shape[0]), axis=0), like=rows
                    )
                    for row in settings
                )
                return -framework.to_numpy(loss(rows, *copies))

            return scores

        return [measure(image) for image in images]


_Measure = Callable[[Array], npt.NDArray[Any]]
"""``scores(outputs)``: scores (S,) of outputs (S, ...) for versions of one image."""


def _scores_of_rows(framework: Framework, target: Callable[[Array], Any], outputs: Array) -> npt.NDArray[Any]:
    rows = (outputs[i] for i in range(int(outputs.shape[0])))
    return np.array([np.sum(framework.to_numpy(_score(target(row)))) for row in rows])


class _Measured(NamedTuple):
    """What a method measures at."""

    inputs: Inputs
    split: Split
    end_layer: Any
    """Layer that gives the outputs; None for the model's own output."""
    tail: Tail
    outputs: Array
    """Outputs for the whole images."""
    maps: Array
    """The activations, (B, C, *places)."""
    measures: list[_Measure]
    """One for each image."""


class ScoreCAM(_MeasuredCAM):
    """Score-CAM: each channel is weighted by the score of the image that is seen through it.

    See `score_cam_weights` for the formula. The model runs once for each channel, so this takes long. A
    target may be a score that has no gradient.

    Args:
        model: see `BaseCAM`. It must take one batch of images.
        target_layers: see `BaseCAM`.
        reshape_transform: see `BaseCAM`.
        batch_size: how many masked images the model sees at once; 16 by default. It can be changed later.
        **options: `data_format`, `shared` and `output`, see `BaseCAM`.

    Raises:
        InputError: no backend serves the model, or `batch_size` is not positive.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> ScoreCAM(model, ["conv"], batch_size=4)(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    _batch = 16

    def _weights(self, found: _Measured) -> npt.NDArray[np.float64]:
        images, layout = _single_image(
            found.inputs, found.split.input_format, "ScoreCAM puts masks over the input"
        )
        xp = array_namespace(images)

        def score(image: int, masks: Array) -> npt.NDArray[Any]:
            masks = xp.expand_dims(xp.astype(masks, images.dtype), axis=layout.channel_axis + 1)
            masked = images[image : image + 1] * masks
            if found.end_layer is None:
                outputs = self.adapter.predict(masked)
            else:
                outputs = self._split(found.end_layer).features(masked)
            return found.measures[image](main_output(outputs, self.output))

        shape = layout.spatial_shape([int(size) for size in images.shape[1:]])
        maps = self._turned(found.maps, found.split, lead=2)
        maps = self.adapter.framework.asarray(maps, like=found.maps)
        return score_cam_weights(maps, shape, score, 1 if found.tail.one_by_one else self.batch_size)


class AblationCAM(_MeasuredCAM):
    """Ablation-CAM: each channel is weighted by the share of the score that is lost without it.

    See `ablation_weights` for the formula. The part of the model after the layer runs once for each channel.

    Args:
        model: see `BaseCAM`.
        target_layers: see `BaseCAM`.
        reshape_transform: see `BaseCAM`. A function must keep the channels in their order.
        batch_size: how many versions of the feature maps the model sees at once; 32 by default. It can be
            changed later.
        **options: `data_format`, `shared` and `output`, see `BaseCAM`.

    Raises:
        InputError: no backend serves the model, or `batch_size` is not positive.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> AblationCAM(model, ["relu"])(x, targets=[2, 0]).shape
        (2, 8, 8)
    """

    _batch = 32

    def _weights(self, found: _Measured) -> npt.NDArray[np.float64]:
        features, tail, framework = found.tail.features, found.tail, self.adapter.framework
        xp = array_namespace(features)
        sizes = [int(size) for size in features.shape]
        axis = 1 + Layout.of(sizes[1:], found.split.data_format).channel_axis
        images, channels = sizes[0], sizes[axis]
        if channels != int(found.maps.shape[1]):
            raise InputError(
                f"reshape_transform makes {int(found.maps.shape[1])} channels of {channels}; AblationCAM "
                "takes away channels of the layer, so give a transform that keeps them"
            )

        def scores(chunk: range) -> npt.NDArray[Any]:
            """Scores (B, S) with each of the channels of a chunk set to 0."""
            count = len(chunk)
            kept = 1.0 - np.eye(channels)[chunk]
            kept = kept.reshape(1, count, *(channels if i == axis else 1 for i in range(1, len(sizes))))
            versions = xp.expand_dims(features, axis=1) * framework.asarray(kept, like=features)
            outputs = main_output(tail(xp.reshape(versions, (images * count, *sizes[1:]))), self.output)
            rows = (outputs[i * count : (i + 1) * count] for i in range(images))
            return np.stack([measure(own) for measure, own in zip(found.measures, rows, strict=True)])

        at_once = 1 if tail.one_by_one else max(1, self.batch_size // images)
        chunks = [range(channels)[start : start + at_once] for start in range(0, channels, at_once)]
        whole = [measure(found.outputs[i : i + 1])[0] for i, measure in enumerate(found.measures)]
        return ablation_weights(whole, np.concatenate([scores(chunk) for chunk in chunks], axis=1))


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


def _single_image(inputs: Inputs, data_format: DataFormat, purpose: str) -> tuple[Array, Layout]:
    """Return the only array of the inputs, and the meaning of its axes."""
    arrays = list(arrays_of(inputs))
    if len(arrays) != 1 or len(arrays[0].shape) < 3:
        raise InputError(f"{purpose}, so it needs one batch of images")
    (image,) = arrays
    return image, Layout.of(image.shape[1:], data_format)


def _mirrored(framework: Framework, image: Array, axis: int) -> Array:
    backwards = framework.asarray(np.arange(int(image.shape[axis]))[::-1].copy(), like=image)
    return array_namespace(image).take(image, backwards, axis=axis)
