"""Explanations at several layers, and one map of them."""

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from iba_core import (
    Attribution,
    CombinedAttribution,
    Explainer,
    InputError,
    NotEstimatedError,
    StateError,
    combine_maps,
)
from iba_core.bottleneck.settings import PRESETS, BottleneckSettings
from iba_core.default_layer import choose_layer
from tests.backends import SIZE, SMALL_LAYER, Activation, AveragePool, Conv, Dense, Flatten, smooth_images

LAYERS = ["act", SMALL_LAYER]


def of_layers(backend, layer=LAYERS, **settings):
    given = {"combine": "mean", "steps": 3, "samples": 2, "beta": 1.0, **settings}
    explainer = Explainer(backend.small(), layer, **given)
    return explainer.fit((backend.images(smooth_images(4, seed=i)) for i in range(3)), progbar=False)


@pytest.fixture(scope="module")
def found(backend):
    """An explainer of two layers, its images, and their explanation."""
    explainer, x = of_layers(backend), backend.images(smooth_images(2))
    return explainer, x, explainer.explain(x, seed=0)


def test_one_pass_over_the_data_gives_the_statistics_of_all_layers(backend, found):
    for part, layer in zip(found[0].parts, LAYERS, strict=True):
        alone = of_layers(backend, layer)
        assert part.estimator.n_samples() == 12
        np.testing.assert_array_equal(part.estimator.mean(), alone.estimator.mean())
        np.testing.assert_array_equal(part.estimator.std(), alone.estimator.std())


def test_each_layer_is_explained_as_if_alone(backend, found):
    _, x, combined = found
    assert isinstance(combined, CombinedAttribution)
    assert combined.layer == "act, second"
    for part, layer in zip(combined.parts, LAYERS, strict=True):
        alone = of_layers(backend, layer).explain(x, seed=0)
        assert part.layer == layer
        np.testing.assert_allclose(part.capacity, alone.capacity, rtol=1e-6)
        np.testing.assert_allclose(part.survival, alone.survival, rtol=1e-6)


