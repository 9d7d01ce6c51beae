"""The bottleneck with the interface of the package innvestigate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from iba_core.arguments import require_bool, require_choice
from iba_core.bottleneck.estimator import STATE, WelfordEstimator
from iba_core.bottleneck.saliency import saliency_maps
from iba_core.default_layer import default_layer
from iba_core.errors import InputError, LayerError, StateError
from iba_core.files import as_path, is_file, temporary_folder
from iba_core.framework.adapter import find_adapter
from iba_core.framework.cache import Cache
from iba_core.framework.inputs import arrays_of, inputs_of_batch, take
from iba_core.framework.inputs import batch_size as rows_of
from iba_core.framework.layout import DataFormat, Layout
from iba_core.state import interpreting, read_npz, write_npz
from iba_core.targets import ClassTarget, DistributionTarget, Loss, Target, cross_entropy, main_output
from iba_tf.bottlenecks.copy import IBACopy
from iba_tf.bottlenecks.original import keras_library_of, old_output
from iba_tf.bottlenecks.per_sample import GIVEN, Hyperparameters, TailLoss, require_rows
from iba_tf.bottlenecks.softmax import logits_of
from iba_tf.framework import eagerly, is_eager_program, runs_eagerly
from iba_tf.models.model_files import load_keras

_MODES = ("max_activation", "index", "all")

_OF_KERAS_FIT = (
    "disable_no_training_warning",
    "epochs",
    "max_queue_size",
    "shuffle",
    "steps_per_epoch",
    "use_multiprocessing",
    "verbose",
    "workers",
)
"""Arguments that callers of innvestigate's analyzers may give, and that an estimate does not need."""


