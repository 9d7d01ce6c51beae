"""What code for pytorch-grad-cam relies on besides numbers, and what is different on purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import InputError, LayerError
from iba_torch.compat import grad_cam
from iba_torch.compat.grad_cam.utils import find_layers
from iba_torch.compat.grad_cam.utils.image import create_labels_legend, show_cam_on_image
from iba_torch.compat.grad_cam.utils.model_targets import ClassifierOutputTarget
from tests.compat.grad_cam_scenes import images, plain


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_context_and_the_end_of_a_cam_remove_the_hooks():
    model, x = plain().train(), images(2, 3, 17, 20)
    with grad_cam.GradCAM(model=model, target_layers=[model[4]]) as cam:
        assert cam.device == torch.device("cpu")
        cam(x)
        assert hooks(model) == 2
    assert hooks(model) == 0
    assert not model.training
    with pytest.raises(LayerError, match="closed"):
        cam(x)
    with pytest.raises(IndexError), grad_cam.GradCAM(model, [model[4]]) as cam:
        cam(x, ClassifierOutputTarget(9))
    kept = grad_cam.GradCAM(model, [model[4]])
    del kept
    assert hooks(model) == 0


def test_one_target_serves_all_images():
    model, x = plain(), images(2, 3, 17, 20)
    target = ClassifierOutputTarget(1)
    for method in (grad_cam.GradCAM, grad_cam.ScoreCAM, grad_cam.AblationCAM):
        cam = method(model, [model[4]])
        expected = cam(x, [target] * 2)
        np.testing.assert_array_equal(cam(x, target), expected)
        np.testing.assert_array_equal(cam(x, [target]), expected)
        with pytest.raises(InputError, match="3 targets for 2 images"):
            cam(x, [target] * 3)
    with pytest.raises(InputError, match="targets=1"):
        cam(x, [1, 2])


def test_the_users_gradients_stay():
    model, x = plain(), images(1, 3, 17, 20)
    model(x).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    maps = grad_cam.GradCAM(model, [model[4]])(x)
    grad_cam.FullGrad(model, [])(x)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    model.requires_grad_(False)
    np.testing.assert_array_equal(grad_cam.GradCAM(model, [model[4]])(x), maps)


def test_ablation_does_not_depend_on_the_batch_size_and_leaves_the_layer():
    model, x = plain(), images(1, 3, 17, 20)
    maps = [
        grad_cam.AblationCAM(model, [model[3]], batch_size=size)(x, [ClassifierOutputTarget(1)])
        for size in (1, 3, 32)
    ]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-6)
    before = list(model)

    def refuse(row):
        if len(list(model.modules())) and not isinstance(model[3], nn.Conv2d):
            raise ZeroDivisionError
        return row[1]

    with pytest.raises(ZeroDivisionError):
        grad_cam.AblationCAM(model, [model[3]])(x, [refuse])
    assert list(model) == before


def test_outputs_in_dicts_and_tuples():
    class Wrapped(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.model, self.kind = plain(), kind

        def forward(self, x):
            out = self.model(x)
            return {"logits": out, "hidden": x} if self.kind is dict else (out, x)

    x, target = images(2, 3, 17, 20), ClassifierOutputTarget(1)
    model = plain()
    expected = grad_cam.GradCAM(model, [model[4]])(x, target)
    for kind in (dict, tuple):
        wrapped = Wrapped(kind).eval()
        found = grad_cam.GradCAM(wrapped, [wrapped.model[4]])(x, target)
        np.testing.assert_array_equal(found, expected)


def test_what_is_not_offered_can_be_imported_and_says_so():
    for name in (
        "FinerCAM",
        "ShapleyCAM",
        "SESS",
        "RefineCAM",
        "DeepFeatureFactorization",
        "run_dff_on_image",
    ):
        with pytest.raises(InputError, match=f"{name} of pytorch-grad-cam is not offered here; use|give"):
            getattr(grad_cam, name)(model=None)


def test_what_is_wrong_is_said():
    model, x = plain(), images(1, 3, 17, 20)
    with pytest.raises(InputError, match="model=3"):
        grad_cam.GradCAM(3, [])
    with pytest.raises(InputError, match="target_layers='4'"):
        grad_cam.GradCAM(model, ["4"])
    with pytest.raises(InputError, match=r"scores of shape \(5,\)"):
        grad_cam.GradCAM(model, [model[4]])(x, lambda row: row)
    with pytest.raises(InputError, match="without a gradient"):
        grad_cam.GradCAM(model, [model[4]])(x, lambda row: row.detach()[0])
    with pytest.raises(InputError, match="input_tensor has shape"):
        grad_cam.EigenCAM(nn.Sequential(nn.Linear(3, 2)), [nn.ReLU()])(torch.zeros(1, 3))
    with pytest.raises(LayerError, match=r"target_layers\[0\], a ReLU, gave no activations"):
        grad_cam.GradCAM(model, [nn.ReLU()])(x)
    with pytest.raises(NotImplementedError, match="get_cam_weights"):
        grad_cam.BaseCAM(model, [model[4]])(x)


def test_layers_are_found():
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.ReLU6(), nn.ReLU())
    assert find_layers.find_layer_types_recursive(model, [nn.ReLU]) == [model[0][0], model[2]]
    assert not find_layers.replace_layer_recursive(model, nn.ReLU(), nn.Tanh())
    tanh = nn.Tanh()
    find_layers.replace_all_layer_type_recursive(model, nn.ReLU, tanh)
    assert model[0][0] is tanh
    assert model[2] is tanh
    assert isinstance(model[1], nn.ReLU6)


def test_overlays_take_what_maps_may_hold():
    picture, mask = np.full((2, 2, 3), -0.1), np.array([[np.nan, -1.0], [2.0, 1.0]])
    found = show_cam_on_image(picture, mask, use_rgb=True)
    np.testing.assert_array_equal(found[0, 0], found[0, 1])
    np.testing.assert_array_equal(found[1, 0], found[1, 1])
    with pytest.raises(InputError, match="img has values"):
        show_cam_on_image(picture + 1.2, mask)
    scores = np.array([[0.1, 0.5, 0.4]])
    assert create_labels_legend(scores, {0: "a", 1: "b, c, d, e", 2: "f"}) == ["b, c, d:0.50\nf:0.40"]
