"""Select the embeddings of concepts from a learnt memory.

Every concept has a memory of M slots, vectors with E entries. An attention network gives each slot a score
for an input. The concept's embedding is the mean of its slots, weighted by the softmax of the scores. In
sampling, it is one slot, drawn with these probabilities. After D. Debot et al., *Interpretable Concept-Based
Memory Reasoning*, NeurIPS 2024 (https://arxiv.org/abs/2407.15527).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy.typing as npt

from iba_core.arguments import LARGEST_COUNT, require_choice, require_number, require_type, require_whole
from iba_core.errors import InputError
from iba_core.framework.arrays import require_array
from iba_core.framework.namespace import Array, array_namespace, floored_log, softmax

LEAKY_SLOPE = 0.01
"""Slope of the attention network's leaky rectifier for negative values."""

AttentionAxis = Literal["slots", "concepts"]
"""The axis along which the attention weights sum to 1: the slots of each concept, or the concepts of each
slot, as in the package torch_concepts."""


def gumbel(uniform: Array) -> Array:
    """Convert numbers that are uniform in [0, 1) to standard Gumbel numbers, ``-log(-log(u))``.

    The index of the maximum of ``logits + gumbel(u)`` has the distribution ``softmax(logits)``.

    Args:
        uniform: array of any shape and framework.

    Example:
        >>> gumbel(np.array([np.exp(-1.0)])).round(6) + 0.0
        array([0.])
    """
    # The floor is needed since u can be 0.
    return gumbel_of_exponential(-floored_log(uniform))


def gumbel_of_exponential(exponential: Array) -> Array:
    """Convert numbers with the standard exponential distribution to standard Gumbel numbers, ``-log(e)``.

    Args:
        exponential: array of any shape and framework, at least 0.

    Example:
        >>> gumbel_of_exponential(np.array([1.0])) + 0.0
        array([0.])
    """
    return -floored_log(exponential)


def attention(
    scores: Array,
    temperature: float,
    over: AttentionAxis = "slots",
    noise: Array | None = None,
    stop_gradient: Callable[[Array], Array] | None = None,
) -> Array:
    """Compute the weights of the memory slots.

    Args:
        scores: (..., T, M) for T concepts with M slots.
        temperature: positive number. The smaller it is, the closer the weights are to the choice of one slot.
        over: axis along which the weights sum to 1.
        noise: standard Gumbel numbers of the shape of the scores, to draw one slot; None to weight all slots.
        stop_gradient: the framework's identity without gradient; needed with `noise`.

    Returns:
        (..., T, M). Without noise, ``softmax(scores / temperature)``. With noise, 1 at the largest entry of
        ``scores + noise`` and 0 elsewhere, with the gradient of ``softmax((scores + noise) / temperature)``
        (straight-through; E. Jang et al., https://arxiv.org/abs/1611.01144). Equal maxima share the 1.

    Raises:
        InputError: there is noise and no `stop_gradient`.

    Example:
        >>> attention(np.array([[0.0, np.log(3.0)]]), temperature=1.0)
        array([[0.25, 0.75]])
    """
    axis = -1 if over == "slots" else -2
    if noise is None:
        return softmax(scores / temperature, axis)
    if stop_gradient is None:
        raise InputError("stop_gradient is missing; give the framework's identity without gradient")
    perturbed = scores + noise
    soft = softmax(perturbed / temperature, axis)
    xp = array_namespace(soft)
    best = xp.astype(perturbed == xp.max(perturbed, axis=axis, keepdims=True), soft.dtype)
    hard = best / xp.sum(best, axis=axis, keepdims=True)
    # This order of the operations gives exactly the values of `hard`.
    return hard + (soft - stop_gradient(soft))


def select(weights: Array, memory: Array) -> Array:
    """Compute the weighted mean of the slots of each concept.

    Args:
        weights: (..., T, M).
        memory: (T, M, E).

    Returns:
        (..., T, E).

    Example:
        >>> select(np.array([[0.25, 0.75]]), np.array([[[0.0, 4.0], [4.0, 0.0]]]))
        array([[3., 1.]])
    """
    xp = array_namespace(weights, memory)
    return xp.squeeze(xp.matmul(xp.expand_dims(weights, axis=-2), memory), axis=-2)


def require_weights(
    arrays: Mapping[str, npt.ArrayLike], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[Any]]:
    """Convert `arrays` to NumPy arrays, and check their names and shapes.

    The names and layouts are those of a PyTorch state dictionary in every framework: ``memory.weight``
    (T, M * E), ``selector.0.weight`` (E, features), ``selector.0.bias`` (E,), ``selector.2.weight``
    (T * M, E) and, if there is one, ``selector.2.bias`` (T * M,).

    Raises:
        InputError: a name or a shape differs from `shapes`.
    """
    require_type("arrays", arrays, Mapping, "a dict of arrays")
    if set(arrays) != set(shapes):
        raise InputError(f"arrays holds {sorted(map(str, arrays))}; it must hold {sorted(shapes)}")
    return {
        name: require_array(f"arrays[{name!r}]", arrays[name], shape=shape) for name, shape in shapes.items()
    }


def require_arguments(
    in_features: int,
    memory_size: int,
    exogenous_size: int,
    out_features: int,
    temperature: float,
    attention_over: str,
) -> None:
    """Check the arguments of a selector.

    Raises:
        InputError: a size or the temperature is not positive, or the axis is unknown.
    """
    sizes = {
        "in_features": in_features,
        "memory_size": memory_size,
        "exogenous_size": exogenous_size,
        "out_features": out_features,
    }
    for name, size in sizes.items():
        require_whole(name, size, 1, LARGEST_COUNT)
    require_number("temperature", temperature, above=0)
    require_choice("attention_over", attention_over, get_args(AttentionAxis))


def require_features(shape: tuple[int | None, ...], in_features: int) -> None:
    """Check the shape of a selector's input, (..., in_features).

    Raises:
        InputError: its last axis has another size.
    """
    if not shape or shape[-1] != in_features:
        raise InputError(
            f"input has shape {shape}; its last axis must have in_features={in_features} entries"
        )
