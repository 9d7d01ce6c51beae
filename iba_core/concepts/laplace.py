r"""Laplace approximation of the posterior of a hyperplane, in closed form.

The probability that a window with the entries :math:`\phi` (including a 1 for the bias) shows the concept is
:math:`\sigma(f)` with :math:`f = \theta \cdot \phi`. Around the optimum :math:`\theta^*` of the regularised
loss, the posterior of the weights is approximated by a normal distribution with the precision

.. math:: H = \sum_n c_n\, p_n (1 - p_n)\, \phi_n \phi_n^T + \delta\, I,

the Hessian of the summed cross-entropy plus the precision :math:`\delta` of the prior. Since f is linear in
the weights, the generalised Gauss-Newton matrix is exactly the Hessian. The logit of a new window is then
normal with mean :math:`f` and variance :math:`v = \phi^T H^{-1} \phi`, and the mean of its sigmoid is close
to :math:`\sigma(f / \sqrt{1 + \pi v / 8})`.

D. J. C. MacKay, *The evidence framework applied to classification networks*, Neural Computation 4, 1992,
eq. 10; E. Daxberger et al., *Laplace Redux*, NeurIPS 2021, https://arxiv.org/abs/2106.14806.

The sum treats neighbouring pixels as independent observations, which they are not. The variance is therefore
too small, by about the number of pixels that carry the same information.

The posterior is stored as a factor R with :math:`H^{-1} = R^T R`. Then :math:`v = |R \phi|^2`, and for all
windows of a feature map, :math:`R \phi` is a convolution with P filters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from iba_core.errors import InputError, OptimizationError
from iba_core.framework.namespace import Array, array_namespace, log_sigmoid, sigmoid

FloatArray = npt.NDArray[np.floating]

_GRID = 10.0 ** np.arange(0.0, 4.5, 0.5)
"""Precisions of the prior to try, relative to the smallest one."""


def with_bias(rows: npt.NDArray[np.floating], use_bias: bool) -> FloatArray:
    """Convert windows (N, D) to float64 and append a 1 to each if there is a bias: (N, P)."""
    phi = np.asarray(rows, dtype=np.float64)
    return np.concatenate([phi, np.ones((len(phi), 1))], axis=1) if use_bias else phi


def cross_entropy_hessian(phi: FloatArray, parameters: FloatArray, weights: FloatArray) -> FloatArray:
    r"""Compute the Hessian of the summed cross-entropy, :math:`\sum_n c_n p_n (1 - p_n) \phi_n \phi_n^T`.

    Args:
        phi: (N, P), windows.
        parameters: (P,), theta.
        weights: (N,), weight c of the loss of each window.

    Returns:
        (P, P), positive semidefinite.

    Example:
        >>> cross_entropy_hessian(np.array([[2.0], [0.0]]), np.array([0.0]), np.array([1.0, 1.0]))
        array([[1.]])
    """
    logits = phi @ parameters
    curvature = weights * sigmoid(logits) * sigmoid(-logits)
    return np.asarray((phi * curvature[:, None]).T @ phi)


def posterior_factor(hessian: FloatArray, prior_precision: float) -> FloatArray:
    """Compute the factor R of the posterior's covariance ``R^T R = (hessian + prior_precision I)^-1``.

    Args:
        hessian: (P, P), Hessian of the summed cross-entropy of all training data at the optimum.
        prior_precision: delta, above 0.

    Returns:
        (P, P), lower triangular, float64.

    Raises:
        InputError: the precision is not positive.
        OptimizationError: the Hessian is not finite, or not positive semidefinite.

    Example:
        >>> posterior_factor(np.array([[3.0]]), prior_precision=1.0)
        array([[0.5]])
    """
    if not prior_precision > 0:
        raise InputError(f"prior_precision={prior_precision} must be above 0")
    identity = np.eye(len(hessian))
    try:
        lower = np.linalg.cholesky(hessian + prior_precision * identity)
    except np.linalg.LinAlgError as error:
        raise OptimizationError(
            f"the precision of the weights is not positive definite ({error}); raise the weight decay"
        ) from error
    factor: FloatArray = solve_triangular(lower, identity, lower=True)
    return factor


def hessian_of(factor: FloatArray) -> tuple[FloatArray, float]:
    """Divide a posterior's precision into a Hessian and a prior, the arguments of `posterior_factor`.

    Args:
        factor: R, (P, P), with the covariance ``R^T R``.

    Returns:
        The Hessian (P, P), positive semidefinite, and the precision of the prior, half of the posterior's
        smallest eigenvalue.

    Example:
        >>> hessian, prior_precision = hessian_of(np.array([[0.5]]))
        >>> hessian, prior_precision
        (array([[2.]]), 2.0)
    """
    inverse = np.linalg.inv(np.asarray(factor, dtype=np.float64))
    precision = inverse @ inverse.T
    prior_precision = float(np.linalg.eigvalsh(precision)[0]) / 2.0
    return precision - prior_precision * np.eye(len(precision)), prior_precision


def tuned_factor(
    hessian: FloatArray,
    prior_precision: float,
    parameters: FloatArray,
    phi: FloatArray,
    targets: FloatArray,
    weights: FloatArray,
) -> FloatArray:
    """Compute the factor of the posterior for the prior under which held-out data is most likely.

    The prior of the weight decay is weak, and where all training data is far from the hyperplane the
    likelihood is flat: with that prior, predictions are too uncertain. The precision of the prior is
    therefore chosen after training, from a grid that starts at the given precision (Daxberger et al. 2021,
    section 2.3). At the end of the grid, the weights are almost certain.

    Args:
        hessian: (P, P), Hessian of the training data.
        prior_precision: smallest precision to consider.
        parameters: (P,), theta.
        phi: (N, P), held-out windows.
        targets: (N,), their targets, from 0 to 1.
        weights: (N,), weight of the loss of each window.

    Returns:
        R, (P, P).
    """
    logits = phi @ parameters

    def cross_entropy(factor: FloatArray) -> float:
        f = moderated(logits, logit_variance((phi @ factor.T).T, 1)[0])
        losses = targets * log_sigmoid(f) + (1.0 - targets) * log_sigmoid(-f)
        return -float(np.sum(weights * losses))

    factors = (posterior_factor(hessian, prior_precision * step) for step in _GRID)
    return min(factors, key=cross_entropy)


def factor_filters(
    factors: Array, in_channels: int, kernel_size: Sequence[int], use_bias: bool
) -> tuple[Array, Array | None]:
    """Arrange the rows of factors as the filters of one convolution.

    Args:
        factors: (E, P, P), of any framework.
        in_channels: C.
        kernel_size: (kh, kw).
        use_bias: whether the last of the P parameters is a bias.

    Returns:
        Weight (E * P, C, kh, kw), and bias (E * P,) or None.
    """
    xp = array_namespace(factors)
    size = int(factors.shape[-1])
    rows = xp.reshape(factors, (-1, size))
    inputs = size - 1 if use_bias else size
    weight = xp.reshape(rows[:, :inputs], (-1, in_channels, *kernel_size))
    return weight, rows[:, inputs] if use_bias else None


def logit_variance(products: Array, ensemble_count: int) -> Array:
    r"""Compute the variance of the logits, :math:`|R \phi|^2`.

    Args:
        products: (E * P, ...), result of the convolution with `factor_filters`.
        ensemble_count: E.

    Returns:
        (E, ...).

    Example:
        >>> logit_variance(np.array([[3.0], [4.0]]), ensemble_count=1)
        array([[25.]])
    """
    xp = array_namespace(products)
    size = int(products.shape[0]) // ensemble_count
    parts = [products[size * i : size * (i + 1)] for i in range(ensemble_count)]
    return xp.stack([xp.sum(xp.square(part), axis=0) for part in parts])


def moderated(logits: Array, variance: Array) -> Array:
    r"""Compute the logits of the mean probability, :math:`f / \sqrt{1 + \pi v / 8}` (MacKay 1992, eq. 10).

    Args:
        logits: f, of any shape and framework.
        variance: v, of the same shape.

    Example:
        >>> moderated(np.array([2.0]), np.array([24 / np.pi]))
        array([1.])
    """
    xp = array_namespace(logits)
    return logits / xp.sqrt(1.0 + (np.pi / 8.0) * variance)
