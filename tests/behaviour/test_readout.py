"""Readout bottlenecks: estimation, training, explaining, state and copies, in every framework."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import rel_entr

from iba_core import Explainer, InputError, LayerError, NotEstimatedError, OptimizationError, StateError
from iba_core.bottleneck.formulas import mask_from_alpha
from iba_core.bottleneck.smoothing import smoothing_matrices
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import array_namespace
from iba_core.readout import training as readout_training
from iba_core.readout.evidence import AnswerReader, copies
from iba_core.readout.model import NestedPass
from iba_core.readout.packaged import packaged_readout, readout_from
from iba_core.readout.state import ReadoutState
from iba_core.targets import cross_entropy
from tests.backends import Conv, Torch, assert_same_state
from tests.readouts import CLASSES, Readouts, make_data


@pytest.fixture
def side(backend):
    return Readouts(backend)


def assert_equal(weights, others):
    for weight, other in zip(weights, others, strict=True):
        np.testing.assert_array_equal(weight, other)


# -- estimating -------------------------------------------------------------------------------------------


def test_one_pass_estimates_all_layers_on_exactly_as_many_samples(side):
    readout = side.make()
    x, y = make_data()
    readout.estimate(side.model, side.batches(x, y), n_samples=20)
    estimators = [readout.estimator, *readout.estimators]
    assert [int(estimator.n_samples()) for estimator in estimators] == [20] * 6
    other = side.make()
    other.estimate(side.model, side.batches(x[:20], y[:20], size=20))
    for one, two in zip(estimators, [other.estimator, *other.estimators], strict=True):
        np.testing.assert_allclose(one.mean(), two.mean(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.std(), two.std(), rtol=1e-4, atol=1e-6)
    # One pass for each batch; of the rest, on one image, no more is needed for more data. What is looked at
    # once for each size of a batch has been.
    for size in (8, 4):
        readout.estimate(side.model, side.batches(x, y, size=size))
    before = side.backend.calls(side.model, "after")
    readout.estimate(side.model, side.batches(x, y))
    few = side.backend.calls(side.model, "after") - before
    readout.estimate(side.model, side.batches(x, y, size=4))
    assert side.backend.calls(side.model, "after") - before - few == few + 3


def test_a_network_is_made_once_and_fits_its_layers(side):
    readout = side.trained()
    weights = side.weights(readout)
    assert [w.shape for w in weights[::2]] == [(12, 25), (12, 12), (6, 12)]
    readout.reset_estimate()
    with pytest.raises(NotEstimatedError, match="estimate"):
        readout.analyze(side.images(make_data(1)[0]))
    readout.estimate(side.model, side.batches(*make_data(seed=2)))
    assert_equal(weights, side.weights(readout))


class Interrupted:
    """Batches that end by an exception."""

    def __init__(self, batches, after, error=KeyboardInterrupt):
        self.batches, self.after, self.error = list(batches), after, error

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == self.after:
                raise self.error
            yield batch


@pytest.mark.parametrize("reset", [True, False])
def test_an_estimation_that_fails_changes_nothing(side, reset):
    readout, fresh = side.trained(), side.make()
    x, y = make_data(seed=2)
    images = make_data(2, seed=9)[0]
    before = side.capacity(readout, images)
    not_finite = x.copy()
    not_finite[9] = np.nan
    small = side.batches(x[:1], y[:1])
    for data, error in (
        (Interrupted(side.batches(x, y), 2), KeyboardInterrupt),
        (Interrupted(side.batches(x, y), 1, ArithmeticError), ArithmeticError),
        (side.batches(not_finite, y), InputError),
        *([(small, InputError)] if reset else []),
    ):
        for each, samples in ((readout, 24), (fresh, 0)):
            with pytest.raises(error):
                each.estimate(side.model, data, reset=reset)
            seen = [int(estimator.n_samples()) for estimator in (each.estimator, *each.estimators)]
            assert seen == [samples] * 6
    np.testing.assert_array_equal(side.capacity(readout, images), before)
    assert fresh.network is None
    # And the next one succeeds.
    fresh.estimate(side.model, side.batches(x, y))
    assert fresh.estimators[0].n_samples() == 24


def test_given_features_survive_an_estimation_that_fails(side):
    known = side.trained()
    given = {"feature_mean": known.estimator.mean(), "feature_std": known.estimator.std()}
    readout = side.trained(**given)
    readout.feature_mean, readout.feature_std = given.values()
    x, y = make_data()
    with pytest.raises(KeyboardInterrupt):
        readout.estimate(side.model, Interrupted(side.batches(x, y), 1))
    np.testing.assert_array_equal(readout.feature_mean, given["feature_mean"])
    readout.estimate(side.model, side.batches(x, y))
    assert readout.feature_mean is None


# -- explaining -------------------------------------------------------------------------------------------


def test_the_map_sums_to_the_bits_and_further_arguments_are_ignored(side):
    readout = side.trained()
    x = make_data(2, seed=9)[0]
    nats = side.capacity(readout, x)
    maps = readout.analyze(side.images(x), beta=3, optimization_steps=99)
    assert maps.shape == x.shape[:3]
    np.testing.assert_allclose(maps.sum((1, 2)), nats.sum((1, 2, 3)) / np.log(2), rtol=1e-4)
    assert readout.analyze(side.images(x[:1])).shape == x.shape[1:3]


@pytest.mark.parametrize("layer", ["hidden", "out"])
def test_dense_bottlenecks(side, layer):
    readout = side.trained(layer=layer, readout_layers=["second", "hidden"])
    capacity = readout.analyze(side.images(make_data(2)[0]), mode="capacity")
    assert capacity.shape == (2, 7 if layer == "hidden" else CLASSES)
    assert (capacity >= -1e-6).all()
    assert capacity.any()


def test_images_do_not_depend_on_their_neighbours(side):
    readout = side.trained()
    x = make_data(3)[0]
    together = readout.analyze(side.images(x))
    alone = [readout.analyze(side.images(x[i : i + 1])) for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_reading_robustly_is_another_map_and_older_files_are_read_without(tmp_path, side):
    readout = side.trained()
    x = make_data(2, seed=9)[0]
    plain = side.capacity(readout, x)
    readout.save(tmp_path / "new.safetensors")
    state = ReadoutState.read(tmp_path / "new.safetensors")
    assert state.facts["settings"].pop("robust") is False
    state.save(tmp_path / "old.safetensors")
    readout.robust = True
    robust = side.capacity(readout, x)
    assert not np.allclose(robust, plain, rtol=1e-2)
    # No trace of the setting before is left.
    other = side.make(robust=True)
    other.estimate(side.model, side.batches(*make_data()))
    side.set_weights(other, side.weights(readout))
    np.testing.assert_allclose(side.capacity(other, x), robust, rtol=1e-5)
    readout.load(tmp_path / "old.safetensors")
    assert readout.robust is False
    np.testing.assert_allclose(side.capacity(readout, x), plain, rtol=1e-5)


def test_explaining_costs_one_nested_and_one_restricted_pass(side):
    readout = side.trained()
    images = side.images(make_data(2)[0])
    readout.analyze(images, side.model)
    before = [side.backend.calls(side.model, name) for name in ("before", "after")]
    readout.analyze(images, side.model)
    assert [side.backend.calls(side.model, name) for name in ("before", "after")] == [n + 2 for n in before]


def test_threads_may_share_a_readout(side):
    readout = side.trained()
    batches = [make_data(2, seed=seed)[0] for seed in range(8)]
    expected = [side.capacity(readout, x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: side.capacity(readout, x), batches))
    for nats, known in zip(found, expected, strict=True):
        np.testing.assert_allclose(nats, known, rtol=1e-6, atol=1e-7)


def test_features_that_are_told_to_pass_carry_nothing(side):
    readout = side.trained()
    images = side.images(make_data(1, seed=9)[0])
    whole = readout.analyze(images, mode="capacity")
    pass_mask = np.zeros(whole.shape, bool)
    pass_mask[:2, :3] = True
    capacity = readout.analyze(images, mode="capacity", pass_mask=pass_mask)
    np.testing.assert_allclose(capacity, np.where(pass_mask, 0, whole), rtol=1e-5)
    # The mask is that of one analysis.
    np.testing.assert_allclose(readout.analyze(images, mode="capacity"), whole, rtol=1e-5)


def test_settings_changed_and_estimates_made_anew_count(side):
    readout = side.trained()
    x = make_data(2, seed=9)[0]
    before = side.capacity(readout, x)
    readout.sigma = None
    assert not np.allclose(side.capacity(readout, x), before)
    readout.sigma = 1.0
    np.testing.assert_allclose(side.capacity(readout, x), before, rtol=1e-5)
    readout.estimate(side.model, side.batches(*make_data(seed=2)))
    assert not np.allclose(side.capacity(readout, x), before)
    readout.estimate(side.model, side.batches(*make_data()), reset=False)
    assert readout.estimators[0].n_samples() == 48
    readout.reset_estimate()
    with pytest.raises(NotEstimatedError, match="estimate"):
        side.capacity(readout, x)


def test_the_outputs_are_those_of_what_has_passed(side):
    """With everything open the model decides as ever, with everything shut on noise alone."""
    x = make_data(4, seed=9)[0]
    plain = side.outputs(side.model, x)
    for alpha, alike in ((30.0, True), (-30.0, False)):
        readout = side.make(initial_alpha=alpha)
        readout.estimate(side.model, side.batches(*make_data()))
        readout.analyze(side.images(x))
        # Neurons that are never active are set to 0 all the same.
        assert np.allclose(np.asarray(readout.outputs), plain, atol=1e-3) is alike


# -- training ---------------------------------------------------------------------------------------------


def test_a_step_of_training_costs_two_passes_and_reads_nothing_back(side, monkeypatch):
    readout = side.trained()
    data = list(side.batches(*make_data()))
    readout.fit(data, side.loss, epochs=1)
    before = [side.backend.calls(side.model, name) for name in ("before", "after")]
    found = []
    framework = side.backend.module("adapter").__dict__[ADAPTERS[side.backend.name]].framework
    plain = framework.to_numpy
    counting = staticmethod(lambda array: found.append(array.shape) or plain(array))
    monkeypatch.setattr(type(framework), "to_numpy", counting)
    readout.fit(data, side.loss, epochs=2)
    assert [side.backend.calls(side.model, name) for name in ("before", "after")] == [n + 12 for n in before]
    # The terms of the steps of an epoch, and the network after it.
    parameters = sum(weight.size for weight in side.weights(readout))
    assert [tuple(shape) for shape in found] == [(3, 3), (parameters,)] * 2


ADAPTERS = {"torch": "TorchAdapter", "tensorflow": "TensorFlowAdapter"}


def test_fit_finds_the_features_that_matter(side):
    readout = side.trained()
    side.set_weights(readout, [weight * (index < 4) for index, weight in enumerate(side.weights(readout))])
    x, y = make_data()
    before = side.model_weights(side.model)
    data = side.batches(x, y)
    history = readout.fit(data, side.loss, epochs=6, lr=0.003, beta=0.5, validation=data, seed=0)
    assert [report.epoch for report in history] == list(range(6))
    assert history[-1].information < 0.7 * history[0].information
    assert history[-1].validation < history[0].validation
    assert history[0].objective == pytest.approx(history[0].loss + 0.5 * history[0].information, rel=1e-5)
    assert readout.history == history
    assert_equal(before, side.model_weights(side.model))


class Counted:
    """An explainer that counts the batches that it is asked to explain."""

    def __init__(self, explainer):
        self.explainer, self.layer, self.batches = explainer, explainer.layer, 0

    def explain(self, x, target=None, *, seed=None):
        self.batches += 1
        return self.explainer.explain(x, target, seed=seed)


def make_teacher(side, layer="second"):
    explainer = Explainer(side.model, layer, steps=3, samples=2, beta=1.0)
    return explainer.fit(side.batches(*make_data()), progbar=False)


def test_a_readout_learns_the_masks_of_a_teacher(side):
    readout, x, y = side.trained(), *make_data()
    teacher, before = Counted(make_teacher(side)), side.model_weights(side.model)
    data = list(side.batches(x, y))
    (first,) = readout.fit(data, None, teacher=teacher, epochs=1, lr=0.0, warm_up=0, seed=0)
    # The distance is that of each feature's coin, by SciPy, from the masks that both give.
    readout.analyze(side.images(x))
    alpha = np.asarray(readout.alpha.detach() if side.is_torch else readout.alpha, np.float64)
    wanted = teacher.explainer.explain(side.images(x), seed=0).mask.astype(np.float64)
    layout = Layout.of(alpha.shape[1:], "channels_first" if side.is_torch else "channels_last")
    smoothing = smoothing_matrices(alpha.shape[1:], layout, 1.0)
    mask = mask_from_alpha(alpha, [matrix.astype(np.float64) for matrix in smoothing], layout)
    plain = rel_entr(wanted, mask.passed) + rel_entr(1 - wanted, mask.blocked)
    assert first.distance == pytest.approx(plain.mean(), rel=2e-3)  # masks are kept in half precision
    assert (first.loss, first.objective) == (0.0, pytest.approx(first.distance))
    teacher.batches = 0
    history = readout.fit(data[::-1], None, teacher=teacher, epochs=30, lr=0.01, warm_up=0, seed=0)
    assert teacher.batches == 3  # each image once, however often it is seen
    assert history[-1].distance < 0.5 * first.distance
    assert_equal(before, side.model_weights(side.model))


def test_a_teacher_adds_to_the_loss(side):
    readout, data = side.trained(), list(side.batches(*make_data()))
    teacher = make_teacher(side)
    (plain,) = readout.fit(data, side.loss, epochs=1, lr=0.0, beta=2.0, seed=0)
    (both,) = readout.fit(
        data,
        side.loss,
        epochs=1,
        lr=0.0,
        beta=2.0,
        seed=0,
        teacher=teacher,
        teacher_weight=3,
        validation=data,
    )
    assert plain.distance is None
    assert both.loss == pytest.approx(plain.loss, rel=1e-5)
    assert both.objective == pytest.approx(plain.objective + 3 * both.distance, rel=1e-5)
    assert both.validation == pytest.approx(both.objective, rel=0.1)  # other noise
    again = both.validation - both.loss - 2 * both.information
    assert again == pytest.approx(3 * both.distance, rel=0.2)


def test_a_teacher_must_fit(side):
    readout, data = side.trained(), list(side.batches(*make_data()))
    with pytest.raises(
        InputError, match=r"explains the layer 'last', and the readout's bottleneck .* 'second'"
    ):
        readout.fit(data, None, teacher=make_teacher(side, "last"), epochs=1)
    for wrong in ("explainer", Explainer, 3):
        with pytest.raises(InputError, match=r"teacher.* must be a fitted iba_core\.Explainer"):
            readout.fit(data, None, teacher=wrong)
    with pytest.raises(InputError, match="loss=None"):
        readout.fit(data, None)
    with pytest.raises(InputError, match="teacher_weight=-1"):
        readout.fit(data, None, teacher=make_teacher(side), teacher_weight=-1)
    with pytest.raises(NotEstimatedError):
        readout.fit(data, None, teacher=Explainer(side.model, "second"), epochs=1)


def test_losses_may_be_given_for_each_image(side):
    x, y = make_data(8)
    reports = []
    for loss in (side.loss, cross_entropy):
        readout = side.trained()
        reports += readout.fit(side.batches(x, y), loss, epochs=1, seed=0)
    assert reports[0].objective == pytest.approx(reports[1].objective, rel=1e-5)


def make_decided(side):
    """Images, and the network's own decisions on them, of which there are all and firm ones."""
    x, _ = make_data(64)
    out = side.model.out
    with side.backend.torch.no_grad():
        outputs = side.model(side.images(x))
        scale = 4 / outputs.std(0)
        out.bias.copy_((out.bias - outputs.mean(0)) * scale)
        out.weight.mul_(scale[:, None])
        classes = side.model(side.images(x)).argmax(1).numpy()
    assert np.bincount(classes, minlength=CLASSES).min() > 5
    return x, classes


