"""Which inputs of a model all images share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Any

from iba_core.arguments import require_sequence, require_type
from iba_core.errors import InputError
from iba_core.framework.comparison import OwnOutputs, difference
from iba_core.framework.inputs import Path, Shared, batch_size, leaves_of, map_leaves, of_images
from iba_core.framework.namespace import NAMESPACES, Array


class SharedInputs:
    """Knows which inputs of a model all images share, and marks them.

    The first array of the inputs has the images along its first axis. Another array of the same length could
    have them as well, or not: three images can be compared with three captions. The model itself decides. It
    runs once more, on each image twice, with each row of the other array twice or with the array as it is.
    Its output for an image must stay the same.

    Example:
        >>> shared = SharedInputs()
        >>> x, weights = np.arange(6.0).reshape(3, 2), np.ones((2, 3))
        >>> def product(inputs):
        ...     return inputs[0] @ getattr(inputs[1], "array", inputs[1]).T
        >>> marked = shared.mark((x, weights.T), product)
        >>> isinstance(marked[1], Shared)
        True
    """

    def __init__(self) -> None:
        self._is_shared: dict[Path, bool] = {}
        self._is_given = False

    def give(self, shared: Iterable[str | int]) -> None:
        """Take the user's word: these inputs, by name or position, are shared, and no others.

        Raises:
            InputError: `shared` is no list of names or positions.
        """
        require_sequence("shared", shared, "names or positions of inputs", least=0)
        for entry in shared:
            require_type("shared", entry, (str, int), "a list of names or positions of inputs")
        self._is_shared = {(key,): True for key in shared}
        self._is_given = True

    def mark(self, inputs: Any, predict: Callable[[Any], Any]) -> Any:
        """Mark the arrays of `inputs` that all images share.

        Args:
            inputs: arrays of the model's framework.
            predict: runs the model.

        Raises:
            InputError: the model does not tell, and the user has not said.
        """
        if hasattr(inputs, "shape"):
            return inputs
        leaves = dict(leaves_of(inputs))
        if len(leaves) < 2:
            return inputs
        unknown = [path[0] for path in self._is_shared if self._is_given and path not in leaves]
        if unknown:
            raise InputError(f"shared={unknown[0]!r} is no input; there are {[path[-1] for path in leaves]}")
        images = batch_size(inputs)
        open_paths = [
            path
            for path, leaf in list(leaves.items())[1:]
            if path not in self._is_shared and _has_rows(leaf, images)
        ]
        if open_paths and not self._is_given:
            self._learn(inputs, open_paths, predict)

        def mark(path: Path, leaf: Any) -> Any:
            return Shared(leaf) if not isinstance(leaf, Shared) and self._is_shared.get(path) else leaf

        return map_leaves(mark, inputs)

    def _learn(self, inputs: Any, paths: list[Path], predict: Callable[[Any], Any]) -> None:
        images = batch_size(inputs)
        # Outputs that are not about single images, such as a mean, must stay as they are, too.
        whole = OwnOutputs(predict(inputs), images, together=True)
        for shared in _subsets(paths):

            def marked(path: Path, leaf: Any, shared: tuple[Path, ...] = shared) -> Any:
                return Shared(leaf) if path in shared or self._is_shared.get(path) else leaf

            trial = of_images(map_leaves(marked, inputs), _twice)
            if _repeats(whole, trial, predict):
                self._is_shared.update({path: path in shared for path in paths})
                return
        names = ", ".join(str(path[-1] if len(path) == 1 else path) for path in paths)
        raise InputError(
            f"it is not clear whether each of the {images} images has its own part of the inputs {names}, or "
            "all share them; mark the shared ones with iba_core.Shared, or give Explainer(shared=...)"
        )


def _has_rows(leaf: Any, images: int) -> bool:
    return not isinstance(leaf, Shared) and bool(len(leaf.shape)) and leaf.shape[0] == images


def _twice(x: Array) -> Array:
    return NAMESPACES[type(x)].repeat(x, 2, axis=0)


def _subsets(paths: list[Path]) -> Iterator[tuple[Path, ...]]:
    """All subsets, the small ones first."""
    for size in range(len(paths) + 1):
        yield from combinations(paths, size)


def _repeats(whole: OwnOutputs, trial: Any, predict: Callable[[Any], Any]) -> bool:
    """Whether the model gives for the first image of a batch of doubles what it gave before."""
    try:
        found = predict(trial)
    except Exception:  # whatever a model raises, it does not take such inputs
        return False
    return difference(whole, found, batch_size(trial), epsilon=0.0) is None
