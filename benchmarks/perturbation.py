"""Insertion and deletion: the change of a prediction as the salient pixels are inserted or deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy.ndimage import gaussian_filter

Images = np.ndarray[Any, Any]
PARTS = 16
BLUR = 10.0
"""Standard deviation in pixels of the blur that replaces deleted pixels."""


def perturbation_area(
    probability: Callable[[Images], Images],
    image: Images,
    saliency: Images,
    mode: Literal["insertion", "deletion"],
    parts: int = PARTS,
) -> float:
    """Compute the mean probability of a class while the most salient pixels are inserted or deleted.

    V. Petsiuk, A. Das, K. Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018. A good map has a large area under insertion and a small area under deletion.

    Args:
        probability: function that maps images (B, C, H, W) to the probabilities (B,) of the class.
        image: (C, H, W).
        saliency: (H, W).
        mode: ``"insertion"`` to put the salient pixels into the blurred image, ``"deletion"`` to blur them in
            the image.
        parts: number of steps in which the pixels are changed.
    """
    blurred = gaussian_filter(image, (0, BLUR, BLUR))
    start, end = (blurred, image) if mode == "insertion" else (image, blurred)
    rank = np.empty(saliency.size, int)
    rank[np.argsort(-saliency, axis=None, kind="stable")] = np.arange(saliency.size)
    rank = rank.reshape(saliency.shape)
    stages = [np.where(rank < saliency.size * part / parts, end, start) for part in range(parts + 1)]
    return float(np.trapezoid(probability(np.stack(stages)), dx=1 / parts))
