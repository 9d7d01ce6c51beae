"""PyTorch's side of the interface between the core and the frameworks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.errors import LayerError, closest
from iba_core.framework.adapter import Adapter, F, Inputs, LayerInfo
from iba_core.framework.framework import rows_in_cache
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import Array, host_array
from iba_core.utils import ifnone
from iba_torch.tail.calls import intercept_calls, run, unwrap
from iba_torch.tail.frozen import frozen
from iba_torch.tail.recording import Shapes
from iba_torch.tail.rewrites.memory_order import is_channels_last
from iba_torch.tail.split import LayerCall, TorchCut
from iba_torch.tail.trees import tree_map

_CALL_SUFFIX = re.compile(r"(?P<name>.+):(?P<call>\d+)")


class TorchAdapter(Adapter):
    """The way into a `torch.nn.Module`.

    Wrappers (`torch.compile`, `DataParallel`, `DistributedDataParallel`) are looked through: layers are
    named as in the module inside, and it is that module which runs, uncompiled. A scripted module runs as
    it is, as a single layer. What `torch.export` gives has layers again after `torch.export.unflatten`.

    Args:
        model: an `nn.Module`. A tuple of inputs becomes its positional arguments, a mapping its keyword
            arguments, anything else its only argument.
    """

    name = "torch"
    data_format: DataFormat = "channels_first"
    reuses_memory = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(unwrap(model))
        self._shapes = Shapes()

    @classmethod
    def owns(cls, model: Any) -> bool:
        """Whether `model` is an `nn.Module`."""
        return isinstance(model, nn.Module)

    @classmethod
    def load(cls, source: str) -> nn.Module | None:
        """The pretrained network ``"efficientnet-lite0"``; None for any other name."""
        if source != "efficientnet-lite0":
            return None
        from iba_torch.efficientnet_lite import efficientnet_lite0

        return efficientnet_lite0()

    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """Modules in the order in which they first run on `inputs`, a module before those inside of it."""
        names = {module: name for name, module in self.model.named_modules() if name}
        shapes: dict[nn.Module, tuple[int, ...] | None] = {}

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            first = module not in shapes
            if first:
                shapes[module] = None
            output = run(module, args, kwargs)
            if first and isinstance(output, torch.Tensor):
                shapes[module] = tuple(output.shape[1:])
            return output

        self._predict(inputs, note)
        return [
            LayerInfo(names[module], type(module).__name__, shape)
            for module, shape in shapes.items()
            if module in names
        ]

    def cut(self, layer: nn.Module | str, until: nn.Module | str | None = None) -> TorchCut:
        """Cut the model at the output of `layer`.

        Args:
            layer: a module of the model or its dotted name. Where it runs more than once in a pass, the
                name followed by a colon and the number of the call, counted from 0: ``"relu:2"``.
            until: a layer, named likewise, whose output the tail gives instead of the model's.

        Raises:
            LayerError: the model has no such layer.
        """
        module, name, call = self._find(layer)
        end = None if until is None else self._find(until)
        return TorchCut(self.call, module, layer_name=name, call=call, until=end, shapes=self._shapes)

    def _find(self, layer: nn.Module | str) -> LayerCall:
        # A module that is reachable under several names goes by each of them.
        modules = dict(self.model.named_modules(remove_duplicate=False))
        call = None
        if isinstance(layer, nn.Module):
            module = unwrap(layer)
            name = next((name for name, known in modules.items() if known is module), None)
            if name is None:
                raise LayerError(f"layer={_brief(layer)} is not a module of the model {_brief(self.model)}")
        elif isinstance(layer, str):
            name = layer
            if name not in modules and (match := _CALL_SUFFIX.fullmatch(name)):
                name, call = match["name"], int(match["call"])
            for wrapper in ("module.", "_orig_mod."):
                if name not in modules:
                    name = name.removeprefix(wrapper)
            if not name or name not in modules:
                raise LayerError(f"the model has no layer {layer!r}; {closest(layer, filter(None, modules))}")
            module = modules[name]
        else:
            raise LayerError(f"layer={layer!r} is neither a module of the model nor the name of one")
        shown = name if call is None else f"{name}:{call}"
        return LayerCall(module, shown or type(module).__name__, call)

    def call(self, inputs: Inputs) -> Any:
        """The model's output for `inputs`, run as it is."""
        if isinstance(inputs, Mapping):
            return self.model(**inputs)
        if isinstance(inputs, (tuple, list)):
            return self.model(*inputs)
        return self.model(inputs)

    def predict(self, inputs: Inputs) -> Any:
        """The model's output for `inputs`, in evaluation mode and without a graph."""
        return self._predict(inputs, run)

    def _predict(self, inputs: Inputs, handler: Callable[..., Any]) -> Any:
        own = tree_map(lambda tensor: tensor.detach().clone(), inputs)
        with frozen() as modules, torch.no_grad():
            modules.add(self.model)
            with intercept_calls(handler):
                return self.call(own)

    def to_inputs(self, inputs: Inputs, device: torch.device | str | None = None) -> Inputs:
        """`inputs` with every array as a tensor of the model's device and floating-point dtype.

        Args:
            inputs: tensors and NumPy arrays, nested as they like; a list of numbers, or of lists of
                them, counts as an array.
            device: another device than that of the model's first parameter.

        Returns:
            The same nest; what needs no conversion keeps its memory.
        """
        state = chain(self.model.parameters(), self.model.buffers())
        like = next((tensor for tensor in state if tensor.is_floating_point()), None)

        def convert(array: Any) -> Any:
            if isinstance(array, list) and not _is_numbers(array):
                return [visit(item) for item in array]
            tensor = array if isinstance(array, torch.Tensor) else _tensor_of(array)
            if like is not None:
                return _move(tensor, like, device)
            if tensor.is_floating_point() and tensor is not array:
                tensor = tensor.to(torch.get_default_dtype())
            return tensor if device is None else tensor.to(device)

        def visit(tree: Any) -> Any:
            return tree_map(convert, tree, (torch.Tensor, np.ndarray, np.generic, list))

        return visit(inputs)

    def asarray(self, array: npt.ArrayLike, like: Array) -> torch.Tensor:
        """`array` as a tensor on the device of `like`; floating-point values take the dtype of `like`.

        Of an array of NumPy's, the last axis is the innermost in memory, whatever it is in the array.
        """
        # In the order of a permuted array, operations with other tensors take twice as long, and some longer.
        tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array, order="C"))
        return _move(tensor, like)

    def to_numpy(self, array: Array) -> npt.NDArray[Any]:
        """`array` on the host, detached, bfloat16 widened to float32."""
        return host_array(array)

    def standard_normal(self, shape: Sequence[int], like: Array) -> torch.Tensor:
        """Unseeded standard normal numbers from PyTorch's generator on the device of `like`."""
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)

    def axes_in_memory(self, x: Array) -> tuple[int, ...]:
        """See `Adapter.axes_in_memory`."""
        return (0, 2, 3, 1) if is_channels_last(x) else super().axes_in_memory(x)

    def reduced_precision(self, precision: str | None, like: Array) -> AbstractContextManager[Any]:
        """See `Adapter.reduced_precision`; PyTorch's autocast chooses the operations that gain by it."""
        if precision is None:
            return nullcontext()
        return torch.autocast(like.device.type, dtype=getattr(torch, precision))

    def preferred_batch(self, shape: Sequence[int], like: Array) -> int | None:
        """See `Adapter.preferred_batch`."""
        return rows_in_cache(shape) if like.device.type == "cpu" else None

    def value_and_grad(
        self, function: Callable[[Array], tuple[Array, Any]], x: Array
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Value, auxiliary output and gradient of a scalar function at `x`, and for nothing else."""
        with torch.inference_mode(False), torch.enable_grad():
            # An inference tensor cannot be differentiated; a copy made out here can.
            variable = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            value, auxiliary = function(variable)
            (gradient,) = torch.autograd.grad(value, variable)
        return value.detach(), tree_map(torch.Tensor.detach, auxiliary), gradient

    def compile(self, function: F, jit_compile: bool | None = None) -> F:
        """`function` as it is; with `jit_compile`, as machine code made by `torch.compile`."""
        if not ifnone(jit_compile, self.jit_compile):
            return function
        # The compiler takes seconds to import.
        from iba_torch.tail.compiled import Compiled

        return cast(F, Compiled(function, self.model))


def _tensor_of(array: Any) -> torch.Tensor:
    array = np.asarray(array)
    # PyTorch takes no array whose axes run backwards, and warns of one that must not be written into.
    shares = array.flags.c_contiguous and array.flags.writeable
    return torch.from_numpy(array if shares else array.copy())


def _move(tensor: torch.Tensor, like: torch.Tensor, device: torch.device | str | None = None) -> torch.Tensor:
    # The dtype first: not every device has float64.
    # Bytes are pixels; what counts, such as the numbers of tokens, comes in wider integers.
    is_value = tensor.is_floating_point() or tensor.dtype == torch.uint8
    tensor = tensor.to(like.dtype) if is_value else tensor
    return tensor.to(like.device if device is None else device)


def _is_numbers(items: list[Any]) -> bool:
    """Whether `items` are numbers, or lists of lists of them."""
    first: Any = items
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return isinstance(first, (bool, int, float, np.generic))


def _brief(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
