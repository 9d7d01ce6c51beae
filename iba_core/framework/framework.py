"""What the core asks of a framework: arrays, gradients, compilation, noise and memory.

A `Framework` holds no formula and knows no model. What is computed with it is written in the core, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from iba_core.errors import InputError
from iba_core.framework.namespace import Array

F = TypeVar("F", bound=Callable[..., Any])
X = TypeVar("X")


class Framework(ABC):
    """Arrays, gradients, compilation, noise and memory of one framework.

    An object without state: all models of a framework share it.
    """

    name: ClassVar[str]
    """Name of the backend: the top-level module of its framework."""

    # -- arrays -----------------------------------------------------------------------------------

    @abstractmethod
    def asarray(self, array: npt.ArrayLike, like: Array) -> Array:
        """Make a tensor on the device of `like`; floating-point values take the dtype of `like`."""

    @abstractmethod
    def to_numpy(self, array: Array) -> npt.NDArray[Any]:
        """Copy a tensor to the host, without its graph; bfloat16 becomes float32."""

    @abstractmethod
    def standard_normal(self, shape: Sequence[int], like: Array) -> Array:
        """Draw standard normal numbers on the device of `like`, by the framework's own generator."""

    def randomness(self, seed: int | None) -> AbstractContextManager[None]:
        """Context in which what a model itself draws, such as dropout that is always on, follows from a seed.

        The framework's own random state is the same after it as before, unless `seed` is None.

        Args:
            seed: where the random numbers begin; None for the framework's own.
        """
        return nullcontext()

    def preferred_batch(self, shape: Sequence[int], like: Array) -> int | None:
        """How many feature maps the tail takes best at once, where the user sets no limit.

        Args:
            shape: shape of one feature map.
            like: a tensor on the device that the tail runs on.

        Returns:
            `rows_in_cache` on a processor; None, for as many as there are, on an accelerator.
        """
        return None

    def reduced_precision(self, precision: str | None, like: Array) -> AbstractContextManager[Any]:
        """Context in which the tail computes in another precision than the model's own.

        Args:
            precision: see `BottleneckSettings`; None changes nothing.
            like: a tensor on the device that the tail runs on.

        Raises:
            InputError: the framework cannot change a model's precision from outside.
        """
        if precision is None:
            return nullcontext()
        raise InputError(
            f"precision={precision!r} is not offered by the backend {self.name!r}; give a model that was "
            "made in that precision"
        )

    # -- functions --------------------------------------------------------------------------------

    @abstractmethod
    def value_and_grad(
        self, function: Callable[[Array], tuple[Array, Any]], x: Array
    ) -> tuple[Array, Any, Array]:
        """Value, auxiliary output and gradient of a scalar function at `x`, and for nothing else.

        Args:
            function: maps `x` to a pair (scalar, anything).
            x: floating-point array.

        Returns:
            ``(value, auxiliary, gradient)``, all without a graph; the gradient has the shape of `x`.
        """

    def compile(self, function: F, *, jit_compile: bool = False, donate: int | None = None) -> F:
        """Return `function` in the form in which the framework runs it best.

        Args:
            function: a function of its arguments alone. It takes and returns nested tuples and dicts of
                arrays, and is called many times with arrays of the same shapes. Arguments that are no arrays,
                such as the `run` of a `Tail`, are constants: for each, the function is compiled once.
            jit_compile: let the framework's compiler make machine code. That takes seconds to minutes for
                each shape, and is not always faster: measure it on your device.
            donate: position of an argument, a tuple of arrays whose memory the function may reuse. The caller
                must not use them again.
        """
        return function

    def sum_over(
        self, function: Callable[[X, Array], tuple[Array, ...]], chunks: Iterable[Array], x: X
    ) -> tuple[X, tuple[Array, ...]]:
        """Sum of ``function(x, chunk)`` over chunks, computed one after the other.

        A framework that chooses the order of operations by itself could run all chunks at once, and hold the
        memory of all of them. Here each one waits for the one before.

        Args:
            function: gives a tuple of arrays, of the same shapes for each chunk.
            chunks: at least one array.
            x: nested tuples of arrays that the function needs for each chunk.

        Returns:
            `x`, and the sums. What is computed from this `x` is computed after the last chunk, not before.
        """
        sums: tuple[Array, ...] = ()
        for chunk in chunks:
            found = function(x, chunk)
            sums = tuple(a + b for a, b in zip(sums, found, strict=True)) if sums else found
            x = self.barrier(x, sums)
        return x, sums

    def barrier(self, x: X, after: Any) -> X:
        """`x`, of which nothing is computed before the arrays in `after` are.

        Only for frameworks that choose the order of operations; others return `x`.
        """
        return x


def rows_in_cache(shape: Sequence[int]) -> int:
    """Number of feature maps of `shape` that a processor takes best at once: 1 MiB of float32, at least 16.

    With more, what one layer of the tail writes has left the caches when the next layer reads it. With fewer,
    the cost of calling a layer shows.
    """
    return max(16, 2**18 // max(1, prod(shape)))


def require_finite(array: npt.NDArray[Any], argument: str) -> None:
    """Check that all values are finite.

    Raises:
        InputError: one is not; the message names `argument` and the first index.
    """
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(f"{argument} holds {array[index]} at index {index}; every value must be finite")
