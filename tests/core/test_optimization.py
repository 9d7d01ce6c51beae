"""The loop on a NumPy model whose gradients are central differences: no framework takes part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iba_core import BottleneckSettings, InputError, OptimizationError, Statistics
from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.control import Convergence, RiseGuard
from iba_core.bottleneck.formulas import Mask, capacity, mask_from_alpha, restrict
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.bottleneck.settings import preset_settings
from iba_core.bottleneck.smoothing import smoothing_matrices
from iba_core.framework.adapter import Tail
from iba_core.framework.framework import Framework
from iba_core.framework.layout import Layout
from iba_core.targets import cross_entropy

SHAPE = (2, 3, 3)
LAYOUT = Layout.of(SHAPE, "channels_first")
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(18, 4))
FEATURES = RNG.normal(1.0, 1.0, (3, *SHAPE))
STATISTICS = Statistics(RNG.normal(size=SHAPE), RNG.uniform(0, 2, SHAPE), RNG.random(SHAPE) > 0.2)
CLASSES = np.array([2, 0, 3])


class NumPyFramework(Framework):
    """Gradients are central differences."""

    name = "numpy"

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


def linear(z, carry):
    """Logits of the model's tail."""
    return z.reshape(len(z), -1) @ WEIGHT


def tail(features=FEATURES, run=linear) -> Tail:
    return Tail(features, run)


def optimizer(loss=cross_entropy, framework=None, **options) -> BottleneckOptimizer:
    return BottleneckOptimizer(framework or NumPyFramework(), loss, LAYOUT, **options)


def chosen(**settings) -> BottleneckSettings:
    return BottleneckSettings(**{"steps": 4, "samples": 3, **settings})


def run(features=FEATURES, classes=CLASSES, settings=None, **options):
    settings = chosen(**(settings or {}))
    return optimizer().run(tail(features), STATISTICS, (classes,), settings, **{"seed": 1, **options})


def softmax_gradient(z, target):
    logits = z.reshape(-1) @ WEIGHT
    p = np.exp(logits - logits.max())
    p /= p.sum()
    p[target] -= 1
    return (WEIGHT @ p).reshape(SHAPE)


