"""One mask that several layers share."""

import copy
import pickle

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit, log_softmax

from iba_core import (
    Attribution,
    BottleneckSettings,
    CombinedAttribution,
    Explainer,
    InputError,
    Statistics,
)
from iba_core.bottleneck.noise import seeded_normal
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.bottleneck.shared import Part, SharedMask
from iba_core.framework.adapter import find_adapter
from iba_core.framework.layout import Layout
from iba_core.targets import cross_entropy
from tests.backends import (
    SMALL_LAYER,
    Activation,
    Conv,
    Dense,
    Flatten,
    Turn,
    both_backends,
    draw_weights,
    output_shape,
    smooth_images,
)

SHAPE = (13, 10, 3)
NET = (
    Conv("fine", 4, strides=2),
    Conv("fine2", 5),
    Activation("act", "tanh"),
    Conv("coarse", 6, strides=2),
    Activation("coarse_act", "tanh"),
    Flatten(),
    Dense("logits", 4),
)
"""Features of (7, 5) places up to `act`, then of (4, 3)."""

LAYERS = ["fine2", "coarse"]
SETTINGS = {"steps": 5, "samples": 2, "beta": 0.1}
RNG = np.random.default_rng(3)
X = RNG.normal(size=(3, *SHAPE))


def explainer_of(backend, layers=LAYERS, net=NET, shape=SHAPE, **settings):
    model = backend.network(shape, net, dtype="float64")
    explainer = Explainer(model, layers, **{"combine": "shared", **SETTINGS, **settings})
    x = np.random.default_rng(1).normal(size=(12, *shape))
    return explainer.fit(backend.images(x), progbar=False)


@pytest.fixture(scope="module")
def found(backend):
    """An explainer of two layers, its images, and their explanation."""
    explainer, x = explainer_of(backend), backend.images(X)
    return explainer, x, explainer.explain(x, seed=0)


# -- the objective ------------------------------------------------------------------------------------


class Plain:
    """A layer, with all that a bottleneck does there written out, its tail a network of its own."""

    def __init__(self, backend, layers, shape, layer, x):
        weights, end = draw_weights(layers, shape), [each.name for each in layers].index(layer) + 1
        for each in layers[:end]:
            shape = output_shape(each, shape)
        self.backend, self.layer, self.shape = backend, layer, shape
        head = backend.network(x.shape[1:], layers[:end], dtype="float64", weights=weights)
        self.tail = backend.network(shape, layers[end:], dtype="float64", weights=weights)
        self.features = backend.channels_last(backend.to_numpy(head(backend.asarray(backend.images(x)))))
        generator = np.random.default_rng(5)
        self.mean, self.std = generator.normal(size=shape), generator.uniform(0.5, 2, size=shape)

    @property
    def statistics(self):
        move = [self.backend.images(each[None])[0] for each in (self.mean, self.std)]
        return Statistics(*move, np.ones(move[0].shape, bool))

    def mask(self, alpha):
        """(B, H, W, 1): each place is the mean of the part of alpha that it covers, then smoothed."""
        passed = expit(alpha)
        for axis in (1, 2):
            size, wanted = alpha.shape[axis], self.shape[axis - 1]
            parts = np.moveaxis(passed.repeat(wanted, axis), axis, -1)
            passed = np.moveaxis(parts.reshape(*parts.shape[:-1], wanted, size).mean(axis=-1), -1, axis)
            passed = gaussian_filter1d(passed, 1.0, axis=axis, mode="mirror", radius=2)
        return passed[..., None]

    def objective(self, alpha, noise, classes, beta):
        """Of each image, (B,)."""
        passed, r = self.mask(alpha), self.features
        variance, signal = (1 - passed) ** 2, passed * (r - self.mean) / self.std
        nats = (variance + signal**2 - 1 - np.log(variance)) / 2
        losses = []
        for n in noise:
            z = passed * r + (1 - passed) * (self.mean + self.std * n)
            logits = self.backend.to_numpy(self.tail(self.backend.asarray(self.backend.images(z))))
            losses.append(-log_softmax(logits, axis=1)[np.arange(len(z)), classes])
        return np.mean(losses, axis=0) + beta * nats.mean(axis=(1, 2, 3))


