"""A case: a network, where to explain it, and on what; and what each backend has to offer the judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tests.generator.programs import Draw, Place, Program

Inputs = tuple[np.ndarray, ...]
Face = Callable[..., tuple[np.ndarray | None, ...]]
"""Explains a case by a class of the library, given further arguments of it: capacities (B, *feature map), the
model's losses (steps, B) where the class keeps them, and maps of the input where it makes some."""


@dataclass
class Signature:
    """What a model takes and gives.

    Attributes:
        kinds: for each input, ``"float"`` or the number of tokens that there are.
        shapes: of each input; without the batch axis where it is not shared.
        shared: whether all images share the input.
        axes: of the first input, such as "BCHW".
        end: what the main output ends in, ``"none"``, ``"softmax"`` or ``"sigmoid"``.
        classes: number of outputs.
        returns: what follows ``return``.
        main: finds the main output in the model's output.
    """

    kinds: list[str | int]
    shapes: list[tuple[int, ...]]
    shared: list[bool]
    axes: str
    end: str = "none"
    classes: int = 2
    returns: str = "x"
    main: Callable[[Any], Any] = lambda outputs: outputs

    def draw(self, generator: np.random.Generator, images: int, common: Inputs = ()) -> Inputs:
        """Inputs for some images. What they share is taken from `common`, where there is any."""
        drawn = []
        for index, (kind, shape) in enumerate(zip(self.kinds, self.shapes, strict=True)):
            if self.shared[index] and common:
                drawn.append(common[index])
                continue
            whole = shape if self.shared[index] else (images, *shape)
            if kind == "float":
                drawn.append(generator.normal(size=whole))
                continue
            words = generator.integers(0, kind, size=whole)
            # Word 0 can be padding, and a sentence of padding alone has no mean.
            words[..., 0] = np.maximum(words[..., 0], 1)
            drawn.append(words)
        return tuple(drawn)

    def one(self, inputs: Inputs, index: int) -> Inputs:
        """The inputs of one image of a batch."""
        return tuple(
            x if shared else x[index : index + 1] for x, shared in zip(inputs, self.shared, strict=True)
        )

    def copies(self, inputs: Inputs, count: int) -> Inputs:
        """The inputs of one image, several times."""
        return tuple(
            x if shared else np.repeat(x, count, axis=0)
            for x, shared in zip(inputs, self.shared, strict=True)
        )


@dataclass
class Settings:
    """Hyperparameters of an explanation."""

    beta: float
    steps: int
    samples: int
    learning_rate: float
    smooth_std: float
    seed: int
    kind: str
    """``"class"`` for the cross-entropy of a class, ``"logit"`` for an output that stays high."""


@dataclass
class Case:
    """A network and a layer of it, with the images and all else that an explanation takes."""

    number: int
    signature: Signature
    program: Program
    source: str
    layer: str
    place: Place
    readout_layers: list[str]
    inputs: Inputs
    batches: list[Inputs]
    targets: list[int]
    settings: Settings
    named: bool
    """Whether the model is called with keyword arguments."""
    independent: bool = True
    """Whether an image's outputs do not depend on the others of its batch."""

    @property
    def images(self) -> int:
        return len(self.inputs[0])

    @property
    def quirks(self) -> set[str]:
        return self.program.quirks

    def arguments(self, inputs: Inputs) -> Any:
        """Inputs as the library takes them."""
        if self.named:
            return dict(zip("xyz", inputs, strict=False))
        return inputs[0] if len(inputs) == 1 else inputs

    def __str__(self) -> str:
        shapes = [
            f"{'shared ' * shared}{x.dtype} {x.shape}"
            for x, shared in zip(self.inputs, self.signature.shared, strict=True)
        ]
        return (
            f"{self.source}\n\nlayer {self.layer!r} with axes {self.place.axes}, places {self.place.order}, "
            f"runs {self.place.calls}x; "
            f"inputs {', '.join(shapes)} ({'by name' if self.named else 'by position'}), "
            f"fitted on batches of {[len(batch[0]) for batch in self.batches]}\n"
            f"targets {self.targets}, {self.settings}\n"
            f"quirks: {', '.join(sorted(self.quirks)) or 'none'}"
        )


