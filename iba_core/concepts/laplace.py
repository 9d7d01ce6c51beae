r"""Laplace approximation of the posterior of a hyperplane, in closed form.

The probability that a window with the entries :math:`\phi` (a 1 for the bias among them) shows the concept
is :math:`\sigma(f)`, :math:`f = \theta \cdot \phi`. Around the optimum :math:`\theta^*` of the regularised
loss the posterior of the weights is taken for a normal distribution with the precision

.. math:: H = \sum_n c_n\, p_n (1 - p_n)\, \phi_n \phi_n^T + \delta\, I,

the Hessian of the summed cross-entropy plus the precision :math:`\delta` of the prior. Since f is linear in
the weights, the generalised Gauss-Newton matrix is the Hessian itself; nothing is left out. The logit of a
new window is then normal with the mean :math:`f` and the variance :math:`\phi^T H^{-1} \phi`, and the mean
of its sigmoid is close to :math:`\sigma(f / \sqrt{1 + \pi v / 8})`.

D. J. C. MacKay, *The evidence framework applied to classification networks*, Neural Computation 4, 1992,
eq. 10; E. Daxberger et al., *Laplace Redux*, NeurIPS 2021, https://arxiv.org/abs/2106.14806.

Neighbouring pixels of a picture are no independent observations, as the sum takes them to be; the
variance is therefore too small by about the number of pixels that tell the same.

The posterior is kept as a factor R with :math:`H^{-1} = R^T R`: then :math:`v = |R \phi|^2`, and as
:math:`\phi` slides over a feature map, :math:`R \phi` is a convolution with P filters.
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
"""Precisions of the prior that are tried, relative to the least one."""


def with_bias(rows: npt.NDArray[np.floating], use_bias: bool) -> FloatArray:
    """Windows (N, D) in double precision, with a 1 behind each if there is a bias: (N, P)."""
    phi = np.asarray(rows, dtype=np.float64)
    return np.concatenate([phi, np.ones((len(phi), 1))], axis=1) if use_bias else phi


def cross_entropy_hessian(phi: FloatArray, parameters: FloatArray, weights: FloatArray) -> FloatArray:
    r"""Hessian of the summed binary cross-entropy, :math:`\sum_n c_n p_n (1 - p_n) \phi_n \phi_n^T`.

    Args:
        phi: (N, P), windows.
        parameters: (P,), theta.
        weights: (N,), weight c of the loss of each window.

    Returns:
        (P, P), positive semidefinite.
    """
    logits = phi @ parameters
    curvature = weights * sigmoid(logits) * sigmoid(-logits)
    return np.asarray((phi * curvature[:, None]).T @ phi)


def posterior_factor(hessian: FloatArray, prior_precision: float) -> FloatArray:
    """Factor R of the posterior's covariance ``R^T R = (hessian + prior_precision I)^-1``.

    Args:
        hessian: (P, P), of the summed cross-entropy of all training data at the optimum.
        prior_precision: delta, above 0.

    Returns:
        (P, P), lower triangular, float64.

    Raises:
        InputError: the precision is not positive.
        OptimizationError: the Hessian is not finite, or not positive semidefinite.
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


def tuned_factor(
    hessian: FloatArray,
    prior_precision: float,
    parameters: FloatArray,
    phi: FloatArray,
    targets: FloatArray,
    weights: FloatArray,
) -> FloatArray:
    """Factor of the posterior under the prior with which held-out data is most likely.

    The prior of the weight decay says little, and in directions in which all training data is far from the
    hyperplane the likelihood says nothing: the predictions would be too unsure. So the prior's precision is
    chosen after training, from a grid upwards from the one given (Daxberger et al. 2021, section 2.3).
    At the end of the grid the weights are all but certain.

    Args:
        hessian: (P, P), of the training data.
        prior_precision: the least one to consider.
        parameters: (P,), theta.
        phi: (N, P), held-out windows.
        targets: (N,), what they should be, from 0 to 1.
        weights: (N,), weight of the loss of each.

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
    """The rows of factors as the filters of one convolution.

    Args:
        factors: (E, P, P) of any framework.
        in_channels: C.
        kernel_size: (kh, kw).
        use_bias: whether the last of the P parameters is a bias.

    Returns:
        Weight (E * P, C, kh, kw) and bias (E * P,), or None in its place.
    """
    xp = array_namespace(factors)
    size = int(factors.shape[-1])
    rows = xp.reshape(factors, (-1, size))
    inputs = size - 1 if use_bias else size
    weight = xp.reshape(rows[:, :inputs], (-1, in_channels, *kernel_size))
    return weight, rows[:, inputs] if use_bias else None


def logit_variance(products: Array, ensemble_count: int) -> Array:
    r"""Variance of the logits, :math:`|R \phi|^2`.

    Args:
        products: (E * P, ...), the convolution with `factor_filters`.
        ensemble_count: E.

    Returns:
        (E, ...).
    """
    xp = array_namespace(products)
    size = int(products.shape[0]) // ensemble_count
    parts = [products[size * i : size * (i + 1)] for i in range(ensemble_count)]
    return xp.stack([xp.sum(xp.square(part), axis=0) for part in parts])


def moderated(logits: Array, variance: Array) -> Array:
    r"""Logits of the mean probability, :math:`f / \sqrt{1 + \pi v / 8}` (MacKay 1992, eq. 10)."""
    xp = array_namespace(logits)
    return logits / xp.sqrt(1.0 + (np.pi / 8.0) * variance)
