"""Names, arguments, defaults and examples of the documentation that `iba_torch` is a drop-in for."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import iba_torch
from iba_core import plot_saliency_map
from iba_torch import IBA, TorchWelfordEstimator, get_imagenet_folder, insert_into_sequential

NONE = inspect.Parameter.empty

SIGNATURES = {
    "to_saliency_map": {"capacity": NONE, "shape": None},
    "insert_into_sequential": {"sequential": NONE, "layer": NONE, "idx": NONE},
    "tensor_to_np_img": {"img_t": NONE},
    "imagenet_transform": {"resize": 256, "crop_size": 224},
    "get_imagenet_folder": {"path": NONE, "image_size": 224, "transform": "default"},
    "TorchWelfordEstimator.forward": {"x": NONE},
    "TorchWelfordEstimator.n_samples": {},
    "TorchWelfordEstimator.mean": {},
    "TorchWelfordEstimator.std": {},
    "TorchWelfordEstimator.active_neurons": {"threshold": 0.01},
    "IBA": {
        "layer": None,
        "sigma": 1.0,
        "beta": 10,
        "min_std": 0.01,
        "optimization_steps": 10,
        "lr": 1,
        "batch_size": 10,
        "initial_alpha": 5.0,
        "active_neurons_threshold": 0.01,
        "feature_mean": None,
        "feature_std": None,
        "estimator": None,
        "progbar": False,
        "input_or_output": "output",
        "relu": False,
    },
    "IBA.detach": {},
    "IBA.forward": {"x": NONE},
    "IBA.interrupt_execution": {},
    "IBA.enable_estimation": {},
    "IBA.reset_estimate": {},
    "IBA.estimate": {
        "model": NONE,
        "dataloader": NONE,
        "device": None,
        "n_samples": 10000,
        "progbar": None,
        "reset": True,
    },
    "IBA.restrict_flow": {},
    "IBA.analyze": {
        "input_t": NONE,
        "model_loss_fn": NONE,
        "mode": "saliency",
        "beta": None,
        "optimization_steps": None,
        "min_std": None,
        "lr": None,
        "batch_size": None,
        "active_neurons_threshold": 0.01,
    },
    "IBA.capacity": {},
    "IBAReadout": {"attach_layer": NONE, "readout_layers": NONE, "model": NONE, "estimator_type": None},
    "IBAReadout.detach": {},
    "IBAReadout.analyze": {"input_t": NONE, "model": NONE, "mode": "saliency"},
    "IBAReadout.reset_estimate": {},
    "IBAReadout.forward": {"x": NONE},
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_come_in_order_with_their_defaults_and_ours_after_them(name):
    function = iba_torch
    for part in name.split("."):
        function = getattr(function, part)
    parameters = list(inspect.signature(function).parameters.values())
    parameters = [parameter for parameter in parameters if parameter.name != "self"]
    documented = SIGNATURES[name]
    first, added = parameters[: len(documented)], parameters[len(documented) :]
    assert [parameter.name for parameter in first] == list(documented)
    for parameter in first:
        # What has to be given there may be left out here.
        assert documented[parameter.name] in (NONE, parameter.default)
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in first)
    assert all(
        parameter.default is not NONE or parameter.kind is parameter.VAR_KEYWORD for parameter in added
    )
    assert inspect.getdoc(function)


def test_both_are_modules():
    assert issubclass(IBA, nn.Module)
    assert issubclass(TorchWelfordEstimator, nn.Module)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).eval()


def datagen(batch_size, batches=4):
    for _ in range(batches):
        yield torch.randn(batch_size, 3, 8, 8), torch.randint(5, (batch_size,))


def test_the_example_of_the_bottleneck(model):
    iba = IBA(model[1])
    iba.estimate(model, datagen(10))
    img, target = next(iter(datagen(batch_size=1)))

    def model_loss_closure(x):
        return functional.nll_loss(functional.log_softmax(model(x), 1), target.expand(len(x)))

    saliency_map = iba.analyze(img, model_loss_closure)
    assert isinstance(saliency_map, np.ndarray)
    assert saliency_map.shape == (8, 8)
    assert saliency_map.sum() > 0
    plot_saliency_map(saliency_map)
    capacity = iba.capacity()
    assert isinstance(capacity, torch.Tensor)
    assert capacity.shape == (4, 6, 6)
    assert capacity.sum() / np.log(2) == pytest.approx(saliency_map.sum(), rel=1e-4)
    assert iba(img) is img
    with iba.restrict_flow():
        restricted = model(img)
    assert not torch.equal(restricted, model(img))
    iba.detach()
    assert not model[1]._forward_hooks


def test_the_example_of_the_interruption(model):
    iba, later = IBA(model[1]), []
    model[2].register_forward_hook(lambda *call: later.append(call))
    with iba.interrupt_execution():
        out = model(torch.randn(2, 3, 8, 8))
        raise AssertionError("this is not to be reached")
    assert "out" not in locals()
    assert not later


def test_the_example_of_the_estimator():
    estim = TorchWelfordEstimator(3, 64, 64)
    seen = []
    for batch in (torch.randn(10, 3, 64, 64) for _ in range(5)):
        assert estim(batch) is batch
        seen.append(batch)
    seen = torch.cat(seen).double()
    assert estim.n_samples() == 50
    torch.testing.assert_close(estim.mean().double(), seen.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(estim.std().double(), seen.std(0), rtol=1e-5, atol=1e-7)
    assert estim.active_neurons().dtype == torch.bool
    assert estim.active_neurons().all()
    assert not estim.active_neurons(threshold=1.0).any()


def test_an_estimator_made_for_the_bottleneck(model):
    """Any estimator will do, also one that has been filled by hand."""
    estim, x = TorchWelfordEstimator(4, 6, 6), torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        estim(model[:2](x))
    iba, other = IBA(model[1], estimator=estim), IBA(model[1])
    other.estimate(model, [x])

    def loss(inputs):
        return model(inputs).square().mean()

    np.testing.assert_allclose(
        iba.analyze(x[:1], loss, seed=0), other.analyze(x[:1], loss, seed=0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("always", [False, True])
def test_progress_is_shown_where_it_is_asked_for(model, capsys, always):
    def shows(function):
        function()
        return bool(capsys.readouterr().err)

    iba = IBA(model[1], progbar=always, optimization_steps=2, batch_size=2)
    assert shows(lambda: iba.estimate(model, datagen(10))) is always
    assert shows(lambda: iba.estimate(model, datagen(10), progbar=True))
    assert not shows(lambda: iba.estimate(model, datagen(10), progbar=False))
    assert shows(lambda: iba.analyze(torch.randn(1, 3, 8, 8), lambda x: model(x).mean())) is always


def test_a_bottleneck_inserted_into_a_folder_of_pictures(model, tmp_path):
    """The helpers together, as the notebooks of the reference use them."""
    for name, colour in (("first", "red"), ("second", "blue")):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("RGB", (12 + index, 10), colour).save(tmp_path / name / f"{index}.png")
    loader = torch.utils.data.DataLoader(get_imagenet_folder(tmp_path, image_size=8), batch_size=3)
    iba = IBA(sigma=None)
    model = insert_into_sequential(model, iba, 2)
    iba.estimate(model, loader, n_samples=3)
    assert iba.estimator.n_samples() == 3
    iba.estimate(model, loader)
    assert iba.estimator.n_samples() == 4
    images, targets = next(iter(loader))
    found = iba.analyze(images[:1], lambda x: functional.cross_entropy(model(x), targets[:1].expand(len(x))))
    assert found.shape == (8, 8)
    assert iba_torch.tensor_to_np_img(images[0]).shape == (8, 8, 3)
