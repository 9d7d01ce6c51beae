"""Masks that a readout learns from: those of a per-sample explainer, each image explained once."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from iba_core.arguments import given
from iba_core.errors import InputError
from iba_core.framework.adapter import Inputs
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import arrays_of, batch_size, take

_SEED = 0
"""Of the teacher's noise."""


class Teacher(Protocol):
    """What explains single images, such as a fitted `iba_core.Explainer`."""

    @property
    def layer(self) -> str | None:
        """Name of the layer that its bottleneck comes after."""

    def explain(self, x: Inputs, target: Any = None, *, seed: int | None = None) -> Any:
        """Explain a batch of images; the result has their masks as `mask`."""


def require_teacher(teacher: Any) -> Teacher:
    """Check that an argument explains images.

    Raises:
        InputError: it does not.
    """
    if isinstance(teacher, type) or not callable(getattr(teacher, "explain", None)):
        raise InputError(f"{given('teacher', teacher)} must be a fitted iba_core.Explainer")
    found: Teacher = teacher
    return found


class TeacherMasks:
    """Gives a teacher's masks for batches, in any order, and explains each image once.

    Masks are kept in half precision, two bytes for each feature and image.

    Args:
        teacher: the explainer.
        framework: of the batches.
        layer: name of the layer that the masks must be of.
        shape: of its feature maps.

    Raises:
        InputError: the teacher's layer is another one.
    """

    def __init__(self, teacher: Teacher, framework: Framework, layer: str, shape: tuple[int, ...]) -> None:
        if teacher.layer != layer:
            raise InputError(
                f"teacher explains the layer {teacher.layer!r}, and the readout's bottleneck comes after "
                f"{layer!r}; give an explainer of that layer"
            )
        self._teacher, self._framework, self._shape = teacher, framework, shape
        self._known: dict[bytes, npt.NDArray[np.float16]] = {}

    def of(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Masks (B, *feature map) of a batch, from 0 to 1."""
        keys = [self._key(take(inputs, i, i + 1)) for i in range(batch_size(inputs))]
        if not self._known.keys() >= set(keys):
            masks = np.asarray(self._teacher.explain(inputs, seed=_SEED).mask)
            if masks.shape[1:] != self._shape:
                raise InputError(
                    f"teacher gives masks of shape {masks.shape[1:]}, and the bottleneck's features have "
                    f"{self._shape}; give an explainer of the same model"
                )
            self._known.update(zip(keys, masks.astype(np.float16), strict=True))
        return np.stack([self._known[key] for key in keys]).astype(np.float32)

    def _key(self, one: Inputs) -> bytes:
        content = hashlib.sha256()
        for array in arrays_of(one):
            content.update(np.ascontiguousarray(self._framework.to_numpy(array)).tobytes())
        return content.digest()
