"""Formulas of class activation maps that need no gradient of the features: Score-CAM, Ablation-CAM, FullGrad.

The weight of a channel is measured: the model runs on a masked input, or without the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.resizing import resizing_matrix
from iba_core.concepts.activation_maps import (
    FloatArray,
    require_same_axes,
    resize_maps,
    to_unit_range,
    unoriented_component,
)
from iba_core.framework.namespace import Array, array_namespace, softmax

_MASK_EPSILON = 1e-8

_OUTSIDE = 0.01
"""Size of a principal component below which a place counts as empty."""


def activation_masks(activations: Array, shape: Sequence[int]) -> Array:
    """Enlarge activations to the size of the input, each scaled to the range from 0 to 1.

    H. Wang et al., *Score-CAM*, CVPR Workshops 2020, eqs. 4 and 6, https://arxiv.org/abs/1910.01279. The
    corners of an activation lie on the corners of the input, as in pytorch-grad-cam.

    Args:
        activations: (N, *places), floating point.
        shape: sizes of the spatial axes of the input.

    Returns:
        Array (N, *shape). A constant activation gives 0.

    Raises:
        InputError: `shape` has another number of axes than an activation.

    Example:
        >>> activation_masks(np.array([[2.0, 4.0]]), (5,))
        array([[0.  , 0.25, 0.5 , 0.75, 1.  ]])
    """
    xp = array_namespace(activations)
    _, *places = (int(size) for size in activations.shape)
    require_same_axes(places, shape)
    masks = activations
    for size, wanted in zip(places, shape, strict=True):
        matrix = xp.asarray(
            resizing_matrix(size, wanted, True).T.copy(), dtype=masks.dtype, device=masks.device
        )
        # The first spatial axis goes to the end, is resized there, and stays there.
        order = (0, *range(2, len(masks.shape)), 1)
        masks = xp.matmul(xp.permute_dims(masks, order), matrix)
    return to_unit_range(masks, _MASK_EPSILON)


def score_cam_weights(
    activations: Array,
    shape: Sequence[int],
    score: Callable[[int, Array], npt.ArrayLike],
    batch_size: int,
) -> npt.NDArray[np.float64]:
    """Weight each channel by the score of the input that is multiplied with the channel's mask.

    Score-CAM, eqs. 5 and 7: the softmax, over the channels, of the increase of the score. The score of the
    empty input, which is subtracted there, cancels in the softmax.

    Args:
        activations: (B, C, *places).
        shape: sizes of the spatial axes of the input.
        score: ``score(image, masks)``: scores (S,) of an image, given by its number, that is multiplied with
            each of the masks (S, *shape).
        batch_size: how many masks to give at once.

    Returns:
        Array (B, C); the weights of an image sum to 1.

    Example:
        >>> activations = np.array([[[[0.0, 1.0]], [[1.0, 0.0]]]])
        >>> right = lambda image, masks: masks[:, 0, 1] * np.log(3.0)
        >>> score_cam_weights(activations, (1, 2), right, batch_size=16).round(6)
        array([[0.75, 0.25]])
    """
    images, channels = (int(size) for size in activations.shape[:2])
    scores = np.zeros((images, channels))
    for image in range(images):
        for start in range(0, channels, batch_size):
            chunk = activations[image, start : start + batch_size]
            scores[image, start : start + batch_size] = score(image, activation_masks(chunk, shape))
    return np.asarray(softmax(scores, axis=1))


def ablation_weights(scores: npt.ArrayLike, ablated: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Weight each channel by the share of the score that is lost without it.

    S. Desai and H. Ramaswamy, *Ablation-CAM*, WACV 2020, eq. 3.

    Args:
        scores: (B,), of the whole input.
        ablated: (B, C), with each channel set to 0.

    Returns:
        Array (B, C): ``(score - ablated) / score``, and 0 where the score is 0.

    Example:
        >>> ablation_weights([4.0], [[3.0, 4.0]])
        array([[0.25, 0.  ]])
    """
    whole = np.asarray(scores, dtype=np.float64)[:, None]
    drop = whole - np.asarray(ablated, dtype=np.float64)
    return np.divide(drop, whole, out=np.zeros_like(drop), where=whole != 0)


def channels_to_ablate(activations: FloatArray, ratio: float) -> npt.NDArray[np.int32]:
    """Choose the channels whose weights are worth measuring, as pytorch-grad-cam does to save time.

    A channel counts for the share of its activity that lies where the layer's principal component differs
    from its smallest size.

    Args:
        activations: of one image, (C, *places).
        ratio: share of the channels to take from the top of the list, and again from its end; 1 for all
            channels.

    Returns:
        Numbers of channels.

    Example:
        >>> channels_to_ablate(np.zeros((4, 2, 2)), 1.0)
        array([0, 1, 2, 3], dtype=int32)
    """
    if ratio == 1.0:
        return np.arange(len(activations), dtype=np.int32)
    size = to_unit_range(np.abs(unoriented_component(activations[None])))
    activity = to_unit_range(np.abs(activations))
    axes = tuple(range(1, activity.ndim))
    total = activity.sum(axis=axes)
    inside = (activity * (size > _OUTSIDE)).sum(axis=axes)
    order = np.argsort(np.divide(inside, total, out=np.zeros_like(total), where=total > 0))
    count = int(len(order) * ratio)
    return np.concatenate([order[::-1][:count], order[:count]]).astype(np.int32)


def full_gradient_maps(contributions: FloatArray, shape: Sequence[int], epsilon: float = 0.0) -> FloatArray:
    """Bring the contributions of a layer's biases, or of the input, to the size of the input.

    S. Srinivas and F. Fleuret, *Full-Gradient Representation*, NeurIPS 2019, section 4,
    https://arxiv.org/abs/1905.00780: the absolute value, scaled to the range from 0 to 1, resized linearly.
    Each channel is scaled by itself, as in pytorch-grad-cam.

    Args:
        contributions: (B, C, *places): biases times the gradient of the score with respect to the output of
            their layer; or the input times the gradient with respect to it.
        shape: sizes of the spatial axes of the input.
        epsilon: see `to_unit_range`.

    Returns:
        Array (B, C, *shape), from 0 to 1.

    Example:
        >>> full_gradient_maps(np.array([[[-4.0, 2.0]]]), (2,))
        array([[[1., 0.]]])
    """
    batch, channels, *places = contributions.shape
    scaled = to_unit_range(np.abs(contributions).reshape(batch * channels, *places), epsilon)
    return resize_maps(scaled, shape).reshape(batch, channels, *shape)


def combine_full_gradients(maps: Iterable[FloatArray]) -> FloatArray:
    """Sum the maps of the input and of all layers over their channels.

    Args:
        maps: (B, C, *shape) each, from `full_gradient_maps`.

    Returns:
        Array (B, *shape).

    Example:
        >>> combine_full_gradients([np.ones((1, 3, 2)), np.ones((1, 4, 2))])
        array([[7., 7.]])
    """
    return np.asarray(sum(one.sum(axis=1) for one in maps))
