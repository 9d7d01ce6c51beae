"""Shadows: copies of a model's modules that share its weights and leave it as it is.

A shadow runs in place of the model. Its parameters share the memory of the model's, so it sees updates of the
weights, and no gradients are computed for them. Its buffers are its own; each use starts with the model's
values. So do NumPy arrays, generators and long lists of plain values. It is in evaluation mode. What a
forward stores on its module stays in the shadow, and `reset` undoes it. So the model is not touched, and
other threads may train it meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy as shallow_copy
from functools import partial
from threading import get_ident
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import nn

from iba_core.errors import LayerError
from iba_core.framework.cache import Cache
from iba_torch.tail.calls import unwrap
from iba_torch.tail.effects import Effect, WeightWrite, address_of
from iba_torch.tail.places import AssumptionsAtPlace
from iba_torch.tail.precision import restores_settings
from iba_torch.tail.rewrites.assumptions import Assumption, Outcome, State, run_assuming
from iba_torch.tail.trees import not_inferring, version_of

T = TypeVar("T")

_ATOMIC = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, type, type(...), range, slice),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(BuiltinFunctionType, ModuleType),
    }
)
"""Types whose values a shadow shares with the model."""

_DICTS = (dict, OrderedDict, defaultdict)
_LISTS = (list, deque, set)
_MANY = 1000
"""A container of more plain values is data, such as a vocabulary: each use starts with the model's values."""
_LARGE = 100_000
"""Data and NumPy arrays with more values, and data in subclasses of containers, are shared with the model."""
_POOL = 8
"""How many shadows wait in a pool for the next pass."""

Handler = Callable[["Site", tuple[Any, ...], dict[str, Any]], Any]


class Switch:
    """What the modules of a shadow ask at each call.

    Attributes:
        default: handles the calls that are not in `handlers`; None to run the module.
        handlers: handles the calls of some modules; None where no calls are handled.
        thread: the thread whose calls are handled.
    """

    __slots__ = ("default", "handlers", "thread")

    def __init__(self) -> None:
        self.default: Handler | None = None
        self.handlers: Mapping[Site, Handler | None] | None = None
        self.thread = 0


class Site:
    """The `forward` of one module of a shadow: handles the call, or runs it.

    Hooks on the module are outside of it and stay in effect.

    Attributes:
        module: the module of the shadow.
        original: weak reference to the model's own module.
        origin: its id.
        own_forward: the `forward` that was set on the module itself; None if it has its class's.
    """

    __slots__ = ("__wrapped__", "kind", "module", "origin", "original", "own_forward", "switch")

    def __init__(self, module: nn.Module, original: ref[nn.Module], switch: Switch) -> None:
        self.module = module
        self.kind: Any = type(module)
        self.original = original
        self.origin = id(original())
        self.switch = switch
        own = vars(module).get("forward")
        self.own_forward = module.forward if isinstance(module, torch.jit.ScriptModule) else own
        self.__wrapped__ = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the module for its arguments."""
        switch = self.switch
        handlers = switch.handlers
        if handlers is not None and switch.thread == get_ident():
            handler = handlers.get(self, switch.default)
            if handler is not None:
                return handler(self, args, kwargs)
        own = self.own_forward
        return self.kind.forward(self.module, *args, **kwargs) if own is None else own(*args, **kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module's own forward."""
        own = self.own_forward
        return self.kind.forward(self.module, *args, **kwargs) if own is None else own(*args, **kwargs)


def site_of(module: nn.Module) -> Site | None:
    """The site of a module of a shadow; None for any other module."""
    forward = vars(module).get("forward")
    return forward if type(forward) is Site else None


def own_forward(module: nn.Module) -> Any:
    """The `forward` that was set on a module itself, not by a shadow; None if it has its class's."""
    forward = vars(module).get("forward")
    return forward.own_forward if type(forward) is Site else forward


