"""The public doors that take a model, the same in every framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

import numpy as np

from iba_core import Explainer, WelfordEstimator
from iba_core import concepts as c
from tests.backends import Activation, AveragePool, Backend, Conv, Dense, Flatten
from tests.robustness.doors_core import (
    CALLED,
    COUNT,
    FLAG,
    NO_FILE,
    OPTIONAL_SEED,
    SEED,
    SETTINGS,
    const,
    folder,
    is_path,
    losses,
    new_file,
)
from tests.robustness.walk import Door, door
from tests.robustness.wrong_values import (
    Argument,
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
SIDE, CLASSES = 8, 3
LAYERS = [
    Conv("conv", 4),
    Activation("relu"),
    AveragePool("pool", 2),
    Flatten("flat"),
    Dense("logits", CLASSES),
]
NO_IMAGES = ("an array of one axis", "an array of NaN", "an array of seven axes")
"""What the model itself refuses for its shape, with an error of its own, which passes unchanged."""

SLOW = {name: rule for name, rule in SETTINGS.items() if name in ("beta", "learning_rate", "normalize_beta")}
"""A few of the settings. All are walked at `BottleneckSettings`, through which all go."""


class Network:
    """A small network of a backend, with what its doors need."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.package = backend.package
        self.model = backend.network((SIDE, SIDE, 3), LAYERS)
        rng = np.random.default_rng(0)
        self.images = backend.images(rng.normal(size=(6, SIDE, SIDE, 3)).astype(np.float32))
        self.shape = self.images.shape[1:]
        self.features = backend.images(np.zeros((1, SIDE, SIDE, 4))).shape[1:]
        self.explainer = self.new_explainer()
        self.attribution = self.explainer.explain(self.images[:2], target=1, seed=0)

    def new_explainer(self) -> Explainer:
        """A fitted explainer."""
        return Explainer(self.model, "relu", steps=2, samples=2).fit([self.images], progbar=False)

    def is_images(self, value: Any) -> bool:
        """Whether it can be a batch of images, or one image."""
        if callable(value) or isinstance(value, (str, bytes, dict)) or not array()(value):
            return False
        shape = np.shape(value)
        return shape == self.shape or shape[1:] == self.shape

    def is_batches(self, value: Any) -> bool:
        """Whether `fit` can read it: an array is a single batch."""
        return self.is_images(value) and np.ndim(value) == 4

    def batches(self) -> Argument:
        """Batches of images that something is fitted to."""
        return A(lambda: [self.images], self.is_batches, ("the input", "x"))

    def has_classes(self, value: Any) -> bool:
        """Whether it is a class, or one for each of two images."""
        return value is None or callable(value) or array((0, 1))(value)


@cache
def network(kind: type[Backend]) -> Network:
    """The network of a backend, made once."""
    return Network(kind())


