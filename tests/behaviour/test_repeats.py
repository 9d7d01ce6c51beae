"""Several explanations of the same inputs: seeds, betas, layers."""

import base64
import json
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from iba_core import Explainer, InputError, combine_maps, compare
from tests.backends import SMALL_LAYER, fitted, smooth_images


def test_seeds_give_mean_and_spread(backend):
    explainer, x = fitted(backend, steps=3, samples=2), backend.images(smooth_images(2))
    found = explainer.explain_seeds(x, 1, seeds=3, seed=5)
    single = [explainer.explain(x, 1, seed=seed) for seed in (5, 6, 7)]
    np.testing.assert_allclose(found.saliency, np.mean([each.saliency for each in single], axis=0))
    bits = np.array([each.total_bits for each in single])
    np.testing.assert_allclose(found.total_bits_std, bits.std(axis=0, ddof=1))
    assert f"{bits[:, 0].mean():,.0f} ± {bits[:, 0].std(ddof=1):,.0f} bits" in repr(found)
    assert (found.sure(0.0) == found.saliency).all()
    assert not found.sure(1e9).any()
    some = found.sure(2.0) > 0
    assert (found.saliency[some] > 2 * found.saliency_std[some] / np.sqrt(3)).all()
    found.plot(index=1)


def test_more_beta_leaves_fewer_bits_and_less_of_the_target(backend):
    explainer, x = fitted(backend, steps=20, samples=4), backend.images(smooth_images(2))
    curve = explainer.survival_curve(x, betas=(300.0, 0.1, 10.0), seed=0)
    np.testing.assert_array_equal(curve.betas, [0.1, 10.0, 300.0])
    assert (np.diff(curve.bits, axis=0) < 0).all()
    assert (curve.survival[0] > curve.survival[-1]).all()
    alone = explainer.explain(x, beta=10.0, seed=0)
    np.testing.assert_allclose(curve.survival[1], alone.survival)
    with pytest.raises(InputError, match="keep= is no argument of survival_curve"):
        explainer.survival_curve(x, keep=0.9)


def test_maps_of_layers_are_combined_as_shares(backend):
    model, x = backend.small(), backend.images(smooth_images(2))
    first = Explainer(model, SMALL_LAYER, steps=3, samples=2)
    first.fit([backend.images(smooth_images(12))], progbar=False)
    a, b = (first.explain(x, 1, seed=seed) for seed in (0, 1))
    shares = [each.saliency / each.saliency.sum(axis=(1, 2), keepdims=True) for each in (a, b)]
    np.testing.assert_allclose(combine_maps([a, b], "mean"), np.mean(shares, axis=0), rtol=1e-6)
    expected = np.sqrt(shares[0] * shares[1])
    expected /= expected.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(combine_maps([a, b]), expected, rtol=1e-5)
    with pytest.raises(InputError, match="the same images"):
        combine_maps([a, first.explain(x[:1], 1)])


def test_images_of_an_attribution_are_taken_apart(backend):
    explainer, x = fitted(backend, steps=3, samples=2), backend.images(smooth_images(3))
    whole = explainer.explain(x, [0, 1, 2], seed=0)
    assert [each.classes.tolist() for each in whole] == [[0], [1], [2]]
    np.testing.assert_array_equal(whole[-1].saliency, whole.saliency[2:])
    np.testing.assert_array_equal(whole[1:].model_losses, whole.model_losses[:, 1:])
    np.testing.assert_array_equal(whole[1].survival, whole.survival[1:2])
    joined = type(whole).concatenate(list(whole))
    np.testing.assert_array_equal(joined.capacity, whole.capacity)
    np.testing.assert_array_equal(joined.informations, whole.informations)
    with pytest.raises(IndexError):
        whole[3]
    with pytest.raises(InputError, match="index"):
        whole["a"]


def test_numbers_of_an_attribution_can_be_stored(backend):
    explainer, x = fitted(backend, steps=3, samples=2), backend.images(smooth_images(2))
    attribution = explainer.explain(x, [1, 0], seed=4)
    found = json.loads(json.dumps(attribution.to_dict()))
    assert found["seed"] == 4
    assert found["settings"]["steps"] == 3
    assert [image["class"] for image in found["images"]] == [1, 0]
    for index, image in enumerate(found["images"]):
        assert image["bits"] == pytest.approx(attribution.total_bits[index])
        assert image["probability"] == pytest.approx(attribution.probabilities[index, image["class"]])
        assert image["survival"] == pytest.approx(attribution.survival[index])
    page = attribution._repr_html_()
    assert page.count("<tr>") == 3
    assert "<script" not in page
    content = base64.b64decode(page.rpartition("base64,")[2].partition('"')[0])
    height, width = attribution.saliency.shape[1:]
    assert Image.open(BytesIO(content)).size == (2 * width + max(1, width // 20), height)


def test_maps_are_compared_on_one_scale(backend):
    mpl.use("agg")
    explainer, x = fitted(backend, steps=3, samples=2), backend.images(smooth_images(2))
    found = {"little": explainer.explain(x, 1, seed=0, beta=100.0), "much": explainer.explain(x, 1, seed=0)}
    picture = smooth_images(2)[1]
    for image in (picture, np.moveaxis(picture, -1, 0)):
        figure = compare(found, image, index=1)
        drawn = [ax.get_images()[-1] for ax in figure.axes if ax.get_title()]
        top = max(each.saliency[1].max() for each in found.values())
        assert [image.get_clim() for image in drawn] == [(0.0, pytest.approx(top))] * 2
        assert f"{found['much'].total_bits[1]:,.0f} bits" in figure.axes[1].get_title()
    with pytest.raises(InputError, match="attributions"):
        compare({})


def test_classes_have_names_where_they_are_given(backend, tmp_path):
    names = [f"class <{letter}>" for letter in "abcde"]
    x = backend.images(smooth_images(3))
    explainer = Explainer(backend.small(), SMALL_LAYER, class_names=names, steps=3, samples=2)
    explainer.fit([backend.images(smooth_images(12))], progbar=False)
    found = explainer.explain(x, [4, 0, 2], seed=0)
    assert found.class_names == ("class <e>", "class <a>", "class <c>")
    assert found[1:].class_names == found.class_names[1:]
    assert type(found).concatenate(list(found)).class_names == found.class_names
    assert "class <e>, class <a>" in repr(found)
    assert "class &lt;e&gt;" in found._repr_html_()
    assert found.to_dict()["images"][0]["name"] == "class <e>"
    found.save(tmp_path / "found.safetensors")
    assert type(found).load(tmp_path / "found.safetensors").class_names == found.class_names
    short = Explainer(
        backend.small(), SMALL_LAYER, class_names=names[:2], estimator=explainer.estimator, steps=1
    )
    with pytest.raises(InputError, match="class_names has 2 names, none of class 4"):
        short.explain(x[:1], 4)
    with pytest.raises(InputError, match="class_names"):
        Explainer(backend.small(), class_names=[1, 2])
