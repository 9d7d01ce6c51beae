"""A model split at a layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn, cast
from weakref import ref

import torch
from torch import nn

from iba_core.errors import InputError, LayerError, UnknownChannelsError
from iba_core.framework.adapter import Activation, Inputs, MixedImagesError, Split, Tail
from iba_core.framework.comparison import OwnOutputs
from iba_core.framework.inputs import Shared, arrays_of
from iba_core.framework.layout import AxisPart, DataFormat, FeatureAxes, input_format_by
from iba_torch.tail.activations import last_activation
from iba_torch.tail.calls import hooks_see_all, module_call_patch, run_redirected, unwrap, what_runs
from iba_torch.tail.channels import Axis, ChannelTracker, are_places, positions, read_format
from iba_torch.tail.effects import Effect, apart
from iba_torch.tail.head import HeadPass, Stop
from iba_torch.tail.places import AssumptionsAtPlace, InputKind, Knowledge, LayerCall, Learnt, kind_of
from iba_torch.tail.precision import as_outside, in_mode, keeps_settings, without_autocast
from iba_torch.tail.replay import InMemoryOrder, Replay, check_calls, saved_tensor_hooks
from iba_torch.tail.rewrites.assumptions import (
    Assumption,
    Outcome,
    enabled,
    is_about_order,
    is_of_torch,
    run_assuming,
)
from iba_torch.tail.rewrites.memory_order import gains_by_order
from iba_torch.tail.rewrites.observer import Observer
from iba_torch.tail.rewrites.unread import Unread
from iba_torch.tail.shadow import Shadow, Shadows
from iba_torch.tail.trees import tensors, tree_map

_LEAVES = (torch.Tensor, Shared)


@dataclass(frozen=True, eq=False)
class TorchTail(Tail):
    """The tail of a PyTorch model, see `Tail`."""

    def in_memory_order(self) -> Tail:
        """The same tail with the channels last, where a processor's convolutions prefer that."""
        if not isinstance(self.run, Replay) or not self.run.prefers_channels_last:
            return self
        features = self.features.permute(0, 2, 3, 1).contiguous()
        return replace(self, features=features, run=InMemoryOrder(self.run), axes=(1, 2, 0))

    @keeps_settings
    def differentiated(self, z: torch.Tensor) -> Any:
        """See `Tail.differentiated`."""
        with torch.enable_grad():
            outputs = self(z.detach().requires_grad_())
        return tree_map(torch.Tensor.detach, outputs)

    @keeps_settings
    def activations(self) -> list[Activation | None]:
        """See `Tail.activations`; found in the graph of a pass."""
        with torch.enable_grad():
            outputs = self(self.features.detach().requires_grad_())
        return [last_activation(output.grad_fn) for output in arrays_of(outputs)]


class _Found(NamedTuple):
    """A pass of the head, the features that it found, and how it ran."""

    head: HeadPass
    features: torch.Tensor
    reordered: bool
    rewrites: bool