class Shadow:
    """Copies of the modules of one model, or of all models that a closure runs.

    Only one pass uses it at a time.

    Args:
        written: ids of parameters that passes write into. The copies have memory of their own for them.

    Attributes:
        stays: whether its user relies on passes that leave its state as it is.
        is_used: whether a pass has run since it was taken from the pool.
    """

    def __init__(self, written: Collection[int] = ()) -> None:
        self.switch = Switch()
        self.stays = self.is_used = False
        self.sites: dict[nn.Module, Site] = {}
        self.facts: dict[Any, Any] = {}
        """What passes have found out about the modules."""
        self._copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        self._roots: list[_Root] = []
        self._written = written

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a module, which is made if there is none; of a copy, itself."""
        if module in self.sites or isinstance(module, (_Through, _Shared)):
            return module
        found = self._copies.get(module)
        if found is None:
            # Nobody who looks at what the model does is to see this.
            with torch._C.DisableTorchFunction():
                root = _Root(module, self._copies, self._written)
                self._roots.append(root)
                found = root.copy
                for copy, original in root.copies:
                    self.sites[copy] = Site(copy, original, self.switch)
                    vars(copy)["forward"] = self.sites[copy]
                root.settle()
        return found

    def state(self) -> list[torch.Tensor]:
        """The parameters and buffers of all copies."""
        return [tensor for root in self._roots for tensor in root.state()]

    @property
    def is_current(self) -> bool:
        """Whether the models still have the modules, parameters and attributes that were copied."""
        return all(root.is_current for root in self._roots)

    def run(
        self, call: Callable[[], T], handlers: Mapping[Site, Handler | None], default: Handler | None = None
    ) -> T:
        """Result of a pass whose calls of modules, as far as this thread makes them, are handled.

        Args:
            call: runs the pass.
            handlers: handle the calls of some modules; None to run the module.
            default: handles the calls of all others.
        """
        switch = self.switch
        try:
            switch.default, switch.handlers, switch.thread = default, handlers, get_ident()
            return call()
        finally:
            switch.default = switch.handlers = None

    def begin(self) -> None:
        """Prepare for a pass that starts in the state of the model."""
        if self.is_used:
            self.reset()
        self.is_used = True

    def refresh(self) -> None:
        """Give the buffers the values that the model's have now."""
        with torch.no_grad():
            for root in self._roots:
                root.refresh()

    def has_changed(self, compare: bool = False) -> bool:
        """Whether passes have changed the state since it was refreshed.

        Args:
            compare: also compare the numbers of buffers, for writes that PyTorch does not count.
        """
        return any(root.has_changed(compare) for root in self._roots)

    def reset(self) -> None:
        """Undo what passes have done to the state."""
        # Nobody who looks at what the model does is to see this.
        with torch._C.DisableTorchFunction():
            for root in self._roots:
                root.restore()
            self.refresh()

    def weights(self) -> set[int]:
        """Where the memory begins that the copies share with the model."""
        with torch._C.DisableTorchFunction():
            return {address_of(alias) for root in self._roots for alias, _ in root.aliases}

    def own_weight(self, address: int) -> list[int]:
        """Give the copies memory of their own for the weights at an address; the ids of the parameters."""
        return [id(original) for root in self._roots for original in root.own_weight(address)]

    def forget_gone(self) -> None:
        """Forget the copies of models that are gone."""
        gone = {copy for root in self._roots if root.original() is None for copy, _ in root.copies}
        if gone:
            self._roots = [root for root in self._roots if root.original() is not None]
            self.facts.clear()
            for copy in gone:
                del self.sites[copy]


