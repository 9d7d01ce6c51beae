"""Formulas of class activation maps: from the activations and gradients of a layer to a map of the input.

Every method multiplies the feature maps A of a layer by weights that come from the gradients G of a score,
sums over the channels and keeps the positive part. The methods differ only in the weights. Every formula
runs on the arrays of any framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck import saliency
from iba_core.errors import InputError
from iba_core.framework.comparison import epsilon_of
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import Array, array_namespace, host_array

Weighting = Callable[[Array, Array], Array]
"""``weighting(activations, gradients)``, both (B, C, *places): factors of the activations, of the same shape
or broadcasting to it."""

FloatArray = npt.NDArray[np.floating]


# -- weights ----------------------------------------------------------------------------------------


def grad_cam_weights(activations: Array, gradients: Array) -> Array:
    """Weight each channel by the mean of its gradient.

    R. Selvaraju et al., *Grad-CAM*, ICCV 2017, eq. 1, https://arxiv.org/abs/1610.02391.
    """
    return array_namespace(gradients).mean(gradients, axis=_places(gradients), keepdims=True)


def grad_cam_plus_plus_weights(activations: Array, gradients: Array, epsilon: float = 0.0) -> Array:
    """Weight each channel by its positive gradients, less where the activations are large.

    A. Chattopadhay et al., *Grad-CAM++*, WACV 2018, eqs. 14 and 19, https://arxiv.org/abs/1710.11063. If the
    score passes through an exponential, its second and third derivatives are powers of the gradient. ``g^2``
    cancels, and each gradient gets the weight ``1 / (2 + g sum(A))``. The paper takes A after a ReLU. Where a
    sum of activations is negative, the denominator can vanish or change its sign.

    Args:
        activations: A, (B, C, *places).
        gradients: g, of the same shape.
        epsilon: a constant that is added to the denominator of eq. 19, ``2 g^2 + g^3 sum(A)``. The paper has
            none. pytorch-grad-cam adds 1e-6. Where gradients are well below 1e-3, as they are deep in most
            networks, that constant outweighs the formula and the weights become third powers of gradients.

    Returns:
        Array (B, C, 1, ...), one weight per channel.

    Example:
        >>> activations, gradients = np.full((1, 1, 2), 3.0), np.array([[[1e-4, 2e-4]]])
        >>> bool(np.isclose(grad_cam_plus_plus_weights(activations, gradients), 1.5e-4, rtol=1e-3))
        True
        >>> bool(grad_cam_plus_plus_weights(activations, gradients, epsilon=1e-6) < 1e-5)
        True
    """
    xp = array_namespace(activations, gradients)
    totals = xp.sum(activations, axis=_places(activations), keepdims=True)
    positive = _positive_part(gradients)
    denominator = 2.0 + totals * positive
    if epsilon:
        denominator = denominator + _ratio(epsilon * xp.ones_like(positive), positive * positive)
    return xp.sum(_ratio(positive, denominator), axis=_places(gradients), keepdims=True)


def hires_cam_weights(activations: Array, gradients: Array) -> Array:
    """Weight each feature by its own gradient.

    R. Draelos and L. Carin, *Use HiResCAM instead of Grad-CAM*, 2020, https://arxiv.org/abs/2011.08891.
    """
    return gradients


def layer_cam_weights(activations: Array, gradients: Array) -> Array:
    """Weight each feature by its own gradient where that is positive, and by 0 elsewhere.

    P. Jiang et al., *LayerCAM*, IEEE Transactions on Image Processing 30, 2021, eq. 6.
    """
    return _positive_part(gradients)


def elementwise_weights(activations: Array, gradients: Array) -> Array:
    """Weight each feature by its own gradient where activation times gradient is positive, else by 0.

    The method that pytorch-grad-cam calls `GradCAMElementWise`: HiResCAM without its negative parts.
    """
    xp = array_namespace(gradients)
    return xp.where(activations * gradients > 0, gradients, xp.zeros_like(gradients))


def xgrad_cam_weights(activations: Array, gradients: Array) -> Array:
    """Weight each channel by the mean of its gradient, weighted with its activations.

    R. Fu et al., *Axiom-based Grad-CAM*, BMVC 2020, eq. 8, https://arxiv.org/abs/2008.02312. A channel whose
    activations sum to 0 gets the weight 0.
    """
    xp = array_namespace(activations, gradients)
    totals = xp.sum(activations, axis=_places(activations), keepdims=True)
    return _ratio(xp.sum(gradients * activations, axis=_places(gradients), keepdims=True), totals)


def _places(x: Array) -> tuple[int, ...]:
    return tuple(range(2, len(x.shape)))


def _positive_part(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with 0 as the result where the denominator is 0."""
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
    """Compute the maps of a batch at the resolution of the layer, before clipping and scaling.

    Args:
        activations: (B, *feature map), floating point.
        gradients: gradients of each image's score with respect to the activations, of the same shape; None
            if there is no `weighting`, and nothing to orient a principal component by.
        weighting: factors of the activations; None for the activations themselves.
        layout: meaning of the axes of one feature map.
        principal: take the first principal component of the weighted channels instead of their sum. It grows
            along with the evidence for the score, see `principal_component`: that sum; without `weighting`,
            the sum of activations times gradients.

    Returns:
        Array (B, *places), float32 or float64. The principal component is a NumPy array.

    Example:
        >>> activations = np.array([[[[1.0, 2.0]], [[3.0, 4.0]]]])
        >>> gradients = np.array([[[[1.0, 1.0]], [[0.0, 1.0]]]])
        >>> layout = Layout.of((2, 1, 2), "channels_first")
        >>> activation_maps(activations, gradients, grad_cam_weights, layout)
        array([[[2.5, 4. ]]])
    """
    xp = array_namespace(activations)
    maps = evidence = channels_first(activations, layout)
    if gradients is not None:
        slopes = channels_first(gradients, layout)
        evidence = maps * (hires_cam_weights if weighting is None else weighting)(maps, slopes)
        maps = maps if weighting is None else evidence
    if not principal:
        return xp.sum(maps, axis=1)
    return principal_component(maps, None if gradients is None else xp.sum(evidence, axis=1))


