"""Does a map stay when it should? Small changes of the input, other seeds, and the bits that pass alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from iba_core.arguments import LARGEST_NUMBER, require_number, require_seed, require_sequence, require_whole
from iba_core.errors import InputError
from iba_core.evaluation.formulas import pearson
from iba_core.evaluation.methods import Explains, Method, explained, is_random, require_method
from iba_core.evaluation.places import generator_of
from iba_core.evaluation.scoring import Classes, ScoredModel
from iba_core.framework.adapter import Inputs, Model

Numbers = npt.NDArray[np.float64]

_MOST_SAMPLES = 10**4
"""Each is an explanation. More are a slip of the pen."""


def max_sensitivity(
    model: Model,
    method: Method,
    x: Inputs,
    target: Classes = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> Numbers:
    """Compute how much a map changes at most when its input is disturbed a little.

    It is the largest of ``|map(x + d) - map(x)| / |map(x)|``, in Euclidean norms, for random d with entries
    from -radius to radius: C.-K. Yeh and others, "On the (In)fidelity and Sensitivity of Explanations",
    NeurIPS 2019, definition 5.1, as Captum estimates it. The class stays that of x. Lower is better.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`.
        method: what gives the maps, see `iba_core.evaluation.methods.Method`. It gets the same seed each
            time.
        x: inputs (B, ...), one array.
        target: index of the class, one for all or one for each; None for the class predicted.
        radius: largest disturbance, in units of the model's input.
        samples: number of disturbed copies of each input.
        seed: seed of the disturbances.

    Returns:
        Array (B,), 0 or more; 0 for a map that does not change.

    Raises:
        InputError: an argument is wrong.

    Example:
        >>> max_sensitivity(model, Gradients(model), x, samples=2).shape
        (2,)
    """
    radius = require_number("radius", radius, 0, LARGEST_NUMBER)
    samples = require_whole("samples", samples, 1, _MOST_SAMPLES)
    require_seed("seed", seed, optional=False)
    scored = ScoredModel.of(model)
    tensor = scored.tensor(x)
    classes, images, layout = scored.classes(tensor, target), scored.host(tensor), scored.layout(tensor)
    whole = explained(method, images, classes, seed).maps.reshape(len(images), -1)
    lengths = np.linalg.norm(whole, axis=1)
    generators = [generator_of(seed, image, layout) for image in images]
    order = layout.from_channels_first()
    worst = np.zeros(len(images))
    for _ in range(samples):
        shape = [images.shape[1 + axis] for axis in layout.to_channels_first()]
        drawn = [each.uniform(-radius, radius, shape).transpose(order) for each in generators]
        disturbed = (images + np.stack(drawn)).astype(images.dtype)
        maps = explained(method, disturbed, classes, seed).maps.reshape(len(images), -1)
        changes = np.linalg.norm(maps - whole, axis=1) / np.where(lengths == 0, 1.0, lengths)
        worst = np.maximum(worst, changes)
    return worst


def seed_stability(
    model: Model, method: Method, x: Inputs, target: Classes = None, *, seeds: Sequence[int] = (0, 1, 2)
) -> Numbers:
    """Compute the least correlation between the maps of several seeds.

    Higher is better. A method without random numbers has 1.

    Args:
        model: a model of any framework, an adapter, an `Explainer`, or a `ScoredModel`.
        method: what gives the maps: an `Explainer`, or a method with ``has_seed = True``.
        x: inputs (B, ...), one array.
        target: index of the class, one for all or one for each; None for the class predicted.
        seeds: at least two.

    Returns:
        Array (B,), from -1 to 1.

    Raises:
        InputError: there are fewer than two seeds.

    Example:
        >>> seed_stability(model, explainer, x, target=1, seeds=(0, 1)).shape
        (2,)
    """
    require_sequence("seeds", seeds, "seeds", 2)
    for seed in seeds:
        require_seed("seeds", seed, optional=False)
    scored = ScoredModel.of(model)
    tensor = scored.tensor(x)
    require_method("method", method)
    classes, images = scored.classes(tensor, target), scored.host(tensor)
    if not is_random(method):
        return np.ones(len(images))
    maps = [explained(method, images, classes, seed).maps.reshape(len(images), -1) for seed in seeds]
    pairs = [(a, b) for a in range(len(maps)) for b in range(a)]
    least: Numbers = np.min([pearson(maps[a], maps[b]) for a, b in pairs], axis=0)
    return least


def survival(method: Explains, x: Inputs, target: Classes = None, *, seed: int = 0) -> Numbers:
    """Share of the target that is left when only the bits of a map pass.

    See `iba_core.Attribution.survival`, which this is. It asks whether a map suffices, not whether all of it
    is needed. 1 is best; above 1, what was left out spoke for other classes.

    Args:
        method: a fitted `Explainer`.
        x: inputs (B, ...).
        target: what to explain; None for the class predicted.
        seed: seed of the noise.

    Returns:
        Array (B,), 0 or more.

    Raises:
        InputError: the method counts no bits.

    Example:
        >>> survival(explainer, x, target=1).shape
        (2,)
    """
    if not isinstance(method, Explains):
        raise InputError("method gives maps without bits; only those of an Explainer can pass alone")
    found = method.explain(x, target, seed=seed).survival
    if found is None:
        raise InputError("method gives attributions without `survival`; give an Explainer")
    return np.asarray(found, np.float64)
