"""Tails that end at a layer, and class activation maps of every shape of PyTorch model."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import InputError, LayerError, Tokens, sample_image
from iba_core.concepts import ConceptEmbedding
from iba_torch import TorchAdapter
from iba_torch.concepts.cam import (
    ClassifierOutputTarget,
    EigenCAM,
    GradCAM,
    SimilarityToConceptTarget,
    preprocess_image,
    show_cam_on_image,
)
from iba_torch.efficientnet_lite import efficientnet_lite0


def outputs_of_calls(model, x):
    """What each call of each module gives, by the names at which it can be split, in order of ending."""
    calls, counts = [], {}
    names = {module: name for name, module in model.named_modules() if name}

    def hook(module, inputs, output):
        number = counts[module] = counts.get(module, -1) + 1
        first = output
        while isinstance(first, (tuple, dict)):
            first = next(iter(first.values())) if isinstance(first, dict) else first[0]
        calls.append((module, number, first.detach().clone()))

    handles = [module.register_forward_hook(hook) for module in names]
    try:
        with torch.no_grad():
            model.eval()(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    return [
        (names[module] if counts[module] == 0 else f"{names[module]}:{number}", output)
        for module, number, output in calls
    ]


def test_a_tail_can_end_at_any_later_layer(case, images):
    model, x = case.make(), images(2)
    calls = outputs_of_calls(model, x)
    ends = [name for name, _ in calls]
    checked = 0
    for layer in case.layers:
        # What ends after a layer comes after it.
        for end_layer, expected in calls[ends.index(layer) :]:
            if expected.shape[:1] != (2,) and expected.shape[1:2] != (2,):
                continue
            with TorchAdapter(model).split(layer, end_layer).head(x) as tail:
                z = tail.features.repeat_interleave(3, 0)
                try:
                    found = tail(z)
                except LayerError:
                    # The end layer runs later, but does not read the features.
                    continue
            batch_first = expected if expected.shape[0] == 2 else expected.movedim(1, 0)
            assert found.shape == (6, *batch_first.shape[1:])
            torch.testing.assert_close(found, batch_first.repeat_interleave(3, 0), msg=f"{layer} {end_layer}")
            checked += 1
    assert checked >= len(case.layers)


def test_the_gradient_is_that_of_the_layer(cases, images):
    model, x = cases["shared"].make().eval(), images(2)
    caught = []

    def catch(module, args, output):
        caught.append(output)
        return output.clone()  # what comes next writes into it

    handles = [module.register_forward_hook(catch) for module in (model.conv, model.relu)]
    model(x)
    for handle in handles:
        handle.remove()
    # relu, block's relu, conv, relu, conv, relu
    first, last = caught[2], caught[5]
    (expected,) = torch.autograd.grad(last.square().sum(), first)
    adapter = TorchAdapter(model)
    with adapter.split("conv:0", "relu:3").head(x) as tail:
        *_, gradient = adapter.framework.value_and_grad(lambda z: (tail(z).square().sum(), ()), tail.features)
    torch.testing.assert_close(gradient, expected)


def test_which_call_is_meant_must_be_said(cases, images):
    model, x = cases["shared"].make(), images(1)
    adapter = TorchAdapter(model)
    for layer, end_layer, message in (
        ("stem", "relu", "runs 4 times"),
        ("stem", "relu:4", "runs 4 time"),
        ("conv:1", "relu:1", "gives no batch of tensors after"),
        ("conv", "out", "runs 2 times"),
    ):
        split = adapter.split(layer, end_layer)
        with pytest.raises(LayerError, match=message), split.head(x) as tail:
            tail(tail.features)
    with pytest.raises(LayerError, match="no layer 'relo'"):
        adapter.split("stem", "relo")


def test_layers_after_the_end_do_not_run(images, count_calls):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    calls = count_calls(model)
    split = TorchAdapter(model).split("0", "2")
    with split.head(images(2, torch.float32)) as tail:
        before = dict(calls)
        tail(tail.features)
    assert [calls[name] - before[name] for name in "01234"] == [0, 1, 1, 0, 0]


def test_the_model_stays_as_it_was(case, images, snapshot):
    model, x = case.make(), images(2)
    model.train()
    before = snapshot(model, x)

    def score(row):
        return (row[0] if isinstance(row, tuple) else row).sum()

    def refuse(row):
        raise ZeroDivisionError

    layer = case.layers[-1]
    fold = {"reshape_transform": lambda t: t.reshape(2, -1, 1, 1)}
    for method in (GradCAM, EigenCAM):
        with method(model, layer, **fold) as cam:
            cam(x, score)
            cam(x, [score, 1])
    with pytest.raises(ZeroDivisionError), GradCAM(model, layer, **fold) as cam:
        cam(x, refuse)
    with pytest.raises(InputError), GradCAM(model, layer, **fold) as cam:
        cam(x, 99)
    assert snapshot(model, x) == before


def test_no_graph_is_kept(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    seen = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    cam = GradCAM(model, "0")
    cam(images(1, torch.float32), 2)
    gc.collect()
    assert seen
    assert all(reference() is None for reference in seen)


def test_a_vision_transformer(cases, images):
    model, x = cases["transformer"].make(), images(2)
    by_tokens = GradCAM(model, model.blocks[0], reshape_transform=Tokens(prefix=1, grid=(3, 3)))

    def reshape_transform(tensor, height=3, width=3):
        return tensor[:, 1:, :].reshape(tensor.size(0), height, width, tensor.size(2)).permute(0, 3, 1, 2)

    by_function = GradCAM(model, model.blocks[0], reshape_transform=reshape_transform)
    maps = by_tokens(x, [1, 2])
    assert maps.shape == (2, 6, 6)
    assert maps.max() == 1
    np.testing.assert_array_equal(maps, by_function(x, [1, 2]))
    with pytest.raises(InputError, match="do not fit the grid"):
        GradCAM(model, model.blocks[0], Tokens(prefix=0, grid=(3, 3)))(x)


def test_use_cuda_wants_a_model_on_cuda():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError, match="the model is on cpu"):
        GradCAM(model, "0", use_cuda=True)


def test_preprocessing_gives_a_tensor():
    tensor = preprocess_image(np.full((4, 5, 3), 0.75), mean=[0.5] * 3, std=[0.25] * 3)
    torch.testing.assert_close(tensor, torch.ones(1, 3, 4, 5))


# -- the tutorial on concepts -------------------------------------------------------------------------


class FeatureExtractor(nn.Module):
    """A network without flattening and classifier, wrapped as in the tutorial, its call overridden."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.feature_extractor = torch.nn.Sequential(*list(self.model.children())[:-2])

    def __call__(self, x):
        return self.feature_extractor(x)[:, :, 0, 0]


