"""Statistics of features that come with the library: numbers only, estimated on photographs that do not.

They are of EfficientNet-Lite0 with its ImageNet weights, at the layers that it is usually explained at. The
file says on which photographs they were estimated, how those were prepared, how many there were, and how
large the standard error of the bits is. ``python -m benchmarks.packaged_statistics --images FOLDER``
makes it.

To be small, it keeps means and standard deviations of either half of the photographs in half precision. That
changes the bits of a mask by less than 0.1 %.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iba_core.bottleneck.estimator import Halves, WelfordEstimator
from iba_core.errors import IBAError, StateError
from iba_core.framework.adapter import ModelAdapter
from iba_core.state import interpreting, put_together, read_state, taken_out

PATH = Path(__file__).with_name("efficientnet_lite0.statistics.safetensors")
KIND = "packaged statistics"
"""Kind of the state file."""


def weights_fingerprint(adapter: ModelAdapter) -> str:
    """Hash of a model's weights, 32 hexadecimal digits, that does not depend on the framework.

    Neither the order of the arrays nor the order of the numbers in them counts, since frameworks keep one
    kernel with its axes in different orders. Whole numbers, such as counts of batches, are left out.

    Raises:
        InputError: the weights of this kind of model cannot be read.
    """
    _, arrays = adapter.described()
    found = sorted(_of_array(array) for array in arrays if array.dtype.kind == "f")
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def _of_array(array: npt.NDArray[Any]) -> list[int]:
    bits = array.astype("<f4").reshape(-1).view("<u4").astype(np.uint64)
    return [bits.size, int(bits.sum()), int((bits * bits).sum())]


def compact(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a layer, as `iba_core.Explainer.save` writes them, in a form of a sixth of the size.

    Args:
        state: estimate of a layer, with that of its halves.

    Example:
        >>> whole = WelfordEstimator()
        >>> halves = Halves(WelfordEstimator(), WelfordEstimator())
        >>> for estimator in (whole, *halves):
        ...     _ = estimator.fit(np.arange(1.0, 7.0).reshape(2, 3))
        >>> small = compact({**whole.state_dict(), **halves.state_dict()})
        >>> small["first.std"].dtype, small["first.nonzero"]
        (dtype('float16'), array([2], dtype=uint16))
        >>> expanded(small)["mean"]
        array([2.5, 3.5, 4.5])
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for name in Halves._fields:
        half = taken_out(state, name)
        std = np.sqrt(half["m2"] / (half["n_samples"] - 1))
        nonzero = half["nonzero"].astype(np.uint16)
        constant = (nonzero == nonzero.flat[0]).all()
        found[f"{name}.n_samples"] = half["n_samples"].astype(np.int64)
        found[f"{name}.mean"] = half["mean"].astype(np.float16)
        found[f"{name}.std"] = std.astype(np.float16)
        found[f"{name}.nonzero"] = nonzero.reshape(-1)[:1] if constant else nonzero
    return found


def expanded(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """What `compact` was given, up to its precision."""
    halves = Halves(WelfordEstimator(), WelfordEstimator())
    for name, half in zip(Halves._fields, halves, strict=True):
        small = taken_out(state, name)
        mean, std = small["mean"].astype(np.float64), small["std"].astype(np.float64)
        nonzero = np.broadcast_to(small["nonzero"], mean.shape)
        m2 = std**2 * (small["n_samples"] - 1)
        half.load_state_dict({"n_samples": small["n_samples"], "mean": mean, "m2": m2, "nonzero": nonzero})
    return {**halves.merged().state_dict(), **halves.state_dict()}


def packaged_facts() -> dict[str, Any]:
    """What the file says beside the numbers.

    Returns:
        ``network``, its ``weights`` as `weights_fingerprint` gives them, ``data``, ``n_samples``,
        ``preprocessing``, ``bits_errors`` by the names of the layers, and facts about the ``layers``.

    Example:
        >>> facts = packaged_facts()
        >>> facts["network"], facts["n_samples"], [layer["layer"] for layer in facts["layers"]]
        ('EfficientNet-Lite0', 700, ['blocks.4', 'blocks.5', 'blocks.7', 'blocks.10'])
    """
    return read_state(PATH, KIND)[1]


def packaged_statistics(
    adapter: ModelAdapter,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The packaged statistics of a model, as the arrays and metadata of a file of several layers.

    Args:
        adapter: adapter of the model.

    Raises:
        StateError: there are none of a model with these weights.
    """
    arrays, facts = read_state(PATH, KIND)
    with interpreting(PATH, KIND):
        wanted, network = facts["weights"], facts["network"]
        states = [expanded(taken_out(arrays, place)) for place in range(len(facts["layers"]))]
    try:
        same = weights_fingerprint(adapter) == wanted
    except IBAError:  # weights that cannot be read are not known to be these
        same = False
    if not same:
        raise StateError(
            f"the packaged statistics are of {network} with its ImageNet weights, and this model has others; "
            "call fit(batches)"
        )
    return put_together(states), facts
