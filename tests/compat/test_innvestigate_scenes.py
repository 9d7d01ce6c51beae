"""Code written for innvestigate's analyzers gets the same shapes, kinds and errors here."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from tests.compat.innvestigate_scenes import scenes

# Made by innvestigate_scenes.py, which tells how.
RECORD = Path(__file__).parents[1] / "data" / "innvestigate_scenes_2_1_2.npz"


def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORD, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def found():
    return scenes("iba_tf.compat.innvestigate", keras, "iba", feature_name="conv", steps=1, batch_size=2)


def test_as_published(found):
    expected = recorded()
    assert set(found) == set(expected)
    for name, value in expected.items():
        if name.endswith(".error") or name in ("unknown", "mode"):
            # Every error here can be caught as one of a model that cannot be analysed, too.
            assert str(found[name]).removesuffix(" NotAnalyzeableModelException") == value, name
        elif value.dtype.kind == "f":
            np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
