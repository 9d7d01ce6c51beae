"""Low precision in the model leaves the bottleneck as precise as it is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import Explainer
from iba_torch import IBA, TorchAdapter


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).eval()


def explain(model, data, x):
    """Capacities by both ways of asking."""
    iba = IBA(model[2])
    iba.estimate(model, [data])
    capacity = iba.analyze(
        x, lambda x: functional.cross_entropy(model(x), torch.ones(len(x)).long()), "capacity", seed=1
    )
    iba.detach()
    explainer = Explainer(model, layer="2").fit([data], progbar=False)
    return capacity, explainer.explain(x, target=1, seed=1).capacity[0]


@pytest.fixture
def expected(images):
    return explain(network(), images(20, torch.float32, 3), images(1, torch.float32))


def assert_near(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.999
        assert a.sum() == pytest.approx(b.sum(), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision(images, expected, dtype):
    assert_near(
        explain(
            network().to(dtype), images(20, torch.float32, 3).to(dtype), images(1, torch.float32).to(dtype)
        ),
        expected,
    )


def test_autocast_holds_for_the_model_alone(images, expected):
    model = network()
    seen = []
    model[4].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explain(model, images(20, torch.float32, 3), images(1, torch.float32))
        assert torch.is_autocast_enabled("cpu")
        with TorchAdapter(model).split("2").head(images(1, torch.float32)):
            assert not torch.is_autocast_enabled("cpu")
    assert_near(found, expected)
    assert set(seen) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


def test_a_precision_that_is_asked_for_goes_before_that_of_autocast_outside(images):
    model, seen = network(), []
    explainer = Explainer(model, layer="2", steps=1).fit([images(20, torch.float32, 3)], progbar=False)
    model[4].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        explainer.explain(images(1, torch.float32), target=1, precision="bfloat16")
    # A step, and what measures how much survives. The passes before answer for the model as it is.
    assert set(seen[-2:]) == {torch.bfloat16}
    assert set(seen[:-2]) == {torch.float16}


def test_restricted_features_under_autocast(images):
    iba = IBA(feature_mean=np.zeros((3, 6, 6), np.float32), feature_std=np.ones((3, 6, 6), np.float32))
    x = images(2, torch.float32)
    torch.manual_seed(0)
    with iba.restrict_flow():
        plain = iba(x)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(iba(x), plain)
