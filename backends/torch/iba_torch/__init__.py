"""Information-bottleneck attribution for PyTorch."""

from iba_core.errors import MissingDependencyError
from iba_core.readout.training import EpochReport

try:
    import torch  # noqa: F401  # imported only to find out whether it can be
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError(
        "iba_torch needs PyTorch, which is not installed: pip install 'iba-core[torch]'"
    ) from None

from iba_torch.adapter import TorchAdapter
from iba_torch.bottlenecks.estimator import TorchWelfordEstimator
from iba_torch.bottlenecks.iba import IBA, to_saliency_map
from iba_torch.bottlenecks.readout import IBAReadout
from iba_torch.bottlenecks.sequential import insert_into_sequential
from iba_torch.framework import TorchFramework
from iba_torch.images import ImageFolder, get_imagenet_folder, imagenet_transform, tensor_to_np_img
from iba_torch.tail.split import TorchSplit

__all__ = [
    "IBA",
    "EpochReport",
    "IBAReadout",
    "ImageFolder",
    "TorchAdapter",
    "TorchFramework",
    "TorchSplit",
    "TorchWelfordEstimator",
    "get_imagenet_folder",
    "imagenet_transform",
    "insert_into_sequential",
    "tensor_to_np_img",
    "to_saliency_map",
]
