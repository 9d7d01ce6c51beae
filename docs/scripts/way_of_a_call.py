"""The way of one warm call ``explain(x, target=3)`` through the files of the library.

    python docs/scripts/way_of_a_call.py [--write] [torch|tensorflow ...]

explains one image of a small network with two steps, twice to warm up, then once more under
``sys.setprofile``. It prints how often a call goes into another file of the library than the call before it,
and the files in the order in which they come up. What runs in NumPy, PyTorch or TensorFlow is not counted.
With ``--write`` the counts go into ``docs/architecture.md``, between the marks of a table.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from iba_core import Explainer

PACKAGES = ("iba_core", "iba_torch", "iba_tf")
NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
PAGE = Path(__file__).parents[1] / "architecture.md"
SIZE, CLASSES = 16, 5


def torch_model() -> Any:
    """A convolution, a bottleneck's place, and a classifier, in PyTorch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).eval()


def keras_model() -> Any:
    """The same in Keras."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 3))
    features = layers.Conv2D(8, 3, padding="same", activation="relu", name="features")(inputs)
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(features)
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(y)))


def file_of(frame: FrameType) -> str | None:
    """Path of a frame's file within the library, such as ``iba_core/explainer.py``; None outside of it."""
    parts = Path(frame.f_code.co_filename).parts
    for index, part in enumerate(parts):
        if part in PACKAGES:
            return "/".join(parts[index:])
    return None


class Way:
    """Notes each call into another file of the library than the call before, while it is the profiler.

    Attributes:
        files: in the order in which they were entered, without repetitions next to each other.
    """

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Called by the interpreter as a function starts or returns; only starts count."""
        if event == "call" and (file := file_of(frame)) is not None and self.files[-1:] != [file]:
            self.files.append(file)

    @property
    def changes(self) -> int:
        """How often the file changes."""
        return max(0, len(self.files) - 1)


def way(framework: str) -> Way:
    """The way of a warm call in a framework, ``"torch"`` or ``"tensorflow"``."""
    images = np.random.default_rng(0).normal(size=(8, 3, SIZE, SIZE)).astype(np.float32)
    if framework == "torch":
        model, layer = torch_model(), "1"
    else:
        model, layer, images = keras_model(), "features", images.transpose(0, 2, 3, 1)
    explainer = Explainer(model, layer=layer, steps=2).fit([images], progbar=False)
    for _ in range(2):
        explainer.explain(images[:1], target=3)
    found = Way()
    sys.setprofile(found)
    try:
        explainer.explain(images[:1], target=3)
    finally:
        sys.setprofile(None)
    return found


def write(ways: dict[str, Way]) -> None:
    """Put the counts into the table of the page on the architecture."""
    rows = [
        f"| {NAMES[framework]} | {way.changes} | {len(set(way.files))} |" for framework, way in ways.items()
    ]
    table = "\n".join(["| Framework | Changes of file | Files |", "|---|---:|---:|", *rows])
    text = PAGE.read_text(encoding="utf-8")
    marks = re.compile(r"(<!-- way -->\n).*?(<!-- /way -->)", re.DOTALL)
    PAGE.write_text(marks.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text), encoding="utf-8")


def main() -> None:
    """Count in the frameworks that the command line names, or in both."""
    wanted = [argument for argument in sys.argv[1:] if argument != "--write"] or list(NAMES)
    ways = {framework: way(framework) for framework in wanted}
    for framework, found in ways.items():
        order = list(dict.fromkeys(found.files))
        sys.stdout.write(f"{framework}: {found.changes} changes of file, {len(order)} files\n")
        for file in order:
            sys.stdout.write(f"    {file}\n")
    if "--write" in sys.argv:
        write(ways)


if __name__ == "__main__":
    main()
