"""A memory of concept embeddings with attention, as `torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from iba_core.concepts import selection
from iba_core.errors import InputError
from iba_core.framework.namespace import host_array


class SelectorZU(nn.Module):
    """Select an embedding for each concept from a learnt memory, by attention or by sampling.

    The formulas are those of `iba_core.concepts.selection`.

    Args:
        in_features: number of entries of an input.
        memory_size: number of memory slots of each concept.
        exogenous_size: number of entries of a slot.
        out_features: number of concepts.
        temperature: positive number. The smaller it is, the closer the attention is to the choice of one
            slot.
        args: further arguments of the last `torch.nn.Linear`: bias, device, dtype.
        attention_over: ``"slots"`` if the weights of each concept's slots sum to 1. ``"concepts"`` if the
            weights of each slot sum to 1 over the concepts, for weights from `torch_concepts`.
        kwargs: the same arguments by name. Device and dtype apply to all weights.

    Attributes:
        memory: `torch.nn.Embedding` with one row for each concept, which holds its slots.
        selector: `torch.nn.Sequential` that maps an input (..., in_features) to scores (..., out_features,
            memory_size).

    Raises:
        InputError: a size or the temperature is not positive, or `attention_over` is unknown.

    Example:
        >>> selector = SelectorZU(in_features=64, memory_size=10, exogenous_size=32, out_features=5)
        >>> selector(torch.randn(4, 64)).shape
        torch.Size([4, 5, 32])
    """

    def __init__(
        self,
        in_features: int,
        memory_size: int,
        exogenous_size: int,
        out_features: int,
        temperature: float = 1.0,
        *args: Any,
        attention_over: selection.AttentionAxis = "slots",
        **kwargs: Any,
    ) -> None:
        selection.require_arguments(
            in_features, memory_size, exogenous_size, out_features, temperature, attention_over
        )
        super().__init__()
        self.in_features = in_features
        self.memory_size = memory_size
        self.exogenous_size = exogenous_size
        self.out_features = out_features
        self.temperature = temperature
        self.attention_over = attention_over
        # One seed gives the weights of torch_concepts: the memory is drawn first, then layer by layer.
        options: dict[str, Any] = dict(zip(("bias", "device", "dtype"), args, strict=False), **kwargs)
        device, dtype = options.get("device"), options.get("dtype")
        self.memory = nn.Embedding(out_features, memory_size * exogenous_size, device=device, dtype=dtype)
        self.selector = nn.Sequential(
            nn.Linear(in_features, exogenous_size, device=device, dtype=dtype),
            nn.LeakyReLU(selection.LEAKY_SLOPE),
            nn.Linear(exogenous_size, out_features * memory_size, *args, **kwargs),
            nn.Unflatten(-1, (out_features, memory_size)),
        )

    def forward(self, input: Tensor | None = None, sampling: bool = False) -> Tensor:
        """Select the embedding of each concept for a batch of inputs.

        Args:
            input: (..., in_features).
            sampling: draw one slot of each concept from its attention weights (Gumbel-softmax, with
                straight-through gradients) instead of taking their weighted mean.

        Returns:
            (..., out_features, exogenous_size).

        Raises:
            InputError: the input is missing or has another number of features.
        """
        if input is None:
            raise InputError("input is missing; a tensor (..., in_features) is needed")
        selection.require_features(tuple(input.shape), self.in_features)
        scores = self.selector(input)
        noise = None
        if sampling:
            # As `torch.nn.functional.gumbel_softmax` draws them, so that one seed gives its choices.
            dtype = torch.promote_types(scores.dtype, torch.float32)
            drawn = torch.empty_like(scores, dtype=dtype).exponential_()
            noise = selection.gumbel_of_exponential(drawn).to(scores.dtype)
        weights = selection.attention(
            scores, self.temperature, self.attention_over, noise, stop_gradient=Tensor.detach
        )
        slots = self.memory.weight.view(self.out_features, self.memory_size, self.exogenous_size)
        return cast(Tensor, selection.select(weights, slots))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Copy all weights, named as in `state_dict`, for `load_arrays` of either framework."""
        return {name: host_array(value).copy() for name, value in self.state_dict().items()}

    def load_arrays(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Load the weights that `to_arrays` of either framework has returned.

        Raises:
            InputError: the names or shapes differ.
        """
        shapes = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        weights = selection.require_weights(arrays, shapes)
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})

    def extra_repr(self) -> str:
        """Return the arguments that the child modules do not show."""
        return f"temperature={self.temperature}, attention_over={self.attention_over!r}"
