"""Learn the hyperplanes of a concept.

A hyperplane is linear in the feature maps, and these do not change. So they are computed once, and training
is a few hundred steps of Adam on a matrix product. The model's framework differentiates the loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any, Self, TypedDict

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    require_bool,
    require_callable,
    require_number,
    require_seed,
    require_type,
    require_whole,
)
from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.estimator import WelfordEstimator
from iba_core.concepts.data import SegmentationConcept2D, SegmentationData, resize_map
from iba_core.concepts.detection import CommonPass, ConceptDetection, ModelStump
from iba_core.concepts.hyperplanes import NO_PADDING, Padding, same_padding, windows
from iba_core.concepts.laplace import cross_entropy_hessian, posterior_factor, tuned_factor, with_bias
from iba_core.concepts.losses import BalancedBCELoss
from iba_core.concepts.masks import MaskFunction
from iba_core.errors import InputError, LayerError, OptimizationError
from iba_core.files import require_writable
from iba_core.framework.framework import Framework
from iba_core.framework.namespace import Array, array_namespace, sigmoid
from iba_core.undo import undone_on_failure
from iba_core.utils import get_tqdm

FloatArray = npt.NDArray[np.float64]

_FLOOR = 1e-3
"""Smallest standard deviation of a channel, relative to the greatest. It limits the scale of channels that
hardly vary."""

_CHUNK = 32
"""Number of feature maps to convert to float64 at once."""


def default_loss() -> BalancedBCELoss:
    """Return the default loss: half the binary cross-entropy of every pixel, with equal weights."""
    return BalancedBCELoss(factor_pos_class=0.5, from_logit=True)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings for learning hyperplanes.

    Attributes:
        epochs: maximum number of passes over the training data.
        batch_size: number of images in a step.
        learning_rate: learning rate of Adam, for weights of channels with a standard deviation of 1.
        weight_decay: factor d of the penalty ``d / 2 * |w|^2`` on these weights, added to the loss.
        patience: number of epochs without a lower validation loss after which training stops. The weights
            with the lowest validation loss are kept. Without validation data, all epochs are run.
        loss: function ``loss(outputs, targets)``. The outputs (B, H, W) are logits if its attribute
            ``from_logit`` is true, else probabilities. The targets (B, H, W) are the share of each pixel that
            the concept covers. Any loss of `iba_core.concepts`, `iba_torch.concepts` or `iba_tf.concepts`
            can be used.
        seed: seed of the start and of the order of the images.

    Raises:
        InputError: a number is outside its range.

    Example:
        >>> TrainingSettings(epochs=20).learning_rate
        0.05
    """

    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    patience: int = 5
    loss: Callable[..., Array] = field(default_factory=default_loss)
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("epochs", self.epochs, 1, LARGEST_COUNT)
        require_whole("batch_size", self.batch_size, 1)
        require_whole("patience", self.patience, 1)
        require_number("learning_rate", self.learning_rate, most=LARGEST_NUMBER, above=0)
        require_number("weight_decay", self.weight_decay, 0, LARGEST_NUMBER)
        require_callable("loss", self.loss, "a function of outputs and targets")
        require_seed("seed", self.seed, optional=False)

    def require_laplace(self) -> None:
        """Check that the posterior of the weights can be approximated after training.

        Raises:
            InputError: the loss is not a cross-entropy, or there is no prior.
        """
        if not isinstance(self.loss, BalancedBCELoss):
            raise InputError(
                f"use_laplace needs a BalancedBCELoss, the likelihood of a pixel; loss is {self.loss!r}"
            )
        if not self.weight_decay > 0:
            raise InputError("use_laplace needs a prior of the weights; give a weight_decay above 0")


