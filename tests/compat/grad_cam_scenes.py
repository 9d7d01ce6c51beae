"""What a user of pytorch-grad-cam does, written once for the published package and for the one here.

`scenes(package)` imports everything from the package of that name. To record what the published package
(grad-cam 1.5.7, with torchvision, OpenCV and ttach) gives:

    python -m tests.compat.grad_cam_scenes tests/data/grad_cam_scenes_1_5_7.npz
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from importlib import import_module

import numpy as np
import torch
from torch import nn

METHODS = (
    "GradCAM",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "XGradCAM",
    "EigenCAM",
    "EigenGradCAM",
    "GradCAMElementWise",
    "ScoreCAM",
    "AblationCAM",
    "FullGrad",
    "SegEigenCAM",
)


def filled(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights that every version of PyTorch draws alike."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                values = rng.standard_normal(tuple(tensor.shape)) / max(1, np.prod(tensor.shape[1:])) ** 0.5
                tensor.copy_(torch.from_numpy(np.abs(values) + 0.5 if "running_var" in name else values))
    return model.double()


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


class Sum(nn.Module):
    """The sum over the places, which keeps the gradients far above the constants added to denominators."""

    def forward(self, x):
        return x.flatten(2).sum(2)


def plain() -> nn.Sequential:
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 7, 3),
            nn.ReLU(),
            Sum(),
            nn.Linear(7, 5),
        ),
        1,
    )


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.pool, self.out = Sum(), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.conv(torch.relu(self.first(x))))
        return self.out(self.pool(torch.relu(self.conv(x))))


class Transformer(nn.Module):
    """Tokens of 4 x 4 pixels, with a class token in front or without one."""

    def __init__(self, class_token: bool):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, int(class_token), 8))
        self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = self.norm(tokens)
        return self.out(self.mix(tokens, tokens, tokens)[0].mean(1))


class Pyramid(nn.Module):
    """Five levels of 256 channels each, as a detector's backbone gives them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 256, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        sizes = {"0": 6, "1": 5, "2": 4, "3": 3, "pool": 2}
        return OrderedDict((name, nn.functional.adaptive_avg_pool2d(x, size)) for name, size in sizes.items())


class Detector(nn.Module):
    """Gives a list with two boxes for each image."""

    def __init__(self):
        super().__init__()
        self.backbone, self.score = Pyramid(), nn.Linear(256, 2)
        self.corners = nn.Parameter(torch.zeros(2, 4))

    def forward(self, x):
        features = sum(level.mean((2, 3)) for level in self.backbone(x).values())
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 7.0, 8.0]], dtype=x.dtype)
        found = []
        for scores in torch.sigmoid(self.score(features) / 10):
            moved = boxes + scores[:, None] * torch.tanh(self.corners)
            found.append({"boxes": moved, "labels": torch.tensor([1, 2]), "scores": scores})
        return found


def maps_of_the_methods(package) -> dict[str, np.ndarray]:
    model, x = plain(), images(2, 3, 17, 20)
    targets = import_module(f"{package.__name__}.utils.model_targets")
    pair = [targets.ClassifierOutputTarget(1), targets.ClassifierOutputTarget(-2)]
    found = {}
    for name in METHODS:
        method = getattr(package, name)
        options = {"batch_size": 1} if name == "AblationCAM" else {}
        layers = {"relu": [model[4]], "conv": [model[3]], "two": [model[2], model[6]]}
        for key, target_layers in layers.items():
            used = [] if name == "FullGrad" else target_layers
            with method(model=model, target_layers=used, **options) as cam:
                found[f"{name}.{key}"] = cam(input_tensor=x, targets=pair)
                if key == "relu":
                    found[f"{name}.predicted"] = cam(input_tensor=x, targets=None)
                    found[f"{name}.eigen_smooth"] = cam(x, pair, eigen_smooth=True)
        with method(model=model, target_layers=[] if name == "FullGrad" else [model[4]], **options) as cam:
            found[f"{name}.aug_smooth"] = cam(input_tensor=x, targets=pair, aug_smooth=True)
    with package.AblationCAM(model, [model[4]], ratio_channels_to_ablate=0.5) as cam:
        found["AblationCAM.some"] = cam(x, pair)
    cam = package.ScoreCAM(model, [model[4]])
    cam.batch_size = 3
    found["ScoreCAM.batches"] = cam(x, pair)
    return found


