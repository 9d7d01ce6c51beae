"""What the core asks of TensorFlow: arrays, gradients, compiled functions, noise."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial, wraps
from threading import RLock
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src.backend.common import global_state  # nothing public tells what Keras notes of a call
from tensorflow.python.eager import context  # nothing public turns eager execution on for a while
from tensorflow.python.framework import ops  # nothing public tells which operations have a gradient

from iba_core.bottleneck.noise import keyed_normal
from iba_core.errors import LayerError
from iba_core.framework.framework import F, Framework, X, rows_in_cache
from iba_core.framework.while_used import WhileUsed
from iba_core.undo import undone_if_interrupted

C = TypeVar("C", bound=Callable[..., Any])

_CONSTANTS = 32
"""How many combinations of constants a compiled function keeps its graphs for."""


_call = type(tf.function(lambda: None)).__call__
"""TensorFlow's own call of a function, whatever `layer_tracing` does to it."""


def is_eager_program() -> bool:
    """Whether the program runs operations at once, apart from graphs that it has entered."""
    return bool(context.default_execution_mode == context.EAGER_MODE)


def eagerly() -> AbstractContextManager[None]:
    """Run operations at once, with plain integers in shapes, also in a TensorFlow 1 graph.

    Inside a `tf.function` that is being traced, this context does nothing.
    """
    return nullcontext() if tf.executing_eagerly() or tf.inside_function() else _eagerly()


@contextmanager
def _eagerly() -> Iterator[None]:
    with _plain_shapes.applied(), context.eager_mode():
        yield


class _PlainShapes(WhileUsed):
    """Plain integers in shapes, where TensorFlow's switch for them is off. All threads share the switch."""

    _is_switched = False

    def _begin(self) -> None:
        if type(tf.TensorShape([1])[0]) is not int:
            self._is_switched = True
            tf.compat.v1.enable_v2_tensorshape()

    def _end(self) -> None:
        if self._is_switched:
            tf.compat.v1.disable_v2_tensorshape()
            self._is_switched = False


_plain_shapes = _PlainShapes()


class _Notes:
    """What Keras and TensorFlow have noted of the calls that this thread is in.

    After an interrupt, Keras could take later calls of layers for calls within one that has ended, and
    TensorFlow could put all that follows into a graph.
    """

    _SCOPES = (
        *("autocast_scope", "current_call_ctx", "in_tf_graph_scope", "name_scope_stack", "remat_scope_stack"),
        *("stateless_scope", "symbolic_scope"),
    )
    """Keras' names of them. It also keeps settings, some of which it makes when they are first asked for."""

    def __init__(self) -> None:
        running = context.context()
        self._scopes = {name: global_state.get_global_attribute(name) for name in self._SCOPES}
        self._mode = running.executing_eagerly()
        kept = (ops._default_graph_stack.stack, running.context_switches.stack, *self._scopes.values())
        self._depths = [(stack, len(stack)) for stack in kept if isinstance(stack, list)]

    def restore(self) -> None:
        """Take back every later note."""
        for name, value in self._scopes.items():
            global_state.set_global_attribute(name, value)
        for stack, depth in self._depths:
            del stack[depth:]
        context.context()._thread_local_data.is_eager = self._mode


forgotten_if_interrupted = undone_if_interrupted(lambda: _Notes().restore)
"""Decorator of functions; Keras and TensorFlow forget their calls when they are interrupted."""


def runs_eagerly(function: C) -> C:
    """Decorate `function` so that its body runs in the context `eagerly`; see `forgotten_if_interrupted`."""

    @forgotten_if_interrupted
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with eagerly():
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]  # `wraps` keeps the signature, which the checker cannot see


