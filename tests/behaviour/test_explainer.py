"""One test body for both frameworks: the same network, explained by the same class."""

from dataclasses import fields, replace

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from iba_core import (
    Attribution,
    Explainer,
    InputError,
    LayerError,
    NotEstimatedError,
    OptimizationError,
    StateError,
    WelfordEstimator,
)
from iba_core.bottleneck.settings import PRESETS
from iba_core.targets import class_probabilities
from iba_core.timing import BareTail
from tests.backends import (
    BACKENDS,
    CLASSES,
    SIZE,
    SMALL_LAYER,
    assert_same_state,
    fitted,
    smooth_images,
)


def raise_after(backend, passes):
    """A score that raises at one of its calls."""
    calls = []

    def score(outputs):
        # In TensorFlow the score is traced once and runs as a graph: only the first call can raise.
        calls.append(1)
        if len(calls) > (passes if backend.name == "torch" else 0):
            raise ZeroDivisionError("in the middle")
        return outputs[:, 0]

    return score


# -- the same in each framework -------------------------------------------------------------------


def test_an_explanation_is_what_its_names_say(backend):
    explainer = fitted(backend)
    x = backend.images(smooth_images(2))
    result = explainer.explain(x, seed=0)
    assert len(result) == 2
    assert result.layer == SMALL_LAYER
    assert result.saliency.shape == (2, SIZE, SIZE)
    assert result.mask.shape == result.capacity.shape
    assert (result.capacity >= -1e-12).all()
    assert ((result.mask > 0) & (result.mask < 1)).all()
    np.testing.assert_allclose(result.total_bits, result.capacity.sum(axis=(1, 2, 3)) / np.log(2))
    np.testing.assert_allclose(result.saliency.sum(axis=(1, 2)), result.total_bits)
    np.testing.assert_allclose(result.outputs, explainer.predict(x))
    assert result.model_losses.shape == result.informations.shape == (13, 2)
    assert (result.informations[-1] < result.informations[0]).all()


def test_presets_are_sets_of_settings(backend):
    x, fast = backend.images(smooth_images(2)), {**PRESETS["fast"], "beta": 1.0, "keep": None}
    expected = fitted(backend, **fast).explain(x, seed=0)
    for found in (
        fitted(backend, preset="fast").explain(x, seed=0),
        fitted(backend).explain(x, seed=0, preset="fast"),
        next(fitted(backend).explain_iter([x], seed=0, preset="fast", progbar=False)),
    ):
        assert found.settings == expected.settings
        np.testing.assert_array_equal(found.capacity, expected.capacity)
    assert fitted(backend, beta=3.0).explain(x, preset="fast").settings.beta == 3
    assert fitted(backend).explain(x, preset="fast", samples=1).settings.samples == 1
    assert fitted(backend, preset="fast", samples=1).settings.samples == 1
    slow = fitted(backend, preset="fast").explain(x, seed=0, preset="default")
    np.testing.assert_array_equal(slow.capacity, fitted(backend).explain(x, seed=0).capacity)


def test_converged_images_do_not_feel_those_that_go_on(backend):
    explainer, settings = fitted(backend), {"seed": 0, "steps": 60, "tolerance": 0.03, "samples": 3}
    together = explainer.explain(backend.images(smooth_images(3)), **settings)
    assert len(set(together.steps_taken)) > 1
    assert together.model_losses.shape == together.informations.shape == (60, 3)
    for i, steps in enumerate(together.steps_taken):
        alone = explainer.explain(backend.images(smooth_images(3)[i : i + 1]), **settings)
        assert alone.steps_taken == [steps]
        np.testing.assert_allclose(together.capacity[i], alone.capacity[0], rtol=1e-7)
        np.testing.assert_array_equal(together.informations[steps:, i], together.informations[steps - 1, i])
        plain = explainer.explain(
            backend.images(smooth_images(3)[i : i + 1]), seed=0, steps=int(steps), samples=3
        )
        np.testing.assert_allclose(together.capacity[i], plain.capacity[0], rtol=1e-7)


