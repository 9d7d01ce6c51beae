"""The published package IBA for PyTorch, by its names: what its users, tests and notebooks call.

`test_iba_torch_scenes.py` compares with recorded figures. Here, some more are worked out by PyTorch's own
optimiser and convolution.
"""

from __future__ import annotations

import copy
import pickle
from importlib import import_module

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from iba_core import WelfordEstimator
from iba_core.errors import InputError
from iba_torch import TorchWelfordEstimator
from iba_torch.compat.iba.pytorch import (
    IBA,
    get_imagenet_folder,
    imagenet_transform,
    insert_into_sequential,
    tensor_to_np_img,
    to_saliency_map,
)
from iba_torch.compat.iba.pytorch_readout import IBAReadout
from iba_torch.compat.iba.utils import plot_saliency_map, to_unit_interval

NAMES = {
    "pytorch": "IBA TorchWelfordEstimator to_saliency_map insert_into_sequential tensor_to_np_img "
    "imagenet_transform get_imagenet_folder plot_saliency_map get_tqdm ifnone",
    "pytorch_readout": "IBAReadout TorchWelfordEstimator",
    "utils": "WelfordEstimator get_tqdm ifnone to_unit_interval load_monkeys plot_saliency_map",
}


@pytest.fixture(scope="module", autouse=True)
def _without_a_window():
    mpl.use("agg")


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 5)).eval()


@pytest.fixture
def images():
    return torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def loss_of(net, target=2):
    return lambda x: -torch.log_softmax(net(x), 1)[:, target].mean()


def estimated(net, images, **options):
    iba = IBA(net[1], **options)
    iba.estimate(net, [(images, None)])
    return iba


@pytest.mark.parametrize("module", NAMES)
def test_the_published_names_are_in_the_published_modules(module):
    found = import_module(f"iba_torch.compat.iba.{module}")
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


def test_a_program_like_the_published_ones(net, images):
    iba = IBA(net[1])
    with torch.no_grad(), iba.interrupt_execution(), iba.enable_estimation():
        net(images[:2])
    iba.estimate(net, ((batch, None) for batch in images.split(8)), device="cpu", n_samples=20, progbar=True)
    assert iba.estimator.n_samples() == 20
    out = net(images)
    with iba.restrict_flow():
        assert (net(images) != out).any()
    with iba.supress_information():
        assert (net(images) != out).any()
    image = images[:1]
    saliency = iba.analyze(image, loss_of(net), beta=10, optimization_steps=3, lr=1, min_std=0, batch_size=4)
    ax = plot_saliency_map(saliency, to_unit_interval(tensor_to_np_img(image[0])))
    plot_saliency_map(saliency[None], ax=ax)
    iba.detach()
    with iba.restrict_flow():
        assert (net(images) == out).all()
    with pytest.raises(ValueError, match="cannot be detached"):
        iba.detach()


def by_hand(features, mean, std, sigma, beta, steps):
    """Capacity in bits after some steps of PyTorch's Adam on the information alone, (C, H, W)."""
    alpha = torch.full(features.shape[1:], 5.0, requires_grad=True)
    channels, half = len(alpha), round(2 * sigma)
    bell = torch.exp(-torch.arange(-half, half + 1.0).square() / (2 * sigma**2))
    kernel = torch.outer(bell, bell) / bell.sum() ** 2
    kernel = kernel.expand(channels, 1, *kernel.shape)

    def nats():
        padded = functional.pad(torch.sigmoid(alpha)[None], [half] * 4, mode="reflect")
        mask = functional.conv2d(padded, kernel, groups=channels)[0]
        blocked = 1 - mask
        return -(1 + 2 * blocked.log() - ((features[0] - mean) / std * mask) ** 2 - blocked**2) / 2

    optimizer = torch.optim.Adam([alpha], lr=1)
    for _ in range(steps):
        optimizer.zero_grad()
        (beta * nats().mean()).backward()
        optimizer.step()
    return (nats() / np.log(2)).detach().numpy()


