"""What a user of IBA does in PyTorch, written once for the published package and for the one here.

`scenes(package)` imports everything from the package of that name. To record what the published package
gives, with its folder IBA on the path:

    python -m tests.compat.iba_torch_scenes tests/data/iba_torch_scenes.npz

The package is in no registry. The record was made from the newest of its files that a public archive has:
`pytorch.py` of commit d72cad06, `utils.py` of ac4f5a58, and the `pytorch_readout.py` that goes with them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from iba_core.bottleneck.noise import seeded_normal
from iba_core.framework.layout import Layout

PUBLISHED = "IBA"
LN_2 = float(np.log(2))

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "beta": {"beta": 0.5},
    "plain": {"sigma": None},
    "smoother": {"sigma": 1.3, "beta": 3},
    "floor": {"min_std": 0.8},
    "slow": {"lr": 0.2, "batch_size": 3, "initial_alpha": 2.0},
    "clipped": {"relu": True, "active_neurons_threshold": 0.4},
}


@contextmanager
def noise_of_seed(seed: int) -> Iterator[None]:
    """Context in which `Tensor.normal_`, which the published package draws by, gives this library's noise."""
    original, steps = torch.Tensor.normal_, count()

    def normal_(self: torch.Tensor) -> torch.Tensor:
        shape = tuple(self.shape[1:])
        noise = seeded_normal(seed, next(steps), len(self), shape, Layout.of(shape, "channels_first"))
        return self.copy_(torch.from_numpy(noise))

    torch.Tensor.normal_ = normal_
    try:
        yield
    finally:
        torch.Tensor.normal_ = original


def analyze(iba: Any, image: torch.Tensor, loss: Any, steps: int = 4, **options: Any) -> np.ndarray:
    """A map of the same steps and noise from either package."""
    if type(iba).__module__.split(".")[0] == PUBLISHED:
        # It reports the mask before its last step, so that it needs one more.
        with noise_of_seed(0), warnings.catch_warnings(action="ignore"):
            return iba.analyze(image, loss, optimization_steps=steps + 1, **options)
    return iba.analyze(image, loss, optimization_steps=steps, seed=0, **options)


def filled(model: nn.Module, seed: int) -> nn.Module:
    """The model with weights that every version of PyTorch draws alike."""
    rng = np.random.RandomState(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = rng.standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values / max(1, np.prod(parameter.shape[1:])) ** 0.5))
    return model.eval()


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.AdaptiveAvgPool2d(2)]
    return filled(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 5)), 1)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def loss_of(model: nn.Module, target: int) -> Any:
    return lambda x: -torch.log_softmax(model(x), 1)[:, target].mean()


def batches() -> list[tuple[torch.Tensor, None]]:
    return [(batch, None) for batch in images(40, 3, 12, 10, seed=2).split(16)]


def of_the_bottleneck(package: ModuleType) -> dict[str, np.ndarray]:
    model, image, found = network(), images(1, 3, 12, 10), {}
    for name, settings in SETTINGS.items():
        iba = package.IBA(model[1], **settings)
        iba.estimate(model, batches())
        options = {"active_neurons_threshold": 0.4} if name == "clipped" else {}
        found[f"{name}.bits"] = analyze(iba, image, loss_of(model, 2), mode="capacity", **options)
        found[f"{name}.saliency"] = analyze(iba, image, loss_of(model, 2), **options)
        found[f"{name}.losses"] = np.array(iba._loss[:4])
        found[f"{name}.model_losses"] = np.array(iba._model_loss[:4])
        found[f"{name}.information_losses"] = np.array(iba._information_loss[:4])
        found[f"{name}.gradients"] = np.array(iba._alpha_grads[:1])
        iba.detach()
    return found


