"""Class activation maps: where in a picture the evidence for an output, or for a concept, lies.

The classes and their arguments are those of the package pytorch-grad-cam (J. Gildenblat and others). They
serve models of every framework, through its adapter; the formulas are in `iba_core.concepts.activation_maps`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

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
from iba_core.framework.adapter import Inputs, Model, ModelAdapter, Split, find_adapter
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import arrays_of, batch_size, take
from iba_core.framework.layout import DataFormat, Layout, Tokens
from iba_core.framework.namespace import Array, array_namespace, host_array
from iba_core.targets import Target, as_target, common_layer, main_output

ReshapeTransform = Callable[[Array], Array] | Tokens
"""How to read a layer whose features are no feature map: a function of its output (B, ...) that returns
feature maps, the channels where the model's input has them; or `Tokens`."""

_BRIGHTNESS = (0.9, 1.0, 1.1)


class Method(NamedTuple):
    """What tells one kind of class activation map from another."""

    weighting: Weighting | None
    """Factors of the activations; None for the activations themselves, which need no gradients."""
    principal: bool = False
    """Whether the channels' principal component is always taken, not only on demand."""


class BaseCAM:
    """A method of making class activation maps for one model of any framework.

    The model is left as it was after each call, so that the context manager has nothing to undo; it is
    there because code written for pytorch-grad-cam uses it.

    Args:
        model: a trained model of any framework that a backend serves.
        target_layers: the layer to look at, an object or its name, or a list of several, whose maps are
            averaged. Behind it should come what makes the output of it, and it should still resolve the
            image: typically the last convolutional block. None for the last layer that has two spatial
            axes and that everything passes.
        reshape_transform: how to read a layer whose output is a sequence of tokens, such as
            ``Tokens(prefix=1, grid=(14, 14))`` for a vision transformer, or a function that makes feature
            maps of its output.

    Raises:
        InputError: no backend serves the model.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> with GradCAM(model, target_layers=[model.layer4[-1]]) as cam:  # doctest: +SKIP
        ...     maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(281)])
    """

    method: ClassVar[Method]

    def __init__(
        self,
        model: Model,
        target_layers: Any = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        self.adapter = find_adapter(model)
        self.model = model
        several = isinstance(target_layers, (list, tuple))
        if several and not target_layers:
            raise InputError("target_layers is empty; name a layer, or leave it out for the last that fits")
        self.target_layers = None if target_layers is None else target_layers if several else [target_layers]
        self.reshape_transform = reshape_transform
        # A cut is kept, since a framework that compiles the head does so once for each.
        self._cut = lru_cache(maxsize=16)(self.adapter.cut)
        for layer in self.target_layers or ():
            self._cut(layer, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is left to undo; exceptions pass."""

    def __call__(
        self,
        input_tensor: Inputs,
        targets: Any = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Maps of a batch of images.

        Args:
            input_tensor: inputs with a leading batch axis, (B, ...), arrays of NumPy or of the model's
                framework.
            targets: what to look for: None for the class predicted; a list with one entry per image, each
                a callable that maps the output for that image to a score, the index of a class, a
                `ConceptEmbedding`, or a `Target`; or one of these for all images.
            aug_smooth: average the maps of the images and their mirror images, each also darker and
                brighter by a tenth: six times the work.
            eigen_smooth: take the first principal component of the weighted channels instead of their sum.

        Returns:
            Array (B, H, W), or as many spatial axes as the input has, each map from 0 to 1.

        Raises:
            InputError: inputs that are empty or not finite, targets that do not fit, or a layer that
                cannot be laid over the input.
            LayerError: a layer does not run, or runs more than once and it is not said which call is meant.
        """
        inputs = self.adapter.to_inputs(input_tensor)
        if not batch_size(inputs):
            raise InputError("input_tensor is an empty batch")
        for array in arrays_of(inputs):
            require_finite(self.adapter.to_numpy(array), "input_tensor")
        wanted = self._wanted(targets, batch_size(inputs))
        if self.target_layers is None:
            self.target_layers = [last_spatial_layer(self.adapter, take(inputs, 0, 1))]
        until = common_layer(target.layer for target in wanted)
        cuts = [self._cut(layer, until) for layer in self.target_layers]
        principal = eigen_smooth or self.method.principal
        if not aug_smooth:
            return self._maps(cuts, inputs, wanted, principal)
        image, axis = _single_image(inputs, cuts[0].input_format)
        mirrored = _mirrored(self.adapter, image, axis)
        straight = [self._maps(cuts, image * factor, wanted, principal) for factor in _BRIGHTNESS]
        crosswise = [self._maps(cuts, mirrored * factor, wanted, principal) for factor in _BRIGHTNESS]
        views = [*straight, *(maps[..., ::-1] for maps in crosswise)]
        return np.asarray(np.mean(views, axis=0), dtype=np.float32)

    def _maps(
        self, cuts: list[Split], inputs: Inputs, wanted: list[_Wanted], principal: bool
    ) -> npt.NDArray[np.float32]:
        shape = tuple(int(size) for size in next(arrays_of(inputs)).shape[1:])
        spatial = Layout.of(shape, cuts[0].input_format).spatial_shape(shape)
        return combine_layers((self._layer_maps(cut, inputs, wanted, principal) for cut in cuts), spatial)

    def _layer_maps(self, cut: Split, inputs: Inputs, wanted: list[_Wanted], principal: bool) -> Array:
        gradients = None
        if self.method.weighting is None:
            activations = cut.features(inputs)
        else:
            with cut.open(inputs) as head:
                activations = head.features

                def score(z: Array) -> tuple[Array, tuple[()]]:
                    outputs = main_output(cut.tail(z, head.carry))
                    return sum(target.score(outputs[target.images]) for target in wanted), ()

                *_, gradients = self.adapter.value_and_grad(score, activations)
        transform, tokens, data_format = self.reshape_transform, None, cut.data_format
        if isinstance(transform, Tokens):
            tokens = transform
        elif transform is not None:
            activations = transform(activations)
            gradients = None if gradients is None else transform(gradients)
            data_format = cut.input_format
        layout = Layout.of(activations.shape[1:], data_format, tokens)
        return activation_maps(activations, gradients, self.method.weighting, layout, principal)

    def _wanted(self, targets: Any, images: int) -> list[_Wanted]:
        if hasattr(targets, "shape"):
            targets = host_array(targets).tolist()
        if isinstance(targets, (list, tuple)):
            if len(targets) != images:
                raise InputError(f"{len(targets)} targets are given for {images} images; give one for each")
            return [self._want(target, slice(i, i + 1)) for i, target in enumerate(targets)]
        return [self._want(targets, slice(0, images))]

    def _want(self, target: Any, images: slice) -> _Wanted:
        if target is None or isinstance(target, (int, np.integer)):
            target = ClassifierOutputTarget(None if target is None else int(target))
        elif not callable(target):
            target = as_target(target)

        def score(outputs: Array) -> Array:
            xp = array_namespace(outputs)
            if isinstance(target, Target) and not isinstance(target, ScoredOutput):
                loss, rows = target.resolve(self.adapter.to_numpy(outputs))
                return -xp.sum(loss(outputs, *(self.adapter.asarray(row, like=outputs) for row in rows)))
            return sum(xp.sum(target(outputs[i])) for i in range(int(outputs.shape[0])))

        return _Wanted(images, score, getattr(target, "layer", None) if isinstance(target, Target) else None)


class _Wanted(NamedTuple):
    """What to look for in some images of a batch."""

    images: slice
    score: Callable[[Array], Array]
    """Maps the outputs for these images to a scalar."""
    layer: Any
    """Layer whose output that is, None for the model's."""


class GradCAM(BaseCAM):
    """Grad-CAM, see `grad_cam_weights`; arguments as of `BaseCAM`."""

    method = Method(grad_cam_weights)


class GradCAMPlusPlus(BaseCAM):
    """Grad-CAM++, see `grad_cam_plus_plus_weights`; arguments as of `BaseCAM`."""

    method = Method(grad_cam_plus_plus_weights)


class HiResCAM(BaseCAM):
    """HiResCAM, see `hires_cam_weights`; arguments as of `BaseCAM`."""

    method = Method(hires_cam_weights)


class LayerCAM(BaseCAM):
    """LayerCAM, see `layer_cam_weights`; arguments as of `BaseCAM`."""

    method = Method(layer_cam_weights)


class XGradCAM(BaseCAM):
    """XGrad-CAM, see `xgrad_cam_weights`; arguments as of `BaseCAM`."""

    method = Method(xgrad_cam_weights)


class EigenCAM(BaseCAM):
    """Eigen-CAM, see `principal_component`; it looks at the layer alone, whatever the targets."""

    method = Method(None, principal=True)


def last_spatial_layer(adapter: ModelAdapter, inputs: Inputs) -> str:
    """Name of the last layer with two spatial axes, more than one place, and no way around it.

    Args:
        adapter: adapter of the model.
        inputs: a batch of one input.

    Raises:
        LayerError: there is none; name a layer.
    """
    for info in reversed(adapter.layers(inputs)):
        shape = info.output_shape
        if shape is None or len(shape) != 3:
            continue
        places = Layout.of(shape, adapter.data_format).spatial_shape(shape)
        if min(places) > 1 and everything_passes(adapter, info.name, inputs):
            return info.name
    raise LayerError("no layer with two spatial axes lets all information pass; name one with target_layers=")


def _single_image(inputs: Inputs, data_format: DataFormat) -> tuple[Array, int]:
    """The only array of the inputs, and its axis from left to right."""
    arrays = list(arrays_of(inputs))
    if len(arrays) != 1 or len(arrays[0].shape) < 3:
        raise InputError("aug_smooth mirrors the input from left to right; it takes one batch of images")
    (image,) = arrays
    return image, 1 + Layout.of(image.shape[1:], data_format).spatial_axes[-1]


def _mirrored(adapter: ModelAdapter, image: Array, axis: int) -> Array:
    backwards = adapter.asarray(np.arange(int(image.shape[axis]))[::-1].copy(), like=image)
    return array_namespace(image).take(image, backwards, axis=axis)
