"""The base of the class activation maps: run the model, weight the channels, scale and average the maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from iba_core.arguments import given, require_bool, require_callable
from iba_core.errors import InputError, LayerError
from iba_core.targets import main_output
from iba_torch.compat.grad_cam.activations_and_gradients import ActivationsAndGradients, ReshapeTransform
from iba_torch.compat.grad_cam.utils.image import scale_cam_image
from iba_torch.compat.grad_cam.utils.model_targets import ClassifierOutputTarget
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection
from iba_torch.tail.precision import keeps_settings

Targets = Any
"""One callable for each image, which maps the image's output to a score; one callable for all; or None for
the predicted class."""

FloatArray = npt.NDArray[np.floating]


class View:
    """An image made darker or brighter, and mirrored from left to right or not.

    Args:
        mirrored: whether it is mirrored.
        factor: factor of the brightness.

    Example:
        >>> View(True, 2.0).augment_image(torch.tensor([1.0, 3.0]))
        tensor([6., 2.])
    """

    def __init__(self, mirrored: bool, factor: float) -> None:
        self.mirrored, self.factor = mirrored, factor

    def augment_image(self, image: torch.Tensor) -> torch.Tensor:
        """The view of an image (..., W)."""
        return (image.flip(-1) if self.mirrored else image) * self.factor

    def deaugment_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The map of a view (..., W), as a map of the image."""
        return mask.flip(-1) if self.mirrored else mask


VIEWS = tuple(View(mirrored, factor) for mirrored in (False, True) for factor in (0.9, 1.0, 1.1))
"""What `aug_smooth` averages over."""


