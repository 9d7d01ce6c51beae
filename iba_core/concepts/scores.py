"""Scores of a model's outputs, for class activation maps, beside the outputs themselves."""

from __future__ import annotations

from collections.abc import Sequence

from iba_core.framework.namespace import Array, array_namespace, softmax
from iba_core.targets import cross_entropy


def output_minus_cross_entropy(outputs: Array, category: int) -> Array:
    """Add the logarithm of a class's probability to its logit.

    The score *ReST* of H. Zhang et al., https://arxiv.org/abs/2501.06261. Its gradient does not vanish where
    the probability is near 1.

    Args:
        outputs: logits, (..., K).
        category: index of the class; negative from the end.

    Returns:
        Array (...).

    Example:
        >>> import numpy as np
        >>> float(output_minus_cross_entropy(np.array([2.0, 2.0]), 0))  # 2 - log(2)
        1.3068528194400546
    """
    xp = array_namespace(outputs)
    chosen = outputs[..., category]
    classes = xp.astype(xp.zeros_like(chosen), xp.int64) + category % int(outputs.shape[-1])
    return chosen - cross_entropy(outputs, classes)


def weighted_difference(outputs: Array, category: int, others: Sequence[int], strength: float) -> Array:
    """Compare the logit of a class with those of similar classes, each weighted with its probability.

    Z. Zhang et al., *Finer-CAM*, CVPR 2025, https://arxiv.org/abs/2501.11309.

    Args:
        outputs: logits, (..., K).
        category: index of the class.
        others: indices of the classes to compare with.
        strength: factor of the logits of the other classes; 0 for the logit of the class alone.

    Returns:
        Array (...).

    Example:
        >>> import numpy as np
        >>> round(float(weighted_difference(np.array([3.0, 1.0, 1.0]), 0, [1, 2], 0.5)), 6)
        2.5
    """
    probabilities = softmax(outputs, axis=-1)
    weights = [probabilities[..., other] for other in others]
    differences = [outputs[..., category] - strength * outputs[..., other] for other in others]
    weighted = sum(weight * one for weight, one in zip(weights, differences, strict=True))
    return weighted / (sum(weights) + _TINY)


_TINY = 1e-9


def box_iou(box: Array, boxes: Array) -> Array:
    """Intersection over union of a box with others.

    Args:
        box: left, top, right and bottom, (4,).
        boxes: (N, 4), of the same framework.

    Returns:
        Array (N,), from 0 to 1.

    Example:
        >>> import numpy as np
        >>> box_iou(np.array([0.0, 0.0, 2.0, 2.0]), np.array([[1.0, 0.0, 3.0, 2.0]])).round(4)
        array([0.3333])
    """
    xp = array_namespace(box, boxes)
    # Left and top are at most the intersection's, right and bottom at least.
    start, end = xp.maximum(box[:2], boxes[:, :2]), -xp.maximum(-box[2:], -boxes[:, 2:])
    sides = xp.maximum(end - start, xp.zeros_like(start))
    shared = sides[:, 0] * sides[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return shared / (areas + (box[2] - box[0]) * (box[3] - box[1]) - shared)
