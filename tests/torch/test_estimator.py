"""`TorchWelfordEstimator` against NumPy on the whole array, and as the module that it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from iba_core import InputError, NotEstimatedError
from iba_torch import TorchWelfordEstimator


def assert_is_that_of(estimator, array, rtol=1e-10):
    assert estimator.n_samples() == len(array)
    np.testing.assert_allclose(estimator.mean(), array.mean(0), rtol=rtol, atol=1e-14)
    np.testing.assert_allclose(estimator.std(), array.std(0, ddof=1), rtol=rtol, atol=1e-14)
    np.testing.assert_array_equal(estimator.active_neurons(0.3), (array != 0).mean(0) > 0.3)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
    seed=st.integers(0, 2**16),
)
def test_any_split_gives_the_moments_of_the_whole(sizes, offset, seed):
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(sum(sizes), 2, 3)) + offset
    array *= rng.random(array.shape) > 0.5
    parts = np.split(array, np.cumsum(sizes)[:-1])
    one, merged = TorchWelfordEstimator(), TorchWelfordEstimator(2, 3)
    for part in parts:
        x = torch.from_numpy(part)
        assert one(x) is x
        other = TorchWelfordEstimator()
        other(x)
        merged.merge(other)
    assert_is_that_of(one, array)
    assert_is_that_of(merged, array)


def test_float32_features_are_summed_in_float64():
    array = (np.random.default_rng(0).normal(size=(1000, 4)) + 3e3).astype(np.float32)
    estimator = TorchWelfordEstimator()
    for part in np.split(array, 10):
        estimator(torch.from_numpy(part))
    assert estimator.mean().dtype == estimator.std().dtype == torch.float32
    np.testing.assert_allclose(estimator.std(), array.astype(float).std(0, ddof=1), rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_features_of_other_dtypes(dtype):
    x = torch.arange(12).reshape(4, 3).to(dtype)
    estimator = TorchWelfordEstimator()
    assert estimator(x) is x
    assert estimator.mean().dtype == torch.float32
    np.testing.assert_allclose(estimator.mean(), np.arange(12).reshape(4, 3).mean(0))


def test_it_stands_in_a_model_without_changing_it():
    estimator = TorchWelfordEstimator()
    model = nn.Sequential(nn.Linear(3, 3), estimator, nn.Linear(3, 2)).double()
    x = torch.randn(5, 3).double()
    loss = model(x).sum()
    loss.backward()
    assert model[0].weight.grad is not None
    assert estimator.n_samples() == 5
    assert not any(buffer.requires_grad for buffer in estimator.buffers())
    with torch.inference_mode():
        model(x)
    model(x)
    assert estimator.n_samples() == 15


def test_half_precision_takes_nothing_from_the_sums():
    array = np.random.default_rng(0).normal(size=(50, 3)) + 100
    estimator = TorchWelfordEstimator()
    estimator(torch.from_numpy(array[:20]))
    nn.Sequential(estimator).half().float()
    estimator(torch.from_numpy(array[20:]))
    assert_is_that_of(estimator.double(), array)


def test_it_moves_between_devices():
    estimator = TorchWelfordEstimator()
    estimator(torch.randn(4, 3))
    assert all(buffer.is_meta for buffer in estimator.to("meta").buffers())


class NoReading(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises when a number is read from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read"
        return func(*args, **(kwargs or {}))


def test_a_batch_reads_nothing_from_the_device():
    estimator = TorchWelfordEstimator()
    with NoReading():
        for _ in range(3):
            estimator(torch.randn(4, 3))
    with pytest.raises(AssertionError, match="a number was read"), NoReading():
        estimator.n_samples()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_makes_the_round_trip(tmp_path, dtype):
    estimator = TorchWelfordEstimator()
    x = torch.randn(7, 2, 3, dtype=dtype)
    estimator(x[:4])
    save_file(estimator.state_dict(), tmp_path / "state.safetensors")
    other = TorchWelfordEstimator()
    other(torch.randn(3, 9))
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert other.mean().dtype == dtype
    for either in (estimator, other):
        either(x[4:])
        assert_is_that_of(either, x.double().numpy(), 1e-10 if dtype == torch.float64 else 1e-6)
    empty = TorchWelfordEstimator()
    empty.load_state_dict(TorchWelfordEstimator().state_dict())
    empty(x)
    assert empty.n_samples() == 7


def test_reset_keeps_a_shape_that_was_given_and_no_other():
    given, seen = TorchWelfordEstimator(3), TorchWelfordEstimator()
    for estimator in (given, seen):
        estimator(torch.randn(4, 3))
        estimator.reset()
        assert estimator.n_samples() == 0
    with pytest.raises(InputError, match=r"\(4, 5\), the estimator takes \(batch, 3\)"):
        given(torch.randn(4, 5))
    x = torch.randn(4, 5)
    seen(x)
    torch.testing.assert_close(seen.std(), x.std(0))


def test_wrong_uses():
    estimator = TorchWelfordEstimator()
    with pytest.raises(InputError, match=r"x has shape \(4,\)"):
        estimator(torch.zeros(4))
    for method in (estimator.mean, estimator.std, estimator.active_neurons):
        with pytest.raises(NotEstimatedError, match="has seen 0 samples"):
            method()
    estimator(torch.zeros(1, 3))
    with pytest.raises(NotEstimatedError, match="has seen 1 samples, at least 2"):
        estimator.std()
    other = TorchWelfordEstimator()
    other(torch.zeros(1, 4))
    with pytest.raises(InputError, match=r"shape \(4,\), and this estimator of \(3,\)"):
        estimator.merge(other)