class BaseCAM:
    """A class activation map. A subclass gives the weights of the channels, or the whole map of a layer.

    For a method of your own, override `get_cam_weights`, or `get_cam_image` if the weights are not one number
    for each channel.

    Args:
        model: an `nn.Module`. It is put into evaluation mode, and stays in it.
        target_layers: modules of the model, whose maps are averaged.
        reshape_transform: makes feature maps (B, C, *places) of what a layer gives.
        compute_input_gradient: whether `get_cam_image` finds a gradient at ``input_tensor.grad``.
        uses_gradients: False for methods that need no gradient. None is then computed.
        tta_transforms: views for `aug_smooth`, as `ttach.Compose` gives them; None for the image and its
            mirror image, each also darker and brighter by a tenth.
        detach: keep activations and gradients as NumPy arrays. If False, they are tensors with their graph.
        use_cuda: move the model to the GPU. Versions before 1.5 had this argument.

    Attributes:
        outputs: what the model gave in the last pass, with its graph.
        activations_and_grads: the hooks, see `ActivationsAndGradients`.
        device: of the model's parameters. Inputs are moved there.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Iterable[nn.Module],
        reshape_transform: ReshapeTransform | None = None,
        compute_input_gradient: bool = False,
        uses_gradients: bool = True,
        tta_transforms: Any = None,
        detach: bool = True,
        *,
        use_cuda: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"{given('model', model)} must be an nn.Module")
        require_callable("reshape_transform", reshape_transform, "a function", optional=True)
        self.target_layers = _layers(target_layers)
        self.model = (model.cuda() if require_bool("use_cuda", use_cuda) else model).eval()
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.reshape_transform = reshape_transform
        self.compute_input_gradient = compute_input_gradient
        self.uses_gradients = uses_gradients
        self.tta_transforms = VIEWS if tta_transforms is None else tta_transforms
        self.detach = detach
        self.outputs: Any = None
        self.activations_and_grads = ActivationsAndGradients(
            self.model, self.target_layers, reshape_transform, detach
        )

    # -- what a subclass gives --------------------------------------------------------------------------

    def get_cam_weights(
        self,
        input_tensor: torch.Tensor,
        target_layer: nn.Module,
        targets: Sequence[Any],
        activations: Any,
        grads: Any,
    ) -> Any:
        """Weights (B, C) of the channels of a layer.

        Args:
            input_tensor: the inputs, (B, ...).
            target_layer: the layer.
            targets: one for each image.
            activations: of the layer, (B, C, *places).
            grads: gradients of the sum of the scores with respect to them; None without gradients.
        """
        raise NotImplementedError("a subclass of BaseCAM gives get_cam_weights or get_cam_image")

    def get_cam_image(
        self,
        input_tensor: torch.Tensor,
        target_layer: nn.Module,
        targets: Sequence[Any],
        activations: Any,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> FloatArray:
        """The map of a layer (B, *places): the sum of the weighted channels, or their principal component."""
        weights = self.get_cam_weights(input_tensor, target_layer, targets, activations, grads)
        values = on_host(activations)
        factors = on_host(weights)
        weighted = factors.reshape(*factors.shape, *(1 for _ in values.shape[2:])) * values
        return combined(weighted, eigen_smooth)

    def compute_cam_per_layer(
        self, input_tensor: torch.Tensor, targets: Sequence[Any], eigen_smooth: bool
    ) -> Any:
        """Maps of the layers, (B, 1, *input places) each."""
        kept, size = self.activations_and_grads, self.get_target_width_height(input_tensor)
        maps = []
        for number, layer in enumerate(self.target_layers):
            activations = self._array(kept.activations[number]) if number < len(kept.activations) else None
            gradient = kept.gradient_of(number)
            grads = None if gradient is None else self._array(gradient)
            if activations is None or (grads is None and self.uses_gradients):
                raise LayerError(
                    f"target_layers[{number}], a {type(layer).__name__}, gave no "
                    f"{'activations' if activations is None else 'gradient'}: it does not run, the score "
                    "does not depend on it, or the CAM was closed"
                )
            found = self.get_cam_image(input_tensor, layer, targets, activations, grads, eigen_smooth)
            maps.append(scale_cam_image(np.maximum(on_host(found), 0), size)[:, None])
        return maps

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> npt.NDArray[np.float32]:
        """Average the maps of the layers, and scale the result to the range from 0 to 1."""
        maps = np.maximum(np.concatenate(list(cam_per_target_layer), axis=1), 0)
        return scale_cam_image(maps.mean(axis=1))

    # -- running the model ------------------------------------------------------------------------------

    def __call__(
        self,
        input_tensor: torch.Tensor,
        targets: Targets = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Compute the maps of a batch of images.

        Args:
            input_tensor: (B, C, H, W) or (B, C, D, H, W).
            targets: a callable for each image, which maps the image's output to a score; one for all images;
                or None for the predicted class.
            aug_smooth: average the maps of several views of each image, see `tta_transforms`.
            eigen_smooth: take the first principal component of the weighted channels instead of their sum.

        Returns:
            Array (B, H, W) or (B, D, H, W), float32, from 0 to 1.

        Raises:
            InputError: there are several targets, but not one for each image.
            LayerError: a layer does not run, or no gradient reaches it.
        """
        if aug_smooth:
            return self.forward_augmentation_smoothing(input_tensor, targets, eigen_smooth)
        return self.forward(input_tensor, targets, eigen_smooth)

    @keeps_settings
    def forward(
        self, input_tensor: torch.Tensor, targets: Targets = None, eigen_smooth: bool = False
    ) -> npt.NDArray[np.float32]:
        """Compute the maps without `aug_smooth`. The arguments are those of a call."""
        input_tensor = input_tensor.to(self.device)
        if self.compute_input_gradient or (self.uses_gradients and self._is_frozen()):
            input_tensor = input_tensor.detach().requires_grad_(True)
        self.outputs = self.activations_and_grads(input_tensor)
        rows = _rows(self.outputs)
        targets = self._one_for_each(targets, rows)
        if self.uses_gradients:
            loss = sum(target(row) for target, row in zip(targets, rows, strict=True))
            self._differentiate(loss, input_tensor)
        maps = self.compute_cam_per_layer(input_tensor, targets, eigen_smooth)
        return self.aggregate_multi_layers(maps)

    def forward_augmentation_smoothing(
        self, input_tensor: torch.Tensor, targets: Targets = None, eigen_smooth: bool = False
    ) -> npt.NDArray[np.float32]:
        """Compute the mean of the maps of several views of each image."""
        maps = []
        for view in self.tta_transforms:
            found = self.forward(view.augment_image(input_tensor), targets, eigen_smooth)
            maps.append(view.deaugment_mask(torch.from_numpy(found[:, None])).numpy()[:, 0])
        return np.asarray(np.mean(maps, axis=0), dtype=np.float32)

    def get_target_width_height(self, input_tensor: torch.Tensor) -> tuple[int, ...]:
        """Sizes of the spatial axes of the input, the last one first."""
        if input_tensor.ndim not in (4, 5):
            raise InputError(
                f"input_tensor has shape {tuple(input_tensor.shape)}; images (B, C, H, W) or volumes "
                "(B, C, D, H, W) were expected"
            )
        return tuple(input_tensor.shape[:1:-1])

    def scores_of(self, inputs: torch.Tensor, target: Any) -> npt.NDArray[np.float64]:
        """Scores (N,) of N versions of an image, without a gradient and without keeping anything."""
        with torch.no_grad(), self.activations_and_grads.paused():
            return np.array([float(torch.as_tensor(target(row)).sum()) for row in _rows(self.model(inputs))])

    def _differentiate(self, loss: Any, input_tensor: torch.Tensor) -> None:
        if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
            raise InputError(
                "targets give scores without a gradient; a function of the model's output is needed"
            )
        if loss.ndim > 0 and loss.numel() > 1:
            raise InputError(
                f"targets give scores of shape {tuple(loss.shape)}; a single number for each image is needed"
            )
        if self.detach:
            with _own_gradients(self.model):
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call] # of PyTorch
        else:
            torch.autograd.grad(loss, input_tensor, retain_graph=True, create_graph=True)

    def _one_for_each(self, targets: Targets, rows: Sequence[Any]) -> list[Any]:
        if targets is None:
            if isinstance(rows, torch.Tensor):
                return [ClassifierOutputTarget(category) for category in rows.argmax(dim=-1).tolist()]
            if self.uses_gradients:
                raise InputError(
                    f"the model returns {type(self.outputs).__name__}, which has no predicted class; "
                    "give targets"
                )
            return []
        found = [targets] if callable(targets) else list(targets)
        wrong = next((target for target in found if not callable(target)), None)
        if wrong is not None:
            raise InputError(f"{given('targets', wrong)} must be a function of the output for one image")
        if len(found) == 1:
            return found * len(rows)
        if len(found) != len(rows):
            raise InputError(
                f"targets holds {len(found)} targets for {len(rows)} images; give one for each, or one "
                "for all"
            )
        return found

    def _is_frozen(self) -> bool:
        return not any(parameter.requires_grad for parameter in self.model.parameters())

    def _array(self, tensor: torch.Tensor) -> Any:
        return on_host(tensor) if self.detach else tensor

    # -- the context ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Remove the hooks."""
        self.activations_and_grads.release()

    def __del__(self) -> None:
        # A constructor that has failed has made no hooks.
        if hasattr(self, "activations_and_grads"):
            self.activations_and_grads.release()


