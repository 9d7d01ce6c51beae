"""Pictures, targets and reshape transforms, in the modules of the published package."""

from iba_torch.compat.grad_cam.utils import model_targets, reshape_transforms
from iba_torch.compat.grad_cam.utils.image import deprocess_image
from iba_torch.compat.grad_cam.utils.svd_on_activations import get_2d_projection

__all__ = ["deprocess_image", "get_2d_projection", "model_targets", "reshape_transforms"]
