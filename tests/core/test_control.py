"""The search for beta while the steps are made, on reports of steps written by hand."""

import numpy as np

from iba_core.bottleneck.control import BetaSearch
from iba_core.bottleneck.survival import Answer


def searched(shares, nats):
    """The search for one image, after reports of these shares of its target and these bits."""
    search, factors = BetaSearch(Answer(np.zeros(1), None), 0.9), []
    for share, information in zip(shares, nats, strict=True):
        # What is reported is the information times beta.
        search.see(-np.log([share]), np.array([information]) * search.factors)
        factors.append(float(search.factors[0]))
    return factors, float(search.best[0])


def test_beta_does_not_grow_while_the_bits_fall():
    factors, best = searched([1.0, 1.0, 1.0, 0.99], [50.0, 40.0, 30.0, 20.0])
    np.testing.assert_allclose(factors, 1.0)
    assert best == 1.0


def test_it_grows_once_they_have_settled():
    factors, best = searched([1.0, 1.0, 1.0], [10.0, 9.9, 9.8])
    np.testing.assert_allclose(factors, [1.0, 1.15, 1.15**2])
    assert best == 1.15  # of the last state


def test_it_shrinks_where_too_little_survives():
    factors, best = searched([1.0, 0.45, 0.01, 0.95], [10.0, 8.0, 5.0, 9.0])
    # By the missing part of the logarithm, and by no more than a half.
    np.testing.assert_allclose(
        factors, [1.0, 0.5 ** np.log(2), 0.5 ** (np.log(2) + 1), 0.5 ** (np.log(2) + 1) * 1.15]
    )
    np.testing.assert_allclose(best, factors[2])


def test_of_all_states_that_keep_enough_that_with_the_fewest_bits_is_known():
    _, best = searched([1.0, 1.0, 0.5, 0.92], [10.0, 9.5, 4.0, 9.6])
    assert best == 1.0