class Traced:
    """A `tf.function` that an interrupt cannot leave half made.

    An interrupt may leave a function half traced, or with its lock closed, so that other threads wait for
    ever. So a function is kept once it has run, and given up when it is interrupted.

    Args:
        function: takes and returns nested structures of tensors.
        options: options of `tf.function`.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._python, self._options = function, options
        self._proven: Any = None
        self._lock = RLock()

    @forgotten_if_interrupted
    def __call__(self, *args: Any) -> Any:
        """Run it, traced before for new shapes."""
        if self._proven is None:
            # Functions that share others must not be traced at the same time.
            with self._lock:
                if self._proven is None:
                    function = self._made()
                    results = function(*args)
                    self._proven = function
                    return results
        function = self._proven or self._made()
        try:
            # Eagerly, no model is being traced whose layers would have to be recorded.
            return _call(function, *args) if tf.executing_eagerly() else function(*args)
        except Exception:
            raise
        except BaseException:
            self._proven = None
            raise

    @forgotten_if_interrupted
    def get_concrete_function(self, *specs: Any) -> Any:
        """The graph for arguments of some shapes."""
        return self._made().get_concrete_function(*specs)

    def _made(self) -> Any:
        # TensorFlow counts traces per code object, and would warn of too many if several objects trace the
        # same method. Each partial is counted separately.
        return tf.function(partial(self._python), autograph=False, **self._options)


def traced(function: Callable[..., Any], **options: Any) -> Traced:
    """Return `function` as a `tf.function` whose Python code AutoGraph does not rewrite.

    Args:
        function: takes and returns nested structures of tensors.
        **options: options of `tf.function`.
    """
    return Traced(function, options)


_FLAT = ("ArgMax", "ArgMin", "Ceil", "Floor", "Rint", "Round", "Sign")
"""Operations whose registered gradient is none, or zero everywhere."""


_OPAQUE = (tf.resource, tf.variant)


def is_cut_off(output: tf.Tensor, x: tf.Tensor) -> bool:
    """Whether no gradient can go from a tensor of a graph to another one of it."""
    seen: set[int] = set()
    queue = [output]
    while queue:
        tensor = queue.pop()
        if tensor is x:
            return False
        # Handles and lists of tensors may hold anything.
        is_open = tensor.dtype.is_floating or tensor.dtype.is_complex or tensor.dtype in _OPAQUE
        if id(tensor) in seen or not is_open:
            continue
        seen.add(id(tensor))
        if tensor.op.type not in _FLAT and _has_gradient(tensor.op):
            queue.extend(tensor.op.inputs)
    return True


def _has_gradient(operation: tf.Operation) -> bool:
    try:
        return ops.get_gradient_function(operation) is not None
    except LookupError:  # TensorFlow itself says so when it is asked for the gradient
        return True


def fresh_key() -> tuple[int, int]:
    """Two new numbers below 2**31 that can seed stateless random operations.

    `tf.random.set_seed` determines them, as it does TensorFlow's own random numbers. No operation runs:
    after `set_seed`, every eager random operation would leave a kernel in memory.
    """
    seed, of_operation = tf.compat.v1.get_seed(None)
    if seed is None:
        return secrets.randbits(31), secrets.randbits(31)
    return seed % 2**31, of_operation % 2**31


class TensorFlowFramework(Framework):
    """TensorFlow's arrays, gradients, compiled functions and noise.

    Example:
        >>> framework = TensorFlowFramework()
        >>> x = tf.constant([1.0, 2.0])
        >>> value, _, gradient = framework.value_and_grad(lambda x: (tf.reduce_sum(x**2), ()), x)
        >>> float(value), gradient.numpy().tolist()
        (5.0, [2.0, 4.0])
    """

    name: ClassVar[str] = "tensorflow"

    # -- arrays -----------------------------------------------------------------------------------

    @runs_eagerly
    def asarray(self, array: npt.ArrayLike, like: tf.Tensor) -> tf.Tensor:
        """See `Framework.asarray`."""
        with tf.device(like.device):
            tensor = tf.convert_to_tensor(array)
            return tf.cast(tensor, like.dtype) if tensor.dtype.is_floating else tensor

    @runs_eagerly
    def to_numpy(self, array: tf.Tensor) -> npt.NDArray[Any]:
        """See `Framework.to_numpy`."""
        tensor = tf.convert_to_tensor(array)
        found: npt.NDArray[Any] = (
            tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
        ).numpy()
        return found

    @runs_eagerly
    def standard_normal(self, shape: Sequence[int], like: tf.Tensor) -> tf.Tensor:
        """See `Framework.standard_normal`; `tf.random.set_seed` determines the numbers."""
        first, second = fresh_key()
        if _on_processor(like):
            # TensorFlow's own kernel takes more than twice as long on a processor.
            return self.asarray(keyed_normal(first << 32 | second, tuple(shape)), like)
        with tf.device(like.device):
            return tf.random.stateless_normal(shape, seed=(first, second), dtype=like.dtype)

    def preferred_batch(self, shape: Sequence[int], like: tf.Tensor) -> int | None:
        """See `Framework.preferred_batch`."""
        return rows_in_cache(shape) if _on_processor(like) else None

    # -- functions --------------------------------------------------------------------------------

    @runs_eagerly
    def value_and_grad(
        self, function: Callable[[tf.Tensor], tuple[tf.Tensor, Any]], x: tf.Tensor
    ) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """See `Framework.value_and_grad`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value, auxiliary = function(x)
        gradient = tape.gradient(value, x)
        if gradient is None:
            raise LayerError(
                "what is to be kept of the output does not depend on the layer, or is cut off from it "
                "(stop_gradient, argmax, whole numbers); choose another layer, target or output="
            )
        return value, auxiliary, gradient

    def compile(self, function: F, *, jit_compile: bool = False, donate: int | None = None) -> F:
        """Return `function` as a `tf.function`, traced once for each combination of shapes and constants.

        The graphs of the constants that were used least recently are dropped. See `Framework.compile`.
        """

        @lru_cache(maxsize=_CONSTANTS)
        def graph_for(constants: tuple[tuple[int, Any], ...]) -> Any:
            return traced(partial(_run, function, constants), **options)

        pool: list[list[tf.Variable]] = []
        options = {"jit_compile": True} if jit_compile else {}

        def call(*args: Any) -> Any:
            arguments = list(args)
            del args  # nothing but `arguments` may hold the arrays that are donated
            donated = _donate(arguments, donate, pool) if donate is not None and not jit_compile else None
            leaves = tf.nest.flatten(arguments)
            constants = tuple((place, leaf) for place, leaf in enumerate(leaves) if not _is_array(leaf))
            for place, _ in constants:
                leaves[place] = None
            try:
                return graph_for(constants)(*tf.nest.pack_sequence_as(arguments, leaves))
            finally:
                if donated is not None:
                    pool.append(donated)

        return call  # type: ignore[return-value]  # it takes and returns what `function` does

    def barrier(self, x: X, after: Any) -> X:
        """See `Framework.barrier`."""
        if tf.executing_eagerly():
            return x
        with tf.control_dependencies([leaf for leaf in tf.nest.flatten(after) if tf.is_tensor(leaf)]):
            held: X = tf.nest.map_structure(lambda leaf: tf.identity(leaf) if tf.is_tensor(leaf) else leaf, x)
        return held