def test_more_beta_means_fewer_bits(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    bits = [explainer.explain(x, seed=0, steps=30, beta=beta).total_bits for beta in (0.1, 1, 10)]
    assert (bits[0] > bits[1]).all()
    assert (bits[1] > bits[2]).all()


def test_noise_follows_the_seed_alone(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(1))
    first, again, other, free = (explainer.explain(x, seed=seed).capacity for seed in (1, 1, 2, None))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, free)


def test_one_input_needs_no_batch_axis(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(1))
    np.testing.assert_array_equal(
        explainer.explain(x[0], seed=0).capacity, explainer.explain(x, seed=0).capacity
    )


@pytest.mark.parametrize("max_batch", [None, 4, 10, 25])
def test_a_batch_is_as_good_as_its_images(backend, max_batch):
    explainer, x = fitted(backend), backend.images(smooth_images(3))
    targets = [4, 0, 2]
    together = explainer.explain(x, targets, seed=3, max_batch=max_batch)
    singles = [explainer.explain(x[i], targets[i], seed=3) for i in range(3)]
    for field in ("capacity", "saliency", "mask", "outputs"):
        expected = np.concatenate([getattr(single, field) for single in singles])
        np.testing.assert_allclose(getattr(together, field), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        together.model_losses, np.concatenate([single.model_losses for single in singles], axis=1), rtol=1e-8
    )
    assert together.classes.tolist() == targets


def test_no_more_than_max_batch_pass_at_once(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(3))
    sizes = []

    def score(outputs):
        sizes.append(int(outputs.shape[0]))
        return outputs[:, 1]

    explainer.explain(x, score, max_batch=7)
    assert max(sizes) <= 7


@pytest.mark.parametrize("target", [None, 3, [3, 1], np.array([3, 1]), (3, 1)], ids=str)
def test_targets_of_classes(backend, target):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    result = explainer.explain(x, target, seed=0)
    predicted = explainer.predict(x).argmax(axis=1)
    expected = predicted if target is None else np.broadcast_to(target, 2)
    np.testing.assert_array_equal(result.classes, expected)
    named = explainer.explain(x, expected.tolist(), seed=0)
    np.testing.assert_array_equal(result.capacity, named.capacity)


def test_targets_may_be_tensors():
    index = np.array([3, 1])
    for name, target in (("torch", torch.from_numpy(index)), ("tensorflow", tf.constant(index))):
        backend = BACKENDS[name]()
        result = fitted(backend).explain(backend.images(smooth_images(2)), target, seed=0)
        assert result.classes.tolist() == [3, 1]


def test_inputs_may_be_tensors():
    for name, convert in (("torch", torch.from_numpy), ("tensorflow", tf.constant)):
        backend = BACKENDS[name]()
        explainer, x = fitted(backend), backend.images(smooth_images(2))
        np.testing.assert_array_equal(
            explainer.explain(convert(x), seed=0).capacity, explainer.explain(x, seed=0).capacity
        )


def test_data_sets_yield_inputs_and_more(backend):
    x = backend.images(smooth_images(20, seed=1))
    plain = Explainer(backend.small(), SMALL_LAYER).fit([x[:12], x[12:]], progbar=False)
    pairs = ((x[i : i + 1], "label") for i in range(20))
    paired = Explainer(backend.small(), SMALL_LAYER).fit(pairs, progbar=False)
    np.testing.assert_allclose(plain.estimator.std(), paired.estimator.std(), rtol=1e-12)
    few = Explainer(backend.small(), SMALL_LAYER).fit([x[:12], x[12:]], n_samples=15, progbar=False)
    assert few.estimator.n_samples() == 15
    reference = Explainer(backend.small(), SMALL_LAYER).fit([x[:15]], progbar=False)
    np.testing.assert_allclose(few.estimator.mean(), reference.estimator.mean(), rtol=1e-12)