# -- data -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Feature maps of a layer, with the true masks at their resolution.

    Attributes:
        maps: (N, H, W, C), in memory or in a file.
        targets: float32 (N, H, W), share of each pixel that the concept covers.
        like: a tensor of the model's framework, with the device and dtype to train in.
    """

    maps: npt.NDArray[np.floating]
    targets: npt.NDArray[np.float32]
    like: Array

    @classmethod
    def compute(
        cls,
        stump: ModelStump,
        data: SegmentationData,
        *,
        batch_size: int = 16,
        file: str | PathLike[str] | None = None,
        progbar: bool = True,
    ) -> Self:
        """Run all images through the model once.

        Args:
            stump: the model up to the layer.
            data: images and masks.
            batch_size: number of images to run through the model at once.
            file: ``.npy`` file that keeps the feature maps instead of memory. An existing file is replaced.
            progbar: show the progress.

        Raises:
            LayerError: the layer does not give feature maps with two spatial axes.
            InputError: a feature map is not finite, or the images differ in shape.
        """
        return cls.of_layers([stump], data, batch_size=batch_size, files=[file], progbar=progbar)[0]

    @classmethod
    def of_layers(
        cls,
        stumps: Sequence[ModelStump],
        data: SegmentationData,
        *,
        batch_size: int = 16,
        files: Sequence[str | PathLike[str] | None],
        progbar: bool = True,
    ) -> list[Self]:
        """Run all images through the model once for several layers.

        Args:
            stumps: the model up to each layer.
            data: see `compute`.
            batch_size: see `compute`.
            files: a file for each layer, see `compute`.
            progbar: see `compute`.

        Raises:
            LayerError: see `compute`.
            InputError: see `compute`.
        """
        common = CommonPass(stumps)
        kept = [_Kept(stump, len(data), file) for stump, file in zip(stumps, files, strict=True)]
        name = stumps[0].layer_id if len(stumps) == 1 else f"{len(stumps)} layers"
        with get_tqdm()(total=len(data), desc=name, unit="img", leave=False, disable=not progbar) as bar:
            for batch in data.batches(batch_size):
                for entry, tensor in zip(kept, common(batch), strict=True):
                    entry.add(tensor)
                bar.update(len(batch))
        masks: dict[tuple[int, int], list[npt.NDArray[np.float32]]] = {
            entry.maps.shape[1:3]: [] for entry in kept
        }
        for index in range(len(data)):
            mask = data.mask(index)
            for shape, resized in masks.items():
                resized.append(resize_map(mask, shape))
        return [cls(entry.maps, np.stack(masks[entry.maps.shape[1:3]]), entry.like) for entry in kept]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.maps.shape[-1])

    def __len__(self) -> int:
        return len(self.maps)


class _Kept:
    """The feature maps of one layer as they come."""

    def __init__(self, stump: ModelStump, count: int, file: str | PathLike[str] | None) -> None:
        self.stump, self.count, self.file = stump, count, file
        self.maps: Any = None
        self.like: Array = None
        self.done = 0

    def add(self, tensor: Array) -> None:
        """Keep the layer's output for the next batch."""
        features, layer = self.stump.maps_of(tensor), self.stump.layer_id
        if self.maps is None:
            _require_order(self.stump)
            self.like = _trainable(tensor)
            self.maps = _empty((self.count, *features.shape[1:]), features.dtype, self.file)
        if features.shape[1:] != self.maps.shape[1:]:
            raise InputError(
                f"the feature maps of layer {layer!r} have the shapes {self.maps.shape[1:]} and "
                f"{features.shape[1:]}; all images must have one size"
            )
        if not np.isfinite(features).all():
            raise InputError(
                f"layer {layer!r} gives NaN or infinite features for an image of the batch that starts at "
                f"index {self.done}"
            )
        self.maps[self.done : self.done + len(features)] = features
        self.done += len(features)


def _require_order(stump: ModelStump) -> None:
    """Check that masks lie over the feature maps of a layer as they lie over the images."""
    if not stump.order.is_unchanged:
        raise LayerError(
            f"the model exchanges or reverses rows and columns before layer {stump.layer_id!r}, so the masks "
            "of a concept do not lie over its feature maps; exchange them in front of the model"
        )


def _trainable(tensor: Array) -> Array:
    """Return a scalar on the device of a tensor, in float64 for a float64 model, else in float32."""
    xp = array_namespace(tensor)
    number = xp.sum(tensor[:1])
    return number if number.dtype == xp.float64 else xp.astype(number, xp.float32)


