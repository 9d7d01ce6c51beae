"""Two models of one framework beside each other."""

import json

import numpy as np
import pytest

from iba_core import Explainer, InputError, NotEstimatedError
from iba_core.evaluation import compare_models
from iba_core.evaluation.model_comparison import OUTPUT
from iba_core.framework.adapter import find_adapter
from tests.backends import SIZE, SMALL, SMALL_LAYER, Dense, fitted, smooth_images


@pytest.fixture(scope="module")
def x(backend):
    return backend.images(smooth_images(3))


@pytest.fixture(scope="module")
def model(backend):
    return backend.small()


def altered(model, layer, factor=1.05):
    """A copy of a model with some of one layer's weights changed."""
    adapter = find_adapter(model)
    arrays = adapter.weights()[layer]
    arrays[0].flat[::5] = factor * arrays[0].flat[::5]
    return adapter.with_weights({layer: arrays})


def test_a_model_agrees_with_itself(model, x):
    found = compare_models(model, find_adapter(model), [x[:2], x[2:]])
    assert found.agree
    assert (found.begins_at, found.inputs, found.names) == (None, 3, ("first", "second"))
    assert [layer.relative for layer in found.layers] == [0.0] * len(found.layers)
    assert {layer.name for layer in SMALL} <= {layer.first for layer in found.layers}
    assert (found.outputs.same_class, found.outputs.divergence_bits) == (1.0, 0.0)
    assert found.verdict.startswith("The models agree")
    assert found.maps is None


@pytest.mark.parametrize("layer", ["first", SMALL_LAYER, "logits"])
def test_the_layer_with_other_weights_is_named(model, x, layer):
    found = compare_models(model, altered(model, layer), [x])
    assert found.begins_at == layer
    assert not found.agree
    assert f"begin to differ at {layer}, by" in found.verdict
    assert f"{layer}".ljust(6) in str(found)
    assert "<- begins here" in str(found)


def test_differences_are_those_of_numpy(backend, model, x):
    other = altered(model, "third", 1.5)
    found = compare_models(model, other, [x[:1], x[1:]], pairs={SMALL_LAYER: SMALL_LAYER, "third": "third"})
    adapters = find_adapter(model), find_adapter(other)
    features, outputs = [], []
    for adapter in adapters:
        inputs = adapter.to_inputs(x)
        features.append(np.asarray(adapter.split("third").features(inputs)))
        outputs.append(np.asarray(adapter.predict(inputs)))
    layer = found.layers[1]
    assert layer.relative == pytest.approx(
        np.linalg.norm(features[1] - features[0]) / np.linalg.norm(features[0])
    )
    assert layer.largest == pytest.approx(np.abs(features[1] - features[0]).max())
    assert found.outputs.largest == pytest.approx(np.abs(outputs[1] - outputs[0]).max())
    assert found.outputs.mean == pytest.approx(np.abs(outputs[1] - outputs[0]).mean())
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in outputs)
    assert found.outputs.divergence_bits == pytest.approx((p * np.log2(p / q)).sum(axis=1).mean())
    assert found.outputs.same_class == np.mean(p.argmax(axis=1) == q.argmax(axis=1))


def test_a_layer_that_means_something_else_is_told_apart(model, x):
    # Features before an activation, paired with those after one.
    pairs = {"first": "act", SMALL_LAYER: SMALL_LAYER, "third": "third", "logits": "logits"}
    found = compare_models(model, model, [x], pairs=pairs)
    assert found.agree
    assert found.differ_alone == ["first"]
    assert "give something else in the second model: first." in found.verdict
    found = compare_models(model, altered(model, "third"), [x], pairs=pairs)
    assert (found.begins_at, found.differ_alone) == ("third", ["first"])


def test_what_differs_after_the_last_pair_differs_in_the_output(model, x):
    found = compare_models(model, altered(model, "logits"), [x], pairs={"first": "first", "third": "third"})
    assert found.begins_at == OUTPUT
    assert "begin to differ at the output;" in found.verdict


def test_explainers_compare_maps_bits_and_survival(backend, x):
    one = fitted(backend, steps=3, samples=4)
    same = compare_models(one, one, [x[:2], x[2:]], names=("one", "other"))
    np.testing.assert_allclose(same.maps.pearson, 1)
    assert set(same.seconds) == {"outputs", "features", "explanations"}
    other = fitted(backend, model=altered(backend.small(), "third", 8.0), steps=3, samples=4)
    found = compare_models(one, other, [x[:2], x[2:]], target=1, seed=5)
    ours, theirs = (explainer.explain(x, 1, seed=5) for explainer in (one, other))
    np.testing.assert_allclose(found.maps.bits[0], ours.total_bits, rtol=1e-6)
    np.testing.assert_allclose(found.maps.bits[1], theirs.total_bits, rtol=1e-6)
    np.testing.assert_allclose(found.maps.survival[1], theirs.survival, rtol=1e-6)
    expected = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours.saliency, theirs.saliency, strict=True)
    ]
    np.testing.assert_allclose(found.maps.pearson, expected, rtol=1e-6)
    assert found.maps.layers == (SMALL_LAYER, SMALL_LAYER)
    written = json.loads(found.to_json())
    assert written["begins_at"] == "third"
    assert len(written["maps"]["bits"][1]) == 3


def test_the_figure_shows_the_profile_and_the_maps(backend, x, tmp_path):
    explainer = fitted(backend, steps=2, samples=2)
    found = compare_models(explainer, explainer, [x])
    figure = found.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]
    assert titles[0] == "The models agree"
    assert sum(title.startswith(("first\n", "second\n")) for title in titles) == 6


def test_models_of_other_tasks_are_refused(backend, model, x):
    other = backend.network((SIZE, SIZE, 3), [*SMALL[:-1], Dense("logits", 3)], dtype="float64")
    with pytest.raises(InputError, match=r"shapes \(3, 5\) and \(3, 3\); models of one task"):
        compare_models(model, other, [x])


def test_wrong_arguments_are_named(backend, model, x):
    with pytest.raises(InputError, match="target is what explainers explain"):
        compare_models(model, model, [x], target=1)
    with pytest.raises(InputError, match="batches is empty"):
        compare_models(model, model, [])
    with pytest.raises(InputError, match="second is of type"):
        compare_models(model, 3, [x])
    with pytest.raises(InputError, match="must be two names that differ"):
        compare_models(model, model, [x], names=("a", "a"))
    explainer = Explainer(model, SMALL_LAYER)
    with pytest.raises(NotEstimatedError):
        compare_models(explainer, explainer, [x])


def test_convert_brings_the_inputs_to_the_second_model(backend, model, x):
    found = compare_models(model, model, [x], convert=lambda inputs: 2 * inputs)
    assert found.begins_at == "first"
    assert found.layers[0].relative == pytest.approx(1, abs=0.3)