class _Donated(NamedTuple):
    """An array in a variable that nothing else refers to."""

    variable: tf.Variable
    shape: tf.TensorShape


def _donate(arguments: list[Any], donate: int, pool: list[list[tf.Variable]]) -> list[tf.Variable] | None:
    """Move the donated arrays from the arguments into variables, which can release their memory.

    Args:
        arguments: the arguments of a compiled function. The donated one is replaced.
        donate: the position of the donated one, a tuple of arrays.
        pool: variables of earlier calls that nothing uses at the moment.

    Returns:
        The variables; None where arrays cannot be donated. Variables that a distribution strategy makes have
        one known shape.
    """
    if tf.distribute.has_strategy() or not tf.executing_eagerly():
        return None
    arrays = list(arguments[donate])
    arguments[donate] = None
    arrays.reverse()
    try:
        variables = pool.pop()
    except IndexError:
        variables = []
    moved: list[_Donated] = []
    while arrays:
        array = arrays.pop()
        place = len(moved)
        if place == len(variables) or not _holds(variables[place], array):
            with tf.device(array.device):
                made = tf.Variable(array, trainable=False, shape=tf.TensorShape(None))
            variables[place : place + 1] = [made]
        else:
            # A new variable would take more time.
            variables[place].assign(array, read_value=False)
        moved.append(_Donated(variables[place], array.shape))
        del array
    arguments[donate] = tuple(moved)
    return variables


def _holds(variable: tf.Variable, array: tf.Tensor) -> bool:
    return bool(variable.dtype == array.dtype and variable.device == array.device)


def _received(donated: _Donated) -> tf.Tensor:
    """The array in a variable, which is emptied."""
    array = tf.ensure_shape(donated.variable.read_value(), donated.shape)
    emptied = donated.variable.assign(tf.zeros([0], array.dtype), read_value=False)
    # Without this order the variable might be emptied last, and the function could not reuse the memory.
    with tf.control_dependencies([emptied]):
        return tf.identity(array)


def _run(function: Callable[..., Any], constants: tuple[tuple[int, Any], ...], *arguments: Any) -> Any:
    """Call `function` with its constants in their places, and with the arrays that are donated."""
    leaves = tf.nest.flatten(arguments)
    for place, constant in constants:
        leaves[place] = constant
    structure = tf.nest.pack_sequence_as(arguments, leaves)
    return function(
        *(
            tuple(_received(leaf) for leaf in argument)
            if isinstance(argument, tuple) and argument and isinstance(argument[0], _Donated)
            else argument
            for argument in structure
        )
    )


def _is_array(leaf: Any) -> bool:
    return tf.is_tensor(leaf) or isinstance(leaf, (np.ndarray, np.generic, tf.Variable))


def _on_processor(tensor: tf.Tensor) -> bool:
    return tf.DeviceSpec.from_string(tensor.device).device_type in (None, "CPU")
