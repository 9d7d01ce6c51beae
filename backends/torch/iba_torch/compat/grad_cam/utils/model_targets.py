"""Targets: functions that map the output for one image to the score that a map explains.

They also take the outputs of a batch, (N, C), and give N scores. So they are targets for
`iba_core.Explainer.explain`, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from iba_core.arguments import require_number
from iba_core.concepts.scores import box_iou, output_minus_cross_entropy, weighted_difference


class ClassifierOutputTarget:
    """The output of a class.

    Args:
        category: its index; negative from the end.

    Example:
        >>> ClassifierOutputTarget(-1)(torch.tensor([1.0, 2.0]))
        tensor(2.)
        >>> ClassifierOutputTarget(0)(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([1., 3.])
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score of one output (C,), or of each of (N, C)."""
        return model_output[self.category] if model_output.ndim == 1 else model_output[:, self.category]


class ClassifierOutputSoftmaxTarget(ClassifierOutputTarget):
    """The probability of a class.

    Example:
        >>> ClassifierOutputSoftmaxTarget(0)(torch.tensor([1.0, 1.0]))
        tensor(0.5000)
    """

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score of one output (C,), or of each of (N, C)."""
        return super().__call__(torch.softmax(model_output, dim=-1))


class ClassifierOutputReST(ClassifierOutputTarget):
    """The output of a class plus the logarithm of its probability, see `output_minus_cross_entropy`.

    Example:
        >>> ClassifierOutputReST(0)(torch.tensor([2.0, 2.0]))
        tensor(1.3069)
    """

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score of one output (C,), or of each of (N, C)."""
        return output_minus_cross_entropy(model_output, self.category)  # type: ignore[no-any-return] # a tensor


class BinaryClassifierOutputTarget:
    """The single output of a binary classifier, or minus it.

    Args:
        category: 1 for the output; anything else for minus it.

    Example:
        >>> BinaryClassifierOutputTarget(0)(torch.tensor([2.0]))
        tensor([-2.])
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score of one output (1,), or of each of (N, 1)."""
        return model_output if self.category == 1 else -model_output


class SoftmaxOutputTarget:
    """The probabilities of all classes.

    Example:
        >>> SoftmaxOutputTarget()(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 0.5000])
    """

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """Probabilities of the shape of the output."""
        return torch.softmax(model_output, dim=-1)


class RawScoresOutputTarget:
    """The outputs themselves.

    Example:
        >>> RawScoresOutputTarget()(torch.tensor([2.0]))
        tensor([2.])
    """

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The output."""
        return model_output


class SemanticSegmentationTarget:
    """The sum of the scores of a class over some pixels of a segmentation.

    Args:
        category: index of the class.
        mask: the pixels, (H, W), 1 for those that count.

    Example:
        >>> import numpy as np
        >>> SemanticSegmentationTarget(1, np.array([[1.0, 0.0]]))(torch.tensor([[[5.0, 5.0]], [[3.0, 4.0]]]))
        tensor(3., dtype=torch.float64)
    """

    def __init__(self, category: int, mask: Any) -> None:
        self.category = category
        self.mask = torch.as_tensor(mask)

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score of one output, (C, H, W)."""
        return (model_output[self.category] * self.mask.to(model_output.device)).sum()


class FasterRCNNBoxScoreTarget:
    """How well a detector finds some boxes again: overlap plus confidence, summed over the boxes.

    A box counts if the box that overlaps it most does so by more than `iou_threshold`, and has its label.

    Args:
        labels: labels of the boxes.
        bounding_boxes: the boxes, each left, top, right and bottom.
        iou_threshold: intersection over union that a box must exceed.

    Example:
        >>> target = FasterRCNNBoxScoreTarget([1], [torch.tensor([0.0, 0.0, 2.0, 2.0])])
        >>> found = {"boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]]), "labels": torch.tensor([1])}
        >>> target({**found, "scores": torch.tensor([0.5])})
        tensor([1.5000])
    """

    def __init__(self, labels: Sequence[Any], bounding_boxes: Any, iou_threshold: float = 0.5) -> None:
        self.labels = labels
        self.bounding_boxes = bounding_boxes
        self.iou_threshold = require_number("iou_threshold", iou_threshold)

    def __call__(self, model_outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The score of the detections ``boxes``, ``labels`` and ``scores`` in one image, (1,)."""
        boxes = model_outputs["boxes"]
        total = boxes.new_zeros(1)
        if len(boxes) == 0:
            return total
        for wanted, label in zip(self.bounding_boxes, self.labels, strict=False):
            overlaps = box_iou(torch.as_tensor(wanted).to(boxes), boxes)
            best = int(overlaps.argmax())
            if overlaps[best] > self.iou_threshold and model_outputs["labels"][best] == label:
                total = total + overlaps[best] + model_outputs["scores"][best]
        return total


class FinerWeightedTarget:
    """The difference between the output of a class and those of similar classes, see `weighted_difference`.

    Args:
        main_category: index of the class.
        comparison_categories: indices of the classes to compare with.
        alpha: factor of their outputs.

    Example:
        >>> FinerWeightedTarget(0, [1, 2], 0.5)(torch.tensor([3.0, 1.0, 1.0]))
        tensor(2.5000)
    """

    def __init__(self, main_category: int, comparison_categories: Sequence[int], alpha: float) -> None:
        self.main_category = main_category
        self.comparison_categories = comparison_categories
        self.alpha = alpha

    def __call__(self, model_output: torch.Tensor) -> torch.Tensor:
        """The score of one output (C,), or of each of (N, C)."""
        found: torch.Tensor = weighted_difference(
            model_output, self.main_category, self.comparison_categories, self.alpha
        )
        return found