@pytest.mark.parametrize(
    "settings",
    [{}, {"antithetic": True, "samples": 4}, {"early_steps": 1, "early_samples": 5, "antithetic": True}],
    ids=["plain", "pairs", "schedule"],
)
def test_the_loop_is_the_published_algorithm(settings):
    """Everything written out for one image: the analytic gradient through mask, noise and tail."""
    steps, beta, seed = 4, 10.0, 1
    samples = [settings.get("samples", 3)] * steps
    samples[: settings.get("early_steps", 0)] = [5] * settings.get("early_steps", 0)
    r, c = FEATURES[1], CLASSES[1]
    mean, std = STATISTICS.mean, np.maximum(STATISTICS.std, 0.01)
    (gh, gw), normalized = smoothing_matrices(SHAPE, LAYOUT, 1.0), (r - mean) / std
    state = AdamState(np.full(SHAPE, 5.0), np.zeros(SHAPE), np.zeros(SHAPE))
    for t, correction in enumerate(bias_corrections(steps)):
        s = 1 / (1 + np.exp(-state.parameter))
        lam = np.einsum("ij,kl,cjl->cik", gh, gw, s)
        grad_lam = beta / 18 * (normalized**2 * lam - (1 - lam) + 1 / (1 - lam)) * STATISTICS.active
        noise = seeded_normal(seed, t, samples[t], SHAPE, LAYOUT)
        if "antithetic" in settings:
            noise = [sign * n for n in noise for sign in (1, -1)][: samples[t]]
        for n in noise:
            eps = mean + std * n
            z = np.where(STATISTICS.active, lam * r + (1 - lam) * eps, 0.0)
            grad_lam += softmax_gradient(z, c) * (r - eps) * STATISTICS.active / samples[t]
        gradient = np.einsum("ij,kl,cik->cjl", gh, gw, grad_lam) * s * (1 - s)
        state = adam_step(state, gradient, correction, 1.0)
    found = run(settings=settings)
    np.testing.assert_allclose(found.alpha[1], state.parameter, rtol=1e-6)
    mask = mask_from_alpha(state.parameter[None], (gh, gw), LAYOUT)
    expected = capacity(normalized, Mask(*(m[0] for m in mask))) * STATISTICS.active
    np.testing.assert_allclose(found.capacity[1], expected, rtol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("sizes", [(4,), (1, 3)])
def test_the_gradient_is_that_of_the_objective(relu, sizes):
    """Against differences of the objective as the paper has it, restricted copy by copy."""
    one = optimizer(relu=relu)
    pass_mask = RNG.random(SHAPE) > 0.8
    problem = one.problem(tail(), STATISTICS, (CLASSES,), pass_mask=pass_mask)
    noise = one.noise(problem, sizes, 3, 0)
    alpha = np.random.default_rng(1).normal(size=FEATURES.shape)

    def objective(alpha):
        mask = mask_from_alpha(alpha, problem.matrices, LAYOUT)
        nats = capacity((FEATURES - problem.mean) / problem.std, mask) * (STATISTICS.active & ~pass_mask)
        total = 10 / 18 * nats.sum()
        for n in np.concatenate(noise):
            z = restrict(FEATURES, mask, problem.mean + problem.std * n)
            z = np.where(pass_mask, FEATURES, np.where(STATISTICS.active, z, 0))
            total += cross_entropy(linear(np.maximum(z, 0) if relu else z, ()), CLASSES).sum() / 4
        return total, ()

    gradient, report = one.gradient(alpha, tuple(map(np.copy, noise)), problem)
    value, _, expected = NumPyFramework().value_and_grad(objective, alpha)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose((report.model_loss + report.information).sum(), value)


def test_slopes_where_the_bottleneck_does_not_act_need_not_be_finite():
    """Such as that of a square root at the 0 of an inactive neuron."""
    passing = np.zeros(SHAPE, bool)
    passing[0, 1] = True
    idle = ~STATISTICS.active | passing

    class Steep(NumPyFramework):
        def value_and_grad(self, function, x):
            value, auxiliary, gradient = super().value_and_grad(function, x)
            if len(x) > len(FEATURES):  # of the noisy copies
                gradient[:, idle] = np.inf
            return value, auxiliary, gradient

    usual, steep = (optimizer(framework=framework) for framework in (NumPyFramework(), Steep()))
    problem = usual.problem(tail(), STATISTICS, (CLASSES,), pass_mask=passing)
    alpha = np.random.default_rng(1).normal(size=FEATURES.shape)
    with np.errstate(invalid="ignore"):  # NumPy speaks of it; frameworks do not
        expected, found = (
            one.gradient(alpha, one.noise(problem, (4,), 3, 0), problem)[0] for one in (usual, steep)
        )
    np.testing.assert_array_equal(found, expected)


def test_a_mask_is_not_negative():
    features = FEATURES.astype(np.float32)
    found = run(features=features, settings={"initial_alpha": -30.0, "learning_rate": 0.0})
    assert found.mask.passed.dtype == np.float32
    assert (found.mask.passed >= 0).all()


@pytest.mark.parametrize("seed", [4, None])
@pytest.mark.parametrize("sizes", [(6,), (5,), (2, 2, 1)])
def test_antithetic_copies_cancel_in_pairs(seed, sizes):
    one = optimizer()
    problem = one.problem(tail(), STATISTICS)
    chunks = one.noise(problem, sizes, seed, 2, antithetic=True)
    assert tuple(map(len, chunks)) == sizes
    noise = np.concatenate(chunks)
    np.testing.assert_array_equal(noise[0:4:2], -noise[1:4:2])
    assert abs(noise[0] - noise[2]).min() > 0
    if seed is not None:
        plain = seeded_normal(seed, 2, 3, SHAPE, LAYOUT)
        np.testing.assert_array_equal(noise[::2], plain[: len(noise[::2])])


def test_antithetic_copies_take_the_noise_out_of_what_is_linear_in_it():
    """With a loss linear in the features, a pair has the gradient of infinitely many copies."""

    one = optimizer(lambda logits, classes: logits[:, 0])
    problem = one.problem(tail(), STATISTICS, (CLASSES,))
    alpha = np.zeros_like(FEATURES)
    without, _ = one.gradient(alpha, (np.zeros((1, *SHAPE)),), problem)
    pair, _ = one.gradient(alpha, one.noise(problem, (2,), 0, 0, antithetic=True), problem)
    two, _ = one.gradient(alpha, one.noise(problem, (2,), 0, 0), problem)
    np.testing.assert_allclose(pair, without, atol=1e-6)
    assert abs(two - without).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"steps": 5, "samples": 4, "early_steps": 2, "early_samples": 1}, (1, 1, 4, 4, 4)),
        ({"steps": 3, "samples": 2}, (2, 2, 2)),
        ({"steps": 2, "samples": 6, "early_steps": 9, "early_samples": 3}, (3, 3)),
    ],
)
def test_the_schedule_says_how_many_copies_pass_in_each_step(settings, sizes):
    assert BottleneckSettings(**settings).schedule == sizes
    passed = []

    def watched(z, carry):
        passed.append(len(z))
        return linear(z, carry)

    class Steps(NumPyFramework):
        def value_and_grad(self, function, x):
            value, auxiliary = function(x)
            return value, auxiliary, np.zeros_like(x)

    one, settings = optimizer(framework=Steps()), BottleneckSettings(**settings)
    one.run(tail(run=watched), STATISTICS, (CLASSES,), settings, seed=0)
    assert passed == [3 * size for size in sizes]
    passed.clear()
    one.run(tail(run=watched), STATISTICS, (CLASSES,), settings, seed=0, max_batch=6)
    assert max(passed) <= 6
    assert sum(passed) == 3 * sum(sizes)


