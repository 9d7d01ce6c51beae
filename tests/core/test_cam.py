"""Class activation maps: worked numbers, on every framework."""

from __future__ import annotations

import numpy as np
import pytest

from iba_core import InputError, Tokens
from iba_core.concepts import activation_maps as cam
from iba_core.framework.layout import Layout
from iba_core.pictures.cam import preprocess_image, show_cam_on_image

# One image, two channels, two by two places.
A = np.array([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]]])
G = np.array([[[[1.0, -1.0], [2.0, 2.0]], [[-1.0, 0.0], [0.0, -3.0]]]])
LAYOUT = Layout.of((2, 2, 2), "channels_first")

# Grad-CAM: the means of the gradients are 1 and -1. Grad-CAM++: the channels sum to 10 and 2; the weights are
# 1/(2+10) + 2 * 2/(2+20) = 35/132, and 0, since nothing is positive. XGrad-CAM: (1 - 2 + 6 + 8)/10 = 1.3 and
# (0 + 0 + 0 - 3)/2 = -1.5.
WORKED = {
    "grad_cam": [[1.0, 1.0], [3.0, 3.0]],
    "grad_cam_plus_plus": [[35 / 132, 70 / 132], [105 / 132, 140 / 132]],
    "hires_cam": [[1.0, -2.0], [6.0, 5.0]],
    "layer_cam": [[1.0, 0.0], [6.0, 8.0]],
    "xgrad_cam": [[1.3, 1.1], [3.9, 3.7]],
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(framework, name):
    weighting = getattr(cam, f"{name}_weights")
    maps = cam.activation_maps(framework.asarray(A), framework.asarray(G), weighting, LAYOUT)
    np.testing.assert_allclose(framework.to_numpy(maps), [WORKED[name]], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-12])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_grad_cam_plus_plus_is_equation_19_of_the_paper(framework, scale, epsilon, dtype):
    rng = np.random.default_rng(0)
    activations = rng.random((3, 4, 5, 6)).astype(dtype)
    gradients = (scale * rng.normal(size=(3, 4, 5, 6))).astype(dtype)
    # The powers of the gradients leave the range of float32.
    wide, slopes = activations.astype(np.longdouble), gradients.astype(np.longdouble)
    second, third = slopes**2, slopes**3
    alpha = second / (2 * second + wide.sum(axis=(2, 3), keepdims=True) * third + epsilon)
    expected = (alpha * np.maximum(slopes, 0)).sum(axis=(2, 3), keepdims=True)
    tensors = framework.asarray(activations), framework.asarray(gradients)
    found = framework.to_numpy(cam.grad_cam_plus_plus_weights(*tensors, epsilon=epsilon))
    assert expected.min() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("name", WORKED)
def test_a_silent_layer_gives_an_empty_map(name):
    weighting = getattr(cam, f"{name}_weights")
    zeros = np.zeros_like(A)
    np.testing.assert_array_equal(cam.activation_maps(zeros, G, weighting, LAYOUT), np.zeros((1, 2, 2)))
    maps = cam.activation_maps(A, zeros, weighting, LAYOUT)
    np.testing.assert_array_equal(cam.combine_layers([maps], (4, 4)), np.zeros((1, 4, 4)))


@pytest.mark.parametrize("name", WORKED)
def test_layouts_are_data(framework, name):
    rng = np.random.default_rng(1)
    activations, gradients = rng.normal(size=(2, 2, 3, 2, 4))
    weighting = getattr(cam, f"{name}_weights")
    expected = cam.activation_maps(activations, gradients, weighting, Layout.of((3, 2, 4), "channels_first"))

    def check(rearranged, layout):
        tensors = (framework.asarray(rearranged(x)) for x in (activations, gradients))
        maps = cam.activation_maps(*tensors, weighting, layout)
        np.testing.assert_allclose(framework.to_numpy(maps), expected, rtol=1e-10, atol=1e-12)

    check(lambda x: np.moveaxis(x, 1, -1), Layout.of((2, 4, 3), "channels_last"))

    def with_class_token(x):
        tokens = np.moveaxis(x, 1, -1).reshape(2, 8, 3)
        return np.concatenate([np.full((2, 1, 3), 100.0), tokens], axis=1)

    check(with_class_token, Layout.of((9, 3), "channels_last", Tokens(prefix=1, grid=(2, 4))))


def test_half_precision_does_not_overflow(framework):
    activations = framework.asarray(np.full((1, 2, 4, 4), 6e4), np.float16)
    gradients = framework.asarray(np.ones((1, 2, 4, 4)), np.float16)
    maps = framework.to_numpy(
        cam.activation_maps(
            activations, gradients, cam.grad_cam_weights, Layout.of((2, 4, 4), "channels_first")
        )
    )
    np.testing.assert_allclose(maps, 1.2e5, rtol=1e-3)


