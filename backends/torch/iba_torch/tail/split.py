"""A model split at a layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn
from weakref import ref

import torch
from torch import nn

from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Inputs, Split, Tail
from iba_core.framework.layout import DataFormat
from iba_core.framework.outputs import OwnOutputs
from iba_torch.tail.calls import module_call_patch, redirect_calls, unwrap, what_runs
from iba_torch.tail.channels import data_format_of
from iba_torch.tail.head import HeadPass, Stop
from iba_torch.tail.places import AssumptionsAtPlace, Knowledge, LayerCall
from iba_torch.tail.precision import without_autocast
from iba_torch.tail.replay import InMemoryOrder, Replay, check_calls
from iba_torch.tail.rewrites.assumptions import Assumption, Outcome, enabled, is_of_torch, run_assuming
from iba_torch.tail.rewrites.memory_order import gains_by_order
from iba_torch.tail.rewrites.observer import Observer
from iba_torch.tail.rewrites.unread import Unread
from iba_torch.tail.shadow import Shadow, Shadows
from iba_torch.tail.trees import tensors, tree_map


@dataclass(frozen=True, eq=False)
class TorchTail(Tail):
    """The tail of a PyTorch model, see `Tail`."""

    def in_memory_order(self) -> Tail:
        """The same tail with the channels last, where a processor's convolutions prefer that."""
        if not isinstance(self.run, Replay) or not self.run.prefers_channels_last:
            return self
        features = self.features.permute(0, 2, 3, 1).contiguous()
        return replace(self, features=features, run=InMemoryOrder(self.run), axes=(1, 2, 0))


class _Found(NamedTuple):
    """A pass of the head, the features that it found, and how it ran."""

    head: HeadPass
    features: torch.Tensor
    reordered: bool


