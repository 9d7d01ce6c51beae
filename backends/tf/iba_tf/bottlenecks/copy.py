"""A bottleneck in a copy of a model that cannot be altered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import KerasTensor

from iba_core.arguments import require_type
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.errors import InputError, LayerError, StateError
from iba_core.framework.inputs import Shared, inputs_of_batch, leaves_of, require_batches
from iba_core.framework.inputs import batch_size as rows_of
from iba_core.framework.layout import DataFormat
from iba_core.targets import cross_entropy, main_output
from iba_tf.adapter import TensorFlowAdapter
from iba_tf.bottlenecks.copied_graph import CopiedGraph
from iba_tf.bottlenecks.flow import Flow
from iba_tf.bottlenecks.original import Original
from iba_tf.bottlenecks.per_sample import (
    Hyperparameters,
    PerSampleBottleneck,
    TailLoss,
    alone,
    class_rows,
    require_adam,
    require_loss,
    require_rows,
)
from iba_tf.bottlenecks.softmax import first_output, logits_of
from iba_tf.framework import eagerly, forgotten_if_interrupted, runs_eagerly
from iba_tf.graphs.operations import OperationGraph, canonical, node_of
from iba_tf.models.graph_model import GraphModel
from iba_tf.models.origins import floating_of
from iba_tf.models.v1_graphs import find_session

v1 = tf.compat.v1

_copying = RLock()
"""Held while a graph is copied, so that threads that share a bottleneck make one copy."""


class IBACopy(PerSampleBottleneck):
    """A bottleneck in a copy of a model, for models whose definition cannot be altered.

    The model may be a TensorFlow 1 graph with its session, a Keras 3 or Keras 2 model of any kind, a
    `tf.function` or concrete function, a SavedModel, or a frozen graph. It is copied with the values of its
    variables, and is not changed. If you change it, explanations stay the same until `update_variables`.
    While a bottleneck is optimised, only the part of the model after the feature map runs.

    Threads may share a bottleneck. `get_report` and `restrict_flow` use the analysis that has ended last.

    `copy.deepcopy` and pickle give an independent bottleneck with the same hyperparameters, statistics and
    mask. Only a loss by `set_model_loss` must be set again, and `target` is a new tensor. If the original is
    a Keras model, it is copied as well, and `update_variables` follows the copied model. Otherwise the values
    of the variables stay as they are.

    Args:
        feature: the feature map that the bottleneck comes after: a tensor, an operation, a Keras layer, or
            its name.
        outputs: the outputs of the model, a list of the same, or one. A classification uses the first. None
            for all outputs of the model in `graph`.
        estimator: fitted statistics of the features.
        feature_mean: mean of the features, shape of one feature map, in place of `estimator`.
        feature_std: standard deviation of the features, likewise.
        feature_active: whether each feature takes part; the others are set to 0 and carry no information. If
            None, all features take part.
        graph: what `feature` and `outputs` are in: a `tf.Graph`, a Keras model, a function, a `GraphDef`, a
            `GraphModel`, a SavedModel folder or a ``.pb``, ``.keras`` or ``.h5`` file. If None, it follows
            from the tensors; for names, it is the default graph.
        session: session of a v1 graph, with the values of its variables; the default one if None.
        copy_session_config: `tf.compat.v1.ConfigProto` of the copy's session, see
            `copied_session_and_graph_as_default`.
        batch_size: default hyperparameter, as are the next six; see `Hyperparameters`.
        steps: see `Hyperparameters`.
        beta: see `Hyperparameters`.
        learning_rate: see `Hyperparameters`.
        min_std: see `Hyperparameters`.
        smooth_std: see `Hyperparameters`.
        normalize_beta: see `Hyperparameters`.
        data_format: where the channels of the feature map are, ``"channels_first"`` or ``"channels_last"``;
            None to conclude it from the layers around it.
        **keras_kwargs: see `keras.layers.Layer`. The ``name`` is that of the bottleneck in the copied graph.

    Raises:
        InputError: the arguments do not tell which model is meant, there is no tensor of a name, there is no
            session, or a hyperparameter is out of its range.
        LayerError: there is no such feature map (the message offers the closest names), or no output depends
            on it.
        StateError: a file is missing or holds no model.

    Example:
        >>> graph = tf.Graph()
        >>> with graph.as_default(), tf.compat.v1.Session() as session:
        ...     x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        ...     feature = tf.nn.relu(x @ tf.ones((4, 6)), name="feature")
        ...     iba = IBACopy("feature:0", [feature @ tf.ones((6, 3))], graph=graph, session=session)
        >>> target = iba.set_classification_loss()
        >>> images = np.random.default_rng(0).normal(size=(20, 4))
        >>> iba.fit({x: images})
        >>> iba.analyze({x: images[:1]}, {target: 2}).shape
        (6,)
    """

    @forgotten_if_interrupted
    def __init__(
        self,
        feature: Any,
        outputs: Any,
        estimator: WelfordEstimator | None = None,
        feature_mean: npt.ArrayLike | None = None,
        feature_std: npt.ArrayLike | None = None,
        feature_active: npt.ArrayLike | None = None,
        graph: Any = None,
        session: tf.compat.v1.Session | None = None,
        copy_session_config: Any = None,
        batch_size: int = 10,
        steps: int = 10,
        beta: float = 10,
        learning_rate: float = 1,
        min_std: float = 0.01,
        smooth_std: float = 1,
        normalize_beta: bool = True,
        *,
        data_format: DataFormat | None = None,
        **keras_kwargs: Any,
    ) -> None:
        hyperparameters = Hyperparameters(
            batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta
        )
        self._set_up(estimator, feature_mean, feature_std, feature_active, hyperparameters)
        session = find_session(session)
        with eagerly():
            self.name = keras.layers.Layer(**{"name": "iba", **keras_kwargs}).name
            self._original = Original.of(feature, outputs, graph, session)
            self._data_format = data_format
            self._split = self._original.model.split(self._original.feature, data_format=data_format)
            self.flow = Flow(self._precision())
            """Where the mask of the last analysis is kept."""
        self._adapter = TensorFlowAdapter(self._original.model)
        self._session_config = copy_session_config
        self._copied: CopiedGraph | None = None
        self._loss: TailLoss | None = None
        self._target: Any = None

    def _precision(self) -> tf.DType:
        graph = self._original.model.graph
        if graph is None:
            # It follows from the inputs; until then, the weights tell.
            return floating_of(self._original.model.variables.values())
        of_features = graph.tensor(self._feature_in(graph)).dtype
        return tf.float64 if of_features == tf.float64 else tf.float32

    def _feature_in(self, graph: OperationGraph) -> str:
        return graph.find(self._original.feature)[1]

    @property
    def session(self) -> tf.compat.v1.Session | None:
        """Session of the original, if that is a v1 graph."""
        return self._original.session

    def __getstate__(self) -> dict[str, Any]:
        # The copied graph is made again, and the loss if it is not a tensor of that graph.
        kept = (
            None if self._loss is None or self._loss.split is not self._split else self._is_classification()
        )
        return {
            **vars(self),
            "_copied": None,
            "_split": None,
            "_adapter": None,
            "_loss": kept,
            "_target": None,
        }

    @forgotten_if_interrupted
    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        with tf.init_scope(), eagerly():
            self._split = self._original.model.split(self._original.feature, data_format=self._data_format)
            self._adapter = TensorFlowAdapter(self._original.model)
        kept, self._loss = state["_loss"], None
        if kept:
            self.set_classification_loss()
        elif kept is not None:
            self.keep_first_output(is_classification=False)

    # -- the copy ---------------------------------------------------------------------------------

    def get_copied_outputs(self) -> Any:
        """Return the symbolic outputs of the copied graph, in the order given to the constructor.

        They are tensors of the graph that `copied_session_and_graph_as_default` makes the default. They
        depend on the features by way of the bottleneck.

        Returns:
            A list of tensors; for ``outputs=None`` nested as the model's outputs.

        Raises:
            LayerError: the model's graph follows from its inputs, as in a subclassed Keras model.
            InputError: the model cannot be a `tf.Graph`, because it closes over a table or the like.
        """
        return self._copy().outputs

    @contextmanager
    def copied_session_and_graph_as_default(self) -> Iterator[None]:
        """Context in which the copied graph, a `tf.Graph`, and its session are the default ones.

        The operations have the same names as in the original. Build a loss for `set_model_loss` here, from
        `get_copied_outputs` and placeholders of the model, or new ones.

        Raises:
            LayerError: see `get_copied_outputs`.
            InputError: likewise.
        """
        copied = self._copy()
        with copied.session.as_default(), copied.graph.as_default():
            yield

    def _copy(self) -> CopiedGraph:
        with _copying:
            if self._copied is None:
                graph = self._original.model.graph
                if graph is None:
                    raise LayerError(
                        "the model has no graph before it is called: its graph follows from its inputs; give "
                        "a concrete function, or a model with declared inputs"
                    )
                with eagerly():
                    self._copied = CopiedGraph(
                        graph, self._feature_in(graph), self.flow, self.name, self._session_config
                    )
            return self._copied

    def assert_variables_equal(self) -> None:
        """Check that all variables of the copy have the same values as in the original.

        Raises:
            AssertionError: some differ; it names them.
        """
        changed = self._original.model.changed_variables()
        if changed:
            raise AssertionError(
                f"{len(changed)} variables have other values in the original than in the copy, such as "
                f"{changed[0]!r}; call update_variables to copy them"
            )

    def update_variables(self) -> None:
        """Copy the present values of the original's variables."""
        self._original.model.update_variables()
        if self._copied is not None:
            self._copied.load_variables()

    # -- what to keep -----------------------------------------------------------------------------

    @property
    def target(self) -> Any:
        """What `set_classification_loss` has returned; None without a classification."""
        return self._target

    @forgotten_if_interrupted
    def set_classification_loss(self) -> Any:
        """Keep the class of a classifier: the loss is the cross-entropy of the first output.

        Returns:
            A tensor that stands for the class in the feeds of `analyze`: for a v1 graph a placeholder of the
            copied graph, else a symbolic tensor of Keras. Its value is a class for all images, or one for
            each.

        Raises:
            InputError: the output comes from a softmax.
        """
        self.keep_first_output(is_classification=True)
        if self._original.v1_graph is None:
            self._target = KerasTensor((None,), dtype="int64", name="target")
        else:
            copied = self._copy()
            with copied.graph.as_default():
                self._target = v1.placeholder(tf.int64, (None,), name=f"{self.name}_target")
        return self._target

    def keep_first_output(self, is_classification: bool) -> None:
        """Keep the first output: as logits, or as a loss that the model computes itself.

        Args:
            is_classification: whether it is the logits of a classifier.

        Raises:
            InputError: the output is meant as logits, and comes from a softmax.
        """
        graph = self._original.model.graph
        logits = logits_of(graph) if is_classification and graph is not None else None
        if logits is not None:
            raise InputError(
                f"the first output comes from a softmax; give the softmax's input, {logits!r}, as the first "
                "of outputs, or copy model_wo_softmax(model)"
            )
        kind = cross_entropy if is_classification else None
        scalar = graph is not None and graph.tensor(first_output(graph)).shape.rank == 0
        by_image = is_classification or not scalar
        self._loss = TailLoss(self._adapter, self._split, kind, by_image=by_image)

    @forgotten_if_interrupted
    def set_model_loss(self, model_loss: tf.Tensor, optimizer_cls: type = keras.optimizers.Adam) -> None:
        """Keep what a loss measures. It is added to ``beta * mean(capacity)``.

        Args:
            model_loss: tensor of the copied graph, computed from `get_copied_outputs` within
                `copied_session_and_graph_as_default`, of shape (None,) or (None, 1), a loss for each row, or
                (), their mean. The ``copy_feed_dict`` of `analyze` gives the values of placeholders that it
                depends on, such as labels.
            optimizer_cls: must be Adam. The library uses its own Adam, the same in every framework.

        Raises:
            InputError: `model_loss` is no tensor of the copied graph or has another shape, or the optimiser
                is not Adam.
            LayerError: `model_loss` does not depend on the features.
        """
        require_adam(optimizer_cls)
        copied = self._copy()
        graph = copied.graph_to(model_loss)
        shape = model_loss.shape
        if shape.rank is not None and not (shape.rank < 2 or (shape.rank == 2 and shape[1] == 1)):
            raise InputError(f"model_loss has shape {tuple(shape)}, it must be (None,), (None, 1) or ()")
        model = GraphModel.from_operations(graph)
        split = model.split(copied.feature, data_format=self._data_format)
        self._loss = TailLoss(TensorFlowAdapter(model), split, by_image=shape.rank != 0)
        self._target = None

    def _is_classification(self) -> bool:
        return self._loss is not None and self._loss.is_classification

    # -- features and outputs ---------------------------------------------------------------------

    def feature_shape(self) -> tf.TensorShape:
        """Return the shape of the feature map with the batch axis, None where it is open.

        If the model's graph follows from its inputs, the shape is unknown before it has run.
        """
        shape = self._split.feature_shape
        return tf.TensorShape(None) if shape is None else tf.TensorShape([None, *shape])

    @runs_eagerly
    def get_feature(self, feed_dict: Any) -> npt.NDArray[Any]:
        """Return the copy's feature maps, (B, *feature map).

        Args:
            feed_dict: what the features depend on, see `fit`.

        Raises:
            InputError: an input is missing, unknown, or has the wrong shape.
        """
        return self._to_numpy(self._split.features(self._finite(feed_dict)))

    @runs_eagerly
    def predict(self, feed_dict: Any) -> Any:
        """Run the copy: it gives what the original gave when its variables were last copied.

        Within `restrict_flow`, it is computed from what the last analysis kept.

        Args:
            feed_dict: all inputs of the model, see `fit`.

        Returns:
            A list of arrays in the order of ``outputs``; for ``outputs=None`` nested as the model's outputs.

        Raises:
            InputError: an input is missing, unknown, or has the wrong shape.
        """
        with self._split.head(self._finite(feed_dict)) as tail:
            return tf.nest.map_structure(self._to_numpy, tail(self.flow(tail.features)))

    def _to_numpy(self, tensor: tf.Tensor) -> npt.NDArray[Any]:
        return self._adapter.framework.to_numpy(tensor)

    @contextmanager
    def restrict_flow(self, session: tf.compat.v1.Session | None = None) -> Iterator[None]:
        """Context in which the bottleneck passes only what the last analysis kept, and noise for the rest.

        It acts on `predict`, and on the copied session. Give the inputs analysed; if that was one image, one
        or several copies of it.

        Contexts may be nested, and may overlap in several threads and asyncio tasks. `predict` is restricted
        only in the threads and tasks that are in a context; the copied session, which threads share, until
        the last context has ended.

        Args:
            session: not used; the copy has a session of its own.

        Raises:
            NotEstimatedError: nothing has been analysed.
        """
        with self.flow.restricted(self, self._load_flow):
            yield

    def _load_flow(self, restricting: bool) -> None:
        # The copied graph may have been made since the context was entered.
        if self._copied is not None:
            self._copied.load_flow(restricting)

    # -- estimating and explaining ----------------------------------------------------------------

    @runs_eagerly
    def fit(
        self,
        feed_dict: Any,
        session: tf.compat.v1.Session | None = None,
        run_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Estimate mean and standard deviation of the features, in addition to the samples seen so far.

        If this fails or is interrupted, the estimate stays as it was.

        Args:
            feed_dict: arrays by the original's placeholders, by a Keras model's symbolic inputs, or by the
                names of either; or one array, or a tuple of them in the model's order. A dict may leave out
                inputs that the features do not depend on.
            session: run the original of a v1 graph in this session, in place of the copy.
            run_kwargs: further arguments of `tf.compat.v1.Session.run`; with these, the original also runs.

        Raises:
            InputError: an input is missing, unknown, or has the wrong shape, or the features are not finite.
        """
        features, feeds = self._features(session, run_kwargs), [self._feed(feed_dict)]
        self._fit_batches(features, feeds, None, progbar=False, argument="feed_dict")

    @runs_eagerly
    def fit_generator(
        self,
        generator: Iterable[Any],
        n_samples: int | None = 5000,
        progbar: bool = True,
        session: tf.compat.v1.Session | None = None,
        run_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Estimate mean and standard deviation of the features, in addition to the samples seen so far.

        If this fails or is interrupted, the estimate stays as it was.

        Args:
            generator: yields what `fit` takes, or tuples (inputs, ...); the inputs of a model with several
                are a tuple within the tuple.
            n_samples: stop after exactly this many, or at the end of the generator; None for all.
            progbar: show the progress.
            session: see `fit`.
            run_kwargs: see `fit`.

        Raises:
            InputError: the generator gives nothing, or something that `fit` does not take.
        """
        feeds = (self._feed(inputs_of_batch(feed)) for feed in require_batches("generator", generator))
        self._fit_batches(self._features(session, run_kwargs), feeds, n_samples, progbar)

    @runs_eagerly
    def analyze(
        self,
        feature_feed_dict: Any,
        copy_feed_dict: Mapping[Any, Any] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        beta: float | None = None,
        learning_rate: float | None = None,
        min_std: float | None = None,
        smooth_std: float | None = None,
        normalize_beta: bool | None = None,
        session: tf.compat.v1.Session | None = None,
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
            feature_feed_dict: what the features depend on, as `fit` takes it.
            copy_feed_dict: the class by the symbolic target, and all else that the loss depends on: arrays by
                placeholders of the copied graph or of the original, or by name. What is in
                `feature_feed_dict` may be left out.
            batch_size: overrides the default for this call, as do the next six; see `Hyperparameters`.
            steps: see `Hyperparameters`.
            beta: see `Hyperparameters`.
            learning_rate: see `Hyperparameters`.
            min_std: see `Hyperparameters`.
            smooth_std: see `Hyperparameters`.
            normalize_beta: see `Hyperparameters`.
            session: not used; the steps are compiled functions, also for v1 graphs.
            pass_mask: True where features pass unchanged and carry no capacity, such as the padding of a
                sequence; of the shape of one feature map or of a batch of them.
            progbar: show the progress.
            target: the class, if it is not in `copy_feed_dict`.
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
        loss = require_loss(self._loss)
        require_type("copy_feed_dict", copy_feed_dict, Mapping, "a dict of arrays", optional=True)
        feeds = [feature_feed_dict, copy_feed_dict or {}]
        for feed in feeds:
            if isinstance(feed, Mapping):
                target = next((value for key, value in _tensor_keys(feed) if key is self._target), target)
        inputs = loss.adapter.shared.mark(self._inputs(loss.adapter.model, *feeds), loss.adapter.predict)
        _require_rows_of(inputs)
        rows = class_rows(loss, target, rows_of(inputs), lambda: self._classes(inputs))
        hyperparameters = Hyperparameters(
            batch_size, steps, beta, learning_rate, min_std, smooth_std, normalize_beta
        )
        options: dict[str, Any] = {
            "seed": seed,
            "pass_mask": pass_mask,
            "max_batch": max_batch,
            "progbar": progbar,
        }
        return alone(self._explain(loss, inputs, rows, self.flow, hyperparameters, **options))

    def _features(
        self, session: tf.compat.v1.Session | None, run_kwargs: dict[str, Any] | None
    ) -> Callable[[Any], Any]:
        """A function that gives the features of a feed: of the copy, or of the original in a session."""
        if session is None and not run_kwargs:
            return lambda feed: self._split.features(self._finite(feed))
        original = self._original
        if original.v1_graph is None:
            raise InputError("session and run_kwargs are for v1 graphs, and the model is none")
        assert original.model.graph is not None
        tensor = original.v1_graph.get_tensor_by_name(self._feature_in(original.model.graph))
        running: Any = session or original.session
        return lambda feed: running.run(
            tensor, {canonical(name): value for name, value in feed.items()}, **(run_kwargs or {})
        )

    def _feed(self, feed: Any, model: GraphModel | None = None) -> Any:
        """A feed by the names of a model's inputs, those with images first; unchanged if there are none."""
        graph = (model or self._original.model).graph
        names = [] if graph is None else [entry.name for entry in graph.inputs]
        if not isinstance(feed, Mapping):
            if graph is None:
                return feed
            # Those with a default, such as the learning phase, come last.
            needed = [entry.name for entry in graph.inputs if entry.default is None]
            values = feed if isinstance(feed, (tuple, list)) and len(needed) > 1 else [feed]
            if len(values) not in (len(needed), len(names)):
                raise InputError(f"{len(values)} inputs are given; the model takes {len(needed)}: {needed}")
            feed = dict(zip(names, values, strict=False))
        named = {}
        for key, value in _tensor_keys(feed):
            name = (key if isinstance(key, str) else key.name).removesuffix(":0")
            # As in a session, a feed may hold values that nothing depends on.
            idle = isinstance(key, tf.Tensor) and graph is not None and name not in names
            if key is not self._target and not idle:
                is_array = hasattr(value, "shape") or isinstance(value, Shared)
                named[name] = value if is_array else _array(name, value)
        return dict(sorted(named.items(), key=lambda item: not len(getattr(item[1], "shape", ()))))

    def _inputs(self, model: GraphModel, feed: Any, further: Mapping[Any, Any] | None = None) -> Any:
        """The inputs of a model, checked, from feeds that complete each other."""
        inputs = self._feed(feed, model)
        if further and (named := self._feed(further, model)):
            if not isinstance(inputs, Mapping):
                raise InputError("copy_feed_dict names inputs, but the model knows them by their order only")
            inputs = {**inputs, **named}
        return model.to_inputs(inputs)

    def _finite(self, feed: Any) -> Any:
        """The inputs of the original from one feed, with rows and finite values."""
        return _require_rows_of(self._inputs(self._original.model, feed))

    def _main_output(self, inputs: Any) -> tf.Tensor:
        """The first output, with the bottleneck open."""
        with self._split.head(inputs) as tail:
            return main_output(tail(tail.features))

    def _classes(self, inputs: Any) -> int:
        """Number of classes of the first output."""
        graph = self._original.model.graph
        shape = tf.TensorShape(None) if graph is None else graph.tensor(first_output(graph)).shape
        if shape.rank is None or shape[-1] is None:
            shape = self._main_output(inputs).shape
        if len(shape) != 2:
            raise InputError(
                f"the first output has shape {tuple(shape)}, not (images, classes); set a loss of your own"
            )
        return int(shape[-1])

    # -- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state, see `PerSampleBottleneck.state_dict`, and the ``output_names`` in the model."""
        return {**super().state_dict(), "output_names": self._output_names()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by one that `state_dict` gave.

        Raises:
            StateError: an entry is missing or malformed, or is about another feature map. Nothing has changed
                then.
        """
        named = state.get("feature_name")
        if named not in (None, self._feature_name()):
            raise StateError(
                f"the state is of the feature map {named!r}, the bottleneck is at {self._feature_name()!r}"
            )
        super().load_state_dict(state)

    def _feature_name(self) -> str:
        return self._name_of(self._original.feature)

    def _output_names(self) -> list[str] | None:
        outputs = self._original.outputs
        return None if outputs is None else [self._name_of(output) for output in outputs]

    def _name_of(self, place: Any) -> str:
        """Name of a layer, or of a tensor with its number."""
        graph = self._original.model.graph
        name = place if isinstance(place, str) else place.name
        return canonical(name) if graph is not None and node_of(name) in graph.nodes else name


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {name!r} of type {type(value).__name__} is no array: {error}") from error


def _tensor_keys(feed: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The entries of a feed; Keras 2 has its tensors in dicts by reference."""
    for key, value in feed.items():
        yield (key.deref() if hasattr(key, "deref") else key), value


def _require_rows_of(inputs: Any) -> Any:
    for name, tensor in _named(inputs):
        require_rows(tensor, f"the input {name}")
    return inputs


def _named(inputs: Any) -> Iterator[tuple[str, tf.Tensor]]:
    for path, leaf in leaves_of(inputs):
        tensor = leaf.array if isinstance(leaf, Shared) else leaf
        if tensor.shape.rank:
            yield repr(path[-1]) if isinstance(inputs, Mapping) else str(path[-1] if path else 0), tensor