class Shadows:
    """A pool of shadows, from which each pass takes one of its own.

    A copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self.assumed: Cache[Any] = Cache(64)
        """The assumptions about each split of a model or closure; empty after a change of modules."""
        self.written: set[int] = set()
        """Ids of the parameters that passes write into."""
        # Threads share it without a lock, which a child that is forked meanwhile would never get.
        self._free: deque[Shadow] = deque(maxlen=_POOL)
        self._latest: Callable[[], Shadow | None] = lambda: None

    def __reduce__(self) -> tuple[type[Shadows], tuple[()]]:
        return Shadows, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Shadows:
        return Shadows()

    @contextmanager
    @restores_settings
    def lease(self) -> Iterator[Shadow]:
        """Context with a shadow that no other thread has.

        Its body runs outside of inference mode, whose tensors take part in no gradient.
        """
        with not_inferring():
            try:
                shadow = self._free.pop()
            except IndexError:
                shadow = None
            if shadow is None or not shadow.is_current:
                latest = shadow or self._latest()
                if latest is not None and not latest.is_current:
                    # What has been seen of the modules need not be true of others. The other shadows are most
                    # likely out of date as well, and hold what they were made from.
                    self.assumed.clear()
                    self._free.clear()
                shadow = Shadow(self.written)
                self._latest = ref(shadow)
            shadow.refresh()
            shadow.stays = shadow.is_used = False
            # After an error it is not given back: the next one is new, whatever was interrupted.
            yield shadow
            if shadow.has_changed():
                if shadow.stays:
                    raise LayerError(
                        "the model stores something on its modules or in their buffers in some passes only, "
                        "so the passes of one explanation differ; turn that off in the model"
                    )
                shadow.reset()
            shadow.forget_gone()
            self._free.append(shadow)

    def own_weight(self, shadow: Shadow, address: int) -> None:
        """Give a shadow and all later ones memory of their own for a weight that a pass would write into."""
        self.written.update(shadow.own_weight(address))
        self._free.clear()

    def run(self, shadow: Shadow, assumed: AssumptionsAtPlace, run: Callable[[], T]) -> T:
        """Result of a pass of a whole model, run again where an effect ended it.

        Args:
            shadow: what runs.
            assumed: the assumptions about the pass.
            run: runs it.
        """

        def suspects(error: BaseException, relied: frozenset[Assumption]) -> list[Assumption]:
            return self.allow(error, shadow, assumed) if isinstance(error, Effect) else []

        return run_assuming((), lambda relied: Outcome(run(), confirmed=assumed.effects), suspects)

    def allow(self, effect: Effect, shadow: Shadow, assumed: AssumptionsAtPlace) -> list[Assumption]:
        """Prepare for an effect that a pass on a shadow was ended by; the assumption that it breaks."""
        if isinstance(effect, WeightWrite):
            self.own_weight(shadow, effect.address)
            return [Assumption("the weight is not written into")]
        assumed.draws_nothing.set(State.BROKEN)
        return [assumed.draws_nothing]


class _Root:
    """The copy of one module and of everything in it.

    Attributes:
        copy: the copy.
        copies: the copies that were made for it, each with a weak reference to the model's own module.
    """

    def __init__(
        self,
        original: nn.Module,
        copies: WeakKeyDictionary[nn.Module, nn.Module],
        written: Collection[int],
    ) -> None:
        copier = _Copier(original, copies, written)
        self._before = _Snapshot(copier.containers, copier.tensors)
        self.original = ref(original)
        self.copy = copier.copy
        self.copies: list[tuple[nn.Module, ref[nn.Module]]] = []
        for module in copier.modules:
            copy = copies[module] = copier.memo[id(module)]
            if not isinstance(copy, _Through):
                _quieten(copy)
                self.copies.append((copy, ref(module)))
        self._made = copier.made
        self._own, self.aliases, self._refreshed = copier.own, copier.aliases, copier.refreshed

    def settle(self) -> None:
        """Record how the copies are, once they are complete."""
        self._after = _Snapshot(self._made, ())
        self._note()

    @property
    def is_current(self) -> bool:
        return self._before.holds()

    def state(self) -> list[torch.Tensor]:
        return [tensor for tensor, _ in (*self.aliases, *self._own)]

    def refresh(self) -> None:
        for own, theirs in self._own:
            if own.shape == theirs.shape:
                own.copy_(theirs)
            else:
                own.data = theirs.detach().clone()
        for alias, theirs in self.aliases:
            if _address(alias) != _address(theirs):
                alias.data = theirs.data
        for copy, original in self._refreshed:
            _refresh(copy, original)
        self._note()

    def _note(self) -> None:
        self._marks = self._marked()
        self._values = [_value_of(copy) for copy, _ in self._refreshed]

    def _marked(self) -> list[Any]:
        """What is different once tensors have been written into or given other memory."""
        return [*(_mark(own) for own, _ in self._own), *(_address(alias) for alias, _ in self.aliases)]

    def has_changed(self, compare: bool) -> bool:
        if self._marked() != self._marks or not self._after.holds_exactly():
            return True
        if any(not _has(copy, value) for (copy, _), value in zip(self._refreshed, self._values, strict=True)):
            return True
        return compare and any(not torch.equal(own, theirs) for own, theirs in self._own)

    def restore(self) -> None:
        self._after.restore()

    def own_weight(self, address: int) -> list[torch.Tensor]:
        written = [pair for pair in self.aliases if address_of(pair[0]) == address]
        self.aliases = [pair for pair in self.aliases if address_of(pair[0]) != address]
        for alias, _ in written:
            alias.data = alias.detach().clone()
        self._own += written
        self._note()
        return [original for _, original in written]


class _Through(nn.Module):
    """Stands for a wrapper that runs its module elsewhere, compiled or replicated: runs it here."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(next(iter(self._modules.values())), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (inner,) = self._modules.values()
        return inner(*args, **kwargs)  # type: ignore[misc]  # a wrapper has a module


