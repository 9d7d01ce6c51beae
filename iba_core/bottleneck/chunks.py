"""The loop over the images of a batch, a chunk of them at a time, once for all that explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from iba_core.arguments import require_bool, require_whole
from iba_core.bottleneck.optimization import BottleneckOptimizer, BottleneckResult, Callback, PassMask
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.framework.adapter import Inputs, MixedImagesError, Split, Tail
from iba_core.framework.arrays import require_mask
from iba_core.framework.framework import Framework
from iba_core.framework.inputs import arrays_of, batch_size, take
from iba_core.framework.namespace import Array
from iba_core.utils import get_tqdm


class Task(NamedTuple):
    """What to optimise for a chunk of images."""

    optimizer: BottleneckOptimizer
    statistics: Statistics
    """Distribution of the features, in the model's own order of axes."""
    rows: tuple[Array, ...] = ()
    """Tensors with a row per image of the chunk, for the loss."""
    callback: Callback | None = None
    whole: Array | None = None
    """The loss of the unrestricted images, to measure how much of the target survives."""
    start: Array | None = None
    """Alpha to start at, see `BottleneckOptimizer.run`."""


class Chunk(NamedTuple):
    """A chunk of images that has been explained, while its head is still open."""

    start: int
    """Number of the first image."""
    stop: int
    """Number after the last image."""
    tail: Tail
    result: BottleneckResult


def explain_in_chunks(
    framework: Framework,
    split: Split,
    inputs: Inputs,
    feature_shape: Sequence[int],
    settings: BottleneckSettings,
    task: Callable[[Tail, int, int], Task],
    *,
    together: bool = False,
    seed: int | None = None,
    pass_mask: PassMask | None = None,
    max_batch: int | None = None,
    progbar: bool = False,
) -> Iterator[Chunk]:
    """Optimise a bottleneck for each image of a batch, as many images at once as suits the device.

    Args:
        framework: the model's framework.
        split: the model, split at the bottleneck's layer.
        inputs: B images, as tensors of the model.
        feature_shape: shape of one feature map.
        settings: hyperparameters.
        task: says what to optimise for the images from a start to a stop, whose tail it gets.
        together: explain all images at once, because what is to be kept knows the batch as a whole.
        seed: makes the noise a function of the seed alone.
        pass_mask: for one feature map or for each image, see `PassMask`.
        max_batch: the most feature maps that pass the tail at once. If None, all of the batch; on a processor
            as many as its caches hold, see `Framework.preferred_batch`.
        progbar: show the progress.

    Yields:
        Each chunk, in the order of the images.

    Raises:
        InputError: `max_batch` is less than 1, shapes do not fit, or the model draws random numbers that the
            seed does not govern.
        OptimizationError: the objective became NaN or infinite.
    """
    images = batch_size(inputs)
    if max_batch is not None:
        require_whole("max_batch", max_batch, 1)
    if progbar is not False:
        require_bool("progbar", progbar)
    if pass_mask is not None:
        pass_mask = require_mask("pass_mask", pass_mask)
    preferred = None
    if images > 1 and max_batch is None:
        preferred = framework.preferred_batch(feature_shape, next(arrays_of(inputs)))
    if together:
        at_once = images
        max_batch = max_batch if preferred is None else max(images, preferred)
    else:
        at_once = _images_at_once(images, settings.samples, max_batch, preferred)
    start, one_bar = 0, at_once >= images
    bars = progbar and not one_bar
    with get_tqdm()(total=images, desc="Explaining") if bars else nullcontext() as bar:
        while start < images:
            stop = min(start + at_once, images)
            chunk = inputs if at_once >= images else take(inputs, start, stop)
            try:
                # Begun anew after the head, which may have been checked.
                with framework.randomness(seed), split.head(chunk) as head, framework.randomness(seed):
                    split.require_seeded(seed)
                    tail = head.in_memory_order()
                    found = task(tail, start, stop)
                    result = found.optimizer.run(
                        tail,
                        found.statistics,
                        found.rows,
                        settings,
                        seed=seed,
                        pass_mask=_of_images(pass_mask, len(feature_shape), start, stop),
                        max_batch=1 if tail.one_by_one else max_batch,
                        progbar=progbar and one_bar,
                        callback=found.callback,
                        whole=found.whole,
                        start=found.start,
                    )
                    yield Chunk(start, stop, tail, result)
            except MixedImagesError:
                if at_once == 1 or together:
                    raise
                at_once = 1
                continue
            if bar is not None:
                bar.update(stop - start)
            start = stop


def _images_at_once(images: int, samples: int, max_batch: int | None, preferred: int | None) -> int:
    """How many images of a batch to explain together; the copies of one image are never divided."""
    rows = max_batch or preferred
    return images if rows is None else max(1, rows // samples)


def _of_images(array: Any, ndim: int, start: int, stop: int) -> Any:
    """The part of a pass mask for the images from `start` to `stop`, where it has one for each image."""
    return array[start:stop] if array is not None and np.ndim(array) == ndim + 1 else array
