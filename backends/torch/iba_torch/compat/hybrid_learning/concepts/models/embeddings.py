"""Embeddings of concepts with the published constructor and files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from iba_core import concepts
from iba_core.arguments import given, require_bool
from iba_core.errors import InputError
from iba_core.files import as_path
from iba_core.state import interpreting
from iba_torch.compat.hybrid_learning.concepts.models import _files

__all__ = ["ConceptEmbedding"]

_FROM_OBJECTS = ("concept", "concept_name", "model_stump", "layer_id", "main_model")
"""Meta information that every embedding has, in the published order."""


class ConceptEmbedding(concepts.ConceptEmbedding):
    """`iba_core.concepts.ConceptEmbedding` with a state dictionary, the concept and the model.

    Version 2.0 gives the hyperplane as `state_dict` and the names in it, version 1.0 as `normal_vec` and
    `support_factor`, by name here.

    Args:
        state_dict: the weights of the convolution, arrays by name.
        kernel_size: (height, width) of the window; by default that of the normal vector.
        normal_vec_name: name of the normal vector in `state_dict`.
        bias_name: name of the bias in `state_dict`; None if there is none, so that it is 0.
        scaling_factor: s.
        normal_vec: n, instead of `state_dict`.
        support_factor: b, with `normal_vec`.
        meta_info: `concept`, `concept_name`, `model_stump`, `layer_id` and `main_model`, and any further
            information. The names follow from the objects, if they are not given.

    Attributes:
        state_dict: the weights.
        normal_vec: float64, read-only, in the shape of the weight: (1, C, height, width).
        concept: the concept, or None. All that is in `meta_info` is an attribute as well.

    Raises:
        InputError: there is no normal vector, or the hyperplane is no hyperplane.

    Example:
        >>> plane = ConceptEmbedding(
        ...     state_dict={"weight": [3.0, 4.0], "bias": -10.0},
        ...     kernel_size=(1,), normal_vec_name="weight", bias_name="bias", concept_name="face",
        ... )
        >>> plane.distance([2.0, 3.5]), plane.support_factor, plane.concept
        (10.0, 0.4, None)
        >>> plane == ConceptEmbedding(normal_vec=[3.0, 4.0], support_factor=0.4)
        True
    """

    def __init__(
        self,
        state_dict: Mapping[str, npt.ArrayLike] | None = None,
        kernel_size: Sequence[int] | None = None,
        normal_vec_name: str | None = None,
        bias_name: str | None = None,
        scaling_factor: npt.ArrayLike = 1.0,
        *,
        normal_vec: npt.ArrayLike | None = None,
        support_factor: npt.ArrayLike | None = None,
        **meta_info: Any,
    ) -> None:
        meta = _completed(meta_info)
        names: dict[str, Any] = {
            name: None if meta[name] is None else str(meta[name]) for name in ("concept_name", "layer_id")
        }
        if state_dict is None:
            if normal_vec is None:
                raise InputError(
                    "neither state_dict nor normal_vec is given; one of them holds the hyperplane"
                )
            super().__init__(normal_vec, support_factor, scaling_factor, **names)
            state_dict = {"weight": self.normal_vec, "bias": np.array(self.bias)}
            normal_vec_name, bias_name = "weight", "bias"
        else:
            normal = _entry(state_dict, "normal_vec_name", normal_vec_name)
            bias = 0.0 if bias_name is None else _entry(state_dict, "bias_name", bias_name)
            super().__init__(normal, None, scaling_factor, bias=bias, **names)
        self.state_dict: dict[str, Any] = dict(state_dict)
        self.normal_vec_name, self.bias_name = cast(str, normal_vec_name), bias_name
        if kernel_size is not None:
            self.kernel_size = tuple(kernel_size)
        self.meta_info = {**meta, **names}

    def __getattr__(self, name: str) -> Any:
        """Return an entry of `meta_info`."""
        meta_info = self.__dict__.get("meta_info", {})
        if name not in meta_info:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return meta_info[name]

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that reproduce this embedding."""
        return {
            "state_dict": self.state_dict,
            "kernel_size": self.kernel_size,
            "normal_vec_name": self.normal_vec_name,
            "bias_name": self.bias_name,
            "scaling_factor": self.scaling_factor,
            **self.meta_info,
        }

    def distance(self, point: npt.ArrayLike) -> Any:
        """Compute the signed distance of points; that of a single point is a float."""
        distances = super().distance(point)
        return distances if distances.ndim else float(distances)

    def plain(self) -> concepts.ConceptEmbedding:
        """Return this embedding as this library's own class, with the names instead of the objects."""
        normal = self.normal_vec[0] if self.normal_vec.ndim == 4 else self.normal_vec
        meta: dict[str, Any] = {
            name: value
            for name, value in self.meta_info.items()
            if isinstance(value, (str, bool, int, float))
        }
        return concepts.ConceptEmbedding(normal, scaling_factor=self.scaling_factor, bias=self.bias, **meta)

    def as_target(self) -> concepts.ConceptEmbeddingTarget:
        """Return the target of keeping this concept, as `iba_core.Explainer.explain` takes it."""
        return self.plain().as_target()

    def _with(self, normal_vec: npt.NDArray[np.float64], bias: float, scaling_factor: float) -> Self:
        changed = {self.normal_vec_name: normal_vec, self.bias_name or "bias": np.array(bias)}
        settings = {**self.settings, "bias_name": self.bias_name or "bias", "scaling_factor": scaling_factor}
        return type(self)(**{**settings, "state_dict": {**self.state_dict, **changed}})

    @classmethod
    def _members(cls, embeddings: Iterable[Any]) -> list[Self]:
        planes = super()._members(embeddings)
        names = {plane.concept_name for plane in planes}
        if len(names) > 1:
            raise InputError(
                f"embeddings are of the concepts {sorted(map(str, names))}; give those of one concept"
            )
        return planes

    def save(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Write the embedding to a file, without the model and the concept.

        Args:
            filepath: path of the file. ``.safetensors`` gives a file of this library, ``.npz`` one that
                version 1.0 reads, anything else a ``.pt`` file that version 2.0 reads.
            overwrite: replace an existing file.

        Raises:
            InputError: the file exists and `overwrite` is false, or it cannot be written.
        """
        path = as_path(filepath, "filepath")
        if path.suffix == ".safetensors":
            return self.plain().save(path, overwrite)
        if not require_bool("overwrite", overwrite) and path.exists():
            raise InputError(f"filepath={str(path)!r} exists; give overwrite=True to replace it")
        if path.suffix == ".npz":
            names = ("normal_vec", "support_factor", "scaling_factor")
            texts = {name: str(getattr(self, name)) for name in ("concept_name", "layer_id")}
            _files.write_npz(path, {**{name: getattr(self, name) for name in names}, **texts})
        else:
            _files.write_pt(path, self.settings)
        return None

    @classmethod
    def load(cls, filepath: str | os.PathLike[str]) -> Self:
        """Read a file that `save` or the published package has written. No code in it is run.

        Raises:
            StateError: the file is missing, damaged, or contains something else.
        """
        path = as_path(filepath, "filepath")
        if path.suffix == ".npz":
            return super().load(path)
        if path.suffix != ".safetensors":
            settings = _files.read_pt(path)
            with interpreting(path, "concept embedding"):
                return cls(**settings)
        plane = concepts.ConceptEmbedding.load(path)
        return cls(
            {"weight": plane.normal_vec, "bias": np.array(plane.bias)},
            plane.kernel_size,
            "weight",
            "bias",
            plane.scaling_factor,
            concept_name=plane.concept_name,
            layer_id=plane.layer_id,
            **plane.meta_info,
        )


def _completed(meta_info: dict[str, Any]) -> dict[str, Any]:
    """Add the names that follow from the objects."""
    concept, stump = meta_info.get("concept"), meta_info.get("model_stump")
    known = {
        "concept": concept,
        "concept_name": None if concept is None else concept.name,
        "model_stump": stump,
        "layer_id": None if stump is None else stump.stump_head,
        "main_model": None if stump is None else stump.wrapped_model,
    }
    given_names = {name: value for name, value in meta_info.items() if name not in known or value is not None}
    return {**known, **given_names}


def _entry(state_dict: Mapping[str, npt.ArrayLike], argument: str, name: str | None) -> npt.ArrayLike:
    if not isinstance(state_dict, Mapping):
        raise InputError(f"{given('state_dict', state_dict)} must be a dict of arrays")
    if name is None or name not in state_dict:
        raise InputError(f"{argument}={name!r} must be one of the names in state_dict, {sorted(state_dict)}")
    return state_dict[name]
