"""Code written for pytorch-grad-cam gives the same here, with another import line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.compat.grad_cam_scenes import scenes

# Made by grad_cam_scenes.py, which tells how.
RECORD = Path(__file__).parents[1] / "data" / "grad_cam_scenes_1_5_7.npz"


@pytest.fixture(scope="module")
def found():
    return scenes("iba_torch.compat.grad_cam")


def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORD, allow_pickle=False) as file:
        return dict(file)


EXPECTED = recorded()


@pytest.mark.parametrize("name", EXPECTED)
def test_as_published(found, name):
    expected = EXPECTED[name]
    assert found[name].shape == expected.shape
    if expected.dtype == np.uint8:
        # An entry of a colour map may be the next one, and a sum is rounded to the next number.
        assert np.abs(found[name].astype(int) - expected).max() <= 2
    else:
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=2e-5)
