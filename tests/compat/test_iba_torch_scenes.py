"""Code written for the published IBA gives the same bits here, with another import line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import iba_torch
from iba_core import Explainer, WelfordEstimator
from iba_core.errors import StateError
from tests.compat import iba_torch_scenes
from tests.compat.iba_torch_scenes import LN_2, SETTINGS, batches, images, loss_of, network

# Made by iba_torch_scenes.py, which tells how.
RECORD = Path(__file__).parents[1] / "data" / "iba_torch_scenes.npz"


def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORD, allow_pickle=False) as file:
        return dict(file)


EXPECTED = recorded()
MAPS = [name for name in EXPECTED if name.endswith(".saliency") or (name.startswith("map.(8"))]
RESIZED_DOWN = "map.(3, 2)"
STATES = {name for name in EXPECTED if ":" in name}


@pytest.fixture(scope="module")
def found():
    return iba_torch_scenes.scenes("iba_torch.compat.iba")


@pytest.mark.parametrize("name", [n for n in EXPECTED if n not in {*MAPS, *STATES, RESIZED_DOWN}])
def test_as_published(found, name):
    expected = EXPECTED[name]
    assert found[name].shape == expected.shape
    if expected.dtype.kind == "U":
        np.testing.assert_array_equal(found[name], expected)
    else:
        largest = np.abs(expected.astype(float)).max()
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=3e-5 * largest)


@pytest.mark.parametrize("name", MAPS)
def test_maps_differ_in_their_sum_and_at_the_edge(found, name):
    """The published map is mirrored at the edge when it is resized, and does not keep its sum."""
    inside = np.s_[2:-2, 2:-2]
    ratio = found[name][inside] / EXPECTED[name][inside]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)
    assert ratio.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_sum_of_a_map_is_that_of_its_bits(found, name):
    total = EXPECTED[f"{name}.bits"].sum()
    assert found[f"{name}.saliency"].sum() == pytest.approx(total, rel=1e-4)
    # The published one misses by this much.
    assert EXPECTED[f"{name}.saliency"].sum() == pytest.approx(total, rel=0.02)
    assert EXPECTED[f"{name}.saliency"].sum() != pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_library_s_own_class_gives_the_same_in_nats(name):
    model = network()
    iba = iba_torch.IBA(model[1], **SETTINGS[name])
    iba.estimate(model, batches())
    nats = iba.analyze(images(1, 3, 12, 10), loss_of(model, 2), "capacity", optimization_steps=4, seed=0)
    np.testing.assert_allclose(nats / LN_2, EXPECTED[f"{name}.bits"], rtol=1e-4, atol=3e-4)


def test_an_explainer_gives_the_same():
    model = network()
    explainer = Explainer(model, layer=model[1]).fit([batch for batch, _ in batches()], progbar=False)
    attribution = explainer.explain(images(1, 3, 12, 10), target=2, steps=4, seed=0)
    np.testing.assert_allclose(attribution.capacity[0] / LN_2, EXPECTED["default.bits"], rtol=1e-4, atol=3e-4)


def state_of(kind: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{kind}:"): torch.from_numpy(array)
        for name, array in EXPECTED.items()
        if name.startswith(f"{kind}:")
    }


def test_a_saved_bottleneck_loads():
    module, model = import_module("iba_torch.compat.iba.pytorch"), network()
    iba = module.IBA(model[1])
    iba.load_state_dict(state_of("state"))
    assert iba.estimator.n_samples() == 40
    bits = iba_torch_scenes.analyze(iba, images(1, 3, 12, 10), loss_of(model, 2), mode="capacity")
    np.testing.assert_allclose(bits, EXPECTED["default.bits"], rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("is_estimated", [False, True])
def test_a_trained_readout_loads(is_estimated):
    module, model = import_module("iba_torch.compat.iba.pytorch_readout"), network()
    readout = module.IBAReadout(model[1], [model[1], model[2], model[5]], model)
    if is_estimated:
        readout.estimate(model, [(images(5, 3, 12, 10), None)])
    readout.load_state_dict(state_of("readout.state"))
    bits = readout.analyze(images(1, 3, 12, 10), model, mode="capacity")
    np.testing.assert_allclose(bits, EXPECTED["readout.bits"], rtol=1e-4, atol=3e-4)


def test_a_loaded_readout_is_the_same_in_files_and_in_the_library_s_own_class(tmp_path):
    module, model = import_module("iba_torch.compat.iba.pytorch_readout"), network()
    layers = model[1], [model[1], model[2], model[5]], model
    readout = module.IBAReadout(*layers)
    readout.load_state_dict(state_of("readout.state"))
    readout.save(tmp_path / "readout.safetensors")
    from_file = iba_torch.IBAReadout(*layers).load(tmp_path / "readout.safetensors")
    from_state = iba_torch.IBAReadout(*layers)
    from_state.load_state_dict(readout.state_dict())
    for own in (from_file, from_state):
        nats = own.analyze(images(1, 3, 12, 10), mode="capacity")
        np.testing.assert_allclose(nats / LN_2, EXPECTED["readout.bits"], rtol=1e-4, atol=3e-4)
    other = iba_torch.IBAReadout(model[1], [model[1]], model)
    with pytest.raises(StateError):
        other.load(tmp_path / "readout.safetensors")


def test_saved_statistics_load_in_both_estimators():
    prefix, state = "estimator.", state_of("state")
    moments = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    estimator, plain = iba_torch.TorchWelfordEstimator(), WelfordEstimator()
    estimator.load_state_dict(dict(moments))
    plain.load_state_dict({name.removeprefix("_"): value.numpy() for name, value in moments.items()})
    for each in (estimator, plain):
        assert each.n_samples() == 40
        np.testing.assert_allclose(each.std(), EXPECTED["estimator.torch.std"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(each.active_neurons(0.5), EXPECTED["estimator.torch.few"])


def test_a_readout_with_other_layers_refuses_a_saved_one():
    module, model = import_module("iba_torch.compat.iba.pytorch_readout"), network()
    readout = module.IBAReadout(model[1], [model[1]], model)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        readout.load_state_dict(state_of("readout.state"))


def test_a_filter_is_the_published_one():
    module, model = import_module("iba_torch.compat.iba.pytorch"), network()
    impulse = torch.zeros(1, 6, 10, 8)
    impulse[:, :, 5, 4] = 1
    kernel = state_of("state")["smooth.conv.weight"]
    expected = nn.functional.conv2d(impulse, kernel, padding=2, groups=6)
    np.testing.assert_allclose(module.IBA(model[1]).smooth(impulse), expected, atol=1e-6)