def test_the_principal_component_is_found_and_oriented(framework):
    rng = np.random.default_rng(2)
    direction = np.array([2.0, -1.0, 0.5])
    strength = rng.normal(size=(2, 1, 4, 5))
    strength -= strength.mean(axis=(2, 3), keepdims=True)
    maps = strength * direction[None, :, None, None] + np.array([7.0, 2.0, 1.0])[:, None, None]
    component = strength[:, 0] * np.linalg.norm(direction)
    layout = Layout.of((3, 4, 5), "channels_first")

    def find(gradients, weighting=None):
        tensors = [None if x is None else framework.asarray(x) for x in (maps, gradients)]
        return cam.activation_maps(*tensors, weighting, layout, principal=True)

    # The layer is more active where the strength is greater.
    np.testing.assert_allclose(find(None), component, rtol=1e-9)
    # The evidence, a gradient of the first channel, is a constant plus or minus the strength.
    slopes = np.zeros_like(maps)
    slopes[:, 0] = np.array([1.0, -1.0])[:, None, None]
    np.testing.assert_allclose(find(slopes), component * [[[1.0]], [[-1.0]]], rtol=1e-9)
    # A gradient that is zero says nothing of the sign.
    np.testing.assert_allclose(find(0 * slopes), component, rtol=1e-9)
    # Weighted channels grow along with their sum, tiny ones too.
    for scale in (1.0, 1e-12):
        found = find(scale * slopes, cam.grad_cam_weights)
        np.testing.assert_allclose(found, scale * 2.0 * strength[:, 0] * [[[1.0]], [[-1.0]]], rtol=1e-9)


def test_scaling_resizing_and_averaging():
    np.testing.assert_allclose(
        cam.to_unit_range(np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]])), [[0, 1, 0.5], [0] * 3]
    )
    # Centres of two places on an axis of four are at 0.5 and 2.5; between them the map is linear.
    np.testing.assert_allclose(cam.resize_maps(np.array([[0.0, 1.0]]), (4,)), [[0, 0.25, 0.75, 1]])
    first, second = np.array([[-1.0, 4.0]]), np.array([[0.0, 0.0, 2.0, 1.0]])
    # Negative evidence is cut off; [0, 1] and [0, 0, 1, 0.5] become [0, 1/8, 7/8, 3/4] on average.
    np.testing.assert_allclose(
        cam.combine_layers([first, second], (4,)), [[0, 0.125 / 0.875, 1, 0.75 / 0.875]], rtol=1e-6
    )
    with pytest.raises(InputError, match="reshape_transform"):
        cam.combine_layers([first], (4, 4))


# -- pictures ---------------------------------------------------------------------------------------


def test_overlay():
    picture = np.zeros((2, 3, 3))
    picture[..., 0] = 0.5
    mask = np.array([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]])
    rgb = show_cam_on_image(picture, mask, use_rgb=True)
    assert rgb.shape == (2, 3, 3)
    assert rgb.dtype == np.uint8
    assert rgb.max() == 255
    # Blue where the map is 0, green in the middle, red where it is 1.
    assert rgb[0, 0, 2] > rgb[0, 2, 2]
    assert rgb[0, 1, 1] > max(rgb[0, 0, 1], rgb[0, 2, 1])
    assert rgb[0, 2, 0] > rgb[0, 0, 0]
    swapped = show_cam_on_image(picture[..., ::-1], mask)
    np.testing.assert_array_equal(swapped, rgb[..., ::-1])
    only_picture = show_cam_on_image(picture, mask, image_weight=1.0)
    np.testing.assert_array_equal(only_picture, np.broadcast_to([255, 0, 0], (2, 3, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img": np.zeros((3, 3, 3))}, "shape"),
        ({"mask": np.full((2, 3), 1.5)}, "mask has values"),
        ({"img": np.full((2, 3, 3), np.nan)}, "img holds nan at index"),
        ({"image_weight": 1.1}, "image_weight=1.1"),
        ({"colormap": "yet"}, "jet"),
        ({"colormap": 22}, "colormap=22"),
        ({"colormap": None}, "colormap=None"),
    ],
)
def test_overlay_refuses(change, message):
    arguments = {"img": np.zeros((2, 3, 3)), "mask": np.zeros((2, 3))}
    with pytest.raises(InputError, match=message):
        show_cam_on_image(**{**arguments, **change})


def test_preprocessing():
    img = np.array([[[0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]])
    mean, std = [0.5, 0.5, 0.0], [0.5, 0.25, 2.0]
    expected = np.array([[[[0.0, 2.0, 0.0], [-0.5, 0.0, 0.5]]]])
    last = preprocess_image(img, mean, std, "channels_last")
    assert last.dtype == np.float32
    np.testing.assert_array_equal(last, expected)
    np.testing.assert_array_equal(preprocess_image(img, mean, std), np.moveaxis(expected, -1, 1))
    np.testing.assert_allclose(
        preprocess_image(np.uint8(255 * np.ones((1, 1, 3)))), np.ones((1, 3, 1, 1)), rtol=1e-6
    )
    for wrong in ({"mean": [0.5]}, {"std": [1.0, 0.0, 1.0]}):
        with pytest.raises(InputError):
            preprocess_image(img, **wrong)


def test_rounding_is_not_scaled_into_a_finding(framework):
    maps = np.array([[3.0, 3.0, np.nextafter(3.0, 4.0)], [3.0, 3.0, 3.5]])
    found = framework.to_numpy(cam.to_unit_range(framework.asarray(maps)))
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 0, 1]])
