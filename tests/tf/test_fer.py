"""A trained network in every form: one explanation, and it lies on the face."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image

from iba_tf import IBACopy, to_saliency_map

v1 = tf.compat.v1

PAGE = Path(__file__).parents[2] / "docs" / "tensorflow.md"
FORMS = ["Keras model", "SavedModel", "frozen graph", "session"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the documentation's page computes, by name."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("page"))
        for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            exec(compile(code, PAGE.name, "exec"), names)
        names["picture"] = np.asarray(Image.open("emotions.jpg"))
    yield names
    names["session"].close()


def assert_equal_maps(capacity, expected):
    maps = [nats.sum(axis=-1).ravel() for nats in (capacity, expected)]
    assert np.corrcoef(*maps)[0, 1] >= 0.9999
    assert capacity.sum() == pytest.approx(expected.sum(), rel=3e-3)


def test_each_form_has_one_explanation(page):
    assert list(page["capacities"]) == FORMS
    for capacity in page["capacities"].values():
        assert_equal_maps(capacity, page["capacities"]["Keras model"])


def test_portraits_have_one_explanation_too(page):
    happy = page["EMOTIONS"].index("happy")
    expected = page["analyzer"].analyze(page["chosen"][:2], seed=3)
    for name, iba in page["forms"].items():
        target = iba.set_classification_loss()  # the page ends with a loss of its own
        feed = {page["image"]: page["chosen"][:2]} if name == "session" else page["chosen"][:2]
        capacities = iba.analyze(feed, {target: happy}, seed=3)
        for capacity, saliency in zip(capacities, expected, strict=True):
            found = to_saliency_map(capacity, (64, 64))
            assert np.corrcoef(found.ravel(), saliency.ravel())[0, 1] >= 0.9999
            assert found.sum() == pytest.approx(saliency.sum(), rel=3e-3)


def test_a_graph_with_variables_has_the_same(page):
    """Keras 2 builds the network in a graph of old, and its variables live in a session."""
    graph = tf.Graph()
    with graph.as_default():
        old = tf_keras.models.load_model(page["file"], compile=False)
        initializer = v1.global_variables_initializer()
    weights, portraits = page["model"].get_weights(), page["portraits"]
    with v1.Session(graph=graph) as session:
        session.run(initializer)
        with graph.as_default():
            old.set_weights(weights)
        iba = IBACopy("add_1/add", "global_average_pooling2d_1/Mean", graph=graph)
        target = iba.set_classification_loss()
        iba.fit({old.input: portraits})
        capacity = iba.analyze(
            {old.input: page["smile"]}, {target: [page["EMOTIONS"].index("happy")]}, seed=0
        )
        iba.assert_variables_equal()
    assert_equal_maps(capacity, page["capacities"]["Keras model"])


def test_the_map_lies_on_the_smile(page):
    """The box around the mouth is an eighth of the picture."""
    saliency = to_saliency_map(page["capacities"]["Keras model"], (64, 64))
    assert saliency[32:50, 20:48].sum() > 0.8 * saliency.sum()
    assert [page["EMOTIONS"][k] for k in page["emotions"]] == ["happy", "happy", "surprise", "sad"]


def test_the_analyzer_comes_back_from_its_file(page):
    again, chosen = page["again"], page["chosen"]
    np.testing.assert_array_equal(again.predict(chosen), page["analyzer"].predict(chosen))
    np.testing.assert_allclose(again.analyze(chosen[:1], seed=0), page["maps"][:1], rtol=1e-3, atol=1e-5)


def test_the_picture_is_the_one_in_the_documentation(page):
    shown, made = Image.open(PAGE.parent / "images" / "emotions.jpg"), Image.fromarray(page["picture"])
    # Other versions of the drawing library set the labels a little differently.
    assert np.abs(np.subtract(shown.size, made.size)).max() <= 10
    difference = np.abs(np.asarray(shown, float) - np.asarray(made.resize(shown.size), float))
    assert difference.mean() < 10
