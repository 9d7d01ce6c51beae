"""Running mean and standard deviation of features, on the device that they are on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from iba_core.arguments import given, require_number, require_sizes, require_type
from iba_core.bottleneck.estimator import PUBLISHED, Moments, batch_moments, merge_moments
from iba_core.errors import InputError, NotEstimatedError
from iba_torch.tail.precision import keeps_settings, without_gradients

_MOMENTS = ("_mean", "_m2", "_nonzero")

_LARGEST = 2**28
"""Most features of a shape that is given. The state of more would take above 6 GB."""


class TorchWelfordEstimator(nn.Module):
    """Estimates mean and standard deviation of every feature, and which neurons are active.

    A layer that passes its input on unaltered, so it can stand anywhere in a model. Its state is buffers:
    it moves with ``.to()`` and is saved with ``state_dict()``. They are kept in float64 (float32 where the
    device has no float64), whatever `to` or `half` say, and no batch makes the host wait for the device.

    Args:
        shape: shape of one sample, as separate numbers; taken from the first batch if not given.

    Example:
        >>> estimator = TorchWelfordEstimator(3, 8, 8)
        >>> for batch in torch.randn(5, 10, 3, 8, 8):
        ...     _ = estimator(batch)
        >>> estimator.n_samples(), estimator.mean().shape
        (50, torch.Size([3, 8, 8]))
    """

    _n_samples: torch.Tensor
    _mean: torch.Tensor
    _m2: torch.Tensor
    _nonzero: torch.Tensor
    _dtype_of: torch.Tensor
    """Holds no number, only the dtype that mean and standard deviation are given back in."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = require_sizes("shape", shape, None, most=2**31) or None
        if math.prod(shape) > _LARGEST:
            raise InputError(f"{given('shape', shape)} holds more than {_LARGEST} features")
        self._given_shape = self.shape
        self.register_buffer("_dtype_of", torch.empty(0, dtype=torch.float32))
        self.register_buffer("_n_samples", torch.zeros((), dtype=torch.int64))
        for name in _MOMENTS:
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def device(self) -> torch.device | None:
        """Device of the features; None before the first sample."""
        return self._mean.device if self.n_samples() else None

    @property
    def m(self) -> torch.Tensor | None:
        """Mean of every feature, as `mean` gives it. None before the first sample."""
        return self.mean() if self.n_samples() else None

    @property
    def s(self) -> torch.Tensor | None:
        """Sum of squared distances from the mean, in the dtype of `mean`. None before the first sample."""
        return self._m2.to(self._dtype_of.dtype) if self.n_samples() else None

    def reset(self) -> None:
        """Forget every sample, and their shape if it was not given to the constructor."""
        self._n_samples = torch.zeros_like(self._n_samples)
        self.shape = self._given_shape
        for name in _MOMENTS:
            setattr(self, name, getattr(self, name).new_zeros(self.shape or ()))

    @keeps_settings
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Update the estimates without altering `x`.

        Args:
            x: (B, *shape), floating point or integer. B may be 0.

        Returns:
            `x` itself.

        Raises:
            InputError: the shape is not (B, *shape), or `x` is no tensor of real numbers.
        """
        require_type("x", x, torch.Tensor, "a tensor")
        if x.is_complex():
            raise InputError(f"{given('x', x)} must hold real numbers")
        if x.ndim < 2 or (self.shape is not None and tuple(x.shape[1:]) != self.shape):
            wanted = ["batch", *(["..."] if self.shape is None else map(str, self.shape))]
            raise InputError(f"x has shape {tuple(x.shape)}, the estimator takes ({', '.join(wanted)})")
        if x.shape[0]:
            # Outside of inference mode, so that the buffers can be written into later.
            with torch.inference_mode(False), without_gradients():
                self._update(x)
        return x

    def _update(self, x: torch.Tensor) -> None:
        if self.shape is None:
            self._allocate(tuple(x.shape[1:]), x.device)
        elif self._mean.device != x.device:
            self.to(x.device)
        self._widen(x.dtype)
        own = x.detach().to(self._mean.dtype, copy=True)
        self._take_in(batch_moments(own), x.shape[0])

    def _widen(self, dtype: torch.dtype) -> None:
        """Give back float64 from the first float64 features on."""
        self._dtype_of = self._dtype_of.to(torch.promote_types(self._dtype_of.dtype, dtype))

    def _take_in(self, moments: Moments, count: int | torch.Tensor) -> None:
        merged = merge_moments(self._moments(), moments)
        self._n_samples = self._n_samples + count
        for name, value in zip(_MOMENTS, merged[1:], strict=True):
            setattr(self, name, value)

    def merge(self, other: TorchWelfordEstimator) -> None:
        """Take in everything that another estimator has seen, exactly as if its samples had come here.

        Raises:
            InputError: the shapes differ.
        """
        require_type("other", other, TorchWelfordEstimator, "a TorchWelfordEstimator")
        if not other.n_samples():
            return
        assert other.shape is not None
        if self.shape is None:
            self._allocate(other.shape, other._mean.device)
        if self.shape != other.shape:
            raise InputError(
                f"other is of features of shape {other.shape}, and this estimator of {self.shape}; they must "
                "be of one layer"
            )
        self._widen(other._dtype_of.dtype)
        theirs = Moments(*(moment.to(self._mean) for moment in other._moments()))
        self._take_in(theirs, other._n_samples.to(self._n_samples.device))

    def n_samples(self) -> int:
        """Number of samples seen."""
        return int(self._n_samples)

    def mean(self) -> torch.Tensor:
        """Mean of every feature, shape of one sample, in the dtype of the features (at least float32).

        Raises:
            NotEstimatedError: no sample has been seen.
        """
        self._require(1)
        return self._mean.to(self._dtype_of.dtype)

    def std(self) -> torch.Tensor:
        """Standard deviation of every feature (with n - 1), shape and dtype as for `mean`.

        Raises:
            NotEstimatedError: fewer than two samples have been seen.
        """
        self._require(2)
        return torch.sqrt(self._m2 / (self._n_samples - 1)).to(self._dtype_of.dtype)

    def active_neurons(self, threshold: float = 0.01) -> torch.Tensor:
        """Boolean mask of the neurons that are nonzero in more than the share `threshold` of the samples.

        Raises:
            NotEstimatedError: no sample has been seen.
        """
        require_number("threshold", threshold, 0, 1)
        self._require(1)
        return self._nonzero / self._n_samples > threshold

    def _moments(self) -> Moments:
        count = self._n_samples.to(self._mean.dtype)
        return Moments(count, *(getattr(self, name) for name in _MOMENTS))

    def _require(self, least: int) -> None:
        if self.n_samples() < least:
            raise NotEstimatedError(
                f"the estimator has seen {self.n_samples()} samples, at least {least} are needed: "
                "run batches through it first"
            )

    def _allocate(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        self._n_samples = torch.zeros((), dtype=torch.int64, device=device)
        self._dtype_of = self._dtype_of.to(device)
        for name in _MOMENTS:
            setattr(self, name, torch.zeros(shape, dtype=precision_on(device), device=device))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # A model that goes to half precision must not take the sums along: only the device counts.
        self._dtype_of = fn(self._dtype_of)
        device = self._dtype_of.device
        self._n_samples = self._n_samples.to(device)
        for name in _MOMENTS:
            moment = getattr(self, name)
            # A device without float64 must never be asked for it, neither on the way in nor out.
            narrow = precision_on(device) == torch.float32
            moment = moment.float().to(device) if narrow else moment.to(device).double()
            setattr(self, name, moment)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}m" in state_dict:
            _rename_published(state_dict, prefix)
        mean = state_dict.get(f"{prefix}_mean")
        if isinstance(mean, torch.Tensor):
            self._allocate(tuple(mean.shape), self._mean.device)
            self.shape = self.shape or None
        kept = state_dict.get(f"{prefix}_dtype_of")
        if isinstance(kept, torch.Tensor):
            self._dtype_of = self._dtype_of.to(kept.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _rename_published(state_dict: dict[str, Any], prefix: str) -> None:
    """Give the entries of a state of the published implementation the names that they have here."""
    for name, own in PUBLISHED.items():
        # There, what is counted has an underscore.
        for theirs in (f"{prefix}{name}", f"{prefix}_{name}"):
            if theirs in state_dict:
                state_dict[f"{prefix}_{own}"] = state_dict.pop(theirs)
    count = f"{prefix}_n_samples"
    if count in state_dict:
        state_dict[count] = state_dict[count].reshape(())
    state_dict.setdefault(f"{prefix}_dtype_of", state_dict[f"{prefix}_mean"].new_empty(0))


def precision_on(device: torch.device) -> torch.dtype:
    """The dtype in which sums over many samples are kept: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
