"""The public doors of `iba_torch`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import iba_core
import iba_torch
from tests.backends import Torch
from tests.robustness import doors_evaluation, doors_models
from tests.robustness.doors_core import CALLED, COUNT, FLAG, OPTIONAL_SEED, SETTINGS, const, folder
from tests.robustness.doors_models import Network, network
from tests.robustness.walk import Door, door
from tests.robustness.wrong_values import (
    Argument,
    array,
    boolean,
    either,
    function,
    given,
    nothing,
    number,
    numbers,
    optional,
    whole,
)

A = Argument


IBA_SETTINGS = {
    "sigma": SETTINGS["smooth_std"],
    "beta": SETTINGS["beta"],
    "min_std": SETTINGS["min_std"],
    "optimization_steps": COUNT,
    "lr": SETTINGS["learning_rate"],
    "batch_size": COUNT,
    "initial_alpha": SETTINGS["initial_alpha"],
    "active_neurons_threshold": SETTINGS["active_neurons_threshold"],
}


def _iba(net: Network) -> Iterator[Door]:
    features = given(np.ones((4, 8, 8)), optional(nothing), ("feature_mean", "feature_std"))
    yield door(
        "iba_torch.IBA",
        layer=A(nn.ReLU, optional(nothing)),
        **IBA_SETTINGS,
        feature_mean=A(features.valid, array(), ("feature_std",)),
        feature_std=A(features.valid, array(shape=(4, 8, 8)), ("feature_mean",)),
        estimator=given(None, optional(nothing)),
        progbar=given(False, boolean),
        input_or_output=given("output"),
        relu=given(False, boolean),
        call=given(None, optional(whole())),
        tokens=given(None, optional(nothing)),
        data_format=given("channels_first", optional(nothing)),
    )


def _fitted(net: Network) -> iba_torch.IBA:
    layer = net.model.get_submodule("relu")
    iba = iba_torch.IBA(layer, optimization_steps=2, batch_size=2)
    iba.estimate(net.model, [net.images])
    return iba


def _detached(net: Network) -> iba_torch.IBA:
    iba = _fitted(net)
    iba.detach()
    return iba


def _use_of_iba(net: Network) -> Iterator[Door]:

    yield door(
        "iba_torch.IBA.estimate",
        lambda: _detached(net),
        model=given(net.model),
        dataloader=net.batches(),
        device=given("cpu", optional(nothing)),
        n_samples=given(6, whole(2)),
        progbar=given(False, optional(boolean)),
        reset=FLAG,
    )
    image = torch.from_numpy(net.images[:1])
    overrides = {
        name: A(rule.valid, optional(rule.accepts))
        for name, rule in IBA_SETTINGS.items()
        if name not in ("sigma", "initial_alpha")
    }
    yield door(
        "iba_torch.IBA.analyze",
        const(_fitted(net)),
        input_t=given(image),
        model_loss_fn=given(lambda x: net.model(x)[:, 0], function, ("layer",), passes_on=CALLED),
        mode=given("saliency"),
        **overrides,
        seed=OPTIONAL_SEED,
        pass_mask=given(np.zeros((4, 8, 8), bool), optional(array(shape=(4, 8, 8)))),
        max_batch=given(8, optional(whole(1))),
    )


def _others(net: Network) -> Iterator[Door]:
    estimator = iba_torch.TorchWelfordEstimator()
    estimator(torch.ones(4, 3))
    yield door("iba_torch.TorchWelfordEstimator", **{"*": given((3,), whole(1, 1000), ("shape",))})
    yield door(
        "iba_torch.TorchWelfordEstimator.forward",
        const(iba_torch.TorchWelfordEstimator(3)),
        x=given(torch.ones(4, 3)),
    )
    yield door("iba_torch.TorchWelfordEstimator.merge", const(estimator), other=given(estimator))
    yield door(
        "iba_torch.TorchWelfordEstimator.active_neurons",
        const(estimator),
        threshold=given(0.1, number(0, 1)),
    )
    yield door(
        "iba_torch.insert_into_sequential",
        sequential=A(lambda: nn.Sequential(nn.ReLU())),
        layer=A(nn.Identity),
        idx=given(0, either(whole(-2, 1), numbers((1,), whole(-2, 1)))),
    )
    yield door(
        "iba_torch.to_saliency_map",
        capacity=given(np.ones((3, 4, 4)), array((1, 2, 3, 4)), ("shape",)),
        shape=given((8, 8), optional(numbers((2,), whole(1)))),
        data_format=given("channels_first"),
        order=given(None, optional(nothing)),
    )
    yield door(
        "iba_torch.ImageFolder",
        root=A(folder, nothing, ("holds no folders",)),
        transform=given(None, optional(function)),
        target_transform=given(None, optional(function)),
        loader=given(iba_core.load_image, function),
    )
    yield door(
        "iba_torch.get_imagenet_folder",
        path=A(folder, nothing, ("root", "holds no folders")),
        image_size=given(8, whole(1, 2**13)),
        transform=given("default", optional(function)),
    )
    size = given(8, either(whole(1, 2**14), numbers((2,), whole(1, 2**14))))
    yield door("iba_torch.imagenet_transform", resize=size, crop_size=size)
    yield door("iba_torch.tensor_to_np_img", img_t=given(torch.zeros(3, 4, 4)))


def _adapter(net: Network) -> Iterator[Door]:
    adapter = iba_torch.TorchAdapter(net.model)
    yield door("iba_torch.TorchAdapter", model=given(net.model), rewrites=FLAG)
    yield door(
        "iba_torch.TorchAdapter.split",
        const(adapter),
        layer=given("relu"),
        end_layer=given("logits", optional(nothing), ("layer",)),
        data_format=given("channels_first", optional(nothing)),
    )


def _readout(net: Network) -> Iterator[Door]:
    def readout() -> iba_torch.IBAReadout:
        return iba_torch.IBAReadout("relu", ["conv", "logits"], net.model)

    yield door(
        "iba_torch.IBAReadout",
        attach_layer=given("relu", nothing, ("layer",)),
        readout_layers=given(["conv"], nothing, ("layer",)),
        model=given(net.model),
        estimator_type=given(None, optional(nothing), ("estimator",)),
        robust=given(False, boolean),
        gradients=given(False, boolean),
        beta=SETTINGS["beta"],
    )
    yield from doors_models.readout_doors(net, readout, nn.functional.cross_entropy)


def doors() -> list[Door]:
    """All doors of models of PyTorch."""
    net = network(Torch)
    own = [door for part in (_iba, _use_of_iba, _others, _adapter, _readout) for door in part(net)]
    return [*doors_models.doors(net), *doors_evaluation.doors(net), *own]
