"""Batch normalisation as a scale and a shift, on numbers worked by hand."""

import numpy as np
import pytest

from iba_core.framework.normalization import scale_and_shift


@pytest.mark.parametrize(
    ("gamma", "beta", "bias", "expected"),
    [
        # The standard deviations are 2 and 3, the means 1 and -6.
        (None, None, None, ([0.5, 1 / 3], [-0.5, 2.0])),
        ([2.0, 3.0], None, None, ([1.0, 1.0], [-1.0, 6.0])),
        (None, [1.0, 1.0], None, ([0.5, 1 / 3], [0.5, 3.0])),
        ([2.0, 3.0], [1.0, 1.0], [5.0, 0.0], ([1.0, 1.0], [5.0, 7.0])),
    ],
)
def test_scale_and_shift(gamma, beta, bias, expected):
    arrays = (None if x is None else np.array(x) for x in (gamma, beta, bias))
    found = scale_and_shift(np.array([1.0, -6.0]), np.array([3.5, 8.5]), 0.5, *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
