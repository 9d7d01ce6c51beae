"""The names of pytorch-grad-cam, in its modules.

`from pytorch_grad_cam import GradCAM` becomes `from iba_torch.compat.grad_cam import GradCAM`. Hooks on the
user's own model keep what its layers give, so that every model runs as it does by itself: detectors, layers
that run several times, a `get_cam_weights` of one's own. `iba_torch.concepts` has the same methods for new
code.
"""

from iba_torch.compat.grad_cam import utils
from iba_torch.compat.grad_cam._not_offered import (
    FEM,
    SESS,
    DeepFeatureFactorization,
    FinerCAM,
    GuidedBackpropReLUModel,
    RandomCAM,
    RefineCAM,
    ShapleyCAM,
    run_dff_on_image,
)
from iba_torch.compat.grad_cam.ablation_cam import AblationCAM
from iba_torch.compat.grad_cam.ablation_layer import AblationLayer, AblationLayerFasterRCNN, AblationLayerVit
from iba_torch.compat.grad_cam.activations_and_gradients import ActivationsAndGradients
from iba_torch.compat.grad_cam.base_cam import BaseCAM
from iba_torch.compat.grad_cam.eigen_cam import EigenCAM
from iba_torch.compat.grad_cam.eigen_grad_cam import EigenGradCAM
from iba_torch.compat.grad_cam.fullgrad_cam import FullGrad
from iba_torch.compat.grad_cam.grad_cam import GradCAM
from iba_torch.compat.grad_cam.grad_cam_elementwise import GradCAMElementWise
from iba_torch.compat.grad_cam.grad_cam_plusplus import GradCAMPlusPlus
from iba_torch.compat.grad_cam.hirescam import HiResCAM
from iba_torch.compat.grad_cam.kpca_cam import KPCA_CAM
from iba_torch.compat.grad_cam.layer_cam import LayerCAM
from iba_torch.compat.grad_cam.score_cam import ScoreCAM
from iba_torch.compat.grad_cam.seg_eigen_cam import SegEigenCAM
from iba_torch.compat.grad_cam.xgrad_cam import XGradCAM

__all__ = [
    "FEM",
    "KPCA_CAM",
    "SESS",
    "AblationCAM",
    "AblationLayer",
    "AblationLayerFasterRCNN",
    "AblationLayerVit",
    "ActivationsAndGradients",
    "BaseCAM",
    "DeepFeatureFactorization",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "XGradCAM",
    "run_dff_on_image",
    "utils",
]
