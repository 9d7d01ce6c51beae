"""Capacity to saliency: bits are kept whatever the size, and resizing is bilinear."""

from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from iba_core import InputError, to_saliency_map
from iba_core.bottleneck.saliency import resize_maps, saliency_maps, to_bits
from iba_core.framework.layout import Layout, Tokens

RNG = np.random.default_rng(0)


def test_one_bit_is_log_two_nats():
    assert to_bits(np.log(2.0)) == pytest.approx(1.0)


def test_worked_map():
    capacity = np.log(2.0) * np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    np.testing.assert_allclose(to_saliency_map(capacity), [[4.0, 6.0]])


@pytest.mark.parametrize("shape", [(7, 9), (224, 224), (33, 50), (3, 4), (7, 5)])
def test_the_sum_of_a_map_is_the_total_of_the_bits(shape):
    capacity = RNG.exponential(size=(5, 7, 9)).astype(np.float32)
    saliency = to_saliency_map(capacity, shape)
    assert saliency.shape == shape
    assert saliency.sum(dtype=np.float64) == pytest.approx(
        capacity.sum(dtype=np.float64) / np.log(2), rel=1e-5
    )


def test_resizing_is_pillows_bilinear():
    capacity = RNG.exponential(size=(1, 6, 5))
    expected = np.asarray(
        Image.fromarray(capacity[0].astype(np.float32)).resize((40, 36), Image.Resampling.BILINEAR)
    )
    found = to_saliency_map(capacity, (36, 40))
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_maps_keep_their_precision(dtype):
    maps = resize_maps(np.array([[0, 1], [2, 4]], dtype), (4,))
    assert maps.dtype == dtype
    np.testing.assert_array_equal(maps, [[0, 0.25, 0.75, 1], [2, 2.5, 3.5, 4]])


def test_no_images_give_no_maps():
    assert resize_maps(np.empty((0, 2, 3), np.float32), (4, 6)).shape == (0, 4, 6)


def test_resizing_leaves_no_thread_at_work():
    # A thread that spins while it waits would take a core from the work that comes next.
    maps = np.ones((1, 14, 14), np.float32)
    resize_maps(maps, (224, 224))
    time.sleep(0.2)
    resize_maps(maps, (224, 224))
    start = time.process_time()
    time.sleep(0.02)
    assert time.process_time() - start < 0.01


def test_data_formats_agree():
    capacity = RNG.exponential(size=(4, 6, 5))
    last = to_saliency_map(capacity.transpose(1, 2, 0), (30, 20), data_format="channels_last")
    np.testing.assert_allclose(last, to_saliency_map(capacity, (30, 20)))


@pytest.mark.parametrize(("shape", "to"), [((4,), None), ((4, 9), (18,)), ((2, 3, 4, 5), (6, 8, 10))])
def test_any_number_of_spatial_axes(shape, to):
    capacity = RNG.exponential(size=shape)
    saliency = to_saliency_map(capacity, to)
    assert saliency.shape == (to or ())
    assert saliency.sum() == pytest.approx(capacity.sum() / np.log(2))


def test_each_image_of_a_batch_keeps_its_own_bits():
    capacity = RNG.exponential(size=(3, 4, 6, 5)) * np.array([1.0, 0.0, 100.0])[:, None, None, None]
    maps = saliency_maps(capacity, Layout.of((4, 6, 5), "channels_first"), (12, 10))
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), capacity.sum(axis=(1, 2, 3)) / np.log(2))
    for one, whole in zip(capacity, maps, strict=True):
        np.testing.assert_allclose(to_saliency_map(one, (12, 10)), whole)


def test_integers_are_accepted():
    np.testing.assert_allclose(to_saliency_map([[[1, 1]]], (1, 4)).sum(), 2 / np.log(2))


@pytest.mark.parametrize("shape", [(10,), (10, 10, 10), (0, 10)])
def test_a_shape_that_does_not_fit_is_an_error(shape):
    with pytest.raises(InputError, match=r"shape=.* must be \(height, width\), whole numbers"):
        to_saliency_map(np.ones((2, 3, 4)), shape)
    with pytest.raises(InputError, match="data_format='NCHW'"):
        to_saliency_map(np.ones((2, 3, 4)), data_format="NCHW")


def test_tokens_fold_into_their_grid():
    capacity = RNG.exponential(size=(1, 13, 4))
    layout = Layout.of((13, 4), "channels_last", Tokens(prefix=1, grid=(3, 4)))
    maps = saliency_maps(capacity, layout)
    np.testing.assert_allclose(maps[0], capacity[0, 1:].sum(axis=1).reshape(3, 4) / np.log(2))
    assert saliency_maps(capacity, layout, (30, 40)).sum() == pytest.approx(maps.sum())