@pytest.mark.parametrize("lr", [readout_training.LEARNING_RATE, 0.01])
def test_a_mask_that_starts_open_does_not_run_past_the_goal(monkeypatch, lr):
    side = Readouts(Torch())
    x, y = make_decided(side)
    data = side.batches(x, y)

    def train(**kwargs):
        side.backend.torch.manual_seed(0)
        readout = side.make()
        readout.estimate(side.model, data)
        return readout.fit(data, side.loss, epochs=20, lr=lr, beta=3.0, seed=0, **kwargs)

    history = train()
    assert history[0].information > 4
    assert history[-1].objective < 0.2 * history[0].objective
    assert min(report.information for report in history) > 0.08
    for name, value in (("CLIP", 1e9), ("LEVEL_RATE", 0.0)):
        monkeypatch.setattr(readout_training, name, value)
    unprotected = [report.information for report in train(warm_up=0)]
    assert unprotected[-1] > 4 or min(unprotected) < 0.03


def signed_sum(output, sign):
    """What a training lowers with the sign 1, it raises with the sign -1."""
    return array_namespace(output).sum(output, axis=1) * sign


def test_training_stops_early_and_keeps_the_best_weights(side):
    readout = side.trained()
    x, _ = make_data(8)
    down, up = (list(side.batches(x, np.full(8, sign, np.float32))) for sign in (1, -1))
    start = side.weights(readout)
    history = readout.fit(down, signed_sum, epochs=9, lr=0.01, beta=0, validation=up, patience=2, seed=0)
    values = [report.validation for report in history]
    assert len(history) == 3 + int(np.argmin(values))
    assert any(not np.array_equal(a, b) for a, b in zip(start, side.weights(readout), strict=True))
    again = readout.fit(down, signed_sum, epochs=1, lr=0.0, beta=0, validation=up, seed=0)
    assert again[0].validation == pytest.approx(min(values), rel=1e-4)