def test_an_image_has_converged_once_its_map_changes_by_no_more_than_the_tolerance():
    convergence = Convergence(0.1, images=3)
    # Sums of absolute changes as shares of the new sums: 0.5 and 0.08; 0.1; 0.5, 0.4 and 0.
    for maps in (
        [[4.0, 4.0], [5.0, 5.0], [8.0, 8.0]],
        [[8.0, 8.0], [5.5, 4.5], [8.0, 0.0]],
        [[9.0, 7.7], [99.0, 0.0], [8.0, 4.8]],
        [[0.0, 1.0], [0.0, 1.0], [8.0, 4.8]],
    ):
        assert convergence.running.any()
        convergence.see(np.array(maps))
    np.testing.assert_array_equal(convergence.steps, [3, 2, 4])
    assert not convergence.running.any()


def test_a_tolerance_ends_the_run_and_nothing_else():
    for tolerance, steps in ((1e9, 2), (1e-9, 4)):
        found = run(settings={"tolerance": tolerance})
        expected = run(settings={"steps": steps})
        np.testing.assert_array_equal(found.steps_taken, steps)
        np.testing.assert_allclose(found.capacity, expected.capacity)
        assert found.model_losses.shape == found.informations.shape == (4, 3)
        np.testing.assert_allclose(found.model_losses[:steps], expected.model_losses)
        np.testing.assert_array_equal(
            found.model_losses[steps:], found.model_losses[[steps - 1] * (4 - steps)]
        )


def test_new_statistics_take_the_place_of_the_old_ones():
    one = optimizer()
    first = one.problem(tail(), STATISTICS)
    other = Statistics(STATISTICS.mean + 1, STATISTICS.std, ~STATISTICS.active)
    second = one.problem(tail(), other)
    np.testing.assert_array_equal(second.mean, first.mean + 1)
    np.testing.assert_array_equal(second.restricted, ~first.restricted)
    floored = one.problem(tail(), other, settings=BottleneckSettings(min_std=5.0, smooth_std=None))
    assert (floored.std == 5).all()
    assert floored.matrices == ()
    assert len(second.matrices) == 2