def of_restricted_passes(package: ModuleType) -> dict[str, np.ndarray]:
    """Outputs where the mask is as it starts, and the gradient for a loop of one's own."""
    model, x = network(), images(3, 3, 12, 10)
    iba = package.IBA(model[1], initial_alpha=1.0)
    iba.estimate(model, batches())
    torch.manual_seed(3)
    with iba.restrict_flow():
        outputs = model(x)
        (outputs[:, 1].mean() + iba.capacity().mean()).backward()
    found = {"restricted.outputs": outputs, "restricted.capacity": iba.capacity(), "alpha": iba.alpha}
    found["alpha.gradient"] = iba.alpha.grad
    iba.detach()
    found["detached.outputs"] = model(x)
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def of_the_estimators(package: ModuleType) -> dict[str, np.ndarray]:
    utils = import_module(f"{package.__name__.rpartition('.')[0]}.utils")
    features = network()[:2](images(40, 3, 12, 10, seed=2)).detach()
    torch_estimator, plain = package.TorchWelfordEstimator(), utils.WelfordEstimator()
    for batch in features.split(16):
        torch_estimator(batch)
        plain.fit(batch.numpy())
    found = {}
    for key, estimator in (("torch", torch_estimator), ("plain", plain)):
        for name in ("mean", "std", "active_neurons"):
            found[f"estimator.{key}.{name}"] = np.asarray(getattr(estimator, name)())
        found[f"estimator.{key}.few"] = np.asarray(estimator.active_neurons(0.5))
        found[f"estimator.{key}.n_samples"] = np.array(estimator.n_samples())
        found[f"estimator.{key}.m"], found[f"estimator.{key}.s"] = map(np.asarray, (estimator.m, estimator.s))
    return found


def made_readout(package: ModuleType) -> tuple[nn.Sequential, Any, list[nn.Parameter]]:
    readout_module = import_module(f"{package.__name__.rpartition('.')[0]}.pytorch_readout")
    model = network()
    readout = readout_module.IBAReadout(model[1], [model[1], model[2], model[5]], model, relu=True)
    readout.estimate(model, batches())
    # Without the fixed kernel of the published filter.
    learnt = [parameter for parameter in readout.parameters() if parameter.requires_grad]
    filled(nn.ParameterList(learnt), 5)
    with torch.no_grad():
        # So that some alphas lie beyond the bound.
        learnt[-2].mul_(8)
    return model, readout, learnt


def of_the_readout(package: ModuleType) -> dict[str, np.ndarray]:
    model, readout, learnt = made_readout(package)
    image = images(1, 3, 12, 10)
    found = {
        "readout.bits": readout.analyze(image, model, mode="capacity"),
        "readout.saliency": readout.analyze(image, lambda x: model(x).sum()),
    }
    torch.manual_seed(4)
    with readout.restrict_flow():
        outputs = model(images(3, 3, 12, 10))
        (outputs.mean() + readout.capacity().mean()).backward()
    found["readout.outputs"] = outputs.detach().numpy()
    for number, parameter in enumerate(learnt):
        found[f"readout.gradient.{number}"] = parameter.grad.numpy().squeeze()
    return found


def of_the_helpers(package: ModuleType) -> dict[str, np.ndarray]:
    utils = import_module(f"{package.__name__.rpartition('.')[0]}.utils")
    nats = np.abs(np.random.RandomState(6).standard_normal((3, 4, 5)))
    found = {f"map.{shape}": package.to_saliency_map(nats, shape) for shape in ((8, 9), (3, 2), None)}
    found["unit"] = utils.to_unit_interval(nats)
    layers = [nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)]
    for index in (-9, -4, -3, -1, 0, 1, 3, 4, 9):
        longer = package.insert_into_sequential(nn.Sequential(*layers), nn.Identity(), index)
        found[f"inserted.{index}"] = np.array([type(layer).__name__ for layer in longer])
    return found


def states(package: ModuleType) -> dict[str, np.ndarray]:
    """State files as the package writes them, by their entries' names."""
    model = network()
    iba = package.IBA(model[1])
    iba.estimate(model, batches())
    analyze(iba, images(1, 3, 12, 10), loss_of(model, 2))
    _, readout, _ = made_readout(package)
    both = {"state": iba, "readout.state": readout}
    return {
        f"{key}:{name}": tensor.numpy()
        for key, module in both.items()
        for name, tensor in module.state_dict().items()
    }


def scenes(package: str) -> dict[str, np.ndarray]:
    """Everything but the states by its name."""
    module = import_module(f"{package}.pytorch")
    parts = (of_the_bottleneck, of_restricted_passes, of_the_estimators, of_the_readout, of_the_helpers)
    return {name: value for part in parts for name, value in part(module).items()}


if __name__ == "__main__":
    recorded = scenes(PUBLISHED) | states(import_module(f"{PUBLISHED}.pytorch"))
    np.savez_compressed(sys.argv[1], **recorded)