class InterruptedIn:
    """Batches that are interrupted the n-th time that they are gone through."""

    def __init__(self, batches, times):
        self.batches, self.times, self.seen = list(batches), times, 0

    def __iter__(self):
        self.seen += 1
        yield self.batches[0]
        if self.seen == self.times:
            raise KeyboardInterrupt
        yield from self.batches[1:]


def test_an_interrupted_training_keeps_whole_epochs(side):
    data = list(side.batches(*make_data()))
    settings = {"lr": 0.01, "seed": 0, "warm_up": 0}
    whole = side.trained()
    expected = whole.fit(data, side.loss, epochs=1, **settings)
    readout = side.trained()
    start, history = side.weights(readout), readout.fit(data, side.loss, epochs=1, lr=0.0, seed=0, warm_up=0)
    side.set_weights(readout, start)
    with pytest.raises(KeyboardInterrupt):
        readout.fit(InterruptedIn(data, 1), side.loss, epochs=3, **settings)
    assert_equal(side.weights(readout), start)
    assert readout.history == history
    for validation in (None, InterruptedIn(data, 2)):
        readout = side.trained()
        loader = data if validation is not None else InterruptedIn(data, 2)
        with pytest.raises(KeyboardInterrupt):
            readout.fit(loader, side.loss, epochs=3, validation=validation, **settings)
        assert_equal(side.weights(readout), side.weights(whole))
        assert [report.objective for report in readout.history] == [expected[0].objective]


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, side):
    data, validation = side.batches(*make_data()), side.batches(*make_data(8, seed=5))
    settings = {"lr": 0.01, "beta": 5, "validation": validation, "seed": 0}
    whole = side.trained()
    expected = whole.fit(data, side.loss, epochs=4, **settings)
    path = tmp_path / "training.safetensors"
    side.trained().fit(data, side.loss, epochs=2, checkpoint=path, **settings)
    fresh = side.make()
    assert fresh.fit(data, side.loss, epochs=4, checkpoint=path, **settings) == expected
    assert_equal(side.weights(fresh), side.weights(whole))
    x = make_data(1)[0]
    np.testing.assert_array_equal(side.capacity(fresh, x), side.capacity(whole, x))


