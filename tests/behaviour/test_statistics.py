"""Statistics that know what they are worth: halves, settling, and the model that they belong to."""

import copy
import warnings

import numpy as np
import pytest

from iba_core import Explainer, InputError, NotEstimatedError, StateError, WelfordEstimator
from iba_core.bottleneck.estimator import STATE
from iba_core.framework.adapter import Split
from iba_core.state import read_state, write_state
from tests.backends import SIZE, SMALL, SMALL_LAYER, smooth_images


def batches(backend, sizes=(1, 4, 3, 8), seed=0):
    x = backend.images(smooth_images(sum(sizes), seed=seed))
    ends = np.cumsum(sizes)
    return [x[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def fitted(backend, parts, **options):
    explainer = Explainer(backend.small(), SMALL_LAYER, steps=3, samples=2, beta=1.0)
    return explainer.fit(parts, progbar=False, **options)


def test_either_half_of_the_data_is_known_and_their_merger_is_the_whole(backend, tmp_path):
    parts = batches(backend)
    explainer = fitted(backend, parts)
    features = explainer.adapter.split(SMALL_LAYER).features(
        explainer.adapter.to_inputs(np.concatenate(parts))
    )
    features = backend.to_numpy(features)
    np.testing.assert_allclose(explainer.estimator.mean(), features.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        explainer.estimator.std(), features.std(axis=0, ddof=1), rtol=1e-10, atol=1e-12
    )
    explainer.save(tmp_path / "stats.safetensors")
    arrays, _ = read_state(tmp_path / "stats.safetensors", "estimator")
    halves = [{name: arrays[f"{half}.{name}"] for name in STATE} for half in ("first", "second")]
    assert [int(half["n_samples"]) for half in halves] == [8, 8]
    merged = WelfordEstimator()
    for half in halves:
        estimator = WelfordEstimator()
        estimator.load_state_dict(half)
        merged.merge(estimator)
    for name, value in merged.state_dict().items():
        np.testing.assert_array_equal(value, arrays[name])


def test_the_error_of_the_bits_is_half_the_difference_between_the_halves(backend, tmp_path):
    explainer, x = fitted(backend, batches(backend)), backend.images(smooth_images(3, seed=9))
    with pytest.warns(UserWarning, match="16 samples, the bits have a standard error of .* are advised"):
        error = explainer.bits_error(x)
    explainer.save(tmp_path / "stats.safetensors")
    arrays, _ = read_state(tmp_path / "stats.safetensors", "estimator")
    bits = []
    for half in ("first", "second"):
        estimator = WelfordEstimator()
        estimator.load_state_dict({name: arrays[f"{half}.{name}"] for name in STATE})
        alone = Explainer(backend.small(), SMALL_LAYER, estimator=estimator, steps=3, samples=2, beta=1.0)
        bits.append(alone.explain(x, seed=0).total_bits)
    expected = np.abs(bits[0] - bits[1]) / 2 / np.mean(bits, axis=0)
    np.testing.assert_allclose(error, expected, rtol=1e-4)
    assert (error > 0).all()
    warnings.simplefilter("ignore")
    loaded = Explainer(backend.small(), SMALL_LAYER, steps=3, samples=2, beta=1.0)
    for again in (loaded.load(tmp_path / "stats.safetensors"), copy.deepcopy(explainer)):
        np.testing.assert_allclose(again.bits_error(x), error, rtol=1e-6)


def test_halves_that_are_not_of_the_statistics_do_not_count(backend, tmp_path):
    explainer, x = fitted(backend, batches(backend)), backend.images(smooth_images(1))
    explainer.save(tmp_path / "stats.safetensors")
    arrays, facts = read_state(tmp_path / "stats.safetensors", "estimator")
    write_state(
        tmp_path / "mixed.safetensors", {**arrays, "first.mean": arrays["mean"] + 1}, "estimator", facts
    )
    with pytest.raises(StateError, match="halves are not those of the whole"):
        explainer.load(tmp_path / "mixed.safetensors")
    old = {name: arrays[name] for name in STATE}
    write_state(tmp_path / "old.safetensors", old, "estimator", {"layer": SMALL_LAYER})
    explainer.load(tmp_path / "old.safetensors").explain(x)
    with pytest.raises(NotEstimatedError, match="at least 4"):
        explainer.bits_error(x)
    with pytest.raises(NotEstimatedError, match="at least 4"):
        fitted(backend, batches(backend, (3,))).bits_error(x)


def test_fitting_stops_once_the_bits_have_settled(backend):
    taken = []

    def endless():
        for number in range(100):
            taken.append(number)
            yield backend.images(smooth_images(16, seed=number))

    explainer = fitted(backend, endless(), until=0.9)
    assert (explainer.estimator.n_samples(), len(taken)) == (64, 4)
    with pytest.warns(UserWarning, match=r"32 samples, the bits have a standard error .* 1e-06 %; about"):
        explainer = fitted(backend, endless(), n_samples=32, until=1e-8)
    assert explainer.estimator.n_samples() == 32
    with pytest.raises(InputError, match="until=2 must be"):
        fitted(backend, endless(), until=2)
    with pytest.raises(InputError, match="target=9 is outside"):
        fitted(backend, endless(), until=0.5, target=9)


def test_statistics_of_another_model_are_told_apart(backend, tmp_path):
    path = tmp_path / "stats.safetensors"
    fitted(backend, batches(backend)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Explainer(backend.small("float32")).load(path)
        again.save(tmp_path / "again.safetensors")
        Explainer(backend.small()).load(tmp_path / "again.safetensors")
    other = backend.network((SIZE, SIZE, 3), SMALL, seed=3)
    for file in (path, tmp_path / "again.safetensors"):
        with pytest.warns(UserWarning, match="are of another model: at layer 'second'"):
            Explainer(other).load(file)


def test_to_save_runs_nothing_of_the_model(backend, tmp_path, monkeypatch):
    """So that it does no harm in a child of a process, or while the model is trained."""
    explainer = fitted(backend, batches(backend))

    def fails(*given, **options):
        raise AssertionError("the model runs")

    with monkeypatch.context() as patched:
        patched.setattr(Split, "features", fails)
        explainer.save(tmp_path / "stats.safetensors")
    loaded = Explainer(backend.small(), SMALL_LAYER).load(tmp_path / "stats.safetensors")
    loaded.save(tmp_path / "again.safetensors")
    (arrays, facts), (other, again) = (
        read_state(tmp_path / f"{name}.safetensors", "estimator") for name in ("stats", "again")
    )
    assert facts["probe"]
    assert facts == again
    assert arrays.keys() == other.keys()