def test_the_map_is_the_mean_of_maps_of_one_sum_and_bits_are_not_added(backend, found):
    x, combined = found[1:]
    a, b = (part.saliency for part in combined.parts)
    sums = [each.sum(axis=(1, 2), keepdims=True) for each in (a, b)]
    expected = (a / sums[0] + b / sums[1]) / 2 * (sums[0] + sums[1]) / 2
    np.testing.assert_allclose(combined.saliency, expected, rtol=1e-5)
    np.testing.assert_allclose(combined.saliency.sum(axis=(1, 2)), combined.total_bits, rtol=1e-5)
    bits = [part.total_bits for part in combined.parts]
    np.testing.assert_allclose(combined.total_bits, np.mean(bits, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(combined.survival, np.minimum(*(part.survival for part in combined.parts)))
    row = json.loads(json.dumps(combined.to_dict()))["images"][1]
    assert row["bits at act"] == pytest.approx(bits[0][1])
    assert row["survival at second"] == pytest.approx(combined.parts[1].survival[1])
    with pytest.raises(AttributeError, match="capacity is of one layer"):
        combined.capacity  # noqa: B018 (reading it is the test)
    geometric = of_layers(backend, combine="geometric").explain(x, seed=0)
    shares = geometric.saliency / geometric.saliency.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(shares, combine_maps(geometric.parts, "geometric"), rtol=1e-5)


def test_layers_share_the_predicted_class(backend, found):
    explainer, x, combined = found
    np.testing.assert_array_equal(combined.classes, explainer.predict(x).argmax(axis=1))
    (again,) = explainer.explain_iter([x], seed=0, progbar=False)
    np.testing.assert_array_equal(again.saliency, combined.saliency)
    repeats = explainer.explain_seeds(x, seeds=2)
    np.testing.assert_array_equal(repeats.attributions[0].saliency, combined.saliency)


def test_an_attribution_of_layers_is_taken_apart_and_saved(found, tmp_path):
    combined = found[2]
    np.testing.assert_array_equal(combined[1].saliency, combined.saliency[1:])
    joined = CombinedAttribution.concatenate(list(combined))
    np.testing.assert_array_equal(joined.parts[1].capacity, combined.parts[1].capacity)
    assert "layer 'act, second'" in repr(combined)
    assert combined._repr_html_().count("<tr>") == 3
    combined.save(tmp_path / "maps.safetensors")
    for again in (
        Attribution.load(tmp_path / "maps.safetensors"),
        pickle.loads(pickle.dumps(combined)),
        copy.deepcopy(combined),
    ):
        assert isinstance(again, CombinedAttribution)
        assert again.combine == combined.combine
        np.testing.assert_array_equal(again.saliency, combined.saliency)
        np.testing.assert_array_equal(again.parts[0].capacity, combined.parts[0].capacity)
        assert again.parts[1].settings == combined.parts[1].settings


def test_statistics_of_layers_are_saved_and_loaded(backend, found, tmp_path):
    explainer, x, combined = found
    explainer.save(tmp_path / "stats.safetensors", {"note": 1})
    model = backend.small()
    options = {"steps": 3, "samples": 2, "beta": 1.0, "combine": "mean"}
    for again in (
        Explainer(model, LAYERS, **options).load(tmp_path / "stats.safetensors"),
        Explainer(model, LAYERS[::-1], **options).load(tmp_path / "stats.safetensors"),
        Explainer(model, **options).load(tmp_path / "stats.safetensors"),
        pickle.loads(pickle.dumps(explainer)) if backend.name == "torch" else copy.deepcopy(explainer),
    ):
        np.testing.assert_allclose(again.explain(x, seed=0).saliency, combined.saliency, rtol=1e-5)
    one = Explainer(model, SMALL_LAYER, **options).load(tmp_path / "stats.safetensors").explain(x, seed=0)
    np.testing.assert_allclose(one.capacity, combined.parts[1].capacity, rtol=1e-6)
    with pytest.raises(StateError, match="describes the layers"):
        Explainer(model, "third").load(tmp_path / "stats.safetensors")


def test_what_does_not_fit_several_layers_is_refused(backend, found):
    explainer, x, combined = found
    model = backend.small()
    for layers, message in (([], "is empty"), (["act", "act"], "twice"), ([3], "layer=3")):
        with pytest.raises(InputError, match=message):
            Explainer(model, layers)
    assert not isinstance(of_layers(backend, ["act"]).explain(x), CombinedAttribution)
    with pytest.raises(InputError, match="combine='sum'"):
        Explainer(model, LAYERS, combine="sum")
    with pytest.raises(InputError, match="pass_mask"):
        explainer.explain(x, pass_mask=np.zeros((2, 2), bool))
    with pytest.raises(InputError, match="estimator"):
        Explainer(model, LAYERS, estimator=explainer.parts[0].estimator)
    with pytest.raises(InputError, match=r"explainer\.parts"):
        explainer.predict_restricted(x, combined)
    with pytest.raises(InputError, match="the same classes"):
        CombinedAttribution([combined.parts[0], explainer.explain(x, 2, seed=0).parts[1]])


# -- layers that are chosen ---------------------------------------------------------------------------

OPTIONS = {"steps": 3, "samples": 2, "beta": 1.0}

PYRAMID = [
    Conv("fine", 4, strides=2),
    Conv("fine2", 6),
    Activation("fine_act"),
    Conv("coarse", 6, strides=2),
    Conv("coarse2", 6),
    Activation("coarse_act"),
    AveragePool("pool"),
    Flatten(),
    Dense("logits", 5),
]
"""Features of 6 places a side, then of 3, at last `coarse_act`."""


def batches(backend):
    return [backend.images(smooth_images(4, seed=i)) for i in range(3)]


@pytest.fixture(scope="module")
def pyramid(backend):
    return backend.network((SIZE, SIZE, 3), PYRAMID, dtype="float64")


@pytest.fixture(scope="module")
def chosen(backend, pyramid):
    """An explainer that has chosen its layers."""
    return Explainer(pyramid, **OPTIONS).fit(batches(backend), progbar=False)


def test_two_layers_are_chosen_the_second_the_last_with_half_as_many_parts(backend, pyramid, chosen):
    x = backend.images(smooth_images(2))
    names = [part.layer for part in chosen.parts]
    assert names == [choose_layer(chosen.adapter, chosen.adapter.to_inputs(x[:1])).layer, "coarse_act"]
    assert names[0].startswith("fine")
    named = Explainer(pyramid, names, **OPTIONS).fit(batches(backend), progbar=False)
    combined = chosen.explain(x, seed=0)
    assert isinstance(combined, CombinedAttribution)
    np.testing.assert_array_equal(combined.saliency, named.explain(x, seed=0).saliency)
    # One that has chosen keeps to it, whatever it is fitted on.
    again = chosen.fit(batches(backend)[:2], progbar=False)
    assert [part.layer for part in again.parts] == names
    assert again.parts[1].estimator.n_samples() == 8


def test_one_layer_is_chosen_where_there_are_no_two(backend):
    explainer = Explainer(backend.small(), "auto")
    assert explainer.layer is None
    explainer.fit(batches(backend), progbar=False)
    x = backend.images(smooth_images(2))
    assert explainer.layer == choose_layer(explainer.adapter, explainer.adapter.to_inputs(x[:1])).layer
    assert explainer.parts == (explainer,)
    assert explainer.settings == BottleneckSettings(**PRESETS["default"])
    np.testing.assert_array_equal(
        explainer.explain(x, seed=0, steps=2).saliency,
        Explainer(backend.small()).fit(batches(backend), progbar=False).explain(x, seed=0, steps=2).saliency,
    )


def test_settings_fit_the_number_of_layers(backend, pyramid):
    """Several layers share about the time of one, unless somebody chose settings."""
    fast, paper = (BottleneckSettings(**PRESETS[name]) for name in ("fast", "paper"))
    x = backend.images(smooth_images(2))

    def fitted(*layer, own=None, **settings):
        explainer = Explainer(pyramid, *layer, **settings)
        explainer.settings = own or explainer.settings
        return explainer.fit(batches(backend), progbar=False)

    chosen = fitted()
    assert len(chosen.parts) == 2
    assert chosen.settings == Explainer(pyramid, ["fine", "coarse"]).settings == fast
    assert chosen.combine == chosen.explain(x, seed=0).combine == "geometric"
    assert fitted(combine="shared").settings == BottleneckSettings(**PRESETS["default"])  # one mask
    # One setting alone does not fit the others of a preset: they are the paper's.
    assert chosen.explain(x, seed=0, steps=2).settings == replace(paper, steps=2)
    assert fitted(steps=2).settings == replace(paper, steps=2)
    assert fitted(preset="paper").settings == paper
    assert fitted(beta=3.0).settings == fast.override(beta=3.0)
    assert fitted(own=replace(paper, steps=1)).settings == replace(paper, steps=1)


def test_names_that_are_given_later_reach_all_layers(backend, chosen):
    explainer = copy.deepcopy(chosen)
    explainer.class_names = tuple("abcde")
    found = explainer.explain(backend.images(smooth_images(2)), [3, 0], seed=0)
    assert [each.class_names for each in (found, *found.parts)] == [("d", "a")] * 3


def test_what_is_of_one_layer_chooses_one(backend, pyramid, chosen):
    part = chosen.parts[0]
    given = Explainer(pyramid, estimator=part.estimator, **OPTIONS)
    again = given.fit(batches(backend), progbar=False)
    assert again.layer == part.layer
    assert isinstance(again.explain(backend.images(smooth_images(1)), seed=0).capacity, np.ndarray)


def test_chosen_layers_are_saved_loaded_copied_and_estimated_in_parts(backend, pyramid, chosen, tmp_path):
    x = backend.images(smooth_images(2))
    expected = chosen.fit(batches(backend), progbar=False).explain(x, seed=0).saliency
    chosen.save(tmp_path / "stats.safetensors")
    blank = copy.deepcopy(Explainer(pyramid, **OPTIONS))
    named = {f"{i}": row for i, row in enumerate(np.concatenate(batches(backend)))}
    for again in (
        Explainer(pyramid, "auto", **OPTIONS).load(tmp_path / "stats.safetensors"),
        copy.deepcopy(chosen),
        blank.fit_dataset(named, batch_size=4, progbar=False),
    ):
        assert again.layer == chosen.layer
        np.testing.assert_allclose(again.explain(x, seed=0).saliency, expected, rtol=1e-5)


def test_a_layer_of_the_name_auto_is_given_in_a_list(backend):
    named_so = [Conv("auto", 4, strides=2), Activation("act"), Flatten(), Dense("logits", 5)]
    model = backend.network((SIZE, SIZE, 3), named_so)
    assert Explainer(model, ["auto"]).layer == "auto"
    with pytest.raises(NotEstimatedError):
        Explainer(model, "auto").explain(backend.images(smooth_images(2)))


def test_what_has_failed_to_fit_has_not_chosen(backend, pyramid):
    explainer = Explainer(pyramid)
    with pytest.raises(InputError, match="at least 2"):
        explainer.fit([backend.images(smooth_images(1))], progbar=False)
    assert explainer.layer is None
    assert explainer.settings == BottleneckSettings(**PRESETS["default"])