@pytest.mark.parametrize("damage", ["truncated", "other layers"])
def test_a_checkpoint_of_something_else_changes_nothing(tmp_path, side, damage):
    readout = side.trained()
    path = tmp_path / "training.safetensors"
    data = side.batches(*make_data(8))
    readout.fit(data, side.loss, epochs=1, checkpoint=path)
    other = readout
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        other = side.trained(readout_layers=["first", "out"])
    weights, history = side.weights(other), other.history
    with pytest.raises(StateError):
        other.fit(data, side.loss, epochs=2, checkpoint=path)
    assert_equal(side.weights(other), weights)
    assert other.history == history


def test_arguments_are_checked_before_any_work(side):
    readout = side.make()
    x, y = make_data(8)
    data, images = side.batches(x, y), side.images(x)
    for call in (lambda: readout.analyze(images), lambda: readout.fit(data, side.loss)):
        with pytest.raises(NotEstimatedError, match="estimate"):
            call()
    with pytest.raises(InputError, match="readout_layers"):
        side.make(readout_layers=())
    with pytest.raises(LayerError, match="second"):
        side.make(layer="secnd")
    readout.estimate(side.model, data)
    calls = side.backend.calls(side.model, "before")
    for kwargs, name in (
        ({"epochs": -1}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"lr": -1}, "lr=-1"),
        ({"seed": -1}, "seed"),
        ({"warm_up": -1}, "warm_up"),
        ({"beta_steps": 0.5}, "beta_steps"),
        ({"beta": float("nan")}, "beta"),
        ({"checkpoint": "not/there/at.all"}, "checkpoint"),
        ({"validation": iter(data)}, "validation"),
    ):
        with pytest.raises(InputError, match=name):
            readout.fit(data, side.loss, **kwargs)
    with pytest.raises(InputError, match="no images"):
        readout.fit([], side.loss)
    for kwargs in (
        {"mode": "bits"},
        {"model": "another"},
        {"input_t": images[0]},
        {"input_t": images * np.nan},
        {"pass_mask": np.ones((2, 2), bool)},
    ):
        with pytest.raises(InputError):
            readout.analyze(**{"input_t": images, **kwargs})
    for n_samples in (0, -1):
        with pytest.raises(InputError, match="n_samples"):
            readout.estimate(side.model, data, n_samples=n_samples)
    assert side.backend.calls(side.model, "before") == calls
    before = side.weights(readout)
    with pytest.raises(InputError, match="a loss for each"):
        readout.fit(data, lambda output, y: output)
    with pytest.raises(OptimizationError, match="epoch 1 at step 1 of 1"):
        readout.fit(data, lambda output, y: output[:, 0] * np.inf)
    assert_equal(side.weights(readout), before)