def _empty(shape: tuple[int, ...], dtype: Any, file: str | PathLike[str] | None) -> npt.NDArray[Any]:
    if file is None:
        return np.empty(shape, dtype)
    path = require_writable(file, "cache")
    try:
        maps = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A page for which the disk has no room later would end the program.
            with path.open("r+b") as written:
                os.posix_fallocate(written.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise InputError(f"cache={str(path)!r} cannot be written: {error.strerror or error}") from error
    return maps


# -- coordinates ------------------------------------------------------------------------------------


def standard_coordinates(
    maps: npt.NDArray[np.floating], kernel_size: Sequence[int], use_bias: bool
) -> FloatArray:
    r"""Find coordinates of the parameters in which all channels have the same variance.

    Training :math:`x` with :math:`\theta = B x` amounts to training on channels of mean 0 and standard
    deviation 1, without a copy of the data. Adam then takes steps of the same length for all channels, and
    the weight decay does not depend on the scale of a channel. Without a bias, the mean cannot be subtracted,
    and the root mean square of each channel becomes 1.

    Args:
        maps: (N, H, W, C).
        kernel_size: (kh, kw).
        use_bias: whether the last parameter is a bias.

    Returns:
        B, (P, P), for the parameters of a normal vector (C, kh, kw), followed by the bias.

    Example:
        >>> maps = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)
        >>> standard_coordinates(maps, (1, 1), use_bias=False)  # 1 / hypot(mean, std)
        array([[0.40824829]])
    """
    estimator = WelfordEstimator()
    for start in range(0, len(maps), _CHUNK):
        estimator.fit(maps[start : start + _CHUNK].reshape(-1, maps.shape[-1]))
    mean, std = np.asarray(estimator.mean()), np.asarray(estimator.std())
    scale = std if use_bias else np.hypot(mean, std)
    greatest = scale.max()
    scale = np.maximum(scale, _FLOOR * greatest) if greatest > 0 else np.ones_like(scale)
    window = kernel_size[0] * kernel_size[1]
    inverse = np.repeat(1.0 / scale, window)
    if not use_bias:
        return np.diag(inverse)
    basis = np.diag(np.append(inverse, 1.0))
    basis[-1, :-1] = -np.repeat(mean, window) * inverse
    return basis


# -- optimisation -----------------------------------------------------------------------------------


class _Batch(TypedDict):
    maps: Array
    targets: Array
    basis: Array


@dataclass(frozen=True)
class Hyperplane:
    """A learnt hyperplane.

    Attributes:
        parameters: float64 (P,), the flattened normal vector (C, kh, kw), followed by the bias if it has one.
        losses: mean loss of the training images in each epoch, including weight decay.
        validation_losses: loss of the validation images after each epoch; empty without validation data.
        epochs: number of epochs after which these parameters were reached.

    Example:
        >>> plane = Hyperplane(np.array([3.0, 4.0, -10.0]), losses=(0.7, 0.4), validation_losses=(), epochs=2)
        >>> weight, bias = split_parameters([plane.parameters], shape=(2, 1, 1))
        >>> weight.ravel(), bias
        (array([3., 4.]), array([-10.]))
    """

    parameters: FloatArray
    losses: tuple[float, ...]
    validation_losses: tuple[float, ...]
    epochs: int


class HyperplaneTrainer:
    """Learns hyperplanes in the feature maps of one layer.

    Use one object for all hyperplanes of a layer, since it compiles the optimiser step once.

    Args:
        framework: framework of the model, which computes the gradients.
        examples: feature maps and targets to learn from.
        kernel_size: (height, width) of the window.
        use_bias: whether hyperplanes have a bias.
        settings: settings of the training.
        apply_padding: whether zeros are put around the maps.

    Attributes:
        basis: see `standard_coordinates`.

    Raises:
        InputError: no example shows the concept.
    """

    def __init__(
        self,
        framework: Framework,
        examples: Examples,
        kernel_size: Sequence[int],
        use_bias: bool,
        settings: TrainingSettings,
        apply_padding: bool = True,
    ) -> None:
        if not examples.targets.any():
            raise InputError("no training mask marks the concept; a mask must be white where the concept is")
        self.kernel_size: tuple[int, ...] = tuple(kernel_size)
        self.padding: Padding = same_padding(kernel_size) if apply_padding else NO_PADDING
        self.use_bias = use_bias
        self.settings = settings
        self.examples = examples
        self.basis: FloatArray = standard_coordinates(examples.maps, kernel_size, use_bias)
        self._framework = framework
        self._basis = self._tensor(self.basis)
        self._rate = self._tensor(settings.learning_rate)
        self._decay = self._tensor(settings.weight_decay)
        self._compiled_step = framework.compile(self._step)
        self._compiled_loss = framework.compile(self._loss)

    def start(self, member: int) -> FloatArray:
        """Draw random parameters (P,) for a member of an ensemble, from the seed."""
        bound = 1.0 / np.sqrt(len(self.basis))
        return np.asarray(self.basis @ self._generator(member, 0).uniform(-bound, bound, len(self.basis)))

    def fit(
        self,
        member: int = 0,
        start: npt.NDArray[np.floating] | None = None,
        rows: npt.NDArray[np.integer] | None = None,
        validation: tuple[Examples, npt.NDArray[np.integer] | None] | None = None,
        progbar: bool = True,
    ) -> Hyperplane:
        """Learn one hyperplane.

        Args:
            member: number of the member of an ensemble. Each member has its own start and order of images.
            start: (P,), parameters to start from; None for random ones.
            rows: indices of the examples to learn from; None for all.
            validation: examples to stop early by, and the indices of those to use; None for all.
            progbar: show the progress.

        Raises:
            OptimizationError: the loss became non-finite.
        """
        settings = self.settings
        rows = np.arange(len(self.examples)) if rows is None else rows
        size = min(settings.batch_size, len(rows))
        per_epoch = len(rows) // size
        state = self._start_state(self.start(member) if start is None else start)
        corrections = self._tensor(bias_corrections(settings.epochs * per_epoch))
        generator = self._generator(member, 1)
        losses: list[float] = []
        validation_losses: list[float] = []
        best, best_epoch = state.parameter, 0
        bar = get_tqdm()(
            range(settings.epochs), desc=f"Hyperplane {member}", leave=False, disable=not progbar
        )
        for epoch in bar:
            # All batches have one size, so that one compiled step serves them all. The images left over in
            # one epoch come in another.
            order = generator.permutation(rows)[: per_epoch * size].reshape(per_epoch, size)
            state, loss = self._epoch(state, order, corrections[epoch * per_epoch : (epoch + 1) * per_epoch])
            losses.append(loss)
            if validation is not None:
                validation_losses.append(self._mean_loss(state.parameter, *validation))
            latest = [*losses[-1:], *validation_losses[-1:]]
            if not np.isfinite(latest).all():
                raise OptimizationError(
                    f"the loss became {latest} in epoch {epoch + 1}; lower "
                    f"learning_rate={settings.learning_rate}"
                )
            if validation is None or min(validation_losses) == validation_losses[-1]:
                best, best_epoch = state.parameter, epoch + 1
            elif epoch + 1 - best_epoch >= settings.patience:
                break
        bar.close()
        parameters = self.basis @ self._framework.to_numpy(best).astype(np.float64)
        return Hyperplane(parameters, tuple(losses), tuple(validation_losses), best_epoch)

    def _start_state(self, parameters: npt.NDArray[np.floating]) -> AdamState:
        x = self._tensor(np.linalg.solve(self.basis, np.asarray(parameters, dtype=np.float64)))
        zeros = array_namespace(x).zeros_like(x)
        return AdamState(x, zeros, zeros)

    def _epoch(
        self, state: AdamState, order: npt.NDArray[np.integer], corrections: Array
    ) -> tuple[AdamState, float]:
        """Run the steps of one epoch; give the new state and the mean loss."""
        values = []
        for number, batch in enumerate(order):
            state, value = self._compiled_step(
                state, self._batch(self.examples, batch), corrections[number], self._rate, self._decay
            )
            values.append(value)
        return state, float(np.mean([self._framework.to_numpy(value) for value in values]))

    def laplace_factor(
        self,
        parameters: FloatArray,
        rows: npt.NDArray[np.integer] | None = None,
        validation: tuple[Examples, npt.NDArray[np.integer] | None] | None = None,
    ) -> FloatArray:
        """Compute the factor of the posterior of learnt parameters; see `iba_core.concepts.laplace`.

        The likelihood follows from the loss, in units in which ``factor_pos_class=0.5`` is the plain
        cross-entropy. The prior follows from the weight decay, in the coordinates of the training. With
        validation data, the precision of the prior is raised to the value that suits that data best.

        Args:
            parameters: (P,), learnt from the examples.
            rows: indices of the examples that they were learnt from; None for all.
            validation: examples, and the indices of those to use; None for all.

        Returns:
            R, (P, P), for the original coordinates of the parameters.

        Raises:
            InputError: the settings give no posterior.
        """
        self.settings.require_laplace()
        loss = self.settings.loss
        assert isinstance(loss, BalancedBCELoss)
        rows = np.arange(len(self.examples)) if rows is None else rows
        targets = self._valid(self.examples.targets[rows])
        share = 1.0 - float(targets.mean()) if loss.factor_pos_class is None else loss.factor_pos_class
        prior = 2.0 * targets.size * self.settings.weight_decay
        x = np.linalg.solve(self.basis, parameters)
        hessian = np.zeros_like(self.basis)
        for first in range(0, len(rows), _CHUNK):
            phi, _, weights = self._pixels(self.examples, rows[first : first + _CHUNK], share)
            hessian += cross_entropy_hessian(phi, x, weights)
        if validation is None:
            factor = posterior_factor(hessian, prior)
        else:
            examples, checks = validation
            checks = np.arange(len(examples)) if checks is None else checks
            phi, t, weights = self._pixels(examples, checks, share)
            factor = tuned_factor(hessian, prior, x, phi, t, weights)
        return np.asarray(factor @ self.basis.T)

    def _pixels(
        self, examples: Examples, rows: npt.NDArray[np.integer], share: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Give windows (N, P) in the coordinates of the basis, their targets (N,) and loss weights (N,)."""
        phi = self._windows(np.asarray(examples.maps[rows]))
        phi = with_bias(phi.reshape(-1, phi.shape[-1]), self.use_bias) @ self.basis
        targets = self._valid(examples.targets[rows]).reshape(-1).astype(np.float64)
        return phi, targets, 2.0 * (share * targets + (1.0 - share) * (1.0 - targets))

    # -- one step -------------------------------------------------------------------------------------

    def _step(
        self, state: AdamState, batch: _Batch, correction: Array, rate: Array, decay: Array
    ) -> tuple[AdamState, Array]:
        """Do one optimiser step. All that changes comes in as an argument, so that it can be compiled."""
        value, _, gradient = self._framework.value_and_grad(
            partial(self._objective, batch=batch, decay=decay), state.parameter
        )
        return adam_step(state, gradient, correction, rate), value

    def _objective(self, x: Array, *, batch: _Batch, decay: Array) -> tuple[Array, tuple[()]]:
        xp = array_namespace(x)
        return self._loss(x, batch) + 0.5 * decay * xp.sum(xp.square(x)), ()

    def _loss(self, x: Array, batch: _Batch) -> Array:
        xp = array_namespace(x)
        theta = xp.matmul(batch["basis"], x)
        rows = self._windows(batch["maps"])
        weight = theta[:-1] if self.use_bias else theta
        logits = xp.matmul(rows, weight)
        if self.use_bias:
            logits = logits + theta[-1]
        loss = self.settings.loss
        outputs = logits if getattr(loss, "from_logit", False) else sigmoid(logits)
        # Call the formula itself, since a framework's loss may take (targets, outputs), as in Keras.
        function = loss.forward if isinstance(loss, MaskFunction) else loss
        return function(outputs, self._valid(batch["targets"]))

    def _mean_loss(self, x: Array, examples: Examples, rows: npt.NDArray[np.integer] | None) -> float:
        rows = np.arange(len(examples)) if rows is None else rows
        size = self.settings.batch_size
        parts = [rows[first : first + size] for first in range(0, len(rows), size)]
        losses = [
            float(self._framework.to_numpy(self._compiled_loss(x, self._batch(examples, part))))
            for part in parts
        ]
        return float(np.average(losses, weights=[len(part) for part in parts]))

    def _windows(self, maps: Array) -> Array:
        return windows(maps, self.kernel_size, self.padding)

    def _valid(self, targets: Array) -> Array:
        """Keep the targets that have a window: without padding, those not too close to the border."""
        (above, below), (left, right) = same_padding(self.kernel_size)
        if self.padding != NO_PADDING or (above, below, left, right) == (0, 0, 0, 0):
            return targets
        height, width = (int(size) for size in targets.shape[1:])
        return targets[:, above : height - below, left : width - right]

    def _batch(self, examples: Examples, rows: npt.NDArray[np.integer]) -> _Batch:
        return {
            "maps": self._framework.asarray(examples.maps[rows], examples.like),
            "targets": self._tensor(examples.targets[rows]),
            "basis": self._basis,
        }

    def _tensor(self, array: npt.ArrayLike) -> Array:
        return self._framework.asarray(np.asarray(array, dtype=np.float64), self.examples.like)

    def _generator(self, member: int, purpose: int) -> np.random.Generator:
        counter = np.array([0, 0, purpose, member], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=self.settings.seed, counter=counter))


def train_detection_model(
    model: ConceptDetection,
    concept: SegmentationConcept2D | None = None,
    *,
    cache: str | PathLike[str] | None = None,
    progbar: bool = True,
    **settings: Any,
) -> list[Hyperplane]:
    """Train a detection model of any framework on a concept, and store the result in it.

    Every member of the ensemble starts from its current weights, and has its own order of the images. With
    `use_laplace`, the posterior of the weights is approximated afterwards.

    Args:
        model: a `ConceptDetectionModel2D` with a main model.
        concept: concept to learn; None for the model's own concept.
        cache: ``.npy`` file that keeps the feature maps of the training data instead of memory.
        progbar: show the progress.
        **settings: see `TrainingSettings`.

    Returns:
        The learnt hyperplane of each member, with its losses.

    Raises:
        InputError: there is no concept or no main model, or a setting is wrong.
        OptimizationError: the loss became non-finite.

    Example:
        >>> import torch
        >>> from iba_torch.concepts import ConceptDetectionModel2D
        >>> masks = (np.random.default_rng(0).random((8, 8, 8)) > 0.7).astype(np.float32)
        >>> images = np.repeat(masks[:, None], 3, axis=1)  # the concept is white
        >>> concept = SegmentationConcept2D("white", (images, masks))
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten())
        >>> model = ConceptDetectionModel2D(concept, network, layer_id="0", kernel_size=(1, 1))
        >>> (plane,) = train_detection_model(model, epochs=30, progbar=False)
        >>> plane.losses[-1] < plane.losses[0]
        True
    """
    chosen = TrainingSettings(**settings)
    trainer, validation = _trainer(model, concept, chosen, cache, progbar)
    starts = _parameters(model)
    learnt = [
        trainer.fit(member, start, validation=validation, progbar=progbar)
        for member, start in enumerate(starts)
    ]
    shape = (model.in_channels, *model.kernel_size)
    planes = split_parameters([plane.parameters for plane in learnt], shape)
    factors: npt.NDArray[np.floating] | None = None
    if model.use_laplace:
        factors = np.stack(
            [trainer.laplace_factor(plane.parameters, validation=validation) for plane in learnt]
        )
    before = model.hyperplanes(), model.laplace_factors() if model.use_laplace else None
    with undone_on_failure(lambda: _load(model, *before)):
        _load(model, planes, factors)
    return learnt


def _load(
    model: ConceptDetection,
    planes: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]],
    factors: npt.NDArray[np.floating] | None,
) -> None:
    model.load_hyperplanes(*planes)
    if factors is not None:
        model.load_laplace_factors(factors)


def approximate_posterior(
    model: ConceptDetection,
    concept: SegmentationConcept2D | None = None,
    *,
    cache: str | PathLike[str] | None = None,
    progbar: bool = True,
    **settings: Any,
) -> None:
    """Approximate the posterior of the weights that a detection model has, without training it.

    Embeddings do not hold the uncertainty of the weights. This computes it for a model made from them.

    Args:
        model: a `ConceptDetectionModel2D` with a main model and `use_laplace`.
        concept: the concept that it has learnt; None for the model's own concept.
        cache: ``.npy`` file that keeps the feature maps of the training data instead of memory.
        progbar: show the progress.
        **settings: see `TrainingSettings`; the loss and the weight decay matter here.

    Raises:
        InputError: there is no concept or no main model, the model does not `use_laplace`, or a setting is
            wrong.

    Example:
        >>> import torch
        >>> from iba_torch.concepts import ConceptDetectionModel2D
        >>> masks = (np.random.default_rng(0).random((8, 8, 8)) > 0.7).astype(np.float32)
        >>> concept = SegmentationConcept2D("white", (np.repeat(masks[:, None], 3, axis=1), masks))
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten())
        >>> model = ConceptDetectionModel2D(concept, network, "0", kernel_size=(1, 1), use_laplace=True)
        >>> approximate_posterior(model, progbar=False)
        >>> bool(model.laplace_factors().any())
        True
    """
    chosen = TrainingSettings(**settings)
    require_type("model", model, ConceptDetection, "a ConceptDetectionModel2D")
    model.laplace_factors()  # raises without use_laplace
    trainer, validation = _trainer(model, concept, chosen, cache, progbar)
    factors = [trainer.laplace_factor(plane, validation=validation) for plane in _parameters(model)]
    model.load_laplace_factors(np.stack(factors))


def _parameters(model: ConceptDetection) -> FloatArray:
    """The parameters (E, P) of a model's hyperplanes."""
    weight, bias = model.hyperplanes()
    parameters = weight.reshape(len(weight), -1)
    if model.use_bias:
        parameters = np.concatenate([parameters, bias[:, None]], axis=1)
    return np.asarray(parameters, dtype=np.float64)