class Bench(ABC):
    """A backend as the judge sees it: a model that it runs by itself, and the library's classes for it.

    What is measured by `features`, `outputs`, `slope` comes from the whole model, with a hook that replaces
    the output of the layer. It has nothing to do with the library.
    """

    backend: ClassVar[str]

    def __init__(self, case: Case) -> None:
        self.case = case

    @classmethod
    @abstractmethod
    def draw(cls, number: int) -> Bench:
        """The case of a seed."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """The model that the library gets."""

    @abstractmethod
    def features(self, inputs: Inputs, layer: str) -> np.ndarray:
        """Features (B, *feature map) of a layer, named as the library names it."""

    @abstractmethod
    def outputs(self, inputs: Inputs) -> np.ndarray:
        """The model's main output (B, K)."""

    @abstractmethod
    def slope(
        self, inputs: Inputs, z: np.ndarray, loss: Callable[[Any, Any], Any]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Losses (N,) of the model with z, (N, *feature map), in place of the layer's output, and slopes.

        `loss` maps the main output and a namespace with exp, log and sum to the losses. None where they do
        not depend on z.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything about the model and the process that explaining must not change."""

    @abstractmethod
    def adapter(self, rewrites: bool) -> Any:
        """The library's adapter of the model."""

    @abstractmethod
    def faces(self) -> Iterator[tuple[str, type, Face]]:
        """The backend's own classes: a name, the class, and how to use it."""

    readout_class: ClassVar[type]

    @abstractmethod
    def readout(self, **options: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Capacities (B, *feature map) and maps by a readout bottleneck, and the weights of its network."""


def draw_settings(draw: Draw) -> Settings:
    """Few steps, of all kinds."""
    return Settings(
        beta=draw.choice((1.0, 10.0, 50.0)),
        steps=draw.choice((2, 3, 3)),
        samples=draw.choice((1, 2, 3, draw.common)),
        learning_rate=draw.choice((0.5, 1.0, 2.5)),
        smooth_std=draw.choice((0.0, 0.7, 1.0)),
        seed=draw.randrange(1000),
        kind="class" if draw.flip(0.8) else "logit",
    )


def draw_images(draw: Draw) -> int:
    """1 to 9 images, often as many as another axis is long."""
    return draw.common if draw.flip(0.4) else draw.randint(1, 9)


def draw_case(draw: Draw, number: int, program: Program, signature: Signature, source: str) -> Case:
    """Where to explain a network, and on what."""
    layer = draw.choice(sorted(program.places))
    place = program.places[layer]
    call = draw.randrange(place.calls)
    spatial = len(place.features) - 1
    fitting = [
        name
        for name, other in program.places.items()
        if other.calls == 1
        and not other.axes.startswith("(")
        and len(other.features) in ({1, spatial + 1} if spatial else {1, 2, 3})
    ]
    readout_layers = draw.sample(fitting, min(2, len(fitting))) if place.calls == 1 else []
    generator = np.random.default_rng(draw.randrange(2**32))
    images = draw_images(draw)
    inputs = signature.draw(generator, images)
    sizes = [draw.choice((images, draw.common, draw.randint(1, 5))) for _ in range(2)]
    sizes.append(max(1, 4 - sum(sizes)))
    batches = [signature.draw(generator, size, inputs) for size in sizes]
    settings = draw_settings(draw)
    one_of = 1 if settings.kind == "logit" and signature.classes == 1 else max(2, signature.classes)
    return Case(
        number=number,
        signature=signature,
        program=program,
        source=source,
        layer=layer if place.calls == 1 else f"{layer}:{call}",
        place=place,
        readout_layers=readout_layers,
        inputs=inputs,
        batches=batches,
        targets=[draw.randrange(one_of) for _ in range(images)],
        settings=settings,
        named=draw.flip(0.25),
        independent="batch statistics" not in program.quirks,
    )
