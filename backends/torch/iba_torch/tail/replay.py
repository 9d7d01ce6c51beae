"""Passes of a model in which the head is repeated from memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch.nn.modules.batchnorm import _NormBase  # nothing public is the base of all of these

from iba_core.errors import InputError, LayerError
from iba_core.framework.adapter import Inputs
from iba_core.framework.inputs import Shared
from iba_core.framework.layout import DataFormat
from iba_torch.tail.checkpoints import require_no_reentrant
from iba_torch.tail.effects import Effect
from iba_torch.tail.head import HeadPass
from iba_torch.tail.places import (
    Arguments,
    AssumptionsAtPlace,
    BatchAxes,
    InputKind,
    Knowledge,
    LayerCall,
    Place,
)
from iba_torch.tail.precision import autocast_dtype, in_mode
from iba_torch.tail.recording import Call, Feature, Filling, Value, leaves
from iba_torch.tail.rewrites.assumptions import (
    Assumption,
    Outcome,
    State,
    is_about_order,
    is_of_torch,
    run_assuming,
)
from iba_torch.tail.rewrites.conditions import forwards
from iba_torch.tail.rewrites.copy_on_write import Loan, forget, take_back
from iba_torch.tail.rewrites.memory_order import gains_by_order, is_channels_last
from iba_torch.tail.rewrites.observer import Observer
from iba_torch.tail.rewrites.plan import Plan, Rewrite
from iba_torch.tail.rewrites.unread import PlaceholderRead, Unread
from iba_torch.tail.shadow import Handler, Shadow, Site
from iba_torch.tail.trees import not_inferring, replace_first, tensors, tree_map


class End(BaseException):
    """Ends a pass of the tail before the end of the model."""

    def __init__(self, replay: Replay, output: torch.Tensor) -> None:
        super().__init__("the pass ends at a layer")
        self.replay = replay
        self.output = output


class Replay:
    """Runs the tail of a model for feature maps. All state of an open head is in here.

    Args:
        layer: the call that the model is split at.
        end_layer: the call that the tail ends at; None for the end of the model.
        run: runs the model on inputs.
        run_head: runs the head again, remembering all.
        allow: prepares for an effect that a pass was ended by, and gives the assumption that it breaks.
        shadow: what runs, of this object alone while the head is open.
        inputs: what the head ran on.
        kind: of the inputs.
        features: what it found.
        head: the pass.
        reordered: whether the head ran with the channels last in memory.
        data_format: where the channels of the features are.
        knowledge: what is known of the model.
        assumed: assumptions about its two parts.
        unread: likewise, of this tail.
        outside: context in which the head ran.
        rewrites: whether rewrites may be used.
    """

    def __init__(
        self,
        layer: LayerCall,
        end_layer: LayerCall | None,
        run: Callable[[Inputs], Any],
        run_head: Callable[[Inputs], HeadPass],
        allow: Callable[[Effect], Collection[Assumption]],
        shadow: Shadow,
        inputs: Inputs,
        kind: InputKind,
        features: torch.Tensor,
        head: HeadPass,
        reordered: bool,
        data_format: DataFormat,
        knowledge: Knowledge,
        assumed: AssumptionsAtPlace,
        unread: Unread,
        outside: AbstractContextManager[Any],
        rewrites: bool,
    ) -> None:
        self._layer, self._end_layer, self._run, self._run_head = layer, end_layer, run, run_head
        self._allow = allow
        self._shadow, self._knowledge, self._assumed, self._unread = shadow, knowledge, assumed, unread
        self._outside = outside
        self._casts_outside = not isinstance(outside, nullcontext)
        self._uses_rewrites = rewrites
        self._inputs = tree_map(lambda leaf: _input_value(leaf, kind.batch), inputs, (torch.Tensor, Shared))
        self._kind, self._batch, self._shape = kind, kind.batch, features.shape[1:]
        self._dtype, self._device = features.dtype, features.device
        self._keeps_last = is_channels_last(features) and not reordered
        self._gains = (
            self._uses_rewrites
            and gains_by_order(features)
            and head.feature_axis == 0
            and data_format == "channels_first"
        )
        self._z_loan = Loan(assumed.features_unwritten)
        self._end_origin = None if end_layer is None else id(end_layer.module)
        end = end_layer and (self._end_origin, end_layer.call)
        self._constants = id(layer.module), layer.call, head.side, end, kind.constants
        self._is_open = True
        self._head_is_spoilt = self._has_dropped = False
        self._head: HeadPass | None = None
        self._loans: list[Loan] = []
        self._spared: list[Value] = []
        self._steps: dict[Site, list[Call]] = {}
        self._handlers: dict[Site, Handler | None] = {}
        shadow.stays = not assumed.state_stays.is_broken
        self._take(head)
        self._plan = self._planned(head)
        self._end()

    @property
    def prefers_channels_last(self) -> bool:
        """Whether the tail is faster where its maps have the channels last in memory."""
        return self._gains and not self._assumed.tail_takes_order.is_broken

    @property
    def trace_key(self) -> Hashable:
        """What a compiled step depends on besides the shapes of its arguments."""
        return (autocast_dtype(self._device), self._dtype, self._shape, self._constants, self._uses_rewrites)

    def state(self) -> list[torch.Tensor]:
        """The parameters and buffers that passes may use."""
        return self._shadow.state()

    def close(self) -> None:
        """Let go of what the head has computed."""
        self._is_open = False
        self._inputs = None
        self._plan.merge.forget()
        self._loans.clear()
        self._spared.clear()
        self._steps.clear()
        self._handlers.clear()
        self._head = None
        self._z_loan.forget()
        self._end()

    def __call__(self, z: torch.Tensor, carry: tuple[Any, ...] = ()) -> Any:
        """Output of the model for feature maps `z`, differentiable in `z`.

        Args:
            z: (B * S, *feature map); the S copies of an image follow one another.
            carry: nothing; what else reaches the tail is kept here.

        Raises:
            LayerError: the layer runs more than once in a pass and it was not said which call is meant, or
                the output does not depend on it.
        """
        if not self._is_open:
            raise RuntimeError("a tail can only be run inside of the context of its head")
        copies = z.shape[0] // self._batch
        if tuple(z.shape) != (copies * self._batch, *self._shape) or not copies:
            raise InputError(
                f"z has the shape {tuple(z.shape)}; the tail of layer {self._layer.name!r} takes "
                f"(n * {self._batch}, {', '.join(map(str, self._shape))})"
            )
        assumed = self._assumed
        assumptions = (
            assumed.tail_takes_order,
            assumed.features_unwritten,
            assumed.memory_unreached,
            self._unread,
        )
        output = run_assuming(assumptions, partial(self._attempt, z, copies), self._suspects)
        try:
            self._check(z, output)
        finally:
            self._end()
        return output

    def _check(self, z: torch.Tensor, output: Any) -> None:
        """Refuse what cannot be the output for `z`."""
        layer, end = self._layer, self._end_layer
        if not self._reached:
            raise LayerError(f"layer {layer.name!r} did not run again when the model was run again")
        if end is not None and not self._ended:
            raise LayerError(f"layer {end.name!r} gives no batch of tensors after layer {layer.name!r}")
        if layer.call is None and end is None:
            check_calls(layer, 1 + self._calls_after)
        if not (z.requires_grad and torch.is_grad_enabled()):
            return
        found = [tensor for tensor in tensors(output) if tensor.is_floating_point()]
        if found and not any(tensor.requires_grad for tensor in found):
            name = "the model's output" if end is None else f"layer {end.name!r}"
            raise LayerError(
                f"{name} does not depend on layer {layer.name!r}, or the model runs without "
                "gradients (torch.no_grad, detach)"
            )

    def _planned(self, head: HeadPass) -> Plan:
        """The plan of the rewrites, which is that of all heads with the same calls on this shadow."""
        counted = set(self._steps)
        if head.split_site is not None:
            counted.add(head.split_site)
        if self._end_origin is not None:
            counted.update(site for site in self._shadow.sites.values() if site.origin == self._end_origin)
        key = "plan", forwards(), frozenset(counted)
        plan = self._shadow.facts.get(key)
        if plan is None:
            self._shadow.facts[key] = plan = Plan({site.module for site in counted})
        return cast(Plan, plan)

    # -- what is remembered ---------------------------------------------------------------------------

    def _take(self, head: HeadPass) -> None:
        """Take over what a pass of the head remembers."""
        self._head = head
        head.everything.prune()
        values: list[Value] = list(head.everything.values())
        # A hook may give what it sees to somebody.
        watched = not self._uses_rewrites or head.everything.has_watched
        self._spared = [] if watched else [value for value in values if value.tensor.is_floating_point()]
        self._has_dropped = False
        self._spare()
        tree_map(values.append, self._inputs, Value)
        self._loans = [self._z_loan, *(value.loan for value in values)]
        self._steps = head.everything.plan()
        # The other modules are looked at when they first run.
        self._handlers = dict.fromkeys(self._steps, self._repeat)
        if head.split_site is not None:
            self._handlers[head.split_site] = self._repeat

    def _spare(self) -> None:
        """Let go of the tensors that nothing reads, as far as that is known."""
        for value in self._unread.among(self._spared):
            value.drop()
            self._has_dropped = True

    def _remember_everything(self) -> None:
        """Run the head again, for what has not been kept or was written into."""
        inputs = tree_map(_input_leaf, self._inputs, Value)
        with self._outside:
            self._take(self._run_head(inputs))
        self._head_is_spoilt = False

    # -- one pass -------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Let go of what belongs to one pass."""
        self._using: Filling | None = None
        self._observer: Observer | None = None
        self._left: dict[Site, Iterator[Call]] = {}

    def _begin(self, using: Filling, observer: Observer | None) -> None:
        """Set what handlers need to know of the pass that begins."""
        self._using, self._observer = using, observer
        self._left = {site: iter(calls) for site, calls in self._steps.items()}
        self._reached = self._ended = False
        self._calls_after = 0
        self._end_calls = len(self._head.end_numbers) if self._head is not None else 0
        self._keeping = saved_tensor_hooks()
        self._differentiates = torch.is_grad_enabled()

    def _attempt(self, z: torch.Tensor, copies: int, relied: frozenset[Assumption]) -> Outcome[Any]:
        """One pass that relies on assumptions."""
        assumed, unread = self._assumed, self._unread
        if self._head_is_spoilt or (self._has_dropped and unread not in relied):
            self._remember_everything()
        # Tensors without numbers, as within a compiler, show nothing.
        shows = type(z) is torch.Tensor
        finds_unread = shows and bool(self._spared) and unread.is_to_be_found
        unknown = assumed.memory_unreached.is_unknown or (self._gains and assumed.tail_takes_order.is_unknown)
        observer = Observer() if shows and (finds_unread or unknown) else None
        reordered = self._gains and assumed.tail_takes_order in relied
        copy = not self._uses_rewrites or assumed.memory_unreached not in relied
        placed = self._placed(z, reordered, copy or assumed.features_unwritten not in relied)
        compares = assumed.memory_unreached.is_unknown and not copy
        self._begin(Filling(placed, copies, copy, compares), observer)
        del placed
        try:
            output = self._pass()
        except BaseException:
            forget(self._loans)
            raise
        broken: list[Assumption] = []
        confirmed: list[Assumption] = []
        self._note_state((copies, self._constants), copy or assumed.memory_unreached.is_unknown, not shows)
        if compares and any(loan.is_written_unseen() for loan in self._loans):
            broken.append(assumed.memory_unreached)
        if take_back(self._loans):
            # The loan gives copies from now on, but the pass is of no use.
            self._head_is_spoilt = True
            broken.append(Assumption("what the head remembers is not written into"))
        if observer is not None:
            if reordered:
                (broken if observer.depends_on_order else confirmed).append(assumed.tail_takes_order)
            (broken if observer.reaches_memory else confirmed).append(assumed.memory_unreached)
            if finds_unread:
                self._using = None
                unread.note(observer.unread(self._spared))
                self._spare()
        elif shows and self._has_dropped and unread.is_unknown:
            # Code that PyTorch does not see, in an extension, may have read them: then it has met NaN.
            finite = all(bool(x.isfinite().all()) for x in tensors(output) if x.is_floating_point())
            (confirmed if finite else broken).append(unread)
        return Outcome(output, broken, [*confirmed, *assumed.effects])

    def _note_state(self, kind: Hashable, compare: bool, traced: bool) -> None:
        """Find out whether a pass of a kind leaves the state of the modules as it is.

        Raises:
            LayerError: it does not, and code is to be made of the pass.
        """
        assumed = self._assumed
        if not assumed.state_stays.is_broken and kind not in assumed.unchanging:
            if self._shadow.has_changed(compare and not traced):
                # The pass began in the state of the model, so its result is right.
                assumed.state_stays.set(State.BROKEN)
            else:
                assumed.unchanging.add(kind)
        if assumed.state_stays.is_broken:
            self._shadow.stays = False
        if traced and (assumed.state_stays.is_broken or assumed.draws_nothing.is_broken):
            raise LayerError("the model changes its own state or draws random numbers as it runs")

    def _suspects(self, error: BaseException, relied: frozenset[Assumption]) -> Collection[Assumption]:
        """The assumptions that may be the reason of an error."""
        if isinstance(error, Effect):
            return self._allow(error)
        if isinstance(error, PlaceholderRead):
            # This is more than a suspicion.
            self._unread.set(State.BROKEN)
            return [self._unread]
        if not isinstance(error, Exception):
            return []
        order, unwritten = self._assumed.tail_takes_order, self._assumed.features_unwritten
        asks = order.is_unknown and is_about_order(error)
        of_torch = is_of_torch(error)
        suspects = [order] if self._gains and order in relied and (of_torch or asks) else []
        holds = unwritten in relied and unwritten.state is State.HOLDS
        return [*suspects, unwritten] if of_torch and holds else suspects

    def _pass(self) -> Any:
        # Autocast that is on in here was asked for in here.
        as_asked = not self._casts_outside or autocast_dtype(self._device) is not None
        shadow, assumed = self._shadow, self._assumed
        if assumed.state_stays.is_broken:
            # Another thread may have found that out.
            shadow.stays = False
            shadow.reset()
        is_one = isinstance(self._inputs, Value)
        inputs = self._fill(self._inputs) if is_one else tree_map(self._fill, self._inputs, Value)
        with (
            nullcontext() if as_asked else self._outside,
            nullcontext() if self._observer is None else in_mode(self._observer),
            assumed.watching(shadow.weights),
        ):
            try:
                return shadow.run(partial(self._run, inputs), self._handlers, self._first_call)
            except End as end:
                if end.replay is not self:
                    raise
                self._ended = True
                return end.output

    def _placed(self, z: torch.Tensor, reordered: bool, always_copy: bool) -> torch.Tensor:
        """`z` as the model is to see it."""
        assert self._head is not None, "it is open"
        placed = z.to(self._dtype)
        if reordered or self._keeps_last:
            placed = placed.contiguous(memory_format=torch.channels_last)
        elif is_channels_last(placed):
            placed = placed.contiguous()
        if placed is z or placed._base is not None:
            # PyTorch lets nothing write into a leaf of a graph or a view of one, should the tail do so.
            leaf = placed if placed._base is None else placed._base
            is_safe = leaf.is_leaf and leaf.requires_grad and torch.is_grad_enabled()
            # What is lent while nothing is known is a copy, and shows whether the pass writes into it.
            is_unknown = self._assumed.memory_unreached.is_unknown and self._z_loan.unwritten.is_unknown
            placed = self._z_loan.lend(placed, always_copy) if is_safe or is_unknown else placed.clone()
        return placed.movedim(0, self._head.feature_axis)

    # -- one call -------------------------------------------------------------------------------------

    def _first_call(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first call of a module that the head has not called: look at what it is."""
        handler: Handler | None = None
        if site.origin == self._end_origin:
            handler = self._repeat
        else:
            rewrite = self._plan[site.module] if self._uses_rewrites else None
            if rewrite is not None:
                handler = partial(self._rewritten, rewrite)
            elif isinstance(site.module, torch.jit.ScriptModule):
                handler = self._scripted
            elif isinstance(site.module, _NormBase):
                handler = self._normalized
        self._require_gradient()
        self._handlers[site] = handler
        return site.run(args, kwargs) if handler is None else handler(site, args, kwargs)

    def _rewritten(self, rewrite: Rewrite, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # A checkpoint runs the modules again, which must then keep the same for the backward pass.
        output = rewrite(site.module, args, kwargs) if saved_tensor_hooks() is self._keeping else None
        return self._as_it_is(site, args, kwargs) if output is None else output

    def _scripted(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._observer is not None:
            # What the code in there does is not seen.
            self._observer.read((args, kwargs))
        return site.run(args, kwargs)

    def _run_module(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rewrite = self._plan[site.module] if self._uses_rewrites else None
        if rewrite is not None:
            return self._rewritten(rewrite, site, args, kwargs)
        return self._as_it_is(site, args, kwargs)

    def _as_it_is(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(site.module, _NormBase):
            return self._normalized(site, args, kwargs)
        return site.run(args, kwargs)

    def _normalized(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = site.run(args, kwargs)
        contiguous_gradient(output)
        return output

    def _repeat(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a module that ran in the head, or that the tail ends at."""
        step = self._left.get(site)
        call = None if step is None else next(step, None)
        if site.origin != self._end_origin:
            return self._output(call, site, args, kwargs)
        assert self._head is not None, "it is open"
        assert self._end_layer is not None, "there is its origin"
        number = self._head.end_numbers.get(call, self._end_calls) if call else self._end_calls
        self._end_calls += number == self._end_calls
        place = Place(site.original() or site.module, number)
        batch = self._filling().copies * self._batch
        axes = BatchAxes(place, Arguments(args, kwargs), batch, self._kind.signature, self._knowledge)
        output = self._output(call, site, args, kwargs)
        found = tensors(output) if number == (self._end_layer.call or 0) and self._reached else []
        axis = axes.find(found[0]) if found else None
        if axis is not None:
            raise End(self, found[0].movedim(axis, 0))
        return output

    def _output(self, call: Call | None, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        head = self._head
        assert head is not None, "it is open"
        if call is None:
            self._calls_after += self._reached and site is head.split_site
            self._require_gradient()
            if isinstance(site.module, torch.jit.ScriptModule):
                return self._scripted(site, args, kwargs)
            return self._run_module(site, args, kwargs)
        if call is head.split_call:
            self._require_no_checkpoint()
            self._reached = True
        if call.result is not None:
            if isinstance(call.result.output, Feature) and not call.result.writes:
                return self._filling().z
            output = call.result.repeat(args, kwargs, self._filling())
            if self._observer is not None:
                for leaf, tensor in zip(leaves(call.result.output), tensors(output), strict=True):
                    if isinstance(leaf, Value):
                        self._observer.lend(tensor, leaf)
            if self._differentiates and not torch.is_grad_enabled():
                # A reentrant checkpoint returns it, after which nobody may write into a view.
                return tree_map(_no_view, output)
            return output
        if call.takes_z:
            args, kwargs = replace_first((args, kwargs), self._filling().z)
        output = self._run_module(site, args, kwargs)
        return replace_first(output, self._filling().z) if call.gives_z else output

    def _filling(self) -> Filling:
        assert self._using is not None, "in a pass"
        return self._using

    def _fill(self, value: Value) -> torch.Tensor:
        return value.fill(self._filling())

    def _require_gradient(self) -> None:
        """Refuse a part whose gradient would be missing or another, where one is asked for."""
        if self._differentiates and not torch.is_grad_enabled():
            require_no_reentrant()

    def _require_no_checkpoint(self) -> None:
        """A checkpoint would run the layer again in the backward pass, without what was put in its place.

        Raises:
            LayerError: the layer runs inside of one.
        """
        if not self._differentiates:
            return
        if saved_tensor_hooks() is not self._keeping or not torch.is_grad_enabled():
            raise LayerError(
                f"layer {self._layer.name!r} runs inside of torch.utils.checkpoint, or without gradients "
                "(torch.no_grad); turn that off to explain at this layer"
            )


class InMemoryOrder:
    """A replay for feature maps (B * S, H, W, C) whose model takes (B * S, C, H, W)."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    @property
    def trace_key(self) -> Hashable:
        """As of `Replay`."""
        return ("channels last", self._replay.trace_key)

    def state(self) -> list[torch.Tensor]:
        """As of `Replay`."""
        return self._replay.state()

    def __call__(self, z: torch.Tensor, carry: tuple[Any, ...] = ()) -> Any:
        """Output of the model."""
        return self._replay(z.permute(0, 3, 1, 2), carry)


def _no_view(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if it is a plain one; others are placeholders that must not be read."""
    if type(tensor) is not torch.Tensor:
        return tensor
    with not_inferring():
        return tensor.clone()


def contiguous_gradient(output: torch.Tensor) -> None:
    """Make the gradient of the output of a normalisation of one row contiguous.

    Otherwise PyTorch's gradient of `batch_norm` and `instance_norm` can be wrong on a processor: for one row,
    the strides of the gradient may look like those of another memory format than it has.
    """
    if output.shape[0] == 1 and output.requires_grad:
        output.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]  # has no types


def check_calls(layer: LayerCall, n_calls: int) -> None:
    """Refuse a layer that runs more than once, where it was not said which call is meant.

    Raises:
        LayerError: that is so.
    """
    if layer.call is None and n_calls > 1:
        raise LayerError(
            f"layer {layer.name!r} runs {n_calls} times in a pass of the model; choose one of them "
            f"by its name, '{layer.name}:0' to '{layer.name}:{n_calls - 1}', "
            f"or with call=0 to call={n_calls - 1}"
        )


def _input_value(leaf: torch.Tensor | Shared, batch: int) -> Value:
    tensor = leaf.array if isinstance(leaf, Shared) else leaf
    if tensor.is_inference():
        # Such a tensor cannot take part in a differentiable computation; a copy made out here can.
        tensor = tensor.clone()
    has_images = not isinstance(leaf, Shared) and tensor.shape[:1] == (batch,)
    return Value(tensor.detach(), 0 if has_images else None)


def _input_leaf(value: Value) -> torch.Tensor | Shared:
    return value.tensor if value.batch_axis == 0 else Shared(value.tensor)


def saved_tensor_hooks() -> Any:
    """Hooks that decide on the tensors kept for the backward pass, such as a checkpoint's, or None."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]
