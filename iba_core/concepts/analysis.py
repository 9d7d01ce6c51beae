"""Find the layer of a model that knows a concept best."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    LARGEST_COUNT,
    require_bool,
    require_sequence,
    require_sizes,
    require_type,
    require_whole,
)
from iba_core.concepts.data import SegmentationConcept2D, SegmentationData, resize_map
from iba_core.concepts.detection import ModelStump, embeddings_of
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.hyperplanes import window_size
from iba_core.concepts.locating import mean_probability, member_distances
from iba_core.concepts.metrics import SetIoU
from iba_core.concepts.training import (
    Examples,
    HyperplaneTrainer,
    TrainingSettings,
    split_parameters,
)
from iba_core.default_layer import layers_over_depth
from iba_core.errors import InputError, LayerError
from iba_core.files import as_path, shown, temporary_folder
from iba_core.framework.adapter import Model, find_adapter
from iba_core.pictures.plotting import axes_to_draw_into, caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]

_DRAWS = 5
"""Number of random hyperplanes; the baseline is the mean of their set IoU."""

_THRESHOLDS = np.linspace(0.0, 1.0, 41)[:-1]
"""Thresholds to try for the constant mask, relative to the greatest mean."""

_HALF = 0.5
"""Probabilities above it mark the concept."""

_CONSTANT_SHAPE = (64, 64)
"""Resolution of the constant mask."""


@dataclass(frozen=True)
class LayerResult:
    """What one layer knows of a concept.

    Attributes:
        layer: name of the layer.
        map_shape: (height, width) of its feature map.
        channels: channels of its feature map.
        embeddings: the learnt hyperplanes, ordered by fold and then by member of the fold's ensemble.
        factors: (members, P, P), posteriors of their weights with `use_laplace`; else None.
        validation_iou: set IoU of each hyperplane on its validation data, from 0 to 1.
        iou: set IoU of their mean probability on the held-out data, from 0 to 1.
        random_iou: set IoU, on the held-out data, of random hyperplanes that mark as large an area as the
            concept has.
        embedding_iou: set IoU, on the held-out data, of the single hyperplane `embedding`; None if no data
            was held out.
        false_alarms: share of the held-out images without the concept in which the mean probability is above
            one half at some place, from 0 to 1; None if there is no such image.
        false_area: share of the pixels of these images that is above one half, from 0 to 1; 1 minus the
            specificity there. None if there is no such image.

    Example:
        >>> planes = ConceptEmbedding([1.0, 0.0], bias=0), ConceptEmbedding([3.0, 0.0], bias=2)
        >>> result = LayerResult("conv", (7, 7), 2, planes, None, (0.4, 0.6), 0.5, 0.1, 0.5)
        >>> result.mean_validation_iou, result.embedding.bias
        (0.5, 1.0)
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
    false_alarms: float | None = None
    false_area: float | None = None

    @property
    def embedding(self) -> ConceptEmbedding:
        """One hyperplane for the whole ensemble: its distance is the mean of the members' distances."""
        return _one_for_all(self.embeddings)

    @property
    def mean_validation_iou(self) -> float:
        """Mean of `validation_iou`, by which layers are compared."""
        return float(np.mean(self.validation_iou))