class IBACopyInnvestigate(IBACopy):
    """A bottleneck in a copy of a Keras classifier, used like an analyzer of the package innvestigate.

    Use it in place of another analyzer, such as ``LRPEpsilon(model)``: call `fit` (or `fit_generator`), then
    `analyze` with batches. Set hyperparameters here or by `set_default`.

    Args:
        model: a Keras 3 or Keras 2 model with one output, the logits (B, K). It is not changed.
        neuron_selection_mode: which output to explain: ``"max_activation"``, the predicted class;
            ``"index"``, the one given to `analyze`; ``"all"``, the distribution over all classes.
        feature_name: the feature map that the bottleneck comes after: a layer's name or path, the name of a
            layer's symbolic output, or the layer. If None, a layer is chosen, see `iba_core.default_layer`.
        estimator: fitted statistics of the features.
        feature_mean: mean of the features, shape of one feature map, in place of `estimator`.
        feature_std: standard deviation of the features, likewise.
        feature_active: whether each feature takes part; the others are set to 0 and carry no information. If
            None, all features take part.
        batch_size: hyperparameter, as are the next six; see `Hyperparameters`.
        steps: see `Hyperparameters`.
        beta: see `Hyperparameters`.
        learning_rate: see `Hyperparameters`.
        min_std: see `Hyperparameters`.
        smooth_std: see `Hyperparameters`.
        normalize_beta: see `Hyperparameters`.
        session: session of a Keras 2 model that was built in a v1 graph; the default one if None.
        copy_session_config: see `IBACopy`.
        disable_model_checks: also take a model that ends in a softmax. Its probabilities are recognised, but
            where one is nearly 1, they hold too little of the logits to explain it well.
        data_format: where the channels of the feature map are, ``"channels_first"`` or ``"channels_last"``;
            None to conclude it from the layers around it.
        **keras_kwargs: see `IBACopy`.

    Raises:
        InputError: the model is not a Keras model, has several outputs or ends in a softmax, or an argument
            is out of its range.
        LayerError: there is no such layer; the message offers the closest names.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 3, name="conv")])
        >>> model.add(keras.layers.GlobalAveragePooling2D())
        >>> analyzer = IBACopyInnvestigate(model, feature_name="conv")
        >>> images = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
        >>> analyzer.fit(images)
        >>> analyzer.analyze(images[:4]).shape
        (4, 32, 32)
    """

    def __init__(
        self,
        model: Any,
        neuron_selection_mode: str = "max_activation",
        feature_name: Any = None,
        estimator: WelfordEstimator | None = None,
        feature_mean: npt.ArrayLike | None = None,
        feature_std: npt.ArrayLike | None = None,
        feature_active: npt.ArrayLike | None = None,
        batch_size: int = 10,
        steps: int = 10,
        beta: float = 10.0,
        learning_rate: float = 1,
        min_std: float = 0.01,
        smooth_std: float = 1,
        normalize_beta: bool = True,
        session: tf.compat.v1.Session | None = None,
        copy_session_config: Any = None,
        disable_model_checks: bool = False,
        *,
        data_format: DataFormat | None = None,
        **keras_kwargs: Any,
    ) -> None:
        require_choice("neuron_selection_mode", neuron_selection_mode, _MODES)
        require_bool("disable_model_checks", disable_model_checks)
        _require_one_output(model)
        super().__init__(
            _default_layer(model) if feature_name is None else feature_name,
            None,
            estimator,
            feature_mean,
            feature_std,
            feature_active,
            model,
            session,
            copy_session_config,
            batch_size,
            steps,
            beta,
            learning_rate,
            min_std,
            smooth_std,
            normalize_beta,
            data_format=data_format,
            **keras_kwargs,
        )
        graph = self._original.model.graph
        if not disable_model_checks and graph is not None and logits_of(graph) is not None:
            raise InputError(
                "the model ends in a softmax; give model_wo_softmax(model), or disable_model_checks=True to "
                "explain its probabilities"
            )
        self._model = model
        self._mode = neuron_selection_mode
        self._checks_disabled = disable_model_checks
        # One for each kind of loss, each with a step that is compiled once.
        self._losses: Cache[TailLoss] = Cache(size=4)
        self._loss = self._loss_of(cross_entropy)

    def __getstate__(self) -> dict[str, Any]:
        if self.session is not None:
            raise InputError("an analyzer of a model in a TensorFlow 1 graph cannot be copied; IBACopy can")
        return {**super().__getstate__(), "_loss": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._loss = self._loss_of(cross_entropy)

    # -- estimating and explaining ----------------------------------------------------------------

    def fit(  # type: ignore[override]  # innvestigate's arguments
        self,
        X: Any,  # noqa: N803 (innvestigate's name)
        session: tf.compat.v1.Session | None = None,
        run_kwargs: dict[str, Any] | None = None,
        *,
        batch_size: int = 32,
        **unused: Any,
    ) -> None:
        """Estimate mean and standard deviation of the features, in addition to the samples seen so far.

        If this fails or is interrupted, the estimate stays as it was.

        Args:
            X: samples (N, ...), or a list of them for a model with several inputs. 5000 are usually enough.
            session: see `IBACopy.fit`.
            run_kwargs: see `IBACopy.fit`.
            batch_size: number of samples that run at once.
            **unused: arguments of innvestigate's trainable analyzers, such as ``workers``, without effect.

        Raises:
            InputError: the samples have the wrong shape, or an argument is unknown.
        """
        _require_known(unused)
        feed = self._feed(X)
        batches = (take(feed, start, start + batch_size) for start in range(0, rows_of(feed), batch_size))
        self.fit_generator(batches, verbose=0, session=session, run_kwargs=run_kwargs)

    @runs_eagerly
    def fit_generator(  # type: ignore[override]  # innvestigate's arguments
        self,
        generator: Iterable[Any],
        steps_per_epoch: int | None = None,
        epochs: int = 1,
        verbose: int = 1,
        session: tf.compat.v1.Session | None = None,
        progbar: bool = True,
        *,
        steps: int | None = None,
        run_kwargs: dict[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        """Estimate mean and standard deviation of the features, in addition to the samples seen so far.

        If this fails or is interrupted, the estimate stays as it was.

        Args:
            generator: yields samples, or tuples (samples, targets), whose targets are not used; a generator,
                a Keras data set, or any iterable. 5000 samples are usually enough.
            steps_per_epoch: batches of an epoch; all of them if None.
            epochs: number of epochs. A generator continues where the last epoch ended.
            verbose: 0 for no progress bar.
            session: see `IBACopy.fit`.
            progbar: False for no progress bar, too.
            steps: another name of `steps_per_epoch`.
            run_kwargs: see `IBACopy.fit`.
            **unused: see `fit`.

        Raises:
            InputError: the generator gives nothing, or samples of the wrong shape, or an argument is unknown.
        """
        _require_known(unused)
        batches = _batches(generator, steps if steps_per_epoch is None else steps_per_epoch, epochs)
        feeds = (self._feed(inputs_of_batch(batch)) for batch in batches)
        self._fit_batches(self._features(session, run_kwargs), feeds, None, bool(verbose) and progbar)

    @runs_eagerly
    def analyze(  # type: ignore[override]  # innvestigate's arguments
        self,
        X: Any,  # noqa: N803 (innvestigate's name)
        neuron_selection: npt.ArrayLike | None = None,
        *,
        seed: int | None = None,
    ) -> npt.NDArray[np.floating]:
        """Compute saliency maps of a batch of samples, each explained independently.

        Args:
            X: samples (B, ...), or a list of them for a model with several inputs.
            neuron_selection: index of the output, one for all samples or one each. Give it with
                ``neuron_selection_mode="index"`` only.
            seed: makes the result reproducible, also in other frameworks.

        Returns:
            Array (B, H, W), in bits per pixel; for samples with other spatial axes, (B, *spatial shape).

        Raises:
            InputError: the samples or `neuron_selection` do not fit.
            NotEstimatedError: the distribution of the features has not been estimated.
            OptimizationError: the objective became NaN or infinite.
        """
        target = self._selected(neuron_selection)
        inputs = self._adapter.shared.mark(self._inputs(self._original.model, X), self._adapter.predict)
        for tensor in arrays_of(inputs):
            require_rows(tensor, "X")
        loss, rows = self._resolved(target, inputs)
        capacity = self._explain(loss, inputs, rows, self.flow, Hyperparameters(), seed=seed)
        layout = Layout.of(capacity.shape[1:], self._split.data_format)
        return saliency_maps(capacity, layout, self._map_shape(inputs, layout), self._split.map_order(layout))

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803 (innvestigate's name)
        """Return the logits (B, K) that the copy gives for samples (B, ...)."""
        return np.asarray(main_output(super().predict(X)))

    def _selected(self, neuron_selection: npt.ArrayLike | None) -> Target:
        if (neuron_selection is None) == (self._mode == "index"):
            given = "none" if neuron_selection is None else repr(neuron_selection)
            raise InputError(
                "neuron_selection is for neuron_selection_mode='index', and needed there; "
                f"the mode is {self._mode!r}, and {given} is given"
            )
        if self._mode == "all":
            return DistributionTarget()
        if neuron_selection is None:
            return ClassTarget()
        selection = np.asarray(neuron_selection).reshape(-1)
        return ClassTarget(selection[0] if selection.size == 1 else selection)

    def _resolved(self, target: Target, inputs: Any) -> tuple[TailLoss, tuple[npt.NDArray[Any], ...]]:
        """The loss that stands for a target, and its rows for some inputs."""
        images = rows_of(inputs)
        parts = (take(inputs, start, start + 32) for start in range(0, images, 32))
        outputs = np.concatenate([self._to_numpy(self._main_output(part)) for part in parts])
        kind, rows = target.select(0, images, images).resolve(outputs)
        return self._loss_of(kind), rows

    def _loss_of(self, kind: Loss) -> TailLoss:
        return self._losses.get(kind, lambda: TailLoss(self._adapter, self._split, kind))

    def _map_shape(self, inputs: Any, layout: Layout) -> tuple[int, ...] | None:
        """Spatial shape of the samples, if they have as many spatial axes as the features."""
        shape = tuple(next(arrays_of(inputs)).shape[1:])
        if len(shape) != layout.ndim:
            return None
        return Layout.of(shape, self._split.input_format).spatial_shape(shape)

    # -- saving -----------------------------------------------------------------------------------

    def save(self) -> tuple[str, dict[str, Any]]:
        """Return the name of the class, and a state from which `load` makes an equal analyzer.

        Returns:
            ``("IBACopyInnvestigate", state)``. The state holds the model as the bytes of a ``.keras`` file,
            and otherwise only arrays, strings and numbers.

        Raises:
            InputError: the model has changed since it was copied, or cannot be saved.
        """
        if self._original.model.changed_variables():
            raise InputError("the model has changed since it was copied: call update_variables before saving")
        state: dict[str, Any] = {
            "model": _file_of(self._model),
            "library": keras_library_of(self._model).__name__,
            "neuron_selection_mode": self._mode,
            "disable_model_checks": self._checks_disabled,
            **self.state_dict(),
        }
        del state["output_names"]
        return type(self).__name__, state

    @staticmethod
    def load(class_name: str | type[IBACopyInnvestigate], state: dict[str, Any]) -> IBACopyInnvestigate:
        """Make an analyzer from what `save` gave.

        Args:
            class_name: the class or its name.
            state: its state. The model in it is loaded in Keras' safe mode, so it can run no code of its own.

        Raises:
            StateError: the state is of another class, or entries are missing or malformed.
        """
        known: list[type[Any]] = [IBACopyInnvestigate, *_subclasses(IBACopyInnvestigate)]
        # The first of a name.
        classes = {cls.__name__: cls for cls in reversed(known)}
        cls = classes.get(class_name) if isinstance(class_name, str) else class_name
        if not isinstance(cls, type) or not issubclass(cls, IBACopyInnvestigate):
            raise StateError(f"class_name={class_name!r} is none of {', '.join(classes)}")
        try:
            analyzer = cls(
                _model_of(state["model"], state["library"]),
                state["neuron_selection_mode"],
                state["feature_name"],
                disable_model_checks=state["disable_model_checks"],
            )
        except KeyError as error:
            raise StateError(f"the state lacks {error}") from error
        except (InputError, LayerError) as error:
            raise StateError(f"the state is malformed: {error}") from error
        analyzer.load_state_dict({**state, "output_names": None})
        return analyzer

    def save_npz(self, fname: str | PathLike[str]) -> None:
        """Write what `save` gives to an ``.npz`` file, which holds no code.

        Args:
            fname: the file; ``.npz`` is appended if it has no such ending.

        Raises:
            InputError: it cannot be written.
        """
        class_name, state = self.save()
        arrays = {name: state.pop(name) for name in ("model", *GIVEN)}
        if (estimator := state.pop("estimator")) is not None:
            arrays.update((f"estimator_{name}", estimator[name]) for name in STATE)
        arrays = {name: value for name, value in arrays.items() if value is not None}
        path = as_path(fname, "fname")
        path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        write_npz(path, {**arrays, "class_name": class_name, "settings": json.dumps(state)}, "fname")

    @staticmethod
    def load_npz(fname: str | PathLike[str]) -> IBACopyInnvestigate:
        """Make an analyzer from a file that `save_npz` wrote. Nothing in it is run.

        Args:
            fname: the file, with or without the ending.

        Raises:
            StateError: the file is missing, truncated or of another kind.
        """
        return analyzer_of_file(fname, IBACopyInnvestigate.load)


def analyzer_of_file(
    fname: str | PathLike[str], load: Callable[[str, dict[str, Any]], IBACopyInnvestigate]
) -> IBACopyInnvestigate:
    """Make an analyzer from a file that `IBACopyInnvestigate.save_npz` wrote.

    Args:
        fname: the file, with or without the ending.
        load: makes it from the name of the class and the state, as `IBACopyInnvestigate.save` gave them.

    Raises:
        StateError: the file is missing, truncated or of another kind.
    """
    path = as_path(fname, "fname")
    path = path if is_file(path) else path.with_name(f"{path.name}.npz")
    entries = read_npz(path, "fname")
    with interpreting(path, "analyzer"):
        state = {**json.loads(str(entries.pop("settings"))), **dict.fromkeys(GIVEN)}
        class_name = str(entries.pop("class_name"))
        estimator = {name: entries.pop(f"estimator_{name}", None) for name in STATE}
        has_estimator = all(value is not None for value in estimator.values())
        state.update(entries, estimator=estimator if has_estimator else None)
        return load(class_name, state)


def _require_one_output(model: Any) -> None:
    if keras_library_of(model) is None:
        raise InputError(
            f"model of type {type(model).__name__} is no Keras model; IBACopy takes other models"
        )
    if len(getattr(model, "outputs", None) or [None]) != 1:
        raise InputError(
            f"the model has {len(model.outputs)} outputs; give a model with one, or name them to IBACopy"
        )


def _default_layer(model: Any) -> str:
    """See `iba_core.default_layer`. The inputs are random: the choice does not depend on them."""
    generator = np.random.default_rng(0)
    inputs = {}
    for tensor in getattr(model, "inputs", None) or []:
        shape = tuple(tensor.shape[1:])
        if None in shape:
            break
        inputs[tensor.name] = generator.random((1, *shape)).astype(np.float32)
    if not inputs or len(inputs) < len(model.inputs):
        raise InputError("feature_name=None, but the model's input has no definite shape; name a layer")
    return default_layer(find_adapter(model), inputs if len(inputs) > 1 else next(iter(inputs.values())))


def _require_known(unused: dict[str, Any]) -> None:
    for name in unused:
        if name not in _OF_KERAS_FIT:
            raise InputError(
                f"{name!r} is no argument of fit; the further ones are {', '.join(_OF_KERAS_FIT)}"
            )


def _batches(generator: Any, steps: int | None, epochs: int) -> Iterator[Any]:
    """The batches of some epochs."""
    counted = hasattr(generator, "__len__") and hasattr(generator, "__getitem__")
    source = iter(generator) if not counted and iter(generator) is generator else None
    for _ in range(epochs):
        if source is not None:
            # An iterator continues from epoch to epoch.
            yield from source if steps is None else islice(source, steps)
        elif counted:
            # Keras' own data sets may not end by themselves.
            yield from (generator[index] for index in islice(range(len(generator)), steps))
        else:
            yield from islice(generator, steps)


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _file_of(model: Any) -> npt.NDArray[np.uint8]:
    """The bytes of a model's ``.keras`` file."""
    with temporary_folder() as folder:
        path = folder / "model.keras"
        try:
            if old_output(model, []) is None:
                model.save(path)
            else:
                # No file takes the weights of a model that Keras 2 has built in a v1 graph.
                config, weights = model.get_config(), model.get_weights()
                with eagerly():
                    _rebuilt(type(model), config, weights).save(path)
        except Exception as error:  # Keras raises many kinds of errors
            raise InputError(f"the model cannot be saved: {error}") from error
        return np.frombuffer(path.read_bytes(), np.uint8)


def _model_of(content: npt.NDArray[np.uint8], library: str) -> Any:
    with temporary_folder() as folder:
        path = folder / "model.keras"
        path.write_bytes(np.asarray(content, np.uint8).tobytes())
        try:
            with eagerly():
                model = load_keras(path, library)
        except Exception as error:  # Keras raises many kinds of errors
            reason = " ".join(str(error).split())
            raise StateError(f"the state holds no model that can be loaded safely: {reason}") from error
    if library == "keras" or is_eager_program():
        return model
    with eagerly():
        config, weights = model.get_config(), model.get_weights()
    return _rebuilt(type(model), config, weights)


def _rebuilt(kind: type[Any], config: dict[str, Any], weights: Sequence[Any]) -> Any:
    model = kind.from_config(config)
    model.set_weights(weights)
    return model