class _Shared(nn.Module):
    """Stands for a module that all shadows share, such as a bottleneck, and which is called as it is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that it is no child.
        self.shared = (module,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["shared"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.shared[0].forward(*args, **kwargs)


class _Copier:
    """Copies a module and everything that it reaches.

    Args:
        original: the module.
        copies: the copies of modules that there are already, which stay as they are.
        written: ids of parameters that passes write into.

    Attributes:
        copy: the copy of the module.
        modules: the modules that have been copied, each once.
        containers: dicts, lists and sets that have been copied, those of the attributes of modules and
            objects included.
        tensors: parameters, buffers and other tensors that have been met.
        memo: the copies, by the id of the original.
        made: dicts, lists and sets that are the copies' own.
        own: tensors of the copies that have memory of their own, with their originals.
        aliases: tensors that share the memory of the model's parameters, with these.
        refreshed: other copies that each use fills anew, with their originals.
    """

    def __init__(
        self,
        original: nn.Module,
        copies: WeakKeyDictionary[nn.Module, nn.Module],
        written: Collection[int],
    ) -> None:
        self.modules: list[nn.Module] = []
        self.containers: list[Any] = []
        self.tensors: list[torch.Tensor] = []
        self.memo: dict[int, Any] = {}
        self.made: list[Any] = []
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.aliases: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.refreshed: list[tuple[Any, Any]] = []
        self._copies = copies
        # Embeddings with this option write into their weight.
        self._written = set(written) | {
            id(module._parameters.get("weight"))
            for module in nn.Module.modules(original)
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
        }
        self._objects: set[int] = set()
        with torch.no_grad():
            self.copy: nn.Module = self(original)
            # The list grows meanwhile. So modules within modules need no deeper recursion.
            for module in self.modules:
                self._fill(module)

    def _module(self, module: nn.Module) -> nn.Module:
        """The copy of a module, still without attributes."""
        known = self._copies.get(module)
        if known is not None:
            return known
        self.modules.append(module)
        if is_shared(module):
            return _Shared(module)
        if unwrap(module) is not module:
            return _Through()
        if isinstance(module, torch.jit.ScriptModule):
            return self._scripted(module)
        return object.__new__(type(module))

    def _fill(self, module: nn.Module) -> None:
        """Give the copy of a module copies of all attributes."""
        copy = self.memo[id(module)]
        if isinstance(copy, (torch.jit.ScriptModule, _Shared)):
            return
        if isinstance(copy, _Through):
            self.containers.append(module._modules)
            copy._modules[next(iter(module._modules))] = self(unwrap(module))
            return
        self.containers.append(vars(module))
        attributes = vars(copy)
        for name, value in list(vars(module).items()):
            if name != "_compiled_call_impl":
                attributes[name] = self(value)
        self.made.append(attributes)

    def __call__(self, value: Any) -> Any:
        """The copy of a value, or the value itself where it is shared."""
        if type(value) in _ATOMIC:
            return value
        known = self.memo.get(id(value))
        if known is not None:
            return known
        copy = self._copy(value)
        if copy is not value or isinstance(value, nn.Module):
            self.memo[id(value)] = copy
        return copy

    def _copy(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, torch.Tensor):
            self.tensors.append(value)
            return self._tensor(value)
        if isinstance(value, (*_DICTS, *_LISTS)):
            return self._container(value)
        if isinstance(value, tuple):
            items = [self(item) for item in value]
            if all(item is old for item, old in zip(items, value, strict=True)):
                return value
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        if isinstance(value, frozenset):
            return type(value)(map(self, value))
        if isinstance(value, MethodType):
            owner = value.__self__ if is_shared(value.__self__) else self(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, partial):
            keywords = {name: self(item) for name, item in value.keywords.items()}
            return partial(self(value.func), *map(self, value.args), **keywords)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, torch.Generator):
            return self._refreshable(value, value.clone_state()) if hasattr(value, "clone_state") else value
        if type(value) is np.ndarray and value.size <= _LARGE and value.flags.writeable:
            return self._refreshable(value, value.copy())
        is_copied = _is_object(value) and (id(value) in self._objects or self._is_small(value))
        return self._object(value) if is_copied else value

    def _is_small(self, value: Any) -> bool:
        """Whether an object reaches few values, other than modules and tensors: then it is copied."""
        reached: set[int] = set()
        objects, todo = [], [value]
        while todo:
            item = todo.pop()
            if type(item) in _ATOMIC or id(item) in reached or isinstance(item, (nn.Module, torch.Tensor)):
                continue
            reached.add(id(item))
            if isinstance(item, _DICTS):
                todo += [] if is_data(item) else item.values()
            elif isinstance(item, (*_LISTS, tuple, frozenset)):
                todo += [] if is_data(item) else item
            elif _is_object(item):
                objects.append(id(item))
                todo += vars(item).values()
            if len(reached) > _MANY:
                return False
        self._objects.update(objects)
        return True

    def _refreshable(self, value: Any, copy: Any) -> Any:
        self.refreshed.append((copy, value))
        return copy

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if nn.parameter.is_lazy(tensor):
            return tensor
        is_written = id(tensor) in self._written
        if isinstance(tensor, nn.Parameter) and not tensor.is_inference() and not is_written:
            if type(tensor) is not nn.Parameter and not tensor.requires_grad:
                return tensor  # Such as quantised weights, which carry more than numbers.
            # Not `detach`, whose count of writes is the model's: then no gradient could be computed where the
            # model is trained between the two passes, forward and backward.
            alias = nn.Parameter(tensor.data, requires_grad=False)
            self.aliases.append((alias, tensor))
            return alias
        if tensor.requires_grad and not is_written:
            # No buffer, but computed from parameters, as by weight normalisation: nothing writes into it.
            return tensor.detach()
        copy = tensor.detach().clone()
        if type(tensor) is nn.Parameter:
            copy = nn.Parameter(copy, requires_grad=False)
        self.own.append((copy, tensor))
        return copy

    def _container(self, value: Any) -> Any:
        copy: Any
        if is_data(value):
            if len(value) > _LARGE or type(value) not in (*_DICTS, *_LISTS):
                return value
            return self._refreshable(value, shallow_copy(value))
        self.containers.append(value)
        if isinstance(value, defaultdict):
            copy = defaultdict(value.default_factory)
        elif isinstance(value, deque):
            copy = deque(maxlen=value.maxlen)
        elif isinstance(value, set):
            copy = type(value)(map(self, list(value)))
            self.made.append(copy)
            return copy
        elif type(value) in (dict, OrderedDict, list):
            copy = type(value)()
        else:
            return self._special(value)
        self.memo[id(value)] = copy
        if isinstance(value, dict):
            for key, item in list(value.items()):
                copy[key] = self(item)
        else:
            copy.extend(map(self, list(value)))
        self.made.append(copy)
        return copy

    def _special(self, value: Any) -> Any:
        """The copy of a subclass of dict or list."""
        try:
            copy = type(value)()
            copy.update(value) if isinstance(value, dict) else copy.extend(value)
            for name, item in vars(value).items() if hasattr(value, "__dict__") else ():
                vars(copy)[name] = item
        except Exception:  # Its constructor may ask for anything.
            return value
        self.memo[id(value)] = copy
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            dict.__setitem__(copy, key, self(item)) if isinstance(value, dict) else list.__setitem__(
                copy, key, self(item)
            )
        self.made.append(copy)
        return copy

    def _function(self, function: FunctionType) -> Any:
        plain = getattr(function, "_torchdynamo_orig_callable", None)
        if plain is not None:
            return self(plain)
        held = _bound(function)
        if not held:
            return function
        cells = [CellType() for _ in function.__closure__ or ()]
        copy = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        self.memo[id(function)] = copy
        copy.__kwdefaults__ = function.__kwdefaults__
        copy.__dict__.update(function.__dict__)
        ids = set(map(id, held))
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            try:
                content = old.cell_contents
            except ValueError:  # Not filled yet.
                continue
            cell.cell_contents = self(content) if id(content) in ids else content
        return copy

    def _object(self, value: Any) -> Any:
        try:
            copy = object.__new__(type(value))
        except TypeError:
            return value
        self.memo[id(value)] = copy
        self.containers.append(vars(value))
        attributes = vars(copy)
        for name, item in list(vars(value).items()):
            attributes[name] = self(item)
        self.made.append(attributes)
        return copy

    def _scripted(self, module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
        """A copy of a scripted module, which cannot be looked into, on the memory of the model's weights."""
        import copy as copying

        self.tensors += [*module.parameters(), *module.buffers()]
        try:
            with torch.no_grad():
                copy: torch.jit.ScriptModule = copying.deepcopy(module)
                for own, theirs in zip(copy.parameters(), module.parameters(), strict=True):
                    own.data = theirs.detach()
                    own.requires_grad_(False)
                    self.aliases.append((own, theirs))
            copy.eval()
        except Exception:  # Some hold what PyTorch cannot copy.
            if any(inner.training for inner in module.modules()):
                raise LayerError(
                    f"the scripted module {module.original_name} cannot be copied and is in training mode; "
                    "call its eval() first"
                ) from None
            return module
        self.own += zip(copy.buffers(), module.buffers(), strict=True)
        return copy


