"""The loop on a NumPy model whose gradients are central differences: no framework takes part."""

from __future__ import annotations

import numpy as np
import pytest

from iba_core import BottleneckSettings, InputError, OptimizationError, Statistics
from iba_core.adam import AdamState, adam_step, bias_corrections
from iba_core.adapter import Adapter, Cut, Head
from iba_core.bottleneck import Mask, capacity, mask_from_alpha
from iba_core.layout import Layout
from iba_core.noise import seeded_normal
from iba_core.optimization import BottleneckOptimizer
from iba_core.smoothing import smoothing_matrices
from iba_core.targets import cross_entropy

SHAPE = (2, 3, 3)
LAYOUT = Layout.of(SHAPE, "channels_first")
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(18, 4))
FEATURES = RNG.normal(1.0, 1.0, (3, *SHAPE))
STATISTICS = Statistics(RNG.normal(size=SHAPE), RNG.uniform(0, 2, SHAPE), RNG.random(SHAPE) > 0.2)
CLASSES = np.array([2, 0, 3])


class NumPyAdapter(Adapter):
    """Just enough of an adapter: the model is a linear tail."""

    name = "numpy"
    data_format = "channels_first"

    owns = classmethod(lambda cls, model: True)
    load = classmethod(lambda cls, source: None)

    def layers(self, inputs):
        return []

    def cut(self, layer) -> Cut:
        raise NotImplementedError

    def predict(self, inputs):
        raise NotImplementedError

    def to_inputs(self, inputs):
        return inputs

    def asarray(self, array, like):
        array = np.asarray(array)
        return array.astype(like.dtype) if array.dtype.kind == "f" else array

    def to_numpy(self, array):
        return np.asarray(array)

    def standard_normal(self, shape, like):
        return RNG.normal(size=shape).astype(like.dtype)

    def value_and_grad(self, function, x):
        value, auxiliary = function(x)
        gradient = np.empty_like(x)
        for index in np.ndindex(x.shape):
            shift = np.zeros_like(x)
            shift[index] = 1e-6
            gradient[index] = (function(x + shift)[0] - function(x - shift)[0]) / 2e-6
        return value, auxiliary, gradient