def test_presets_hold_settings():
    assert BottleneckSettings(**preset_settings("paper")) == BottleneckSettings()
    default = BottleneckSettings(**preset_settings("default"))
    assert sum(default.schedule) <= sum(BottleneckSettings().schedule)
    fast = BottleneckSettings(**preset_settings("fast"))
    assert sum(fast.schedule) <= sum(BottleneckSettings().schedule) / 2
    assert sum(BottleneckSettings(**preset_settings("instant")).schedule) == 8
    with pytest.raises(
        InputError, match="preset='xyz' is no preset; there are 'default', 'paper', 'fast', 'instant'"
    ):
        preset_settings("xyz")


def test_without_a_preset_a_setting_of_one_changes_the_papers():
    default, paper = (BottleneckSettings(**preset_settings(name)) for name in ("default", "paper"))
    assert BottleneckSettings(**preset_settings(None, {"samples": None})) == default
    fixed = BottleneckSettings(**preset_settings(None, {"beta": 5}))
    assert fixed == replace(default, beta=10.0, keep=None)
    assert BottleneckSettings(**preset_settings(None, {"learning_rate": 1.0})) == paper
    assert default.chosen(None, {}) is default
    assert default.chosen(None, {"beta": 5.0}) == replace(default, beta=5.0, keep=None)
    assert default.chosen(None, {"steps": 3, "beta": 5.0}) == replace(paper, steps=3, beta=5.0)
    assert default.chosen("default", {"steps": 3}) == replace(default, steps=3)
    own = replace(default, samples=6)  # an explainer with settings of its own
    assert own.chosen(None, {"steps": 3}) == replace(own, steps=3)
    assert own.chosen("fast", {}).schedule == BottleneckSettings(**preset_settings("fast")).schedule


def test_a_preset_leaves_a_beta_of_ones_own():
    default = BottleneckSettings(**preset_settings(None))
    assert default.keep is not None
    assert default.chosen("paper", {}) == BottleneckSettings()
    assert BottleneckSettings().chosen("default", {}) == default
    own = default.override(beta=5.0)
    assert own.chosen("paper", {}) == BottleneckSettings(beta=5.0)
    assert own.chosen(None, {"steps": 3}) == BottleneckSettings(beta=5.0, steps=3)
    kept = default.override(keep=0.8).chosen("fast", {})
    assert (kept.keep, kept.samples) == (0.8, 2)


def test_a_rise_is_taken_back_twice_in_a_row_and_then_let_be():
    guard, state = RiseGuard(0.5), AdamState(*np.zeros((3, 2, 1)))
    # The first image falls and jumps once, the second rises without an end.
    losses = np.array([[1.0, 1.0], [0.9, 2.0], [1.5, 3.0], [0.8, 4.0], [0.9, 6.0], [2.0, 9.0]])
    starts = []
    for loss in losses:
        new = AdamState(state.parameter - 1.0, state.first, state.second)
        state = guard.checked(state, new, loss)
        starts.append(state.parameter.ravel() + 1.0)
    np.testing.assert_array_equal(np.transpose(starts), [[0, -1, -1, -2, -3, -3], [0, 0, 0, -1, -2, -3]])
    rose, parameter = guard.kept(state.parameter, np.array([0.5, 20.0]))
    assert not rose.any()
    np.testing.assert_array_equal(parameter.ravel(), [-4, -4])


def test_an_image_does_not_feel_its_neighbours():
    whole = run()
    for i in range(3):
        alone = run(FEATURES[i : i + 1], CLASSES[i : i + 1])
        np.testing.assert_allclose(whole.capacity[i], alone.capacity[0], rtol=1e-6)
        np.testing.assert_allclose(whole.model_losses[:, i], alone.model_losses[:, 0], rtol=1e-8)


@pytest.mark.parametrize("max_batch", [3, 4, 6, 100])
def test_max_batch_changes_memory_and_nothing_else(max_batch):
    sizes = []

    def watched(z, carry):
        sizes.append(len(z))
        return linear(z, carry)

    options = {"seed": 1, "max_batch": max_batch}
    found = optimizer().run(tail(run=watched), STATISTICS, (CLASSES,), chosen(steps=2), **options)
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
    one = optimizer(relu=True)
    problem = one.problem(tail(), STATISTICS)
    half = Mask(np.full_like(FEATURES, 0.5), np.full_like(FEATURES, 0.5))
    assert one.restricted(problem, half, np.full((2, *SHAPE), -3.0)).min() == 0