def maps_of_other_models(package) -> dict[str, np.ndarray]:
    targets = import_module(f"{package.__name__}.utils.model_targets")
    reshape = import_module(f"{package.__name__}.utils.reshape_transforms")
    one = [targets.ClassifierOutputTarget(2)]
    found = {}
    for name in ("GradCAM", "GradCAMPlusPlus", "LayerCAM", "EigenCAM"):
        method = getattr(package, name)
        model = filled(Twice(), 2)
        found[f"twice.{name}"] = method(model, [model.conv])(images(1, 3, 12, 9), one)
        volumes = filled(
            nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), Sum(), nn.Linear(4, 5)),
            3,
        )
        found[f"volumes.{name}"] = method(volumes, [volumes[2]])(images(2, 1, 6, 8, 10), one * 2)
        vit, swin = filled(Transformer(True), 4), filled(Transformer(False), 5)
        for key, net, transform in (
            ("vit", vit, lambda z: reshape.vit_reshape_transform(z, height=3, width=4)),
            ("swin", swin, lambda z: reshape.swinT_reshape_transform(z, height=3, width=4)),
        ):
            cam = method(net, [net.norm], transform)
            found[f"{key}.{name}"] = cam(images(2, 3, 12, 16), one * 2)
    cam = package.AblationCAM(
        vit,
        [vit.norm],
        lambda z: reshape.vit_reshape_transform(z, height=3, width=4),
        ablation_layer=package.AblationLayerVit(),
        batch_size=1,
    )
    found["vit.AblationCAM"] = cam(images(2, 3, 12, 16), one * 2)
    segmentation = filled(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)), 6)
    mask = (images(8, 9) > 0).numpy().astype(np.float32)
    target = targets.SemanticSegmentationTarget(1, mask)
    found["segmentation"] = package.GradCAM(segmentation, [segmentation[1]])(images(1, 3, 8, 9), [target])
    return found


def maps_of_a_detector(package) -> dict[str, np.ndarray]:
    targets = import_module(f"{package.__name__}.utils.model_targets")
    reshape = import_module(f"{package.__name__}.utils.reshape_transforms")
    model, x = filled(Detector(), 7), images(1, 3, 16, 16)
    boxes = model(x)[0]["boxes"].detach().numpy()
    wanted = [targets.FasterRCNNBoxScoreTarget(labels=[1, 2], bounding_boxes=boxes + 0.25)]
    layers, transform = [model.backbone], reshape.fasterrcnn_reshape_transform
    found = {"detector.EigenCAM": package.EigenCAM(model, layers, transform)(x, wanted)}
    cam = package.AblationCAM(
        model,
        layers,
        transform,
        ablation_layer=package.AblationLayerFasterRCNN(),
        ratio_channels_to_ablate=0.02,
    )
    found["detector.AblationCAM"] = cam(x, wanted)
    found["detector.GradCAM"] = package.GradCAM(model, [model.backbone.stem])(x, wanted)
    return found


def a_method_of_ones_own(package) -> dict[str, np.ndarray]:
    base = import_module(f"{package.__name__}.base_cam").BaseCAM
    model, x = plain(), images(2, 3, 17, 20)

    class MeanCAM(base):
        def get_cam_weights(self, input_tensor, target_layer, targets, activations, grads):
            return activations.mean(axis=(2, 3)) + np.sign(grads).mean(axis=(2, 3))

    class FirstCAM(base):
        def get_cam_image(self, input_tensor, target_layer, targets, activations, grads, eigen_smooth):
            return activations[:, 0]

    found = {}
    for kind in (MeanCAM, FirstCAM):
        with kind(model, [model[4]]) as cam:
            found[f"{kind.__name__}.call"] = cam(x, None)
            found[f"{kind.__name__}.forward"] = cam.forward(x, None, eigen_smooth=True)
            found[f"{kind.__name__}.outputs"] = cam.outputs.detach().numpy()
            kept = cam.activations_and_grads
            found[f"{kind.__name__}.activations"] = kept.activations[0].numpy()
            found[f"{kind.__name__}.gradients"] = kept.gradients[0].numpy()
            found[f"{kind.__name__}.size"] = np.array(cam.get_target_width_height(x))
    return found


