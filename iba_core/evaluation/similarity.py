"""How maps are, and how alike: sparseness, agreement."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_choice, require_number
from iba_core.errors import InputError
from iba_core.evaluation.formulas import gini, pearson, spearman
from iba_core.framework.arrays import require_array

Numbers = npt.NDArray[np.float64]


def rows_of(name: str, maps: Any) -> Numbers:
    """Maps (B, *places) as rows (B, N), float64.

    Raises:
        InputError: they have no axis of images, or a value that is not finite.
    """
    array = require_array(name, maps).astype(np.float64)
    if array.ndim < 2:
        raise InputError(f"{name} has shape {array.shape}; (images, *places) was expected")
    return array.reshape(len(array), -1)


def sparseness(maps: Any) -> Numbers:
    """Compute the Gini index of the absolute values of maps.

    See `iba_core.evaluation.formulas.gini`. Higher is said to be better, as in Quantus: a short answer is
    easier to read. It says nothing of whether the answer is right.

    Args:
        maps: (B, *places).

    Returns:
        Array (B,), from 0 for equal values to nearly 1 for a single one.

    Example:
        >>> sparseness([[[0.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
        array([0.75, 0.  ])
    """
    return np.asarray(gini(np.sort(np.abs(rows_of("maps", maps)), axis=1)))


def agreement(
    first: Any, second: Any, how: Literal["pearson", "spearman", "top"] = "pearson", top: float = 0.1
) -> Numbers:
    """Compare two sets of maps of the same inputs.

    Args:
        first: (B, *places).
        second: (B, *places).
        how: ``"pearson"`` for the correlation of the values, ``"spearman"`` for that of their ranks,
            ``"top"`` for the share of the highest places that both have.
        top: which places ``"top"`` compares, as a share of all.

    Returns:
        Array (B,), from -1 to 1 (``"top"``: from 0); 0 where a map is constant.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> agreement([[1.0, 2.0, 3.0]], [[1.0, 2.0, 9.0]], how="spearman").round(6)
        array([1.])
    """
    require_choice("how", how, ("pearson", "spearman", "top"))
    top = require_number("top", top, most=1, above=0)
    a, b = rows_of("first", first), rows_of("second", second)
    if a.shape != b.shape:
        raise InputError(
            f"first has shape {np.shape(first)} and second {np.shape(second)}; give equal shapes"
        )
    if how == "pearson":
        return np.asarray(pearson(a, b))
    if how == "spearman":
        return spearman(a, b)
    count = max(1, round(top * a.shape[1]))
    highest = [np.argsort(-rows, axis=1, kind="stable")[:, :count] for rows in (a, b)]
    return np.array([len(np.intersect1d(*pair)) / count for pair in zip(*highest, strict=True)])