def principal_component(maps: Array, evidence: Array | None = None) -> FloatArray:
    """Project the channels onto their first principal component over the places, for each image.

    M. B. Muhammad and M. Yeasin, *Eigen-CAM*, IJCNN 2020, https://arxiv.org/abs/2008.00299, after the mean
    over the places is subtracted, as in pytorch-grad-cam. This leaves the sign of the component open. It is
    chosen so that the component is large where there is much evidence.

    Args:
        maps: (B, C, *places).
        evidence: for the score, at each place, (B, *places). If None, or if it says nothing about the sign,
            the sum of the squared channels: places at which the layer is active then count as evidence.

    Returns:
        Array (B, *places), computed in float64 on the host.

    Example:
        >>> maps = np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]])
        >>> principal_component(maps)
        array([[[-1.,  1.]]])
        >>> principal_component(maps, evidence=np.array([[[0.3, 0.2]]]))
        array([[[ 1., -1.]]])
    """
    features = host_array(maps).astype(np.float64)
    batch, channels, *places = features.shape
    component = unoriented_component(features).reshape(batch, -1)
    # The component has the mean 0, so that a constant in the evidence does not count.
    rises = np.einsum("bp,bp->b", component, np.square(features.reshape(batch, channels, -1)).sum(axis=1))
    if evidence is not None:
        wanted = host_array(evidence).astype(np.float64).reshape(batch, -1)
        agreement = np.einsum("bp,bp->b", component, wanted - wanted.mean(axis=1, keepdims=True))
        rises = np.where(agreement == 0, rises, agreement)
    oriented = np.where(rises[:, None] < 0, -component, component)
    return np.asarray(oriented.reshape(batch, *places))


def unoriented_component(maps: FloatArray) -> FloatArray:
    """Project the channels onto their first principal component, with the sign that the decomposition gives.

    Args:
        maps: (B, C, *places), float32 or float64.

    Returns:
        Array (B, *places), of the same dtype. `principal_component` chooses the sign.

    Example:
        >>> np.abs(unoriented_component(np.array([[[[1.0, 3.0]], [[5.0, 5.0]]]])))
        array([[[1., 1.]]])
    """
    batch, channels, *places = maps.shape
    vectors = maps.reshape(batch, channels, -1).swapaxes(1, 2)
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(np.einsum("bpc,bc->bp", centred, directions[:, 0]).reshape(batch, *places))


