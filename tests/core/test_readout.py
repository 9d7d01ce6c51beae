"""The readout bottleneck's formulas, in every framework."""

from __future__ import annotations

import numpy as np
import pytest

from iba_core import BottleneckSettings, InputError, Statistics
from iba_core.bottleneck.resizing import resizing_matrix
from iba_core.framework.layout import Layout
from iba_core.readout.formulas import FeatureMap, Readout

torch = pytest.importorskip("torch", reason="the judge of the formulas")
functional = torch.nn.functional


@pytest.mark.parametrize(("size", "target"), [(4, 8), (8, 4), (5, 5), (1, 6), (7, 3), (6, 1)])
def test_axes_are_resized_linearly_between_the_centres(size, target):
    x = torch.randn(1, 1, size, dtype=torch.float64)
    expected = functional.interpolate(x, target, mode="linear", align_corners=False)[0, 0]
    np.testing.assert_allclose(resizing_matrix(size, target) @ x[0, 0].numpy(), expected, atol=1e-12)


def make_maps(data_format, **options):
    """A bottleneck with three channels, reading maps of other sizes and a dense layer."""
    shapes = [(3, 4, 6), (2, 8, 3), (5, 2, 2), (4,)]
    if data_format == "channels_last":
        shapes = [(*shape[1:], shape[0]) for shape in shapes]
    own, *layers = (FeatureMap(shape, Layout.of(shape, data_format)) for shape in shapes)
    return Readout(own, tuple(layers), **options)


@pytest.mark.parametrize("options", [{}, {"robust": True}, {"corners": True, "alpha_bound": 2.0}])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_alpha_is_the_networks_output_over_normalised_and_resized_features(framework, data_format, options):
    readout = make_maps(data_format, **options)
    robust, corners, bound = readout.robust, readout.corners, readout.alpha_bound
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in readout.weight_shapes]
    features = [generator.normal(size=(2, *layer.shape)) * 3 + 1 for layer in readout.readout_layers]
    tensor = framework.asarray
    statistics = [
        make_statistics(place.shape, generator) for place in (readout.bottleneck, *readout.readout_layers)
    ]
    constants = readout.constants(statistics[0], statistics[1:], BottleneckSettings(), tensor)
    found = framework.to_numpy(
        readout.alpha(list(map(tensor, weights)), list(map(tensor, features)), constants)
    )

    first = []
    for x, known, place in zip(features, statistics[1:], readout.readout_layers, strict=True):
        mean, std = known.mean, known.std
        if robust:
            # Mean and standard deviation of a channel, over all places.
            axes = place.layout.spatial_axes
            mean, square = (each.mean(axes, keepdims=True) for each in (mean, mean**2 + std**2))
            std = np.sqrt(square - mean**2)
        r = torch.from_numpy((x - mean) / std)
        first.append(3 * torch.tanh(r / 3) if robust else r)
    if data_format == "channels_last":
        first, found = [x.movedim(-1, 1) for x in first], np.moveaxis(found, -1, 1)
    resized = [
        functional.interpolate(
            x if x.ndim == 4 else x[:, :, None, None], (4, 6), mode="bilinear", align_corners=corners
        )
        for x in first
    ]
    x = torch.cat(resized, 1)
    for layer in range(3):
        weight, bias = (torch.from_numpy(each) for each in weights[2 * layer : 2 * layer + 2])
        x = functional.conv2d(functional.relu(x) if layer else x, weight[:, :, None, None], bias)
    if bound is not None:
        assert x.abs().max() > bound
        x = x.clamp(-bound, bound)
    np.testing.assert_allclose(found, x, atol=1e-12)


def make_statistics(shape, generator):
    return Statistics(generator.normal(size=shape), generator.uniform(0.5, 2, shape), np.ones(shape, bool))


def test_feature_maps_are_averaged_for_a_dense_bottleneck_and_refused_for_other_ranks():
    layer = FeatureMap((2, 4, 3), Layout.of((2, 4, 3), "channels_first"))
    readout = Readout(FeatureMap((5,), Layout.of((5,), "channels_first")), (layer,))
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in readout.weight_shapes]
    plain = [
        Statistics(np.zeros(shape), np.ones(shape), np.ones(shape, bool)) for shape in ((5,), layer.shape)
    ]
    constants = readout.constants(plain[0], plain[1:], BottleneckSettings(), np.asarray)
    x = generator.normal(size=(3, *layer.shape))
    hidden = x.mean((2, 3)) @ weights[0].T + weights[1]
    for weight, bias in (weights[2:4], weights[4:]):
        hidden = np.maximum(hidden, 0) @ weight.T + bias
    np.testing.assert_allclose(readout.alpha(weights, [x], constants), hidden)
    with pytest.raises(InputError, match=r"\(4, 3\).*\(6,\).*number of spatial axes"):
        Readout(FeatureMap((5, 6), Layout.of((5, 6), "channels_first")), (layer,))


def test_the_flow_is_restricted_by_a_mask(framework):
    """Active features are mixed with noise, inactive ones are 0, and what passes by order stays."""
    generator = np.random.default_rng(0)
    shape = (3, 4, 6)
    readout = Readout(
        make_maps("channels_first").bottleneck, make_maps("channels_first").readout_layers, relu=True
    )
    statistics = make_statistics(shape, generator)
    active = generator.random(shape) < 0.7
    statistics = Statistics(statistics.mean, statistics.std, active)
    layers = [make_statistics(layer.shape, generator) for layer in readout.readout_layers]
    settings = BottleneckSettings(smooth_std=None)
    tensor = framework.asarray
    constants = readout.constants(statistics, layers, settings, tensor)
    alpha, features, noise = generator.normal(size=(3, 2, *shape))
    passing = generator.random((2, *shape)) < 0.3
    restricted = readout.restrict(*map(tensor, (alpha, features, noise)), constants, tensor(passing))

    passed = 1 / (1 + np.exp(-alpha))
    mixed = passed * features + (1 - passed) * (statistics.mean + statistics.std * noise)
    z = np.maximum(np.where(passing, features, np.where(active, mixed, 0)), 0)
    np.testing.assert_allclose(framework.to_numpy(restricted.z), z, atol=1e-12)
    r = (features - statistics.mean) / statistics.std
    nats = -0.5 * (1 + 2 * np.log(1 - passed) - (r * passed) ** 2 - (1 - passed) ** 2)
    expected = np.where(active & ~passing, nats, 0)
    np.testing.assert_allclose(framework.to_numpy(restricted.capacity), expected, atol=1e-9)
