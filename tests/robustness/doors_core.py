"""The public doors of `iba_core`, with arguments that are right."""

from __future__ import annotations

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
    ClassTarget,
    DistributionTarget,
    LogitTarget,
    RegressionTarget,
    ScoreTarget,
    SegmentationTarget,
    Statistics,
    SumTarget,
    Tokens,
    WelfordEstimator,
)
from iba_core import concepts as c
from iba_core.framework.allocator import keep_freed_memory
from iba_core.pictures import cam, images, plotting
from iba_core.text import TokenBits
from tests.robustness.walk import Door
from tests.robustness.wrong_values import (
    Argument,
    anything,
    array,
    boolean,
    either,
    function,
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


def new_file(suffix: str = "safetensors") -> Path:
    """A file that can be written."""
    return folder() / f"new.{suffix}"


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


DATA_FORMAT = A(const("channels_first"))
NO_FILE = ("path", "does not exist", "is a folder")
"""What a message says of a file that it names; the name of the argument would add nothing."""

SEED = A(const(3), whole(0, 2**64 - 1))
OPTIONAL_SEED = A(const(3), optional(whole(0, 2**64 - 1)))
FLAG = A(const(True), boolean)
COUNT = A(const(2), whole(1, 10**6))
RATE = A(const(1.0), number(0, 1e12))

SETTINGS: dict[str, Argument] = {
    "beta": RATE,
    "steps": COUNT,
    "samples": COUNT,
    "learning_rate": RATE,
    "initial_alpha": A(const(5.0), number(-80, 80)),
    "min_std": A(const(0.01), number(0, 1e12)),
    "smooth_std": A(const(1.0), optional(number(0, 1e4))),
    "normalize_beta": FLAG,
    "active_neurons_threshold": A(const(0.01), number(0, below=1)),
    "antithetic": FLAG,
    "early_steps": A(const(1), whole(0, 10**6)),
    "early_samples": COUNT,
    "tolerance": A(const(0.1), number(0, 1e12)),
    "precision": A(const(None), optional(nothing)),
}

FRACTION = A(const(0.5), number(0, 1))
LOSS_INPUTS = {
    "outputs": A(
        const(MASKS * 0.5), array(shape=MASKS.shape, finite=False), why="infinite logits are certain"
    ),
    "targets": A(const(MASKS), array(shape=MASKS.shape, finite=False)),
}
REDUCTION = A(const("mean"), function, why="a function of the values")

OUTPUT = A(const(OUTPUTS), array((2,)))


def _targets() -> Iterator[Door]:
    classes = A(const(1), either(optional(whole()), array((0, 1))), ("target",))
    activation = A(const("softmax"), optional(nothing))
    yield Door("iba_core.ClassTarget", const(ClassTarget), {"classes": classes, "activation": activation})
    yield Door("iba_core.LogitTarget", const(LogitTarget), {"classes": classes, "activation": activation})
    yield Door("iba_core.DistributionTarget", const(DistributionTarget), {"activation": activation})
    yield Door(
        "iba_core.RegressionTarget",
        const(RegressionTarget),
        {"values": A(const(OUTPUTS), optional(array())), "images": A(const(slice(None)))},
    )
    yield Door(
        "iba_core.SegmentationTarget",
        const(SegmentationTarget),
        {
            "index": A(const(1), whole()),
            "mask": A(const(MASKS[0]), lambda value: array((2,))(value) and set(np.ravel(value)) <= {0, 1}),
            "data_format": DATA_FORMAT,
        },
    )
    yield Door("iba_core.ScoreTarget", const(ScoreTarget), {"score": A(const(np.sum), function)})
    yield Door(
        "iba_core.SumTarget",
        const(SumTarget),
        {
            "targets": A(
                const((LogitTarget(0), LogitTarget(1))),
                lambda value: isinstance(value, (list, np.ndarray)),
                ("weights",),
                why="entries may be classes, and not as many as there are weights",
            ),
            "weights": A(const((1.0, 2.0)), optional(numbers((2,)))),
        },
    )
    yield Door(
        "iba_core.concepts.ClassifierOutputTarget",
        const(c.ClassifierOutputTarget),
        {
            "category": A(const(1), optional(whole())),
            "layer": A(const(None), anything, why="looked up at use"),
        },
    )
    for kind in ("SimilarityToConceptTarget", "DifferenceFromConceptTarget"):
        yield Door(
            f"iba_core.concepts.{kind}",
            const(getattr(c, kind)),
            {
                "features": A(const(OUTPUTS[0]), lambda value: array()(value) and bool(np.any(value))),
                "layer": A(const(None), anything, why="looked up at use"),
            },
        )
    yield Door(
        "iba_core.concepts.ConceptEmbeddingTarget",
        const(c.ConceptEmbeddingTarget),
        {
            "embedding": A(plane),
            "layer": A(const(None), anything, why="looked up at use"),
            "data_format": A(const("channels_first"), optional(nothing)),
        },
    )


def _statistics() -> Iterator[Door]:
    yield Door("iba_core.BottleneckSettings", const(BottleneckSettings), SETTINGS)
    yield Door(
        "iba_core.BottleneckSettings.override",
        const(BottleneckSettings().override),
        {name: A(rule.valid, optional(rule.accepts)) for name, rule in SETTINGS.items()},
    )
    yield Door(
        "iba_core.Statistics",
        const(Statistics),
        {
            "mean": A(const(np.zeros(3)), array(shape=(3,))),
            "std": A(const(np.ones(3)), lambda value: array(shape=(3,))(value) and np.min(value) >= 0),
            "active": A(
                const(np.ones(3, bool)),
                lambda value: array(shape=(3,))(value) and set(np.ravel(value)) <= {0, 1},
            ),
        },
    )
    yield Door(
        "iba_core.Statistics.of",
        const(Statistics.of),
        {"estimator": A(estimator), "active_neurons_threshold": A(const(0.01), number(0, 1), ("threshold",))},
    )
    yield Door(
        "iba_core.Tokens",
        const(Tokens),
        {"prefix": A(const(1), whole()), "grid": A(const((2, 2)), optional(numbers((1, 2, 3), whole(1))))},
    )
    yield Door(
        "iba_core.WelfordEstimator", const(WelfordEstimator), {"*": A(const((3,)), whole(1), ("shape",))}
    )
    batch = A(const(np.ones((2, 3))), lambda value: array()(value) and np.shape(value)[1:] == (3,))
    yield Door(
        "iba_core.WelfordEstimator.fit", lambda: estimator().fit, {"x": A(batch.valid, _rows_of_three)}
    )
    yield Door(
        "iba_core.WelfordEstimator.active_neurons",
        lambda: estimator().active_neurons,
        {"threshold": A(const(0.01), number(0, 1))},
    )
    yield Door("iba_core.WelfordEstimator.merge", lambda: estimator().merge, {"other": A(estimator)})
    yield Door(
        "iba_core.WelfordEstimator.load_state_dict",
        lambda: estimator().load_state_dict,
        {"state": A(lambda: estimator().state_dict())},
    )
    yield Door(
        "iba_core.WelfordEstimator.save",
        lambda: estimator().save,
        {
            "path": A(new_file, is_path),
            "metadata": A(dict, lambda value: isinstance(value, dict) or value is None),
        },
    )
    yield Door(
        "iba_core.WelfordEstimator.load",
        const(WelfordEstimator.load),
        {"path": A(lambda: folder() / "estimator.safetensors")},
    )
    yield Door(
        "iba_core.to_saliency_map",
        const(iba_core.to_saliency_map),
        {
            "capacity": A(const(RNG.random((3, 4, 4))), array((1, 2, 3, 4)), ("shape",)),
            "shape": A(const((8, 8)), optional(numbers((2,), whole(1)))),
            "data_format": DATA_FORMAT,
        },
    )


def _rows_of_three(value: Any) -> bool:
    try:
        found = np.asarray(value)
    except ValueError:
        return False
    return found.dtype.kind in "biuf" and found.shape[1:] == (3,) and bool(np.isfinite(found).all())


def _pictures() -> Iterator[Door]:
    picture = A(const(PICTURE), lambda value: isinstance(value, np.ndarray) and value.dtype == np.uint8)
    preprocessing = images.Preprocessing(size=(4, 4))
    readable = A(lambda: folder() / "picture.png", nothing, NO_FILE)
    yield Door("iba_core.load_image", const(iba_core.load_image), {"path": readable})
    yield Door("iba_core.sample_image", const(iba_core.sample_image), {"name": A(const("cat"))})
    yield Door(
        "iba_core.to_unit_interval", const(iba_core.to_unit_interval), {"x": A(const(OUTPUTS), array())}
    )
    yield Door(
        "iba_core.sample_crops",
        const(iba_core.sample_crops),
        {
            "n": A(const(2), whole(1)),
            "preprocessing": A(const(preprocessing)),
            "batch_size": A(const(2), whole(1)),
            "seed": SEED,
            "data_format": DATA_FORMAT,
        },
    )
    yield Door(
        "iba_core.pictures.images.Preprocessing",
        const(images.Preprocessing),
        {
            "size": A(const((4, 4)), numbers((2,), whole(1, 2**14))),
            "crop_fraction": A(const(1.0), number(above=0, most=1)),
            "channels": A(const(3)),
            "scale": A(const(1.0), number(above=0)),
            "mean": A(const((0.0,)), numbers((1, 3))),
            "std": A(const((1.0,)), numbers((1, 3), number(above=0))),
            "interpolation": A(const("bilinear")),
        },
    )
    yield Door(
        "iba_core.pictures.images.Preprocessing.preset",
        const(images.Preprocessing.preset),
        {
            "name": A(const("unit")),
            "size": A(const((4, 4)), numbers((2,), whole(1, 2**14))),
            "channels": A(const(3)),
        },
    )
    yield Door(
        "iba_core.pictures.images.Preprocessing.__call__",
        const(preprocessing),
        {"image": picture, "data_format": DATA_FORMAT},
    )
    yield Door("iba_core.pictures.images.Preprocessing.crop", const(preprocessing.crop), {"image": picture})
    yield Door(
        "iba_core.pictures.images.Preprocessing.inverse",
        const(preprocessing.inverse),
        {
            "x": A(const(np.ones((4, 4, 3))), lambda value: array((3,))(value) and np.shape(value)[-1] == 3),
            "data_format": A(const("channels_last")),
        },
    )
    yield Door(
        "iba_core.pictures.images.Preprocessing.random_crop",
        const(preprocessing.random_crop),
        {"image": picture, "generator": A(lambda: np.random.default_rng(0)), "data_format": DATA_FORMAT},
    )
    yield Door(
        "iba_core.pictures.images.image_files",
        const(images.image_files),
        {"folder": A(folder, nothing, NO_FILE)},
    )
    yield Door(
        "iba_core.pictures.images.image_batches",
        const(images.image_batches),
        {
            "files": A(lambda: [folder() / "picture.png"], _empty, NO_FILE),
            "preprocessing": A(const(preprocessing)),
            "batch_size": A(const(2), whole(1)),
            "data_format": DATA_FORMAT,
        },
    )
    yield Door(
        "iba_core.plot_saliency_map",
        _with_matplotlib(iba_core.plot_saliency_map),
        {
            "saliency_map": A(const(MAP), array(shape=MAP.shape), ("img",)),
            "img": A(
                const(PICTURE), optional(lambda value: array()(value) and np.shape(value)[:2] == (8, 8))
            ),
            "ax": A(const(None), optional(nothing)),
            "colorbar_label": A(const("bits"), text),
            "colorbar_fontsize": A(const(12), number(above=0, most=1000)),
            "min_alpha": A(const(0.2), number(0, 0.7)),
            "max_alpha": A(const(0.7), number(0.2, 1)),
            "vmax": A(const(1.0), optional(number(above=0))),
            "colorbar_size": A(const(0.3), number(above=0, most=100)),
            "colorbar_pad": A(const(0.1), number(0, 100)),
        },
    )
    yield Door(
        "iba_core.pictures.plotting.save_overlay",
        const(plotting.save_overlay),
        {
            "path": A(lambda: new_file("png"), is_path),
            "picture": A(const(PICTURE), lambda value: array()(value) and np.shape(value)[:2] == (8, 8)),
            "maps": A(const({"map": MAP})),
            "title": A(const("title"), text),
            "subtitle": A(const("title"), text),
            "vmax": A(const(1.0), optional(number(above=0))),
        },
    )
    yield Door(
        "iba_core.pictures.cam.show_cam_on_image",
        const(cam.show_cam_on_image),
        {
            "img": A(
                const(np.full((8, 8, 3), 0.5)), lambda value: array(shape=(8, 8, 3))(value) and _unit(value)
            ),
            "mask": A(const(MAP), lambda value: array(shape=(8, 8))(value) and _unit(value)),
            "use_rgb": FLAG,
            "colormap": A(const("jet")),
            "image_weight": FRACTION,
        },
    )
    yield Door(
        "iba_core.load_monkeys",
        const(partial(_before_download, iba_core.load_monkeys)),
        {
            "center_crop": FLAG,
            "size": A(const(224), optional(either(whole(1, 2**14), numbers((2,), whole(1))))),
            "pil": FLAG,
        },
    )
    yield Door(
        "iba_core.framework.allocator.keep_freed_memory",
        const(keep_freed_memory),
        {"limit": A(const(2**30), whole(-(10**400), 10**400))},
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
    nested = A(lambda: [plane(), [plane()]])
    yield Door(
        "iba_core.concepts.ConceptEmbedding",
        const(c.ConceptEmbedding),
        {
            "normal_vec": A(
                const(np.array([3.0, 4.0])),
                lambda value: array()(value) and np.ndim(value) > 0 and bool(np.any(value)),
            ),
            "support_factor": A(
                const(1.0), either(number(), lambda value: array()(value) and np.size(value) == 1), ("bias",)
            ),
            "scaling_factor": A(
                const(1.0), lambda value: array()(value) and np.size(value) == 1 and bool(np.any(value))
            ),
            "kernel_size": A(const((1, 1)), optional(nothing)),
            "concept_name": A(const("face"), optional(name)),
            "layer_id": A(const("conv"), optional(name)),
        },
    )
    yield Door(
        "iba_core.concepts.ConceptEmbedding.distance",
        const(plane().distance),
        {"point": A(const(np.ones((5, 2))), lambda value: array()(value) and np.shape(value)[-1:] == (2,))},
    )
    for method in ("angle", "cosine"):
        yield Door(
            f"iba_core.concepts.ConceptEmbedding.{method}",
            const(getattr(plane(), method)),
            {"other": A(plane)},
        )
    yield Door(
        "iba_core.concepts.ConceptEmbedding.same_hyperplane",
        const(plane().same_hyperplane),
        {"other": A(plane), "tolerance": A(const(1e-6), number(0))},
    )
    for method in ("mean", "mean_by_angle", "mean_by_distance"):
        yield Door(
            f"iba_core.concepts.ConceptEmbedding.{method}",
            const(getattr(c.ConceptEmbedding, method)),
            {"embeddings": nested},
        )
    for method in ("variance", "std_deviation"):
        yield Door(
            f"iba_core.concepts.ConceptEmbedding.{method}",
            const(getattr(c.ConceptEmbedding, method)),
            {"embeddings": nested, "ddof": A(const(1), whole(0, 1))},
        )
    yield Door(
        "iba_core.concepts.ConceptEmbedding.save",
        const(plane().save),
        {"filepath": A(new_file, is_path, ("path",)), "overwrite": FLAG},
    )
    yield Door(
        "iba_core.concepts.ConceptEmbedding.load",
        const(c.ConceptEmbedding.load),
        {"filepath": A(lambda: folder() / "plane.safetensors", nothing, ("path",))},
    )


def losses(package: str, module: Any) -> Iterator[Door]:
    """Losses and metrics of masks; every framework has them, with the same arguments."""
    data_format = A(const("channels_first"), optional(nothing))
    factor = {"factor_pos_class": FRACTION}
    threshold = A(const(0.0), number())
    arguments = {
        "Net2VecLoss": {
            **factor,
            "reduction": REDUCTION,
            "target_thresh": threshold,
            "data_format": data_format,
        },
        "TverskyLoss": {
            "factor_false_positives": FRACTION,
            "reduction": REDUCTION,
            "target_thresh": threshold,
            "from_logit": FLAG,
            "smooth": A(const(0.0), number(0)),
            "data_format": data_format,
        },
        "BalancedBCELoss": {
            "factor_pos_class": A(const(0.5), optional(number(0, 1))),
            "reduction": REDUCTION,
            "from_logit": FLAG,
            "soft_weights": FLAG,
        },
        "BalancedPenaltyReducedFocalLoss": {
            **factor,
            "alpha": A(const(2), lambda value: number(0)(value) and (value == 0 or value >= 1)),
            "beta": A(const(4), number(0)),
            "from_logit": FLAG,
        },
        "IoU": {
            "reduction": REDUCTION,
            "output_thresh": threshold,
            "label_thresh": threshold,
            "smooth": A(const(1e-6), number(0)),
            "data_format": data_format,
        },
        "SetIoU": {
            "output_thresh": threshold,
            "label_thresh": threshold,
            "smooth": A(const(1e-6), number(0)),
        },
        "WeightedLossSum": {
            "losses": A(lambda: [c.Net2VecLoss(), c.TverskyLoss()]),
            "weights": A(const([1.0, 2.0]), optional(numbers((2,)))),
        },
    }
    for kind, taken in arguments.items():
        yield Door(f"{package}.{kind}", const(getattr(module, kind)), taken)


def _concepts() -> Iterator[Door]:
    yield from losses("iba_core.concepts", c)
    for kind in (
        "Net2VecLoss",
        "TverskyLoss",
        "BalancedBCELoss",
        "BalancedPenaltyReducedFocalLoss",
        "IoU",
        "SetIoU",
    ):
        yield Door(f"iba_core.concepts.{kind}.forward", const(getattr(c, kind)().forward), LOSS_INPUTS)
    yield Door("iba_core.concepts.SetIoU.update", lambda: c.SetIoU().update, LOSS_INPUTS)
    yield Door(
        "iba_core.concepts.SegmentationData",
        const(c.SegmentationData),
        {
            "images": A(const(IMAGES), lambda value: hasattr(value, "__len__") and len(value) == 4),
            "masks": A(const(MASKS), lambda value: array((3,), finite=False)(value) and len(value) == 4),
        },
    )
    data = concept().train_data
    yield Door(
        "iba_core.concepts.SegmentationData.batches",
        const(data.batches),
        {"batch_size": A(const(2), whole(1))},
    )
    yield Door(
        "iba_core.concepts.SegmentationData.mask", const(data.mask), {"index": A(const(1), whole(-4, 3))}
    )
    yield Door(
        "iba_core.concepts.SegmentationData.masks_of_shape",
        const(data.masks_of_shape),
        {"shape": A(const((4, 4)), numbers((2,), whole(1)))},
    )
    pair = A(const((IMAGES, MASKS)), nothing, ("images", "masks"))
    maybe = A(const(None), optional(nothing), ("images", "masks"))
    rel_size = A(const((0.5, 0.5)), optional(numbers((2,), number(above=0, most=1))))
    yield Door(
        "iba_core.concepts.SegmentationConcept2D",
        const(c.SegmentationConcept2D),
        {
            "name": A(const("dot"), name),
            "train_data": pair,
            "val_data": maybe,
            "test_data": maybe,
            "rel_size": rel_size,
        },
    )
    pictures = np.stack([PICTURE] * 4)
    preparing = {
        "preprocessing": A(const(images.Preprocessing(size=(8, 8)))),
        "data_format": DATA_FORMAT,
    }
    yield Door(
        "iba_core.concepts.SegmentationConcept2D.from_pictures",
        const(c.SegmentationConcept2D.from_pictures),
        {
            "name": A(const("dot"), name),
            "pictures": A(const(list(pictures)), nothing, why="4 pictures"),
            "masks": A(const(list(pictures[..., 0])), nothing, ("source",)),
            **preparing,
            "validation": A(const(0.25), number(0, below=0.75)),
            "test": A(const(0.25), number(0, below=0.75)),
            "seed": SEED,
            "rel_size": rel_size,
        },
    )
    yield Door(
        "iba_core.concepts.SegmentationConcept2D.from_folders",
        const(partial(c.SegmentationConcept2D.from_folders, validation=0, test=0)),
        {
            "name": A(const("dot"), name),
            "images": A(lambda: folder() / "class", nothing, ("folder", *NO_FILE)),
            "masks": A(lambda: folder() / "class", nothing, ("folder", *NO_FILE)),
            **preparing,
        },
    )
    yield Door(
        "iba_core.concepts.TrainingSettings",
        const(c.TrainingSettings),
        {
            "epochs": COUNT,
            "batch_size": A(const(2), whole(1)),
            "learning_rate": A(const(0.1), number(above=0, most=1e12)),
            "weight_decay": RATE,
            "patience": A(const(2), whole(1)),
            "loss": A(const(np.mean), function),
            "seed": SEED,
        },
    )
    yield Door(
        "iba_core.concepts.face_concept",
        const(c.face_concept),
        {
            **preparing,
            "sizes": A(const((1, 1, 1)), numbers((3,), whole(1))),
            "seed": SEED,
        },
    )
    heatmap = A(const(MAP), lambda value: array(shape=MAP.shape)(value) and _unit(value))
    picture = A(const(PICTURE), lambda value: array()(value) and np.shape(value)[:2] == (8, 8))
    yield Door(
        "iba_core.concepts.plot_heatmap",
        _with_matplotlib(c.plot_heatmap),
        {
            "picture": picture,
            "heatmap": heatmap,
            "title": A(const("a"), text),
            "ax": A(const(None), optional(nothing)),
        },
    )
    yield Door(
        "iba_core.concepts.save_heatmap",
        const(c.save_heatmap),
        {
            "path": A(lambda: new_file("png"), is_path),
            "picture": picture,
            "heatmap": heatmap,
            "title": A(const("a"), text),
        },
    )


def _texts() -> Iterator[Door]:
    tokens = A(const(("a", "##b")), lambda value: isinstance(value, np.ndarray) and value.dtype.kind == "U")
    bits = A(const(np.array([1.0, 2.0])), array(shape=(2,)))
    yield Door("iba_core.text.TokenBits", const(TokenBits), {"tokens": tokens, "bits": bits})
    yield Door(
        "iba_core.text.TokenBits.of_pieces",
        const(TokenBits.of_pieces),
        {"pieces": tokens, "bits": bits, "continuation": A(const("##"), text)},
    )
    yield Door(
        "iba_core.text.TokenBits.top",
        const(TokenBits(("a", "b"), np.array([1.0, 2.0])).top),
        {"count": A(const(1), whole())},
    )


def doors() -> list[Door]:
    """All doors of the core that need no model."""
    return [*_targets(), *_statistics(), *_pictures(), *_embeddings(), *_concepts(), *_texts()]