def on_host(values: Any) -> npt.NDArray[Any]:
    """A tensor, or anything that NumPy knows, as a NumPy array; half precision as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
    return np.asarray(values)


def per_channel(weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Weights (B, C, 1, ...) as (B, C)."""
    return weights.reshape(weights.shape[:2])


def combined(weighted: npt.NDArray[Any], eigen_smooth: bool) -> FloatArray:
    """The sum of weighted channels (B, C, *places), or their principal component."""
    return get_2d_projection(weighted) if eigen_smooth else np.asarray(weighted.sum(axis=1))


def _layers(target_layers: Any) -> list[nn.Module]:
    several = [target_layers] if isinstance(target_layers, nn.Module) else list(target_layers)
    wrong = next((layer for layer in several if not isinstance(layer, nn.Module)), None)
    if wrong is not None:
        raise InputError(f"{given('target_layers', wrong)} must be a module of the model")
    return several


def _rows(outputs: Any) -> Any:
    """What the targets get, one for each image: rows of a tensor, or entries of a list of detections."""
    if isinstance(outputs, (Mapping, tuple)) or hasattr(outputs, "logits"):
        return main_output(outputs)
    return outputs


@contextmanager
def _own_gradients(model: nn.Module) -> Iterator[None]:
    """Context in which a backward pass does not touch the gradients that the user keeps on the parameters."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