# -- what is left of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["analyze", "estimate", "fit", "interrupted fit"])
def test_the_model_is_left_as_it_was(side, what):
    readout = side.trained()
    x, y = make_data(8)
    data = list(side.batches(x, y, size=4))
    images = side.backend.images(x).astype(side.dtype)
    before = side.backend.state(side.model, images if not side.is_torch else x)
    if what == "analyze":
        readout.analyze(side.images(x))
    elif what == "estimate":
        readout.estimate(side.model, data)
    elif what == "fit":
        readout.fit(data, side.loss, epochs=2, validation=data)
    else:
        with pytest.raises(KeyboardInterrupt):
            readout.fit(InterruptedIn(data, 2), side.loss, epochs=3)
    assert_same_state(side.backend.state(side.model, images if not side.is_torch else x), before)


# -- state and copies -------------------------------------------------------------------------------------


def test_a_file_that_does_not_fit_changes_nothing(tmp_path, side):
    readout = side.trained()
    path = tmp_path / "readout.safetensors"
    readout.save(path)
    state = ReadoutState.read(path)
    estimators = list(state.estimators)
    estimators[3] = {**estimators[3], "m2": estimators[3]["m2"][..., :-1]}
    ReadoutState(state.weights, tuple(estimators), state.given, state.facts).save(path)
    other = side.make(sigma=None)
    other.estimate(side.model, side.batches(*make_data(seed=2)))
    x = make_data(2, seed=9)[0]
    before, weights = side.capacity(other, x), side.weights(other)
    with pytest.raises((StateError, RuntimeError)):
        other.load(path)
    np.testing.assert_array_equal(side.capacity(other, x), before)
    assert_equal(side.weights(other), weights)
    assert other.sigma is None