def test_statistics_may_be_given(backend):
    known = fitted(backend)
    estimator = WelfordEstimator()
    estimator.load_state_dict(known.estimator.state_dict())
    given = Explainer(backend.small(), SMALL_LAYER, estimator=estimator, beta=1.0)
    x = backend.images(smooth_images(1))
    np.testing.assert_array_equal(given.explain(x, seed=0).capacity, known.explain(x, seed=0).capacity)


def test_saved_statistics_are_those_that_were_fitted(backend, tmp_path):
    known = fitted(backend)
    known.save(tmp_path / "stats")
    loaded = Explainer(backend.small(), SMALL_LAYER, beta=1.0).load(tmp_path / "stats")
    x = backend.images(smooth_images(1))
    np.testing.assert_array_equal(loaded.explain(x, seed=0).capacity, known.explain(x, seed=0).capacity)
    with pytest.raises(StateError, match="layer 'second', but the explainer's layer is 'third'"):
        Explainer(backend.small(), "third").load(tmp_path / "stats")


def test_attributions_survive_a_file(backend, tmp_path):
    explainer = fitted(backend)
    for target, seed in ((None, 4), (lambda outputs: outputs[:, 0], None)):
        result = explainer.explain(backend.images(smooth_images(2)), target, seed=seed, beta=3.0)
        result.save(tmp_path / "a.safetensors")
        loaded = Attribution.load(tmp_path / "a.safetensors")
        for field in fields(Attribution):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(result, field.name))
        np.testing.assert_array_equal(loaded.total_bits, result.total_bits)