def _are_inputs(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and all(
        isinstance(entry, (str, int)) for entry in value
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and len(value) > 0 and all(map(name, value))


def _explainer(net: Network) -> Iterator[Door]:
    yield door(
        f"iba_core.Explainer[{net.package}]",
        model=given(net.model),
        layer=given("relu", optional(nothing)),
        backend=given(net.backend.name, optional(nothing)),
        estimator=A(WelfordEstimator, optional(nothing)),
        combine=given("mean"),
        tokens=given(None, optional(nothing)),
        preset=given("fast", optional(nothing)),
        data_format=given(net.backend.data_format, optional(nothing)),
        shared=given(None, optional(_are_inputs), why="looked up when the model runs"),
        output=given(None, optional(either(name, whole(-1))), why="looked up when the model runs"),
        class_names=given(None, optional(_are_names)),
        compile=given(False, boolean),
        warm_start=given(None, optional(nothing)),
        **SLOW,
    )
    yield door(
        f"iba_core.Explainer.fit[{net.package}]",
        net.new_explainer,
        batches=net.batches(),
        n_samples=given(5, whole(2)),
        progbar=given(False, boolean),
        until=given(0.9, optional(number(above=0, below=1))),
        target=given(None, optional(net.has_classes), why="a class, a function, or one class per image"),
    )


def _explanations(net: Network) -> Iterator[Door]:
    images = given(net.images[:2], net.is_images, ("the input", "input"))
    target = given(1, net.has_classes, why="a class, a function, or one class per image")
    pass_mask = given(np.zeros(net.features, bool), optional(array(shape=net.features)))
    overrides = {name: A(rule.valid, optional(rule.accepts)) for name, rule in SLOW.items()}
    options = {
        "seed": OPTIONAL_SEED,
        "pass_mask": pass_mask,
        "max_batch": given(8, optional(whole(1))),
        "progbar": given(False, boolean),
        "preset": given("fast", optional(nothing)),
    }
    yield door(
        f"iba_core.Explainer.explain[{net.package}]",
        const(net.explainer),
        x=images,
        target=target,
        **options,
        **overrides,
    )
    yield door(
        f"iba_core.Explainer.explain_iter[{net.package}]",
        const(net.explainer),
        batches=net.batches(),
        target=target,
        **{name: rule for name, rule in options.items() if name != "pass_mask"},
        pass_mask=A(pass_mask.valid, either(pass_mask.accepts, function)),
    )
    yield door(
        f"iba_core.Explainer.explain_seeds[{net.package}]",
        const(net.explainer),
        x=images,
        target=target,
        seeds=given(2, whole(2, 10**4)),
    )
    yield door(
        f"iba_core.Explainer.bits_error[{net.package}]",
        lambda: net.new_explainer().fit(net.images, progbar=False),
        x=images,
        target=target,
        seed=given(0, whole(0, 2**64 - 1)),
    )
    yield door(
        f"iba_core.Explainer.survival_curve[{net.package}]",
        const(net.explainer),
        x=images,
        target=target,
        betas=given((1, 10), numbers(each=number(0, 1e12))),
    )
    yield door(
        f"iba_core.combine_maps[{net.package}]",
        attributions=A(lambda: [net.attribution, net.attribution]),
        combine=given("mean"),
    )
    yield door(
        f"iba_core.CombinedAttribution[{net.package}]",
        parts=A(lambda: [net.attribution, net.attribution]),
        combine=given("mean"),
    )
    yield door(
        f"iba_core.compare[{net.package}]",
        attributions=A(lambda: {"a": net.attribution, "b": net.attribution}),
        picture=given(None, optional(nothing)),
        index=given(0, whole(0, 1)),
    )
    yield door(f"iba_core.Explainer.predict[{net.package}]", const(net.explainer), x=images)
    yield door(
        f"iba_core.Explainer.predict_restricted[{net.package}]",
        const(net.explainer),
        x=A(images.valid, lambda value: net.is_images(value) and len(value) == 2),
        attribution=given(net.attribution),
        samples=COUNT,
        seed=OPTIONAL_SEED,
        pass_mask=pass_mask,
    )


def _saved(net: Network) -> Iterator[Door]:
    yield door(
        f"iba_core.Explainer.save[{net.package}]",
        const(net.explainer),
        path=A(new_file, is_path),
        metadata=A(dict, optional(lambda value: isinstance(value, dict))),
    )
    saved = folder() / f"explainer-{net.package}.safetensors"
    net.explainer.save(saved)
    yield door(f"iba_core.Explainer.load[{net.package}]", net.new_explainer, path=given(saved))
    yield door(f"iba_core.Attribution.save[{net.package}]", const(net.attribution), path=A(new_file, is_path))
    stored = folder() / f"attribution-{net.package}.safetensors"
    net.attribution.save(stored)
    yield door(f"iba_core.Attribution.load[{net.package}]", path=given(stored))
    yield door(
        f"iba_core.Attribution.concatenate[{net.package}]",
        parts=A(lambda: [net.attribution, net.attribution]),
    )


def _images(net: Network) -> Argument:
    return given(net.images[:2], net.is_batches, ("the input", "input", "targets", "the output of layer"))


def _concepts(net: Network) -> Iterator[Door]:
    images = _images(net)
    learnt = plane4(net)
    maps = A(
        images.valid,
        lambda value: array((4,), finite=False)(value) and np.shape(value)[1:] == net.shape,
        images.called,
    )
    yield door(
        f"iba_core.concepts.ModelStump[{net.package}]",
        model=given(net.model),
        layer_id=given("relu", nothing, ("layer",)),
        backend=given(net.backend.name, optional(nothing)),
    )
    yield door(
        f"iba_core.concepts.ModelStump.maps[{net.package}]",
        const(c.ModelStump(net.model, "relu")),
        inputs=replace(maps, passes_on=NO_IMAGES),
    )
    yield door(
        f"iba_core.concepts.locate[{net.package}]",
        model=given(net.model),
        embeddings=given(learnt),
        inputs=images,
        layer=given("relu", optional(nothing)),
        backend=given(net.backend.name, optional(nothing)),
    )
    yield from losses(f"{net.package}.concepts")
    yield door(
        f"iba_core.concepts.ConceptAnalysis[{net.package}]",
        concept=A(lambda: concept_of(net)),
        model=given(net.model),
        layers=given(["relu"], optional(nothing), ("layer",)),
        kernel_size=given((1, 1), optional(numbers((2,), whole(1)))),
        folds=given(1, whole(1, 4)),
        ensemble_count=COUNT,
        use_laplace=given(False, boolean),
        use_bias=FLAG,
        cache=given(None, optional(nothing)),
        backend=given(net.backend.name, optional(nothing)),
        progbar=given(False, boolean),
        epochs=COUNT,
        learning_rate=given(0.1, number(above=0, most=1e12)),
    )


def _activation_maps(net: Network) -> Iterator[Door]:
    in_torch = {"use_cuda": given(False, boolean)} if net.package == "iba_torch" else {}
    own = {
        "GradCAM": {"shared": given(None, optional(_are_inputs))},
        "GradCAMPlusPlus": {"epsilon": given(0.0, number(0))},
        "ScoreCAM": {"batch_size": given(2, optional(whole(1)))},
        "AblationCAM": {"batch_size": given(2, optional(whole(1)))},
    }
    for kind, arguments in own.items():
        yield door(
            f"{net.package}.concepts.{kind}",
            model=given(net.model),
            target_layers=given(["relu"], optional(nothing), ("layer", "layers")),
            reshape_transform=given(None, optional(function)),
            **arguments,
            **in_torch,
        )
        made = resolve_name(f"{net.package}.concepts.{kind}")(net.model, ["relu"])
        yield door(
            f"{net.package}.concepts.{kind}.__call__",
            const(made),
            input_tensor=_images(net),
            targets=given([1, 1], net.has_classes, ("target",)),
            aug_smooth=given(False, boolean),
            eigen_smooth=given(False, boolean),
        )


def _detection(net: Network) -> Iterator[Door]:
    module = import_module(f"{net.package}.concepts")
    yield door(
        f"{net.package}.concepts.ConceptDetectionModel2D",
        concept=given(None, optional(nothing)),
        model=given(net.model, optional(nothing)),
        layer_id=given("relu", nothing, ("layer",)),
        kernel_size=given((1, 1), optional(numbers((2,), whole(1, 64)))),
        in_channels=given(4, whole(1, 10**6)),
        concept_name=given("dot", optional(name)),
        apply_sigmoid=FLAG,
        apply_padding=FLAG,
        ensemble_count=given(1, whole(1, 10**6)),
        use_laplace=given(False, boolean),
        use_bias=FLAG,
    )
    made = module.ConceptDetectionModel2D(in_channels=4, kernel_size=(1, 1), use_laplace=True)
    weight, bias = made.hyperplanes()
    factors = made.laplace_factors()
    yield door(
        f"{net.package}.concepts.ConceptDetectionModel2D.load_hyperplanes",
        const(made),
        weight=given(weight, array(shape=weight.shape)),
        bias=given(bias, array(shape=bias.shape)),
    )
    yield door(
        f"{net.package}.concepts.ConceptDetectionModel2D.load_laplace_factors",
        const(made),
        factors=given(factors, array(shape=factors.shape)),
    )
    yield door(
        f"{net.package}.concepts.ConceptDetectionModel2D.from_embedding",
        embeddings_list=A(lambda: [plane4(net)]),
        legacy_warnings=FLAG,
    )


def _training(net: Network) -> Iterator[Door]:
    made = import_module(f"{net.package}.concepts").ConceptDetectionModel2D
    model = partial(made, layer_id="relu", kernel_size=(1, 1))
    arguments = {
        "concept": A(lambda: concept_of(net), optional(nothing)),
        "cache": given(None, optional(lambda value: is_path(value) and isinstance(value, str))),
        "progbar": given(False, boolean),
    }
    yield Door(
        f"iba_core.concepts.train_detection_model[{net.package}]",
        const(partial(c.train_detection_model, epochs=1)),
        {"model": A(lambda: model(concept_of(net), net.model)), **arguments},
    )
    yield door(
        f"iba_core.concepts.approximate_posterior[{net.package}]",
        model=A(lambda: model(concept_of(net), net.model, use_laplace=True)),
        **arguments,
    )


def _selector(net: Network) -> Iterator[Door]:
    module = import_module(f"{net.package}.concepts")
    sizes = {
        name: given(2, whole(1, 10**6))
        for name in ("in_features", "memory_size", "exogenous_size", "out_features")
    }
    slots = given("slots")
    seeds = {"seed": given(1, optional(whole(0, 2**31 - 1)))} if net.package == "iba_tf" else {}
    yield door(
        f"{net.package}.concepts.SelectorZU",
        **sizes,
        temperature=given(1.0, number(above=0)),
        attention_over=slots,
        **seeds,
    )
    selector = module.SelectorZU(2, 2, 2, 2)
    selector(net.backend.asarray(np.zeros((1, 2), np.float32)))
    yield door(
        f"{net.package}.concepts.SelectorZU.load_arrays", const(selector), arrays=A(selector.to_arrays)
    )
    yield door(
        f"{net.package}.concepts.cam.preprocess_image",
        img=given(np.full((4, 4, 3), 0.5), lambda value: array((3,))(value) and np.shape(value)[-1] == 3),
        mean=given((0.5, 0.5, 0.5), numbers((3,))),
        std=given((0.5, 0.5, 0.5), numbers((3,), number(above=0))),
    )


def plane4(net: Network) -> c.ConceptEmbedding:
    """A hyperplane in the space of the layer."""
    return c.ConceptEmbedding([1.0, -1.0, 0.5, 0.0], bias=0.1, layer_id="relu")


def concept_of(net: Network) -> c.SegmentationConcept2D:
    """A concept with images of the network."""
    masks = np.zeros((6, SIDE, SIDE), np.float32)
    masks[:, 2:4, 2:4] = 1
    return c.SegmentationConcept2D("dot", (net.images, masks), (net.images, masks))


def readout_doors(net: Network, readout: Callable[[], Any], loss: Callable[..., Any]) -> Iterator[Door]:
    """The doors of a readout bottleneck; only its constructor differs between the frameworks."""
    labels = np.zeros(len(net.images), np.int64)
    pairs = A(
        lambda: [(net.backend.asarray(net.images), net.backend.asarray(labels))],
        nothing,
        ("loss", "batch", "data", "the input", "input"),
        passes_on=NO_IMAGES,
    )
    kind = f"{net.package}.IBAReadout"
    yield door(
        f"{kind}.estimate",
        readout,
        model=given(net.model, optional(nothing)),
        dataloader=net.batches(),
        n_samples=given(6, whole(2)),
        progbar=given(False, optional(boolean)),
        reset=FLAG,
        **{"device": given("cpu", optional(nothing))} if net.package == "iba_torch" else {},
    )
    fitted = readout()
    fitted.estimate(net.model, [net.images])
    yield door(
        f"{kind}.analyze",
        const(fitted),
        input_t=given(net.backend.asarray(net.images[:2]), net.is_batches, ("the input", "input")),
        model=given(None, optional(nothing)),
        mode=given("capacity"),
        pass_mask=given(np.zeros(net.features, bool), optional(array(shape=net.features))),
    )
    yield door(
        f"{kind}.fit",
        const(fitted),
        loader=pairs,
        loss=given(loss, passes_on=CALLED),
        epochs=given(1, whole(0, 10)),
        lr=given(1e-3, number(0, 1e12)),
        beta=given(1.0, optional(number(0, 1e12))),
        validation=given(None, optional(nothing), pairs.called, passes_on=NO_IMAGES),
        patience=given(1, whole(1)),
        checkpoint=given(None, optional(is_path)),
        seed=given(1, optional(whole(0, 2**63 - 1))),
        device=given(None, optional(nothing)),
        progbar=given(False, optional(boolean)),
        warm_up=given(1, whole()),
        beta_steps=given(1, optional(whole())),
        teacher=given(None, optional(nothing)),
        teacher_weight=given(1.0, number(0, 1e12)),
    )
    yield door(f"{kind}.save", const(fitted), path=A(new_file, is_path))
    saved = folder() / f"readout-{net.package}.safetensors"
    fitted.save(saved)
    yield door(f"{kind}.load", const(fitted), path=given(saved))
    yield door(
        "iba_core.readout.packaged.readout_from",
        path=given(saved),
        model=given(net.model),
    )


def _is_address(value: Any) -> bool:
    return value in ("auto", "local")


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, np.ndarray)) and len(value) > 0 and all(isinstance(e, str) for e in value)


