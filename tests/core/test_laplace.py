"""The posterior of a hyperplane: against finite differences, sampling, integrals and held-out data."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from iba_core.concepts import laplace
from iba_core.errors import InputError, OptimizationError


def problem(n=200, scale=2.0, seed=0):
    """Logistic data in two dimensions, with the windows' constant entry."""
    rng = np.random.default_rng(seed)
    phi = laplace.with_bias(rng.normal(size=(n, 2)), True)
    truth = scale * np.array([1.0, -0.7, 0.3])
    targets = (rng.uniform(size=n) < expit(phi @ truth)).astype(float)
    return phi, targets


def cross_entropy(theta, phi, targets, weights=1.0):
    f = phi @ theta
    return -np.sum(weights * (targets * log_expit(f) + (1 - targets) * log_expit(-f)))


def optimum(phi, targets, prior):
    def objective(theta):
        return cross_entropy(theta, phi, targets) + prior / 2 * theta @ theta

    return minimize(objective, np.zeros(phi.shape[1]), tol=1e-10).x


def test_the_hessian_is_that_of_the_summed_loss():
    phi, targets = problem(50)
    theta = np.array([0.4, -1.1, 0.2])
    weights = np.random.default_rng(1).uniform(0.2, 2, 50)
    step = 1e-4
    expected = np.empty((3, 3))
    for i, a in enumerate(step * np.eye(3)):
        for j, b in enumerate(step * np.eye(3)):
            corners = [
                sa * sb * cross_entropy(theta + sa * a + sb * b, phi, targets, weights)
                for sa in (1, -1)
                for sb in (1, -1)
            ]
            expected[i, j] = sum(corners) / (4 * step**2)
    np.testing.assert_allclose(
        laplace.cross_entropy_hessian(phi, theta, weights), expected, rtol=1e-5, atol=1e-4
    )


def test_the_factor_inverts_the_precision():
    phi, _ = problem()
    hessian = laplace.cross_entropy_hessian(phi, np.array([0.4, -1.1, 0.2]), np.ones(len(phi)))
    factor = laplace.posterior_factor(hessian, 0.7)
    np.testing.assert_allclose(factor.T @ factor @ (hessian + 0.7 * np.eye(3)), np.eye(3), atol=1e-12)


def test_a_posterior_is_divided_into_hessian_and_prior():
    root = np.random.default_rng(0).normal(size=(5, 9))
    factor = laplace.posterior_factor(root @ root.T, 0.01)
    hessian, precision = laplace.hessian_of(factor)
    assert precision > 0
    assert np.linalg.eigvalsh(hessian)[0] > 0
    again = laplace.posterior_factor(hessian, precision)
    np.testing.assert_allclose(again.T @ again, np.linalg.inv(root @ root.T + 0.01 * np.eye(5)), rtol=1e-8)


def test_the_variance_is_that_of_weights_drawn_from_the_posterior():
    phi, targets = problem()
    theta = optimum(phi, targets, 1.0)
    hessian = laplace.cross_entropy_hessian(phi, theta, np.ones(len(phi)))
    factor = laplace.posterior_factor(hessian, 1.0)
    drawn = np.random.default_rng(2).multivariate_normal(theta, np.linalg.inv(hessian + np.eye(3)), 40_000)
    variance = laplace.logit_variance((phi @ factor.T).T, 1)[0]
    np.testing.assert_allclose(variance, (phi @ drawn.T).var(axis=1), rtol=0.05)


