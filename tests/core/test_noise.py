"""Seeded noise: reproducible, independent per step, the same feature by feature in both data formats."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from iba_core import InputError
from iba_core.bottleneck.noise import keyed_normal, seeded_normal
from iba_core.framework.layout import Layout

FIRST, LAST = Layout.of((3, 8, 9), "channels_first"), Layout.of((8, 9, 3), "channels_last")


def test_it_is_a_function_of_seed_and_step():
    draw = [seeded_normal(seed, step, 4, (3, 8, 9), FIRST) for seed, step in [(1, 0), (1, 0), (1, 1), (2, 0)]]
    assert draw[0].dtype == np.float32
    np.testing.assert_array_equal(draw[0], draw[1])
    for other in draw[2:]:
        assert abs(np.corrcoef(draw[0].ravel(), other.ravel())[0, 1]) < 0.1


def test_it_is_standard_normal():
    noise = seeded_normal(0, 3, 200, (3, 8, 9), FIRST)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01


def test_data_formats_get_the_same_numbers():
    first, last = seeded_normal(5, 2, 4, (3, 8, 9), FIRST), seeded_normal(5, 2, 4, (8, 9, 3), LAST)
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


@pytest.mark.parametrize("size", [7, 90, 300])
def test_the_noise_of_a_copy_does_not_depend_on_how_many_there_are(size):
    layout = Layout.of((3, size, size), "channels_first")
    few, many = (seeded_normal(5, 2, samples, (3, size, size), layout) for samples in (3, 8))
    np.testing.assert_array_equal(few, many[:3])
    assert abs(np.corrcoef(many.reshape(8, -1)) - np.eye(8)).max() < 5 / np.sqrt(3 * size**2)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "one", [1]])
def test_a_seed_that_is_none_is_an_error(seed):
    with pytest.raises(InputError, match="seed="):
        seeded_normal(seed, 0, 1, (3, 8, 9), FIRST)


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 300, 401), (0, 4), ()])
def test_noise_of_a_key_is_standard_normal_and_another_for_each_key(shape):
    noise = keyed_normal(2**61, shape)
    assert (noise.shape, noise.dtype) == (shape, np.float32)
    if noise.size > 1:
        assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
        assert stats.kstest(noise.ravel()[-200:], "norm").pvalue > 0.01
        limit = 4 / np.sqrt(noise.size)  # standard deviations
        assert abs(np.corrcoef(noise.ravel(), keyed_normal(2**61 + 1, shape).ravel())[0, 1]) < limit
