"""A pass of a model that ends at the split and remembers what its modules did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import nn

from iba_core.errors import LayerError
from iba_torch.tail.calls import is_watched
from iba_torch.tail.channels import Axes, ChannelTracker, require_channels
from iba_torch.tail.places import Arguments, BatchAxes, InputKind, Knowledge, LayerCall, Place
from iba_torch.tail.recording import Call, record
from iba_torch.tail.shadow import Shadow, Site
from iba_torch.tail.trees import first_tensor, tensors


class Stop(BaseException):
    """Ends a pass at the split. No `Exception`, so that no model that catches those catches it."""

    def __init__(self, head: HeadPass) -> None:
        super().__init__("the pass ends at the split")
        self.head = head


class HeadPass:
    """Handles the calls in a pass that ends at the split.

    Args:
        layer: the call to split at.
        side: its ``"output"`` or its ``"input"``.
        end_layer: the call whose number is to be known; None for none.
        shadow: what runs.
        kind: of the model's inputs.
        knowledge: what is known of the model. A pass that does not remember adds to it.
        remember: keep what the modules did, to repeat it.
        tracker: the context of a pass that does not end at the split; None for one that does.
        compare: as of `Arguments`.

    Attributes:
        kind: see above.
        axes: the axes of the tensor at the split, in a pass with a tracker.
        moved: those of tensors before it, see `ChannelTracker.moved`.
        end_output: a copy of the first tensor that the end layer gave, in such a pass.
        own_features: a copy of the tensor at the split, in such a pass, its axes as they are.
        knows_axes: whether, in such a pass, it is known of all tensors which axis is that of the images.
    """

    def __init__(
        self,
        layer: LayerCall,
        side: str,
        end_layer: LayerCall | None,
        shadow: Shadow,
        kind: InputKind,
        knowledge: Knowledge,
        *,
        remember: bool,
        tracker: ChannelTracker | None = None,
        compare: bool = False,
    ) -> None:
        self.kind = kind
        self.axes: Axes | None = None
        self.moved: list[Axes] = []
        self.end_output: torch.Tensor | None = None
        self.own_features: torch.Tensor | None = None
        self.knows_axes = True
        self.everything = Call(None, opened=remember)
        self.split_site: Site | None = None
        self.split_call: Call | None = None
        self.feature_axis = 0
        self.n_calls = 0
        self.end_numbers: dict[Call, int] = {}
        self.writes_unseen = False
        self._features: torch.Tensor | None = None
        self.side = side
        self._layer, self._end_layer = layer, end_layer
        self._origin = id(layer.module)
        self._end_origin = None if end_layer is None else id(end_layer.module)
        self._knowledge = knowledge
        self._current = self.everything
        self._remember = remember
        self._tracker = tracker
        self._compare = compare
        self._leads = _Holding(
            lambda module: shadow.sites[module].origin == self._origin if module in shadow.sites else False,
            shadow.facts.setdefault(("leads", self._origin), {}),
        )
        # Calls that hooks see must take place.
        self._watched = _Holding(is_watched, shadow.facts.setdefault("watched", {}))
        self._numbers: dict[Site, int] = {}

    @property
    def has_features(self) -> bool:
        """Whether the pass has come to the split."""
        return self._features is not None

    def take_features(self) -> torch.Tensor:
        """The features, which the pass then holds no longer."""
        features, self._features = self._features, None
        assert features is not None, "the pass has found them"
        return features

    def __call__(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a module's forward, and remember what it did or end the pass."""
        module = site.module
        at_split = False
        if site.origin == self._origin:
            self.split_site = site
            at_split = self.n_calls == (self._layer.call or 0)
            self.n_calls += 1
        parent, call = self._current, Call(site, self._numbers.get(site, 0))
        self._numbers[site] = call.number + 1
        parent.calls.append(call)
        if site.origin == self._end_origin:
            self.end_numbers[call] = len(self.end_numbers)
        # Outputs of modules inside of one that is repeated from memory are never asked for.
        watched = self._remember and self._watched.inside(module)
        call.opened = self._remember and (watched or self._leads(module))
        remember = self._remember and parent.opened and not watched
        self._current = call
        try:
            return self._forward(call, remember, at_split, args, kwargs)
        except RuntimeError:
            given = first_tensor((args, kwargs))
            if given is not None and given.ndim > 1 and given.shape == self.kind.shape:
                require_channels(module, given.shape)
            raise
        finally:
            self._current = parent

    def _forward(
        self, call: Call, remember: bool, at_split: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        site = call.site
        assert site is not None, "it is called"
        is_before = self.side == "input" and site.origin == self._origin
        if self._tracker is not None:
            return self._watch(self._tracker, call, at_split, args, kwargs)
        arguments = Arguments(args, kwargs, self._compare) if remember or at_split else None
        if is_before:
            self._look(self._place(call, "input"), (args, kwargs))
        if at_split and is_before:
            call.takes_z = True
            axes = self._axes(self._place(call, "input"), Arguments(args, kwargs))
            self._reach(call, first_tensor((args, kwargs)), axes)
        output = site.run(args, kwargs)
        self._look(self._place(call), output)
        if arguments is None:
            return output
        axes = self._axes(self._place(call), arguments)
        feature = first_tensor(output) if at_split else None
        if remember:
            call.result = record(output, arguments, axes, feature)
            self.writes_unseen |= arguments.are_written_unseen
            if call.result is not None:
                call.calls.clear()
        if at_split:
            call.gives_z = call.result is None
            self._reach(call, feature, axes)
        return output

    def _watch(
        self,
        tracker: ChannelTracker,
        call: Call,
        at_split: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module in a pass that goes on, and note what it is given and gives."""
        site, end = call.site, self._end_layer
        assert site is not None, "it is called"
        if self.side == "input" and site.origin == self._origin:
            self._look(self._place(call, "input"), (args, kwargs))
            self._note_axes(tracker, at_split, first_tensor((args, kwargs)))
        output = site.run(args, kwargs)
        self._look(self._place(call), output)
        given, first = first_tensor((args, kwargs)), first_tensor(output)
        if isinstance(site.module, nn.RNNBase) and given is not None and first is not None:
            tracker.keep_steps(given, first)
        if self.side == "output":
            self._note_axes(tracker, at_split, first)
        if end is not None and first is not None and self.end_numbers.get(call) == (end.call or 0):
            self.end_output = first.detach().clone()
        return output

    def _note_axes(self, tracker: ChannelTracker, at_split: bool, tensor: torch.Tensor | None) -> None:
        if at_split and tensor is not None:
            self.axes, self.moved = tracker.axes(tensor), [*tracker.moved]
            self.own_features = tensor.detach().clone()

    @staticmethod
    def _place(call: Call, side: str = "output") -> Place:
        assert call.site is not None, "it is called"
        return Place(call.site.original() or call.site.module, call.number, side)

    def _look(self, place: Place, tree: Any) -> None:
        if not self._remember:
            known = self._knowledge.note(place, self.kind.batch, self.kind.signature, tensors(tree))
            self.knows_axes = self.knows_axes and known

    def _axes(self, place: Place, arguments: Arguments) -> BatchAxes:
        return BatchAxes(place, arguments, self.kind.batch, self.kind.signature, self._knowledge)

    def _reach(self, call: Call, feature: torch.Tensor | None, axes: BatchAxes) -> NoReturn:
        place = f"the {self.side} of layer {self._layer.name!r}"
        if feature is None:
            raise LayerError(f"{place} holds no tensor that could be replaced")
        if not feature.is_floating_point():
            raise LayerError(f"{place} is of type {feature.dtype}; a feature map is floating point")
        axis = axes.find(feature)
        if axis is None or feature.ndim < 2:
            raise LayerError(
                f"{place} has the shape {tuple(feature.shape)} for a batch of {self.kind.batch}; "
                f"a feature map has the shape ({self.kind.batch}, ...)"
            )
        self._features, self.feature_axis = feature.detach().movedim(axis, 0), axis
        self.split_call = call
        raise Stop(self)


class _Holding:
    """Whether a test is true of a module, or of any inside of it; each module is tested once."""

    def __init__(self, test: Callable[[nn.Module], bool], known: dict[nn.Module, bool]) -> None:
        self._test = test
        self._known = known

    def __call__(self, module: nn.Module) -> bool:
        found = self._known.get(module)
        if found is None:
            self._known[module] = found = self._test(module) or self.inside(module)
        return found

    def inside(self, module: nn.Module) -> bool:
        """Whether the test is true of one that is inside of a module."""
        # `Module.children` would take longer than some of the layers.
        return any(self(child) for child in module._modules.values() if child is not None)
