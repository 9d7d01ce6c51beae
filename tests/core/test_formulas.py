"""The bottleneck's formulas on every framework, against worked numbers, SciPy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, special, stats
from scipy.integrate import quad

from iba_core.bottleneck.adam import AdamState, adam_step, bias_corrections
from iba_core.bottleneck.formulas import (
    Mask,
    alpha_slope,
    capacity,
    capacity_slope,
    mask_from_alpha,
    restrict,
)
from iba_core.bottleneck.resizing import resizing_matrix
from iba_core.bottleneck.smoothing import (
    averaging_matrix,
    banded_matrix,
    smooth,
    smoothing_matrices,
    smoothing_matrix,
)
from iba_core.framework.layout import Layout, Tokens
from iba_core.framework.namespace import array_namespace, log_sigmoid, log_sum_exp, sigmoid
from iba_core.targets import cross_entropy, cross_entropy_of_probabilities

RNG = np.random.default_rng(0)


def test_capacity_of_worked_numbers(framework):
    # lambda = 1/2, R two standard deviations from the mean: -1/2 (1 + log 1/4 - 4/4 - 1/4) = 0.8181471806
    mask = Mask(framework.asarray([0.5, 0.5]), framework.asarray([0.5, 0.5]))
    found = capacity(framework.asarray([2.0, 0.0]), mask)
    np.testing.assert_allclose(
        framework.to_numpy(found), [0.8181471805599453, 0.3181471805599453], rtol=1e-12
    )


@pytest.mark.parametrize(("r", "lam"), [(0.0, 0.3), (1.7, 0.6), (-3.0, 0.95)])
def test_capacity_is_the_divergence_of_two_normals(r, lam):
    p, q = stats.norm(lam * r, 1 - lam), stats.norm(0, 1)
    expected, _ = quad(lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), -12, 12, limit=200)
    assert capacity(np.float64(r), Mask(np.float64(lam), np.float64(1 - lam))) == pytest.approx(
        expected, rel=1e-7
    )


def slopes_by_differences(function, x):
    """Derivative of a function of an array by central differences, of the array's shape."""

    def slope(index):
        shift = np.zeros_like(x)
        shift[index] = 1e-6
        return (function(x + shift) - function(x - shift)) / 2e-6

    return np.reshape([slope(index) for index in np.ndindex(x.shape)], x.shape)


@pytest.mark.parametrize("lam", [1e-4, 1e-2, 0.3, 0.7])
def test_capacity_of_a_nearly_closed_mask_is_no_rounding(framework, lam):
    """It is about the square of lambda, which is less than the rounding of 1."""
    r = 0.5
    exact = ((r * lam) ** 2 + (1 - lam) ** 2 - 1) / 2 - np.log1p(-lam)
    mask = Mask(*(framework.asarray([x], "float32") for x in (lam, 1 - lam)))
    normalized = framework.asarray([r], "float32")
    np.testing.assert_allclose(framework.to_numpy(capacity(normalized, mask)), [exact], rtol=2e-3)
    slope = (1 - lam) - 1 / (1 - lam) - r * r * lam
    np.testing.assert_allclose(framework.to_numpy(capacity_slope(normalized, mask)), [slope], rtol=1e-5)


def test_capacity_vanishes_where_nothing_passes_and_is_never_negative():
    lam = RNG.uniform(0, 0.999, 1000)
    r = RNG.normal(size=1000)
    assert (capacity(r, Mask(lam, 1 - lam)) >= -1e-15).all()
    assert capacity(np.array([5.0]), Mask(np.array([0.0]), np.array([1.0]))) == 0


def test_restrict_mixes_features_and_noise(framework):
    r, n, lam = (framework.asarray(x) for x in ([10.0, 10.0], [2.0, 4.0], [0.75, 0.0]))
    found = restrict(r, Mask(lam, 1 - lam), n)
    np.testing.assert_allclose(framework.to_numpy(found), [8.0, 4.0])


