"""Does a map depend on what the model has learnt? Its weights are randomised, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_callable, require_choice, require_seed, require_sequence, require_whole
from iba_core.errors import InputError, closest
from iba_core.evaluation.methods import Method, explained
from iba_core.evaluation.scoring import Classes, ScoredModel
from iba_core.evaluation.similarity import agreement
from iba_core.framework.adapter import Inputs, Model

Numbers = npt.NDArray[np.float64]
Weights = dict[str, list[npt.NDArray[Any]]]

LayerOrder = Literal["top_down", "bottom_up", "independent"]


@dataclass(frozen=True, eq=False)
class RandomizationResult:
    """What randomised weights do to maps. `randomization_check` returns it.

    Attributes:
        layers: the layers that are randomised in each of N stages, the last one of them first in a cascade.
        correlation: (N, B), rank correlation (Spearman) of each map with the one of the trained model.
        bits: (N, B), total bits as a share of those of the trained model; NaN if the method counts none.
        layer_order: ``"top_down"``, ``"bottom_up"`` or ``"independent"``.

    Example:
        >>> result = randomization_check(model, Gradients, x, stages=2)
        >>> result.correlation.shape
        (2, 2)
    """

    layers: tuple[tuple[str, ...], ...]
    correlation: Numbers
    bits: Numbers
    layer_order: LayerOrder

    def __str__(self) -> str:
        counts = np.isfinite(self.bits)
        lines = [f"{'randomised':<40} {'Spearman':>8} {'bits':>7}"]
        for names, correlation, bits, counted in zip(
            self.layers, self.correlation, self.bits, counts, strict=True
        ):
            label = names[-1] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            share = f"{100 * bits[counted].mean():.0f} %" if counted.any() else "-"
            lines.append(f"{label[:40]:<40} {correlation.mean():>8.3f} {share:>7}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and texts, which JSON can store."""
        return {
            "layer_order": self.layer_order,
            "layers": [list(names) for names in self.layers],
            "correlation": self.correlation.tolist(),
            "bits": [[None if np.isnan(value) else value for value in row] for row in self.bits.tolist()],
        }


def randomization_check(
    model: Model,
    make: Callable[[Any], Method],
    x: Inputs,
    target: Classes = None,
    *,
    layer_order: LayerOrder = "top_down",
    layers: Sequence[str] | None = None,
    stages: int | None = None,
    seed: int = 0,
) -> RandomizationResult:
    """Randomise the weights of copies of a model, and compare the maps.

    J. Adebayo and others, "Sanity Checks for Saliency Maps", NeurIPS 2018; Quantus calls it model parameter
    randomisation. A map that stays the same does not show what the model has learnt. Bits should fall as
    well: a model that knows nothing needs none.

    The arrays of a layer are permuted, each in itself, so that they keep their scale; moving averages stay.
    The model itself is left as it is.

    Args:
        model: a PyTorch module or Keras model, its adapter, an `Explainer`, or a `ScoredModel`.
        make: makes the method for a model, such as ``lambda model: Explainer(model, "conv").fit(batches)``,
            or a class such as `Gradients`. It is called for the model and for each copy.
        x: inputs (B, ...), one array.
        target: index of the class, one for all or one for each; None for the class that the trained model
            predicts.
        layer_order: ``"top_down"`` for a cascade from the classifier to the first layer, ``"bottom_up"`` for
            one from the first layer, ``"independent"`` for one stage's layers at a time.
        layers: names of the layers to randomise, from the first to the last; None for all with weights.
        stages: divide the layers into so many stages; a cascade begins with one layer by itself. None for
            one layer in each.
        seed: seed of the permutations, and of methods that draw random numbers.

    Returns:
        The correlations and shares of bits for each stage.

    Raises:
        InputError: the weights of this kind of model cannot be changed, or there is no such layer.

    Example:
        >>> randomization_check(model, Gradients, x, target=1).layers
        (('logits',), ('conv',))
    """
    require_choice("layer_order", layer_order, ("top_down", "bottom_up", "independent"))
    require_callable("make", make, "a function of a model that gives a method")
    require_seed("seed", seed, optional=False)
    scored = ScoredModel.of(model)
    weights = scored.adapter.weights()
    groups = _stages(_names(layers, weights), layer_order, stages)
    tensor = scored.tensor(x)
    classes, images = scored.classes(tensor, target), scored.host(tensor)
    trained = explained(make(scored.adapter.model), images, classes, seed)
    other = permuted(weights, seed)
    correlations, bits = [], []
    changed: Weights = {}
    for names in groups:
        changed = {} if layer_order == "independent" else changed
        changed |= {name: other[name] for name in names}
        found = explained(make(scored.adapter.with_weights(changed)), images, classes, seed)
        correlations.append(agreement(found.maps, trained.maps, "spearman"))
        bits.append(_shares(found.bits, trained.bits, len(images)))
    layer_names = tuple(tuple(names) for names in groups)
    return RandomizationResult(layer_names, np.stack(correlations), np.stack(bits), layer_order)


def permuted(weights: Weights, seed: int) -> Weights:
    """Permute the values of each array at random.

    Args:
        weights: arrays by layers.
        seed: seed of the permutations.

    Example:
        >>> sorted(permuted({"a": [np.array([1, 2, 3])]}, seed=0)["a"][0].tolist())
        [1, 2, 3]
    """
    generator = np.random.default_rng(seed)
    return {
        name: [generator.permutation(array.ravel()).reshape(array.shape) for array in arrays]
        for name, arrays in weights.items()
    }


def _shares(found: Numbers | None, trained: Numbers | None, images: int) -> Numbers:
    if found is None or trained is None:
        return np.full(images, np.nan)
    return np.asarray(np.divide(found, trained, out=np.full(images, np.nan), where=trained > 0))


def _names(layers: Sequence[str] | None, weights: Weights) -> list[str]:
    if layers is None:
        return list(weights)
    require_sequence("layers", layers, "names of layers")
    for name in layers:
        if not isinstance(name, str) or name not in weights:
            raise InputError(f"layers holds {name!r}, which has no weights; {closest(str(name), weights)}")
    return list(layers)


def _stages(names: list[str], order: LayerOrder, stages: int | None) -> list[list[str]]:
    if not names:
        raise InputError("layers is empty, or the model has no weights that can be changed")
    ordered = names if order == "bottom_up" else names[::-1]
    count = len(names) if stages is None else min(require_whole("stages", stages, 1), len(names))
    if count == 1:
        return [ordered]
    # The first stage is one layer: the classifier, or the first.
    rest = np.array_split(np.array(ordered[1:], dtype=object), count - 1)
    return [ordered[:1], *([str(name) for name in part] for part in rest)]
