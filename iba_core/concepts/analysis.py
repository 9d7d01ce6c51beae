"""Which layer of a model knows a concept, and how well."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iba_core.concepts.data import SegmentationConcept2D, SegmentationData, resize_map
from iba_core.concepts.detection import ModelStump, embeddings_of, window_size
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.locating import mean_probability, member_distances
from iba_core.concepts.metrics import SetIoU
from iba_core.concepts.training import (
    Examples,
    HyperplaneTrainer,
    TrainingSettings,
    split_parameters,
)
from iba_core.errors import InputError, MissingDependencyError
from iba_core.framework.adapter import Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]

_DRAWS = 5
"""Random hyperplanes whose mean figure is the baseline."""

_THRESHOLDS = np.linspace(0.0, 1.0, 41)[:-1]
"""Thresholds that are tried for the constant mask, relative to the greatest mean."""

_CONSTANT_SHAPE = (64, 64)
"""Resolution of the constant mask."""


@dataclass(frozen=True)
class LayerResult:
    """What one layer knows of a concept.

    Attributes:
        layer: name of the layer.
        map_shape: (height, width) of its feature map.
        channels: channels of its feature map.
        embeddings: the hyperplanes that were learnt, fold by fold, the members of a fold's ensemble in a row.
        factors: (members, P, P), posteriors of their weights with `use_laplace`; else None.
        validation_iou: set IoU of each on the data that it was validated with.
        iou: set IoU of the mean of their probabilities on the held-out data.
        random_iou: the same of a random hyperplane that marks as large an area as the concept has.
        embedding_iou: the same of the one hyperplane `embedding`; None if nothing was held out for good.
    """

    layer: str
    map_shape: tuple[int, int]
    channels: int
    embeddings: tuple[ConceptEmbedding, ...]
    factors: FloatArray | None
    validation_iou: tuple[float, ...]
    iou: float
    random_iou: float
    embedding_iou: float | None

    @property
    def embedding(self) -> ConceptEmbedding:
        """One hyperplane for all: its distance is the mean of theirs."""
        return _one_for_all(self.embeddings)

    @property
    def mean_validation_iou(self) -> float:
        """By which layers are compared."""
        return float(np.mean(self.validation_iou))


@dataclass(frozen=True)
class ConceptAnalysisResult:
    """What the layers of a model know of a concept.

    Attributes:
        concept_name: name of the concept.
        layers: a result for each layer, in the order in which they were asked for.
        constant_iou: set IoU, on the held-out data, of the best mask that is the same for all images.
        held_out: the data that `iou` is of: ``"test"``, ``"validation"`` or ``"training"``.
    """

    concept_name: str
    layers: tuple[LayerResult, ...]
    constant_iou: float
    held_out: str

    @property
    def best(self) -> LayerResult:
        """The layer with the highest set IoU in validation; the figure on the test data has no say."""
        return max(self.layers, key=lambda result: result.mean_validation_iou)

    @property
    def embeddings(self) -> dict[str, ConceptEmbedding]:
        """One hyperplane for each layer, by its name."""
        return {result.layer: result.embedding for result in self.layers}

    def __getitem__(self, layer: str) -> LayerResult:
        """The result of a layer."""
        for result in self.layers:
            if result.layer == layer:
                return result
        raise KeyError(layer)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The table: layer, feature map, set IoU in validation, on held-out data, of a random hyperplane."""
        rows = []
        for result in self.layers:
            spread = f" ± {np.std(result.validation_iou):.3f}" if len(result.validation_iou) > 1 else ""
            height, width = result.map_shape
            rows.append(
                (
                    result.layer + (" *" if result is self.best else ""),
                    f"{result.channels} x {height} x {width}",
                    f"{result.mean_validation_iou:.3f}{spread}",
                    f"{result.iou:.3f}",
                    f"{result.random_iou:.3f}",
                )
            )
        return [*rows, ("the same mask everywhere", "", "", f"{self.constant_iou:.3f}", "")]

    def header(self) -> tuple[str, str, str, str, str]:
        """What the columns of `rows` are."""
        return ("Layer", "Features", "IoU, validation", f"IoU, {self.held_out}", "Random")

    def table(self) -> str:
        """The rows as text; a star marks the best layer."""
        lines = [self.header(), *self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        texts = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        texts.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(text.rstrip() for text in texts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the set IoU of the layers and of the baselines.

        Args:
            ax: axis to draw into; a new figure of pyplot if None.

        Returns:
            The axis.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise MissingDependencyError(
                    "plotting needs matplotlib: pip install 'iba-core[plot]'"
                ) from error
            ax = pyplot.subplots(layout="constrained")[1]
        places = np.arange(len(self.layers))
        colours = ["#0b6e75" if result is self.best else "#7fb3b6" for result in self.layers]
        ax.bar(places - 0.2, [result.iou for result in self.layers], 0.4, color=colours, label="learnt")
        random = [result.random_iou for result in self.layers]
        ax.bar(places + 0.2, random, 0.4, color="#c8c8c8", label="random hyperplane")
        ax.axhline(self.constant_iou, color="#555555", linestyle="--", label="same mask everywhere")
        ax.set_xticks(places, [result.layer for result in self.layers])
        ax.set_ylim(0, 1)
        ax.set_ylabel(f"set IoU, {self.held_out} data")
        ax.set_title(f"{self.concept_name}: where the model knows it")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        return ax


class ConceptAnalysis:
    """Learns a concept in the feature maps of one or several layers and compares them.

    The feature maps of a layer are computed once. For each layer, hyperplanes are learnt on the training
    data and stopped by the validation data; the best layer is chosen on the latter, and all are judged on
    the test data.

    After R. Fong, A. Vedaldi, *Net2Vec*, CVPR 2018 (https://arxiv.org/abs/1801.03454).

    Args:
        concept: what to learn.
        model: a trained model of any framework that a backend serves. It is left as it was.
        layers: names of layers, or layers, with feature maps.
        kernel_size: (height, width) of the window in pixels of the feature map; None to find it out from
            the concept's `rel_size`.
        folds: 1 to learn on the training data and validate on the validation data. From 2 on, the training
            data is cut into that many parts, and each is validated on once, by hyperplanes learnt on
            the others.
        ensemble_count: hyperplanes that are learnt in each fold, from starts and in orders of their own.
        use_laplace: approximate the posterior of the weights, and judge the mean probability.
        use_bias: whether the hyperplanes need not pass through the origin.
        cache: folder to keep the feature maps of a layer in while it is being looked at, in place of
            memory.
        backend: name of the backend, where it shall not follow from the model.
        progbar: show the progress.
        **settings: see `TrainingSettings`.

    Raises:
        InputError: an argument is wrong, or there is nothing to validate with.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> analysis = ConceptAnalysis(concept, model, ["blocks.7", "blocks.10"])  # doctest: +SKIP
        >>> result = analysis.run()  # doctest: +SKIP
        >>> result.best.embedding.save("face.safetensors")  # doctest: +SKIP
    """

    def __init__(
        self,
        concept: SegmentationConcept2D,
        model: Model,
        layers: Sequence[Any],
        *,
        kernel_size: tuple[int, int] | None = (1, 1),
        folds: int = 1,
        ensemble_count: int = 1,
        use_laplace: bool = False,
        use_bias: bool = True,
        cache: str | PathLike[str] | None = None,
        backend: str | None = None,
        progbar: bool = True,
        **settings: Any,
    ) -> None:
        self.settings = TrainingSettings(**settings)
        if isinstance(layers, str) or not layers:
            raise InputError(f"layers={layers!r} must be a list with at least one layer")
        if ensemble_count < 1:
            raise InputError(f"ensemble_count={ensemble_count} must be at least 1")
        if not 1 <= folds <= len(concept.train_data):
            raise InputError(f"folds={folds} must be from 1 to the {len(concept.train_data)} training images")
        if folds == 1 and concept.val_data is None:
            raise InputError("the concept has no validation data; give it some, or folds of at least 2")
        if kernel_size is None and concept.rel_size is None:
            raise InputError("kernel_size=None needs a concept with rel_size to find it out from")
        if kernel_size is not None and (len(kernel_size) != 2 or min(kernel_size) < 1):
            raise InputError(f"kernel_size={kernel_size!r} must be (height, width), both at least 1")
        if cache is not None and not Path(cache).is_dir():
            raise InputError(f"cache={str(cache)!r} is no folder")
        if use_laplace:
            self.settings.require_laplace()
        self.concept = concept
        self.kernel_size = kernel_size
        self.folds = folds
        self.ensemble_count = ensemble_count
        self.use_laplace = use_laplace
        self.use_bias = use_bias
        self.cache = cache
        self.progbar = progbar
        self.stumps = [ModelStump(model, layer, backend) for layer in layers]

    def run(self) -> ConceptAnalysisResult:
        """Learn the concept in every layer.

        Raises:
            InputError: the images differ in size, or features are not finite.
            LayerError: a layer gives no feature maps with two spatial axes.
            OptimizationError: the loss turned non-finite.
        """
        results = tuple(self._layer(stump) for stump in self.stumps)
        held_out, data = self._held_out()
        constant = constant_mask_iou(self.concept.train_data, data)
        return ConceptAnalysisResult(self.concept.name, results, constant, held_out)

    def _held_out(self) -> tuple[str, SegmentationData]:
        """The data that all are judged on at last, and its name."""
        if self.concept.test_data is not None:
            return "test", self.concept.test_data
        if self.concept.val_data is not None:
            return "validation", self.concept.val_data
        return "training", self.concept.train_data

    def _layer(self, stump: ModelStump) -> LayerResult:
        with tempfile.TemporaryDirectory(dir=self.cache) as folder:
            examples = {
                name: Examples.compute(
                    stump,
                    data,
                    batch_size=self.settings.batch_size,
                    file=None if self.cache is None else Path(folder) / f"{name}.npy",
                    progbar=self.progbar,
                )
                for name, data in self._parts().items()
            }
            return self._learn(stump, examples)

    def _parts(self) -> dict[str, SegmentationData]:
        parts = {
            "training": self.concept.train_data,
            "validation": self.concept.val_data,
            "test": self.concept.test_data,
        }
        # Cross-validation has no use for validation data unless there is nothing else to judge by.
        unused = {"validation"} if self.folds > 1 and self.concept.test_data is not None else set()
        return {name: data for name, data in parts.items() if data is not None and name not in unused}

    def _learn(self, stump: ModelStump, examples: dict[str, Examples]) -> LayerResult:
        training = examples["training"]
        map_shape = (int(training.maps.shape[1]), int(training.maps.shape[2]))
        kernel_size = self.kernel_size
        if kernel_size is None:
            assert self.concept.rel_size is not None
            kernel_size = window_size(self.concept.rel_size, map_shape)
        trainer = HyperplaneTrainer(stump.adapter, training, kernel_size, self.use_bias, self.settings)
        order = np.random.Generator(np.random.Philox(self.settings.seed)).permutation(len(training))
        shape = (training.channels, *kernel_size)
        embeddings: list[ConceptEmbedding] = []
        factors: list[FloatArray] = []
        scores: list[float] = []
        for fold, left_out in enumerate(np.array_split(order, self.folds)):
            if self.folds == 1:
                rows, checks = order, None
                validation, data = examples["validation"], self.concept.val_data
                assert data is not None
            else:
                rows, checks = np.setdiff1d(order, left_out), left_out
                validation, data = training, self.concept.train_data
            for number in range(self.ensemble_count):
                learnt = trainer.fit(
                    fold * self.ensemble_count + number,
                    rows=rows,
                    validation=(validation, checks),
                    progbar=self.progbar,
                )
                embedding = embeddings_of(
                    *split_parameters([learnt.parameters], shape),
                    concept_name=self.concept.name,
                    layer_id=stump.layer_id,
                    use_bias=self.use_bias,
                    epochs=learnt.epochs,
                )
                factor = None
                if self.use_laplace:
                    factor = trainer.laplace_factor(learnt.parameters, rows, (validation, checks))[None]
                    factors.append(factor)
                embeddings += embedding
                scores.append(heatmap_iou(validation.maps, data, embedding, factor, checks))
        posterior = np.concatenate(factors) if factors else None
        name, data = self._held_out()
        maps = examples[name].maps
        return LayerResult(
            stump.layer_id,
            map_shape,
            training.channels,
            tuple(embeddings),
            posterior,
            tuple(scores),
            # With nothing held out for good, what each fold held out is all there is.
            float(np.mean(scores)) if name == "training" else heatmap_iou(maps, data, embeddings, posterior),
            random_iou(trainer, maps, data),
            None if name == "training" else heatmap_iou(maps, data, [_one_for_all(embeddings)]),
        )


def _one_for_all(embeddings: Sequence[ConceptEmbedding]) -> ConceptEmbedding:
    return embeddings[0] if len(embeddings) == 1 else ConceptEmbedding.mean_by_distance(embeddings)


# -- figures ----------------------------------------------------------------------------------------


def heatmap_iou(
    maps: FloatArray,
    data: SegmentationData,
    embeddings: Sequence[ConceptEmbedding],
    factors: FloatArray | None = None,
    rows: npt.NDArray[np.integer] | None = None,
) -> float:
    """Set IoU of the heatmaps of an ensemble, enlarged to the size of the masks.

    Args:
        maps: (N, H, W, C), feature maps of the data.
        data: with the masks.
        embeddings: E hyperplanes, whose probabilities are averaged.
        factors: (E, P, P), posteriors of their weights; None if these are taken to be certain.
        rows: indices of the images to count; all if None.
    """
    metric = SetIoU(output_thresh=0.5, label_thresh=0.5)
    for index in range(len(data)) if rows is None else rows:
        mask = data.mask(int(index))
        heatmap = mean_probability(maps[index][None], embeddings, factors)[0]
        metric.update(resize_map(heatmap, (mask.shape[0], mask.shape[1])), mask)
    return float(metric.value())


def constant_mask_iou(training: SegmentationData, data: SegmentationData) -> float:
    """Set IoU of the one mask that fits the training data best, whatever the image shows.

    Among the masks that mark where the mean training mask is above a threshold, the one with the highest
    set IoU on the training data.
    """
    known, unknown = (part.masks_of_shape(_CONSTANT_SHAPE) for part in (training, data))
    mean = known.mean(axis=0)
    candidates = [mean >= threshold * mean.max() for threshold in _THRESHOLDS]
    best = max(candidates, key=lambda mask: _set_iou(mask, known))
    return _set_iou(best, unknown)


def _set_iou(mask: npt.NDArray[np.bool_], masks: npt.NDArray[np.float32]) -> float:
    outputs = np.broadcast_to(mask, masks.shape).astype(np.float32)
    return float(SetIoU(output_thresh=0.5, label_thresh=0.5)(outputs, masks))


def random_iou(trainer: HyperplaneTrainer, maps: FloatArray, data: SegmentationData) -> float:
    """Mean set IoU of random hyperplanes.

    Their directions are uniform where all channels vary alike, and their biases are such that they mark as
    large a share of the training data as the concept has.
    """
    examples, kernel_size = trainer.examples, trainer.kernel_size
    size = examples.channels * kernel_size[0] * kernel_size[1]
    share = float(examples.targets.mean())
    scores = []
    for draw in range(_DRAWS):
        generator = np.random.Generator(np.random.Philox(key=[trainer.settings.seed, draw]))
        direction = trainer.basis[:size, :size] @ generator.standard_normal(size)
        plane = embeddings_of(direction.reshape(1, examples.channels, *kernel_size), [0.0])[0]
        level = np.quantile(member_distances(examples.maps, [plane]), 1.0 - share)
        shifted = ConceptEmbedding(plane.normal_vec, bias=-level)
        scores.append(heatmap_iou(maps, data, [shifted]))
    return float(np.mean(scores))