@pytest.mark.parametrize("alpha", [-80.0, -20.0, -5.0, 0.0, 5.0, 20.0, 80.0])
@pytest.mark.parametrize("std", [0.0, 1.0])
def test_float32_stays_finite_far_out(framework, alpha, std):
    layout = Layout.of((2, 5, 4), "channels_first")
    matrices = [framework.asarray(m, np.float32) for m in smoothing_matrices((2, 5, 4), layout, std)]
    r = framework.asarray(RNG.normal(size=(1, 2, 5, 4)), np.float32)

    def total(a):
        nats = capacity(r, mask_from_alpha(a, matrices, layout))
        return nats.sum() if hasattr(nats, "sum") else framework.tf.reduce_sum(nats)

    x = np.full((1, 2, 5, 4), alpha, np.float32)
    value = framework.to_numpy(total(framework.asarray(x)))
    assert np.isfinite(value)
    # -log(1 - lambda) is alpha itself once lambda is nearly 1, also where 1 - lambda rounds to 0 in float32
    if alpha >= 20:
        squares = (framework.to_numpy(r) ** 2).sum()
        assert value == pytest.approx((squares - 40) / 2 + 40 * alpha, rel=1e-5)
    if type(framework).__name__ != "NumPy":
        gradient = framework.gradient(total, x)
        assert np.isfinite(gradient).all()
        if alpha >= 20:
            # Smoothing spreads an entry's gradient; its total is kept.
            assert gradient.sum() == pytest.approx(40, rel=1e-4)


def test_gradient_of_the_objective_matches_finite_differences(framework):
    layout = Layout.of((2, 4, 3), "channels_first")
    matrices = smoothing_matrices((2, 4, 3), layout, 1.0)
    r, n, w = RNG.normal(size=(3, 1, 2, 4, 3))

    def objective(a, convert):
        mask = mask_from_alpha(a, [convert(m) for m in matrices], layout)
        z = restrict(convert(r), mask, convert(n))
        value = convert(w) * z * z + 0.3 * capacity(convert(r), mask)
        return value.sum() if hasattr(value, "sum") else framework.tf.reduce_sum(value)

    alpha = RNG.normal(size=(1, 2, 4, 3))
    step = 1e-6
    expected = np.empty_like(alpha)
    for index in np.ndindex(alpha.shape):
        shift = np.zeros_like(alpha)
        shift[index] = step
        high, low = objective(alpha + shift, np.asarray), objective(alpha - shift, np.asarray)
        expected[index] = (high - low) / (2 * step)
    found = framework.gradient(lambda a: objective(a, framework.asarray), alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("size", "target"), [(28, 14), (7, 4), (28, 7), (5, 5), (10, 3), (4, 1)])
def test_places_are_averaged_over_what_they_cover(size, target):
    x = RNG.normal(size=size)
    expected = x.repeat(target).reshape(target, size).mean(axis=1)
    np.testing.assert_allclose(averaging_matrix(size, target) @ x, expected, rtol=1e-12)
    if size == 2 * target:  # as between the centres
        np.testing.assert_allclose(averaging_matrix(size, target), resizing_matrix(size, target))


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("std", [0.0, 1.0])
def test_slopes_of_an_alpha_with_other_places_match_finite_differences(framework, std, data_format):
    """One value for all channels, at 7 x 3 places, for features at 4 x 3."""
    shape, axis = ((2, 4, 3), 1) if data_format == "channels_first" else ((4, 3, 2), 3)
    layout = Layout.of(shape, data_format)
    matrices = smoothing_matrices(shape, layout, std, (7, 3))
    assert [matrix.shape for matrix in matrices] == [(4, 7), (3, 3)]
    w = RNG.normal(size=(2, *shape))
    alpha = np.expand_dims(RNG.normal(size=(2, 7, 3)), axis)

    def objective(a):
        return (w * mask_from_alpha(a, matrices, layout).blocked).sum()

    expected = slopes_by_differences(objective, alpha)
    there = [framework.asarray(matrix) for matrix in matrices]
    found = framework.to_numpy(alpha_slope(framework.asarray(w), framework.asarray(alpha), there, layout))
    assert found.shape == alpha.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("std", [0.0, 1.0])
