"""Smoothing of maps: the library's way, and dense matrices, whose cost grows with the square of a side.

python -m benchmarks.smoothing [torch | tensorflow]
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import interleaved, use_threads
from iba_core.bottleneck.smoothing import smooth, smoothing_matrices, smoothing_matrix
from iba_core.framework.framework import Framework
from iba_core.framework.layout import Layout

SIDES = (14, 28, 56, 112, 128, 144, 224, 512, 1024, 2048)
NUMBERS = 2**20
"""Least numbers in the maps of a call."""

OURS, DENSE = "as the library does", "dense matrices"


def frameworks(names: tuple[str, ...]) -> dict[str, tuple[Framework, Any]]:
    """The frameworks, each with an array on its device."""
    found: dict[str, tuple[Framework, Any]] = {}
    if "torch" in names:
        import torch

        from iba_torch.framework import TorchFramework

        found["torch"] = TorchFramework(), torch.zeros(1)
    if "tensorflow" in names:
        import tensorflow as tf

        from iba_tf.framework import TensorFlowFramework

        found["tensorflow"] = TensorFlowFramework(), tf.zeros(1)
    return found


def ratio(framework: Framework, like: Any, side: int, rounds: int = 7) -> tuple[float, float, float]:
    """Seconds of the library's way, its ratio to dense matrices, and the greatest difference."""
    channels = max(1, NUMBERS // side**2)
    shape = (channels, side, side)
    layout = Layout.of(shape, "channels_first")
    x = framework.asarray(np.random.default_rng(0).random((1, *shape)), like)
    run = framework.compile(partial(smooth, layout=layout))
    tensors = {
        OURS: tuple(framework.asarray(m, like) for m in smoothing_matrices(shape, layout, 1.0)),
        DENSE: tuple(framework.asarray(smoothing_matrix(side, 1.0), like) for _ in range(2)),
    }
    cases = {name: partial(run, x, matrices) for name, matrices in tensors.items()}
    times = interleaved(cases, rounds, budget=20)
    ours, dense = (framework.to_numpy(case()) for case in cases.values())
    return times.median(OURS), times.ratio(OURS, DENSE), float(np.abs(ours - dense).max())


def main(names: tuple[str, ...]) -> None:
    use_threads(names)
    for name, (framework, like) in frameworks(names).items():
        print(f"{name}: a map of 2^20 numbers or more, smoothed along both axes")
        for side in SIDES:
            seconds, times, difference = ratio(framework, like, side)
            print(
                f"{side:6} x {side:<6} {1000 * seconds:8.1f} ms  {times:6.2f} of dense  "
                f"difference {difference:.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or ("torch", "tensorflow"))