class TorchSplit(Split):
    """A PyTorch model, or a closure that runs modules, split at one of them.

    The head is run once, up to the layer, and what the modules before it returned is remembered. The tail
    is then the model run again, with remembered outputs in place of those modules and the given feature
    map in place of the layer's. Whatever the model does between modules, skip connections included,
    stays as it is. What runs is a shadow of the model, which itself is not touched.

    Args:
        model: the model; or a closure of the inputs that runs modules, and whose return value is what a tail
            returns. Of a model, a tuple of inputs becomes its positional arguments, a mapping its keyword
            arguments, anything else its only argument.
        module: the module to split at.
        layer_name: its name, for messages.
        where: the module's ``"output"`` or its ``"input"``. Of several tensors, the first.
        call: which of its calls in a pass, from 0; may be None if there is only one.
        data_format: where the channels of the feature map are; None to conclude it from the types of
            the layers.
        input_format: where the channels of the inputs are.
        end_layer: where the tail ends: at the output of this call, of which it then returns the first
            tensor, the images first. None for the end of the model.
        knowledge: what passes have shown of the model. The first call of `features` finds out which axes
            of what is passed between the layers are those of the images. A head that is opened without that
            takes the first axis for it, or the second where the layers speak for it: of sequence-first
            tensors with as many steps as images, that can be the wrong one.
        shadows: where to take shadows from.
        rewrites: whether faster equivalents of modules may be used, see `iba_torch.tail.rewrites`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> split = TorchSplit(model, model[1])
        >>> with split.head(torch.ones(1, 4)) as tail:
        ...     torch.allclose(tail(tail.features), model(torch.ones(1, 4)))
        True
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Inputs], Any],
        module: nn.Module,
        *,
        layer_name: str | None = None,
        where: Literal["output", "input"] = "output",
        call: int | None = None,
        data_format: DataFormat | None = None,
        input_format: DataFormat = "channels_first",
        end_layer: LayerCall | None = None,
        knowledge: Knowledge | None = None,
        shadows: Shadows | None = None,
        rewrites: bool = True,
    ) -> None:
        super().__init__()
        if where not in ("output", "input"):
            raise InputError(f"where={where!r} is neither 'output' nor 'input'")
        if call is not None and call < 0:
            raise InputError(f"call={call} is negative; calls of a layer are counted from 0")
        if isinstance(model, nn.Module):
            model = unwrap(model)
        else:
            # Compiled code would know nothing of what is put in the place of modules.
            model = getattr(model, "_torchdynamo_orig_callable", model)
        self.model = model
        self.module = unwrap(module)
        self.layer_name = type(self.module).__name__ if layer_name is None else layer_name
        self.where = where
        self.call = call
        self.data_format = data_format or "channels_first"
        self.input_format = input_format
        self.end_layer = end_layer
        self._layer = LayerCall(self.module, self.layer_name, call)
        self._infer_format = data_format is None
        self._knowledge = Knowledge() if knowledge is None else knowledge
        self._shadows = Shadows() if shadows is None else shadows
        # Of this split alone: a tail that ends elsewhere reads other things.
        self._unread = Unread()
        self._rewrites = rewrites
        self._itself = object()
        self._is_counted = False

    def run_features(self, inputs: Inputs) -> torch.Tensor:
        """Feature maps (B, *feature map) of a batch: one pass of the head, without a graph.

        The first time, one image, or twice the only one, also runs through the whole model, which shows how
        often the layer runs, and which axes change with the number of images.

        Raises:
            LayerError: the layer never runs, or more than once and `call` does not say which, or the
                model cannot be split there.
        """
        with self._shadows.lease() as shadow, self._patched():
            if not self._is_counted:
                self._count_calls(shadow, inputs)
            found = self._run_head(shadow, inputs, remember=False)
            return found.features.contiguous() if found.reordered else found.features

    @contextmanager
    def open_head(self, inputs: Inputs) -> Iterator[TorchTail]:
        """Run the head once on `inputs` (batch size B) and give the tail for them.

        What runs is in evaluation mode, without gradients for parameters; under autocast, head and tail
        alone still are. The tail may be used inside the context only, by one thread.

        Raises:
            LayerError: the layer never runs, or the model cannot be split there.
        """
        with self._shadows.lease() as shadow, self._patched():
            if self.end_layer is not None and not self._is_counted:
                # A tail that ends early does not see how often the layers run.
                self._count_calls(shadow, inputs)
            found = self._run_head(shadow, inputs, remember=True)
            with without_autocast(found.features.device) as outside:
                replay = Replay(
                    self._layer,
                    self.end_layer,
                    run=self._runner(shadow),
                    run_head=lambda again: self._run_head(shadow, again, remember=True).head,
                    shadow=shadow,
                    inputs=inputs,
                    features=found.features,
                    head=found.head,
                    reordered=found.reordered,
                    data_format=self.data_format,
                    knowledge=self._knowledge,
                    assumed=self._assumed,
                    unread=self._unread,
                    outside=outside,
                    rewrites=self._uses_rewrites,
                )
                features = found.features
                if replay.prefers_channels_last:
                    features = features.contiguous(memory_format=torch.channels_last)
                elif found.reordered:
                    features = features.contiguous()
                del found
                try:
                    yield TorchTail(features, replay)
                finally:
                    replay.close()

    def own_outputs(self, inputs: Inputs) -> OwnOutputs:
        """See `Split.own_outputs`."""
        with self._shadows.lease() as shadow, self._patched():
            if not isinstance(self.model, nn.Module):
                with torch.no_grad():
                    return OwnOutputs(self._runner(shadow)(self._own(inputs)), batch_size(inputs), True)
            return self._count_calls(shadow, inputs)

    @property
    def _assumed(self) -> AssumptionsAtPlace:
        end = self.end_layer
        place = ref(self.module), self.call, self.where, end and (ref(end.module), end.call)
        runs = what_runs(self.model) or self._itself
        assumed: AssumptionsAtPlace = self._shadows.assumed.get((place, runs), AssumptionsAtPlace)
        return assumed

    @property
    def _uses_rewrites(self) -> bool:
        return self._rewrites and enabled()

    def _patched(self) -> Any:
        """Context for all passes of a closure, since to patch for each would take as long as a layer."""
        return nullcontext() if isinstance(self.model, nn.Module) else module_call_patch.applied()

    def _runner(self, shadow: Shadow) -> Callable[[Inputs], Any]:
        """What runs the model or the closure on a shadow."""
        model = self.model
        if isinstance(model, nn.Module):
            return partial(call_with, shadow.of(model))

        def run(inputs: Inputs) -> Any:
            with redirect_calls(shadow.of):
                return model(inputs)

        return run

    def _run_head(self, shadow: Shadow, inputs: Inputs, *, remember: bool) -> _Found:
        """A pass of the head, which has found the features."""
        assumed = self._assumed
        order, unreached = assumed.head_takes_order, assumed.memory_unreached
        reorders = (
            self._uses_rewrites
            and self.input_format == "channels_first"
            and any(map(gains_by_order, tensors(inputs)))
        )
        observer: Observer | None = None

        def attempt(relied: frozenset[Assumption]) -> Outcome[tuple[HeadPass, bool]]:
            nonlocal observer
            reordered = reorders and order in relied
            unknown = unreached.is_unknown or (reordered and order.is_unknown)
            observer = Observer() if unknown else None
            head = self._head_pass(shadow, inputs, remember=remember, compare=unreached not in relied)
            with observer or nullcontext():
                self._pass(shadow, self._own(inputs, reordered), head)
            broken: list[Assumption] = []
            confirmed: list[Assumption] = []
            if observer is not None:
                if reordered:
                    (broken if observer.depends_on_order else confirmed).append(order)
                if observer.reaches_memory:
                    broken.append(unreached)
            return Outcome((head, reordered), broken, confirmed)

        def suspects(error: BaseException, relied: frozenset[Assumption]) -> Collection[Assumption]:
            if not (reorders and order in relied and isinstance(error, Exception)):
                return []
            asks = observer is not None and observer.asks_for_order and order.is_unknown
            return [order] if is_of_torch(error) or asks else []

        head, reordered = run_assuming((order, unreached), attempt, suspects)
        if not head.has_features:
            self._raise_never_ran(shadow, head)
        features = head.take_features()
        if self._infer_format:
            self.data_format = data_format_of(features.shape[1:], head.hint)
        return _Found(head, features, reordered)

    def _head_pass(self, shadow: Shadow, inputs: Inputs, **options: Any) -> HeadPass:
        return HeadPass(
            self._layer,
            self.where,
            self.end_layer,
            shadow,
            batch_size(inputs),
            tensors(inputs)[0].shape,
            self._knowledge,
            **options,
        )

    @staticmethod
    def _own(inputs: Inputs, reordered: bool = False) -> Inputs:
        """A copy of the inputs: the pass may write into them; they are the caller's, and needed again."""

        def own(tensor: torch.Tensor) -> torch.Tensor:
            last = reordered and gains_by_order(tensor)
            return tensor.detach().clone(memory_format=torch.channels_last if last else torch.preserve_format)

        return tree_map(own, inputs)

    def _pass(self, shadow: Shadow, inputs: Inputs, head: HeadPass) -> Any:
        """Run the model on `inputs`, which it may write into, up to where the head ends."""
        run, switch = self._runner(shadow), shadow.switch
        with torch.no_grad():
            try:
                switch.set({}, head)
                return run(inputs)
            except Stop as stop:
                if stop.head is not head:
                    raise
            finally:
                switch.handlers = switch.default = None

    def _raise_never_ran(self, shadow: Shadow, head: HeadPass) -> NoReturn:
        if head.n_calls:
            raise LayerError(
                f"layer {self.layer_name!r} runs {head.n_calls} time(s) in a pass of the model, "
                f"so there is no call={self.call}; calls are counted from 0"
            )
        reason = ""
        if any(isinstance(module, torch.jit.ScriptModule) for module in shadow.sites):
            reason = "; parts of the model are scripted, and layers in there cannot be split at"
        elif any(isinstance(module, torch.fx.GraphModule) for module in shadow.sites):
            reason = "; in an exported model layers are no modules, but torch.export.unflatten makes them so"
        raise LayerError(f"layer {self.layer_name!r} does not run when the model is called{reason}")

    def _count_calls(self, shadow: Shadow, inputs: Inputs) -> OwnOutputs:
        """Run the whole model on another number of images."""
        batch = batch_size(inputs)

        def another_number(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.ndim or tensor.shape[0] != batch:
                return tensor.detach().clone()
            return tensor.detach()[:1].clone() if batch > 1 else tensor.detach().repeat_interleave(2, 0)

        others = tree_map(another_number, inputs)
        counter = self._head_pass(shadow, others, remember=False, stop=False)
        outputs = self._pass(shadow, others, counter)
        check_calls(self._layer, counter.n_calls)
        if counter.n_calls <= (self.call or 0):
            self._raise_never_ran(shadow, counter)
        end, ends = self.end_layer, len(counter.end_numbers)
        if end is not None and end.call is None and ends > 1:
            raise LayerError(
                f"layer {end.name!r} runs {ends} times in a pass of the model; name one of its calls, "
                f"'{end.name}:0' to '{end.name}:{ends - 1}'"
            )
        if end is not None and ends <= (end.call or 0):
            raise LayerError(f"layer {end.name!r} runs {ends} time(s) when the model is called")
        self._is_counted = True
        return OwnOutputs(outputs, batch_size(others))


def call_with(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a mapping as its keyword arguments, a tuple or list as its positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def batch_size(inputs: Inputs) -> int:
    """Number of images in `inputs`: the length of the first axis of the first tensor.

    Raises:
        InputError: there is no tensor, or the first has no axis or no images.
    """
    found = tensors(inputs)
    if not found or not found[0].ndim:
        raise InputError(f"inputs of type {type(inputs).__name__} hold no tensor with a batch axis first")
    if not found[0].shape[0]:
        raise InputError(f"inputs hold no images: their shape is {tuple(found[0].shape)}")
    return found[0].shape[0]