def get_image(name):
    image = np.array(sample_image(name).resize((224, 224)))
    as_float = np.float32(image) / 255
    tensor = preprocess_image(as_float, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    return as_float, tensor


class CosineTarget:
    """The tutorial's own target, written for one row."""

    def __init__(self, features):
        self.features = features

    def __call__(self, model_output):
        cos = torch.nn.CosineSimilarity(dim=0)
        return cos(model_output, self.features)


def test_the_tutorial():
    backbone = efficientnet_lite0()
    model = FeatureExtractor(backbone)
    _, cat_tensor = get_image("cat")
    _, coffee_tensor = get_image("coffee")
    cat, coffee = model(cat_tensor)[0, :], model(coffee_tensor)[0, :]
    assert cat.requires_grad
    # The cat on the left, the coffee on the right.
    image = np.concatenate([get_image(name)[0][:, 56:168] for name in ("cat", "coffee")], axis=1)
    input_tensor = preprocess_image(image, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    target_layers = [backbone.head]

    def share_on_the_left(features, make=SimilarityToConceptTarget, **arguments):
        with GradCAM(model=model, use_cuda=False, **arguments) as cam:
            grayscale = cam(input_tensor=input_tensor, targets=[make(features)])[0, :]
        assert show_cam_on_image(image, grayscale, use_rgb=True).shape == (224, 224, 3)
        return grayscale[:, :112].sum() / grayscale.sum()

    assert share_on_the_left(cat, target_layers=target_layers) > 0.7
    assert share_on_the_left(coffee, target_layers=target_layers) < 0.3
    for features in (cat, coffee):
        share = share_on_the_left(features, target_layers=target_layers)
        # As printed, the tutorial names no layer: the last convolution's is found.
        assert share_on_the_left(features) == pytest.approx(share, abs=1e-6)
        own = share_on_the_left(features, CosineTarget, target_layers=target_layers)
        assert own == pytest.approx(share, abs=1e-4)


def test_distance_to_a_hyperplane_points_to_the_concept():
    backbone = efficientnet_lite0()
    model = FeatureExtractor(backbone)
    cat, coffee = (model(get_image(name)[1])[0].detach().numpy() for name in ("cat", "coffee"))
    image = np.concatenate([get_image(name)[0][:, 56:168] for name in ("cat", "coffee")], axis=1)
    x = preprocess_image(image, mean=[127 / 255] * 3, std=[128 / 255] * 3)
    plane = ConceptEmbedding(cat - coffee, bias=float(-(cat @ cat - coffee @ coffee) / 2))
    in_layer = ConceptEmbedding(cat - coffee, bias=plane.bias, layer_id="head")
    for network, target in ((model, plane), (backbone, in_layer)):
        cam = GradCAM(network, [backbone.blocks[15]])
        opposite = ConceptEmbedding(-target.normal_vec, bias=-target.bias, layer_id=target.layer_id)
        for wanted, least, most in ((target, 0.8, 1.0), (opposite, 0.0, 0.2)):
            (found,) = cam(x, wanted)
            assert least <= found[:, :112].sum() / found.sum() <= most


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_low_precision(images, dtype, error):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 6))
    x = images(2, torch.float32)
    reference = model(images(1, torch.float32, seed=1))[0]
    plane = ConceptEmbedding(np.arange(-3.0, 5.0), bias=0.1, layer_id="2")
    targets = [1, SimilarityToConceptTarget(reference.to(dtype)), plane]
    exact = [GradCAM(model, "0")(x, target) for target in targets]
    model = model.to(dtype)
    for target, expected in zip(targets, exact, strict=True):
        found = GradCAM(model, "0")(x, target)
        assert found.dtype == np.float32
        assert np.abs(found - expected).mean() < error


