"""A model cut at a layer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import nn

from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Cut, Head, Inputs
from iba_core.framework.layout import DataFormat
from iba_torch.tail.calls import detour, intercept_calls, is_watched, perform, run, unwrap
from iba_torch.tail.channels import channel_hint, data_format_of, require_channels
from iba_torch.tail.frozen import Frozen, frozen
from iba_torch.tail.precision import autocast_dtype, without_autocast
from iba_torch.tail.recording import Arguments, BatchAxes, Call, Lender, Place, Shapes, Value, leaves, record
from iba_torch.tail.rewrites.chains import Chains
from iba_torch.tail.rewrites.memory_order import gains_by_order, is_channels_last
from iba_torch.tail.rewrites.normalization import ScaleAndShift
from iba_torch.tail.rewrites.pooling import averaged
from iba_torch.tail.rewrites.unread import Missed, Unread, Watch
from iba_torch.tail.trees import constants, first_tensor, replace_first, tensors, tree_map

_circumstances: ContextVar[Hashable] = ContextVar("circumstances", default=None)


def circumstances() -> Hashable:
    """What the tail of the cut that is open depends on, besides tensors with axes; None if none is open."""
    return _circumstances.get()


class LayerCall(NamedTuple):
    """One of the calls of a module in a pass of a model."""

    module: nn.Module
    name: str
    """The module's name, for messages."""
    call: int | None = None
    """Which of its calls, from 0; None if there is only one."""


