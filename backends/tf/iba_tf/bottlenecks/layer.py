"""A bottleneck as a layer of a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import KerasTensor

from iba_core.bottleneck.estimator import STATE, WelfordEstimator
from iba_core.errors import InputError, LayerError, NotEstimatedError
from iba_core.framework.inputs import inputs_of_batch
from iba_core.targets import cross_entropy
from iba_tf.adapter import KerasAdapter, require_tensorflow
from iba_tf.bottlenecks.flow import Flow
from iba_tf.bottlenecks.layer_in_graph import LayerInGraph, is_in_graph
from iba_tf.bottlenecks.per_sample import PerSampleBottleneck, classes_of, require_adam, require_rows
from iba_tf.bottlenecks.softmax import applies_softmax
from iba_tf.bottlenecks.tail_loss import TailLoss
from iba_tf.eager import eagerly, runs_eagerly
from iba_tf.graphs.calls import CallGraph, function_to
from iba_tf.graphs.keras_split import KerasCut


@keras.saving.register_keras_serializable("iba_tf")
class IBALayer(PerSampleBottleneck, keras.layers.Layer):
    """A layer that finds out how much of the information passing it the model needs.

    Put it anywhere into a functional or sequential model, or call it on a tensor of a graph of TensorFlow 1.
    In training and prediction it is the identity and has no weights; `analyze` optimises a bottleneck in its
    place, running what is behind it alone. In an old graph the feeds are those of its session, and the
    variables have the values that they have there.

    Args:
        estimator: fitted statistics of the features.
        feature_mean: mean of the features, shape of one feature map, in place of `estimator`.
        feature_std: standard deviation of the features, likewise.
        feature_active: whether each feature takes part; the others are set to 0 and carry no information.
            All do if None.
        batch_size: default number of noisy samples that a step's gradient is averaged over.
        steps: default number of optimiser steps.
        beta: default weight of the information against the model's loss.
        learning_rate: default learning rate of Adam.
        min_std: default floor of the features' standard deviation.
        smooth_std: default standard deviation of the Gaussian that smooths the mask; 0 for no smoothing.
        normalize_beta: divide beta by the number of features, by default.
        **kwargs: see `keras.layers.Layer`.

    Raises:
        InputError: `estimator` is given along with the others, or a hyperparameter is out of its range.

    Example:
        >>> inputs = keras.Input((32, 32, 3))
        >>> x = keras.layers.Conv2D(64, 3, activation="relu")(inputs)
        >>> iba = IBALayer()
        >>> x = iba(x)
        >>> model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
        >>> target = iba.set_classification_loss(model.output)
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> iba.fit({model.input: images})
        >>> iba.analyze({model.input: images[:1], target: 3}).shape
        (30, 30, 64)
    """

    def __init__(
        self,
        estimator: WelfordEstimator | None = None,
        feature_mean: npt.ArrayLike | None = None,
        feature_std: npt.ArrayLike | None = None,
        feature_active: npt.ArrayLike | None = None,
        batch_size: int = 10,
        steps: int = 10,
        beta: float = 10,
        learning_rate: float = 1,
        min_std: float = 0.01,
        smooth_std: float = 1.0,
        normalize_beta: bool = True,
        **kwargs: Any,
    ) -> None:
        require_tensorflow()
        super().__init__(**kwargs)
        self.supports_masking = True
        self._set_up(
            estimator,
            feature_mean,
            feature_std,
            feature_active,
            batch_size=batch_size,
            steps=steps,
            beta=beta,
            learning_rate=learning_rate,
            min_std=min_std,
            smooth_std=smooth_std,
            normalize_beta=normalize_beta,
        )
        self._bound = _Bound()

    # -- Keras' side ------------------------------------------------------------------------------

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the variables that hold the last bottleneck; none is a weight.

        Args:
            input_shape: with the batch axis.
        """
        # Keras builds layers inside of graphs, too, and the variables outlive those. They are TensorFlow's
        # own, which Keras neither trains nor counts nor saves. What an old graph needs it gets in `call`.
        with tf.init_scope(), eagerly():
            self._flow = Flow(tf.float64 if self.compute_dtype == "float64" else tf.float32)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """`inputs` as they are, or restricted to what the last analysis kept, within `restrict_flow`."""
        if is_in_graph(inputs):
            self._bound = _Bound(in_graph=LayerInGraph(inputs, self._flow.dtype))
            return self._bound.in_graph.outputs
        return self._flow(inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The `input_shape`."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The hyperparameters, and Keras' own; statistics are saved with the weights."""
        return {**super().get_config(), **self.get_default()}

    def save_own_variables(self, store: Any) -> None:
        """Keep the statistics in a file of weights, beside the weights of other layers."""
        super().save_own_variables(store)
        state = self.state_dict()
        if state["estimator"] is not None:
            for name in STATE:
                store[f"estimator_{name}"] = state["estimator"][name]
        for name in _GIVEN:
            if state[name] is not None:
                store[name] = state[name]

    def load_own_variables(self, store: Any) -> None:
        """Take over the statistics in a file of weights; the present ones stay if it has none."""
        super().load_own_variables({})
        names = set(store.keys())
        state = {**self.state_dict(), **dict.fromkeys(("estimator", *_GIVEN))}
        if f"estimator_{STATE[0]}" in names:
            state["estimator"] = {name: np.asarray(store[f"estimator_{name}"]) for name in STATE}
        state.update((name, np.asarray(store[name])) for name in _GIVEN if name in names)
        if names:
            self.load_state_dict(state)

    # -- the model around the layer ---------------------------------------------------------------

    def set_classification_loss(
        self, logits: KerasTensor | keras.Model, optimizer_cls: type = keras.optimizers.Adam
    ) -> KerasTensor:
        """Keep the class of a classifier: the loss is the cross-entropy of its logits.

        Args:
            logits: symbolic output (None, K) of the model, without a softmax; or the model, if that is
                its only output; or a tensor of a v1 graph.
            optimizer_cls: Adam; the library's own is used, which is the same in every framework.

        Returns:
            A symbolic tensor that stands for the class in the feeds of `analyze`: its value is a class
            for all images, or one for each.

        Raises:
            InputError: `logits` has another shape or comes from a softmax, or the optimiser is not Adam.
            LayerError: `logits` does not depend on this layer, or does so by several of its calls.
        """
        if isinstance(logits, (keras.Model, keras.Function)):
            if len(logits.outputs) != 1:
                raise InputError(
                    f"logits={logits.name!r} has {len(logits.outputs)} outputs; give one of them"
                )
            (logits,) = logits.outputs
        require_adam(optimizer_cls)
        if is_in_graph(logits):
            return self._in_graph().keep_class(logits)
        _require_symbolic("logits", logits)
        if len(logits.shape) != 2 or logits.shape[1] is None:
            raise InputError(f"logits has shape {tuple(logits.shape)}, it must be (None, number of classes)")
        if _comes_from_softmax(logits):
            raise InputError(
                "logits comes from a softmax; give the layer's output before it, or the output of "
                "model_wo_softmax(model)"
            )
        adapter, cut = self._cut_to(logits)
        target = KerasTensor((None,), dtype="int64", name="target")
        loss = TailLoss(adapter, cut, cross_entropy, classes=int(logits.shape[1]))
        self._bound.loss, self._bound.target = loss, target
        return target

    def set_model_loss(self, model_loss: KerasTensor, optimizer_cls: type = keras.optimizers.Adam) -> None:
        """Keep whatever a loss measures; it is added to ``beta * mean(capacity)``.

        Args:
            model_loss: symbolic tensor computed from the model's outputs, of shape (None,) or (None, 1), a
                loss for each row, or (), their mean. Further `keras.Input`s (or placeholders) that it depends
                on, such as labels, take their values from the feeds of `analyze`.
            optimizer_cls: see `set_classification_loss`.

        Raises:
            InputError: `model_loss` has another shape, or the optimiser is not Adam.
            LayerError: `model_loss` does not depend on this layer, or does so by several of its calls.
        """
        require_adam(optimizer_cls)
        if is_in_graph(model_loss):
            self._in_graph().keep_low(model_loss)
            return
        _require_symbolic("model_loss", model_loss)
        shape = tuple(model_loss.shape)
        if shape not in ((), (None,), (None, 1)):
            raise InputError(f"model_loss has shape {shape}, it must be (None,), (None, 1) or ()")
        adapter, cut = self._cut_to(model_loss)
        self._bound.loss, self._bound.target = TailLoss(adapter, cut, by_image=len(shape) > 0), None

    @property
    def target(self) -> KerasTensor | None:
        """What `set_classification_loss` returned last; None without a classification."""
        in_graph = self._bound.in_graph
        return self._bound.target if in_graph is None else in_graph.target

    def _in_graph(self) -> LayerInGraph:
        if self._bound.in_graph is None:
            raise LayerError(f"layer {self.name!r} is not in the graph: call it on one of its tensors")
        return self._bound.in_graph

    def _cut_to(self, output: KerasTensor) -> tuple[KerasAdapter, KerasCut]:
        adapter = KerasAdapter(function_to(output))
        places = [place for place in adapter.graph.places if place.operation is self]
        if len(places) != 1:
            advice = (
                "it must run once, and each bottleneck of a model needs a layer of its own"
                if places
                else "what a subclassed model calls cannot be seen from outside, but IBACopy can explain it"
            )
            raise LayerError(
                f"layer {self.name!r} runs {len(places)} times on the way to {output.name!r}; {advice}"
            )
        return adapter, KerasCut(adapter.graph, places[0], places[0].outputs[0], replace=True)

    def _cut(self) -> KerasCut:
        """The model around the layer: up to the loss if there is one, else up to its own last call."""
        if self._bound.loss is not None:
            return self._bound.loss.cut
        if not self._inbound_nodes:
            raise LayerError(
                f"layer {self.name!r} is in no model yet: add it to one, or call it on a symbolic tensor"
            )
        # A sequential model calls its layers anew whenever another one is added.
        output = self._inbound_nodes[-1].outputs[0]
        if self._bound.alone is None or self._bound.alone[0] is not output:
            self._bound.alone = (output, self._cut_to(output)[1])
        return self._bound.alone[1]

    def _feature_name(self) -> str:
        return self.name

    def _is_classification(self) -> bool:
        if self._bound.in_graph is not None:
            return self._bound.in_graph.is_classification
        return self._bound.loss is not None and self._bound.loss.is_classification

    # -- estimating and explaining ----------------------------------------------------------------

    @runs_eagerly
    def fit(self, feed_dict: Any, session: Any = None, run_kwargs: dict[str, Any] | None = None) -> None:
        """Estimate mean and standard deviation of the features, in addition to what has been seen.

        Args:
            feed_dict: arrays (B, ...) by the model's symbolic inputs or their names; or one array, where
                the model has one input.
            session: where to run a v1 graph that the layer was called in; the default one if None. Keras
                models need none.
            run_kwargs: further arguments of `tf.compat.v1.Session.run`, likewise.

        Raises:
            InputError: an input is missing or has the wrong shape, or the features are not finite.
            LayerError: the layer is in no model.
        """
        features, feeds = self._estimating([feed_dict], session, run_kwargs)
        self._fit_batches(features, feeds, None, progbar=False)

    @runs_eagerly
    def fit_generator(
        self,
        generator: Iterable[Any],
        n_samples: int = 5000,
        progbar: bool = True,
        session: Any = None,
        run_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Estimate mean and standard deviation of the features, in addition to what has been seen.

        Args:
            generator: yields what `fit` takes, or tuples (inputs, ...).
            n_samples: stop after exactly so many; fewer are used where the generator ends before.
            progbar: show the progress.
            session: where to run a v1 graph that the layer was called in; the default one if None. Keras
                models need none.
            run_kwargs: further arguments of `tf.compat.v1.Session.run`, likewise.

        Raises:
            InputError: the generator gives nothing, or something that `fit` does not take.
            LayerError: the layer is in no model.
        """
        features, feeds = self._estimating(map(inputs_of_batch, generator), session, run_kwargs)
        self._fit_batches(features, feeds, n_samples, progbar)

    @runs_eagerly
    def analyze(
        self,
        feed_dict: Any,
        batch_size: int | None = None,
        steps: int | None = None,
        beta: float | None = None,
        learning_rate: float | None = None,
        min_std: float | None = None,
        smooth_std: float | None = None,
        normalize_beta: bool | None = None,
        session: Any = None,
        pass_mask: npt.ArrayLike | None = None,
        progbar: bool = False,
        *,
        target: Any = None,
        seed: int | None = None,
        max_batch: int | None = None,
    ) -> npt.NDArray[np.floating]:
        r"""Information that each feature carries for the model's loss. The images stay independent.

        Args:
            feed_dict: arrays (B, ...) by the model's symbolic inputs or their names, and the class by the
                symbolic target; or one array, where the model has one input.
            batch_size: noisy samples that a step's gradient is averaged over; None for the default, here
                and below.
            steps: optimiser steps.
            beta: weight of the information against the model's loss.
            learning_rate: of Adam.
            min_std: floor of the features' standard deviation.
            smooth_std: standard deviation of the Gaussian that smooths the mask; 0 for no smoothing.
            normalize_beta: divide beta by the number of features.
            session: see `fit`.
            pass_mask: True where features pass unchanged and carry no capacity, such as the padding of a
                sequence; of the shape of one feature map or of a batch of them.
            progbar: show the progress.
            target: the class, where it is not in `feed_dict`.
            seed: makes the result reproducible, in other frameworks, too.
            max_batch: the most feature maps that pass the rest of the model at once, to bound the memory.

        Returns:
            Capacity in nats, of the shape of one feature map for one image, else (B, \*feature map).
            `to_saliency_map` makes a map of it.

        Raises:
            InputError: no loss has been set, or an argument does not fit.
            NotEstimatedError: the distribution of the features has not been estimated.
            OptimizationError: the objective turned NaN or infinite.
        """
        hyperparameters = {
            "batch_size": batch_size,
            "steps": steps,
            "beta": beta,
            "learning_rate": learning_rate,
            "min_std": min_std,
            "smooth_std": smooth_std,
            "normalize_beta": normalize_beta,
        }
        options = {"seed": seed, "pass_mask": pass_mask, "max_batch": max_batch, "progbar": progbar}
        if (in_graph := self._bound.in_graph) is not None:
            copy = in_graph.copy(session, self._state)
            feed = {key.deref(): value for key, value in in_graph.feed(feed_dict).items()}
            target = next((value for key, value in feed_dict.items() if key is in_graph.target), target)
            return copy.analyze(feed, target=target, **hyperparameters, **options)
        loss = self._bound.loss
        if loss is None:
            raise InputError(
                "there is no model loss yet: call set_classification_loss or set_model_loss before"
            )
        inputs = self._checked(loss, self._without_target(feed_dict))
        capacity = self._explain(
            loss,
            inputs,
            self._rows(loss, feed_dict, target, inputs[0].shape[0]),
            self._flow,
            hyperparameters=hyperparameters,
            **options,
        )
        return capacity[0] if len(capacity) == 1 else capacity

    @contextmanager
    def restrict_flow(self, session: Any = None) -> Iterator[None]:
        """Context in which the layer passes only what the last analysis kept, and noise for the rest.

        It acts on the model wherever it runs, also by `model.predict`. The model must be called on the
        images analysed; if that was one image, on one or on several copies.

        Args:
            session: see `fit`.

        Raises:
            NotEstimatedError: nothing has been analysed.
        """
        if self._bound.in_graph is not None:
            with self._bound.in_graph.restricted(session):
                yield
            return
        if not self.built or self._flow.is_empty:
            raise NotEstimatedError("restrict_flow passes what the last analysis kept: call analyze before")
        with self._flow.restricted():
            yield

    def _estimating(
        self, feeds: Iterable[Any], session: Any, run_kwargs: dict[str, Any] | None
    ) -> tuple[Callable[[Any], Any], Iterable[Any]]:
        """What gives the features of a feed, and the feeds as it takes them."""
        if (in_graph := self._bound.in_graph) is not None:
            return in_graph.features(session, run_kwargs), map(in_graph.feed, feeds)
        return self._cut().features, map(self._without_target, feeds)

    def _without_target(self, feed: Any) -> Any:
        if not isinstance(feed, dict):
            return feed
        return {key: value for key, value in feed.items() if key is not self._bound.target}

    def _checked(self, loss: TailLoss, inputs: Any) -> tuple[tf.Tensor, ...]:
        graph = loss.adapter.graph
        tensors = graph.prepare(inputs)
        for tensor, slot in zip(tensors, graph.inputs, strict=True):
            require_rows(tensor, f"feed_dict[{graph.tensors[slot].name!r}]")
        return tuple(tensors)

    def _rows(self, loss: TailLoss, feed: Any, target: Any, images: int) -> tuple[npt.NDArray[Any], ...]:
        if isinstance(feed, dict) and self._bound.target in feed:
            target = feed[self._bound.target]
        if not loss.is_classification:
            if target is not None:
                raise InputError("target is given, but the loss is one of its own, without a class")
            return ()
        return (classes_of(target, images, loss.classes),)


@dataclass
class _Bound:
    """What a layer knows about the model around it; one plain object, see `PerSampleBottleneck`."""

    loss: TailLoss | None = None
    target: KerasTensor | None = None
    alone: tuple[KerasTensor, KerasCut] | None = None
    in_graph: LayerInGraph | None = None


_GIVEN = ("feature_mean", "feature_std", "feature_active")


def _require_symbolic(argument: str, tensor: Any) -> None:
    if not isinstance(tensor, KerasTensor):
        raise InputError(
            f"{argument} of type {type(tensor).__name__} is no symbolic tensor of a Keras model, such as "
            "model.output"
        )


def _comes_from_softmax(tensor: KerasTensor) -> bool:
    graph = CallGraph.of(function_to(tensor))
    return any(applies_softmax(call.operation) for call in graph.needed_for(graph.flat_outputs)[-1:])
