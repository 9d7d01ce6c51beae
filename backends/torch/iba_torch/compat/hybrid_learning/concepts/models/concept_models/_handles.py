"""Training and evaluation of a concept model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from iba_core.arguments import require_type
from iba_core.concepts.detection import ConceptDetection
from iba_core.concepts.training import (
    Hyperplane,
    TrainingSettings,
    approximate_posterior,
    default_loss,
    train_detection_model,
)
from iba_torch.compat.hybrid_learning.concepts.train_eval.kpis import BalancedBCELoss, IoU, SetIoU


class ConceptDetection2DTrainTestHandle:
    """Train a concept model with `iba_core.concepts.train_detection_model`, and evaluate it.

    Args:
        concept_model: a `ConceptDetectionModel2D`.
        data: what `data_for_concept_model` has given.
        max_epochs: maximum number of passes over the training data; None for that of `TrainingSettings`.
        batch_size: number of images in a step.
        loss_fn: loss of heatmaps and masks; None for that of `TrainingSettings`.
        metric_fns: functions of heatmaps and masks (B, 1, H, W), by name.
        settings: further `TrainingSettings`.

    Attributes:
        optimizer: the `TrainingSettings`.

    Raises:
        InputError: a setting is wrong.

    Example:
        See the migration page.
    """

    def __init__(
        self,
        concept_model: Any,
        data: Any,
        *,
        max_epochs: int | None = None,
        batch_size: int = 8,
        loss_fn: Callable[..., Tensor] | None = None,
        metric_fns: Mapping[str, Callable[..., Tensor]] | None = None,
        **settings: Any,
    ) -> None:
        require_type("concept_model", concept_model, ConceptDetection, "a ConceptDetectionModel2D")
        self.model = concept_model
        self.data = data
        self.batch_size = batch_size
        self.loss_fn: Any = default_loss() if loss_fn is None else loss_fn
        self.metric_fns = dict({"mean_iou": IoU(), "set_iou": SetIoU()} if metric_fns is None else metric_fns)
        epochs = {} if max_epochs is None else {"epochs": max_epochs}
        self._settings = {**epochs, "batch_size": batch_size, "loss": _likelihood(self.loss_fn), **settings}
        self.optimizer = TrainingSettings(**self._settings)

    def train(self, show_progress_bars: bool = False) -> list[Hyperplane]:
        """Train the model, and approximate the posterior of its weights if it uses Laplace.

        Returns:
            The learnt hyperplanes, with the losses of all epochs.
        """
        return train_detection_model(
            self.model, self.data.concept, progbar=show_progress_bars, **self._settings
        )

    def second_stage_train(self, show_progress_bars: bool = False) -> None:
        """Approximate the posterior of the weights that the model has."""
        approximate_posterior(self.model, self.data.concept, progbar=show_progress_bars, **self._settings)

    @torch.no_grad()
    def evaluate(self, mode: str = "test") -> dict[str, float]:
        """Compute loss and metrics of one part of the data, at the resolution of the masks.

        Args:
            mode: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            The means over batches by name, such as ``"test_loss"``. `SetIoU` runs over all batches.
        """
        functions = {"loss": self.loss_fn, **self.metric_fns}
        values: dict[str, list[float]] = {name: [] for name in functions}
        running = {name: metric for name, metric in functions.items() if hasattr(metric, "value_and_reset")}
        self.model.eval()
        for maps, truth in DataLoader(getattr(self.data, mode), batch_size=self.batch_size):
            heatmaps = self.model(maps)
            heatmaps = heatmaps if heatmaps.ndim == 4 else heatmaps.mean(dim=0)
            masks = truth.reshape(len(truth), 1, *truth.shape[-2:])
            heatmaps = functional.interpolate(heatmaps, masks.shape[-2:], mode="bilinear")
            for name, function in functions.items():
                values[name].append(float(function(heatmaps, masks)))
        results = {name: sum(batches) / len(batches) for name, batches in values.items()}
        results.update({name: float(metric.value_and_reset()) for name, metric in running.items()})
        return {f"{mode}_{name}": value for name, value in results.items()}


def _likelihood(loss: Any) -> Any:
    """PyTorch's own cross-entropies as the loss of this library, which a posterior needs."""
    if type(loss) in (nn.BCELoss, nn.BCEWithLogitsLoss):
        return BalancedBCELoss(0.5, loss.reduction, from_logit=isinstance(loss, nn.BCEWithLogitsLoss))
    return loss
