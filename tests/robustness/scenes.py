"""What a user does with the library, as scenes that faults can be put into."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from iba_core import Explainer, IBAError
from iba_core.concepts import ConceptAnalysis, SegmentationConcept2D, locate, train_detection_model
from tests.backends import Backend
from tests.robustness.networks import LAYER, images, masks, network

QUICK = {"steps": 2, "samples": 2, "beta": 1.0}


@dataclass(frozen=True)
class Scene:
    """Something that a user does, and what must be true after it, however it has ended.

    Afterwards, everything is as if it had never begun, or as if it had been completed.

    Attributes:
        name: of the scene.
        model: what must not change.
        x: images for the model.
        make: makes what is acted on.
        act: what the user does.
        observe: arrays and texts that show how things are; it changes nothing.
        in_parts: whether things may also be as if the act had ended in its last step, as a training does that
            keeps whole epochs.
        draws: whether it draws from the framework's generator of random numbers.
        share: how often faults are put into it, relative to other scenes.
        kinds: of faults in the user's code that can happen in it.
        tries_noise: whether the model also runs on noise, which it need not take: an error then ends nothing.
        runs_alone: whether the user calls the model, and the library takes part from within. What the
            framework leaves of an interrupted call of its own is then its own matter.
    """

    name: str
    model: Any
    x: np.ndarray
    make: Callable[[], Any]
    act: Callable[[Any], Any]
    observe: Callable[[Any], Sequence[Any]]
    in_parts: bool = False
    draws: bool = False
    share: float = 1.0
    kinds: tuple[str, ...] = field(default=("call", "backward"))
    tries_noise: bool = False
    runs_alone: bool = False


def scenes(backend: Backend, folder: Path) -> Iterator[Scene]:
    """All scenes, each on the same model.

    Args:
        backend: the framework.
        folder: for files.
    """
    stage = _Stage(backend, folder)
    yield from stage.explaining()
    yield from stage.statistics()
    yield from stage.concepts()
    yield from stage.readouts()
    if backend.name == "torch":
        yield from stage.drawing()
        yield from stage.bottleneck()
    else:
        yield from stage.layers()


class _Stage:
    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        self.model = network(backend)
        self.x = images(backend, 2, seed=5)
        self.small = images(backend, 2, size=6, seed=6)
        self.explainer = self.fitted(images(backend, 12))
        self.kept = folder / "kept.safetensors"
        self.explainer.save(self.kept)

    def fitted(self, *batches: np.ndarray) -> Explainer:
        return Explainer(self.model, LAYER, **QUICK).fit(batches, progbar=False)

    def scene(
        self,
        name: str,
        make: Any,
        act: Any,
        observe: Any = None,
        *,
        share: float = 1.0,
        traces: bool = False,
        **others: Any,
    ) -> Scene:
        """A scene on the model; one that `traces` anew takes TensorFlow so long that it gets fewer faults."""
        observe = self.maps if observe is None else observe
        share = share / 3 if traces and self.backend.name != "torch" else share
        return Scene(name, self.model, self.x, make, act, observe, share=share, **others)

    def maps(self, explainer: Explainer) -> list[Any]:
        """The next explanation of images of two sizes; one of them is refused."""
        return [_outcome(lambda x=x: explainer.explain(x, 1, seed=3).capacity) for x in (self.x, self.small)]

    def one_map(self, explainer: Any) -> list[Any]:
        return [self.explainer.explain(self.x, 1, seed=3).capacity]

    # -- the explainer ------------------------------------------------------------------------------

    def explaining(self) -> Iterator[Scene]:
        same = lambda: self.explainer  # noqa: E731  # one line for each scene
        fresh = lambda: Explainer(self.model, LAYER, estimator=self.explainer.estimator, **QUICK)  # noqa: E731
        x, batches = self.x, [(self.x, [0, 1]), (self.x[:1], [2]), self.x[:1]]
        yield self.scene("explain", same, lambda e: e.explain(x, 1, seed=0), self.one_map, share=6)
        yield self.scene(
            "explain in parts", same, lambda e: e.explain(x, seed=0, max_batch=2), self.one_map, share=2
        )
        yield self.scene("explain first", fresh, lambda e: e.explain(x, 1, seed=0), traces=True)
        every = lambda e: [*e.explain_iter(batches, seed=0, progbar=False)]  # noqa: E731
        yield self.scene("explain_iter", same, every, share=2)
        yield self.scene(
            "predict",
            same,
            lambda e: e.predict(e.adapter.to_inputs(x)),
            self.one_map,
            kinds=("call",),
            share=2,
        )
        layers = lambda e: e.adapter.layers(e.adapter.to_inputs(x))  # noqa: E731
        yield self.scene("layers", fresh, layers, self.one_map, kinds=("call",))
        yield self.scene("copy", same, copy.deepcopy, self.one_map, kinds=(), draws=True, share=0.5)

    def statistics(self) -> Iterator[Scene]:
        other = self.fitted(images(self.backend, 6, size=6, seed=1))
        path, source = self.folder / "statistics.safetensors", self.folder / "other.safetensors"
        loaded = self.folder / "loaded.safetensors"
        loaded.touch()
        other.save(source)
        fresh = self.loaded
        batches = [images(self.backend, 3, size=6, seed=seed) for seed in (1, 2)]
        fit = lambda e: e.fit(batches, progbar=False)  # noqa: E731
        yield self.scene("fit", fresh, fit, share=2, traces=True, kinds=("call",), tries_noise=True)
        choose = lambda e: Explainer.fit(e, batches, progbar=False)  # noqa: E731
        bare = lambda: Explainer(self.model, **QUICK)  # noqa: E731
        yield self.scene(
            "fit without a layer",
            bare,
            choose,
            kinds=("call",),
            share=0.3,
            traces=True,
            tries_noise=True,
        )

        def written() -> Explainer:
            self.explainer.save(path)
            return other

        @cache
        def maps_of(content: bytes) -> list[Any]:
            # The same bytes are loaded once: TensorFlow traces anew for each explainer.
            loaded.write_bytes(content)
            return self.maps(fresh().load(loaded))

        def read(_: Any) -> list[Any]:
            return [*maps_of(path.read_bytes()), sorted(map(str, path.parent.iterdir()))]

        yield self.scene("save", written, lambda e: e.save(path), read, kinds=())
        yield self.scene("load", fresh, lambda e: e.load(source), kinds=())

    def loaded(self) -> Explainer:
        """Another explainer of the same model with the same statistics and the shape of the inputs."""
        return Explainer(self.model, LAYER, **QUICK).load(self.kept)

    # -- concepts -----------------------------------------------------------------------------------

    def concepts(self) -> Iterator[Scene]:
        module, x = self.backend.module("concepts"), self.x
        cam = module.GradCAM(self.model, [LAYER])
        yield self.scene(
            "activation maps", lambda: cam, lambda c: c(x, [1, 2]), lambda c: [c(x, [0, 3])], share=2
        )
        parts = [(images(self.backend, n, seed=n), masks(n, seed=n)) for n in (8, 4)]
        concept = SegmentationConcept2D("bright", *parts)
        options = {"epochs": 2, "progbar": False}
        analysis = ConceptAnalysis(concept, self.model, [LAYER], **options)
        plane = analysis.run().best.embedding
        find = lambda _: [locate(self.model, plane, x)]  # noqa: E731
        yield self.scene("locate", lambda: None, find, find, kinds=("call",))
        yield self.scene("analysis", lambda: analysis, lambda a: a.run(), find, kinds=("call",), share=0.3)
        in_files = ConceptAnalysis(concept, self.model, [LAYER], cache=self.folder, **options)
        yield self.scene(
            "analysis in files",
            lambda: in_files,
            lambda a: a.run(),
            lambda a: [*find(a), sorted(map(str, self.folder.iterdir()))],
            kinds=("call",),
            share=0.2,
        )

        def detector() -> Any:
            made = module.ConceptDetectionModel2D(concept, self.model, layer_id=LAYER, kernel_size=(1, 1))
            rng = np.random.default_rng(0)
            made.load_hyperplanes(*(rng.normal(size=part.shape) for part in made.hyperplanes()))
            return made

        yield self.scene(
            "training of a concept",
            detector,
            lambda d: train_detection_model(d, **options),
            lambda d: [*d.hyperplanes(), *find(d)],
            kinds=("call",),
            share=0.3,
        )

    # -- readouts -----------------------------------------------------------------------------------

    def readouts(self) -> Iterator[Scene]:
        x = self.backend.asarray(self.x)
        xs, ys = images(self.backend, 8, seed=2), np.arange(8) % 3
        is_torch = self.backend.name == "torch"
        loader = [(self.backend.asarray(xs[i : i + 4]), self.backend.asarray(ys[i : i + 4])) for i in (0, 4)]
        if is_torch:
            loss: Any = self.backend.torch.nn.functional.cross_entropy
        else:
            loss = self.backend.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        readouts: list[Any] = []

        def bare() -> Any:
            # Copies of the model would copy the hooks of all of them.
            while is_torch and readouts:
                readouts.pop().detach()
            layers = ["last" if not is_torch else "last.0", "logits"]
            readouts.append(self.backend.module().IBAReadout(LAYER, layers, self.model))
            return readouts[-1]

        known = bare()
        known.estimate(self.model, loader)
        first = copy.deepcopy(known.state_dict())

        def made() -> Any:
            readout = bare()
            readout.load_state_dict(first)
            return readout

        def look(readout: Any) -> list[Any]:
            return [_outcome(lambda: readout.analyze(x, self.model, mode="capacity")), *self.one_map(None)]

        def train(readout: Any) -> Any:
            return readout.fit(loader, loss, epochs=2, seed=1, progbar=False)

        others = [self.backend.asarray(images(self.backend, 4, seed=seed)) for seed in (7, 8)]
        again = lambda r: r.estimate(self.model, others)  # noqa: E731
        yield self.scene(
            "readout's estimate", made, again, look, kinds=("call",), draws=True, share=0.5, traces=True
        )
        seen = lambda r: r.analyze(x, self.model)  # noqa: E731
        yield self.scene("readout's analysis", made, seen, look, kinds=("call",), draws=True, traces=True)
        yield self.scene(
            "readout's training", made, train, look, in_parts=True, draws=True, share=0.3, traces=True
        )

    def drawing(self) -> Iterator[Scene]:
        """A model of PyTorch that draws random numbers: its dropout is always on."""
        torch = self.backend.torch

        class AlwaysOn(torch.nn.Dropout):  # type: ignore[misc,name-defined]  # known at run time only
            def forward(self, x: Any) -> Any:
                return torch.nn.functional.dropout(x, self.p, training=True)

        model, x = network(self.backend), self.x
        model.dropout = AlwaysOn(0.5)
        explainer = Explainer(model, LAYER, **QUICK).fit([x], progbar=False)
        maps = lambda e: [e.explain(x, 1, seed=3).capacity]  # noqa: E731
        explain = lambda e: e.explain(x, 1, seed=0)  # noqa: E731
        yield Scene("explain what draws", model, x, lambda: explainer, explain, maps)

    # -- the bottlenecks of the frameworks ------------------------------------------------------------

    def bottleneck(self) -> Iterator[Scene]:
        torch = self.backend.torch
        from iba_torch import IBA

        model, x, small = self.model, torch.from_numpy(self.x), torch.from_numpy(self.small)
        options = {"optimization_steps": 2, "batch_size": 2, "beta": 1.0}
        batches = [torch.from_numpy(images(self.backend, 6, seed=seed)) for seed in (0, 1)]
        others = [torch.from_numpy(images(self.backend, 6, size=6, seed=seed)) for seed in (0, 1)]

        def loss(inputs: Any) -> Any:
            return model(inputs)[:, 1].mean()

        made: list[Any] = []

        def bottleneck() -> Any:
            while made:
                made.pop().detach()
            iba = IBA(model.get_submodule(LAYER), **options)
            iba.estimate(model, batches)
            iba.analyze(x[:1], loss, seed=2)
            made.append(iba)
            return iba

        def in_evaluation() -> Any:
            iba = bottleneck()
            # A copy, whose hooks are those of the model. It is not made in the scene itself: an interrupt
            # while PyTorch copies a tensor leaves gradients off.
            iba.__dict__["copied"] = copy.deepcopy(model).eval()
            return iba

        def restricted(iba: Any) -> Any:
            inside = iba.__dict__.get("copied") or copy.deepcopy(model).eval()
            torch.manual_seed(0)
            with iba.restrict_flow():
                return inside(x[:1]).detach().numpy()

        def look(iba: Any) -> list[Any]:
            before = torch.get_rng_state()
            kept = [iba.alpha.numpy(), iba.model_losses, iba.informations, iba.capacity().numpy()]
            kept.append(_outcome(lambda: restricted(iba)))
            last = copy.deepcopy(iba.__dict__.get("alpha"))
            torch.set_rng_state(before)
            return [*kept, last.numpy(), *self.one_map(None)]

        def next_maps(iba: Any) -> list[Any]:
            twin = copy.copy(iba.state_dict())
            fresh = IBA(model.get_submodule(LAYER), **options)
            try:
                fresh.load_state_dict(twin)
                return [_outcome(lambda x=x: fresh.analyze(x, loss, seed=3)) for x in (x[:1], small[:1])]
            finally:
                fresh.detach()

        everything = lambda iba: [*look(iba), *next_maps(iba)]  # noqa: E731
        again = lambda iba: iba.estimate(model, others)  # noqa: E731
        yield self.scene("IBA.estimate", bottleneck, again, everything, kinds=("call",), share=0.4)
        seen = lambda iba: iba.analyze(x, loss, seed=4)  # noqa: E731
        yield self.scene("IBA.analyze", bottleneck, seen, everything, share=0.6)
        yield self.scene(
            "IBA.restrict_flow", in_evaluation, restricted, look, kinds=("call",), draws=True, share=0.6
        )

        def compiling() -> Any:
            # Once the compiler has been imported, compiled modules are kept from running.
            import torch._dynamo  # noqa: F401

            return bottleneck()

        yield self.scene("IBA.analyze with the compiler", compiling, seen, everything, share=0.5)

    def layers(self) -> Iterator[Scene]:
        import keras

        from iba_tf import IBACopy, IBALayer

        x, first, second = self.x, images(self.backend, 6), images(self.backend, 6, seed=9)
        options = {"steps": 2, "batch_size": 2, "beta": 1.0}

        layer = IBALayer(**options)
        outputs = self.model(keras.Input((None, None, 3)))  # the model as one layer, which stays as it is
        del outputs
        inner = keras.Model(self.model.input, self.model.get_layer(LAYER).output)
        features = layer(inner.output)
        pooled = keras.layers.GlobalAveragePooling2D()(features)
        keras.utils.set_random_seed(1)
        around = keras.Model(self.model.input, keras.layers.Dense(4)(pooled))
        layer.set_classification_loss(around.output)

        layer.fit(first)
        of_layer = copy.deepcopy(layer.state_dict())

        def in_layer() -> Any:
            layer.load_state_dict(copy.deepcopy(of_layer))
            layer.analyze(x[:1], target=1, seed=2)
            return layer

        def restricted(bottleneck: Any, run: Callable[[], Any]) -> Any:
            with bottleneck.restrict_flow():
                return run()

        def look(bottleneck: Any, run: Callable[[], Any]) -> list[Any]:
            free = np.asarray(run())
            # Not the numbers, which are noisy: a seed for them would make TensorFlow compile everything anew.
            is_restricted = not np.array_equal(free, np.asarray(restricted(bottleneck, run)))
            state = bottleneck.state_dict()
            return [free, is_restricted, np.asarray(run()), *_arrays(state), *self.one_map(None)]

        run_layer = lambda: around(x[:1])  # noqa: E731
        seen = lambda iba: look(iba, run_layer)  # noqa: E731
        fit = lambda iba: iba.fit(second)  # noqa: E731
        analyze = lambda iba: iba.analyze(x[1:], target=[0], seed=4)  # noqa: E731
        yield self.scene("IBALayer.fit", in_layer, fit, seen, kinds=("call",), draws=True, share=0.5)
        yield self.scene("IBALayer.analyze", in_layer, analyze, seen, draws=True, share=0.6)
        inside = lambda iba: restricted(iba, run_layer)  # noqa: E731
        yield self.scene(
            "IBALayer.restrict_flow",
            in_layer,
            inside,
            seen,
            kinds=("call",),
            draws=True,
            share=0.4,
            runs_alone=True,
        )

        copied = IBACopy(LAYER, None, graph=self.model, **options)
        copied.set_classification_loss()

        copied.fit(first)
        of_copy = copy.deepcopy(copied.state_dict())

        def in_copy() -> Any:
            copied.load_state_dict(copy.deepcopy(of_copy))
            copied.analyze(x[:1], {copied.target: 1}, seed=2)
            return copied

        run_copy = lambda: copied.predict(x[:1])  # noqa: E731
        seen_copy = lambda iba: look(iba, run_copy)  # noqa: E731
        yield self.scene("IBACopy.fit", in_copy, fit, seen_copy, kinds=("call",), draws=True, share=0.4)
        analyze_copy = lambda iba: iba.analyze(x[1:], {copied.target: [0]}, seed=4)  # noqa: E731
        yield self.scene("IBACopy.analyze", in_copy, analyze_copy, seen_copy, draws=True, share=0.5)
        make_copy = lambda _: IBACopy(LAYER, None, graph=self.model).fit(first)  # noqa: E731
        yield self.scene("IBACopy", lambda: None, make_copy, self.one_map, kinds=("call",), share=0.1)


def _outcome(function: Callable[[], Any]) -> Any:
    """What a function gives, or the library's sentence."""
    try:
        return np.asarray(function())
    except IBAError as error:
        return f"{type(error).__name__}: {error}"


def _arrays(state: Any) -> Iterator[Any]:
    """The arrays and numbers of a nested state."""
    if isinstance(state, dict):
        for value in state.values():
            yield from _arrays(value)
    elif state is not None and not callable(state):
        yield np.asarray(state)


def new_folder() -> Path:
    """A folder that ends with the process's other temporary files."""
    return Path(tempfile.mkdtemp(prefix="iba-robustness-"))
