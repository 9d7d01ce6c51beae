"""Writes what pytorch-grad-cam 1.5.7 answers for a small network.

The package (https://github.com/jacobgil/pytorch-grad-cam) needs torchvision and OpenCV, which nothing else
here does, so the tests compare with this record instead. To make it again, with the package installed:

    python record_cam.py pytorch_grad_cam_1_5_7.npz
"""

import sys

import numpy as np
import torch
from pytorch_grad_cam import (
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    FullGrad,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
)
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

METHODS = (
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
    EigenCAM,
    EigenGradCAM,
    GradCAMElementWise,
    ScoreCAM,
    AblationCAM,
)

SHAPES = {"0": (6, 3, 3, 3), "2": (8, 6, 3, 3), "4": (8, 8, 3, 3), "7": (5, 8)}


class Pool(nn.Module):
    """The sum, which keeps the gradients far above the constants that the package adds to denominators."""

    def forward(self, x):
        return x.sum((2, 3))


def main(path: str) -> None:
    rng = np.random.RandomState(7)
    arrays: dict[str, np.ndarray] = {"input": rng.standard_normal((2, 3, 17, 20))}
    for name, shape in SHAPES.items():
        arrays[f"{name}.weight"] = rng.standard_normal(shape) * 2 / np.sqrt(np.prod(shape[1:]))
        arrays[f"{name}.bias"] = rng.standard_normal(shape[0]) * 0.2
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        Pool(),
        nn.Linear(8, 5),
    ).double()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items() if k != "input"})
    x = torch.from_numpy(arrays["input"])
    targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
    for method in METHODS:
        name = method.__name__
        with method(model=model, target_layers=[model[3]]) as cam:
            arrays[name] = cam(input_tensor=x, targets=targets)
            arrays[f"{name}.predicted"] = cam(input_tensor=x, targets=None)
            arrays[f"{name}.eigen_smooth"] = cam(input_tensor=x, targets=targets, eigen_smooth=True)
        with method(model=model, target_layers=[model[1], model[5]]) as cam:
            arrays[f"{name}.two_layers"] = cam(input_tensor=x, targets=targets)
    with GradCAM(model=model, target_layers=[model[3]]) as cam:
        arrays["GradCAM.aug_smooth"] = cam(input_tensor=x, targets=targets, aug_smooth=True)
    arrays["FullGrad"] = FullGrad(model, [])(input_tensor=x, targets=targets)
    # Scores as faint as they are deep in most networks: the package's constants then outweigh the gradients.
    faint = [lambda row: 1e-3 * row[1], lambda row: 1e-3 * row[3]]
    with GradCAMPlusPlus(model=model, target_layers=[model[3]]) as cam:
        arrays["GradCAMPlusPlus.faint"] = cam(input_tensor=x, targets=faint)
    arrays["picture"] = rng.random_sample((17, 20, 3)).astype(np.float32)
    arrays["overlay"] = show_cam_on_image(arrays["picture"], arrays["GradCAM"][0], use_rgb=True)
    arrays["overlay.bgr"] = show_cam_on_image(arrays["picture"], arrays["GradCAM"][0], image_weight=0.7)
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
