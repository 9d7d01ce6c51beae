"""Random programs: the body of a model as lines of Python, with what is true of every layer in it.

A backend's parts append lines and layers to a program. Sizes are drawn so that axes often coincide with each
other and with the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

SIZES = (2, 3, 4, 5, 6, 8)

Order = tuple[tuple[int, bool], ...]
"""For each place axis, which of the input's it is, and whether it runs against it."""


class Draw(random.Random):
    """All random choices of a case. About half of the sizes are the same number, `common`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.common = self.choice(SIZES)

    def size(self) -> int:
        return self.common if self.flip(0.5) else self.choice(SIZES)

    def flip(self, chance: float) -> bool:
        return self.random() < chance


@dataclass(frozen=True)
class Place:
    """What is true of a layer's output: its axes, such as "BCHW", and how often the layer runs in a pass.

    `order` says which of the input's its place axes are; None where they are no longer the input's own.
    """

    axes: str
    calls: int = 1
    order: Order | None = None

    @property
    def features(self) -> str:
        """Axes of one image's feature map."""
        return "".join(axis for axis in self.axes if axis not in "B()")

    @property
    def data_format(self) -> str:
        return "channels_first" if self.features[0] == "C" else "channels_last"

    @property
    def channel_axis(self) -> int:
        return self.features.index("C")


@dataclass
class Program:
    """The body of a model or of a block: ``x`` goes in at the first line, and is what the last one leaves.

    Attributes:
        axes: axes of x now, one letter each: B images, C channels, H, W and T places.
        sizes: by letter.
        lines: the body.
        layers: by name.
        places: what is true of each layer's output, by name.
        quirks: what is not ordinary about the program, such as "data write".
        depth: 0 for a model, 1 for a block.
        separator: stands between the names of a block and of a layer in it.
        order: what the place axes of x are, see `Place`. It begins with the input's own.
    """

    draw: Draw
    axes: str
    sizes: dict[str, int]
    lines: list[str] = field(default_factory=list)
    layers: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    quirks: set[str] = field(default_factory=set)
    depth: int = 0
    separator: str = "."
    order: Order | None = None

    def __post_init__(self) -> None:
        if self.depth == 0:
            self.order = tuple((index, False) for index in range(len(self.places_shape)))

    @property
    def channels(self) -> int:
        return self.sizes["C"]

    @property
    def places_shape(self) -> tuple[int, ...]:
        return tuple(self.sizes[axis] for axis in self.axes if axis not in "BC")

    def turn(self, axes: str, **sizes: int) -> None:
        """x has other axes now."""
        before, self.axes = len(self.places_shape), axes
        self.sizes = {axis: sizes.get(axis, self.sizes.get(axis, 0)) for axis in axes if axis != "B"}
        if len(self.places_shape) != before:
            self.order = None

    def exchange(self) -> None:
        """Rows and columns of x are exchanged now."""
        self.sizes |= {"H": self.sizes["W"], "W": self.sizes["H"]}
        self.order = self.order and self.order[::-1]

    def reverse(self, place: int) -> None:
        """x runs the other way along a place axis now."""
        if self.order is not None:
            (index, against), order = self.order[place], list(self.order)
            order[place] = index, not against
            self.order = tuple(order)

    def line(self, text: str, quirk: str | None = None) -> None:
        self.lines.extend(text.split("\n"))
        if quirk is not None:
            self.quirks.add(quirk)

    def add(self, layer: Any, axes: str | None = None, calls: int = 1) -> str:
        """A name for a layer whose output has the given axes, by default those of x."""
        name = f"{type(layer).__name__.lower()}{len(self.layers)}"
        self.layers[name] = layer
        self.places[name] = Place(axes or self.axes, calls, self.order)
        return name

    def inner(self) -> Program:
        """The program of a block that starts with x as it is now."""
        own = self.draw, self.axes, dict(self.sizes)
        return Program(*own, depth=self.depth + 1, separator=self.separator, order=self.order)

    def take(self, name: str, inner: Program) -> None:
        """Take over what is true of a block that stands here under a name."""
        for child, place in inner.places.items():
            self.places[f"{name}{self.separator}{child}"] = Place(
                place.axes, place.calls * self.places[name].calls, place.order
            )
        self.quirks |= inner.quirks
        self.turn(inner.axes, **inner.sizes)


Part = Callable[[Program], Any]


class Parts:
    """The parts of one backend: for each form of x, what may come next. A part may decline by `False`."""

    def __init__(self) -> None:
        self._known: list[tuple[Part, tuple[str, ...], float]] = []

    def __call__(self, *axes: str, weight: float = 1.0) -> Callable[[Part], Part]:
        def register(part: Part) -> Part:
            self._known.append((part, axes, weight))
            return part

        return register

    def grow(self, program: Program, count: int, without: Iterable[Part] = ()) -> None:
        """Append some random parts to a program."""
        for _ in range(count):
            fitting = [
                (part, weight)
                for part, axes, weight in self._known
                if program.axes in axes and part not in without
            ]
            parts, weights = zip(*fitting, strict=True)
            program.draw.choices(parts, weights)[0](program)
