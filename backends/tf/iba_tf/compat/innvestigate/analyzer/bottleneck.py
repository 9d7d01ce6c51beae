"""The bottleneck as innvestigate's users call an analyzer."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

import iba_tf
from iba_core.framework.inputs import arrays_of
from iba_tf.bottlenecks.innvestigate import analyzer_of_file


class InformationBottleneck(iba_tf.IBACopyInnvestigate):
    """`iba_tf.IBACopyInnvestigate`, whose analyses have the shape of the samples.

    Other than most analyzers, it has to see some samples before, with `fit`. Analyses are deterministic.
    """

    def fit(self, X: Any, batch_size: int = 32, **kwargs: Any) -> None:  # type: ignore[override]  # noqa: N803  # published
        """See `iba_tf.IBACopyInnvestigate.fit`.

        Args:
            X: samples (N, ...), or a list of them for each input of the model.
            batch_size: number of samples that run at once.
            **kwargs: see `iba_tf.IBACopyInnvestigate.fit`.
        """
        super().fit(self._unwrapped(X), batch_size=batch_size, **kwargs)

    def analyze(  # type: ignore[override]  # innvestigate's arguments
        self,
        X: Any,  # noqa: N803  # the published name
        neuron_selection: npt.ArrayLike | None = None,
        *,
        seed: int | None = 0,
    ) -> npt.NDArray[np.floating]:
        """Analyse a batch of samples.

        Args:
            X: samples (B, ...), or a list of them for each input of the model.
            neuron_selection: see `iba_tf.IBACopyInnvestigate.analyze`.
            seed: of the noise; None draws one.

        Returns:
            Array of the shape of the samples, of the first input if there are several. A place's bits are
            divided equally among its channels, so that the sum over the channels is the map in bits per
            pixel. If the features have other places than the samples, all values of a sample share its bits.
        """
        X = self._unwrapped(X)  # noqa: N806  # the published name
        samples = np.asarray(next(arrays_of(X)))
        maps = super().analyze(X, neuron_selection, seed=seed)
        return _spread(maps, samples.shape, self._split.input_format == "channels_first")

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803  # the published name
        """See `iba_tf.IBACopyInnvestigate.predict`."""
        return super().predict(self._unwrapped(X))

    @staticmethod
    def load(
        class_name: str | type[iba_tf.IBACopyInnvestigate], state: dict[str, Any]
    ) -> iba_tf.IBACopyInnvestigate:
        """See `iba_tf.IBACopyInnvestigate.load`."""
        return iba_tf.IBACopyInnvestigate.load(class_name, state)

    @staticmethod
    def load_npz(fname: str | PathLike[str]) -> iba_tf.IBACopyInnvestigate:
        """See `iba_tf.IBACopyInnvestigate.load_npz`."""
        return analyzer_of_file(fname, iba_tf.IBACopyInnvestigate.load)

    def _unwrapped(self, X: Any) -> Any:  # noqa: N803  # the published name
        """The samples of a model with one input, of which a list may be given as well."""
        is_wrapped = isinstance(X, list) and len(X) == 1 and len(self._model.inputs) == 1
        return X[0] if is_wrapped else X


def _spread(
    maps: npt.NDArray[np.floating], shape: tuple[int, ...], is_channels_first: bool
) -> npt.NDArray[np.floating]:
    """Maps with a channel axis, whose sum over the channels is the map."""
    axis = 1 if is_channels_first else len(shape) - 1
    if maps.shape != (*shape[:axis], *shape[axis + 1 :]):
        warnings.warn(
            "the features have other places than the samples: all values of a sample share its bits",
            stacklevel=3,
        )
        totals = maps.reshape(len(maps), -1).sum(axis=1).reshape(-1, *(1 for _ in shape[1:]))
        return np.broadcast_to(totals / np.prod(shape[1:]), shape).copy()
    return np.repeat(np.expand_dims(maps / shape[axis], axis), shape[axis], axis=axis)
