"""From the activations and gradients of a layer to a map of the input: the formulas of class activation maps.

All of these methods weight the feature maps A of a layer by what the gradients G of a score say about them,
sum over the channels and keep what is positive; they differ in the weights alone. Every formula runs on the
arrays of any framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck import saliency
from iba_core.errors import InputError
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace, host_array

Weighting = Callable[[Array, Array], Array]
"""``weighting(activations, gradients)``, both (B, C, *places): factors of the activations, of the same shape
or broadcasting to it."""

FloatArray = npt.NDArray[np.floating]


# -- weights ----------------------------------------------------------------------------------------


def grad_cam_weights(activations: Array, gradients: Array) -> Array:
    """Each channel by the mean of its gradient.

    R. Selvaraju et al., *Grad-CAM*, ICCV 2017, eq. 1, https://arxiv.org/abs/1610.02391.
    """
    return array_namespace(gradients).mean(gradients, axis=_places(gradients), keepdims=True)


def grad_cam_plus_plus_weights(activations: Array, gradients: Array) -> Array:
    """Each channel by its positive gradients, those of large activations less.

    A. Chattopadhay et al., *Grad-CAM++*, WACV 2018, eqs. 14 and 19, https://arxiv.org/abs/1710.11063. With
    the score behind an exponential, the second and third derivatives are the powers of the gradient, of which
    ``g^2`` cancels: each gradient weighs ``1 / (2 + g sum(A))``.
    """
    xp = array_namespace(activations, gradients)
    totals = xp.sum(activations, axis=_places(activations), keepdims=True)
    positive = xp.maximum(gradients, xp.zeros_like(gradients))
    return xp.sum(_ratio(positive, 2.0 + totals * positive), axis=_places(gradients), keepdims=True)


def hires_cam_weights(activations: Array, gradients: Array) -> Array:
    """Each feature by its own gradient.

    R. Draelos and L. Carin, *Use HiResCAM instead of Grad-CAM*, 2020, https://arxiv.org/abs/2011.08891.
    """
    return gradients


def layer_cam_weights(activations: Array, gradients: Array) -> Array:
    """Each feature by its own gradient where that is positive.

    P. Jiang et al., *LayerCAM*, IEEE Transactions on Image Processing 30, 2021, eq. 6.
    """
    return array_namespace(gradients).maximum(gradients, array_namespace(gradients).zeros_like(gradients))


def xgrad_cam_weights(activations: Array, gradients: Array) -> Array:
    """Each channel by the mean of its gradient, weighted with its activations.

    R. Fu et al., *Axiom-based Grad-CAM*, BMVC 2020, eq. 8, https://arxiv.org/abs/2008.02312. A channel whose
    activations sum to 0 counts for nothing.
    """
    xp = array_namespace(activations, gradients)
    totals = xp.sum(activations, axis=_places(activations), keepdims=True)
    return _ratio(xp.sum(gradients * activations, axis=_places(gradients), keepdims=True), totals)


def _places(x: Array) -> tuple[int, ...]:
    return tuple(range(2, len(x.shape)))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is."""
    xp = array_namespace(denominator)
    zero = denominator == 0
    quotient = numerator / xp.where(zero, xp.ones_like(denominator), denominator)
    return xp.where(zero, xp.zeros_like(quotient), quotient)


# -- maps -------------------------------------------------------------------------------------------


def activation_maps(
    activations: Array,
    gradients: Array | None,
    weighting: Weighting | None,
    layout: Layout,
    principal: bool = False,
) -> Array:
    """Maps of a batch at the resolution of the layer, before anything is cut off or scaled.

    Args:
        activations: (B, *feature map), floating point.
        gradients: of each image's score with respect to them, likewise; None if `weighting` is.
        weighting: factors of the activations; None for the activations themselves.
        layout: meaning of the axes of one feature map.
        principal: take the channels' first principal component instead of their sum.

    Returns:
        Array (B, *places), in float32 at least. The principal component is a NumPy array.
    """
    maps = _channels_first(activations, layout)
    if weighting is not None:
        maps = weighting(maps, _channels_first(gradients, layout)) * maps
    return principal_component(maps) if principal else array_namespace(maps).sum(maps, axis=1)


def principal_component(maps: Array) -> FloatArray:
    """First principal component of the channels over the places, for each image.

    M. B. Muhammad and M. Yeasin, *Eigen-CAM*, IJCNN 2020, https://arxiv.org/abs/2008.00299, with the mean
    over the places taken off first. A component has no sign of its own: it is given the one with which it
    grows along with the sum of the channels.

    Args:
        maps: (B, C, *places).

    Returns:
        Array (B, *places), computed in float64 on the host.
    """
    features = host_array(maps).astype(np.float64)
    batch, channels, *places = features.shape
    vectors = features.reshape(batch, channels, -1).swapaxes(1, 2)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    component = np.einsum("bpc,bc->bp", centred, directions[:, 0])
    falls = np.einsum("bp,bp->b", component, centred.sum(axis=2)) < 0
    oriented = np.where(falls[:, None], -component, component)
    return np.asarray(oriented.reshape(batch, *places))


def to_unit_range(maps: Array) -> Array:
    """Each map shifted and scaled to reach from 0 to 1; one that is the same everywhere becomes 0.

    Args:
        maps: (B, *places).
    """
    xp = array_namespace(maps)
    axes = tuple(range(1, len(maps.shape)))
    shifted = maps - xp.min(maps, axis=axes, keepdims=True)
    return _ratio(shifted, xp.max(shifted, axis=axes, keepdims=True))


def resize_maps(maps: FloatArray, shape: Sequence[int]) -> FloatArray:
    """Maps resized linearly between the centres of their places.

    Args:
        maps: (B, *places).
        shape: sizes of the spatial axes of the result, as many as there are places' axes.

    Raises:
        InputError: another number of axes.
    """
    if len(shape) != maps.ndim - 1:
        raise InputError(
            f"a map with {maps.ndim - 1} axes, {maps.shape[1:]}, does not fit an input with {len(shape)}, "
            f"{tuple(shape)}; reshape_transform says how the layer's output is to be read"
        )
    return saliency.resize_maps(maps, shape)


def combine_layers(layers: Iterable[Array], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """One map of the input from the maps of several layers.

    What is positive of each is scaled to [0, 1] and resized; their mean is scaled to [0, 1] again.

    Args:
        layers: maps (B, *places), each at the resolution of its layer.
        shape: spatial shape of the input.

    Returns:
        Array (B, *shape), in [0, 1].
    """
    resized = []
    for maps in layers:
        positive = array_namespace(maps).maximum(maps, array_namespace(maps).zeros_like(maps))
        resized.append(resize_maps(host_array(to_unit_range(positive)), shape))
    return np.asarray(to_unit_range(np.mean(resized, axis=0)), dtype=np.float32)


def _channels_first(features: Array, layout: Layout) -> Array:
    """(B, C, *places), tokens folded into their grid, in float32 at least."""
    xp = array_namespace(features)
    features = features if features.dtype == xp.float64 else xp.astype(features, xp.float32)
    maps = xp.permute_dims(features, (0, *(axis + 1 for axis in layout.to_channels_first())))
    if layout.tokens is None:
        return maps
    places = layout.places([int(size) for size in features.shape[1:]])
    return xp.reshape(maps[:, :, layout.tokens.prefix :], (*(int(size) for size in maps.shape[:2]), *places))