def test_slopes_match_finite_differences(framework, std):
    """Slopes of the capacity, and of any other function of the mask through the mask's complement."""
    layout = Layout.of((2, 4, 3), "channels_first")
    matrices = smoothing_matrices((2, 4, 3), layout, std)
    r, w = RNG.normal(size=(2, 1, 2, 4, 3))
    alpha = 2 * RNG.normal(size=r.shape)

    def objective(a):
        mask = mask_from_alpha(a, matrices, layout)
        return (capacity(r, mask) + w * mask.blocked).sum()

    expected = slopes_by_differences(objective, alpha)
    there = [framework.asarray(matrix) for matrix in matrices]
    mask = mask_from_alpha(framework.asarray(alpha), there, layout)
    of_blocked = capacity_slope(framework.asarray(r), mask) + framework.asarray(w)
    found = alpha_slope(of_blocked, framework.asarray(alpha), there, layout)
    np.testing.assert_allclose(framework.to_numpy(found), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", [-80.0, -20.0, 20.0, 80.0])
def test_slopes_stay_exact_far_out(framework, alpha):
    """In float32, one of the logistic function's two sides is 1 there. The capacity grows like alpha."""
    layout = Layout.of((1,), "channels_first")
    x = framework.asarray(np.full((1, 1), alpha), np.float32)
    ones = framework.asarray(np.ones((1, 1)), np.float32)
    found = framework.to_numpy(alpha_slope(ones, x, (), layout))
    assert found == pytest.approx(-np.exp(-abs(alpha)), rel=1e-5)
    if alpha > 0:
        slope = capacity_slope(0 * ones, mask_from_alpha(x, (), layout))
        assert framework.to_numpy(alpha_slope(slope, x, (), layout)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("spatial", [(), (7,), (6, 9), (4, 5, 6)])
@pytest.mark.parametrize("std", [0.7, 1.0, 2.0])
def test_smoothing_is_scipys_gaussian_filter(framework, data_format, spatial, std):
    channels_last = data_format == "channels_last"
    shape = (*spatial, 3) if channels_last else (3, *spatial)
    layout = Layout.of(shape, data_format)
    x = RNG.normal(size=(2, *shape))
    matrices = smoothing_matrices(shape, layout, std)
    found = smooth(framework.asarray(x), [framework.asarray(m) for m in matrices], layout)
    axes = tuple(axis + 1 for axis in layout.spatial_axes)
    expected = x
    for axis in axes:
        expected = ndimage.gaussian_filter1d(expected, std, axis, mode="mirror", radius=round(2 * std))
    np.testing.assert_allclose(framework.to_numpy(found), expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 14])
def test_smoothing_keeps_constants(size):
    np.testing.assert_allclose(smoothing_matrix(size, 1.0).sum(axis=1), 1.0, atol=1e-14)


@pytest.mark.parametrize("std", [0, 0.0, None])
def test_no_smoothing(std):
    layout = Layout.of((2, 4, 4), "channels_first")
    assert smoothing_matrices((2, 4, 4), layout, std) == ()
    x = RNG.normal(size=(1, 2, 4, 4))
    assert smooth(x, (), layout) is x


def test_mask_and_complement_are_smoothed_logistic_functions(framework):
    layout = Layout.of((3, 8, 8), "channels_first")
    matrices = smoothing_matrices((3, 8, 8), layout, 1.0)
    alpha = RNG.normal(0, 4, (1, 3, 8, 8))
    mask = mask_from_alpha(framework.asarray(alpha), [framework.asarray(m) for m in matrices], layout)
    for found, sign in zip(mask, (1, -1), strict=True):
        expected = np.einsum("ij,kl,bcjl->bcik", *matrices, special.expit(sign * alpha))
        np.testing.assert_allclose(framework.to_numpy(found), expected, rtol=1e-12)


def test_logistic_functions_match_scipy(framework):
    x = np.array([-700.0, -80.0, -3.0, 0.0, 3.0, 80.0, 700.0])
    t = framework.asarray(x)
    np.testing.assert_allclose(framework.to_numpy(sigmoid(t)), special.expit(x), rtol=1e-13)
    np.testing.assert_allclose(framework.to_numpy(log_sigmoid(t)), special.log_expit(x), rtol=1e-13)


def test_log_sum_exp_matches_scipy(framework):
    x = RNG.normal(0, 300, (4, 7))
    found = framework.to_numpy(log_sum_exp(framework.asarray(x)))
    np.testing.assert_allclose(found, special.logsumexp(x, axis=1), rtol=1e-14)


def test_cross_entropy_matches_scipy(framework):
    logits, classes = RNG.normal(0, 30, (5, 8)), np.array([0, 7, 3, 3, 1])
    expected = -special.log_softmax(logits, axis=1)[np.arange(5), classes]
    found = cross_entropy(framework.asarray(logits), framework.asarray(classes))
    # Next to logits of 100, a loss near 0 is only as exact as their rounding.
    np.testing.assert_allclose(framework.to_numpy(found), expected, rtol=1e-12, atol=1e-13)
    probabilities = special.softmax(RNG.normal(size=(5, 8)), axis=1)
    found = cross_entropy_of_probabilities(framework.asarray(probabilities), framework.asarray(classes))
    expected = -np.log(probabilities[np.arange(5), classes])
    np.testing.assert_allclose(framework.to_numpy(found), expected, rtol=1e-12)


def test_cross_entropy_of_a_probability_of_zero_is_finite(framework):
    one = framework.asarray(np.array([[0.0, 1.0]], np.float32))
    assert framework.to_numpy(cross_entropy_of_probabilities(one, framework.asarray([0])))[
        0
    ] == pytest.approx(87.3, abs=0.1)


def test_adam_on_worked_numbers(framework):
    # For a constant gradient, both corrected moments equal it (squared). Each step is lr g / (|g| + eps).
    gradient = np.array([3.0, -1e-6, 0.0])
    state = AdamState(*(framework.asarray(np.zeros(3)) for _ in range(3)))
    for correction in bias_corrections(3):
        state = adam_step(
            state, framework.asarray(gradient), framework.asarray(correction), framework.asarray(0.1)
        )
    expected = -3 * 0.1 * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(framework.to_numpy(state.parameter), expected, rtol=1e-12)


def test_adam_matches_pytorchs_on_a_changing_gradient():
    torch = pytest.importorskip("torch")
    gradients = RNG.normal(size=(20, 6))
    parameter = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([parameter], lr=0.3)
    state = AdamState(*np.zeros((3, 6)))
    for gradient, correction in zip(gradients, bias_corrections(20), strict=True):
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        state = adam_step(state, gradient, correction, 0.3)
    np.testing.assert_allclose(state.parameter, parameter.detach().numpy(), rtol=1e-7)


def test_tokens_are_smoothed_on_their_grid(framework):
    layout = Layout.of((21, 3), "channels_last", Tokens(prefix=1, grid=(4, 5)))
    (matrix,) = smoothing_matrices((21, 3), layout, 1.0)
    x = RNG.normal(size=(2, 21, 3))
    found = framework.to_numpy(smooth(framework.asarray(x), [framework.asarray(matrix)], layout))
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    folded = x[:, 1:].reshape(2, 4, 5, 3)
    for axis in (1, 2):
        folded = ndimage.gaussian_filter1d(folded, 1.0, axis, mode="mirror", radius=2)
    np.testing.assert_allclose(found[:, 1:].reshape(2, 4, 5, 3), folded, atol=1e-12)


# -- long axes ----------------------------------------------------------------------------------------


def filtered(x, std, axes):
    for axis in axes:
        x = ndimage.gaussian_filter1d(x, std, axis, mode="mirror", radius=max(1, round(2 * std)))
    return x


@pytest.mark.parametrize(
    ("size", "std"), [(144, 1.0), (193, 0.7), (320, 1.0), (2047, 3.0), (900, 20.0), (481, 0.2)]
)
def test_bands_hold_the_matrix_and_its_transpose(size, std):
    matrix, blocks = smoothing_matrix(size, std), banded_matrix(size, std)
    rows, radius = blocks.shape[2], (blocks.shape[3] - blocks.shape[2]) // 2
    for expected, of_one in zip((matrix, matrix.T), blocks, strict=True):
        whole = np.zeros((len(of_one) * rows, len(of_one) * rows + 2 * radius))
        for index, block in enumerate(of_one):
            whole[index * rows : (index + 1) * rows, index * rows : (index + 1) * rows + 2 * radius] = block
        inner = whole[:size, radius : radius + size]
        np.testing.assert_allclose(inner, expected, rtol=0, atol=1e-15)
        assert np.count_nonzero(whole) == np.count_nonzero(inner)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("spatial", "std"), [((151, 5), 1.0), ((4, 200), 1.0), ((333,), 2.0), ((3, 4, 149), 1.0)]
)
def test_long_axes_are_smoothed_alike(framework, data_format, spatial, std):
    shape = (*spatial, 3) if data_format == "channels_last" else (3, *spatial)
    layout = Layout.of(shape, data_format)
    matrices = smoothing_matrices(shape, layout, std)
    assert {len(matrix.shape) for matrix in matrices} >= {4}
    x, weights = RNG.normal(size=(2, 2, *shape))
    axes = tuple(axis + 1 for axis in layout.spatial_axes)
    tensors = [framework.asarray(m) for m in matrices]
    found = framework.to_numpy(smooth(framework.asarray(x), tensors, layout))
    np.testing.assert_allclose(found, filtered(x, std, axes), atol=1e-12)
    # The transpose G' is what keeps <w, G x> = <G' w, x>.
    turned = framework.to_numpy(smooth(framework.asarray(weights), tensors, layout, transposed=True))
    np.testing.assert_allclose((weights * found).sum(), (turned * x).sum(), rtol=1e-10)
    dense = [smoothing_matrix(size, std) for size in spatial]
    np.testing.assert_allclose(turned, smooth(weights, dense, layout, transposed=True), atol=1e-12)