def _datasets(net: Network) -> Iterator[Door]:
    classes = given(
        None,
        either(
            optional(whole()),
            lambda value: isinstance(value, (dict, list)) and value in ({"a": 1}, [None], ["a"]),
        ),
        ("target",),
    )
    yield door(
        f"iba_core.Explainer.map[{net.package}]",
        const(net.explainer),
        inputs=A(lambda: {"a": net.images[0]}, nothing, ("x", "the input", *NO_FILE)),
        out=A(lambda: folder() / f"mapped-{net.package}", is_path),
        targets=classes,
        strict=FLAG,
        progbar=given(False, boolean),
    )
    yield door(
        f"iba_core.Explainer.fit_dataset[{net.package}]",
        net.new_explainer,
        inputs=A(lambda: {"a": net.images[0], "b": net.images[1]}, nothing, ("x", "the input", *NO_FILE)),
        n_samples=given(2, whole(2)),
        preprocessing=given(None, optional(nothing)),
        batch_size=given(2, whole(1)),
        jobs=given(None, optional(whole(1, 1024))),
        ray=given(None, optional(_is_address)),
        gpus=given(0.0, number(0, 0)),
        progbar=given(False, boolean),
    )
    yield door(
        f"iba_core.datasets.explain_dataset[{net.package}]",
        explainer=given(net.explainer),
        inputs=A(lambda: {"a": net.images[0]}, nothing, ("x", "the input", *NO_FILE)),
        out=A(lambda: folder() / f"run-{net.package}", is_path),
        targets=classes,
        preprocessing=given(None, optional(nothing)),
        seed=SEED,
        jobs=given(None, optional(whole(1, 1024))),
        ray=given(None, optional(_is_address)),
        gpus=given(0.0, number(0, 0)),
        strict=FLAG,
        pictures=FLAG,
        vmax=given(1.0, optional(number(above=0))),
        class_names=given(list("abc"), optional(_are_texts)),
        model=given("net", optional(text)),
        statistics=given("mine", optional(text)),
        progbar=given(False, boolean),
        preset=given(None, optional(nothing)),
        **{name: A(rule.valid, optional(rule.accepts)) for name, rule in SLOW.items()},
    )


def doors(net: Network) -> list[Door]:
    """All doors that take a model of a backend."""
    parts = (
        *(_explainer, _explanations, _saved, _datasets),
        *(_concepts, _activation_maps, _detection, _training, _selector),
    )
    return [door for part in parts for door in part(net)]