def copied(model, readout):
    return copy.deepcopy((model, readout))


def pickled(model, readout):
    return pickle.loads(pickle.dumps((model, readout)))


@pytest.mark.parametrize("make_copy", [copied, pickled])
def test_copies_are_readouts_of_their_own_models(backend, make_copy):
    side = Readouts(backend, counted=False)
    readout = side.trained()
    data = side.batches(*make_data())
    readout.fit(data, side.loss, epochs=1, seed=0)
    x = make_data(2, seed=9)[0]
    maps, weights = side.capacity(readout, x), side.weights(readout)
    model, twin = make_copy(side.model, readout)
    assert twin.model is model is not side.model
    np.testing.assert_allclose(side.capacity(twin, x), maps, rtol=1e-5, atol=1e-6)
    assert twin.history == readout.history

    # The copy explains its own model, with its own network and distribution.
    side.randomize(model)
    others = side.capacity(twin, x)
    assert not np.allclose(others, maps, rtol=1e-2)
    np.testing.assert_allclose(side.capacity(readout, x), maps, rtol=1e-5, atol=1e-6)
    twin.estimate(model, data)
    twin.fit(data, side.loss, epochs=1, lr=0.01, seed=0, warm_up=0)
    np.testing.assert_allclose(side.capacity(readout, x), maps, rtol=1e-5, atol=1e-6)
    assert_equal(side.weights(readout), weights)
    others = side.capacity(twin, x)
    side.randomize(side.model)
    np.testing.assert_allclose(side.capacity(twin, x), others, rtol=1e-5, atol=1e-6)


def test_a_copy_of_a_readout_alone_has_a_model_of_its_own(backend):
    side = Readouts(backend, counted=False)
    fresh = copy.deepcopy(side.make())
    assert fresh.model is not side.model
    fresh.estimate(fresh.model, side.batches(*make_data()))
    readout = side.make()
    readout.estimate(side.model, side.batches(*make_data()))
    side.set_weights(fresh, side.weights(readout))
    x = make_data(2, seed=9)[0]
    np.testing.assert_allclose(side.capacity(fresh, x), side.capacity(readout, x), rtol=1e-5, atol=1e-6)