@pytest.mark.parametrize("sigma", [1.0, 0.6])
def test_the_capacity_is_in_bits_as_worked_by_hand(net, images, sigma):
    iba = estimated(net, images, sigma=sigma, min_std=0.01)
    features = net[:2](images).detach()
    mean, std = features.mean(0), features.std(0).clamp_min(0.01)
    expected = by_hand(features[:1], mean, std, sigma, beta=3, steps=4)
    expected *= ((features != 0).float().mean(0) > 0.01).numpy()
    bits = iba.analyze(
        images[:1], lambda x: 0 * net(x).mean(), "capacity", beta=3, optimization_steps=4, batch_size=2
    )
    np.testing.assert_allclose(bits, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(iba.capacity().numpy() / np.log(2), bits, rtol=1e-5)
    maps = to_saliency_map(iba.capacity(), (12, 12))
    assert maps.sum() == pytest.approx(bits.sum(), rel=1e-4)


def test_alpha_is_a_parameter_from_estimate_on(net, images):
    iba = IBA(net[1])
    assert iba.alpha is iba.device is iba.estimator.device is None
    assert list(iba.parameters()) == []
    iba.estimate(net, [(images, None)])
    assert isinstance(iba.alpha, nn.Parameter)
    assert [name for name, _ in iba.named_parameters()] == ["alpha"]
    assert iba.alpha.shape == iba.estimator.m.shape == iba.estimator.s.shape == (6, 10, 10)
    assert (iba.alpha == 5).all()
    assert iba.device == iba.estimator.device == torch.device("cpu")
    before = iba.alpha
    iba.analyze(images[:1], loss_of(net), optimization_steps=2)
    assert iba.alpha is before
    assert (before != 5).any()
    for copied in (copy.deepcopy(iba), pickle.loads(pickle.dumps(IBA()))):
        assert isinstance(copied, IBA)


def test_a_loop_of_ones_own_trains_alpha(net, images):
    iba, loss = estimated(net, images, batch_size=64), loss_of(net)
    expected = iba.analyze(images[:1], loss, "capacity", seed=0)
    with torch.no_grad():
        iba.alpha.fill_(5.0)
    optimizer = torch.optim.Adam([iba.alpha], lr=1)
    for _ in range(10):
        optimizer.zero_grad()
        with iba.restrict_flow():
            objective = loss(images[:1].expand(64, -1, -1, -1)) + 10 * iba.capacity().mean()
        objective.backward()
        optimizer.step()
    with iba.restrict_flow(), torch.no_grad():
        net(images[:1])
    # Each has noise of its own.
    assert iba.capacity().sum() / np.log(2) == pytest.approx(expected.sum(), rel=0.05)


def test_parts_of_the_mask(net, images):
    iba = estimated(net, images, sigma=1.0)
    impulse = torch.zeros(1, 6, 10, 10)
    impulse[0, 0, 5, 5] = 1
    assert iba.smooth(impulse).sum() == pytest.approx(1)
    assert iba.smooth(impulse)[0, 0, 3:8, 5].argmax() == 2
    assert iba.sigmoid(torch.zeros(1)) == 0.5
    assert IBA(net[1], sigma=None).smooth is None


def test_what_the_notebooks_look_at(net, images):
    iba = estimated(net, images)
    iba.analyze(images[:1], loss_of(net), optimization_steps=3, beta=2)
    assert iba._alpha_grads[0].shape == iba._active_neurons.shape == iba._mean.shape == iba._std.shape
    assert iba._buffer_capacity[0].shape == iba.capacity().shape
    assert len(iba._loss) == len(iba._model_loss) == len(iba._information_loss) == 3
    total = np.add(iba._model_loss, 2 * np.array(iba._information_loss))
    np.testing.assert_allclose(iba._loss, total, rtol=1e-5)


def test_the_readout_takes_a_closure(net, images):
    readout = IBAReadout(net[1], [net[1], net[5]], net)
    readout.estimate(net, [(images, None)])
    assert {len(parameter) for parameter in readout.parameters()} == {5, 12, 6}
    with pytest.warns(UserWarning, match="ignores beta"):
        saliency = readout.analyze(images[:1], loss_of(net), beta=3)
    np.testing.assert_allclose(saliency, readout.analyze(images[:1], net), rtol=1e-5)
    bits = readout.analyze(images[:1], loss_of(net), "capacity")
    assert bits.shape == (6, 10, 10)
    assert bits.sum() == pytest.approx(saliency.sum(), rel=1e-4)
    assert bits.sum() == pytest.approx(readout.analyze(images[:1], net, mode="capacity").sum(), rel=1e-5)


# -- statistics ---------------------------------------------------------------------------------------


def published_moments(features):
    """What the published estimators keep of features, in their words."""
    centred = features - features.mean(0)
    nonzero = (features != 0).sum(0)
    return features.mean(0), (centred**2).sum(0), nonzero


def test_published_statistics_load_in_both_estimators(net, images):
    features = net[:2](images).detach()
    mean, squares, nonzero = published_moments(features)
    state = {"_n_samples": torch.tensor([24]), "m": mean, "s": squares, "_neuron_nonzero": nonzero}
    estimator = TorchWelfordEstimator()
    estimator.load_state_dict(state)
    np.testing.assert_allclose(estimator.std(), features.std(0), rtol=1e-4, atol=1e-6)
    plain = WelfordEstimator()
    plain.load_state_dict(
        {"m": mean.numpy(), "s": squares.numpy(), "n_samples": 24, "neuron_nonzero": nonzero.numpy()}
    )
    np.testing.assert_allclose(plain.std(), features.std(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(plain.m, plain.mean())
    np.testing.assert_allclose(plain.s, squares, rtol=1e-5)
    assert plain.n_samples() == estimator.n_samples() == 24
    np.testing.assert_array_equal(plain.active_neurons(), estimator.active_neurons())
    batch = np.ones((2, *mean.shape))
    assert plain.fit(batch) is batch
    assert plain.n_samples() == 26


def test_a_published_bottleneck_s_state_loads(net, images):
    mean, squares, nonzero = published_moments(net[:2](images).detach())
    state = {
        "alpha": torch.full_like(mean, 2.0),
        "smooth.conv.weight": torch.zeros(6, 1, 5, 5),
        "estimator._n_samples": torch.tensor([24]),
        "estimator.m": mean,
        "estimator.s": squares,
        "estimator._neuron_nonzero": nonzero,
    }
    iba = IBA(net[1])
    iba.load_state_dict(state)
    assert (iba.alpha == 2).all()
    expected = estimated(net, images).analyze(images[:1], loss_of(net), seed=0, optimization_steps=2)
    found = iba.analyze(images[:1], loss_of(net), seed=0, optimization_steps=2)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


class Kept(nn.Module):
    """An estimator of one's own that keeps everything, and has no `reset`."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        self.kept += list(x.detach())
        return x

    def n_samples(self):
        return len(self.kept)

    def mean(self):
        return torch.stack(self.kept).mean(0)

    def std(self):
        return torch.stack(self.kept).std(0)

    def active_neurons(self, threshold=0.01):
        return (torch.stack(self.kept) != 0).float().mean(0) > threshold


class NeedsSize(Kept):
    def __init__(self, size):
        super().__init__()


def test_an_estimator_of_ones_own_without_reset(net, images):
    iba, own = IBA(net[1], estimator=Kept()), estimated(net, images)
    for _ in range(2):
        iba.estimate(net, [(images, None)])
        assert iba.estimator.n_samples() == 24
    maps = [each.analyze(images[:1], loss_of(net), seed=0, optimization_steps=2) for each in (iba, own)]
    np.testing.assert_allclose(*maps, rtol=1e-3, atol=1e-6)
    iba.reset_estimate()
    assert iba.estimator.n_samples() == 0
    with pytest.raises(InputError, match="has no method reset"):
        IBA(net[1], estimator=NeedsSize(3)).reset_estimate()


# -- small helpers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [-9, -3, -2, -1, 0, 1, 2, 3, 9])
def test_positions_are_those_of_a_list(position):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()]
    found = insert_into_sequential(nn.Sequential(*layers), new := nn.Identity(), position)
    expected = list(layers)
    expected.insert(position, new)
    assert list(found) == expected
    assert list(found.state_dict()) == list(nn.Sequential(*expected).state_dict())


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_folders_of_pictures_are_cropped_before_they_are_resized(picture, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "1.png")
    folder = get_imagenet_folder(str(tmp_path), image_size=64)
    middle = picture.crop((72, 22, 328, 278)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(tensor_to_np_img(folder[0][0]), np.asarray(middle) / 255, atol=1e-6)
    assert (
        folder.imgs
        == folder.samples
        == [(str(tmp_path / n / "1.png"), i) for i, n in ((0, "cat"), (1, "dog"))]
    )
    folder.target_transform, folder.transform, folder.loader = (lambda index: -index), None, Image.open
    assert (folder[1][1], folder[1][0].size) == (-1, picture.size)


def test_sizes_may_be_height_and_width(picture):
    found = imagenet_transform((40, 60), (20, 30))(picture)
    expected = np.asarray(picture.resize((60, 40), Image.Resampling.BILINEAR).crop((15, 10, 45, 30))) / 255
    np.testing.assert_allclose(tensor_to_np_img(found), expected, atol=1e-6)
    # The odd pixel of a border comes last, as in torchvision.
    bordered = tensor_to_np_img(imagenet_transform((30, 41), (30, 50))(picture))
    assert np.abs(bordered[:, [3, 45]]).max() < 1e-6
    assert (np.abs(bordered[:, 4:45]).max(axis=(0, 2)) > 0.1).all()
    with pytest.raises(InputError, match="crop_size"):
        imagenet_transform(30, (20, 30, 40))