def component_with_positive_peak(maps: FloatArray) -> FloatArray:
    """Project the channels onto their first principal component, which is positive where it is largest.

    C.-T. Chung and J. J.-C. Ying, *Seg-Eigen-CAM*, Applied Sciences 15, 2025, eq. 13,
    https://doi.org/10.3390/app15137562.

    Args:
        maps: (B, C, *places), float32 or float64.

    Returns:
        Array (B, *places), of the same dtype.

    Example:
        >>> component_with_positive_peak(np.array([[[[0.0, 0.0, 3.0]], [[5.0, 5.0, 5.0]]]]))
        array([[[-1., -1.,  2.]]])
    """
    component = unoriented_component(maps)
    axes = tuple(range(1, component.ndim))
    falls = -component.min(axis=axes, keepdims=True) > component.max(axis=axes, keepdims=True)
    return np.where(falls, -component, component)


def to_unit_range(maps: Array, epsilon: float = 0.0) -> Array:
    """Shift and scale each map to the range from 0 to 1. A constant map becomes 0.

    A map is constant if its values differ by no more than rounding, at most 64 times that of the largest:
    scaled, such differences would look like a finding.

    Args:
        maps: (B, *places).
        epsilon: added to the greatest value before the division. pytorch-grad-cam adds 1e-7, so that fainter
            maps stay faint.

    Example:
        >>> to_unit_range(np.array([[-1.0, 1.0, 3.0], [7.0, 7.0, 7.0]]))
        array([[0. , 0.5, 1. ],
               [0. , 0. , 0. ]])
    """
    xp = array_namespace(maps)
    axes = tuple(range(1, len(maps.shape)))
    least, most = xp.min(maps, axis=axes, keepdims=True), xp.max(maps, axis=axes, keepdims=True)
    shifted, top = maps - least, most - least
    rounding = 64 * epsilon_of(maps) * xp.maximum(most, -least)
    return _ratio(xp.where(top > rounding, shifted, xp.zeros_like(shifted)), top + epsilon)


def resize_maps(maps: FloatArray, shape: Sequence[int]) -> FloatArray:
    """Resize maps, linearly between the centres of their places.

    Args:
        maps: (B, *places).
        shape: sizes of the spatial axes of the result, one for each spatial axis of the maps.

    Returns:
        Array (B, *shape).

    Raises:
        InputError: `shape` has another number of axes than a map.
    """
    require_same_axes(maps.shape[1:], shape)
    return saliency.resize_maps(maps, shape)


def require_same_axes(places: Sequence[int], shape: Sequence[int]) -> None:
    """Check that a map can be resized to the input.

    Raises:
        InputError: it has another number of axes.
    """
    if len(shape) != len(places):
        raise InputError(
            f"a map of shape {tuple(places)} does not fit an input of shape {tuple(shape)}, which has "
            f"another number of axes; give a reshape_transform that makes feature maps of the layer's output"
        )


def combine_layers(layers: Iterable[Array], shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Combine the maps of several layers into one map of the input.

    The positive part of each map is scaled to [0, 1] and resized. The mean over the layers is scaled to
    [0, 1] again.

    Args:
        layers: maps (B, *places), each at the resolution of its layer.
        shape: spatial shape of the input.

    Returns:
        Array (B, *shape), in [0, 1].

    Example:
        >>> combine_layers([np.array([[[-1.0, 1.0, 2.0]]]), np.array([[[0.0, 4.0, 4.0]]])], (1, 3))
        array([[[0.  , 0.75, 1.  ]]], dtype=float32)
    """
    resized = [resize_maps(host_array(to_unit_range(_positive_part(maps))), shape) for maps in layers]
    return np.asarray(to_unit_range(np.mean(resized, axis=0)), dtype=np.float32)


def channels_first(features: Array, layout: Layout) -> Array:
    """Arrange features as (B, C, *places), tokens folded into their grid, in float32 or float64."""
    xp = array_namespace(features)
    features = features if features.dtype == xp.float64 else xp.astype(features, xp.float32)
    maps = xp.permute_dims(features, (0, *(axis + 1 for axis in layout.to_channels_first())))
    if layout.tokens is None:
        return maps
    places = layout.places([int(size) for size in features.shape[1:]])
    return xp.reshape(maps[:, :, layout.tokens.prefix :], (*(int(size) for size in maps.shape[:2]), *places))
