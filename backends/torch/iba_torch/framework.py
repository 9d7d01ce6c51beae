"""What the core asks of PyTorch: arrays, gradients, compiled functions, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch

from iba_core.arguments import given
from iba_core.errors import InputError, LayerError
from iba_core.framework.framework import F, Framework, rows_in_cache
from iba_core.framework.namespace import host_array
from iba_torch.tail.checkpoints import refuse_reentrant
from iba_torch.tail.effects import randomness
from iba_torch.tail.precision import keeps_settings
from iba_torch.tail.trees import tree_map


class TorchFramework(Framework):
    """PyTorch's arrays, gradients, compiled functions and noise.

    Example:
        >>> import torch
        >>> framework = TorchFramework()
        >>> x = torch.tensor([1.0, 2.0])
        >>> value, _, gradient = framework.value_and_grad(lambda x: ((x**2).sum(), ()), x)
        >>> value.item(), gradient.tolist()
        (5.0, [2.0, 4.0])
    """

    name: ClassVar[str] = "torch"

    # -- arrays -----------------------------------------------------------------------------------

    def asarray(self, array: npt.ArrayLike, like: torch.Tensor) -> torch.Tensor:
        """See `Framework.asarray`. The last axis of a NumPy array is the innermost in memory."""
        # In the order of a permuted array, operations with other tensors take twice as long, and some longer.
        tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array, order="C"))
        return move_to(tensor, like.dtype, like.device)

    to_numpy = staticmethod(host_array)

    def standard_normal(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """See `Framework.standard_normal`; `torch.manual_seed` determines the numbers."""
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)

    def randomness(self, seed: int | None) -> AbstractContextManager[None]:
        """See `Framework.randomness`."""
        return randomness(seed)

    def preferred_batch(self, shape: Sequence[int], like: torch.Tensor) -> int | None:
        """See `Framework.preferred_batch`."""
        return rows_in_cache(shape) if like.device.type == "cpu" else None

    def reduced_precision(self, precision: str | None, like: torch.Tensor) -> AbstractContextManager[Any]:
        """See `Framework.reduced_precision`; autocast chooses the operations that gain by it."""
        if precision is None:
            return nullcontext()
        return torch.autocast(like.device.type, dtype=getattr(torch, precision))

    # -- functions --------------------------------------------------------------------------------

    @keeps_settings
    def value_and_grad(
        self, function: Callable[[torch.Tensor], tuple[torch.Tensor, Any]], x: torch.Tensor
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """See `Framework.value_and_grad`.

        Raises:
            LayerError: the value does not depend on `x`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            # An inference tensor cannot be differentiated; a copy made out here can.
            variable = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            value, auxiliary = function(variable)
            gradient = None
            if value.requires_grad:
                try:
                    (gradient,) = torch.autograd.grad(value, variable, allow_unused=True)
                except RuntimeError as error:
                    refuse_reentrant(error)
                    raise
        if gradient is None:
            raise LayerError(
                "what is to be kept of the output does not depend on the layer, or is cut off from it "
                "(torch.no_grad, detach, argmax, whole numbers); choose another layer, target or output="
            )
        is_one = isinstance(auxiliary, torch.Tensor)
        auxiliary = auxiliary.detach() if is_one else tree_map(torch.Tensor.detach, auxiliary)
        return value.detach(), auxiliary, gradient

    def compile(self, function: F, *, jit_compile: bool = False, donate: int | None = None) -> F:
        """Return `function` as it is; with `jit_compile`, as machine code. See `Framework.compile`."""
        if not jit_compile:
            return function
        # The compiler takes seconds to import.
        from iba_torch.tail.compiled import Compiled

        return cast(F, Compiled(function))


def require_device(name: str, device: Any) -> torch.device:
    """Return a device of PyTorch, or the one that a text such as ``"cuda:0"`` names.

    Raises:
        InputError: there is no such device.
    """
    try:
        if isinstance(device, (str, torch.device)):
            return torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"{name}={device!r} is no device of PyTorch: {str(error).splitlines()[0]}"
        ) from error
    raise InputError(f"{given(name, device)} must be a device of PyTorch, such as 'cpu' or 'cuda:0'")


def move_to(
    tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | str | None = None
) -> torch.Tensor:
    """A tensor on a device; floating-point values and bytes take a dtype.

    Args:
        tensor: the tensor.
        dtype: the dtype.
        device: the device; None to leave the tensor where it is.
    """
    # Bytes are pixels; what counts, such as the numbers of tokens, comes in wider integers. The dtype comes
    # first, since not every device has float64.
    is_value = tensor.is_floating_point() or tensor.dtype == torch.uint8
    tensor = tensor.to(dtype) if is_value else tensor
    return tensor if device is None else tensor.to(device)