def test_the_gradient_is_that_of_the_mean_objective(backend):
    """Against differences of the objective, along axes and in random directions."""
    beta, seed, step, classes = 2.0, 7, 1, np.array([0, 2, 3])
    adapter, settings = (
        find_adapter(backend.network(SHAPE, NET, dtype="float64")),
        BottleneckSettings(beta=beta, samples=4),
    )
    inputs, layers = (
        adapter.to_inputs(backend.images(X)),
        [Plain(backend, NET, SHAPE, name, X) for name in LAYERS],
    )
    alpha = RNG.normal(size=(3, 7, 5))
    first, second = (adapter.split(layer.layer) for layer in layers)
    with first.head(inputs) as fine, second.head(inputs) as coarse:
        parts = []
        for layer, tail in zip(layers, (fine.in_memory_order(), coarse.in_memory_order()), strict=True):
            layout = Layout.of(layer.statistics.mean.shape, backend.data_format)
            layout = layout if tail.axes is None else layout.permuted(tail.axes)
            optimizer = BottleneckOptimizer(adapter.framework, cross_entropy, layout)
            rows = (backend.asarray(classes),)
            parts.append(Part(optimizer, tail, layer.statistics, rows, backend.asarray(np.zeros(3))))
        shared = SharedMask(parts, settings)
        assert shared.grid == (7, 5)
        gradient, reports = shared.gradient(backend.asarray(alpha), step, seed, max_batch=6)
    noises = [
        seeded_normal(seed, step, 4, layer.shape, Layout.of(layer.shape, "channels_last")) for layer in layers
    ]

    def objective(alpha):
        each = [
            layer.objective(alpha, noise, classes, beta) for layer, noise in zip(layers, noises, strict=True)
        ]
        return np.mean(each, axis=0)

    values = [backend.to_numpy(report.model_loss + report.information) for report in reports]
    np.testing.assert_allclose(np.mean(values, axis=0), objective(alpha), rtol=1e-9)
    directions = RNG.normal(size=(6, *alpha.shape)) * np.eye(3).repeat(2, axis=0)[:, :, None, None]
    for direction in directions:
        difference = (objective(alpha + 1e-5 * direction) - objective(alpha - 1e-5 * direction)) / 2e-5
        along = (backend.to_numpy(gradient) * direction).sum(axis=(1, 2))
        np.testing.assert_allclose(along, difference, rtol=1e-6, atol=1e-9)


def test_the_mask_is_one_map_of_places_at_all_layers(backend, found):
    combined = found[2]
    fine, coarse = (backend.channels_last(part.mask) for part in combined.parts)
    assert fine.shape == (3, 7, 5, 5)
    assert coarse.shape == (3, 4, 3, 6)
    for mask in (fine, coarse):
        np.testing.assert_array_equal(mask, mask[..., :1].repeat(mask.shape[-1], axis=-1))
    assert fine.std() > 0.01


def test_without_smoothing_the_coarse_mask_averages_the_fine_one(backend, found):
    explainer, x, _ = found
    found = explainer.explain(x, seed=0, smooth_std=0)
    fine, coarse = (backend.channels_last(part.mask)[..., 0] for part in found.parts)
    rows = fine.repeat(4, axis=1).reshape(3, 4, 7, 5).mean(axis=2)
    expected = rows.repeat(3, axis=2).reshape(3, 4, 3, 5).mean(axis=3)
    np.testing.assert_allclose(coarse, expected, rtol=1e-12)


def test_layers_with_the_same_places_have_the_same_mask(backend):
    found = explainer_of(backend, ["fine", "fine2"]).explain(backend.images(X), seed=0)
    one, other = (backend.channels_last(part.mask)[..., 0] for part in found.parts)
    np.testing.assert_array_equal(one, other)