@dataclass(frozen=True)
class ConceptAnalysisResult:
    """What the layers of a model know of a concept.

    Attributes:
        concept_name: name of the concept.
        layers: a result for each layer, in the order of the arguments.
        constant_iou: set IoU, on the held-out data, of the best mask that is the same for all images.
        held_out: data that the layers' `iou` is computed on: ``"test"``, ``"validation"`` or
            ``"training"``.
        negatives: number of the held-out images that do not show the concept.

    Example:
        >>> plane = (ConceptEmbedding([1.0, 0.0], bias=0),)
        >>> layers = [
        ...     LayerResult(name, (7, 7), 2, plane, None, (iou,), iou, 0.1, iou)
        ...     for name, iou in (("conv1", 0.2), ("conv2", 0.7))
        ... ]
        >>> result = ConceptAnalysisResult("face", tuple(layers), constant_iou=0.15, held_out="test")
        >>> result.best.layer
        'conv2'
        >>> print(result.table())
        Layer                     Features   IoU, validation  IoU, test  Random
        ------------------------  ---------  ---------------  ---------  ------
        conv1                     2 x 7 x 7  0.200            0.200      0.100
        conv2 *                   2 x 7 x 7  0.700            0.700      0.100
        the same mask everywhere                              0.150
    """

    concept_name: str
    layers: tuple[LayerResult, ...]
    constant_iou: float
    held_out: str
    negatives: int = 0

    @property
    def best(self) -> LayerResult:
        """The layer with the highest set IoU in validation. The test data does not influence the choice."""
        return max(self.layers, key=lambda result: result.mean_validation_iou)

    @property
    def embeddings(self) -> dict[str, ConceptEmbedding]:
        """One hyperplane for each layer, by its name."""
        return {result.layer: result.embedding for result in self.layers}

    def __getitem__(self, layer: str) -> LayerResult:
        """Return the result of the layer with this name.

        Raises:
            KeyError: there is no such layer.
        """
        for result in self.layers:
            if result.layer == layer:
                return result
        raise KeyError(layer)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table, a row for each layer and one for the constant mask.

        The columns are the layer, its feature map, and the set IoU in validation, on held-out data, and of
        random hyperplanes. If some held-out images do not show the concept, the last column says in which
        share of them the layer fires, and on which share of their area.
        """
        rows = []
        for result in self.layers:
            spread = f" ± {np.std(result.validation_iou):.3f}" if len(result.validation_iou) > 1 else ""
            alarms = (
                ()
                if result.false_alarms is None or result.false_area is None
                else (f"{result.false_alarms:.0%}, {result.false_area:.1%}",)
            )
            height, width = result.map_shape
            rows.append(
                (
                    result.layer + (" *" if result is self.best else ""),
                    f"{result.channels} x {height} x {width}",
                    f"{result.mean_validation_iou:.3f}{spread}",
                    f"{result.iou:.3f}",
                    f"{result.random_iou:.3f}",
                    *alarms,
                )
            )
        rest = ("", "") if self.negatives else ("",)
        return [*rows, ("the same mask everywhere", "", "", f"{self.constant_iou:.3f}", *rest)]

    def header(self) -> tuple[str, ...]:
        """Return the titles of the columns of `rows`."""
        titles = ("Layer", "Features", "IoU, validation", f"IoU, {self.held_out}", "Random")
        return (*titles, "False alarms") if self.negatives else titles

    def table(self) -> str:
        """Return the rows as text. A star marks the best layer."""
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
            ax: axes to draw into; a new figure of pyplot if None.

        Returns:
            The axes.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        ax = axes_to_draw_into(ax)
        places = np.arange(len(self.layers))
        colours = ["#0b6e75" if result is self.best else "#7fb3b6" for result in self.layers]
        ax.bar(places - 0.2, [result.iou for result in self.layers], 0.4, color=colours, label="learnt")
        random = [result.random_iou for result in self.layers]
        ax.bar(places + 0.2, random, 0.4, color="#c8c8c8", label="random hyperplane")
        ax.axhline(self.constant_iou, color="#555555", linestyle="--", label="same mask everywhere")
        ax.set_xticks(places, [caption(result.layer) for result in self.layers], parse_math=False)
        ax.set_ylim(0, 1)
        ax.set_ylabel(f"set IoU, {self.held_out} data")
        ax.set_title(caption(f"{self.concept_name}: where the model knows it"), parse_math=False)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        return ax


class ConceptAnalysis:
    """Learn a concept in the feature maps of one or several layers, and compare the layers.

    The feature maps of all layers are computed once, in one pass. Hyperplanes are learnt on the training
    data. The validation data stops the training and chooses the best layer. All layers are judged on the test
    data.

    After R. Fong, A. Vedaldi, *Net2Vec*, CVPR 2018 (https://arxiv.org/abs/1801.03454).

    Args:
        concept: what to learn.
        model: a trained model of any framework that a backend serves. It is not changed.
        layers: layers with feature maps, as objects or names; None for eight over the whole depth of the
            model.
        kernel_size: (height, width) of the window in pixels of the feature map; None to derive it from the
            concept's `rel_size`.
        folds: number of folds. 1 learns on the training data and validates on the validation data. From 2
            on, the training data is divided into that many parts, and each part validates hyperplanes that
            were learnt on the other parts.
        ensemble_count: number of hyperplanes to learn in each fold. Each has its own start and its own
            order of the images.
        use_laplace: approximate the posterior of the weights, and judge the mean probability.
        use_bias: learn a bias. Without one, the hyperplanes pass through the origin.
        cache: folder that keeps the feature maps of all layers while they are analysed; None to keep them
            in memory.
        backend: name of the backend; None to derive it from the model.
        progbar: show the progress.
        **settings: see `TrainingSettings`.

    Raises:
        InputError: an argument is wrong, or there is nothing to validate with.
        LayerError: the model has no such layer; the message offers the closest names.

    Example:
        >>> import torch
        >>> from iba_core.concepts import SegmentationConcept2D
        >>> masks = (np.random.default_rng(0).random((12, 8, 8)) > 0.7).astype(np.float32)
        >>> images = np.repeat(masks[:, None], 3, axis=1)  # the concept is white
        >>> concept = SegmentationConcept2D("white", (images[:8], masks[:8]), (images[8:], masks[8:]))
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten(), torch.nn.Linear(256, 2))
        >>> result = ConceptAnalysis(concept, model, ["0"], epochs=30, progbar=False).run()
        >>> result.best.layer, result.best.iou > 0.99
        ('0', True)
    """

    def __init__(
        self,
        concept: SegmentationConcept2D,
        model: Model,
        layers: Sequence[Any] | None = None,
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
        self.settings: TrainingSettings = TrainingSettings(**settings)
        require_type("concept", concept, SegmentationConcept2D, "a SegmentationConcept2D")
        if layers is not None:
            require_sequence("layers", layers, "layers")
        ensemble_count = require_whole("ensemble_count", ensemble_count, 1, LARGEST_COUNT)
        require_whole("folds", folds, 1)
        if folds > len(concept.train_data):
            raise InputError(f"folds={folds} must be from 1 to the {len(concept.train_data)} training images")
        for name, flag in (("use_laplace", use_laplace), ("use_bias", use_bias), ("progbar", progbar)):
            require_bool(name, flag)
        if folds == 1 and concept.val_data is None:
            raise InputError("the concept has no validation data; give it some, or folds of at least 2")
        if kernel_size is None and concept.rel_size is None:
            raise InputError("kernel_size=None needs a concept with rel_size; give either of them")
        if kernel_size is not None:
            height, width = require_sizes("kernel_size", kernel_size)
            kernel_size = height, width
        if cache is not None and not as_path(cache, "cache").is_dir():
            raise InputError(f"cache={str(cache)!r} is not a folder")
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
        self.stumps: list[ModelStump] = (
            self._over_depth(model, backend)
            if layers is None
            else [ModelStump(model, layer, backend) for layer in layers]
        )

    def run(self) -> ConceptAnalysisResult:
        """Learn the concept in every layer.

        Raises:
            InputError: the images differ in size, or features are not finite.
            LayerError: a layer gives no feature maps with two spatial axes.
            OptimizationError: the loss turned non-finite.
        """
        results = tuple(self._layers())
        held_out, data = self._held_out()
        constant = constant_mask_iou(self.concept.train_data, data)
        negatives = sum(not _shows(data.mask(index)) for index in range(len(data)))
        result = ConceptAnalysisResult(self.concept.name, results, constant, held_out, negatives)
        if result.best.iou <= constant:
            warnings.warn(
                f"no layer knows {shown(self.concept.name)!r}: IoU {result.best.iou:.3f} at best, "
                f"{constant:.3f} of the same mask for all images",
                stacklevel=2,
            )
        return result

    def _over_depth(self, model: Model, backend: str | None) -> list[ModelStump]:
        """The model up to layers over its whole depth, without those whose channels cannot be told."""
        adapter = find_adapter(model, backend)
        probe = adapter.to_inputs(next(self.concept.train_data.batches(1)))
        stumps = []
        for layer in layers_over_depth(adapter, probe):
            with suppress(LayerError):
                stumps.append(ModelStump(model, layer, backend))
        if not stumps:
            raise LayerError("no layer of the model can be read; name one with layers=")
        return stumps

    def _held_out(self) -> tuple[str, SegmentationData]:
        """Return the name and the data that all layers are judged on."""
        if self.concept.test_data is not None:
            return "test", self.concept.test_data
        if self.concept.val_data is not None:
            return "validation", self.concept.val_data
        return "training", self.concept.train_data

    def _layers(self) -> Iterator[LayerResult]:
        with nullcontext() if self.cache is None else temporary_folder(self.cache) as folder:
            parts = {
                name: Examples.of_layers(
                    self.stumps,
                    data,
                    batch_size=self.settings.batch_size,
                    files=[
                        None if folder is None else folder / f"{name}-{number}.npy"
                        for number in range(len(self.stumps))
                    ],
                    progbar=self.progbar,
                )
                for name, data in self._parts().items()
            }
            for stump in self.stumps:
                # Each is let go after its turn.
                yield self._learn(stump, {name: examples.pop(0) for name, examples in parts.items()})

    def _parts(self) -> dict[str, SegmentationData]:
        parts = {
            "training": self.concept.train_data,
            "validation": self.concept.val_data,
            "test": self.concept.test_data,
        }
        # Cross-validation needs the validation data only if there is no test data.
        unused = {"validation"} if self.folds > 1 and self.concept.test_data is not None else set()
        return {name: data for name, data in parts.items() if data is not None and name not in unused}

    def _learn(self, stump: ModelStump, examples: dict[str, Examples]) -> LayerResult:
        training = examples["training"]
        map_shape = (int(training.maps.shape[1]), int(training.maps.shape[2]))
        kernel_size = self.kernel_size
        if kernel_size is None:
            assert self.concept.rel_size is not None
            kernel_size = window_size(self.concept.rel_size, map_shape)
        trainer = HyperplaneTrainer(
            stump.adapter.framework, training, kernel_size, self.use_bias, self.settings
        )
        members = [
            self._member(trainer, stump.layer_id, index * self.ensemble_count + number, fold)
            for index, fold in enumerate(self._folds(examples))
            for number in range(self.ensemble_count)
        ]
        embeddings, factors, scores = zip(*members, strict=True)
        posterior = np.stack(factors) if self.use_laplace else None
        name, data = self._held_out()
        maps = examples[name].maps
        # Without held-out data, only the part that each fold left out remains to judge by.
        judged = name != "training"
        whole = judge(maps, data, embeddings, posterior) if judged else _pooled(scores)
        return LayerResult(
            layer=stump.layer_id,
            map_shape=map_shape,
            channels=training.channels,
            embeddings=embeddings,
            factors=posterior,
            validation_iou=tuple(score.iou for score in scores),
            iou=whole.iou,
            random_iou=random_iou(trainer, maps, data),
            embedding_iou=heatmap_iou(maps, data, [_one_for_all(embeddings)]) if judged else None,
            false_alarms=whole.false_alarms,
            false_area=whole.false_area,
        )

    def _folds(self, examples: dict[str, Examples]) -> Iterator[_Fold]:
        """Give the examples to learn from, and those to validate with, fold by fold."""
        training = examples["training"]
        order = np.random.Generator(np.random.Philox(self.settings.seed)).permutation(len(training))
        if self.folds == 1:
            assert self.concept.val_data is not None
            yield _Fold(order, examples["validation"], self.concept.val_data, None)
        else:
            for left_out in np.array_split(order, self.folds):
                rows = np.setdiff1d(order, left_out)
                yield _Fold(rows, training, self.concept.train_data, left_out)

    def _member(
        self, trainer: HyperplaneTrainer, layer: str, member: int, fold: _Fold
    ) -> tuple[ConceptEmbedding, FloatArray | None, Judgement]:
        """Learn one hyperplane; give it, the factor of its posterior, and how well it does in validation."""
        validation = (fold.examples, fold.checks)
        learnt = trainer.fit(member, rows=fold.rows, validation=validation, progbar=self.progbar)
        embeddings = embeddings_of(
            *split_parameters([learnt.parameters], (trainer.examples.channels, *trainer.kernel_size)),
            concept_name=self.concept.name,
            layer_id=layer,
            use_bias=self.use_bias,
            epochs=learnt.epochs,
        )
        factor = None
        if self.use_laplace:
            factor = trainer.laplace_factor(learnt.parameters, fold.rows, validation)
        factors = None if factor is None else factor[None]
        score = judge(fold.examples.maps, fold.data, embeddings, factors, fold.checks)
        return embeddings[0], factor, score


class _Fold(NamedTuple):
    """The examples of one fold."""

    rows: npt.NDArray[np.integer]
    """Indices of the training images to learn from."""
    examples: Examples
    """Examples to validate with."""
    data: SegmentationData
    """Their images and masks."""
    checks: npt.NDArray[np.integer] | None
    """Indices of the images to validate with; None for all."""


def _one_for_all(embeddings: Sequence[ConceptEmbedding]) -> ConceptEmbedding:
    return embeddings[0] if len(embeddings) == 1 else ConceptEmbedding.mean_by_distance(embeddings)


# -- figures ----------------------------------------------------------------------------------------


class Judgement(NamedTuple):
    """How well heatmaps mark a concept.

    Attributes:
        iou: set IoU, from 0 to 1.
        negatives: number of images that do not show the concept.
        alarms: number of these in which a heatmap is above one half somewhere.
        area: sum of the shares of their area that are above one half.
    """

    iou: float
    negatives: int
    alarms: int
    area: float

    @property
    def false_alarms(self) -> float | None:
        """Share of the images without the concept that are marked somewhere; None without such images."""
        return self.alarms / self.negatives if self.negatives else None

    @property
    def false_area(self) -> float | None:
        """Mean share of their area that is marked; None without such images."""
        return self.area / self.negatives if self.negatives else None


def judge(
    maps: FloatArray,
    data: SegmentationData,
    embeddings: Sequence[ConceptEmbedding],
    factors: FloatArray | None = None,
    rows: npt.NDArray[np.integer] | None = None,
) -> Judgement:
    """Compare the heatmaps of an ensemble, enlarged to the size of the masks, with the masks.

    Args:
        maps: (N, H, W, C), feature maps of the data.
        data: the images with their masks.
        embeddings: E hyperplanes, whose probabilities are averaged.
        factors: (E, P, P), posteriors of their weights; None for certain weights.
        rows: indices of the images to count; None for all.
    """
    metric = SetIoU(output_thresh=_HALF, label_thresh=_HALF)
    negatives = alarms = 0
    area = 0.0
    for index in range(len(data)) if rows is None else rows:
        mask = data.mask(int(index))
        heatmap = mean_probability(maps[index][None], embeddings, factors)[0]
        enlarged = resize_map(heatmap, (mask.shape[0], mask.shape[1]))
        metric.update(enlarged, mask)
        if not _shows(mask):
            negatives += 1
            alarms += _shows(enlarged)
            area += float((enlarged > _HALF).mean())
    return Judgement(float(metric.value()), negatives, alarms, area)


def _shows(mask: FloatArray) -> bool:
    return bool((mask > _HALF).any())


def _pooled(parts: Sequence[Judgement]) -> Judgement:
    """Judge the parts of a data set together, with the mean of their IoU."""
    ious, *sums = zip(*parts, strict=True)
    negatives, alarms, area = map(sum, sums)
    return Judgement(float(np.mean(ious)), negatives, alarms, area)


def heatmap_iou(
    maps: FloatArray,
    data: SegmentationData,
    embeddings: Sequence[ConceptEmbedding],
    factors: FloatArray | None = None,
    rows: npt.NDArray[np.integer] | None = None,
) -> float:
    """Compute the set IoU of heatmaps, from 0 to 1; see `judge`."""
    return judge(maps, data, embeddings, factors, rows).iou


def constant_mask_iou(training: SegmentationData, data: SegmentationData) -> float:
    """Compute the set IoU of the best mask that is the same for all images.

    A candidate marks where the mean training mask is above a threshold. The best one has the highest set IoU
    on the training data.

    Args:
        training: data to choose the mask by.
        data: data to judge it on.

    Returns:
        A number from 0 to 1.
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
    """Compute the mean set IoU of random hyperplanes.

    Their directions are uniform in the coordinates in which all channels have the same variance. Their biases
    make them mark as large a share of the training data as the concept covers.

    Args:
        trainer: trainer with the training data.
        maps: (N, H, W, C), feature maps of `data`.
        data: data to judge them on.

    Returns:
        A number from 0 to 1.
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