def test_two_members_keep_their_own_variance(framework):
    rng = np.random.default_rng(0)
    products = rng.normal(size=(6, 4, 5))
    got = framework.to_numpy(laplace.logit_variance(framework.asarray(products), 2))
    np.testing.assert_allclose(got, np.square(products.reshape(2, 3, 4, 5)).sum(axis=1), rtol=1e-12)


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("variance", [0.0, 0.3, 4.0])
def test_the_moderated_probability_is_close_to_the_mean_of_the_sigmoid(framework, mean, variance):
    def density(f):
        return expit(f) * np.exp(-((f - mean) ** 2) / (2 * variance))

    expected = expit(mean)
    if variance:
        reach = 12 * np.sqrt(variance)
        expected = quad(density, mean - reach, mean + reach)[0] / np.sqrt(2 * np.pi * variance)
    moderated = laplace.moderated(framework.asarray([mean]), framework.asarray([variance]))
    assert expit(framework.to_numpy(moderated)[0]) == pytest.approx(expected, abs=0.02)


def test_filters_are_the_rows_of_the_factors(framework):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2, 13, 13))
    weight, bias = laplace.factor_filters(framework.asarray(factors), 3, (2, 2), True)
    window = rng.normal(size=(3, 2, 2))
    products = np.sum(framework.to_numpy(weight) * window, axis=(1, 2, 3)) + framework.to_numpy(bias)
    expected = factors @ np.append(window.ravel(), 1.0)
    np.testing.assert_allclose(products.reshape(2, 13), expected, rtol=1e-12)
    assert laplace.factor_filters(framework.asarray(factors), 13, (1, 1), False)[1] is None


def test_the_variance_grows_away_from_the_training_data():
    phi, targets = problem()
    theta = optimum(phi, targets, 1.0)
    factor = laplace.posterior_factor(laplace.cross_entropy_hessian(phi, theta, np.ones(len(phi))), 1.0)
    for direction in np.random.default_rng(3).normal(size=(20, 2)):
        ray = np.linspace(2, 20, 10)[:, None] * direction / np.linalg.norm(direction)
        ray = laplace.with_bias(ray, True)
        variance = laplace.logit_variance((ray @ factor.T).T, 1)[0]
        assert (np.diff(variance) > 0).all()
        assert variance[-1] > 5 * laplace.logit_variance((phi @ factor.T).T, 1).mean()


def overconfident(seed):
    """Too few examples for too many features: training, held-out and new data."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(16)
    truth[:3] = 1.5
    parts = []
    for n in (40, 200, 2000):
        phi = laplace.with_bias(rng.normal(size=(n, 15)), True)
        parts.append((phi, (rng.uniform(size=n) < expit(phi @ truth)).astype(float)))
    return parts


@pytest.mark.parametrize("seed", range(3))
def test_held_out_data_is_more_likely_where_training_is_overconfident(seed):
    (phi, targets), (held_phi, held), (new_phi, new) = overconfident(seed)
    theta = optimum(phi, targets, 0.05)
    hessian = laplace.cross_entropy_hessian(phi, theta, np.ones(len(phi)))
    factor = laplace.tuned_factor(hessian, 0.05, theta, held_phi, held, np.ones(len(held)))
    f = new_phi @ theta
    moderated = laplace.moderated(f, laplace.logit_variance((new_phi @ factor.T).T, 1)[0])
    plain = cross_entropy(theta, new_phi, new) / len(new)
    better = -np.mean(new * log_expit(moderated) + (1 - new) * log_expit(-moderated))
    assert better < plain - 0.05


def test_the_prior_is_raised_where_the_weights_are_sure_enough():
    phi, targets = problem(4000, scale=1.0)
    theta = optimum(phi, targets, 1.0)
    hessian = laplace.cross_entropy_hessian(phi, theta, np.ones(len(phi)))
    # Underconfident on purpose: any moderation makes it worse.
    timid = 0.2 * theta
    factor = laplace.tuned_factor(hessian, 1.0, timid, phi, targets, np.ones(len(phi)))
    assert np.trace(factor.T @ factor) < 0.5 * np.trace(np.linalg.inv(hessian + np.eye(3)))


def test_what_makes_no_posterior_is_named():
    with pytest.raises(InputError, match="prior_precision=0"):
        laplace.posterior_factor(np.eye(2), 0)
    with pytest.raises(OptimizationError, match="positive definite"):
        laplace.posterior_factor(-np.eye(2), 0.5)