def test_restricted_predictions(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    result = explainer.explain(x, seed=0, steps=30)
    outputs = explainer.predict_restricted(x, result, samples=40, seed=1)
    assert outputs.shape == (2, 40, CLASSES)
    np.testing.assert_array_equal(outputs, explainer.predict_restricted(x, result, samples=40, seed=1))
    assert not np.allclose(outputs, explainer.predict_restricted(x, result, samples=40, seed=2))
    assert outputs.std(axis=1).min() > 0

    open_mask = replace(result, mask=np.ones_like(result.mask))
    everything = explainer.predict_restricted(x, open_mask, samples=3, seed=1)
    np.testing.assert_allclose(everything, np.repeat(result.outputs[:, None], 3, axis=1), rtol=1e-9)

    # With all replaced by noise, two images are the same.
    shut_mask = replace(result, mask=np.zeros_like(result.mask))
    nothing = explainer.predict_restricted(x, shut_mask, samples=3, seed=1)
    np.testing.assert_allclose(nothing[0], nothing[1], rtol=1e-9)

    probability = class_probabilities(outputs[0])[:, result.classes[0]].mean()
    chance = class_probabilities(explainer.predict_restricted(x, shut_mask, samples=40, seed=1)[0])[
        :, result.classes[0]
    ].mean()
    assert probability > chance


def test_a_layer_is_chosen_where_none_is_named(backend):
    explainer = Explainer(backend.small())
    assert explainer.layer is None
    explainer.fit([backend.images(smooth_images(10))], progbar=False)
    assert explainer.layer in {"first", "norm", "act", "act2", "second", "third", "drop", "act3"}
    assert explainer.explain(backend.images(smooth_images(1))).layer == explainer.layer


# -- what explaining leaves behind: nothing -------------------------------------------------------


def in_training(model):
    """The model as it is in the middle of training: some weights frozen, torch's modules in training mode."""
    if isinstance(model, nn.Module):
        model.train()
        model.second.eval()
        model.first.weight.requires_grad_(False)
    else:
        model.get_layer("first").trainable = False
    return model


def test_the_model_is_left_as_it_was(backend):
    model = in_training(backend.small())
    before = backend.state(model, smooth_images(2))
    explainer = fitted(backend, model=model)
    assert_same_state(backend.state(model, smooth_images(2)), before)
    result = explainer.explain(backend.images(smooth_images(3)), max_batch=10)
    assert_same_state(backend.state(model, smooth_images(2)), before)
    explainer.predict_restricted(backend.images(smooth_images(3)), result)
    explainer.predict(backend.images(smooth_images(3)))
    explainer.adapter.layers(explainer.adapter.to_inputs(backend.images(smooth_images(1))))
    assert_same_state(backend.state(model, smooth_images(2)), before)


@pytest.mark.parametrize("passes", [0, 1, 5])
def test_the_model_is_left_as_it_was_after_an_exception(backend, passes):
    model = in_training(backend.small())
    explainer = fitted(backend, model=model)
    x = backend.images(smooth_images(2))
    expected = explainer.explain(x, 1, seed=0).capacity
    before = backend.state(model, smooth_images(2))
    with pytest.raises(ZeroDivisionError):
        explainer.explain(x, raise_after(backend, passes))
    assert_same_state(backend.state(model, smooth_images(2)), before)
    np.testing.assert_array_equal(explainer.explain(x, 1, seed=0).capacity, expected)


def test_a_data_set_that_breaks_off_leaves_the_model_and_the_statistics(backend):
    model = in_training(backend.small())
    explainer = fitted(backend, model=model)
    known = explainer.estimator.mean()
    before = backend.state(model, smooth_images(2))

    def batches():
        yield backend.images(smooth_images(5))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        explainer.fit(batches(), progbar=False)
    assert_same_state(backend.state(model, smooth_images(2)), before)
    np.testing.assert_array_equal(explainer.estimator.mean(), known)


# -- wrong uses -----------------------------------------------------------------------------------


def test_an_unknown_layer_offers_the_closest_names(backend):
    with pytest.raises(LayerError, match=r"'secnd'; the closest names? (is|are) 'second'"):
        Explainer(backend.small(), "secnd")


def test_analysis_needs_an_estimate(backend):
    explainer, x = Explainer(backend.small(), SMALL_LAYER), backend.images(smooth_images(1))
    for use in (lambda: explainer.explain(x), lambda: explainer.save("nowhere")):
        with pytest.raises(NotEstimatedError, match=r"not estimated; call fit\(batches\)"):
            use()


def test_one_sample_is_no_distribution(backend):
    explainer, x = Explainer(backend.small(), SMALL_LAYER), backend.images(smooth_images(1))
    with pytest.raises(InputError, match="held 1 samples; at least 2 are needed"):
        explainer.fit([x], progbar=False)
    with pytest.raises(InputError, match="held 0 samples"):
        explainer.fit([], progbar=False)
    with pytest.raises(InputError, match="n_samples=1 must be a whole number, 2 or more"):
        explainer.fit([backend.images(smooth_images(5))], n_samples=1, progbar=False)
    with pytest.raises(NotEstimatedError):
        explainer.explain(x)


def test_wrong_inputs_are_told_before_any_work(backend, monkeypatch):
    explainer, x = fitted(backend), smooth_images(2)
    monkeypatch.setattr(type(explainer.adapter.framework), "value_and_grad", None)
    monkeypatch.setattr(type(explainer.adapter.framework), "compile", None)
    wrong_order = x if backend.name == "torch" else np.moveaxis(x, -1, 1)
    broken = backend.images(x.copy())
    broken[1, 2, 2, 1] = np.nan
    for bad, message in (
        (backend.images(x)[0, 0], r"x has shape \(batch, \d+\), .*the number of axes differs"),
        (backend.images(x)[None], r"x has shape \(batch, 2, .*the number of axes differs"),
        (wrong_order, r"the model takes 3 channels, as in \(batch, .*; the channels must come (first|last)"),
        (backend.images(x[..., :2]), r"but the model takes 3 channels"),
        (broken, r"x holds nan at index \(1, 2, 2, 1\); every value must be finite"),
        (np.full_like(broken, np.inf), r"x holds inf at index \(0, 0, 0, 0\)"),
        (backend.images(x)[:0], r"x is an empty batch"),
    ):
        with pytest.raises(InputError, match=message):
            explainer.explain(bad)


def test_wrong_targets_are_told_before_the_first_step(backend, monkeypatch):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    monkeypatch.setattr(type(explainer.adapter.framework), "value_and_grad", None)
    for target, message in (
        (CLASSES, "target=5 is outside the model's 5 classes, 0 to 4"),
        (-1, "target=-1 is outside"),
        ([0, 7], "target=7 is outside"),
        ([0, 1, 2], r"target has shape \(3,\) for 2 images; give one class, or one for each image"),
        (1.5, r"target=1.5 must be a class \(a whole number\)"),
    ):
        with pytest.raises(InputError, match=message):
            explainer.explain(x, target)


def test_wrong_settings(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(1))
    for settings, message in (
        ({"beta": -1}, "beta=-1 must be a finite number, 0 or more"),
        ({"samples": 0}, "samples=0 must be a whole number, 1 or more"),
        ({"bta": 1}, "'bta' is no setting"),
        ({"max_batch": 0}, "max_batch=0 must be a whole number, 1 or more"),
        ({"preset": "fastest"}, "preset='fastest' is no preset; .*'fast'"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"seed": "one"}, "seed='one' must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            explainer.explain(x, **settings)
    with pytest.raises(InputError, match=r"estimator={.*} must be a WelfordEstimator"):
        Explainer(backend.small(), SMALL_LAYER, estimator={})
    with pytest.raises(InputError, match="x holds 2 inputs, but the attribution 1"):
        explainer.predict_restricted(backend.images(smooth_images(2)), explainer.explain(x))


def test_a_tail_in_lower_precision(both):
    """Autocast in PyTorch; a Keras model computes in the precision that it was made in."""
    torch_backend, backend = both
    full, half = (
        fitted(torch_backend, "float32").explain(
            torch_backend.images(smooth_images(2)).astype("float32"), seed=0, precision=precision
        )
        for precision in (None, "bfloat16")
    )
    assert half.capacity.dtype == np.float32
    assert not np.array_equal(full.capacity, half.capacity)
    for a, b in zip(full.capacity, half.capacity, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    with pytest.raises(InputError, match="precision='bfloat16' is not offered by the backend 'tensorflow'"):
        fitted(backend, "float32").explain(smooth_images(1).astype("float32"), precision="bfloat16")


def test_a_loss_that_overflows_stops_with_the_step(backend):
    explainer, x = fitted(backend), backend.images(smooth_images(1))
    with pytest.raises(OptimizationError, match=r"model's loss became .* at step 1 of 13"):
        explainer.explain(x, lambda outputs: outputs[:, 0] / 0.0)


# -- timing ---------------------------------------------------------------------------------------


def test_the_bare_tail_passes_as_often_as_it_is_told(backend, monkeypatch):
    explainer, x = fitted(backend), backend.images(smooth_images(2))
    split, shapes = explainer.adapter.split(SMALL_LAYER), []
    framework = explainer.adapter.framework
    compiled = framework.compile

    def counting(self, function, **options):
        function = compiled(function, **options)

        def run(tail, z, carry):
            shapes.append(tuple(z.shape))
            value, gradient = function(tail, z, carry)
            assert tuple(gradient.shape) == tuple(z.shape)
            assert np.abs(framework.to_numpy(gradient)).max() > 0
            return value, gradient

        return run

    monkeypatch.setattr(type(framework), "compile", counting)
    before = backend.state(explainer.adapter.model, smooth_images(2))
    assert BareTail(explainer.adapter, split).seconds(x, steps=4, samples=3) > 0
    assert [shape[0] for shape in shapes] == [6] * 4
    assert_same_state(backend.state(explainer.adapter.model, smooth_images(2)), before)