class _Snapshot:
    """What containers hold and where tensors are in memory at one time."""

    def __init__(self, containers: Iterable[Any], tensors: Iterable[torch.Tensor]) -> None:
        filled = [container for container in containers if container]
        self._empty = [container for container in containers if not container]
        self._dicts = [_Filled(each) for each in filled if isinstance(each, dict)]
        self._lists = [(each, [*each]) for each in filled if isinstance(each, (list, deque))]
        self._sets = [(each, {*each}) for each in filled if isinstance(each, set)]
        self._tensors = [(tensor, _address(tensor)) for tensor in tensors]

    def holds(self) -> bool:
        """Whether all hold the same, but for the modules' mode."""
        if any(self._empty):
            return False
        for each in self._dicts:
            if [*map(id, each.container.values())] != each.ids and not each.differs_in_mode():
                return False
        for container, items in self._lists:
            if [*map(id, container)] != [*map(id, items)]:
                return False
        if any(container != items for container, items in self._sets):
            return False
        return all(_address(tensor) == address for tensor, address in self._tensors)

    def holds_exactly(self) -> bool:
        """Whether all containers hold the same."""
        if any(self._empty) or any(not each.is_same() for each in self._dicts):
            return False
        if any([*map(id, container)] != [*map(id, items)] for container, items in self._lists):
            return False
        return all(container == items for container, items in self._sets)

    def restore(self) -> None:
        """Give the containers back what they held."""
        for container in self._empty:
            if container:
                container.clear()
        for each in self._dicts:
            if not each.is_same():
                each.container.clear()
                each.container.update(zip(each.keys, each.values, strict=True))
        for container, items in self._lists:
            if [*map(id, container)] != [*map(id, items)]:
                container.clear()
                container.extend(items)
        for members, had in self._sets:
            if members != had:
                members.clear()
                members.update(had)