def tail_loss(z, carry, targets):
    logits = z.reshape(len(z), -1) @ WEIGHT
    return cross_entropy(logits, np.repeat(targets[0], len(z) // len(targets[0])))


def optimizer(**settings) -> BottleneckOptimizer:
    chosen = BottleneckSettings(**{"steps": 4, "samples": 3, **settings})
    return BottleneckOptimizer(NumPyAdapter(None), tail_loss, LAYOUT, chosen)


def run(features=FEATURES, classes=CLASSES, settings=None, **options):
    return optimizer(**(settings or {})).run(Head(features), STATISTICS, (classes,), **{"seed": 1, **options})


def softmax_gradient(z, target):
    logits = z.reshape(-1) @ WEIGHT
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[target] -= 1
    return (WEIGHT @ p).reshape(SHAPE)


def test_the_loop_is_the_published_algorithm():
    """Everything written out for one image: the analytic gradient through mask, noise and tail."""
    steps, samples, beta, seed = 4, 3, 10.0, 1
    r, c = FEATURES[1], CLASSES[1]
    mean, std = STATISTICS.mean, np.maximum(STATISTICS.std, 0.01)
    (gh, gw), normalized = smoothing_matrices(SHAPE, LAYOUT, 1.0), (r - mean) / std
    state = AdamState(np.full(SHAPE, 5.0), np.zeros(SHAPE), np.zeros(SHAPE))
    for t, correction in enumerate(bias_corrections(steps)):
        s = 1 / (1 + np.exp(-state.parameter))
        lam = np.einsum("ij,kl,cjl->cik", gh, gw, s)
        grad_lam = beta / 18 * (normalized**2 * lam - (1 - lam) + 1 / (1 - lam)) * STATISTICS.active
        for n in seeded_normal(seed, t, samples, SHAPE, LAYOUT):
            eps = mean + std * n
            z = np.where(STATISTICS.active, lam * r + (1 - lam) * eps, 0.0)
            grad_lam += softmax_gradient(z, c) * (r - eps) * STATISTICS.active / samples
        gradient = np.einsum("ij,kl,cik->cjl", gh, gw, grad_lam) * s * (1 - s)
        state = adam_step(state, gradient, correction, 1.0)
    found = run()
    np.testing.assert_allclose(found.alpha[1], state.parameter, rtol=1e-6)
    mask = mask_from_alpha(state.parameter[None], (gh, gw), LAYOUT)
    expected = capacity(normalized, Mask(*(m[0] for m in mask))) * STATISTICS.active
    np.testing.assert_allclose(found.capacity[1], expected, rtol=1e-6)


def test_an_image_does_not_feel_its_neighbours():
    whole = run()
    for i in range(3):
        alone = run(FEATURES[i : i + 1], CLASSES[i : i + 1])
        np.testing.assert_allclose(whole.capacity[i], alone.capacity[0], rtol=1e-6)
        np.testing.assert_allclose(whole.model_losses[:, i], alone.model_losses[:, 0], rtol=1e-8)


@pytest.mark.parametrize("max_batch", [3, 4, 6, 100])
def test_max_batch_changes_memory_and_nothing_else(max_batch):
    sizes = []

    def watched(z, carry, targets):
        sizes.append(len(z))
        return tail_loss(z, carry, targets)

    one = BottleneckOptimizer(NumPyAdapter(None), watched, LAYOUT, BottleneckSettings(steps=2, samples=3))
    found = one.run(Head(FEATURES), STATISTICS, (CLASSES,), seed=1, max_batch=max_batch)
    assert max(sizes) <= max_batch
    np.testing.assert_allclose(found.capacity, run(settings={"steps": 2}).capacity, rtol=1e-6)
    np.testing.assert_allclose(found.informations, run(settings={"steps": 2}).informations)


def test_inactive_neurons_carry_nothing_and_are_zero():
    found = run()
    assert (found.capacity[:, ~STATISTICS.active] == 0).all()
    assert (found.capacity[:, STATISTICS.active] > 0).all()
    z = optimizer().restricted(found.problem, found.mask, np.zeros((1, *SHAPE)))
    assert (z[:, ~STATISTICS.active] == 0).all()


def test_pass_mask_passes_features_unchanged_without_capacity():
    pass_mask = np.zeros(SHAPE, bool)
    pass_mask[:, 0] = True
    found = run(pass_mask=pass_mask)
    assert (found.capacity[:, pass_mask] == 0).all()
    z = optimizer().restricted(found.problem, found.mask, np.ones((2, *SHAPE)))
    np.testing.assert_array_equal(z[0][pass_mask], FEATURES[0][pass_mask])


def test_relu_clips_what_enters_the_tail():
    one = BottleneckOptimizer(NumPyAdapter(None), tail_loss, LAYOUT, relu=True)
    problem = one.problem(Head(FEATURES), STATISTICS)
    half = Mask(np.full_like(FEATURES, 0.5), np.full_like(FEATURES, 0.5))
    assert one.restricted(problem, half, np.full((2, *SHAPE), -3.0)).min() == 0


def test_settings_of_zero_are_honoured():
    free = run(settings={"beta": 0.0})
    np.testing.assert_array_equal(free.informations, 0)
    still = run(settings={"learning_rate": 0.0})
    np.testing.assert_array_equal(still.alpha, 5.0)
    unmoved = run(settings={"steps": 0})
    assert unmoved.model_losses.shape == (0, 3)
    np.testing.assert_array_equal(unmoved.alpha, 5.0)
    total, mean = run(settings={"normalize_beta": False, "beta": 1.0}), run(settings={"beta": 18.0})
    np.testing.assert_allclose(total.alpha, mean.alpha)
    overridden = BottleneckSettings().override(beta=0, smooth_std=0.0, normalize_beta=False, steps=None)
    assert (overridden.beta, overridden.smooth_std, overridden.normalize_beta, overridden.steps) == (
        0,
        0.0,
        False,
        10,
    )


def test_a_scalar_loss_serves_one_image():
    def scalar(z, carry, targets):
        return tail_loss(z, carry, targets).mean()

    one = BottleneckOptimizer(NumPyAdapter(None), scalar, LAYOUT, BottleneckSettings(steps=4, samples=3))
    found = one.run(Head(FEATURES[:1]), STATISTICS, (CLASSES[:1],), seed=1)
    np.testing.assert_allclose(found.capacity, run(FEATURES[:1], CLASSES[:1]).capacity, rtol=1e-6)


def test_a_loss_that_turns_nan_names_the_step():
    calls = []

    def fails(z, carry, targets):
        calls.append(0)
        per_step = 1 + 2 * FEATURES[:1].size
        return tail_loss(z, carry, targets) * (np.nan if len(calls) > 2 * per_step else 1.0)

    one = BottleneckOptimizer(NumPyAdapter(None), fails, LAYOUT, BottleneckSettings(steps=4, samples=3))
    expected = pytest.raises(OptimizationError, match="model's loss became nan at step 3 of 4")
    with expected, np.errstate(invalid="ignore"):
        one.run(Head(FEATURES[:1]), STATISTICS, (CLASSES[:1],), seed=1)


def test_a_last_step_that_goes_too_far_is_an_error():
    far = {"steps": 1, "learning_rate": 1e5, "beta": 0.0}
    expected = pytest.raises(OptimizationError, match="capacity became infinite in the last step")
    with expected, np.errstate(all="ignore"):
        run(settings=far)


def test_features_without_spread_need_a_floor():
    flat = Statistics(np.zeros(SHAPE), np.zeros(SHAPE), np.ones(SHAPE, bool))
    with pytest.raises(InputError, match="min_std=0, but the standard deviation"):
        optimizer(min_std=0.0).run(Head(FEATURES), flat, (CLASSES,), seed=1)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"\(2, 4, 3\).*\(2, 3, 3\)"):
        run(np.ones((1, 2, 4, 3)), CLASSES[:1])
    with pytest.raises(InputError, match=r"pass_mask has shape \(3, 3\)"):
        run(pass_mask=np.zeros((3, 3), bool))
    with pytest.raises(InputError, match="NaN or infinite"):
        run(np.full((1, *SHAPE), np.nan), CLASSES[:1])
    with pytest.raises(InputError, match="max_batch=2 is less than the 3 images"):
        run(max_batch=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 2.5},
        {"samples": 0},
        {"beta": -1.0},
        {"learning_rate": np.inf},
        {"initial_alpha": np.nan},
        {"steps": float("nan")},
        {"samples": 2.0},
        {"beta": "x"},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name}="):
        BottleneckSettings(**wrong)
    with pytest.raises(InputError, match="'betta' is no setting"):
        BottleneckSettings().override(betta=1)


def test_statistics_that_do_not_fit_are_named():
    ok = np.ones(SHAPE)
    with pytest.raises(InputError, match="one shape"):
        Statistics(ok, np.ones(3), ok > 0)
    with pytest.raises(InputError, match="must not be negative"):
        Statistics(ok, -ok, ok > 0)
    with pytest.raises(InputError, match="must be finite"):
        Statistics(ok * np.nan, ok, ok > 0)
