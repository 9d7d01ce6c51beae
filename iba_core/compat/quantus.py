"""Maps for the metrics of Quantus (A. Hedström et al., JMLR 2023, https://arxiv.org/abs/2202.06861)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_iterable, require_layer
from iba_core.explainer import Explainer
from iba_core.framework.adapter import Inputs
from iba_core.framework.inputs import inputs_of_batch, take


class _Fitted(NamedTuple):
    model: Any
    explainer: Explainer
    features: list[npt.NDArray[Any]]
    """Of one input, at each layer."""


class ExplainFunc:
    """A function of a model, inputs and targets, as the argument `explain_func` of Quantus' metrics.

    It does not need Quantus. The explainer is fitted at the first call, and again for another model or when
    the features that the model gives have changed, as in tests that randomise its weights.

    Args:
        layer: name of the layer that the bottleneck comes after; None for those that `Explainer` chooses.
        data: batches of inputs like those to explain: a list, or another iterable that can be read several
            times.
        seed: makes the maps reproducible; None for new noise in each call.
        **settings: further arguments of `iba_core.Explainer`.

    Raises:
        InputError: `data` is no iterable, or can be read once only.

    Example:
        >>> explain_func = ExplainFunc("relu", batches, steps=2)
        >>> explain_func(model=model, inputs=x, targets=np.array([2, 0])).shape
        (2, 1, 8, 8)
    """

    def __init__(self, layer: Any, data: Iterable[Any], *, seed: int | None = 0, **settings: Any) -> None:
        require_layer("layer", layer, optional=True)
        require_iterable("data", data, "batches of inputs")
        if iter(data) is iter(data):
            data = list(data)
        self._layer, self._data, self._seed, self._settings = layer, data, seed, settings
        self._fitted: _Fitted | None = None

    def __call__(self, model: Any, inputs: Inputs, targets: Any = None, **options: Any) -> npt.NDArray[Any]:
        """Compute the maps of a batch.

        Args:
            model: a model of any framework that a backend serves.
            inputs: (B, ...).
            targets: index of a class for each input, (B,); None for the classes predicted.
            **options: arguments of `Explainer.explain`. `device` and the like, which Quantus passes on, do
                not count.

        Returns:
            Bits per pixel, float32, of the shape of the inputs with one channel.
        """
        explainer = self.explainer(model)
        for ignored in ("device", "softmax", "channel_first", "reduce_axes", "method"):
            options.pop(ignored, None)
        wanted = None if targets is None else np.asarray(targets).astype(np.int64).tolist()
        found = explainer.explain(inputs, wanted, **{"seed": self._seed, **options})
        first = explainer.adapter.split(explainer.parts[0].layer).input_format == "channels_first"
        return np.expand_dims(found.saliency.astype(np.float32), 1 if first else -1)

    def explainer(self, model: Any) -> Explainer:
        """The explainer of a model, fitted to its present weights."""
        known = self._fitted
        if known is not None and known.model is not model:
            known = None
        if known is not None and all(map(np.array_equal, self._features(known.explainer), known.features)):
            return known.explainer
        explainer = Explainer(model, self._layer, **self._settings).fit(self._data, progbar=False)
        self._fitted = _Fitted(model, explainer, self._features(explainer))
        return explainer

    def _features(self, explainer: Explainer) -> list[npt.NDArray[Any]]:
        adapter = explainer.adapter
        inputs = adapter.to_inputs(take(inputs_of_batch(next(iter(self._data))), 0, 1))
        splits = [adapter.split(part.layer) for part in explainer.parts]
        return [adapter.framework.to_numpy(split.features(inputs)) for split in splits]