# -- reading the gradient of the answer -------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True])
def test_the_gains_are_the_slopes_of_the_loss_by_the_openings(backend, relu):
    """By finite differences of the loss, feature by feature, in passes of a tail that knows of no readout."""
    side = Readouts(backend, "float64")
    explainer = Explainer(side.model, "second").fit(side.batches(*make_data()), progbar=False)
    adapter = explainer.adapter
    split, framework = adapter.split("second"), adapter.framework
    with split.head(adapter.to_inputs(side.images(make_data(2, seed=9)[0]))) as tail:
        features = framework.to_numpy(tail.features)
        layout = Layout.of(features.shape[1:], split.data_format)
        generator = np.random.default_rng(0)
        mean, std = generator.normal(size=(2, 1, *features.shape[1:]))
        std, active = np.abs(std), np.arange(features[0].size).reshape(mean.shape) % 5 > 0

        def tensor(array):
            return framework.asarray(array, like=tail.features)

        def loss(openings, copy, classes):
            noise = mean + std * framework.to_numpy(copy.noise)
            z = np.where(active, openings * features + (1 - openings) * noise, 0)
            z = np.maximum(z, 0) if relu else z
            scores = framework.to_numpy(tail(tensor(z)))
            return cross_entropy(scores, classes)

        made = copies(features.shape[1:], layout, tensor)[2:4]
        nested = NestedPass(tail.features, (), tail.run, tail.carry)
        found = framework.to_numpy(
            AnswerReader(framework, relu).gains(nested, made, *map(tensor, (mean, std)), tensor(active))
        )
        predicted = framework.to_numpy(tail(tail.features)).argmax(axis=1)
        at, step = [(1, 2, 3), (0, 1, 2), (2, 2, 1), (3, 0, 0)], 1e-6
        for place in at:
            slope = 0
            for copy_ in made:
                opening = float(framework.to_numpy(copy_.opening).ravel()[0])
                sides = []
                for sign in (1, -1):
                    openings = np.full(features.shape, opening)
                    openings[(slice(None), *place)] += sign * step
                    sides.append(loss(openings, copy_, predicted))
                slope = slope - (sides[0] - sides[1]) / (2 * step)
            np.testing.assert_allclose(found[(slice(None), *place)], slope, rtol=1e-4, atol=1e-7)
    assert not found[:, ~active[0]].any()
    assert np.ptp(found) > 0


def test_evidence_does_not_depend_on_the_scale_of_the_outputs_nor_on_neighbours(side):
    readout = side.trained(gradients=True, robust=True)
    assert [weight.shape for weight in side.weights(readout)[::2]] == [(15, 31), (12, 15), (6, 12)]
    images = make_data(3, seed=9)[0]
    whole = side.capacity(readout, images)
    np.testing.assert_array_equal(side.capacity(readout, images), whole)
    np.testing.assert_allclose(side.capacity(readout, images[1:2]), whole[1], rtol=1e-4, atol=1e-5)
    # The network reads it.
    weights = side.weights(readout)
    weights[0][:, -6:] = 0
    side.set_weights(readout, weights)
    assert np.abs(side.capacity(readout, images) - whole).max() > 1e-2


def test_training_and_files_of_a_readout_of_gradients(tmp_path, side):
    readout = side.trained(readout_layers=("second",), gradients=True, robust=True)
    before = side.weights(readout)[0][:, -6:]
    readout.fit(side.batches(*make_data(8)), side.loss, epochs=1, lr=0.01, warm_up=0, seed=0)
    assert np.abs(side.weights(readout)[0][:, -6:] - before).max() > 1e-3
    images = make_data(2, seed=9)[0]
    whole = side.capacity(readout, images)
    readout.save(tmp_path / "readout.safetensors")
    other = side.make(readout_layers=("second",)).load(tmp_path / "readout.safetensors")
    assert other.gradients
    np.testing.assert_allclose(side.capacity(other, images), whole, rtol=1e-4, atol=1e-5)


def test_gradients_need_scores_of_classes(backend):
    model = backend.network((8, 8, 3), [Conv("conv", 4), Conv("map", 2)])
    readout = backend.module().IBAReadout("conv", ["conv"], model, gradients=True)
    x = backend.asarray(backend.images(np.random.default_rng(0).normal(size=(4, 8, 8, 3))), "float32")
    readout.estimate(model, [x])
    with pytest.raises(InputError, match="gradients=True asks for the scores of two classes"):
        readout.analyze(x)


# -- per-sample explanations that start at a readout ------------------------------------------------------


