"""The way from the core into a PyTorch model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.arguments import given, require_bool, require_data_format
from iba_core.errors import InputError, LayerError, closest
from iba_core.framework.adapter import Inputs, LayerInfo, ModelAdapter
from iba_core.framework.arrays import as_array
from iba_core.framework.framework import Framework
from iba_core.framework.layout import DataFormat
from iba_core.framework.namespace import host_array
from iba_torch.framework import TorchFramework, move_to
from iba_torch.model_files import load_file
from iba_torch.tail.calls import unwrap
from iba_torch.tail.places import AssumptionsAtPlace, Knowledge, LayerCall
from iba_torch.tail.precision import keeps_settings
from iba_torch.tail.shadow import Handler, Shadows, Site
from iba_torch.tail.split import TorchSplit, call_with, owned
from iba_torch.tail.trees import tree_map

_CALL_SUFFIX = re.compile(r"(?P<name>.+):(?P<call>\d+)")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class TorchAdapter(ModelAdapter):
    """The way into a `torch.nn.Module`.

    Wrappers (`torch.compile`, `DataParallel`, `DistributedDataParallel`) are looked through: layers are
    named as in the module inside, and it is that module which runs, uncompiled. A scripted module runs as
    a single layer. What `torch.export` gives has layers again after `torch.export.unflatten`.

    The model itself never runs: a shadow does, which shares its weights. Threads may use one adapter.

    Args:
        model: an `nn.Module`. A tuple of inputs becomes its positional arguments, a mapping its keyword
            arguments, anything else its only argument.
        rewrites: whether faster equivalents of modules may be used, see `iba_torch.tail.rewrites`.

    Example:
        >>> import torch
        >>> adapter = TorchAdapter(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()))
        >>> [layer.name for layer in adapter.layers(torch.zeros(1, 4))]
        ['0', '1']
    """

    framework: ClassVar[Framework] = TorchFramework()
    data_format: DataFormat = "channels_first"

    def __init__(self, model: nn.Module, rewrites: bool = True) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"{given('model', model)} must be an nn.Module")
        if any(kind.__module__.partition(".")[0] == "keras" for kind in type(model).__mro__):
            raise InputError(
                f"model is a Keras {type(model).__name__} that runs on PyTorch, whose layers are no modules; "
                "load it in a process with KERAS_BACKEND=tensorflow to explain it"
            )
        super().__init__(unwrap(model))
        self._takes_list: bool | None = None
        self._rewrites = require_bool("rewrites", rewrites)
        self._knowledge = Knowledge()
        self._shadows = Shadows()
        self._takes_floats: dict[Any, bool] = {}
        """Which inputs of whole numbers the model takes only as floating-point numbers."""

    @keeps_settings
    def __deepcopy__(self, memo: dict[int, Any]) -> TorchAdapter:
        # PyTorch copies a tensor without gradients, and an interrupt would leave them off.
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(deepcopy(vars(self), memo))
        return copied

    @classmethod
    def owns(cls, model: Any) -> bool:
        """Whether `model` is an `nn.Module`."""
        return isinstance(model, nn.Module)

    @classmethod
    def load(cls, source: str) -> nn.Module | None:
        """Load the model that the name of a pretrained network, a file or a folder stands for.

        Args:
            source: ``"efficientnet-lite0"``; a ``.pt2`` file of `torch.export.save`; or a folder of a Hugging
                Face model.

        Returns:
            The model; None for any other name.

        Raises:
            StateError: the file is damaged, holds code, or has no layers, as a TorchScript program.
            MissingDependencyError: a folder of Hugging Face needs the package transformers.
        """
        if source != "efficientnet-lite0":
            return load_file(Path(source))
        from iba_torch.efficientnet_lite import efficientnet_lite0

        return efficientnet_lite0()

    def layers(self, inputs: Inputs) -> list[LayerInfo]:
        """Modules in the order in which they first run on `inputs`, a module before those inside of it."""
        names = {id(module): name for name, module in self.model.named_modules() if name}
        shapes: dict[Site, tuple[int, ...] | None] = {}

        def note(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            first = site not in shapes
            if first:
                shapes[site] = None
            output = site.run(args, kwargs)
            if first and isinstance(output, torch.Tensor):
                shapes[site] = tuple(output.shape[1:])
            return output

        self._predict(inputs, note)
        return [
            LayerInfo(names[site.origin], type(site.module).__name__, shape)
            for site, shape in shapes.items()
            if site.origin in names
        ]

    def split(
        self,
        layer: nn.Module | str,
        end_layer: nn.Module | str | None = None,
        *,
        data_format: DataFormat | None = None,
    ) -> TorchSplit:
        """Divide the model at the output of `layer`.

        Args:
            layer: a module of the model or its dotted name. Where it runs more than once in a pass, the
                name followed by a colon and the number of the call, counted from 0: ``"relu:2"``.
            end_layer: a layer, named in the same way, whose output the tail gives instead of the model's.
            data_format: where the channels of the feature map are; None to find that out.

        Raises:
            LayerError: the model has no such layer.
        """
        require_data_format("data_format", data_format, optional=True)
        module, name, call = self._find(layer)
        return TorchSplit(
            self.model,
            module,
            layer_name=name,
            call=call,
            data_format=data_format,
            end_layer=None if end_layer is None else self._find(end_layer),
            knowledge=self._knowledge,
            shadows=self._shadows,
            rewrites=self._rewrites,
        )

    def _find(self, layer: nn.Module | str) -> LayerCall:
        # A module that is reachable under several names goes by each of them.
        modules = dict(self.model.named_modules(remove_duplicate=False))
        # The model itself goes by the name of its class.
        modules.setdefault(type(self.model).__name__, modules.pop(""))
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
            if name not in modules:
                raise LayerError(f"the model has no layer {layer!r}; {closest(layer, modules)}")
            module = modules[name]
        else:
            raise LayerError(f"{given('layer', layer)} is neither a module of the model nor the name of one")
        shown = name if call is None else f"{name}:{call}"
        return LayerCall(module, shown, call)

    def predict(self, inputs: Inputs) -> Any:
        """The model's output for `inputs`, in evaluation mode and without a graph."""
        return self._predict(inputs, None)

    def features_of(self, inputs: Inputs, layers: Sequence[nn.Module | str]) -> list[torch.Tensor]:
        """See `ModelAdapter.features_of`."""
        calls = [self._find(layer) for layer in layers]
        keys = [(id(each.module), each.call or 0) for each in calls]
        times: Counter[int] = Counter()
        found: dict[tuple[int, int], torch.Tensor] = {}

        def note(site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            key = site.origin, times[site.origin]
            times[site.origin] += 1
            output = site.run(args, kwargs)
            if key in keys and isinstance(output, torch.Tensor):
                # The module after it may write into it.
                found[key] = output.detach().clone()
            return output

        def run(model: nn.Module) -> None:
            # A pass may be repeated.
            times.clear()
            found.clear()
            with torch.no_grad():
                call_with(model, owned(inputs))

        self._pass(run, note)
        for call, key in zip(calls, keys, strict=True):
            if key not in found:
                raise LayerError(f"layer {call.name!r} does not run, or its output is not a single tensor")
        return [found[key] for key in keys]

    def gradient(self, inputs: torch.Tensor, score: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """See `ModelAdapter.gradient`."""

        def run(model: nn.Module) -> torch.Tensor:
            # The model may write into its input, which must not be the leaf that is differentiated.
            def value(x: torch.Tensor) -> tuple[torch.Tensor, tuple[()]]:
                return score(call_with(model, x.clone())), ()

            found: torch.Tensor = self.framework.value_and_grad(value, inputs)[-1]
            return found

        gradient: torch.Tensor = self._pass(run, None)
        return gradient

    def weights(self) -> dict[str, list[npt.NDArray[Any]]]:
        """See `ModelAdapter.weights`: the modules' own parameters, not those of modules inside of them."""
        found = {
            name: [host_array(parameter) for parameter in module.parameters(recurse=False)]
            for name, module in self.model.named_modules()
        }
        return {name: [array.copy() for array in arrays] for name, arrays in found.items() if arrays}

    def place(self, device: str) -> None:
        """See `ModelAdapter.place`."""
        try:
            torch.zeros(1, device=device)
            self.model.to(device)
        except Exception as error:  # a device that is not there raises anything
            raise InputError(f"device={device!r} cannot be used: {error}") from error

    def described(self) -> tuple[str, Iterable[npt.NDArray[Any]]]:
        """See `ModelAdapter.described`: modules, code of their forwards, graphs, parameters, buffers."""
        kinds = {type(module): None for module in self.model.modules()}
        forwards = [(kind.__qualname__, getattr(kind.forward, "__code__", None)) for kind in kinds]
        code = [(name, _described(code)) for name, code in forwards if code is not None]
        graphs = [
            str(graph)
            for module in self.model.modules()
            if isinstance(graph := getattr(module, "graph", None), torch.fx.Graph)
        ]
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        text = _ADDRESS.sub("", f"{self.model!r} {code} {graphs} {[name for name, _ in named]}")
        return text, (host_array(tensor) for _, tensor in named)

    @keeps_settings
    def with_weights(self, weights: Mapping[str, Sequence[npt.NDArray[Any]]]) -> nn.Module:
        """See `ModelAdapter.with_weights`."""
        copied: nn.Module = deepcopy(self.model)
        with torch.no_grad():
            for name, arrays in weights.items():
                own = copied.get_submodule(name).parameters(recurse=False)
                for parameter, array in zip(own, arrays, strict=True):
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))
        return copied

    def _predict(self, inputs: Inputs, handler: Handler | None) -> Any:
        def run(model: nn.Module) -> Any:
            with torch.no_grad():
                return call_with(model, owned(inputs))

        return self._pass(run, handler)

    @keeps_settings
    def _pass(self, run: Callable[[nn.Module], Any], handler: Handler | None) -> Any:
        """What `run` gives for a shadow of the model that no other thread has."""
        with self._shadows.lease() as shadow:
            whole = self._shadows.assumed.get("whole", AssumptionsAtPlace)

            def on_shadow() -> Any:
                call = partial(run, shadow.of(self.model))
                shadow.begin()
                with whole.watching(shadow.weights):
                    return shadow.run(call, {}, handler)

            return self._shadows.run(shadow, whole, on_shadow)

    def as_tensors(self, inputs: Inputs, device: torch.device | str | None = None) -> Inputs:
        """`inputs` with every array as a tensor of the model's device and floating-point dtype.

        Args:
            inputs: tensors and NumPy arrays, nested as they like; a list of numbers, or of lists of
                them, counts as an array.
            device: another device than that of the model's first parameter.

        Returns:
            The same nest; what needs no conversion keeps its memory.
        """
        state = [*self.model.parameters(), *self.model.buffers()]
        floating = [tensor for tensor in state if tensor.is_floating_point()]
        like = next((tensor for tensor in floating if not tensor.is_meta), None)
        dtype = floating[0].dtype if floating else None
        # Offloaded weights are on no device; whatever loads them moves the inputs to where they are needed.
        target = like.device if device is None and like is not None else device

        whole: list[torch.Tensor] = []

        def convert(array: Any) -> Any:
            if isinstance(array, list) and not _is_numbers(array):
                return [visit(item) for item in array]
            tensor = array if isinstance(array, torch.Tensor) else _tensor_of(array)
            if _is_whole(tensor):
                whole.append(tensor)
            if dtype is not None:
                return move_to(tensor, dtype, target)
            if tensor.is_floating_point() and tensor is not array:
                tensor = tensor.to(torch.get_default_dtype())
            return tensor if target is None else tensor.to(target)

        def visit(tree: Any) -> Any:
            return tree_map(convert, tree, (torch.Tensor, np.ndarray, np.generic, list))

        converted = visit(inputs)
        if whole:
            converted = self._of_its_kind(converted, whole)
        if isinstance(converted, (list, tuple)):
            self._require_no_list(converted)
        return converted

    def _require_no_list(self, inputs: Sequence[Any]) -> None:
        """Refuse a list of images, which looks like several inputs.

        Raises:
            InputError: the model takes such a list.
        """
        if not inputs or not all(isinstance(each, torch.Tensor) and each.ndim == 3 for each in inputs):
            return
        if self._takes_list is None:
            try:
                self._predict([list(inputs)], None)
            except Exception:  # whatever a model raises, it takes no list
                self._takes_list = False
            else:
                self._takes_list = True
        if self._takes_list:
            raise InputError(
                "the model takes a list of images; put it into a module whose forward takes one batch x of "
                "shape (N, C, H, W), calls the model with list(x) and returns a tensor with a row per image"
            )

    def _of_its_kind(self, inputs: Inputs, whole: list[torch.Tensor]) -> Inputs:
        """`inputs` with whole numbers as floating-point numbers, if the model takes them only so.

        Whole numbers are tokens or pixels, which no shape tells. So the model is asked, once for each kind of
        inputs: where it fails on whole numbers and runs on the same in floating point, that is meant.

        Args:
            inputs: the inputs.
            whole: those of their tensors that hold whole numbers.
        """
        like = next((each for each in self.model.parameters() if each.is_floating_point()), None)
        dtype = torch.get_default_dtype() if like is None else like.dtype
        key = tuple((tensor.dtype, tensor.ndim) for tensor in whole)
        if key not in self._takes_floats:
            self._takes_floats[key] = self._runs_on_floats_only(inputs, dtype)
        return _as_floats(inputs, dtype) if self._takes_floats[key] else inputs

    def _runs_on_floats_only(self, inputs: Inputs, dtype: torch.dtype) -> bool:
        try:
            self.predict(inputs)
        # Whatever the model raises; it is asked again below, and raises that once more when it runs.
        except Exception:
            try:
                self.predict(_as_floats(inputs, dtype))
            except Exception:
                return False
            return True
        return False


def _tensor_of(array: Any) -> torch.Tensor:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or not array.dtype.isnative:
        array = as_array("the input", array)
    # PyTorch takes no array whose axes run backwards, and warns of one that must not be written into.
    shares = array.flags.c_contiguous and array.flags.writeable
    return torch.from_numpy(array if shares else array.copy())


def _is_whole(tensor: torch.Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _as_floats(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return tree_map(lambda tensor: tensor.to(dtype) if _is_whole(tensor) else tensor, inputs)


def _is_numbers(items: list[Any]) -> bool:
    """Whether `items` are numbers, or lists of lists of them."""
    first: Any = items
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return isinstance(first, (bool, int, float, np.generic))


def _brief(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _described(code: CodeType) -> Any:
    """What code does, alike in every process."""
    constants = []
    for each in code.co_consts:
        if isinstance(each, CodeType):
            constants.append(_described(each))
        else:
            # The order of a set is another in each process.
            constants.append(sorted(map(repr, each)) if isinstance(each, frozenset) else repr(each))
    return code.co_code.hex(), code.co_names, code.co_varnames, constants
