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
from iba_core.errors import InputError, LayerError
from iba_core.framework.inputs import Shared, inputs_of_batch, leaves_of, require_batches
from iba_core.framework.inputs import batch_size as batch_size_of
from iba_core.framework.layout import DataFormat
from iba_core.targets import cross_entropy
from iba_tf.adapter import TensorFlowAdapter, require_tensorflow
from iba_tf.bottlenecks.flow import Flow, nothing_kept
from iba_tf.bottlenecks.graph_layer import LayerInGraph, is_in_graph
from iba_tf.bottlenecks.per_sample import (
    GIVEN,
    Hyperparameters,
    PerSampleBottleneck,
    TailLoss,
    alone,
    class_rows,
    require_adam,
    require_loss,
    require_rows,
)
from iba_tf.framework import eagerly, forgotten_if_interrupted, runs_eagerly
from iba_tf.graphs.calls import CallGraph, function_to
from iba_tf.graphs.endings import ending
from iba_tf.graphs.split import GraphSplit, require_format

v1 = tf.compat.v1


@keras.saving.register_keras_serializable("iba_tf")
class IBALayer(PerSampleBottleneck, keras.layers.Layer):
    """A layer that finds out how much of the information in its input the model needs.

    Put it anywhere into a functional or sequential model, or call it on a tensor of a TensorFlow 1 graph. In
    training and prediction it is the identity and has no weights. `analyze` optimises a bottleneck in its
    place, and runs only the part of the model after it. In a TensorFlow 1 graph, the feeds are those of its
    session, and the variables have the values that they have there.

    Threads may share a layer. `get_report` and `restrict_flow` use the analysis that has ended last.

    A copied, cloned or loaded model has a layer of its own, with the hyperparameters and, except in a clone,
    the statistics. Set a loss for it before `analyze`.

    Args:
        estimator: fitted statistics of the features.
        feature_mean: mean of the features, shape of one feature map, in place of `estimator`.
        feature_std: standard deviation of the features, likewise.
        feature_active: whether each feature takes part; the others are set to 0 and carry no information. If
            None, all features take part.
        batch_size: default hyperparameter, as are the next six; see `Hyperparameters`.
        steps: see `Hyperparameters`.
        beta: see `Hyperparameters`.
        learning_rate: see `Hyperparameters`.
        min_std: see `Hyperparameters`.
        smooth_std: see `Hyperparameters`.
        normalize_beta: see `Hyperparameters`.
        data_format: where the channels of the feature map are, ``"channels_first"`` or ``"channels_last"``;
            None to conclude it from the layers around it.
        **kwargs: see `keras.layers.Layer`.

    Raises:
        InputError: both `estimator` and `feature_mean` are given, or a hyperparameter is out of its range.

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
        *,
        data_format: DataFormat | None = None,
        **kwargs: Any,
    ) -> None:
        require_tensorflow()
        require_format(data_format)
        super().__init__(**kwargs)
        self.supports_masking = True
        hyperparameters = Hyperparameters(
            batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta
        )
        self._set_up(estimator, feature_mean, feature_std, feature_active, hyperparameters)
        self._bound = _Bound()
        self._data_format = data_format

    # -- Keras' side ------------------------------------------------------------------------------

    @forgotten_if_interrupted
    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the variables that hold the last bottleneck. They are no weights.

        Args:
            input_shape: with the batch axis.
        """
        # Keras also builds layers inside graphs, and the variables outlive those. They are TensorFlow's own,
        # so Keras does not train, count or save them. A v1 graph gets variables of its own in `call`.
        with tf.init_scope(), eagerly():
            self._flow = Flow(tf.float64 if self.compute_dtype == "float64" else tf.float32)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return `inputs` as they are; within `restrict_flow`, only what the last analysis kept.

        Args:
            inputs: features (B, ...).
        """
        if is_in_graph(inputs):
            in_graph = LayerInGraph(inputs, self._flow.dtype, self._data_format)
            self._bound = _Bound(in_graph=in_graph)
            return in_graph.outputs
        return self._flow(inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the `input_shape`."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the hyperparameters, and Keras' own. Statistics are saved with the weights."""
        given = {} if self._data_format is None else {"data_format": self._data_format}
        return {**super().get_config(), **self.get_default(), **given}

    def save_own_variables(self, store: Any) -> None:
        """Write the statistics to a file of weights.

        Args:
            store: the layer's entries in the file.
        """
        super().save_own_variables(store)
        state = self.state_dict()
        if state["estimator"] is not None:
            for name in STATE:
                store[f"estimator_{name}"] = state["estimator"][name]
        for name in GIVEN:
            if state[name] is not None:
                store[name] = state[name]

    def load_own_variables(self, store: Any) -> None:
        """Take the statistics from a file of weights. If it has none, the present ones stay.

        Args:
            store: the layer's entries in the file.
        """
        super().load_own_variables({})
        names = set(store.keys())
        state = {**self.state_dict(), **dict.fromkeys(("estimator", *GIVEN))}
        if f"estimator_{STATE[0]}" in names:
            state["estimator"] = {name: np.asarray(store[f"estimator_{name}"]) for name in STATE}
        state.update((name, np.asarray(store[name])) for name in GIVEN if name in names)
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
            optimizer_cls: must be Adam. The library uses its own Adam, the same in every framework.

        Returns:
            A symbolic tensor that stands for the class in the feeds of `analyze`. Its value is a class for
            all images, or one for each.

        Raises:
            InputError: `logits` has another shape or comes from a softmax, or the optimiser is not Adam.
            LayerError: `logits` does not depend on exactly one call of this layer.
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
        adapter, split = self._split_to(logits)
        target = KerasTensor((None,), dtype="int64", name="target")
        loss = TailLoss(adapter, split, cross_entropy, classes=int(logits.shape[1]))
        self._bound.loss, self._bound.target = loss, target
        return target

    def set_model_loss(self, model_loss: KerasTensor, optimizer_cls: type = keras.optimizers.Adam) -> None:
        """Keep what a loss measures. It is added to ``beta * mean(capacity)``.

        Args:
            model_loss: symbolic tensor computed from the model's outputs, of shape (None,) or (None, 1), a
                loss for each row, or (), their mean. It may depend on further `keras.Input`s (or
                placeholders), such as labels, whose values the feeds of `analyze` give.
            optimizer_cls: see `set_classification_loss`.

        Raises:
            InputError: `model_loss` has another shape, or the optimiser is not Adam.
            LayerError: `model_loss` does not depend on exactly one call of this layer.
        """
        require_adam(optimizer_cls)
        if is_in_graph(model_loss):
            self._in_graph().keep_low(model_loss)
            return
        _require_symbolic("model_loss", model_loss)
        shape = tuple(model_loss.shape)
        if shape not in ((), (None,), (None, 1)):
            raise InputError(f"model_loss has shape {shape}, it must be (None,), (None, 1) or ()")
        adapter, split = self._split_to(model_loss)
        self._bound.loss, self._bound.target = TailLoss(adapter, split, by_image=len(shape) > 0), None

    @property
    def target(self) -> KerasTensor | None:
        """What `set_classification_loss` has returned; None without a classification."""
        in_graph = self._bound.in_graph
        return self._bound.target if in_graph is None else in_graph.target

    def _in_graph(self) -> LayerInGraph:
        if self._bound.in_graph is None:
            raise LayerError(f"layer {self.name!r} is not in the graph: call it on one of its tensors")
        return self._bound.in_graph

    def _split_to(self, output: KerasTensor) -> tuple[TensorFlowAdapter, GraphSplit]:
        adapter = TensorFlowAdapter(function_to(output))
        graph = adapter.graph
        assert graph is not None
        places = [place for place in graph.layers if place.object is self]
        if len(places) != 1:
            advice = (
                "it must run once, and each bottleneck of a model needs a layer of its own"
                if places
                else "the calls of a subclassed model cannot be seen from outside, but IBACopy can explain it"
            )
            raise LayerError(
                f"layer {self.name!r} runs {len(places)} times on the way to {output.name!r}; {advice}"
            )
        return adapter, adapter.network.split(self, replace=True, data_format=self._data_format)

    def _split(self) -> GraphSplit:
        """The model around the layer: up to the loss if there is one, else up to the layer's last call."""
        if self._bound.loss is not None:
            return self._bound.loss.split
        if not self._inbound_nodes:
            raise LayerError(
                f"layer {self.name!r} is in no model yet: add it to one, or call it on a symbolic tensor"
            )
        # A sequential model calls its layers anew whenever another one is added.
        output = self._inbound_nodes[-1].outputs[0]
        if self._bound.alone is None or self._bound.alone[0] is not output:
            self._bound.alone = (output, self._split_to(output)[1])
        return self._bound.alone[1]

    def _feature_name(self) -> str:
        return str(self.name)

    def _is_classification(self) -> bool:
        if self._bound.in_graph is not None:
            return self._bound.in_graph.is_classification
        return self._bound.loss is not None and self._bound.loss.is_classification

    # -- estimating and explaining ----------------------------------------------------------------

    @runs_eagerly
    def fit(self, feed_dict: Any, session: Any = None, run_kwargs: dict[str, Any] | None = None) -> None:
        """Estimate mean and standard deviation of the features, in addition to the samples seen so far.

        If this fails or is interrupted, the estimate stays as it was.

        Args:
            feed_dict: arrays (B, ...) by the model's symbolic inputs or their names; or one array, if the
                model has one input.
            session: session of the v1 graph that the layer was called in; the default one if None. Keras
                models need none.
            run_kwargs: further arguments of `tf.compat.v1.Session.run`, for a v1 graph.

        Raises:
            InputError: an input is missing or has the wrong shape, or the features are not finite.
            LayerError: the layer is in no model.
        """
        features, feeds = self._estimating([feed_dict], session, run_kwargs)
        self._fit_batches(features, feeds, None, progbar=False, argument="feed_dict")

    @runs_eagerly
    def fit_generator(
        self,
        generator: Iterable[Any],
        n_samples: int | None = 5000,
        progbar: bool = True,
        session: Any = None,
        run_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Estimate mean and standard deviation of the features, in addition to the samples seen so far.

        If this fails or is interrupted, the estimate stays as it was.

        Args:
            generator: yields what `fit` takes, or tuples (inputs, ...).
            n_samples: stop after exactly this many, or at the end of the generator; None for all.
            progbar: show the progress.
            session: see `fit`.
            run_kwargs: see `fit`.

        Raises:
            InputError: the generator gives nothing, or something that `fit` does not take.
            LayerError: the layer is in no model.
        """
        batches = map(inputs_of_batch, require_batches("generator", generator))
        features, feeds = self._estimating(batches, session, run_kwargs)
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
        r"""Compute the information that each feature carries for the model's loss.

        The images are explained independently of each other.

        Args:
            feed_dict: arrays (B, ...) by the model's symbolic inputs or their names, and the class by the
                symbolic target; or one array, if the model has one input.
            batch_size: overrides the default for this call, as do the next six; see `Hyperparameters`.
            steps: see `Hyperparameters`.
            beta: see `Hyperparameters`.
            learning_rate: see `Hyperparameters`.
            min_std: see `Hyperparameters`.
            smooth_std: see `Hyperparameters`.
            normalize_beta: see `Hyperparameters`.
            session: see `fit`.
            pass_mask: True where features pass unchanged and carry no capacity, such as the padding of a
                sequence; of the shape of one feature map or of a batch of them.
            progbar: show the progress.
            target: the class, if it is not in `feed_dict`.
            seed: makes the result reproducible, also in other frameworks.
            max_batch: the most feature maps that pass the rest of the model at once, to bound the memory.

        Returns:
            Capacity in nats, of the shape of one feature map for one image, else (B, \*feature map).
            `to_saliency_map` turns it into a map of the image.

        Raises:
            InputError: no loss has been set, or an argument does not fit.
            NotEstimatedError: the distribution of the features has not been estimated.
            OptimizationError: the objective became NaN or infinite.
        """
        hyperparameters = Hyperparameters(
            batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta
        )
        options: dict[str, Any] = {
            "seed": seed,
            "pass_mask": pass_mask,
            "max_batch": max_batch,
            "progbar": progbar,
        }
        bound = self._bound
        if bound.in_graph is not None:
            return bound.in_graph.analyze(feed_dict, hyperparameters, session, self._state, target, **options)
        loss = require_loss(bound.loss)
        if isinstance(feed_dict, dict) and bound.target in feed_dict:
            target = feed_dict[bound.target]
        inputs = self._checked(loss, self._without_target(feed_dict))
        rows = class_rows(loss, target, batch_size_of(inputs), lambda: loss.classes)
        return alone(self._explain(loss, inputs, rows, self._flow, hyperparameters, **options))

    @contextmanager
    def restrict_flow(self, session: Any = None) -> Iterator[None]:
        """Context in which the layer passes only what the last analysis kept, and noise for the rest.

        Call the model on the images analysed; if that was one image, on one or several copies of it.

        Contexts may be nested, and may overlap in several threads and asyncio tasks: the model is restricted
        until the last one has ended. A model that runs eagerly, as by ``model(x)``, is restricted only in the
        threads and tasks that are in a context. Compiled functions, such as `model.predict`, are restricted
        in all threads meanwhile, because threads share them.

        Args:
            session: see `fit`.

        Raises:
            NotEstimatedError: nothing has been analysed.
        """
        in_graph = self._bound.in_graph
        if in_graph is None and not self.built:
            raise nothing_kept()
        with self._flow.restricted() if in_graph is None else in_graph.restricted(session):
            yield

    def _estimating(
        self, feeds: Iterable[Any], session: Any, run_kwargs: dict[str, Any] | None
    ) -> tuple[Callable[[Any], Any], Iterable[Any]]:
        """A function that gives the features of a feed, and the feeds as it takes them."""
        if (in_graph := self._bound.in_graph) is not None:
            return in_graph.features(session, run_kwargs), map(in_graph.feed, feeds)
        return self._split().features, map(self._without_target, feeds)

    def _without_target(self, feed: Any) -> Any:
        if not isinstance(feed, dict):
            return feed
        return {key: value for key, value in feed.items() if key is not self._bound.target}

    def _checked(self, loss: TailLoss, inputs: Any) -> Any:
        marked = loss.adapter.to_inputs(inputs)
        graph = loss.adapter.graph
        names = [] if graph is None else [entry.name for entry in graph.inputs]
        for number, (path, leaf) in enumerate(leaves_of(marked)):
            is_named = bool(path) and isinstance(path[-1], str)
            name = names[number] if not is_named and number < len(names) else str(path[-1] if path else "x")
            require_rows(leaf.array if isinstance(leaf, Shared) else leaf, f"feed_dict[{name!r}]")
        return marked


@dataclass
class _Bound:
    """What a layer knows about the model around it; one plain object, see `State`."""

    loss: TailLoss | None = None
    target: KerasTensor | None = None
    alone: tuple[KerasTensor, GraphSplit] | None = None
    in_graph: LayerInGraph | None = None


def _require_symbolic(argument: str, tensor: Any) -> None:
    if not isinstance(tensor, KerasTensor):
        raise InputError(
            f"{argument} of type {type(tensor).__name__} is no symbolic tensor of a Keras model, such as "
            "model.output"
        )


def _comes_from_softmax(tensor: KerasTensor) -> bool:
    graph = CallGraph.of(function_to(tensor))
    return ending(graph, graph.flat_outputs[0]) == "softmax"


@keras.saving.register_keras_serializable("iba_tf")
class Sequential(keras.Sequential):
    """`keras.Sequential` that has an `input` and an `output` as soon as it is built.

    Keras 3 gives them only as lists, `inputs` and `outputs`. Nothing else differs.

    Example:
        >>> model = Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.output.shape
        (None, 4)
    """

    @property
    def input(self) -> KerasTensor:
        """The symbolic input."""
        return self.inputs[0]

    @property
    def output(self) -> KerasTensor:
        """The symbolic output."""
        return self.outputs[0]
