"""The public doors of `iba_core`, with arguments that are right."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import iba_core
from iba_core import (
    BottleneckSettings,
    LogitTarget,
    WelfordEstimator,
)
from iba_core import concepts as c
from iba_core.datasets import Run
from iba_core.pictures import images
from iba_core.text import TokenBits
from tests.robustness.walk import Door, door
from tests.robustness.wrong_values import (
    Argument,
    anything,
    array,
    boolean,
    either,
    function,
    given,
    name,
    nothing,
    number,
    numbers,
    optional,
    text,
    whole,
)

A = Argument
RNG = np.random.default_rng(0)

IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
PICTURE = RNG.integers(0, 255, (8, 8, 3), dtype=np.uint8)
MASKS = (RNG.random((4, 8, 8)) > 0.5).astype(np.float32)
MAP = RNG.random((8, 8))
OUTPUTS = RNG.normal(size=(2, 5))
PREPROCESSING = images.Preprocessing(size=(4, 4))


@cache
def folder() -> Path:
    """A folder with an image in it."""
    made = Path(tempfile.mkdtemp())
    Image.fromarray(PICTURE).save(made / "picture.png")
    (made / "class").mkdir()
    Image.fromarray(PICTURE).save(made / "class" / "picture.png")
    estimator().save(made / "estimator.safetensors")
    plane().save(made / "plane.safetensors")
    return made


@cache
def annotations() -> Path:
    """A file of annotations, beside its picture."""
    file = folder() / "class" / "all.json"
    content = {
        "images": [{"id": 1, "file_name": "picture.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    }
    file.write_text(json.dumps(content))
    return file


def new_file(suffix: str = "safetensors") -> Path:
    """A file that can be written."""
    return folder() / f"new.{suffix}"


def _run() -> Path:
    """A folder with a run."""
    Run(folder() / "run").begin({"id": "1", "started": ""})
    return folder() / "run"


def estimator() -> WelfordEstimator:
    """A fitted estimator."""
    made = WelfordEstimator()
    made.fit(RNG.normal(size=(5, 3)))
    return made


def plane(**options: Any) -> c.ConceptEmbedding:
    """A hyperplane."""
    return c.ConceptEmbedding([3.0, 4.0], bias=-10.0, **options)


def concept() -> c.SegmentationConcept2D:
    """A concept."""
    return c.SegmentationConcept2D("dot", (IMAGES, MASKS), (IMAGES, MASKS), rel_size=(0.5, 0.5))


def const(value: Any) -> Callable[[], Any]:
    """Gives the same value each time."""
    return lambda: value


def is_path(value: Any) -> bool:
    """Anything that may be the path of a file to write."""
    return isinstance(value, (str, Path)) and str(value) not in ("", ".") and "\0" not in str(value)


DATA_FORMAT = given("channels_first")
CALLED = ("a class",)
"""Of arguments that are called: the class itself refuses what it gets, with an error of its own."""
NO_FILE = ("path", "does not exist", "is a folder")
"""What a message says of a file that it names; the name of the argument would add nothing."""

SEED = given(3, whole(0, 2**64 - 1))
OPTIONAL_SEED = given(3, optional(whole(0, 2**64 - 1)))
FLAG = given(True, boolean)
COUNT = given(2, whole(1, 10**6))
RATE = given(1.0, number(0, 1e12))

SETTINGS: dict[str, Argument] = {
    "beta": RATE,
    "steps": COUNT,
    "samples": COUNT,
    "learning_rate": RATE,
    "initial_alpha": given(5.0, number(-80, 80)),
    "min_std": given(0.01, number(0, 1e12)),
    "smooth_std": given(1.0, optional(number(0, 1e4))),
    "normalize_beta": FLAG,
    "active_neurons_threshold": given(0.01, number(0, below=1)),
    "antithetic": FLAG,
    "early_steps": given(1, whole(0, 10**6)),
    "early_samples": COUNT,
    "tolerance": given(0.1, number(0, 1e12)),
    "max_rise": given(0.0, number(0, 1e12)),
    "keep": given(None, optional(number(0.01, below=1))),
    "precision": given(None, optional(nothing)),
}

FRACTION = given(0.5, number(0, 1))
LOSS_INPUTS = {
    "outputs": given(MASKS * 0.5, array(shape=MASKS.shape, finite=False), why="infinite logits are certain"),
    "targets": given(MASKS, array(shape=MASKS.shape, finite=False)),
}
REDUCTION = given("mean", function, why="a function of the values")

OUTPUT = given(OUTPUTS, array((2,)))


def _targets() -> Iterator[Door]:
    classes = given(1, either(optional(whole()), array((0, 1))), ("target",))
    activation = given("softmax", optional(nothing))
    yield door("iba_core.ClassTarget", classes=classes, activation=activation)
    yield door("iba_core.LogitTarget", classes=classes, activation=activation)
    yield door("iba_core.DistributionTarget", activation=activation)
    yield door(
        "iba_core.RegressionTarget", values=given(OUTPUTS, optional(array())), images=given(slice(None))
    )
    yield door(
        "iba_core.SegmentationTarget",
        index=given(1, whole()),
        mask=given(MASKS[0], lambda value: array((2,))(value) and set(np.ravel(value)) <= {0, 1}),
        data_format=DATA_FORMAT,
    )
    yield door("iba_core.ScoreTarget", score=given(np.sum, function))
    yield door(
        "iba_core.SumTarget",
        targets=given(
            (LogitTarget(0), LogitTarget(1)),
            lambda value: isinstance(value, (list, np.ndarray)),
            ("weights",),
            why="entries may be classes, and not as many as there are weights",
        ),
        weights=given((1.0, 2.0), optional(numbers((2,)))),
    )
    yield door(
        "iba_core.concepts.ClassifierOutputTarget",
        category=given(1, optional(whole())),
        layer=given(None, anything, why="looked up at use"),
    )
    for kind in ("SimilarityToConceptTarget", "DifferenceFromConceptTarget"):
        yield door(
            f"iba_core.concepts.{kind}",
            features=given(OUTPUTS[0], lambda value: array()(value) and bool(np.any(value))),
            layer=given(None, anything, why="looked up at use"),
        )
    yield door(
        "iba_core.concepts.ConceptEmbeddingTarget",
        embedding=A(plane),
        layer=given(None, anything, why="looked up at use"),
        data_format=given("channels_first", optional(nothing)),
    )


def _statistics() -> Iterator[Door]:
    yield door("iba_core.BottleneckSettings", **SETTINGS)
    yield door(
        "iba_core.BottleneckSettings.override",
        const(BottleneckSettings()),
        **{name: A(rule.valid, optional(rule.accepts)) for name, rule in SETTINGS.items()},
    )
    yield door(
        "iba_core.Statistics",
        mean=given(np.zeros(3), array(shape=(3,))),
        std=given(np.ones(3), lambda value: array(shape=(3,))(value) and np.min(value) >= 0),
        active=given(
            np.ones(3, bool),
            lambda value: array(shape=(3,))(value) and set(np.ravel(value)) <= {0, 1},
        ),
    )
    yield door(
        "iba_core.Statistics.of",
        estimator=A(estimator),
        active_neurons_threshold=given(0.01, number(0, 1), ("threshold",)),
    )
    yield door(
        "iba_core.Tokens",
        prefix=given(1, whole()),
        grid=given((2, 2), optional(numbers((1, 2, 3), whole(1)))),
        any_length=given(False, lambda value: boolean(value) and not value),  # True is for no prefix
    )


def _estimator() -> Iterator[Door]:
    yield door("iba_core.WelfordEstimator", **{"*": given((3,), whole(1), ("shape",))})
    batch = given(np.ones((2, 3)), lambda value: array()(value) and np.shape(value)[1:] == (3,))
    yield door("iba_core.WelfordEstimator.fit", estimator, x=A(batch.valid, _rows_of_three))
    yield door("iba_core.WelfordEstimator.active_neurons", estimator, threshold=given(0.01, number(0, 1)))
    yield door("iba_core.WelfordEstimator.merge", estimator, other=A(estimator))
    yield door(
        "iba_core.WelfordEstimator.load_state_dict", estimator, state=A(lambda: estimator().state_dict())
    )
    yield door(
        "iba_core.WelfordEstimator.save",
        estimator,
        path=A(new_file, is_path),
        metadata=A(dict, lambda value: isinstance(value, dict) or value is None),
    )
    yield door("iba_core.WelfordEstimator.load", path=A(lambda: folder() / "estimator.safetensors"))
    yield door(
        "iba_core.to_saliency_map",
        capacity=given(RNG.random((3, 4, 4)), array((1, 2, 3, 4)), ("shape",)),
        shape=given((8, 8), optional(numbers((2,), whole(1)))),
        data_format=DATA_FORMAT,
        order=given(None, optional(nothing)),
    )


def _rows_of_three(value: Any) -> bool:
    try:
        found = np.asarray(value)
    except ValueError:
        return False
    return found.dtype.kind in "biuf" and found.shape[1:] == (3,) and bool(np.isfinite(found).all())


def _images() -> Iterator[Door]:
    readable = A(lambda: folder() / "picture.png", nothing, NO_FILE)
    yield door("iba_core.load_image", path=readable)
    yield door("iba_core.sample_image", name=given("cat"))
    yield door("iba_core.to_unit_interval", x=given(OUTPUTS, array()))
    yield door(
        "iba_core.sample_crops",
        n=given(2, whole(1)),
        preprocessing=given(PREPROCESSING),
        batch_size=given(2, whole(1)),
        seed=SEED,
        data_format=DATA_FORMAT,
    )
    yield door("iba_core.pictures.images.image_files", folder=A(folder, nothing, NO_FILE))
    yield door(
        "iba_core.pictures.images.image_batches",
        files=A(lambda: [folder() / "picture.png"], _empty, NO_FILE),
        preprocessing=given(PREPROCESSING),
        batch_size=given(2, whole(1)),
        data_format=DATA_FORMAT,
    )
    yield Door(
        "iba_core.load_monkeys",
        const(partial(_before_download, iba_core.load_monkeys)),
        {
            "center_crop": FLAG,
            "size": given(224, optional(either(whole(1, 2**14), numbers((2,), whole(1))))),
            "pil": FLAG,
        },
    )
    yield door(
        "iba_core.framework.allocator.keep_freed_memory", limit=given(2**30, whole(-(10**400), 10**400))
    )


def _preparing() -> Iterator[Door]:
    path = "iba_core.pictures.images.Preprocessing"
    picture = given(PICTURE, lambda value: isinstance(value, np.ndarray) and value.dtype == np.uint8)
    yield door(
        path,
        size=given((4, 4), numbers((2,), whole(1, 2**14))),
        crop_fraction=given(1.0, number(above=0, most=1)),
        channels=given(3),
        scale=given(1.0, number(above=0)),
        mean=given((0.0,), numbers((1, 3))),
        std=given((1.0,), numbers((1, 3), number(above=0))),
        interpolation=given("bilinear"),
    )
    yield door(
        f"{path}.preset",
        const(images.Preprocessing),
        name=given("unit"),
        size=given((4, 4), numbers((2,), whole(1, 2**14))),
        channels=given(3),
    )
    yield door(
        f"{path}.__call__",
        const(PREPROCESSING),
        image=picture,
        data_format=DATA_FORMAT,
    )
    yield door(f"{path}.crop", const(PREPROCESSING), image=picture)
    yield door(
        f"{path}.inverse",
        const(PREPROCESSING),
        x=given(np.ones((4, 4, 3)), lambda value: array((3,))(value) and np.shape(value)[-1] == 3),
        data_format=given("channels_last"),
    )
    yield door(
        f"{path}.random_crop",
        const(PREPROCESSING),
        image=picture,
        generator=A(lambda: np.random.default_rng(0)),
        data_format=DATA_FORMAT,
    )


def _drawing() -> Iterator[Door]:
    yield Door(
        "iba_core.plot_saliency_map",
        _with_matplotlib(iba_core.plot_saliency_map),
        {
            "saliency_map": given(MAP, array(shape=MAP.shape), ("img",)),
            "img": given(PICTURE, optional(lambda value: array()(value) and np.shape(value)[:2] == (8, 8))),
            "ax": given(None, optional(nothing)),
            "colorbar_label": given("bits", text),
            "colorbar_fontsize": given(12, number(above=0, most=1000)),
            "min_alpha": given(0.2, number(0, 0.7)),
            "max_alpha": given(0.7, number(0.2, 1)),
            "vmax": given(1.0, optional(number(above=0))),
            "colorbar_size": given(0.3, number(above=0, most=100)),
            "colorbar_pad": given(0.1, number(0, 100)),
        },
    )
    yield Door(
        "iba_core.plot_signal_map",
        _with_matplotlib(iba_core.plot_signal_map),
        {
            "saliency_map": given(MAP[0], array(shape=MAP[0].shape), ("signal",)),
            "signal": given(
                MAP[0],
                optional(lambda value: array()(value) and np.shape(value) in (MAP[0].shape, MAP.shape)),
            ),
            "ax": given(None, optional(nothing)),
            "label": given("bits", text),
        },
    )
    volume = RNG.random((2, 3, 4))
    yield Door(
        "iba_core.plot_volume_map",
        _with_matplotlib(iba_core.plot_volume_map),
        {
            "saliency_map": given(volume, array(shape=volume.shape), ("volume", "position")),
            "volume": given(volume, optional(array(shape=volume.shape))),
            "ax": given(None, optional(nothing)),
            "view": given("slice", lambda value: value in ("slice", "max")),
            "axis": given(1, whole(0, 2)),
            "position": given(1, optional(whole(0, 2))),
        },
    )
    yield Door(
        "iba_core.plot_words",
        _with_matplotlib(iba_core.plot_words),
        {
            "words": given(
                ("a", "b"), lambda value: isinstance(value, np.ndarray) and value.dtype.kind == "U", ("bits",)
            ),
            "bits": given(np.array([1.0, 2.0]), array(shape=(2,)), ("words",)),
            "ax": given(None, optional(nothing)),
            "columns": given(60, whole(1, 1000)),
            "vmax": given(None, optional(number(above=0))),
        },
    )
    yield door("iba_core.datasets.Run", folder=A(lambda: folder() / "run", is_path))
    yield door("iba_core.datasets.Run.open", folder=A(_run, nothing))
    yield door(
        "iba_core.report.write_report",
        run=A(_run, nothing, ("folder",)),
        out=A(lambda: "report", optional(is_path)),
        title=given("title", optional(name)),
        progbar=given(False, boolean),
    )
    yield door(
        "iba_core.pictures.plotting.save_overlay",
        path=A(lambda: new_file("png"), is_path),
        picture=given(PICTURE, lambda value: array()(value) and np.shape(value)[:2] == (8, 8)),
        maps=given({"map": MAP}),
        title=given("title", text),
        subtitle=given("title", text),
        vmax=given(1.0, optional(number(above=0))),
    )
    yield door(
        "iba_core.pictures.cam.show_cam_on_image",
        img=given(np.full((8, 8, 3), 0.5), lambda value: array(shape=(8, 8, 3))(value) and _unit(value)),
        mask=given(MAP, lambda value: array(shape=(8, 8))(value) and _unit(value)),
        use_rgb=FLAG,
        colormap=given("jet", whole(0, 21)),
        image_weight=FRACTION,
    )
    yield door("iba_core.pictures.cam.deprocess_image", img=given(MAP, array()))
    yield door(
        "iba_core.pictures.opencv_colours.opencv_colours", number=given(2, whole(0, 21), ("colormap",))
    )


def _empty(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and not np.size(value)


def _unit(value: Any) -> bool:
    return bool(np.min(value) >= 0 and np.max(value) <= 1)


def _before_download(function: Callable[..., Any], **arguments: Any) -> Any:
    """A function that downloads: without a network, that ends in its own error, which is no fault."""
    try:
        with patch("pooch.retrieve", side_effect=OSError):
            return function(**arguments)
    except iba_core.IBAError as error:
        if "downloaded" in str(error):
            return None
        raise


def _with_matplotlib(function: Callable[..., Any]) -> Callable[[], Callable[..., Any]]:
    def closing(**arguments: Any) -> None:
        import matplotlib as mpl
        from matplotlib import pyplot

        mpl.use("Agg")
        try:
            function(**arguments)
        finally:
            pyplot.close("all")

    return const(closing)


def _embeddings() -> Iterator[Door]:
    path = "iba_core.concepts.ConceptEmbedding"
    yield door(
        path,
        normal_vec=given(
            np.array([3.0, 4.0]),
            lambda value: array()(value) and np.ndim(value) > 0 and bool(np.any(value)),
        ),
        support_factor=given(
            1.0, either(number(), lambda value: array()(value) and np.size(value) == 1), ("bias",)
        ),
        scaling_factor=given(
            1.0, lambda value: array()(value) and np.size(value) == 1 and bool(np.any(value))
        ),
        kernel_size=given((1, 1), optional(nothing)),
        concept_name=given("face", optional(name)),
        layer_id=given("conv", optional(name)),
    )
    yield door(
        f"{path}.distance",
        plane,
        point=given(np.ones((5, 2)), lambda value: array()(value) and np.shape(value)[-1:] == (2,)),
    )
    for method in ("angle", "cosine"):
        yield door(f"{path}.{method}", plane, other=A(plane))
    yield door(
        f"{path}.same_hyperplane",
        plane,
        other=A(plane),
        tolerance=given(1e-6, number(0)),
    )
    several = A(lambda: [plane(), [plane()]])
    for method in ("mean", "mean_by_angle", "mean_by_distance"):
        yield door(f"{path}.{method}", embeddings=several)
    for method in ("variance", "std_deviation"):
        yield door(f"{path}.{method}", embeddings=several, ddof=given(1, whole(0, 1)))
    yield door(
        f"{path}.save",
        plane,
        filepath=A(new_file, is_path, ("path",)),
        overwrite=FLAG,
    )
    yield door(
        f"{path}.load",
        const(c.ConceptEmbedding),
        filepath=A(lambda: folder() / "plane.safetensors", nothing, ("path",)),
    )


_AXES = given("channels_first", optional(nothing))
_THRESHOLD = given(0.0, number())
LOSSES: dict[str, dict[str, Argument]] = {
    "Net2VecLoss": {
        "factor_pos_class": FRACTION,
        "reduction": REDUCTION,
        "target_thresh": _THRESHOLD,
        "data_format": _AXES,
    },
    "TverskyLoss": {
        "factor_false_positives": FRACTION,
        "reduction": REDUCTION,
        "target_thresh": _THRESHOLD,
        "from_logit": FLAG,
        "smooth": given(0.0, number(0)),
        "data_format": _AXES,
    },
    "BalancedBCELoss": {
        "factor_pos_class": given(0.5, optional(number(0, 1))),
        "reduction": REDUCTION,
        "from_logit": FLAG,
        "soft_weights": FLAG,
    },
    "BalancedPenaltyReducedFocalLoss": {
        "factor_pos_class": FRACTION,
        "alpha": given(2, lambda value: number(0)(value) and (value == 0 or value >= 1)),
        "beta": given(4, number(0)),
        "from_logit": FLAG,
    },
    "IoU": {
        "reduction": REDUCTION,
        "output_thresh": _THRESHOLD,
        "label_thresh": _THRESHOLD,
        "smooth": given(1e-6, number(0)),
        "data_format": _AXES,
    },
    "SetIoU": {
        "output_thresh": _THRESHOLD,
        "label_thresh": _THRESHOLD,
        "smooth": given(1e-6, number(0)),
    },
    "WeightedLossSum": {
        "losses": A(lambda: [c.Net2VecLoss(), c.TverskyLoss()]),
        "weights": given([1.0, 2.0], optional(numbers((2,)))),
    },
}
"""Arguments of the losses and metrics of masks, which every framework has."""


def losses(package: str) -> Iterator[Door]:
    """Losses and metrics of masks of a package."""
    for kind, arguments in LOSSES.items():
        yield door(f"{package}.{kind}", **arguments)


def _losses() -> Iterator[Door]:
    yield from losses("iba_core.concepts")
    for kind in LOSSES:
        if kind != "WeightedLossSum":
            yield door(f"iba_core.concepts.{kind}.forward", getattr(c, kind), **LOSS_INPUTS)
    yield door("iba_core.concepts.SetIoU.update", c.SetIoU, **LOSS_INPUTS)


_PREPARED = {"preprocessing": given(images.Preprocessing(size=(8, 8))), "data_format": DATA_FORMAT}
_REL_SIZE = given((0.5, 0.5), optional(numbers((2,), number(above=0, most=1))))


def _segmentation_data() -> Iterator[Door]:
    yield door(
        "iba_core.concepts.SegmentationData",
        images=given(IMAGES, lambda value: hasattr(value, "__len__") and len(value) == 4),
        masks=given(MASKS, lambda value: array((3,), finite=False)(value) and len(value) == 4),
    )
    data = concept().train_data
    yield door("iba_core.concepts.SegmentationData.batches", const(data), batch_size=given(2, whole(1)))
    yield door("iba_core.concepts.SegmentationData.mask", const(data), index=given(1, whole(-4, 3)))
    yield door(
        "iba_core.concepts.SegmentationData.masks_of_shape",
        const(data),
        shape=given((4, 4), numbers((2,), whole(1))),
    )
    pair = given((IMAGES, MASKS), nothing, ("images", "masks"))
    maybe = given(None, optional(nothing), ("images", "masks"))
    yield door(
        "iba_core.concepts.SegmentationConcept2D",
        name=given("dot", name),
        train_data=pair,
        val_data=maybe,
        test_data=maybe,
        rel_size=_REL_SIZE,
    )


def _segmentation_files() -> Iterator[Door]:
    pictures = np.stack([PICTURE] * 4)
    yield door(
        "iba_core.concepts.SegmentationConcept2D.from_pictures",
        const(c.SegmentationConcept2D),
        name=given("dot", name),
        pictures=given(list(pictures), nothing, why="4 pictures"),
        masks=given(list(pictures[..., 0]), nothing, ("source",)),
        **_PREPARED,
        negatives=given((), lambda value: isinstance(value, (list, tuple, np.ndarray)), why="read later"),
        validation=given(0.25, number(0, below=0.75)),
        test=given(0.25, number(0, below=0.75)),
        seed=SEED,
        rel_size=_REL_SIZE,
    )
    yield Door(
        "iba_core.concepts.SegmentationConcept2D.from_folders",
        const(partial(c.SegmentationConcept2D.from_folders, validation=0, test=0)),
        {
            "name": given("dot", name),
            "images": A(lambda: folder() / "class", nothing, ("folder", *NO_FILE)),
            "masks": A(lambda: folder() / "class", nothing, ("folder", *NO_FILE)),
            **_PREPARED,
        },
    )
    source = {
        "images": A(lambda: annotations().parent, nothing, ("folder", *NO_FILE)),
        "annotations": A(annotations, nothing, ("folder", *NO_FILE)),
        "category": given("cat", either(name, whole())),
        "boxes": given(False, boolean),
        "crowds": given(True, boolean),
    }
    yield Door("iba_core.concepts.annotated_pictures", const(c.annotated_pictures), source)
    yield Door(
        "iba_core.concepts.SegmentationConcept2D.from_annotations",
        const(partial(c.SegmentationConcept2D.from_annotations, validation=0, test=0)),
        {
            "name": given("cat", name),
            **source,
            **_PREPARED,
            "category": given("cat", optional(either(name, whole()))),
            "limit": given(1, optional(whole(1))),
        },
    )


def _training() -> Iterator[Door]:
    yield door(
        "iba_core.concepts.TrainingSettings",
        epochs=COUNT,
        batch_size=given(2, whole(1)),
        learning_rate=given(0.1, number(above=0, most=1e12)),
        weight_decay=RATE,
        patience=given(2, whole(1)),
        loss=given(np.mean, function),
        seed=SEED,
    )
    yield door(
        "iba_core.concepts.face_concept",
        **_PREPARED,
        sizes=given((1, 1, 1), numbers((3,), whole(1))),
        seed=SEED,
    )


def _heatmaps() -> Iterator[Door]:
    heatmap = given(MAP, lambda value: array(shape=MAP.shape)(value) and _unit(value))
    picture = given(PICTURE, lambda value: array()(value) and np.shape(value)[:2] == (8, 8))
    yield Door(
        "iba_core.concepts.plot_heatmap",
        _with_matplotlib(c.plot_heatmap),
        {
            "picture": picture,
            "heatmap": heatmap,
            "title": given("a", text),
            "ax": given(None, optional(nothing)),
        },
    )
    yield door(
        "iba_core.concepts.save_heatmap",
        path=A(lambda: new_file("png"), is_path),
        picture=picture,
        heatmap=heatmap,
        title=given("a", text),
        bits=given(MAP, optional(lambda value: array(shape=MAP.shape)(value) and np.min(value) >= 0)),
    )


def _texts() -> Iterator[Door]:
    tokens = given(("a", "##b"), lambda value: isinstance(value, np.ndarray) and value.dtype.kind == "U")
    bits = given(np.array([1.0, 2.0]), array(shape=(2,)))
    yield door("iba_core.text.TokenBits", tokens=tokens, bits=bits)
    yield door("iba_core.text.TokenBits.of_pieces", pieces=tokens, bits=bits, continuation=given("##", text))
    yield door(
        "iba_core.text.TokenBits.top",
        const(TokenBits(("a", "b"), np.array([1.0, 2.0]))),
        count=given(1, whole()),
    )


def doors() -> list[Door]:
    """All doors of the core that need no model."""
    parts = (
        *(_targets, _statistics, _estimator, _images, _preparing, _drawing, _embeddings),
        *(_losses, _segmentation_data, _segmentation_files, _training, _heatmaps, _texts),
    )
    return [door for part in parts for door in part()]
