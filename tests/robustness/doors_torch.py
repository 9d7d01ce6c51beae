"""The public doors of `iba_torch`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

import iba_torch
from tests.backends import Torch
from tests.robustness import doors_models
from tests.robustness.doors_core import COUNT, FLAG, OPTIONAL_SEED, SETTINGS, const, folder
from tests.robustness.doors_models import Network, network
from tests.robustness.walk import Door
from tests.robustness.wrong_values import (
    Argument,
    array,
    boolean,
    either,
    function,
    nothing,
    number,
    numbers,
    optional,
    whole,
)

A = Argument


def _iba(net: Network) -> Iterator[Door]:
    features = A(const(np.ones((4, 8, 8))), optional(nothing), ("feature_mean", "feature_std"))
    settings = {
        "sigma": SETTINGS["smooth_std"],
        "beta": SETTINGS["beta"],
        "min_std": SETTINGS["min_std"],
        "optimization_steps": COUNT,
        "lr": SETTINGS["learning_rate"],
        "batch_size": COUNT,
        "initial_alpha": SETTINGS["initial_alpha"],
        "active_neurons_threshold": SETTINGS["active_neurons_threshold"],
    }
    yield Door(
        "iba_torch.IBA",
        const(iba_torch.IBA),
        {
            "layer": A(nn.ReLU, optional(nothing)),
            **settings,
            "feature_mean": A(features.valid, array(), ("feature_std",)),
            "feature_std": A(features.valid, array(shape=(4, 8, 8)), ("feature_mean",)),
            "estimator": A(const(None), optional(nothing)),
            "progbar": A(const(False), boolean),
            "input_or_output": A(const("output")),
            "relu": A(const(False), boolean),
            "call": A(const(None), optional(whole())),
            "tokens": A(const(None), optional(nothing)),
            "data_format": A(const("channels_first"), optional(nothing)),
        },
    )
    layer = net.model.get_submodule("relu")

    def bottleneck() -> iba_torch.IBA:
        iba = iba_torch.IBA(layer, optimization_steps=2, batch_size=2)
        iba.estimate(net.model, [net.images])
        iba.detach()
        return iba

    yield Door(
        "iba_torch.IBA.estimate",
        lambda: bottleneck().estimate,
        {
            "model": A(const(net.model)),
            "dataloader": A(lambda: [net.images], net.is_batches, ("the input",)),
            "device": A(const("cpu"), optional(nothing)),
            "n_samples": A(const(6), whole(2)),
            "progbar": A(const(False), optional(boolean)),
            "reset": FLAG,
        },
    )
    fitted = iba_torch.IBA(layer, optimization_steps=2, batch_size=2)
    fitted.estimate(net.model, [net.images])
    image = torch.from_numpy(net.images[:1])
    overrides = {
        name: A(rule.valid, optional(rule.accepts))
        for name, rule in settings.items()
        if name not in ("sigma", "initial_alpha")
    }
    yield Door(
        "iba_torch.IBA.analyze",
        const(fitted.analyze),
        {
            "input_t": A(const(image)),
            "model_loss_fn": A(const(lambda x: net.model(x)[:, 0]), function, ("layer",)),
            "mode": A(const("saliency")),
            **overrides,
            "seed": OPTIONAL_SEED,
            "pass_mask": A(const(np.zeros((4, 8, 8), bool)), optional(array(shape=(4, 8, 8)))),
            "max_batch": A(const(8), optional(whole(1))),
        },
    )


def _others(net: Network) -> Iterator[Door]:
    estimator = iba_torch.TorchWelfordEstimator()
    estimator(torch.ones(4, 3))
    yield Door(
        "iba_torch.TorchWelfordEstimator",
        const(iba_torch.TorchWelfordEstimator),
        {"*": A(const((3,)), whole(1, 1000), ("shape",))},
    )
    yield Door(
        "iba_torch.TorchWelfordEstimator.forward",
        const(iba_torch.TorchWelfordEstimator(3).forward),
        {"x": A(const(torch.ones(4, 3)))},
    )
    yield Door(
        "iba_torch.TorchWelfordEstimator.merge", const(estimator.merge), {"other": A(const(estimator))}
    )
    yield Door(
        "iba_torch.TorchWelfordEstimator.active_neurons",
        const(estimator.active_neurons),
        {"threshold": A(const(0.1), number(0, 1))},
    )
    yield Door(
        "iba_torch.insert_into_sequential",
        const(iba_torch.insert_into_sequential),
        {
            "sequential": A(lambda: nn.Sequential(nn.ReLU())),
            "layer": A(nn.Identity),
            "idx": A(const(0), either(whole(-2, 1), numbers((1,), whole(-2, 1)))),
        },
    )
    yield Door(
        "iba_torch.to_saliency_map",
        const(iba_torch.to_saliency_map),
        {
            "capacity": A(const(np.ones((3, 4, 4))), array((1, 2, 3, 4)), ("shape",)),
            "shape": A(const((8, 8)), optional(numbers((2,), whole(1)))),
            "data_format": A(const("channels_first")),
        },
    )
    yield Door(
        "iba_torch.ImageFolder",
        const(iba_torch.ImageFolder),
        {"root": A(folder, nothing, ("holds no folders",)), "transform": A(const(None), optional(function))},
    )
    yield Door(
        "iba_torch.get_imagenet_folder",
        const(iba_torch.get_imagenet_folder),
        {
            "path": A(folder, nothing, ("root", "holds no folders")),
            "image_size": A(const(8), whole(1, 2**13)),
            "transform": A(const("default"), optional(function)),
        },
    )
    size = A(const(8), whole(1, 2**14))
    yield Door(
        "iba_torch.imagenet_transform",
        const(iba_torch.imagenet_transform),
        {"resize": size, "crop_size": size},
    )
    yield Door(
        "iba_torch.tensor_to_np_img",
        const(iba_torch.tensor_to_np_img),
        {"img_t": A(const(torch.zeros(3, 4, 4)))},
    )
    adapter = iba_torch.TorchAdapter(net.model)
    yield Door(
        "iba_torch.TorchAdapter",
        const(iba_torch.TorchAdapter),
        {"model": A(const(net.model)), "rewrites": FLAG},
    )
    yield Door(
        "iba_torch.TorchAdapter.split",
        const(adapter.split),
        {
            "layer": A(const("relu")),
            "end_layer": A(const("logits"), optional(nothing), ("layer",)),
            "data_format": A(const("channels_first"), optional(nothing)),
        },
    )


def _readout(net: Network) -> Iterator[Door]:
    def readout() -> iba_torch.IBAReadout:
        return iba_torch.IBAReadout("relu", ["conv", "logits"], net.model)

    yield Door(
        "iba_torch.IBAReadout",
        const(iba_torch.IBAReadout),
        {
            "attach_layer": A(const("relu"), nothing, ("layer",)),
            "readout_layers": A(const(["conv"]), nothing, ("layer",)),
            "model": A(const(net.model)),
            "estimator_type": A(const(None), optional(nothing), ("estimator",)),
            "robust": A(const(False), boolean),
            "beta": SETTINGS["beta"],
        },
    )
    yield from doors_models.readout_doors(net, readout, nn.functional.cross_entropy)


def doors() -> list[Door]:
    """All doors of models of PyTorch."""
    net = network(Torch)
    return [*doors_models.doors(net), *_iba(net), *_others(net), *_readout(net)]