class _Filled:
    """A dict with what it held."""

    __slots__ = ("container", "ids", "keys", "values")

    def __init__(self, container: dict[Any, Any]) -> None:
        self.container = container
        items = [*container.items()]
        self.keys, self.values = [key for key, _ in items], [value for _, value in items]
        self.ids = [*map(id, self.values)]

    def is_same(self) -> bool:
        """Whether it holds the same now."""
        return [*map(id, self.container.values())] == self.ids and [*self.container] == self.keys

    def differs_in_mode(self) -> bool:
        """Whether nothing has changed but a module's mode, which a shadow does not take over."""
        if [*self.container] != self.keys or "training" not in self.container:
            return False
        now = [*self.container.values()]
        changed = [i for i, (value, old) in enumerate(zip(now, self.values, strict=True)) if value is not old]
        if any(self.keys[index] != "training" for index in changed):
            return False
        self.values, self.ids = now, [*map(id, now)]
        return True


def is_shared(value: Any) -> bool:
    """Whether a module says that shadows are to share it."""
    return getattr(type(value), "shared_by_shadows", False)


def is_data(container: Any) -> bool:
    """Whether a container holds many plain values."""
    if len(container) <= _MANY:
        return False
    first = next(iter(container.values() if isinstance(container, dict) else container))
    return type(first) in _ATOMIC


