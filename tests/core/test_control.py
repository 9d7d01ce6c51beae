"""The search for beta and that for an offset, on shares written by hand."""

import numpy as np
import pytest

from iba_core.bottleneck.control import TRIALS, BetaSearch, OffsetSearch

KEEP = 0.9


def searched(shares):
    """Factors of beta for one image, after steps in which these shares of its target survived."""
    search, factors = BetaSearch(np.zeros(1), None, KEEP), []
    for share in shares:
        before = search.factors
        change = search.see(-np.log([share]))
        np.testing.assert_allclose(search.factors, before * change)
        factors.append(float(search.factors[0]))
    return factors


def test_beta_does_not_grow():
    np.testing.assert_allclose(searched([1.0, 1.3, 0.95, 2.0]), 1.0)


def test_it_shrinks_by_what_is_lacking_and_not_below_a_third_in_one_step():
    factors = searched([1.0, 0.45, 0.81, 0.95, 0.01])
    np.testing.assert_allclose(factors, [1.0, 0.5, 0.45, 0.45, 0.45 * 0.3])


def test_the_share_of_a_score_counts_from_its_baseline_and_nothing_to_keep_changes_nothing():
    search = BetaSearch(np.array([-5.0, -5.0]), np.array([-1.0, -6.0]), KEEP)
    # Of the four that the first score is above its baseline, half is left; the second is below its baseline.
    np.testing.assert_allclose(search.see(np.array([-3.0, -3.0])), [0.5 / KEEP, 1.0])


def offset(share_at):
    """What a search finds for one image, if this share of the target survives at an offset."""

    def shares(offsets):
        return np.array([[share_at(float(offsets[0]))]])

    search = OffsetSearch(shares(np.zeros(1)), KEEP)
    for _ in range(TRIALS):
        search.see(shares(search.trial))
    return float(search.found[0]), float(search.shares[0, 0])


@pytest.mark.parametrize("needed", [-0.9, -0.4, 0.6])
def test_the_least_offset_at_which_enough_survives_is_found(needed):
    found, share = offset(lambda at: KEEP + 0.05 * (at - needed))
    assert share >= KEEP
    assert needed <= found <= needed + 0.126


@pytest.mark.parametrize("needed", [-3.6, -2.2, -1.7, 1.7, 3.3])
def test_the_search_goes_on_until_it_has_both_ends(needed):
    found, share = offset(lambda at: KEEP + 0.01 * (at - needed))
    assert share >= KEEP
    assert needed <= found <= needed + 1.0


@pytest.mark.parametrize("needed", [-8.3, -5.1, 5.1, 8.3])
def test_strides_are_longer_where_the_share_is_far_from_that_to_keep(needed):
    found, share = offset(lambda at: KEEP * 8 ** (at - needed))
    assert share >= KEEP
    assert needed <= found <= needed + 1.5


def test_a_score_may_fall_below_its_baseline():
    assert offset(lambda at: at - 4.0)[0] == pytest.approx(6.0 - 3 / 4)


def test_where_nothing_keeps_enough_the_most_open_trial_is_taken():
    found, share = offset(lambda at: 0.02 * at)
    assert found == 12.0
    assert share == pytest.approx(0.24)


def test_where_everything_keeps_enough_the_mask_is_closed_as_far_as_it_may_be():
    assert offset(lambda _: 99.0) == (-12.0, 99.0)
    assert offset(lambda _: 1.0) == (-4.0, 1.0)


def test_an_image_without_anything_to_keep_does_not_move():
    assert offset(lambda _: float("nan"))[0] == 0.0
