"""Statistics that come with the library: of one network, in both frameworks, and of nothing else."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, LayerError, StateError, sample_image
from iba_core.bottleneck.estimator import Halves, WelfordEstimator
from iba_core.bottleneck.formulas import Mask, capacity
from iba_core.cli import main, statistics
from iba_core.datasets import Run
from iba_core.default_layer import choose_layers
from iba_core.pictures.images import SAMPLE_IMAGES
from iba_core.readout.packaged import packaged_readout
from iba_core.zoo.efficientnet_lite import PREPROCESSING
from iba_core.zoo.statistics import PATH, compact, expanded, packaged_facts, weights_fingerprint
from iba_tf.efficientnet_lite import efficientnet_lite0 as keras_lite0
from iba_torch.efficientnet_lite import efficientnet_lite0 as torch_lite0

LAYERS = ["blocks.4", "blocks.5", "blocks.7", "blocks.10"]
FORMATS = {"torch": "channels_first", "tensorflow": "channels_last"}


@pytest.fixture(scope="module")
def models():
    return {"torch": torch_lite0(), "tensorflow": keras_lite0()}


def photographs(framework):
    return np.stack(
        [PREPROCESSING(sample_image(name), FORMATS[framework]) for name in list(SAMPLE_IMAGES)[:5]]
    )


@pytest.mark.parametrize(("framework", "layer"), [("torch", "blocks.4"), ("tensorflow", "blocks.10")])
def test_they_fit_photographs_that_they_were_not_estimated_on(models, framework, layer):
    """Features less the mean, by the standard deviation, have a mean of 0 and a mean square of 1."""
    x = photographs(framework)
    explainer = Explainer(models[framework], layer).load_packaged()
    adapter = explainer.adapter
    features = adapter.framework.to_numpy(adapter.split(layer).features(adapter.to_inputs(x)))
    # The file has its channels first.
    mean, std = explainer.estimator.mean(), explainer.estimator.std()
    if framework == "tensorflow":
        features = np.moveaxis(features, -1, 1)
    assert features.shape[1:] == mean.shape
    normalized = (features - mean) / std
    assert abs(normalized.mean()) < 0.1
    assert 0.7 < np.square(normalized).mean() < 1.4
    by_channel = [array.mean(axis=(-2, -1)) for array in (features.std(axis=0), std)]
    assert np.corrcoef(*by_channel)[0, 1] > 0.8


def test_without_a_layer_they_are_of_those_that_fit_chooses(models):
    explainer = Explainer(models["torch"]).load_packaged()
    x = explainer.adapter.to_inputs(np.zeros((1, 3, 224, 224), np.float32))
    chosen = [choice.layer for choice in choose_layers(explainer.adapter, x)]
    assert [part.layer for part in explainer.parts] == chosen
    several = Explainer(models["torch"], ["blocks.10", "blocks.4"]).load_packaged()
    assert [part.layer for part in several.parts] == ["blocks.10", "blocks.4"]
    assert [part.estimator.shape for part in several.parts] == [(112, 14, 14), (40, 28, 28)]


@pytest.mark.parametrize("framework", FORMATS)
def test_those_of_chosen_layers_are_there(models, framework):
    explainer = Explainer(models[framework]).load_packaged()
    assert [part.layer for part in explainer.parts] == ["blocks.4", "blocks.10"]
    assert [part.estimator.n_samples() for part in explainer.parts] == [700, 700]


def test_they_know_their_halves(models):
    explainer = Explainer(models["torch"], "blocks.10", steps=2, samples=2).load_packaged()
    error = explainer.bits_error(photographs("torch")[:2])
    assert ((error > 0) & (error < 0.1)).all()


def altered(model, change):
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.blocks[2].expand.conv.weight[3, 2].mul_(1.001),
        lambda model: model.classifier.bias[7].add_(1e-3),
        lambda model: model.half(),
        lambda model: setattr(model.stem, "act", nn.Identity()),  # the same weights
    ],
    ids=["one filter", "one bias", "half precision", "no activation"],
)
def test_other_models_are_refused_and_stay_as_they_were(models, change):
    explainer = Explainer(altered(models["torch"], change), "blocks.4")
    with pytest.raises(StateError, match=r"packaged statistics are of .*; call fit\(batches\)"):
        explainer.load_packaged()
    assert explainer.estimator.n_samples() == 0
    with pytest.raises(StateError, match="EfficientNet-Lite0 with its ImageNet weights, and this"):
        Explainer(nn.Sequential(nn.Conv2d(3, 2, 3)), "0").load_packaged()


def test_other_layers_are_refused(models):
    with pytest.raises(StateError, match=r"describes the layers \['blocks.4', .*layer is 'blocks.2'"):
        Explainer(models["tensorflow"], "blocks.2").load_packaged()
    with pytest.raises(StateError, match=r"layer is 'blocks.2'"):
        Explainer(models["torch"], ["blocks.4", "blocks.2"]).load_packaged()
    with pytest.raises(LayerError):
        Explainer(models["torch"], "blocks.77").load_packaged()


def test_the_file_says_where_it_comes_from(models):
    facts = packaged_facts()
    assert [layer["layer"] for layer in facts["layers"]] == LAYERS
    assert facts["n_samples"] == 700
    assert "not part of the library" in facts["data"]
    assert set(facts["bits_errors"]) == set(LAYERS)
    assert all(0 < error < 0.05 for error in facts["bits_errors"].values())
    assert PATH.stat().st_size < 700_000
    for model in models.values():
        assert weights_fingerprint(Explainer(model).adapter) == facts["weights"]


def test_half_precision_changes_the_bits_of_a_mask_by_less_than_a_thousandth():
    rng = np.random.default_rng(0)
    halves = Halves(WelfordEstimator(), WelfordEstimator())
    scale, shift = np.exp(rng.normal(size=(2, 20, 9, 9)))
    for half in halves:
        half.fit(shift + scale * rng.normal(size=(50, 20, 9, 9)))
    whole = halves.merged()
    state = {**whole.state_dict(), **halves.state_dict()}
    again = WelfordEstimator()
    small = compact(state)
    assert sum(array.nbytes for array in small.values()) < sum(array.nbytes for array in state.values()) / 5
    state = expanded(small)
    again.load_state_dict({name: state[name] for name in whole.state_dict()})
    features = shift + scale * rng.normal(size=shift.shape)
    passed = rng.uniform(0.01, 0.99, shift.shape)
    bits = [
        capacity((features - estimator.mean()) / estimator.std(), Mask(passed, 1 - passed)).sum()
        for estimator in (whole, again)
    ]
    assert bits[0] != bits[1]
    np.testing.assert_allclose(*bits, rtol=1e-3)


def test_the_command_takes_them_where_they_fit(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(statistics, "CROPS", 4)
    sample_image("cat").save(tmp_path / "cat.png")
    said = {}
    for options in ((), ("--size", "192"), ("--layer", "blocks.14")):
        out = tmp_path / f"out{len(said)}"
        call = [
            "iba",
            "explain",
            str(tmp_path / "cat.png"),
            "--steps",
            "1",
            "--samples",
            "1",
            "--out",
            str(out),
        ]
        monkeypatch.setattr("sys.argv", [*call, *options])
        assert main() == 0
        said[options] = " ".join(capfd.readouterr().out.split())
        (record,) = Run.open(out)
        assert record.error is None
    assert "Statistics of 700 photographs of ImageNet, packaged" in said[()]
    assert "Layer blocks.4, blocks.10, chosen automatically" in said[()]
    for options in (("--size", "192"), ("--layer", "blocks.14")):
        assert (
            "Statistics of 4 crops of the packaged sample photographs, enough for a first look"
            in said[options]
        )


def test_the_packaged_readout_gives_one_map_in_both_frameworks(models):
    """And it is nearer to the map of single steps than that of a mask which is the same everywhere."""
    name = next(iter(SAMPLE_IMAGES))
    maps = {}
    for framework, model in models.items():
        x = PREPROCESSING(sample_image(name), FORMATS[framework])[None]
        explainer = Explainer(model, "blocks.4", warm_start=packaged_readout(model)).load_packaged()
        found = explainer.explain(x, seed=0)
        maps[framework] = found.capacity_channels_first()[0].sum(axis=0)
        assert found.survival[0] > 0.1
    np.testing.assert_allclose(maps["tensorflow"], maps["torch"], rtol=0.02, atol=0.02 * maps["torch"].max())
    model, x = models["torch"], PREPROCESSING(sample_image(name), "channels_first")[None]
    wanted = Explainer(model, "blocks.4", preset="fast").load_packaged().explain(x, seed=0)
    constant = Explainer(model, "blocks.4", steps=1, learning_rate=0, initial_alpha=-1).load_packaged()
    wanted, even = (
        each.capacity_channels_first()[0].sum(axis=0).ravel()
        for each in (wanted, constant.explain(x, seed=0))
    )
    ours = np.corrcoef(maps["torch"].ravel(), wanted)[0, 1]
    assert ours > 0.6
    assert ours > np.corrcoef(even, wanted)[0, 1]