def _bound(function: Any) -> list[Any]:
    """What a function is bound to, as far as it has to do with modules."""
    if isinstance(function, MethodType):
        return [] if is_shared(function.__self__) else [function.__self__]
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # Not filled yet.
            continue
    return [content for content in contents if _holds_module(content, {id(function)})]


def _holds_module(value: Any, seen: set[int]) -> bool:
    """Whether a value is a module, is bound to one, or is a container of them."""
    if isinstance(value, nn.Module):
        return True
    if type(value) in _ATOMIC or id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, MethodType):
        return _holds_module(value.__self__, seen)
    if isinstance(value, partial):
        return any(_holds_module(item, seen) for item in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                if _holds_module(cell.cell_contents, seen):
                    return True
            except ValueError:
                continue
        return False
    if isinstance(value, dict):
        return any(isinstance(item, nn.Module) for item in value.values())
    return isinstance(value, (list, tuple)) and any(isinstance(item, nn.Module) for item in value)


def _is_object(value: Any) -> bool:
    """Whether a value is an ordinary object, whose attributes are all that there is to it."""
    kind: Any = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (type, BaseException, dict, list, tuple, set))
        and kind.__module__.partition(".")[0] not in ("torch", "builtins", "numpy", "threading", "_thread")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__deepcopy__")
        # A copy's could release what the model needs.
        and not hasattr(kind, "__del__")
        and not hasattr(kind, "__slots__")
    )


def _refresh(copy: Any, original: Any) -> None:
    """Give a copy the values that its original has now."""
    if isinstance(copy, torch.Generator):
        copy.set_state(original.get_state())
    elif isinstance(copy, np.ndarray):
        np.copyto(copy, original)
    else:
        copy.clear()
        copy.extend(original) if isinstance(copy, (list, deque)) else copy.update(original)


def _value_of(copy: Any) -> Any:
    """The values of a copy at this time."""
    if isinstance(copy, torch.Generator):
        return copy.get_state()
    return copy.copy() if isinstance(copy, np.ndarray) else shallow_copy(copy)


def _has(copy: Any, value: Any) -> bool:
    """Whether a copy has these values."""
    if isinstance(copy, torch.Generator):
        return torch.equal(copy.get_state(), value)
    if isinstance(copy, np.ndarray):
        return np.array_equal(copy, value, equal_nan=copy.dtype.kind in "fc")
    return bool(copy == value)


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # Fake tensors, lazy parameters and some subclasses have no memory.
        return 0


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    """Another pair once a tensor has been written into or been given other memory."""
    return version_of(tensor), _address(tensor)


def _quieten(module: nn.Module) -> None:
    """Set a copy to evaluation mode, in which it calls every module that its code calls."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    # Not by `nn.Module.eval`, which a model may have overridden.
    own = vars(module)
    own["training"] = False
    if isinstance(module, nn.RNNBase):
        weights = [getattr(module, name, None) for name in module._flat_weights_names]
        # The first pass would else find that these have changed.
        own["_flat_weights"] = weights
        own["_flat_weight_refs"] = [None if weight is None else ref(weight) for weight in weights]
        if any(weight is not None and weight.is_cuda for weight in weights):
            # cuDNN keeps what its backward pass needs in training mode alone, where only dropout differs.
            own["training"], own["dropout"] = True, 0.0
    elif isinstance(module, nn.TransformerEncoderLayer):
        # A condition of its fused path alone, which calls no modules.
        own["activation_relu_or_gelu"] = 0
    elif isinstance(module, nn.TransformerEncoder):
        own["use_nested_tensor"] = False
