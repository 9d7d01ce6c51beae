"""Insertion and deletion: how the answer changes as what a map calls salient comes in, or goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy.ndimage import gaussian_filter

Images = np.ndarray[Any, Any]
PARTS = 16
BLUR = 10.0
"""Standard deviation in pixels of the blur that stands for what is not there."""


def perturbation_area(
    probability: Callable[[Images], Images],
    image: Images,
    saliency: Images,
    mode: Literal["insertion", "deletion"],
    parts: int = PARTS,
) -> float:
    """Mean probability of the answer while the most salient pixels come in, or go, part by part.

    V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018. A good map has much area under the insertion, and little under the deletion.

    Args:
        probability: that of the answer for images (B, C, H, W), (B,).
        image: (C, H, W).
        saliency: (H, W).
        mode: whether the salient pixels come in where all was blurred, or are blurred.
        parts: number of parts.
    """
    blurred = gaussian_filter(image, (0, BLUR, BLUR))
    start, end = (blurred, image) if mode == "insertion" else (image, blurred)
    rank = np.empty(saliency.size, int)
    rank[np.argsort(-saliency, axis=None, kind="stable")] = np.arange(saliency.size)
    rank = rank.reshape(saliency.shape)
    stages = [np.where(rank < saliency.size * part / parts, end, start) for part in range(parts + 1)]
    return float(np.trapezoid(probability(np.stack(stages)), dx=1 / parts))
