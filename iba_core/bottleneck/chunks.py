"""The loop over the images of a batch, a chunk of them at a time, once for all that explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from iba_core.arguments import require_bool, require_whole
from iba_core.bottleneck.optimization import BottleneckOptimizer, BottleneckResult, Callback, PassMask
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.shared import Part, SharedMask
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


class AtLayer(NamedTuple):
    """A layer to explain at."""

    split: Split
    """The model, split at the bottleneck's layer."""
    feature_shape: Sequence[int]
    """Shape of one feature map."""
    task: Callable[[Tail, int, int], Task]
    """Says what to optimise for the images from a start to a stop, whose tail it gets."""
    pass_mask: PassMask | None = None
    """For one feature map or for each image, see `PassMask`."""


class Chunk(NamedTuple):
    """A chunk of images that has been explained, while its heads are still open."""

    start: int
    """Number of the first image."""
    stop: int
    """Number after the last image."""
    tail: Tail
    """That of the first layer."""
    results: tuple[BottleneckResult, ...]
    """For each layer."""

    @property
    def result(self) -> BottleneckResult:
        """The first layer's."""
        return self.results[0]


def explain_in_chunks(
    framework: Framework,
    layers: Sequence[AtLayer],
    inputs: Inputs,
    settings: BottleneckSettings,
    *,
    together: bool = False,
    seed: int | None = None,
    max_batch: int | None = None,
    progbar: bool = False,
) -> Iterator[Chunk]:
    """Optimise a mask for each image of a batch, as many images at once as suits the device.

    Args:
        framework: the model's framework.
        layers: the layer of a bottleneck; or several, whose bottlenecks share one mask, see `SharedMask`.
        inputs: B images, as tensors of the model.
        settings: hyperparameters.
        together: explain all images at once, because what is to be kept knows the batch as a whole.
        seed: makes the noise a function of the seed alone.
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
    layers = [
        layer
        if layer.pass_mask is None
        else layer._replace(pass_mask=require_mask("pass_mask", layer.pass_mask))
        for layer in layers
    ]
    preferred = None
    if images > 1 and max_batch is None:
        first = next(arrays_of(inputs))
        known = [framework.preferred_batch(layer.feature_shape, first) for layer in layers]
        preferred = min((rows for rows in known if rows is not None), default=None)
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
                with _heads(framework, [layer.split for layer in layers], chunk, seed) as tails:
                    results = _optimized(
                        [layer.task(tail, start, stop) for layer, tail in zip(layers, tails, strict=True)],
                        tails,
                        [_passing(layer, start, stop) for layer in layers],
                        settings,
                        seed=seed,
                        max_batch=1 if any(tail.one_by_one for tail in tails) else max_batch,
                        progbar=progbar and one_bar,
                    )
                    yield Chunk(start, stop, tails[0], results)
            except MixedImagesError:
                if at_once == 1 or together:
                    raise
                at_once = 1
                continue
            if bar is not None:
                bar.update(stop - start)
            start = stop


@contextmanager
def _heads(
    framework: Framework, splits: Sequence[Split], inputs: Inputs, seed: int | None
) -> Iterator[list[Tail]]:
    """Run the heads of all layers, and give their tails."""
    if not splits:
        yield []
        return
    split, *others = splits
    # Begun anew after the head, which may have been checked.
    with framework.randomness(seed), split.head(inputs) as head, framework.randomness(seed):
        split.require_seeded(seed)
        with _heads(framework, others, inputs, seed) as tails:
            yield [head.in_memory_order(), *tails]


def _optimized(
    tasks: Sequence[Task],
    tails: Sequence[Tail],
    pass_masks: Sequence[PassMask | None],
    settings: BottleneckSettings,
    **options: Any,
) -> tuple[BottleneckResult, ...]:
    """Optimise the mask of one layer, or one that several share."""
    if len(tasks) == 1:
        (task,), (tail,), (pass_mask,) = tasks, tails, pass_masks
        result = task.optimizer.run(
            tail,
            task.statistics,
            task.rows,
            settings,
            pass_mask=pass_mask,
            callback=task.callback,
            whole=task.whole,
            start=task.start,
            **options,
        )
        return (result,)
    parts = [
        Part(task.optimizer, tail, task.statistics, task.rows, task.whole, pass_mask)
        for task, tail, pass_mask in zip(tasks, tails, pass_masks, strict=True)
    ]
    return SharedMask(parts, settings).run(**options)


def _images_at_once(images: int, samples: int, max_batch: int | None, preferred: int | None) -> int:
    """How many images of a batch to explain together; the copies of one image are never divided."""
    rows = max_batch or preferred
    return images if rows is None else max(1, rows // samples)


def _passing(layer: AtLayer, start: int, stop: int) -> PassMask | None:
    """The pass mask of the images from `start` to `stop`."""
    mask = layer.pass_mask
    return mask[start:stop] if mask is not None and mask.ndim == len(layer.feature_shape) + 1 else mask