def test_gradients_pass_long_axes(framework):
    layout = Layout.of((150, 1), "channels_last")
    tensors = [framework.asarray(m) for m in smoothing_matrices((150, 1), layout, 1.0)]
    x, weights = RNG.normal(size=(2, 1, 150, 1))
    w = framework.asarray(weights)
    gradient = framework.gradient(lambda x: array_namespace(x).sum(w * smooth(x, tensors, layout)), x)
    np.testing.assert_allclose(
        gradient, smooth(weights, [smoothing_matrix(150, 1.0)], layout, transposed=True), atol=1e-5
    )


@pytest.mark.parametrize(("grid", "prefix"), [((20, 30), 1), ((160, 4), 0), ((700,), 2), (None, 3)])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_many_tokens_are_smoothed_on_their_grid(framework, grid, prefix, data_format):
    count = prefix + (600 if grid is None else int(np.prod(grid)))
    shape = (count, 3) if data_format == "channels_last" else (3, count)
    layout = Layout.of(shape, data_format, Tokens(prefix, grid))
    matrices = smoothing_matrices(shape, layout, 1.0)
    x = RNG.normal(size=(2, *shape))
    found = framework.to_numpy(smooth(framework.asarray(x), [framework.asarray(m) for m in matrices], layout))
    if data_format == "channels_first":
        x, found = x.swapaxes(1, 2), found.swapaxes(1, 2)
    np.testing.assert_array_equal(found[:, :prefix], x[:, :prefix])
    folded = x[:, prefix:].reshape(2, *(grid or (600,)), 3)
    expected = filtered(folded, 1.0, range(1, folded.ndim - 1)).reshape(2, -1, 3)
    np.testing.assert_allclose(found[:, prefix:], expected, atol=1e-12)