# -- the result ---------------------------------------------------------------------------------------


def test_the_map_is_the_mean_of_the_layers_shares(backend, found):
    combined = found[2]
    assert isinstance(combined, CombinedAttribution)
    assert combined.combine == "shared"
    assert "mean of the maps with one mask" in repr(combined)
    again = CombinedAttribution(combined.parts, "mean")
    np.testing.assert_array_equal(combined.saliency, again.saliency)
    np.testing.assert_allclose(combined.saliency.sum(axis=(1, 2)), combined.total_bits, rtol=1e-5)
    for part, name in zip(combined.parts, LAYERS, strict=True):
        assert part.layer == name
        assert part.model_losses.shape == (5, 3)
        assert part.survival.shape == (3,)
    assert not np.array_equal(*(part.model_losses for part in combined.parts))


def test_a_batch_gives_what_its_images_give(backend, found):
    explainer, x, combined = found
    for index in range(3):
        alone = explainer.explain(x[index : index + 1], seed=0)
        for part, own in zip(combined.parts, alone.parts, strict=True):
            np.testing.assert_allclose(part.capacity[index], own.capacity[0], rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(part.survival[index], own.survival[0], rtol=1e-6)
    bounded = explainer.explain(x, seed=0, max_batch=2)
    np.testing.assert_allclose(bounded.saliency, combined.saliency, rtol=1e-6, atol=1e-9)


def test_both_frameworks_give_one_map():
    maps, bits = [], []
    for backend in both_backends():
        found = explainer_of(backend).explain(backend.images(X), seed=0)
        maps.append(found.saliency)
        bits.append([part.total_bits for part in found.parts])
    np.testing.assert_allclose(*maps, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(*bits, rtol=1e-6)


@pytest.fixture(scope="module")
def sure(backend):
    """An explainer whose answers are lost on too few bits, and images."""
    explainer = Explainer(backend.small(), ["act", SMALL_LAYER], combine="shared", steps=12, samples=4)
    batches = (backend.images(smooth_images(4, seed=i)) for i in range(5))
    return explainer.fit(batches, progbar=False), backend.images(smooth_images(3))


@pytest.mark.filterwarnings("ignore:.*do not explain their target")
def test_a_step_is_taken_back_where_the_mean_loss_rises(sure):
    """One step that is far too long."""
    explainer, x = sure
    start = explainer.explain(x, seed=0, steps=1, learning_rate=0.0)
    free = explainer.explain(x, seed=0, steps=1, learning_rate=6.0)
    # What measures survival after one step is also the noise of a second step.
    two = explainer.explain(x, seed=0, steps=2, learning_rate=6.0)
    rises = np.stack([part.model_losses[1] - part.model_losses[0] for part in two.parts])
    for most in (1.0, 1.8):
        rose = rises.mean(axis=0) > most
        guarded = explainer.explain(x, seed=0, steps=1, learning_rate=6.0, max_rise=most)
        for part, back, on in zip(guarded.parts, start.parts, free.parts, strict=True):
            np.testing.assert_allclose(part.capacity[rose], back.capacity[rose], rtol=1e-6)
            np.testing.assert_allclose(part.survival[rose], back.survival[rose], rtol=1e-5)
            np.testing.assert_allclose(part.capacity[~rose], on.capacity[~rose], rtol=1e-6)
        # One of the layers alone would decide otherwise.
        assert (rose != (rises > most)).any()


def test_an_automatic_beta_keeps_the_target_at_each_layer(sure):
    """And no more of it than is asked for."""
    explainer, x = sure
    with pytest.warns(UserWarning, match="2 of 3 maps do not explain their target"):
        lost = explainer.explain(x, seed=0, beta=3.0)
    found = explainer.explain(x, seed=0, beta=3.0, keep=0.8)
    assert (lost.survival < 0.6).all()
    assert ((found.survival > 0.8 - 1e-6) & (found.survival < 0.9)).all()
    assert (found.betas < 3.0).all()
    open_wide = explainer.explain(x, seed=0, beta=0.1)
    assert (found.total_bits < open_wide.total_bits / 2).all()
    free = explainer.explain(x, seed=0, beta=0.0, keep=0.8)
    assert (free.betas == 0).all()
    assert (free.survival > 0.8 - 1e-6).all()


@pytest.mark.filterwarnings("ignore:.*do not explain their target")
def test_an_automatic_beta_is_the_same_at_all_layers(sure):
    """In the first step after it has fallen, alpha is still that of a fixed beta."""
    explainer, x = sure
    fixed = explainer.explain(x, seed=0, beta=3.0, steps=12)
    found = explainer.explain(x, seed=0, beta=3.0, steps=12, keep=0.8)
    shares = np.stack(
        [a.informations / b.informations for a, b in zip(found.parts, fixed.parts, strict=True)]
    )
    first = (shares[0] < 1 - 1e-6).argmax(axis=0)
    assert (first > 0).all()
    one, other = shares[:, first, np.arange(3)]
    assert (one < 0.999).all()
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_it_is_saved_copied_and_iterated(backend, found, tmp_path):
    explainer, x, combined = found
    combined.save(tmp_path / "maps.safetensors")
    for again in (Attribution.load(tmp_path / "maps.safetensors"), pickle.loads(pickle.dumps(combined))):
        assert again.combine == "shared"
        np.testing.assert_array_equal(again.saliency, combined.saliency)
    np.testing.assert_array_equal(combined[1].saliency, combined.saliency[1:2])
    (again,) = copy.deepcopy(explainer).explain_iter([x], seed=0, progbar=False)
    np.testing.assert_array_equal(again.saliency, combined.saliency)
    np.testing.assert_array_equal(
        explainer.explain_seeds(x, seeds=2).attributions[0].saliency, combined.saliency
    )
    run = explainer.map({"one": x[0]}, tmp_path / "run", progbar=False, **SETTINGS)
    assert [record.error for record in run] == [None]


# -- what is refused ----------------------------------------------------------------------------------


def test_what_is_of_one_layer_is_refused(backend, found):
    explainer, x, _ = found
    model = backend.network(SHAPE, NET, dtype="float64")
    with pytest.raises(InputError, match=r"tolerance=0\.1 is about the map of one layer"):
        explainer.explain(x, tolerance=0.1)
    with pytest.raises(InputError, match=r"tolerance=0\.1 is about the map of one layer"):
        Explainer(model, LAYERS, combine="shared", tolerance=0.1)
    for layers in (["fine2"], "fine2"):
        with pytest.raises(InputError, match=r"is of several layers; layer=.* is one"):
            Explainer(model, layers, combine="shared")
    images = backend.images(smooth_images(4))
    chosen = Explainer(backend.small(), combine="shared").fit([images], progbar=False)  # it has no two
    with pytest.raises(InputError, match="is of several layers, and the explainer's is"):
        chosen.explain(images)
    with pytest.raises(InputError, match="pass_mask"):
        explainer.explain(x, pass_mask=np.zeros((7, 5, 5), bool))


@pytest.mark.parametrize(
    ("layers", "message"),
    [(["coarse", "logits"], "along the same axes"), (["flatten", "logits"], "with places")],
)
def test_layers_without_common_places_are_refused(backend, layers, message):
    explainer = explainer_of(backend, layers)
    with pytest.raises(InputError, match=message):
        explainer.explain(backend.images(X), seed=0)


def test_layers_with_exchanged_axes_are_refused(backend):
    net = (*NET[:2], Turn(), *NET[3:])
    explainer = explainer_of(backend, net=net)
    with pytest.raises(InputError, match="the model exchanges or reverses some"):
        explainer.explain(backend.images(X), seed=0)
