"""Keras before the judge: a model whose layer's call is patched, and the library's classes."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from iba_tf import IBACopy, IBALayer, IBAReadout, TensorFlowAdapter
from tests.generator.cases import Bench, Case, Face, Inputs, draw_case
from tests.generator.keras_models import assemble, draw_program, is_chain
from tests.generator.programs import Draw, Place
from tests.generator.reference import TINY

OPS = SimpleNamespace(
    log=lambda x: tf.math.log(tf.maximum(x, TINY)),
    logsumexp=lambda x: tf.reduce_logsumexp(x, axis=-1),
    softplus=tf.math.softplus,
)
v1 = tf.compat.v1


class KerasBench(Bench):
    backend = "tensorflow"

    def __init__(self, case: Case, model: keras.Model, kind: str, draw_seed: int) -> None:
        super().__init__(case)
        self._model, self.kind, self._seed = model, kind, draw_seed
        # Some layers set attributes when they are first called.
        model(self.tensors(case.inputs), training=False)
        self.own, self._own_layers = self._again()

    @classmethod
    def draw(cls, number: int) -> KerasBench:
        seed = 1000 * number
        model, program, signature, kind, draw = _built(seed)
        text = "\n".join(
            [f"{kind} model:", *program.lines, f"return {signature.returns}", "", *_shown(program.layers)]
        )
        case = draw_case(draw, number, program, signature, text)
        if kind == "subclassed":
            case.readout_layers = []  # it takes models with a graph of layers
        case.named &= kind != "subclassed"
        return cls(case, model, kind, seed)

    def _again(self, after: str | None = None, extra: Any = None) -> tuple[keras.Model, dict[str, Any]]:
        """The same model anew, with the same weights, and perhaps with a further layer."""
        with same_random_state():
            model, program, *_ = _built(self._seed, after, extra)
        model(self.tensors(self.case.inputs), training=False)
        model.set_weights(self._model.get_weights())
        return model, program.layers

    @property
    def model(self) -> keras.Model:
        return self._model

    def tensors(self, inputs: Inputs) -> Any:
        found = [tf.constant(x) for x in inputs]
        return found if len(found) > 1 else found[0]

    def layer(self, name: str) -> Any:
        """The judge's own layer of a name."""
        found: Any = SimpleNamespace(get=self._own_layers.__getitem__)
        for part in name.partition(":")[0].split("/"):
            if isinstance(found, SimpleNamespace):
                found = found.get(part)
            elif type(found).__name__ == "Own":
                found = getattr(found, part)
            else:
                found = found.get_layer(part)
        return found

    @contextmanager
    def replacing(self, layer: str, rows: int, z: Any = None) -> Iterator[list[Any]]:
        """Context in which the output of a layer is kept, and replaced where there is a z."""
        name, _, number = layer.partition(":")
        place, wanted = self.case.program.places[name], int(number or 0)
        own = self.layer(layer)
        call, found, calls = own.call, [], 0

        def patched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            output = call(*args, **kwargs)
            calls += 1
            if calls != wanted + 1:
                return output
            found.append(_to_batch_first(output, place, rows))
            return output if z is None else _from_batch_first(z, place)

        vars(own)["call"] = patched
        try:
            yield found
        finally:
            del vars(own)["call"]
        assert calls == place.calls, f"{layer!r} ran {calls} times, not {place.calls}"

    def features(self, inputs: Inputs, layer: str) -> np.ndarray:
        with self.replacing(layer, len(inputs[0])) as found:
            self.own(self.tensors(inputs), training=False)
        return np.asarray(found[0])

    def outputs(self, inputs: Inputs) -> np.ndarray:
        return np.asarray(self.case.signature.main(self.own(self.tensors(inputs), training=False)))

    def slope(
        self, inputs: Inputs, z: np.ndarray, loss: Callable[[Any, Any], Any]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        leaf = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(leaf)
            with self.replacing(self.case.layer, len(z), leaf):
                losses = loss(self.case.signature.main(self.own(self.tensors(inputs), training=False)), OPS)
        slope = tape.gradient(losses, leaf)
        return None if slope is None else (np.asarray(losses), np.asarray(tf.convert_to_tensor(slope)))

    def state(self) -> dict[str, Any]:
        everything = [self._model, *self._model._flatten_layers()]
        return {
            "random state": (random.getstate(), repr(np.random.get_state())),
            "weights": {v.path: np.asarray(v).tobytes() for v in self._model.variables},
            "flags": [layer.trainable for layer in everything],
            "attributes": [sorted(vars(layer)) for layer in everything],
            # The library wraps the class of all layers once, and for good.
            "methods": [(layer.call, inspect.unwrap(type(layer).__call__)) for layer in everything],
            "process settings": (
                keras.config.floatx(),
                tf.executing_eagerly(),
                tf.config.functions_run_eagerly(),
            ),
        }

    def adapter(self, rewrites: bool) -> TensorFlowAdapter:
        return TensorFlowAdapter(self._model, rewrites=rewrites)

    # -- the library's classes -----------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        settings = self.case.settings
        return {
            "batch_size": settings.samples,
            "steps": settings.steps,
            "beta": settings.beta,
            "learning_rate": settings.learning_rate,
            "smooth_std": settings.smooth_std,
        }

    def faces(self) -> Iterator[tuple[str, type, Face]]:
        case, name = self.case, self.case.layer
        at_top = name in case.program.layers and f"x = self.{name}(x)" in case.program.lines
        if self.kind != "subclassed" and at_top:
            yield "IBALayer", IBALayer, self.iba_layer
        # A subclassed model has no graph for a loss of one's own.
        if self.kind != "subclassed" or self.by_class:
            yield "IBACopy", IBACopy, self.iba_copy

    @property
    def by_class(self) -> bool:
        """Whether the loss is that of `set_classification_loss`."""
        signature = self.case.signature
        return self.case.settings.kind == "class" and signature.end == "none" and signature.classes > 1

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(max(2, self.case.signature.classes))[self.case.targets]

    def iba_layer(self, **further: Any) -> tuple[np.ndarray, None]:
        case, signature = self.case, self.case.signature
        with float64():
            layer = IBALayer(**self.settings, **further)
            model, _ = self._again(case.layer, layer)
        main = signature.main(model.output)
        feed = self.feed(case.inputs)
        target: Any = None
        if self.by_class:
            layer.set_classification_loss(main)
            target = case.targets
        else:
            with float64():
                wanted = keras.Input((self.one_hot.shape[1],), name="wanted")
            layer.set_model_loss(_loss(case, main, wanted, keras.ops))
            feed |= {"wanted": self.one_hot}
        for batch in case.batches:
            layer.fit(self.feed(batch) | ({} if target else {"wanted": self.one_hot[:1]}))
        nats = layer.analyze(feed, target=target, seed=case.settings.seed)
        return (nats if case.images > 1 else nats[None]), None

    def iba_copy(self, **further: Any) -> tuple[np.ndarray, None]:
        case, signature = self.case, self.case.signature
        outputs = None
        if self.kind != "subclassed" and signature.returns != "x":
            outputs = [signature.main(self._model.output)]
        iba = IBACopy(case.layer, outputs, graph=self._model, **self.settings, **further)
        for batch in case.batches:
            iba.fit(self.feed(batch))
        feed = self.feed(case.inputs)
        options: dict[str, Any] = {"seed": case.settings.seed}
        second: dict[Any, Any] = {}
        if self.by_class:
            iba.set_classification_loss()
            options["target"] = case.targets
        else:
            with iba.copied_session_and_graph_as_default():
                copied = iba.get_copied_outputs()
                main = copied[0] if outputs is not None else signature.main(copied)
                wanted = v1.placeholder(tf.float64, (None, self.one_hot.shape[1]))
                iba.set_model_loss(
                    _loss(
                        case,
                        main,
                        wanted,
                        SimpleNamespace(
                            log=tf.math.log,
                            sum=tf.reduce_sum,
                            logsumexp=tf.reduce_logsumexp,
                            maximum=tf.maximum,
                            softplus=tf.math.softplus,
                        ),
                    )
                )
            second[wanted] = self.one_hot
        nats = iba.analyze(feed, second, **options)
        return (nats if case.images > 1 else nats[None]), None

    def feed(self, inputs: Inputs) -> Any:
        """Inputs by the names of the model's, or as they are where it has none."""
        if self.kind == "subclassed":
            return inputs[0] if len(inputs) == 1 else inputs
        return dict(zip("xyz", inputs, strict=False))

    readout_class = IBAReadout

    def readout(self, **options: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        case, own, weights = self.case, [], []
        generator = np.random.default_rng(case.number)
        sigma = case.settings.smooth_std
        readout = IBAReadout(case.layer, case.readout_layers, self._model, sigma=sigma, **options)
        readout.estimate(self._model, [(case.arguments(batch),) for batch in case.batches], progbar=False)
        for weight in readout.network.get_weights():
            fan = weight.shape[-2] if weight.ndim > 1 else 1
            own.append(generator.normal(size=weight.shape) / fan**0.5)
            weights.append(own[-1].reshape(weight.shape[-2:]).T if weight.ndim > 1 else own[-1])
        readout.network.set_weights(own)
        args = case.arguments(case.inputs)
        found = [readout.analyze(args, mode=mode) for mode in ("capacity", "saliency")]
        nats, maps = found if case.images > 1 else [each[None] for each in found]
        return nats, maps, weights


def _loss(case: Case, main: Any, wanted: Any, ops: Any) -> Any:
    """Losses of each row, where `wanted` has a 1 at its class."""
    if case.signature.classes == 1:
        chosen = wanted[:, 1] * main[:, 0] + wanted[:, 0] * (1 - main[:, 0])
        chosen = main[:, 0] if case.settings.kind == "logit" else chosen
    else:
        chosen = ops.sum(wanted * main, -1)
    if case.settings.kind == "logit":
        return -chosen
    if case.signature.end == "none" and case.signature.classes == 1:
        sign = wanted[:, 1] - wanted[:, 0]
        return ops.softplus(-sign * main[:, 0])
    if case.signature.end == "none":
        return ops.logsumexp(main, -1) - chosen
    log = ops.log(ops.maximum(main, TINY))
    of_all = ops.logsumexp(log, -1) if case.signature.end == "softmax" else 0.0
    return of_all - ops.log(ops.maximum(chosen, TINY))


@contextmanager
def same_random_state() -> Iterator[None]:
    """Context whose random numbers do not count: Keras draws initial weights."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def float64() -> Iterator[None]:
    """Context in which Keras makes layers in float64."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    # Keras keeps the policy of the first layer that it has made, whatever comes later.
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def _built(seed: int, after: str | None = None, extra: Any = None) -> tuple[Any, ...]:
    """A model, always the same for a seed, with random weights that matter."""
    draw = Draw(seed)
    with float64():
        program, signature = draw_program(draw)
        kinds = ["functional", "functional", "subclassed"] + ["sequential"] * 3 * is_chain(program)
        single = signature.returns == "x" and len(signature.kinds) == 1
        kind = draw.choice(kinds if single else ["functional", "functional", "subclassed"])
        kind = "functional" if kind == "sequential" and after is not None else kind
        model = assemble(program, signature, kind, after, extra)
        if kind == "subclassed":
            zeros = signature.draw(np.random.default_rng(0), 2)
            model(
                [tf.constant(x) for x in zeros] if len(zeros) > 1 else tf.constant(zeros[0]), training=False
            )
    generator = np.random.default_rng(draw.randrange(2**32))
    weights = []
    for variable, weight in zip(model.weights, model.get_weights(), strict=True):
        if not np.issubdtype(weight.dtype, np.floating):
            weights.append(weight)
            continue
        value = (
            generator.normal(size=weight.shape)
            / (np.prod(weight.shape[:-1]) if weight.ndim > 1 else 4) ** 0.5
        )
        name = variable.path
        weights.append(0.5 + np.abs(value) if "variance" in name or "gamma" in name else value)
    model.set_weights(weights)
    return model, program, signature, kind, draw


def _shown(layers: dict[str, Any], indent: str = "  ") -> Iterator[str]:
    for name, layer in layers.items():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        keys = (
            "filters",
            "kernel_size",
            "strides",
            "padding",
            "units",
            "activation",
            "axis",
            "groups",
            "num_heads",
            "key_dim",
            "rate",
            "dims",
            "target_shape",
        )
        config = {} if isinstance(layer, keras.Model) or type(layer).__name__ == "Own" else layer.get_config()
        shown = ", ".join(f"{key}={config[key]!r}" for key in keys if key in config)
        yield f"{indent}{name} = {type(layer).__name__}({shown})"
        if not config:
            inner = getattr(layer, "layers", [])
            yield from _shown({each.name: each for each in inner}, indent + "  ")


def _to_batch_first(x: Any, place: Place, images: int) -> Any:
    return tf.reshape(x, (images, -1, x.shape[-1])) if place.axes.startswith("(") else x


def _from_batch_first(x: Any, place: Place) -> Any:
    return tf.reshape(x, (-1, x.shape[-1])) if place.axes.startswith("(") else x