def test_settings_of_zero_are_honoured():
    free = run(settings={"beta": 0.0})
    np.testing.assert_array_equal(free.informations, 0)
    still = run(settings={"learning_rate": 0.0})
    np.testing.assert_array_equal(still.alpha, 5.0)
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
    def scalar(logits, classes):
        return cross_entropy(logits, classes).mean()

    one, given = optimizer(scalar, by_image=False), (tail(FEATURES[:1]), STATISTICS, (CLASSES[:1],), chosen())
    found = one.run(*given, seed=1)
    with pytest.raises(InputError, match=r"score has shape \(\) for 3 outputs; one score each is needed$"):
        optimizer(scalar).run(*given, seed=1)
    np.testing.assert_allclose(found.capacity, run(FEATURES[:1], CLASSES[:1]).capacity, rtol=1e-6)


def test_a_loss_that_turns_nan_names_the_step():
    calls, samples = [], 3

    def fails(logits, classes):
        calls.append(0)
        per_step = 1 + 2 * samples * FEATURES[:1].size
        return cross_entropy(logits, classes) * (np.nan if len(calls) > 2 * per_step else 1.0)

    expected = pytest.raises(OptimizationError, match="model's loss became nan at step 3 of 4")
    with expected, np.errstate(invalid="ignore"):
        optimizer(fails).run(tail(FEATURES[:1]), STATISTICS, (CLASSES[:1],), chosen(), seed=1)


def test_a_last_step_that_goes_too_far_is_an_error():
    far = {"steps": 1, "learning_rate": 1e5, "beta": 0.0}
    expected = pytest.raises(OptimizationError, match="capacity became infinite in the last step")
    with expected, np.errstate(all="ignore"):
        run(settings=far)


def test_features_without_spread_need_a_floor():
    flat = Statistics(np.zeros(SHAPE), np.zeros(SHAPE), np.ones(SHAPE, bool))
    with pytest.raises(InputError, match="min_std=0, but the standard deviation"):
        optimizer().run(tail(), flat, (CLASSES,), chosen(min_std=0.0), seed=1)


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
        {"early_steps": -1},
        {"early_samples": 0},
        {"tolerance": -0.1},
        {"antithetic": 1},
        {"precision": "int8"},
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
    with pytest.raises(InputError, match="std has values from -1 to -1; they must be at least 0"):
        Statistics(ok, -ok, ok > 0)
    with pytest.raises(InputError, match="mean holds nan at index"):
        Statistics(ok * np.nan, ok, ok > 0)


@pytest.mark.parametrize("seed", [1, None])
def test_the_order_of_the_tail_s_axes_changes_nothing(seed):
    """A tail may have its features in another order; statistics, masks and results keep the model's."""
    axes = (1, 2, 0)
    features = FEATURES.transpose(0, 2, 3, 1)
    passing = RNG.random(FEATURES.shape) > 0.8
    seen = []

    def back(z, carry):
        return linear(z.transpose(0, 3, 1, 2), carry)

    def see(step, state, report):
        seen.append(state.parameter)

    class Fixed(NumPyFramework):
        def standard_normal(self, shape, like):
            return np.zeros(shape)

    one = BottleneckOptimizer(Fixed(), cross_entropy, LAYOUT.permuted(axes))
    given = (STATISTICS, (CLASSES,), chosen())
    options = {"seed": seed, "pass_mask": passing, "callback": see}
    found = one.run(Tail(features, back, axes=axes), *given, **options)
    expected = optimizer(framework=Fixed()).run(tail(), *given, **options)
    for name in ("alpha", "capacity"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mask.blocked, expected.mask.blocked, rtol=1e-6)
    np.testing.assert_allclose(
        found.problem.fill[found.problem.fill != 0], expected.problem.fill[expected.problem.fill != 0]
    )
    np.testing.assert_allclose(seen[3], seen[7], rtol=1e-6)