def fitted(side, **kwargs):
    return Explainer(side.model, "second", **kwargs).fit(side.batches(*make_data()), progbar=False)


@pytest.mark.parametrize("readout_layers", [("second",), ("first", "out")])
def test_an_explanation_starts_at_the_mask_of_a_readout(side, readout_layers):
    readout = side.trained(readout_layers=readout_layers, gradients=True, robust=True)
    images = side.images(make_data(3, seed=9)[0])
    maps = side.backend.channels_last(readout.analyze(images, side.model, mode="capacity"))
    explainer = fitted(side, warm_start=readout)
    found = explainer.explain(images, seed=0)
    nats = side.backend.channels_last(found.capacity)
    np.testing.assert_allclose(nats, maps, rtol=1e-3, atol=1e-4 * maps.max())
    assert found.survival.shape == (3,)
    assert (found.steps_taken == 1).all()
    moved = explainer.explain(images, seed=0, steps=2)
    assert moved.settings == fitted(side, warm_start=readout, steps=2).settings
    assert np.abs(side.backend.channels_last(moved.capacity) - nats).max() > 1e-3


def test_a_mask_that_starts_at_a_readout_keeps_as_much_as_is_asked_for(side):
    readout = side.trained(readout_layers=("second",), gradients=True, robust=True)
    images = side.images(make_data(3, seed=9)[0])
    explainer = fitted(side, warm_start=readout)
    bits = []
    for keep in (0.3, 0.95):
        found = explainer.explain(images, seed=0, keep=keep)
        assert (found.survival > keep - 1e-6).all()
        assert (found.steps_taken == 1).all()
        bits.append(found.total_bits)
    assert (bits[0] <= bits[1]).all()
    assert (bits[0] < bits[1]).any()


def test_the_mask_is_about_the_class_that_is_asked_for(side):
    readout = side.trained(readout_layers=("second",), gradients=True, robust=True)
    images = side.images(make_data(1, seed=9)[0])
    explainer = fitted(side, warm_start=readout)
    predicted = explainer.explain(images, seed=0)
    same = explainer.explain(images, int(predicted.classes[0]), seed=0)
    np.testing.assert_array_equal(same.capacity, predicted.capacity)
    other = explainer.explain(images, int(predicted.classes[0] + 1) % CLASSES, seed=0)
    assert np.abs(other.capacity - predicted.capacity).max() > 1e-3


def test_a_readout_to_start_at_must_fit(side):
    readout = side.trained(readout_layers=("second",), gradients=True)
    images = side.images(make_data(1, seed=9)[0])
    other = Explainer(side.model, "last", warm_start=readout)
    other.fit(side.batches(*make_data()), progbar=False)
    with pytest.raises(InputError, match="readout of the layer 'second', and 'last' is explained"):
        other.explain(images)
    with pytest.raises(InputError, match="reads the answer for classes"):
        fitted(side, warm_start=readout).explain(images, lambda outputs: outputs[:, 0])
    with pytest.raises(InputError, match="warm_start="):
        Explainer(side.model, ["second", "last"], warm_start=readout)
    with pytest.raises(InputError, match="warm_start"):
        Explainer(side.model, "second", warm_start="readout.safetensors")


def test_without_a_layer_that_of_the_readout_is_taken(side, tmp_path):
    readout = side.trained(readout_layers=("second",), gradients=True)
    images = side.images(make_data(1, seed=9)[0])
    both = Explainer(side.model, ["second", "last"]).fit(side.batches(*make_data()), progbar=False)
    both.save(tmp_path / "both.safetensors")
    expected = fitted(side, warm_start=readout).explain(images, seed=0)
    for layer in (None, "auto"):
        explainer = Explainer(side.model, layer, warm_start=readout)
        assert explainer.layer == "second"
        found = explainer.load(tmp_path / "both.safetensors").explain(images, seed=0)
        np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-4, atol=1e-6)


def test_a_readout_is_made_from_its_file_alone(tmp_path, side):
    readout = side.trained(readout_layers=("second",), gradients=True)
    readout.save(tmp_path / "readout.safetensors")
    made = readout_from(tmp_path / "readout.safetensors", side.model)
    images = make_data(2, seed=9)[0]
    np.testing.assert_array_equal(side.capacity(made, images), side.capacity(readout, images))
    assert made.fingerprint() == readout.fingerprint()
    with pytest.raises(StateError):
        readout_from(tmp_path / "none.safetensors", side.model)
    with pytest.raises(StateError, match="packaged statistics"):
        packaged_readout(side.model)
