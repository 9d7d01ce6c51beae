"""Maps of this library in the metrics and pictures of other tools, which are the real ones."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError
from iba_core.compat.quantus import ExplainFunc
from iba_torch.compat.captum import InformationBottleneckAttribution

SETTINGS = {"steps": 3, "samples": 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_captum_gets_the_bits(model):
    x = images(2)
    iba = InformationBottleneckAttribution(model, model[1], [images(20)], **SETTINGS)
    explainer = Explainer(model, "1", **SETTINGS).fit([images(20)], progbar=False)
    expected = explainer.explain(x, [3, 1], seed=0).saliency
    for target in ([3, 1], torch.tensor([3, 1])):
        found = iba.attribute(x, target=target)
        assert found.shape == x.shape
        np.testing.assert_allclose(found.sum(1), expected, rtol=1e-5)
    (as_tuple,) = iba.attribute((x,), target=[3, 1])
    np.testing.assert_array_equal(as_tuple, found)
    # A place in an output is a score, for all inputs or one for each.
    everyone = iba.attribute(x, target=(1,))
    each = iba.attribute(x, target=[(1,), (3,)])
    np.testing.assert_allclose(each[0], everyone[0], rtol=1e-4, atol=1e-9)
    assert (each[1] - everyone[1]).abs().max() > 1e-6
    with pytest.raises(InputError, match="additional_forward_args"):
        iba.attribute((x, x), target=1)
    with pytest.raises(InputError, match="1 targets for 2 inputs"):
        iba.attribute(x, target=[(1,)])


def test_captum_measures_and_draws(model):
    metrics = pytest.importorskip("captum.metrics")
    attr = pytest.importorskip("captum.attr")
    mpl.use("agg")
    x = images(2)
    iba = InformationBottleneckAttribution(model, "1", [images(20)], **SETTINGS)
    maps = iba.attribute(x, target=1)

    def perturb(inputs):
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    assert metrics.infidelity(model, perturb, x, maps, target=1).shape == (2,)
    sensitivity = metrics.sensitivity_max(iba.attribute, x, target=1, n_perturb_samples=2)
    assert sensitivity.shape == (2,)
    assert torch.isfinite(sensitivity).all()
    tunnel = attr.NoiseTunnel(iba).attribute(x, nt_samples=2, nt_type="smoothgrad", target=1)
    assert tunnel.shape == x.shape
    figure, _ = attr.visualization.visualize_image_attr(
        maps[0].permute(1, 2, 0).numpy(), sign="positive", use_pyplot=False
    )
    assert figure.axes


@pytest.mark.filterwarnings("ignore")
def test_quantus_measures(model):
    quantus = pytest.importorskip("quantus")
    x, y = images(3).numpy(), np.array([1, 3, 0])
    explain_func = ExplainFunc("1", [images(20)], **SETTINGS)
    shared = {"model": model, "x_batch": x, "y_batch": y, "explain_func": explain_func, "device": "cpu"}
    scores = quantus.FaithfulnessCorrelation(
        nr_runs=5, subset_size=8, return_aggregate=False, disable_warnings=True, display_progressbar=False
    )(**shared)
    assert len(scores) == 3
    assert np.isfinite(scores).all()
    assert len(quantus.Sparseness(return_aggregate=False, disable_warnings=True)(**shared)) == 3


def test_a_function_for_quantus_follows_the_weights(model):
    x, y = images(2).numpy(), np.array([1, 3])
    explain_func = ExplainFunc("1", [images(20)], **SETTINGS)
    before = explain_func(model=model, inputs=x, targets=y)
    explainer = explain_func.explainer(model)
    assert explain_func.explainer(model) is explainer
    np.testing.assert_array_equal(explain_func(model=model, inputs=x, targets=y), before)
    with torch.no_grad():
        model[0].weight *= 3
    after = explain_func(model=model, inputs=x, targets=y)
    fresh = ExplainFunc("1", iter([images(20)]), **SETTINGS)(model=model, inputs=x, targets=y)
    np.testing.assert_array_equal(after, fresh)
    assert np.abs(after - before).max() > 1e-6
    assert before.shape == (2, 1, 8, 8)


def test_a_function_for_quantus_follows_the_weights_between_two_layers():
    torch.manual_seed(0)
    halves = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
    model = nn.Sequential(*halves, nn.Flatten(), nn.Linear(16, 5)).eval()
    x, y = images(2).numpy(), np.array([1, 3])
    explain_func = ExplainFunc(None, [images(20)], **SETTINGS)
    before = explain_func.explainer(model)
    assert [part.layer for part in before.parts] == ["1", "3"]
    assert explain_func.explainer(model) is before
    with torch.no_grad():
        model[2].weight *= 3  # after the first layer
    after = explain_func(model=model, inputs=x, targets=y)
    fresh = ExplainFunc(None, [images(20)], **SETTINGS)(model=model, inputs=x, targets=y)
    np.testing.assert_array_equal(after, fresh)


@pytest.mark.filterwarnings("ignore")
def test_xplique_measures():
    keras, tf = pytest.importorskip("keras"), pytest.importorskip("tensorflow")
    from iba_tf.compat.xplique import InformationBottleneck

    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(5),
    ]
    network = keras.Sequential(layers)
    x = images(3).permute(0, 2, 3, 1).numpy()
    y = np.eye(5, dtype=np.float32)[[1, 3, 0]]
    data = [images(20).permute(0, 2, 3, 1).numpy()]
    method = InformationBottleneck(network, "conv", data, batch_size=2, **SETTINGS)
    maps = method(x, y)
    assert maps.shape == (3, 8, 8, 1)
    explainer = Explainer(network, "conv", **SETTINGS).fit(data, progbar=False)
    expected = explainer.explain(x[:2], [1, 3], seed=0).saliency
    np.testing.assert_allclose(maps[:2, ..., 0], expected, rtol=1e-4, atol=1e-8)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    np.testing.assert_allclose(method.explain(dataset), maps, rtol=1e-4, atol=1e-8)
    with pytest.raises(InputError, match="one-hot"):
        method(x, 2 * y)
    metrics = pytest.importorskip("xplique.metrics")
    score = metrics.Deletion(network, x, y, steps=3)(maps)
    assert np.isfinite(score)