class TorchCut(Cut):
    """A PyTorch model, or anything that runs modules, cut at one of them.

    The head is run once, up to the layer, and what the modules before it returned is remembered. The tail
    is then the model run again, with remembered outputs in place of those modules and the given feature
    map in place of the layer's. Whatever the model does between modules, skip connections included,
    stays as it is.

    Args:
        run: called with the inputs, runs the model; its return value is what `tail` returns.
        module: the module to cut at.
        layer_name: its name, for messages.
        where: the module's ``"output"`` or its ``"input"``. Of several tensors, the first.
        call: which of its calls in a pass, from 0; may be None if there is only one.
        data_format: where the channels of the feature map are; None to conclude it from the types of
            the layers.
        input_format: where the channels of the inputs are.
        until: where the tail ends: at the output of this call, of which `tail` then returns the first
            tensor, the images first. None for the end of the model.
        shapes: what is known of the shapes in the model. The first call of `features` finds out which axes
            of what is passed between the layers are those of the images. A cut that is opened without that
            takes the first axis for it, or the second where the layers speak for it: of sequence-first
            tensors with as many steps as images, that can be the wrong one.
    """

    def __init__(
        self,
        run: Callable[[Inputs], Any],
        module: nn.Module,
        *,
        layer_name: str | None = None,
        where: Literal["output", "input"] = "output",
        call: int | None = None,
        data_format: DataFormat | None = None,
        input_format: DataFormat = "channels_first",
        until: LayerCall | None = None,
        shapes: Shapes | None = None,
    ) -> None:
        if where not in ("output", "input"):
            raise InputError(f"where={where!r} is neither 'output' nor 'input'")
        if call is not None and call < 0:
            raise InputError(f"call={call} is negative; calls of a layer are counted from 0")
        self.run = run
        self.module = unwrap(module)
        self.layer_name = type(self.module).__name__ if layer_name is None else layer_name
        self.where = where
        self.call = call
        self.data_format = data_format or "channels_first"
        self.input_format = input_format
        self.until = until
        self.shapes = Shapes() if shapes is None else shapes
        self._infer_format = data_format is None
        self._habits = self.shapes.habits(Place(self.module, call or 0, where))
        # Of this cut alone: a tail that ends elsewhere reads other things.
        self._unread = Unread()
        self._calls: int | None = None
        self._open: _Opened | None = None

    def features(self, inputs: Inputs) -> torch.Tensor:
        """Feature maps (B, *feature map) of a batch: one pass of the head, without a graph.

        The first time, one image, or twice the only one, also runs through the whole model, which shows how
        often the layer runs, and which axes change with the number of images.

        Raises:
            LayerError: the layer never runs, or more than once and `call` does not say which, or the
                model cannot be cut there.
        """
        with frozen() as still:
            if self._calls is None:
                self._count_calls(inputs, still)
            head = self._run_head(inputs, still, remember=False)
            features = head.take_features()
            return features.contiguous() if head.reordered else features

    @contextmanager
    def open(self, inputs: Inputs) -> Iterator[Head]:
        """Run the head once on `inputs` (batch size B) and make `tail` ready for them.

        Inside the context the modules that run are in evaluation mode and gradients for their
        parameters are off; under autocast, the tail alone still is. On leaving, also by an exception,
        everything is as it was.

        Raises:
            LayerError: the layer never runs, or the model cannot be cut there.
        """
        if self._open is not None:
            raise RuntimeError(f"the cut at layer {self.layer_name!r} is open already")
        with frozen() as still:
            if self.until is not None and self._calls is None:
                # A tail that ends early does not see how often the layers run.
                self._count_calls(inputs, still)
            head = self._run_head(inputs, still, remember=True)
            features = head.take_features()
            autocast = autocast_dtype(features.device)
            with without_autocast(features.device) as outside, detour:
                known = _circumstances.set((autocast, features.dtype, constants(inputs)))
                try:
                    self._open = _Opened(self, inputs, features, head, outside)
                    features = self._open.ordered(features)
                    yield Head(features)
                finally:
                    self._open = None
                    _circumstances.reset(known)

    def tail(self, z: torch.Tensor, carry: tuple[Any, ...] = ()) -> Any:
        """Output of the model for feature maps `z`, differentiable in `z`. Only inside `open`.

        Args:
            z: (B * S, *feature map); the S copies of an image follow one another.
            carry: nothing; what else reaches the tail is kept by the cut.

        Returns:
            What the model returns for B * S images.

        Raises:
            LayerError: the layer runs more than once in a pass and `call` does not say which is meant,
                or the output does not depend on it.
        """
        if self._open is None:
            raise RuntimeError("a cut's tail can only be run while the cut is open")
        return self._open.run_tail(z)

    def _run_head(self, inputs: Inputs, still: Frozen, *, remember: bool) -> _HeadPass:
        """A pass of the head, which has found the features."""

        def run(reordered: bool) -> _HeadPass:
            def own(tensor: torch.Tensor) -> torch.Tensor:
                # The pass may write into its inputs; they are the caller's, and needed again.
                last = reordered and gains_by_order(tensor)
                order = torch.channels_last if last else torch.preserve_format
                return tensor.detach().clone(memory_format=order)

            head = _HeadPass(self, still, batch_size(inputs), remember=remember)
            self._pass(tree_map(own, inputs), head)
            head.reordered = reordered
            return head

        reorders = self.input_format == "channels_first" and any(map(gains_by_order, tensors(inputs)))
        head = self._habits.head_order.run(run, reorders)
        if head.features is None:
            self._raise_never_ran(head)
        if self._infer_format:
            self.data_format = data_format_of(head.features.shape[1:], head.hint)
        return head

    def _pass(self, inputs: Inputs, handler: _HeadPass) -> None:
        """Run the model on `inputs`, which it may write into, up to where the handler ends it."""
        handler.input_shape = tensors(inputs)[0].shape
        with torch.no_grad(), intercept_calls(handler):
            try:
                self.run(inputs)
            except _Stop as stop:
                if stop.head is not handler:
                    raise

    def _raise_never_ran(self, head: _HeadPass) -> NoReturn:
        if head.n_calls:
            raise LayerError(
                f"layer {self.layer_name!r} runs {head.n_calls} time(s) in a pass of the model, "
                f"so there is no call={self.call}; calls are counted from 0"
            )
        reason = ""
        if head.scripted:
            reason = "; parts of the model are scripted, and layers in there cannot be cut at"
        elif head.exported:
            reason = "; in an exported model layers are no modules, but torch.export.unflatten makes them so"
        raise LayerError(f"layer {self.layer_name!r} does not run when the model is called{reason}")

    def _count_calls(self, inputs: Inputs, still: Frozen) -> None:
        batch = batch_size(inputs)
        counter = _HeadPass(self, still, 1 if batch > 1 else 2, remember=False, stop=False)

        def another_number(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.ndim or tensor.shape[0] != batch:
                return tensor.detach().clone()
            return tensor.detach()[:1].clone() if batch > 1 else tensor.detach().repeat_interleave(2, 0)

        self._pass(tree_map(another_number, inputs), counter)
        self._check_calls(counter.n_calls)
        if counter.n_calls <= (self.call or 0):
            self._raise_never_ran(counter)
        if self.until is not None:
            self._check_end(self.until, len(counter.until_numbers))

    @staticmethod
    def _check_end(until: LayerCall, n_calls: int) -> None:
        if until.call is None and n_calls > 1:
            raise LayerError(
                f"layer {until.name!r} runs {n_calls} times in a pass of the model; name one of its calls, "
                f"'{until.name}:0' to '{until.name}:{n_calls - 1}'"
            )
        if n_calls <= (until.call or 0):
            raise LayerError(f"layer {until.name!r} runs {n_calls} time(s) when the model is called")

    def _check_calls(self, n_calls: int) -> None:
        if self.call is None and n_calls > 1:
            raise LayerError(
                f"layer {self.layer_name!r} runs {n_calls} times in a pass of the model; choose one of them "
                f"by its name, '{self.layer_name}:0' to '{self.layer_name}:{n_calls - 1}', "
                f"or with call=0 to call={n_calls - 1}"
            )
        self._calls = n_calls


class _Stop(BaseException):
    """Ends a pass at the cut. No `Exception`, so that no model that catches those catches it."""

    def __init__(self, head: _HeadPass) -> None:
        super().__init__("the pass ends at the cut")
        self.head = head


class _End(BaseException):
    """Ends a pass of the tail before the end of the model."""

    def __init__(self, tail: _TailPass, output: torch.Tensor) -> None:
        super().__init__("the pass ends at a layer")
        self.tail = tail
        self.output = output


class _Holding:
    """Whether a module, or any inside of it, is such as a test says; each module is tested once."""

    def __init__(self, test: Callable[[nn.Module], bool]) -> None:
        self._test = test
        self._known: dict[nn.Module, bool] = {}

    def __call__(self, module: nn.Module) -> bool:
        found = self._known.get(module)
        if found is None:
            self._known[module] = found = self._test(module) or self.inside(module)
        return found

    def inside(self, module: nn.Module) -> bool:
        """Whether one that is inside of a module is such."""
        # `Module.children` would take longer than some of the layers.
        return any(self(child) for child in module._modules.values() if child is not None)


class _HeadPass:
    """Handler of the calls in a pass that ends at the cut."""

    def __init__(
        self, cut: TorchCut, still: Frozen, batch: int, *, remember: bool, stop: bool = True
    ) -> None:
        self.cut = cut
        self.still = still
        self.batch = batch
        self.input_shape: torch.Size | None = None
        self.features: torch.Tensor | None = None
        self.feature_axis = 0
        self.reordered = False
        self.hint: Any = None
        self.n_calls = 0
        self.until_numbers: dict[Call, int] = {}
        self.scripted = self.exported = False
        self.everything = Call(nn.Module(), opened=remember)
        self.cut_call: Call | None = None
        self._current = self.everything
        self._remember = remember
        self._stop = stop
        self._leads = _Holding(lambda inner: inner is self.cut.module)
        # Calls that hooks see must take place.
        self._watched = _Holding(is_watched)
        self._numbers: dict[nn.Module, int] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.still.add(module)
        self.scripted |= isinstance(module, torch.jit.ScriptModule)
        self.exported |= isinstance(module, torch.fx.GraphModule)
        at_cut = False
        if module is self.cut.module:
            at_cut = self._stop and self.n_calls == (self.cut.call or 0)
            self.n_calls += 1
        parent, call = self._current, Call(module, self._numbers.get(module, 0))
        self._numbers[module] = call.number + 1
        parent.calls.append(call)
        if self.cut.until is not None and module is self.cut.until.module:
            self.until_numbers[call] = len(self.until_numbers)
        # Outputs of modules inside of one that is repeated from memory are never asked for.
        watched = self._remember and self._watched.inside(module)
        call.opened = self._remember and (watched or self._leads(module))
        remember = self._remember and parent.opened and not watched
        self._current = call
        try:
            return perform(module, args, kwargs, partial(self._forward, call, remember, at_cut))
        except RuntimeError:
            given = first_tensor((args, kwargs))
            if given is not None and given.ndim > 1 and given.shape == self.input_shape:
                require_channels(module, given.shape)
            raise
        finally:
            self._current = parent
            self.hint = channel_hint(module) or self.hint

    def _forward(
        self,
        call: Call,
        remember: bool,
        at_cut: bool,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the forward of a module, and remember what it did or end the pass."""
        module = call.module
        arguments = Arguments(args, kwargs) if remember or at_cut else None
        if module is self.cut.module and self.cut.where == "input":
            self._look(Place(module, call.number, "input"), (args, kwargs))
        if at_cut and self.cut.where == "input":
            call.takes_z = True
            self.hint = channel_hint(module) or self.hint
            axes = self._axes(Place(module, call.number, "input"), Arguments(args, kwargs))
            self._reach(call, first_tensor((args, kwargs)), axes)
        output = forward(*args, **kwargs)
        self._look(Place(module, call.number), output)
        if arguments is None:
            return output
        axes = self._axes(Place(module, call.number), arguments)
        feature = first_tensor(output) if at_cut else None
        if remember:
            call.result = record(output, arguments, axes, feature)
            if call.result is not None:
                call.calls.clear()
        if at_cut:
            call.gives_z = call.result is None
            self.hint = channel_hint(module) or self.hint
            self._reach(call, feature, axes)
        return output

    def take_features(self) -> torch.Tensor:
        """The features, which the pass then holds no longer."""
        features, self.features = self.features, None
        assert features is not None, "the pass has found them"
        return features

    def _look(self, place: Place, tree: Any) -> None:
        if not self._remember:
            self.cut.shapes.note(place, self.batch, tensors(tree))

    def _axes(self, place: Place, arguments: Arguments) -> BatchAxes:
        return BatchAxes(place, arguments, self.batch, self.cut.shapes)

    def _reach(self, call: Call, feature: torch.Tensor | None, axes: BatchAxes) -> NoReturn:
        place = f"the {self.cut.where} of layer {self.cut.layer_name!r}"
        if feature is None:
            raise LayerError(f"{place} holds no tensor that could be replaced")
        if not feature.is_floating_point():
            raise LayerError(f"{place} is of type {feature.dtype}; a feature map is floating point")
        axis = axes.find(feature)
        if axis is None or feature.ndim < 2:
            raise LayerError(
                f"{place} has the shape {tuple(feature.shape)} for a batch of {self.batch}; "
                f"a feature map has the shape ({self.batch}, ...)"
            )
        self.features, self.feature_axis = feature.detach().movedim(axis, 0), axis
        self.cut_call = call
        raise _Stop(self)


class _Opened:
    """What an open cut knows of the head."""

    def __init__(
        self,
        cut: TorchCut,
        inputs: Inputs,
        features: torch.Tensor,
        head: _HeadPass,
        outside: AbstractContextManager[Any],
    ) -> None:
        self.cut = cut
        self.outside = outside
        self.inputs = tree_map(lambda tensor: _input_value(tensor, head.batch), inputs)
        self.shape, self.dtype, self.device = features.shape[1:], features.dtype, features.device
        self.keeps_last = is_channels_last(features) and not head.reordered
        self.reorders = (
            gains_by_order(features) and head.feature_axis == 0 and cut.data_format == "channels_first"
        )
        self.z_lender = Lender()
        merge = ScaleAndShift()
        self.stand_ins = (merge, averaged)
        counted = {call.module for call in head.everything.within()} | {cut.module}
        if cut.until is not None:
            counted.add(cut.until.module)
        self.chains = Chains(merge, frozenset(counted))
        self._take(head)

    def _take(self, head: _HeadPass) -> None:
        """Hand what a pass of the head remembers to the passes of the tail."""
        self.head = head
        head.everything.prune()
        values: list[Value] = list(head.everything.values())
        # A hook may hand what it sees to somebody.
        watched = any(is_watched(call.module) for call in head.everything.within())
        self.spared = [] if watched else [value for value in values if value.tensor.is_floating_point()]
        self._spare()
        tree_map(values.append, self.inputs, Value)
        self.lenders = [self.z_lender, *(value.lender for value in values)]

    def _spare(self) -> None:
        """Let go of what nothing reads, as far as that is known."""
        for value in self.cut._unread.among(self.spared):
            value.drop()

    def ordered(self, features: torch.Tensor) -> torch.Tensor:
        """The features in the order in memory that the tail will want what is made of them in."""
        if self.reorders and not self.cut._habits.tail_order.refused:
            return features.contiguous(memory_format=torch.channels_last)
        return features.contiguous() if self.head.reordered else features

    def run_tail(self, z: torch.Tensor) -> Any:
        cut, batch = self.cut, self.head.batch
        copies = z.shape[0] // batch
        if tuple(z.shape) != (copies * batch, *self.shape) or not copies:
            raise InputError(
                f"z has the shape {tuple(z.shape)}; the tail of layer {cut.layer_name!r} takes "
                f"(n * {batch}, {', '.join(map(str, self.shape))})"
            )
        tail, output = cut._habits.tail_order.run(partial(self._attempt, z, copies), self.reorders)
        if not tail.reached:
            raise LayerError(f"layer {cut.layer_name!r} did not run again when the model was run again")
        if cut.until is not None and not tail.ended:
            raise LayerError(
                f"layer {cut.until.name!r} gives no batch of tensors behind layer {cut.layer_name!r}"
            )
        if cut.call is None and cut.until is None:
            cut._check_calls(1 + tail.calls_after)
        found = [tensor for tensor in tensors(output) if tensor.is_floating_point()]
        differentiable = z.requires_grad and torch.is_grad_enabled()
        if found and differentiable and not any(tensor.requires_grad for tensor in found):
            end = "the model's output" if cut.until is None else f"layer {cut.until.name!r}"
            raise LayerError(
                f"{end} does not depend on layer {cut.layer_name!r}, or the model runs without "
                "gradients (torch.no_grad, detach)"
            )
        return output

    def _attempt(self, z: torch.Tensor, copies: int, reordered: bool) -> tuple[_TailPass, Any]:
        """A pass, or another where the tail does to what it is given what it has not done before."""
        shared = self.cut._habits.tail_writes is False
        try:
            return self._sparing_pass(z, copies, reordered)
        except RuntimeError as error:
            if not (shared and "in-place" in str(error)):
                raise
        # The pass that broke off has let that be forgotten.
        return self._sparing_pass(z, copies, reordered)

    def _sparing_pass(self, z: torch.Tensor, copies: int, reordered: bool) -> tuple[_TailPass, Any]:
        """A pass without what others have been seen not to read, or, if this one does, with everything."""
        unread = self.cut._unread
        # Tensors without numbers, as within a compiler, show nothing.
        shows = bool(self.spared) and type(z) is torch.Tensor
        if shows and not unread.is_known:
            with Watch() as watch:
                result = self._pass(self._place(z, reordered), copies, watch)
            unread.note(watch.unread(self.spared))
            self._spare()
            return result
        try:
            result = self._pass(self._place(z, reordered), copies)
        except Missed:
            unread.refuse()
        else:
            if not (shows and unread.is_untried):
                return result
            # Code that PyTorch does not see, in an extension, may have read them: then it has met NaN.
            if all(bool(x.isfinite().all()) for x in tensors(result[1]) if x.is_floating_point()):
                unread.settle()
                return result
            unread.refuse()
        self._remember_everything()
        return self._pass(self._place(z, reordered), copies)

    def _remember_everything(self) -> None:
        """Run the head again, for what has not been kept."""
        inputs = tree_map(lambda value: value.tensor, self.inputs, Value)
        with self.outside:
            self._take(self.cut._run_head(inputs, self.head.still, remember=True))

    def _pass(self, z: torch.Tensor, copies: int, watch: Watch | None = None) -> tuple[_TailPass, Any]:
        """One pass of the tail: its handler, and what the model returned."""
        tail = _TailPass(self, z, copies, watch)
        finished = False
        try:
            # Autocast that is on in here was asked for in here.
            asked = autocast_dtype(self.device) is not None
            with nullcontext() if asked else self.outside, intercept_calls(tail):
                output = tail.run(tree_map(lambda value: value.lend(copies), self.inputs, Value))
            finished = True
        finally:
            for lender in self.lenders:
                lender.settle(broken=not finished)
            if self.z_lender.written is not None or not finished:
                self.cut._habits.tail_writes = self.z_lender.written if finished else None
        return tail, output

    def _place(self, z: torch.Tensor, reordered: bool) -> torch.Tensor:
        """`z` as the model is to see it."""
        z = z.to(self.dtype)
        if reordered or self.keeps_last:
            z = z.contiguous(memory_format=torch.channels_last)
        elif is_channels_last(z):
            z = z.contiguous()
        # A leaf of a graph, or a view of one, is safe: PyTorch lets nothing write into it, should the tail
        # have changed.
        leaf = z._base if z._is_view() else z
        is_safe = leaf.is_leaf and leaf.requires_grad and torch.is_grad_enabled()
        if not is_safe or self.cut._habits.tail_writes is not False:
            z = self.z_lender.lend(z)
        return z.movedim(0, self.head.feature_axis)


class _TailPass:
    """Handler of the calls in a pass that repeats the head from memory."""

    def __init__(self, opened: _Opened, z: torch.Tensor, copies: int, watch: Watch | None = None) -> None:
        self.head = opened.head
        self._watch = watch
        self.z = z
        self.copies = copies
        self._stand_ins = opened.stand_ins
        self._chains = opened.chains
        self.reached = False
        self.calls_after = 0
        self.ended = False
        self._until_calls = len(self.head.until_numbers)
        self._steps: dict[nn.Module, deque[Call]] = {}
        self.head.everything.plan(self._steps)

    def run(self, inputs: Inputs) -> Any:
        """What the model returns, or the layer that the tail ends at."""
        try:
            return self.head.cut.run(inputs)
        except _End as end:
            if end.tail is not self:
                raise
            self.ended = True
            return end.output

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.head.still.add(module)
        step = self._steps.get(module)
        call = step.popleft() if step else None
        until = self.head.cut.until
        if until is None or module is not until.module:
            return self._output(call, module, args, kwargs)
        number = self.head.until_numbers.get(call, self._until_calls)
        self._until_calls += number == self._until_calls
        axes = BatchAxes(
            Place(module, number),
            Arguments(args, kwargs),
            self.copies * self.head.batch,
            self.head.cut.shapes,
        )
        output = self._output(call, module, args, kwargs)
        found = tensors(output) if number == (until.call or 0) and self.reached else []
        axis = axes.find(found[0]) if found else None
        if axis is not None:
            raise _End(self, found[0].movedim(axis, 0))
        return output

    def _output(
        self, call: Call | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if call is None:
            self.calls_after += self.reached and module is self.head.cut.module
            for stand_in in self._stand_ins:
                output = stand_in(module, args, kwargs)
                if output is not None:
                    return output
            if self._chains.takes(module, args, kwargs):
                return self._chains(module, *args)
            if self._watch is not None and isinstance(module, torch.jit.ScriptModule):
                self._watch.read((args, kwargs))
            return run(module, args, kwargs)
        self.reached |= call is self.head.cut_call
        return perform(module, args, kwargs, partial(self._forward, call))

    def _forward(
        self, call: Call, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Do what the forward of a module has done in the head, with the feature map put in."""
        if call.result is not None:
            output = call.result.repeat(args, kwargs, self.copies, self.z)
            if self._watch is not None:
                for leaf, tensor in zip(leaves(call.result.output), tensors(output), strict=True):
                    if isinstance(leaf, Value):
                        self._watch.lend(tensor, leaf)
            return output
        if call.takes_z:
            args, kwargs = replace_first((args, kwargs), self.z)
        if self._chains.takes(call.module, args, kwargs):
            output = self._chains(call.module, *args)
        else:
            output = forward(*args, **kwargs)
        return replace_first(output, self.z) if call.gives_z else output


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


def _input_value(tensor: torch.Tensor, batch: int) -> Value:
    if tensor.is_inference():
        # Such a tensor cannot take part in a differentiable computation; a copy made out here can.
        tensor = tensor.clone()
    axis = 0 if tensor.ndim and tensor.shape[0] == batch else None
    return Value(tensor.detach(), axis)
