"""A concept as a hyperplane in the space of a layer's activations."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt

from iba_core.arguments import (
    given,
    is_iterable,
    require_bool,
    require_number,
    require_sizes,
    require_text,
    require_type,
    require_whole,
)
from iba_core.concepts.hyperplanes import signed_distance
from iba_core.concepts.targets import ConceptEmbeddingTarget
from iba_core.errors import InputError
from iba_core.files import as_path
from iba_core.framework.arrays import as_array, require_array
from iba_core.state import interpreting, read_npz, read_state, write_state

_KIND = "concept embedding"

_TOLERANCE = 1e-6
"""Two embeddings are equal if they agree to the precision of float32, in which weights are trained."""

_DEEPEST = 20
"""Deepest nesting of ensembles."""

FloatArray = npt.NDArray[np.float64]

_Embedding = TypeVar("_Embedding", bound="ConceptEmbedding")


class ConceptEmbedding:
    """A hyperplane that separates the activations of a concept from all other activations.

    With normal vector n, bias B and scaling factor s, the *signed distance* of a vector v is
    ``d(v) = s (v · n + B) = s (v - b n) · n``. The support factor is ``b = -B / |n|^2``, and b n is the point
    of the hyperplane that is closest to the origin. The distance is positive on the side of the concept. One
    hyperplane and distance have many representations (n, B, s). The methods that convert between them return
    new embeddings.

    After R. Fong, A. Vedaldi, *Net2Vec*, CVPR 2018 (https://arxiv.org/abs/1801.03454), and G. Schwalbe,
    *Verification of size invariance in DNN activations using concept embeddings*, 2021.

    Args:
        normal_vec: n, not zero; for a convolution (C, kernel height, kernel width), in every framework.
        support_factor: b. Give either this or `bias`.
        scaling_factor: s, not zero.
        bias: B, a number or an array with one entry. A layer without bias has the bias 0.
        kernel_size: (height, width) of the window; by default the last two axes of `normal_vec`, or (1, 1)
            if it has fewer than three axes.
        concept_name: name of the concept.
        layer_id: name of the layer in whose output the hyperplane lies.
        meta_info: further information to keep, in a form that JSON can hold.

    Attributes:
        normal_vec: float64, read-only.
        bias: float.
        scaling_factor: float.
        kernel_size: pair of integers.
        concept_name: name of the concept, or None.
        layer_id: name of the layer, or None.
        meta_info: the further information, by name.

    Raises:
        InputError: the normal vector or the scaling factor is zero or not finite, or `bias` and
            `support_factor` are both given or both missing.

    Example:
        >>> plane = ConceptEmbedding([3.0, 4.0], bias=-10.0, concept_name="face")
        >>> plane.support_factor
        0.4
        >>> float(plane.distance([2.0, 3.5]))
        10.0
        >>> plane.normalize() == plane
        True
    """

    def __init__(
        self,
        normal_vec: npt.ArrayLike,
        support_factor: npt.ArrayLike | None = None,
        scaling_factor: npt.ArrayLike = 1.0,
        *,
        bias: npt.ArrayLike | None = None,
        kernel_size: Sequence[int] | None = None,
        concept_name: str | None = None,
        layer_id: str | None = None,
        **meta_info: Any,
    ) -> None:
        self.normal_vec: FloatArray = _normal_vector(normal_vec)
        self.scaling_factor: float = _number(scaling_factor, "scaling_factor")
        if self.scaling_factor == 0:
            raise InputError("scaling_factor is 0, so that every point would lie on the hyperplane")
        if bias is None and support_factor is None:
            raise InputError(
                "neither bias nor support_factor is given; a hyperplane through the origin has bias=0"
            )
        if bias is not None and support_factor is not None:
            raise InputError("bias and support_factor are both given; give one, the other follows from it")
        if bias is not None:
            self.bias: float = _number(bias, "bias")
        else:
            length = self.length
            self.bias = -_number(support_factor, "support_factor") * length * length
        self.kernel_size: tuple[int, ...] = _kernel_size(kernel_size, self.normal_vec.shape)
        require_text("concept_name", concept_name, "the name of a concept", optional=True)
        require_text("layer_id", layer_id, "the name of a layer", optional=True)
        self.concept_name = concept_name
        self.layer_id = layer_id
        self.meta_info: dict[str, Any] = dict(meta_info)

    # -- the hyperplane ---------------------------------------------------------------------------

    @property
    def length(self) -> float:
        """Euclidean length of the normal vector."""
        # Scale first: the squares overflow long before the length does.
        peak = float(np.abs(self.normal_vec).max())
        return peak * float(np.linalg.norm(self.normal_vec / peak))

    @property
    def support_factor(self) -> float:
        """Factor ``b = -B / |n|^2``; b n is the point of the hyperplane that is closest to the origin."""
        length = self.length
        return -self.bias / length / length

    @property
    def support_vec(self) -> FloatArray:
        """The point b n of the hyperplane that is closest to the origin."""
        return self.support_factor * self.normal_vec

    def distance(self, point: npt.ArrayLike) -> FloatArray:
        """Compute the signed distance d(v) of points from the hyperplane, positive where the concept is.

        Args:
            point: (..., *S) with the shape S of the normal vector, or (..., D) with its D entries in a row.

        Returns:
            float64 array (...).

        Raises:
            InputError: the last axes fit neither shape.

        Example:
            >>> ConceptEmbedding([3.0, 4.0], bias=-10.0).distance([[2.0, 1.0], [2.0, 3.5]])
            array([ 0., 10.])
        """
        points = require_array("point", point).astype(np.float64)
        shape = self.normal_vec.shape
        if points.shape[points.ndim - len(shape) :] == shape:
            points = points.reshape(*points.shape[: points.ndim - len(shape)], -1)
        elif points.shape[-1:] != (self.normal_vec.size,):
            raise InputError(
                f"point has shape {points.shape}; its last axes must be {shape} or ({self.normal_vec.size},)"
            )
        distances = signed_distance(points, self.normal_vec.ravel(), self.bias, self.scaling_factor)
        return np.asarray(distances, dtype=np.float64)

    # -- representations --------------------------------------------------------------------------

    def scale(self) -> Self:
        """Return the same distance with scaling factor 1: (s n, s B, 1)."""
        return self._with(self.scaling_factor * self.normal_vec, self.scaling_factor * self.bias, 1.0)

    def normalize(self) -> Self:
        """Return the same distance with a normal vector of length 1 and the same sign of the scaling factor.

        Example:
            >>> ConceptEmbedding([3.0, 4.0], bias=-10.0).normalize().scaling_factor
            5.0
        """
        length = self.length
        return self._with(self.normal_vec / length, self.bias / length, self.scaling_factor * length)

    def to_pos_scaling(self) -> Self:
        """Return the same distance with a positive scaling factor: n then points to the concept."""
        sign = 1.0 if self.scaling_factor > 0 else -1.0
        return self._with(sign * self.normal_vec, sign * self.bias, sign * self.scaling_factor)

    def unique(self) -> Self:
        """Return the only representation of this distance with ``|n| = 1`` and a positive scaling factor."""
        return self.normalize().to_pos_scaling()

    def unique_upper_sphere(self) -> Self:
        """Return the only representation of this distance with n on the upper half of the unit sphere.

        The first entry of n that is not zero is positive. The scaling factor may be negative.
        """
        sign = float(np.sign(self.normal_vec.flat[np.flatnonzero(self.normal_vec)[0]]))
        plane = self.normalize()
        return plane._with(sign * plane.normal_vec, sign * plane.bias, sign * plane.scaling_factor)

    def forget_scaling(self) -> Self:
        """Return the same normal vector and bias with scaling factor 1, which is another distance."""
        return self._with(self.normal_vec, self.bias, 1.0)

    def _with(self, normal_vec: FloatArray, bias: float, scaling_factor: float) -> Self:
        """Return another hyperplane with the same information about it."""
        return type(self)(
            **{
                **self.settings,
                "normal_vec": normal_vec,
                "bias": bias,
                "scaling_factor": scaling_factor,
            }
        )

    # -- two concepts -----------------------------------------------------------------------------

    def cosine(self, other: ConceptEmbedding) -> float:
        """Compute the cosine of the angle between the directions in which two concepts grow, from -1 to 1.

        Raises:
            InputError: the normal vectors differ in shape.

        Example:
            >>> ConceptEmbedding([3.0, 4.0], bias=0).cosine(ConceptEmbedding([1.0, 0.0], bias=7))
            0.6
        """
        a, b = self._directions(other)
        return float(np.clip(np.vdot(a, b), -1.0, 1.0))

    def angle(self, other: ConceptEmbedding) -> float:
        """Compute the angle between the directions in which two concepts grow, from 0 to pi.

        Raises:
            InputError: the normal vectors differ in shape.
        """
        a, b = self._directions(other)
        # The arc cosine loses half the digits of a small angle.
        return float(2.0 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))

    def same_hyperplane(self, other: ConceptEmbedding, tolerance: float = _TOLERANCE) -> bool:
        """Whether both have the same points at distance 0, independent of scale and direction.

        Args:
            other: an embedding.
            tolerance: tolerance for the normal vectors of length 1, and for the distances from the origin
                (relative where they are above 1).
        """
        _require_embedding("other", other)
        tolerance = float(require_number("tolerance", tolerance, 0))
        if self.normal_vec.shape != other.normal_vec.shape:
            return False
        a, b = self.unique(), other.unique()
        if np.vdot(a.normal_vec, b.normal_vec) < 0:
            b = b._with(-b.normal_vec, -b.bias, b.scaling_factor)
        return bool(
            np.allclose(a.normal_vec, b.normal_vec, rtol=0, atol=tolerance)
            and np.isclose(a.bias, b.bias, rtol=tolerance, atol=tolerance)
        )

    def __eq__(self, other: object) -> bool:
        """Whether both measure the same distance everywhere, in any representation.

        The meta information is ignored. Values agree within 1e-6, the precision of float32.
        """
        if not isinstance(other, ConceptEmbedding):
            return NotImplemented
        if not self.same_hyperplane(other):
            return False
        a, b = self.unique(), other.unique()
        return bool(
            np.vdot(a.normal_vec, b.normal_vec) > 0
            and np.isclose(a.scaling_factor, b.scaling_factor, rtol=_TOLERANCE, atol=0)
        )

    # Equality within a tolerance allows no hash.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def as_target(self) -> ConceptEmbeddingTarget:
        """Return the target of keeping this concept, as `Explainer.explain` takes it.

        Example:
            >>> ConceptEmbedding([3.0, 4.0], bias=-10.0, layer_id="fc").as_target().layer
            'fc'
        """
        return ConceptEmbeddingTarget(self)

    def _directions(self, other: ConceptEmbedding) -> tuple[FloatArray, FloatArray]:
        _require_embedding("other", other)
        if self.normal_vec.shape != other.normal_vec.shape:
            raise InputError(
                f"other is of shape {other.normal_vec.shape}; it must be {self.normal_vec.shape}, as this one"
            )
        return self.unique().normal_vec, other.unique().normal_vec

    # -- ensembles --------------------------------------------------------------------------------

    @classmethod
    def _members(cls, embeddings: Iterable[Any]) -> list[Self]:
        """The embeddings of an ensemble, all of one shape.

        Raises:
            InputError: there are none, their shapes differ, or an entry is no embedding of this class.
        """
        planes = list(_nested(embeddings, cls, depth=0))
        if not planes:
            raise InputError("embeddings is empty; an ensemble has at least one member")
        shapes = sorted({plane.normal_vec.shape for plane in planes})
        if len(shapes) > 1:
            raise InputError(f"embeddings have normal vectors of shapes {shapes}; they must have one shape")
        return planes

    @classmethod
    def first(cls, embeddings: Iterable[Any]) -> Self:
        """Return a copy of the first embedding, where one of an ensemble has to stand for all.

        Args:
            embeddings: embeddings, or sequences of them.

        Raises:
            InputError: there are none, or their shapes differ.

        Example:
            >>> planes = ConceptEmbedding([2.0, 0.0], bias=1.0), ConceptEmbedding([0.0, 4.0], bias=3.0)
            >>> ConceptEmbedding.first(planes).bias
            1.0
        """
        return copy(cls._members(embeddings)[0])

    @classmethod
    def mean_by_distance(cls, embeddings: Iterable[Any]) -> Self:
        """Average embeddings so that the distance is everywhere the mean of their distances.

        Embeddings with a longer normal vector or a larger scaling factor have more weight.

        Args:
            embeddings: embeddings, or sequences of them.

        Returns:
            Embedding with scaling factor 1.

        Raises:
            InputError: there are none, their shapes differ, or their scaled normal vectors cancel out.

        Example:
            >>> planes = ConceptEmbedding([2.0, 0.0], bias=1.0), ConceptEmbedding([0.0, 4.0], bias=3.0)
            >>> mean = ConceptEmbedding.mean_by_distance(planes)
            >>> mean.normal_vec, mean.bias
            (array([1., 2.]), 2.0)
        """
        planes = [plane.scale() for plane in cls._members(embeddings)]
        normal = _mean_normal(planes)
        return planes[0]._with(normal, float(np.mean([plane.bias for plane in planes])), 1.0)

    @classmethod
    def mean(cls, embeddings: Iterable[Any]) -> Self:
        """Average hyperplanes so that the mean Euclidean distance to them is 0 everywhere on the result.

        All embeddings have the same weight, independent of their scale.

        Args:
            embeddings: embeddings, or sequences of them.

        Returns:
            Embedding with a normal vector of length 1 and the mean of the scaling factors of `unique`.

        Raises:
            InputError: there are none, their shapes differ, or their directions cancel out.
        """
        planes = [plane.unique() for plane in cls._members(embeddings)]
        normal = _mean_normal(planes)
        hyperplane = planes[0]._with(normal, float(np.mean([plane.bias for plane in planes])), 1.0)
        return hyperplane.normalize()._scaled_as(planes)

    @classmethod
    def mean_by_angle(cls, embeddings: Iterable[Any]) -> Self:
        """Average hyperplanes by their directions.

        The result has the mean direction. From its point closest to the origin, the signed distances to the
        given hyperplanes, measured along that direction, sum to 0.

        Args:
            embeddings: embeddings, or sequences of them.

        Returns:
            Embedding with a normal vector of length 1 and the mean of the scaling factors of `unique`.

        Raises:
            InputError: there are none, their shapes differ, their directions cancel out, or one direction is
                at an angle of 90 degrees or more to the mean.
        """
        planes = [plane.unique() for plane in cls._members(embeddings)]
        normal = _mean_normal(planes)
        normal = normal / np.linalg.norm(normal)
        cosines = np.array([np.vdot(plane.normal_vec, normal) for plane in planes])
        if not (cosines > 1e-9).all():
            worst = int(cosines.argmin())
            raise InputError(
                f"embeddings[{worst}] is at a right angle or more to the mean direction "
                f"(cosine {cosines[worst]:.3g}); a mean by angle needs directions within one hemisphere"
            )
        bias = float(np.mean([plane.bias for plane in planes] / cosines))
        return planes[0]._with(normal, bias, 1.0)._scaled_as(planes)

    @classmethod
    def variance(cls, embeddings: Iterable[Any], ddof: int = 1) -> tuple[FloatArray, float, float]:
        """Compute the variances within an ensemble, of the representations that `unique` returns.

        Args:
            embeddings: embeddings, or sequences of them.
            ddof: number to subtract from the number of embeddings to get the divisor; 1 gives the unbiased
                variance.

        Returns:
            Variances of the entries of the normal vector, of the support factor, and of the scaling factor.

        Raises:
            InputError: there are at most `ddof` embeddings, or their shapes differ.

        Example:
            >>> planes = [ConceptEmbedding([1.0, 0.0], bias=0, scaling_factor=s) for s in (1.0, 3.0)]
            >>> ConceptEmbedding.variance(planes)
            (array([0., 0.]), 0.0, 2.0)
        """
        planes = [plane.unique() for plane in cls._members(embeddings)]
        ddof = require_whole("ddof", ddof)
        if len(planes) <= ddof:
            raise InputError(f"embeddings has {len(planes)} entries; a variance with ddof={ddof} needs more")
        return (
            np.var([plane.normal_vec for plane in planes], axis=0, ddof=ddof),
            float(np.var([plane.support_factor for plane in planes], ddof=ddof)),
            float(np.var([plane.scaling_factor for plane in planes], ddof=ddof)),
        )

    @classmethod
    def std_deviation(cls, embeddings: Iterable[Any], ddof: int = 1) -> tuple[FloatArray, float, float]:
        """Compute the square roots of `variance`."""
        normal_vec, support_factor, scaling_factor = cls.variance(embeddings, ddof)
        return np.sqrt(normal_vec), support_factor**0.5, scaling_factor**0.5

    def _scaled_as(self, planes: Sequence[ConceptEmbedding]) -> Self:
        scaling_factor = float(np.mean([plane.scaling_factor for plane in planes]))
        return self._with(self.normal_vec, self.bias, scaling_factor)

    # -- storage ----------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that reproduce this embedding."""
        return {
            "normal_vec": self.normal_vec,
            "bias": self.bias,
            "scaling_factor": self.scaling_factor,
            "kernel_size": self.kernel_size,
            "concept_name": self.concept_name,
            "layer_id": self.layer_id,
            **self.meta_info,
        }

    def save(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Write the embedding to a safetensors file, which cannot contain code.

        Args:
            filepath: path of the file.
            overwrite: replace an existing file.

        Raises:
            InputError: the file exists and `overwrite` is false, or the meta information cannot be stored
                as JSON.

        Example:
            >>> import tempfile
            >>> plane = ConceptEmbedding([3.0, 4.0], bias=-10.0)
            >>> path = tempfile.mkdtemp() + "/face.safetensors"
            >>> plane.save(path)
            >>> ConceptEmbedding.load(path) == plane
            True
        """
        filepath = as_path(filepath, "filepath")
        if not require_bool("overwrite", overwrite) and filepath.exists():
            raise InputError(f"filepath={str(filepath)!r} exists; give overwrite=True to replace it")
        metadata = self.settings
        arrays = {name: metadata.pop(name) for name in ("normal_vec", "bias", "scaling_factor")}
        write_state(filepath, arrays, _KIND, metadata)

    @classmethod
    def load(cls, filepath: str | os.PathLike[str]) -> Self:
        """Read an embedding that `save` has written, without any rounding.

        An ``.npz`` file is read as well that holds the arrays ``normal_vec``, ``support_factor`` and
        ``scaling_factor`` and the texts ``concept_name`` and ``layer_id``, as hybrid_learning has written it.

        Args:
            filepath: path of the file. One that ends in ``.npz`` is read as such.

        Raises:
            StateError: the file is missing, truncated, or contains something else.
        """
        filepath = as_path(filepath, "filepath")
        settings: dict[str, Any]
        if filepath.suffix == ".npz":
            settings = dict(read_npz(filepath, "filepath"))
            for name in ("concept_name", "layer_id"):
                text = str(settings.pop(name, None))
                # The package writes the text of None where there is no name.
                settings[name] = None if text == "None" else text
        else:
            arrays, metadata = read_state(filepath, _KIND, ("normal_vec", "bias", "scaling_factor"))
            settings = {**metadata, **arrays}
        with interpreting(filepath, _KIND):
            return cls(**settings)

    def __repr__(self) -> str:
        return (
            f"ConceptEmbedding(concept_name={self.concept_name!r}, layer_id={self.layer_id!r}, "
            f"normal_vec={self.normal_vec.shape}, length={self.length:.6g}, bias={self.bias:.6g}, "
            f"support_factor={self.support_factor:.6g}, scaling_factor={self.scaling_factor:.6g}, "
            f"kernel_size={self.kernel_size})"
        )


def _normal_vector(value: npt.ArrayLike) -> FloatArray:
    vector = np.array(require_array("normal_vec", value), dtype=np.float64)
    if vector.ndim == 0:
        raise InputError(f"normal_vec has shape {vector.shape}; it needs at least one axis and one entry")
    if not vector.any():
        raise InputError("normal_vec is zero; a hyperplane needs a direction")
    vector.setflags(write=False)
    return vector


def _number(value: npt.ArrayLike | None, argument: str) -> float:
    array = as_array(argument, value)
    if array.size != 1 or array.dtype == bool:
        raise InputError(f"{given(argument, value)} must be one number")
    return float(require_number(argument, array.reshape(()).astype(np.float64).item()))


def _kernel_size(value: Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    window = shape[-2:] if len(shape) > 2 else (1, 1)
    if value is not None and require_sizes("kernel_size", value) != window:
        raise InputError(
            f"kernel_size={tuple(value)} does not fit normal_vec of shape {shape}, which is for {window}"
        )
    return window


def _nested(entry: Any, kind: type[_Embedding], depth: int) -> Iterator[_Embedding]:
    """The embeddings in nested sequences; a list that holds itself has no end."""
    if isinstance(entry, kind):
        yield entry
    elif not is_iterable(entry) or depth > _DEEPEST:
        raise InputError(f"{given('embeddings', entry)} must be concept embeddings, or lists of them")
    else:
        for part in entry:
            yield from _nested(part, kind, depth + 1)


def _require_embedding(name: str, value: Any) -> None:
    require_type(name, value, ConceptEmbedding, "a ConceptEmbedding")


def _mean_normal(planes: Sequence[ConceptEmbedding]) -> FloatArray:
    """Compute the mean of the normal vectors, which must not be zero up to rounding."""
    vectors = np.array([plane.normal_vec for plane in planes])
    mean: FloatArray = vectors.mean(axis=0)
    if np.abs(mean).max() <= 1e-12 * np.abs(vectors).max():
        raise InputError("the normal vectors of embeddings cancel out; their mean has no direction")
    return mean
