"""A concept learnt for real: faces, in EfficientNet-Lite0, as docs/concepts.md does it, and in Keras."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from iba_core.concepts import ConceptAnalysis, ModelStump, face_concept
from iba_core.concepts.data import resize_map
from iba_core.concepts.training import Examples, HyperplaneTrainer, TrainingSettings
from iba_tf.concepts import ConceptDetectionModel2D as KerasDetection

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)

FACE = (slice(20, 92), slice(70, 126))
"""Rows and columns of the astronaut's face in the picture that the network sees."""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The variables that the page's code leaves behind, what it printed, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("page")
    variables = {"__name__": "page"}
    printed, shown = [], []
    with contextlib.chdir(folder):
        for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            if kind == "text":
                shown.append(text)
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, PAGE.name, "exec"), variables)
            if output.getvalue():
                printed.append(output.getvalue())
    return variables, printed, shown, folder


@pytest.fixture(scope="module")
def keras_result(page):
    network = page[0]["keras_network"]
    faces = face_concept(network.preprocessing, "channels_last", sizes=(36, 12, 12))
    return ConceptAnalysis(faces, network, ["blocks.7", "blocks.10"], progbar=False).run()


def numbers(text):
    return [float(number) for number in re.findall(r"\d\.\d+", text)]


def test_the_page_shows_what_its_code_prints(page):
    _, printed, shown, folder = page
    assert len(printed) == len(shown)
    for ours, theirs in zip(printed, shown, strict=True):
        # Another processor rounds differently, and training carries that on.
        assert re.sub(r"[\d.]+", "#", ours).split() == re.sub(r"[\d.]+", "#", theirs).split()
        assert numbers(ours) == pytest.approx(numbers(theirs), abs=0.03)
    assert (folder / "face-astronaut.png").stat().st_size > 10_000
    assert (PAGE.parent / "images" / "face-astronaut.jpg").is_file()


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_held_out_faces_are_found(page, keras_result, framework):
    result = page[0]["result"] if framework == "torch" else keras_result
    assert result.held_out == "test"
    assert result.best.iou >= 0.5
    assert result.best.iou > result.constant_iou + 0.3
    assert result.best.iou > result.best.random_iou + 0.3


def test_the_frameworks_agree(page, keras_result):
    for ours, theirs in zip(page[0]["result"].layers, keras_result.layers, strict=True):
        assert ours.embedding.cosine(theirs.embedding) >= 0.99
        assert ours.iou == pytest.approx(theirs.iou, abs=0.01)


def test_the_heatmap_is_on_the_face_of_the_astronaut(page):
    heatmap = page[0]["heatmap"]
    assert heatmap.shape == (224, 224)
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert FACE[0].start <= row < FACE[0].stop
    assert FACE[1].start <= column < FACE[1].stop
    inside = heatmap[FACE]
    assert inside.mean() > 0.5
    elsewhere = np.ones(heatmap.shape, dtype=bool)
    elsewhere[:140, 50:170] = False
    assert heatmap[elsewhere].mean() < 0.1
    assert heatmap[elsewhere].max() < inside.max() - 0.2


def test_a_detector_is_the_embedding_it_came_from(page):
    detector, features, torch = (page[0][name] for name in ("detector", "features", "torch"))
    again = type(detector).from_embedding(detector.to_embedding())
    with torch.no_grad():
        assert torch.equal(again(features), detector(features))


def test_keras_draws_the_heatmaps_of_a_concept_from_torch(page):
    detector, features = (page[0][name] for name in ("detector", "features"))
    ours = detector(features)[:, :, 0].detach().numpy()
    theirs = KerasDetection.from_embedding(detector.to_embedding())(features.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(theirs[..., 0], ours, atol=1e-5)


@pytest.fixture(scope="module")
def few(page):
    """The feature maps of few pictures to learn from, of held-out ones, and of new ones."""
    faces, network = page[0]["faces"], page[0]["network"]
    stump = ModelStump(network, "blocks.10")
    parts = [
        Examples.compute(stump, data, progbar=False)
        for data in (faces.train_data, faces.val_data, faces.test_data)
    ]
    return stump.adapter, *parts


def logits_and_variance(maps, parameters, factor):
    phi = np.concatenate([maps.reshape(-1, maps.shape[-1]), np.ones((maps[..., 0].size, 1))], axis=1)
    return phi @ parameters, np.square(phi @ factor.T).sum(axis=1)


def cross_entropy(logits, targets):
    return np.mean(np.logaddexp(0, logits) - targets * logits)


def calibration_error(probabilities, targets, bins=15):
    """Mean distance between the predicted and the true share, over bins of probability."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.bincount(index, probabilities - targets, bins)
    return np.abs(gaps).sum() / len(targets)


@pytest.mark.parametrize("pictures", [8, 36])
def test_laplace_does_not_cost_calibration_and_pays_where_data_is_scarce(few, pictures):
    adapter, train, validation, test = few
    settings = TrainingSettings(epochs=200, weight_decay=1e-5, learning_rate=0.1)
    trainer = HyperplaneTrainer(adapter.framework, train, (1, 1), True, settings)
    rows = np.arange(pictures)
    parameters = trainer.fit(rows=rows, progbar=False).parameters
    factor = trainer.laplace_factor(parameters, rows, (validation, None))
    logits, variance = logits_and_variance(test.maps, parameters, factor)
    targets = test.targets.ravel()
    moderated = logits / np.sqrt(1 + np.pi / 8 * variance)
    plain_loss, loss = cross_entropy(logits, targets), cross_entropy(moderated, targets)
    plain_error, error = (calibration_error(expit(f), targets) for f in (logits, moderated))
    assert loss < plain_loss + 0.002
    assert error < plain_error + 0.002
    if pictures == 8:
        assert loss < 0.97 * plain_loss
        assert error < 0.8 * plain_error


def test_the_variance_is_larger_away_from_the_training_data(few):
    adapter, train, _, test = few
    trainer = HyperplaneTrainer(adapter.framework, train, (1, 1), True, TrainingSettings(weight_decay=1e-3))
    parameters = trainer.fit(progbar=False).parameters
    factor = trainer.laplace_factor(parameters)
    _, known = logits_and_variance(train.maps, parameters, factor)
    _, new = logits_and_variance(test.maps, parameters, factor)
    centre = train.maps.mean(axis=(0, 1, 2))
    _, far = logits_and_variance(centre + 3 * (train.maps - centre), parameters, factor)
    assert new.mean() > 1.05 * known.mean()
    assert far.mean() > 5 * known.mean()


def test_the_careful_model_says_where_it_is_unsure(page):
    probability, variance = (page[0][name].numpy()[0, 0] for name in ("probability", "variance"))
    assert probability.shape == variance.shape == (14, 14)
    assert (variance > 0).all()
    large = resize_map(probability, (224, 224))
    assert large[FACE].mean() > 0.5
    assert large[140:].mean() < 0.1