def test_targets_of_one_batch_may_differ():
    backbone = efficientnet_lite0()
    x = torch.cat([get_image("cat")[1], get_image("coffee")[1]])
    cam = GradCAM(backbone, [backbone.head])
    maps = cam(x, [ClassifierOutputTarget(285), lambda row: row[967]])
    np.testing.assert_allclose(maps[1], cam(x[1:], 967)[0], atol=1e-4)


def test_images_that_the_model_mixes_are_explained_alone(images):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).double()
    x = images(3)
    for method in (GradCAM, EigenCAM):
        with pytest.warns(UserWarning, match="each is explained alone"):
            together = method(model, "0")(x, [1, 2, 3])
        for image, target in enumerate([1, 2, 3]):
            np.testing.assert_allclose(
                method(model, "0")(x[image : image + 1], target)[0], together[image], atol=1e-6
            )


def test_the_user_may_say_where_the_channels_are_and_which_output_is_meant(images):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.mix = nn.Linear(6, 6)
            self.out, self.more = nn.Linear(6, 5), nn.Linear(6, 4)

        def forward(self, x):
            x = self.mix(self.conv(x).movedim(1, -1)).relu()
            return {"first": self.out(x.mean((1, 2))), "second": self.more(x.mean((1, 2)))}

    torch.manual_seed(0)
    model, x = Two().double(), images(2)
    with pytest.raises(InputError, match="output="):
        GradCAM(model, "mix", data_format="channels_last")(x, 3)
    for name, head in (("first", model.out), ("second", model.more)):
        features = model.mix(model.conv(x).movedim(1, -1))
        slopes = (features > 0) * head.weight[3]
        maps = ((slopes.mean((1, 2), keepdim=True)) * features).sum(-1).relu()
        expected = maps - maps.amin((1, 2), keepdim=True)
        expected = expected / expected.amax((1, 2), keepdim=True)
        found = GradCAM(model, "mix", data_format="channels_last", output=name)(x, 3)
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