def _trainer(
    model: ConceptDetection,
    concept: SegmentationConcept2D | None,
    chosen: TrainingSettings,
    cache: str | PathLike[str] | None,
    progbar: bool,
) -> tuple[HyperplaneTrainer, tuple[Examples, None] | None]:
    """Check what is to be learnt, and compute the feature maps for training and for validation."""
    require_type("model", model, ConceptDetection, "a ConceptDetectionModel2D")
    require_type("concept", concept, SegmentationConcept2D, "a SegmentationConcept2D", optional=True)
    require_bool("progbar", progbar)
    if cache is not None:
        cache = require_writable(cache, "cache")
    concept = model.concept if concept is None else concept
    stump = model.stump
    if concept is None or stump is None:
        missing = "concept" if concept is None else "model and layer_id"
        raise InputError(f"{missing} is missing in the detection model; training needs it")
    if model.use_laplace:
        chosen.require_laplace()
    examples = Examples.compute(stump, concept.train_data, file=cache, progbar=progbar)
    if examples.channels != model.in_channels:
        raise InputError(
            f"layer {stump.layer_id!r} has {examples.channels} channels, but the detection model "
            f"{model.in_channels}"
        )
    validation = None
    if concept.val_data is not None:
        validation = (Examples.compute(stump, concept.val_data, progbar=progbar), None)
    trainer = HyperplaneTrainer(
        stump.adapter.framework, examples, model.kernel_size, model.use_bias, chosen, model.apply_padding
    )
    return trainer, validation


def split_parameters(parameters: Sequence[FloatArray], shape: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """Split parameters (P,) of several hyperplanes into weight (E, *shape) and bias (E,)."""
    stacked = np.stack(parameters)
    size = int(np.prod(shape))
    bias = stacked[:, size] if stacked.shape[1] > size else np.zeros(len(stacked))
    return stacked[:, :size].reshape(-1, *shape), bias