class TorchSplit(Split):
    """A PyTorch model, or a closure that runs modules, split at one of them.

    The head is run once, up to the layer, and what the modules before it returned is remembered. The tail
    is then the model run again, with remembered outputs in place of those modules and the given feature
    map in place of the layer's. Whatever the model does between modules, skip connections included,
    stays as it is. What runs is a shadow of the model, which itself is not touched.

    Attributes:
        images_axis: the axis of the images in the model's own tensor at the layer, once that has run.

    Args:
        model: the model; or a closure of the inputs that runs modules, and whose return value is what a tail
            returns. Of a model, a tuple of inputs becomes its positional arguments, a mapping its keyword
            arguments, anything else its only argument.
        module: the module to split at.
        layer_name: its name, for messages.
        where: the module's ``"output"`` or its ``"input"``. Of several tensors, the first.
        call: which of its calls in a pass, from 0; may be None if there is only one.
        data_format: where the channels of the feature map are; None to conclude it from what the model
            does with its axes.
        end_layer: where the tail ends: at the output of this call, of which it then returns the first
            tensor, the images first. None for the end of the model.
        knowledge: what passes have shown of the model. The first use finds out which axes of what is
            passed between the layers are those of the images, and which those of the channels.
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
        known = model if isinstance(model, nn.Module) else self.module
        if any(parameter.is_inference() for parameter in known.parameters()):
            raise LayerError(
                "the model's weights were made in torch.inference_mode, so nothing that they compute has a "
                "gradient; make or load the model outside of it"
            )
        self.layer_name = type(self.module).__name__ if layer_name is None else layer_name
        self.where = where
        self.call = call
        self.end_layer = end_layer
        self.images_axis = 0
        self._layer = LayerCall(self.module, self.layer_name, call)
        self._given_format = data_format
        self._knowledge = Knowledge() if knowledge is None else knowledge
        # Of what has not run yet, as most models have it.
        self.data_format = data_format or "channels_first"
        self._shadows = Shadows() if shadows is None else shadows
        # Of this split alone: a tail that ends elsewhere reads other things.
        self._unread = Unread()
        self._rewrites = rewrites
        self._itself = object()
        self._own_kept: tuple[Inputs, OwnOutputs] | None = None
        self.input_format = self._input_format()
        self.input_has_channels = self._knowledge.input_has_channels
        # What has been checked once need not be checked again for another closure that does the same.
        self._mixing = self._assumed.learnt.mixing

    def run_features(self, inputs: Inputs) -> torch.Tensor:
        """Feature maps (B, *feature map) of a batch: one pass of the head, without a graph.

        The first time, one image, or twice the only one, also runs through the whole model, which shows how
        often the layer runs, and which axes change with the number of images.

        Raises:
            LayerError: the layer never runs, or more than once and `call` does not say which, or the
                model cannot be split there.
        """
        with self._shadows.lease() as shadow, self._patched():
            assumed = self._assumed
            self._look_around(shadow, inputs, assumed)
            self._own_kept = None
            found = self._run_head(shadow, inputs, kind_of(inputs), assumed, remember=False)
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
            assumed, kind = self._assumed, kind_of(inputs)
            with as_outside():
                self._look_around(shadow, inputs, assumed)
            mixes = assumed.learnt.mixes and not isinstance(self.model, nn.Module)
            if mixes and kind.batch > 1:
                raise MixedImagesError(self.layer_name)

            def run_head(inputs: Inputs) -> _Found:
                return self._run_head(shadow, inputs, kind, assumed, remember=True)

            with as_outside():
                found = run_head(inputs)
            with without_autocast(found.features.device) as outside:
                replay = Replay(
                    self._layer,
                    self.end_layer,
                    run=self._runner(shadow),
                    run_head=lambda again: run_head(again).head,
                    allow=lambda effect: self._shadows.allow(effect, shadow, assumed),
                    shadow=shadow,
                    inputs=inputs,
                    kind=kind,
                    features=found.features,
                    head=found.head,
                    reordered=found.reordered,
                    data_format=self.data_format,
                    knowledge=self._knowledge,
                    assumed=assumed,
                    unread=self._unread,
                    outside=outside,
                    rewrites=found.rewrites,
                )
                features = found.features
                if replay.prefers_channels_last:
                    features = features.contiguous(memory_format=torch.channels_last)
                elif found.reordered:
                    features = features.contiguous()
                del found
                try:
                    yield TorchTail(features, replay, one_by_one=mixes)
                finally:
                    replay.close()

    def own_outputs(self, inputs: Inputs) -> OwnOutputs:
        """See `Split.own_outputs`."""
        kept, self._own_kept = self._own_kept, None
        if kept is not None and kept[0] is inputs:
            own = kept[1]
        else:
            with self._shadows.lease() as shadow, self._patched(), as_outside():
                own = self._run_whole(shadow, inputs, self._assumed)[0]
        if own.features is None:
            return own
        # The head, which has run meanwhile, knows where the images are.
        return replace(own, features=own.features.movedim(self.images_axis, 0))

    @property
    def _assumed(self) -> AssumptionsAtPlace:
        end = self.end_layer
        place = ref(self.module), self.call, self.where, end and (ref(end.module), end.call)
        runs = what_runs(self.model) or self._itself
        assumed: AssumptionsAtPlace = self._shadows.assumed.get((place, runs), AssumptionsAtPlace)
        return assumed

    @property
    def mixes_images(self) -> bool:
        """Whether a pass on several images has normalised them by the statistics of their batch."""
        return self._assumed.learnt.mixes

    def _patched(self) -> Any:
        """Context for all passes of a closure, since to patch for each would take as long as a layer."""
        return nullcontext() if isinstance(self.model, nn.Module) else module_call_patch.applied()

    def _runner(self, shadow: Shadow) -> Callable[[Inputs], Any]:
        """What runs the model or the closure on a shadow."""
        model = self.model
        if isinstance(model, nn.Module):
            return partial(call_with, shadow.of(model))

        def run(inputs: Inputs) -> Any:
            keeping = saved_tensor_hooks()

            def redirect(module: nn.Module) -> nn.Module:
                copy = shadow.of(module)
                if copy is not module and torch.is_grad_enabled() and saved_tensor_hooks() is not keeping:
                    raise LayerError(
                        f"the closure itself runs {type(module).__name__} in torch.utils.checkpoint, so the "
                        "backward pass would run the model as it is; leave the checkpoint out"
                    )
                return copy

            return run_redirected(redirect, model, inputs)

        return run

    def _run_head(
        self, shadow: Shadow, inputs: Inputs, kind: InputKind, assumed: AssumptionsAtPlace, *, remember: bool
    ) -> _Found:
        """A pass of the head, which has found the features."""
        order, unreached, stays = assumed.head_takes_order, assumed.memory_unreached, assumed.state_stays
        # Hooks on all modules are to see each call of one.
        rewrites = self._rewrites and enabled() and not hooks_see_all()
        reorders = (
            rewrites and self.input_format == "channels_first" and any(map(gains_by_order, tensors(inputs)))
        )
        observer: Observer | None = None
        passes = "head", kind.constants

        def attempt(relied: frozenset[Assumption]) -> Outcome[tuple[HeadPass, bool]]:
            nonlocal observer
            reordered = reorders and order in relied
            unknown = unreached.is_unknown or (reordered and order.is_unknown)
            observer = Observer() if unknown else None
            # What passes leave on the modules, the tail finds only where all modules run again.
            remembers = remember and stays in relied
            compare = unreached not in relied or unreached.is_unknown
            head = self._head_pass(shadow, kind, remember=remembers, compare=compare)
            with nullcontext() if observer is None else in_mode(observer):
                self._pass(shadow, assumed, owned(inputs, reordered), head)
            broken: list[Assumption] = []
            confirmed: list[Assumption] = []
            if remembers and passes not in assumed.unchanging:
                if shadow.has_changed(compare):
                    broken.append(stays)
                else:
                    assumed.unchanging.add(passes)
            if head.writes_unseen and unreached in relied:
                broken.append(unreached)
            if observer is not None:
                if reordered:
                    (broken if observer.depends_on_order else confirmed).append(order)
                if observer.reaches_memory:
                    broken.append(unreached)
            return Outcome((head, reordered), broken, confirmed)

        def suspects(error: BaseException, relied: frozenset[Assumption]) -> Collection[Assumption]:
            if isinstance(error, Effect):
                return self._shadows.allow(error, shadow, assumed)
            if not (reorders and order in relied and isinstance(error, Exception)):
                return []
            asks = order.is_unknown and is_about_order(error)
            return [order] if is_of_torch(error) or asks else []

        head, reordered = run_assuming((order, unreached, stays), attempt, suspects)
        if not head.has_features:
            self._raise_never_ran(shadow, head)
        features = head.take_features()
        self.images_axis = head.feature_axis
        self.data_format = self._given_format or self._found_format(head, features, assumed.learnt)
        return _Found(head, features, reordered, rewrites)

    def _input_format(self) -> DataFormat:
        """Where the channels of the input are: what takes it says so, or else the user of the features."""
        found = self._knowledge.input_format
        if found is None and self._given_format is not None:
            found = self._traced_input_format(self._given_format) or self._given_format
        return found or "channels_first"

    def _traced_input_format(self, given: DataFormat) -> DataFormat | None:
        """Where the channels of the input are, by what has become of its axes in the features."""
        learnt = self._assumed.learnt
        if learnt.axes is None or learnt.input_axes is None:
            return None
        (images, *others), axes = learnt.input_axes, learnt.axes
        batch = positions([images], axes)[0]
        own = [axis for index, axis in enumerate(axes) if index != batch]
        return None if batch is None else input_format_by(given, len(own), positions(others, own))

    def feature_axes(self) -> FeatureAxes | None:
        """See `Split.feature_axes`: a whole pass has shown it."""
        learnt = self._assumed.learnt
        if learnt.axes is None or learnt.input_axes is None:
            return None
        # Another object may have run the head.
        (found,) = positions(learnt.input_axes[:1], learnt.axes)
        batch = self.images_axis if found is None else found
        parts = _parts(axis for index, axis in enumerate(learnt.axes) if index != batch)
        return FeatureAxes(parts, len(learnt.input_axes) - 1, [_parts(each) for each in learnt.moved])

    def _found_format(self, head: HeadPass, features: torch.Tensor, learnt: Learnt) -> DataFormat:
        """Where the channels of the feature map are, as a whole pass has shown it.

        Raises:
            UnknownChannelsError: it has not shown that.
        """
        if learnt.data_format is None:
            axes = learnt.axes or []
            found = read_format([axis for index, axis in enumerate(axes) if index != head.feature_axis])
            if found is None:
                shape = tuple(features.shape[1:])
                raise UnknownChannelsError(
                    f"the feature maps of layer {self.layer_name!r} have the shape {shape}, and the model "
                    "does not show whether their channels come first or last; say it with "
                    "data_format='channels_first' or data_format='channels_last'"
                )
            learnt.data_format = found
        return learnt.data_format

    def _head_pass(self, shadow: Shadow, kind: InputKind, **options: Any) -> HeadPass:
        return HeadPass(self._layer, self.where, self.end_layer, shadow, kind, self._knowledge, **options)

    @keeps_settings
    def _pass(self, shadow: Shadow, assumed: AssumptionsAtPlace, inputs: Inputs, head: HeadPass) -> Any:
        """Run the model on `inputs`, which it may write into, up to where the head ends."""
        shadow.begin()
        with torch.no_grad(), assumed.watching(shadow.weights):
            try:
                return shadow.run(partial(self._runner(shadow), inputs), {}, head)
            except Stop as stop:
                if stop.head is not head:
                    raise

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

    def _look_around(self, shadow: Shadow, inputs: Inputs, assumed: AssumptionsAtPlace) -> None:
        """Run the whole model once, if that has not been done, to see how often the layers run and more."""
        learnt = assumed.learnt
        if not learnt.is_counted:
            own, counter, tracker = self._run_whole(shadow, inputs, assumed)
            if own.together and (tracker.normalized_rows or not counter.knows_axes):
                twice = _of_images(inputs, lambda tensor: tensor.repeat_interleave(2, 0))
                # The axes of the features are those of the first pass.
                input_axes = learnt.input_axes
                *_, tracker = self._tracked(shadow, twice, assumed)
                learnt.input_axes = input_axes
            # A normalisation of each image by its own statistics counts as one of a single row.
            learnt.mixes = tracker.normalized_rows > 1
            if learnt.mixes and own.together:
                self._warn_of_mixing()
            self._own_kept = inputs, own
            learnt.is_counted = True
            self._mixing = learnt.mixing
        self.input_format = self._input_format()
        self.input_has_channels = self._knowledge.input_has_channels

    def _run_whole(
        self, shadow: Shadow, inputs: Inputs, assumed: AssumptionsAtPlace
    ) -> tuple[OwnOutputs, HeadPass, ChannelTracker]:
        """Run the whole model on another number of images, or a closure on those that it knows of."""
        is_closure = not isinstance(self.model, nn.Module)
        given = inputs if is_closure else _other_number(inputs)
        outputs, counter, tracker = self._tracked(shadow, given, assumed)
        self._check_calls(shadow, counter)
        assumed.learnt.axes, assumed.learnt.moved = counter.axes, counter.moved
        if self.end_layer is not None:
            outputs = self._end_output(counter)
        elif isinstance(outputs, list) and any(isinstance(each, Mapping) for each in outputs):
            raise InputError(
                "the model returns a list with a dict for each image; put it into a module that returns a "
                "tensor with a row per image"
            )
        own = OwnOutputs(outputs, counter.kind.batch, is_closure, counter.own_features)
        return own, counter, tracker

    def _tracked(
        self, shadow: Shadow, inputs: Inputs, assumed: AssumptionsAtPlace
    ) -> tuple[Any, HeadPass, ChannelTracker]:
        """Run the whole model, and find out what its axes mean."""

        def run() -> tuple[Any, HeadPass, ChannelTracker]:
            tracker = ChannelTracker()
            counter = self._head_pass(shadow, kind_of(inputs), remember=False, tracker=tracker)
            own = owned(inputs)
            axes = [tracker.follow(tensor, is_source=not index) for index, tensor in enumerate(tensors(own))]
            with apart(), in_mode(tracker):
                outputs = self._pass(shadow, assumed, own, counter)
            self._knowledge.input_format = read_format(axes[0][1:]) or self._knowledge.input_format
            self._knowledge.input_has_channels = not are_places(axes[0][1:])
            assumed.learnt.input_axes = axes[0]
            return outputs, counter, tracker

        return self._shadows.run(shadow, assumed, run)

    def _end_output(self, counter: HeadPass) -> torch.Tensor:
        """What the end layer gave in a whole pass, the images first."""
        output, images = counter.end_output, counter.kind.batch
        axes = [] if output is None else [axis for axis, size in enumerate(output.shape) if size == images]
        if output is None or not axes:
            end = cast(LayerCall, self.end_layer)
            raise LayerError(f"layer {end.name!r} gives no batch of tensors")
        # The images are all the same.
        same = (axis for axis in axes if bool((output == output.narrow(axis, 0, 1)).all()))
        return output.movedim(next(same, axes[0]), 0)

    def _check_calls(self, shadow: Shadow, counter: HeadPass) -> None:
        """Refuse layers that run too seldom, or more often than their names say."""
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


def owned(inputs: Inputs, reordered: bool = False) -> Inputs:
    """A copy of the inputs: a pass may write into them; they are the caller's, and needed again."""

    def own(leaf: torch.Tensor | Shared) -> torch.Tensor:
        tensor = leaf.array if isinstance(leaf, Shared) else leaf
        last = reordered and gains_by_order(tensor)
        return tensor.detach().clone(memory_format=torch.channels_last if last else torch.preserve_format)

    return tree_map(own, inputs, _LEAVES)


def _of_images(inputs: Inputs, function: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """`inputs` with a function applied to the tensors that have the images along their first axis."""
    batch = kind_of(inputs).batch

    def apply(leaf: torch.Tensor | Shared) -> Any:
        if isinstance(leaf, Shared) or leaf.shape[:1] != (batch,):
            return leaf
        return function(leaf.detach())

    return tree_map(apply, inputs, _LEAVES)


def _other_number(inputs: Inputs) -> Inputs:
    """The first image, or twice the only one."""
    if kind_of(inputs).batch > 1:
        return _of_images(inputs, lambda tensor: tensor[:1])
    return _of_images(inputs, lambda tensor: tensor.repeat_interleave(2, 0))


def call_with(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a mapping as its keyword arguments, a tuple or list as its positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def _parts(axes: Iterable[Axis]) -> list[tuple[AxisPart, ...]]:
    """Parts of axes, whose sources are counted without the axis of the images."""
    return [
        tuple(
            AxisPart(part.size, frozenset((source - 1, against) for source, against in part.sources))
            for part in axis
        )
        for axis in axes
    ]