def scores_of_the_targets(package) -> dict[str, np.ndarray]:
    targets = import_module(f"{package.__name__}.utils.model_targets")
    rows, single = images(3, 5), images(3, 1)
    made = {
        "ClassifierOutputTarget": (targets.ClassifierOutputTarget(-1), rows),
        "ClassifierOutputSoftmaxTarget": (targets.ClassifierOutputSoftmaxTarget(1), rows),
        "ClassifierOutputReST": (targets.ClassifierOutputReST(1), rows),
        "BinaryClassifierOutputTarget.1": (targets.BinaryClassifierOutputTarget(1), single),
        "BinaryClassifierOutputTarget.0": (targets.BinaryClassifierOutputTarget(0), single),
        "SoftmaxOutputTarget": (targets.SoftmaxOutputTarget(), rows),
        "RawScoresOutputTarget": (targets.RawScoresOutputTarget(), rows),
        "FinerWeightedTarget": (targets.FinerWeightedTarget(0, [1, 3], 0.6), rows),
    }
    found = {}
    for name, (target, outputs) in made.items():
        found[f"{name}.row"] = target(outputs[0]).numpy()
        found[f"{name}.batch"] = target(outputs).numpy()
    boxes = np.array([[0.0, 0.0, 4.0, 4.0], [3.0, 1.0, 7.0, 8.0], [0.0, 0.0, 1.0, 1.0]])
    detections = {"boxes": torch.from_numpy(boxes + 0.5), "labels": torch.tensor([1, 2, 1])}
    detections["scores"] = torch.tensor([0.9, 0.4, 0.3], dtype=torch.float64)
    for threshold in (0.5, 0.9):
        target = targets.FasterRCNNBoxScoreTarget([1, 2, 3], boxes, iou_threshold=threshold)
        found[f"FasterRCNNBoxScoreTarget.{threshold}"] = target(detections).numpy()
    return found


def pictures(package) -> dict[str, np.ndarray]:
    image = import_module(f"{package.__name__}.utils.image")
    svd = import_module(f"{package.__name__}.utils.svd_on_activations")
    rng = np.random.RandomState(8)
    picture, mask = rng.random_sample((32, 8, 3)).astype(np.float32), np.linspace(0, 1, 256).reshape(32, 8)
    found = {
        f"overlay.{number}": image.show_cam_on_image(picture, mask, use_rgb=True, colormap=number)
        for number in range(22)
    }
    found["overlay.default"] = image.show_cam_on_image(picture, mask)
    found["overlay.weight"] = image.show_cam_on_image(picture, mask, image_weight=0.8)
    found["deprocess"] = image.deprocess_image(rng.standard_normal((5, 6, 3)))
    maps, volumes = rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 3, 4, 5))
    found["scale"] = image.scale_cam_image(maps)
    found["scale.larger"] = image.scale_cam_image(maps, (20, 11))
    found["scale.smaller"] = image.scale_cam_image(maps, (4, 3))
    found["scale.faint"] = image.scale_cam_image(1e-7 * maps, (4, 3))
    found["scale.volumes"] = image.scale_cam_image(volumes, (10, 8, 9))
    found["scale.channels"] = image.scale_accross_batch_and_channels(volumes, (9, 8))
    eight_bit = (255 * picture).astype(np.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    found["preprocess.uint8"] = image.preprocess_image(eight_bit, mean, std).numpy()
    found["preprocess.float"] = image.preprocess_image(3 * picture, mean=mean, std=std).numpy()
    volumes[0, 1, 0, 0] = np.nan
    found["svd"] = svd.get_2d_projection(volumes)
    found["svd.signed"] = svd.get_2d_projection_with_sign_correction(volumes)
    found["svd.kernel"] = svd.get_2d_projection_kernel(volumes)
    return found


def scenes(package: str) -> dict[str, np.ndarray]:
    """Everything by its name."""
    module = import_module(package)
    parts = (
        maps_of_the_methods,
        maps_of_other_models,
        maps_of_a_detector,
        a_method_of_ones_own,
        scores_of_the_targets,
        pictures,
    )
    return {name: np.asarray(value) for part in parts for name, value in part(module).items()}


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **scenes("pytorch_grad_cam"))
