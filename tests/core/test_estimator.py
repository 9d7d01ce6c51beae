"""The estimator against NumPy on the whole array."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from iba_core import InputError, NotEstimatedError, StateError, WelfordEstimator

SAMPLES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(2, 30), st.integers(1, 3), st.integers(1, 4)),
    elements=st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-3 else v),
)


def assert_equals_numpy(estimator: WelfordEstimator, x: np.ndarray) -> None:
    assert estimator.n_samples() == len(x)
    scale = np.abs(x).max(axis=0)
    np.testing.assert_allclose(estimator.mean(), x.mean(axis=0), rtol=1e-10, atol=1e-10 * scale.max())
    np.testing.assert_allclose(estimator.std(), x.std(axis=0, ddof=1), rtol=1e-10, atol=1e-10 * scale.max())
    np.testing.assert_array_equal(estimator.active_neurons(0.25), (x != 0).mean(axis=0) > 0.25)


@settings(max_examples=60, deadline=None)
@given(x=SAMPLES, data=st.data())
def test_any_split_gives_numpys_result(x, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=5)))
    estimator = WelfordEstimator()
    for batch in np.split(x, places):
        estimator.fit(batch)
    assert_equals_numpy(estimator, x)


@settings(max_examples=60, deadline=None)
@given(x=SAMPLES, data=st.data())
def test_any_tree_of_merges_gives_numpys_result(x, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=5)))
    parts = []
    for batch in np.split(x, places):
        parts.append(WelfordEstimator(*x.shape[1:]))
        parts[-1].fit(batch)
    while len(parts) > 1:
        into = data.draw(st.integers(0, len(parts) - 2))
        parts[into].merge(parts.pop(into + 1))
    assert_equals_numpy(parts[0], x)


def test_small_spread_about_a_large_mean_is_kept():
    x = 1e6 + np.random.default_rng(0).normal(size=(1000, 2, 2))
    estimator = WelfordEstimator()
    for batch in np.split(x, 50):
        estimator.fit(batch)
    np.testing.assert_allclose(estimator.std(), x.std(axis=0, ddof=1), rtol=1e-9)


def test_worked_numbers():
    estimator = WelfordEstimator(2)
    assert estimator([[1.0, 0.0], [3.0, 0.0]]) == [[1.0, 0.0], [3.0, 0.0]]
    estimator.fit([[5.0, 9.0]])
    assert estimator.n_samples() == 3
    np.testing.assert_allclose(estimator.mean(), [3.0, 3.0])
    np.testing.assert_allclose(estimator.std(), [2.0, 27**0.5])
    np.testing.assert_array_equal(estimator.active_neurons(1 / 3), [True, False])
    assert estimator.mean().dtype == estimator.std().dtype == np.float64


def test_half_precision_and_integers_are_accumulated_in_float64():
    x = np.full((4096, 3), 2049, np.float16)
    estimator = WelfordEstimator()
    estimator.fit(x)
    np.testing.assert_array_equal(estimator.mean(), np.full(3, float(np.float16(2049))))
    estimator = WelfordEstimator()
    estimator.fit(np.arange(6).reshape(3, 2))
    np.testing.assert_array_equal(estimator.mean(), [2, 3])


def test_fit_leaves_its_input_alone_and_results_are_copies():
    x = np.arange(6.0).reshape(3, 2)
    kept = x.copy()
    estimator = WelfordEstimator()
    estimator.fit(x)
    estimator.mean()[:] = 99
    estimator.state_dict()["mean"][:] = 99
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(estimator.mean(), [2, 3])


def test_reset_forgets_the_samples():
    estimator = WelfordEstimator(2)
    estimator.fit(np.ones((4, 2)))
    estimator.reset()
    assert estimator.n_samples() == 0
    assert estimator.shape == (2,)
    seen = WelfordEstimator()
    seen.fit(np.ones((4, 2)))
    seen.reset()
    seen.fit(np.ones((4, 3)))
    assert seen.mean().shape == (3,)


def test_state_round_trips_through_dict_and_file(tmp_path):
    x = np.random.default_rng(1).normal(size=(9, 2, 3))
    estimator = WelfordEstimator()
    estimator.fit(x)
    again = WelfordEstimator()
    again.load_state_dict(estimator.state_dict())
    estimator.save(tmp_path / "state.safetensors", {"layer": "conv"})
    loaded = WelfordEstimator.load(tmp_path / "state.safetensors")
    more = np.random.default_rng(2).normal(size=(5, 2, 3))
    for one in (again, loaded):
        one.fit(more)
        assert_equals_numpy(one, np.concatenate([x, more]))


def test_wrong_uses_are_named():
    estimator = WelfordEstimator(3, 4)
    for call in (estimator.mean, estimator.std, estimator.active_neurons, estimator.state_dict):
        with pytest.raises(NotEstimatedError, match="seen 0 samples"):
            call()
    with pytest.raises(InputError, match=r"\(2, 4, 3\).*\(batch, 3, 4\)"):
        estimator.fit(np.ones((2, 4, 3)))
    with pytest.raises(InputError, match="NaN or infinite"):
        estimator.fit(np.full((2, 3, 4), np.nan))
    assert estimator.n_samples() == 0
    estimator.fit(np.ones((1, 3, 4)))
    with pytest.raises(NotEstimatedError, match="seen 1 samples, at least 2"):
        estimator.std()
    other = WelfordEstimator()
    other.fit(np.ones((2, 5)))
    with pytest.raises(InputError, match=r"other is .*\(5,\).*\(3, 4\)"):
        estimator.merge(other)
    with pytest.raises(StateError, match="lacks m2, nonzero"):
        estimator.load_state_dict({"n_samples": 1, "mean": [0.0]})
    with pytest.raises(StateError, match="must be equal"):
        estimator.load_state_dict({"n_samples": 2, "mean": [0.0], "m2": [0.0, 1.0], "nonzero": [0.0]})
