"""innvestigate's way to make and use an analyzer, with the bottleneck as one of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras.layers import Conv2D, Dense, GlobalAveragePooling2D

import iba_tf
import iba_tf.compat.innvestigate as innvestigate
import iba_tf.compat.innvestigate.utils as iutils
from iba_core.errors import NotEstimatedError
from iba_tf.compat.innvestigate.analyzer import AnalyzerBase, create_analyzer

IMAGES = np.random.default_rng(0).random((12, 10, 8, 3))
FEW = {"steps": 2, "batch_size": 3, "feature_name": "conv"}


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((10, 8, 3))
    x = GlobalAveragePooling2D()(Conv2D(4, 3, activation="relu", name="conv")(inputs))
    return innvestigate.model_wo_softmax(keras.Model(inputs, Dense(5, activation="softmax")(x)))


@pytest.fixture
def analyzer(model):
    made = innvestigate.create_analyzer("iba", model, neuron_selection_mode="index", **FEW)
    made.fit([IMAGES], 5)
    return made


def test_an_analysis_has_the_shape_of_the_samples(model, analyzer):
    analysis = analyzer.analyze(IMAGES[:2], 3)
    assert analysis.shape == (2, 10, 8, 3)
    own = iba_tf.IBACopyInnvestigate(model, "index", **FEW)
    own.fit(IMAGES)
    maps = own.analyze(IMAGES[:2], 3, seed=0)
    # In innvestigate's programs, the sum over the channels is the map.
    np.testing.assert_allclose(analysis.sum(axis=-1), maps, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(analyzer.analyze([IMAGES[:2]], 3), analysis)
    np.testing.assert_allclose(analyzer.predict([IMAGES]), model(IMAGES), atol=1e-5)


def test_an_analyzer_is_saved_and_read(analyzer, tmp_path):
    analysis = analyzer.analyze(IMAGES[:1], 3)
    analyzer.save_npz(str(tmp_path / "analyzer.npz"))
    for again in (AnalyzerBase.load(*analyzer.save()), AnalyzerBase.load_npz(str(tmp_path / "analyzer.npz"))):
        assert isinstance(again, AnalyzerBase)
        np.testing.assert_allclose(again.analyze(IMAGES[:1], 3), analysis, rtol=1e-4, atol=1e-7)


def test_features_without_places_share_their_bits(model):
    rows = keras.Sequential([keras.Input((6,)), Dense(4, activation="relu", name="hidden"), Dense(3)])
    analyzer = create_analyzer("iba", rows, feature_name="hidden", steps=2)
    analyzer.fit(IMAGES[:, :6, 0, 0])
    analysis = analyzer.analyze(IMAGES[:2, :6, 0, 0])
    assert analysis.shape == (2, 6)
    assert np.ptp(analysis, axis=1).max() == 0
    pooled = create_analyzer("iba", model, feature_name=model.layers[2].name, steps=2)
    pooled.fit(IMAGES)
    with pytest.warns(UserWarning, match="share its bits"):
        analysis = pooled.analyze(IMAGES[:2])
    assert analysis.shape == (2, 10, 8, 3)
    assert np.ptp(analysis, axis=(1, 2, 3)).max() == 0


def test_what_is_refused(model):
    with pytest.raises(KeyError, match="gradient"):
        create_analyzer("gradient", model)
    with pytest.raises(innvestigate.NotAnalyzeableModelException, match="softmax"):
        create_analyzer("iba", keras.Sequential([*model.layers[:-1], Dense(5, activation="softmax")]), **FEW)
    with pytest.raises(NotEstimatedError):
        create_analyzer("iba", model, **FEW).analyze(IMAGES[:1])
    assert iutils.keras.graph.model_wo_softmax is iba_tf.model_wo_softmax
