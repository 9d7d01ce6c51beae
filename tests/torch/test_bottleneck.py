"""`IBA` against the published algorithm, run plainly on the whole model in float64."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import (
    Explainer,
    InputError,
    LayerError,
    NotEstimatedError,
    OptimizationError,
    Tokens,
    WelfordEstimator,
)
from iba_core.bottleneck.noise import seeded_normal
from iba_core.framework.layout import Layout
from iba_torch import IBA, TorchFramework, TorchWelfordEstimator, insert_into_sequential, to_saliency_map


def first(output):
    return output[0] if isinstance(output, tuple) else output


def blur(x, sigma, axis):
    """Gaussian along an axis, cut off at two standard deviations, mirrored at the borders."""
    radius = max(1, round(2 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    size = x.shape[axis]
    index = np.pad(np.arange(size), radius, mode="reflect")
    padded = x.index_select(axis, torch.from_numpy(index))
    windows = [padded.narrow(axis, start, size) for start in range(2 * radius + 1)]
    return sum(float(weight) * window for weight, window in zip(kernel / kernel.sum(), windows, strict=True))


class Reference:
    """Schulz et al., "Restricting the Flow", eqs. 2, 5, 6 and 8, with the whole model run in every step."""

    def __init__(self, replacement, model, layer, where="output"):
        self.replacement, self.first = replacement
        self.layer, self.where = layer, where
        self.model = model.eval()

    def features(self, x):
        name, _, call = self.layer.partition(":")
        seen = []
        module = self.model.get_submodule(name)

        def look(module, args, output=None):
            seen.append(self.first(args if self.where == "input" else output).detach().clone())

        if self.where == "input":
            handle = module.register_forward_pre_hook(look)
        else:
            handle = module.register_forward_hook(look)
        # With gradients: fused attention would call no hooks.
        self.model(x.clone().requires_grad_() * 1)
        handle.remove()
        found = seen[int(call or 0)]
        return found if found.shape[0] == len(x) else found.transpose(0, 1)

    def fit(self, data, threshold=0.01):
        features = self.features(data).numpy()
        self.mean, self.std = features.mean(0), features.std(0, ddof=1)
        self.active = (features != 0).mean(0) > threshold

    def capacity(
        self,
        x,
        loss,
        noise,
        *,
        channel_axis=0,
        beta=10.0,
        steps=10,
        lr=1.0,
        alpha=5.0,
        min_std=0.01,
        sigma=1.0,
        relu=False,
        passing=None,
        fold=None,
    ):
        features = self.features(x)
        mean = torch.from_numpy(self.mean)
        std = torch.from_numpy(np.maximum(self.std, min_std))
        active = torch.from_numpy(self.active)
        passing = torch.zeros_like(active) if passing is None else torch.from_numpy(passing)
        alpha = torch.full_like(features, alpha).requires_grad_()
        optimizer = torch.optim.Adam([alpha], lr)
        spatial = [axis + 1 for axis in range(mean.ndim) if axis != channel_axis]

        def share():
            mask = torch.sigmoid(alpha)
            if fold:
                # Class tokens have no place; the others lie on a grid.
                (prefix, grid), shape = fold, mask.shape
                places = mask[:, prefix:].reshape(shape[0], *grid, shape[-1])
                for axis in (1, 2) if sigma else ():
                    places = blur(places, sigma, axis)
                return torch.cat([mask[:, :prefix], places.reshape(shape[0], -1, shape[-1])], 1)
            for axis in spatial if sigma else []:
                mask = blur(mask, sigma, axis)
            return mask

        def nats():
            lam, r = share(), (features - mean) / std
            kl = -0.5 * (1 + torch.log((1 - lam) ** 2) - (r * lam) ** 2 - (1 - lam) ** 2)
            return torch.where(active & ~passing, kl, torch.zeros(()))

        requires = [parameter.requires_grad for parameter in self.model.parameters()]
        self.model.requires_grad_(False)
        self.losses, self.informations = [], []
        for step in range(steps):
            lam, eps = share(), mean + std * noise(step)
            z = lam * features + (1 - lam) * eps
            z = torch.where(active, z, torch.zeros(()))
            z = torch.where(passing, features.expand_as(z), z)
            z = z.clamp(min=0) if relu else z
            with self.replacement(self.model, self.layer, z, self.where):
                model_loss = loss(x.expand(len(z), *x.shape[1:]).clone())
            information = beta * nats().mean()
            optimizer.zero_grad()
            (model_loss + information).backward()
            optimizer.step()
            self.losses.append(model_loss.item())
            self.informations.append(information.item())
        for parameter, flag in zip(self.model.parameters(), requires, strict=True):
            parameter.requires_grad_(flag)
        self.alpha = alpha.detach()
        return nats().detach()[0].numpy()


def noise_of(seed, samples, shape, channel_axis):
    layout = Layout(len(shape), channel_axis)
    return lambda step: torch.from_numpy(seeded_normal(seed, step, samples, shape, layout)).double()


def cross_entropy_of(model, target):
    def loss(x):
        return functional.cross_entropy(first(model(x)), torch.full((len(x),), target))

    return loss


def make(cases, images, replacement, name, layer, where="output", **options):
    """A bottleneck, and the reference, that have seen the same data."""
    model = cases[name].make()
    module, _, call = layer.partition(":")
    iba = IBA(model.get_submodule(module), input_or_output=where, call=int(call) if call else None, **options)
    data = images(24, seed=3)
    iba.estimate(model, [data[:10], data[10:]])
    reference = Reference(replacement, model, layer, where)
    iba_off = nn.Module.eval(model)
    reference.fit(data)
    return iba, iba_off, reference


LAYERS = [
    ("nested", "0.0", 0),
    ("nested", "0.1", 0),
    ("nested", "1", 0),
    ("nested", "3", 0),
    ("residual", "norm", 0),
    ("residual", "act", 0),
    ("residual", "conv1", 0),
    ("unet", "down1", 0),
    ("unet", "down2.1", 0),
    ("unet", "bottom", 0),
    ("shared", "relu:1", 0),
    ("shared", "conv:1", 0),
    ("tuples", "twins", 0),
    ("functional", "convs.1", 0),
    ("recurrent", "embed", 1),
    ("recurrent", "lstm", 1),
    ("recurrent_second", "embed", 1),
    ("recurrent_second", "norm", 1),
    ("transformer", "patch", 0),
    ("transformer", "blocks.0", 1),
    ("transformer", "blocks.1.self_attn", 1),
    ("volumes", "1", 0),
    ("volumes", "5", 0),
    ("windowed", "norm", 1),
    ("collecting", "down", 0),
    ("opaque", "between", 0),
]


@pytest.mark.parametrize(("name", "layer", "channel_axis"), LAYERS)
def test_the_capacity_is_that_of_the_published_algorithm(
    cases, images, replacement, name, layer, channel_axis
):
    iba, model, reference = make(
        cases, images, replacement, name, layer, batch_size=3, optimization_steps=4, beta=5, lr=0.7
    )
    x, loss = images(1, seed=7), cross_entropy_of(model, 2)
    found = iba.analyze(x, loss, mode="capacity", seed=11)
    wanted = reference.capacity(
        x,
        loss,
        noise_of(11, 3, found.shape, channel_axis),
        channel_axis=channel_axis,
        beta=5,
        steps=4,
        lr=0.7,
    )
    assert wanted.max() > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(iba.alpha, reference.alpha, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(iba.model_losses[:, 0], reference.losses, rtol=1e-6)
    np.testing.assert_allclose(iba.informations[:, 0], reference.informations, rtol=1e-6)
    np.testing.assert_allclose(iba.capacity(), wanted, rtol=1e-6, atol=1e-9)


def vit_of_hugging_face():
    transformers = pytest.importorskip("transformers", reason="brings the network")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=6,
        patch_size=2, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    # Drawn so narrow at first that no input makes a difference to the output.
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double()


def resnet_of_hugging_face():
    transformers = pytest.importorskip("transformers", reason="brings the network")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[8, 8], depths=[1, 2], layer_type="basic", num_labels=5
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.02, 0.2)
    return model


@pytest.mark.parametrize(
    ("build", "layer", "fold"),
    [
        (None, "blocks.0", (1, (3, 3))),
        (None, "blocks.1", (1, (3, 3))),
        (vit_of_hugging_face, "vit.embeddings", (1, (3, 3))),
        (vit_of_hugging_face, "vit.layers.0", (1, (3, 3))),
        (vit_of_hugging_face, "vit.layers.1", None),
        (resnet_of_hugging_face, "resnet.embedder", None),
        (resnet_of_hugging_face, "resnet.encoder.stages.0", None),
        (resnet_of_hugging_face, "resnet.encoder.stages.1.layers.0.layer.0", None),
    ],
)
def test_networks_of_hugging_face_and_tokens_on_a_grid(cases, images, replacement, build, layer, fold):
    model = (build or cases["transformer"].make)().eval()
    size = 6 if fold or build is not resnet_of_hugging_face else 16
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(25, 3, size, size, generator=generator).double()
    tokens = fold and Tokens(prefix=fold[0], grid=fold[1])
    iba = IBA(model.get_submodule(layer), tokens=tokens, batch_size=3, optimization_steps=4, beta=2)
    iba.estimate(model, [data[:24]])
    reference = Reference(replacement, model, layer)
    reference.fit(data[:24])
    channel_axis = 0 if build is resnet_of_hugging_face else 1

    def loss(inputs):
        output = model(inputs)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        return functional.cross_entropy(logits, torch.full((len(inputs),), 2))

    found = iba.analyze(data[24:], loss, mode="capacity", seed=11)
    wanted = reference.capacity(
        data[24:], loss, noise_of(11, 3, found.shape, channel_axis), channel_axis=channel_axis, fold=fold,
        beta=2, steps=4,
    )  # fmt: skip
    assert wanted.max() > 0.01
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(iba.model_losses[:, 0], reference.losses, rtol=1e-6)
    assert np.ptp(reference.losses) > 1e-4, "the loss does not depend on the mask"
    explainer = Explainer(model, layer, tokens=tokens, samples=3, steps=4, beta=2)
    attribution = explainer.fit([data[:24]], progbar=False).explain(data[24:], 2, seed=11)
    np.testing.assert_allclose(attribution.capacity[0], wanted, rtol=1e-6, atol=1e-9)
    if fold:
        assert attribution.saliency.shape == (1, size, size)


@pytest.mark.parametrize(
    ("name", "layer"), [("residual", "conv2"), ("nested", "1"), ("unet", "join"), ("recurrent", "norm")]
)
def test_the_bottleneck_can_act_on_the_input_of_a_layer(cases, images, replacement, name, layer):
    iba, model, reference = make(
        cases, images, replacement, name, layer, "input", batch_size=3, optimization_steps=3
    )
    x, loss = images(1, seed=7), cross_entropy_of(model, 2)
    found = iba.analyze(x, loss, mode="capacity", seed=11)
    axis = 1 if name == "recurrent" else 0
    wanted = reference.capacity(x, loss, noise_of(11, 3, found.shape, axis), channel_axis=axis, steps=3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("constructor", "overrides", "expected"),
    [
        ({"sigma": None}, {}, {"sigma": 0}),
        ({"sigma": 0.0}, {}, {"sigma": 0}),
        ({"sigma": 0.6}, {}, {"sigma": 0.6}),
        ({"beta": 3}, {"beta": 0}, {"beta": 0}),
        ({"beta": 3}, {"beta": None}, {"beta": 3}),
        ({"lr": 1}, {"lr": 0.0}, {"lr": 0.0}),
        ({"min_std": 0.4}, {}, {"min_std": 0.4}),
        ({"min_std": 0.4}, {"min_std": 0.0}, {"min_std": 0.0}),
        ({"relu": True}, {}, {"relu": True}),
        ({"initial_alpha": -1.0}, {}, {"alpha": -1.0}),
        ({}, {"optimization_steps": 2}, {"steps": 2}),
    ],
)
def test_every_hyperparameter_does_what_it_says(cases, images, replacement, constructor, overrides, expected):
    options = {"batch_size": 2, "optimization_steps": 3, **constructor}
    iba, model, reference = make(cases, images, replacement, "residual", "conv1", **options)
    x, loss = images(1, seed=7), cross_entropy_of(model, 2)
    found = iba.analyze(x, loss, "capacity", seed=1, **overrides)
    wanted = reference.capacity(x, loss, noise_of(1, 2, found.shape, 0), **{"steps": 3, **expected})
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_number_of_noisy_copies_and_the_threshold_of_activity(cases, images, replacement):
    iba, model, reference = make(cases, images, replacement, "residual", "act", optimization_steps=2)
    x, loss = images(1, seed=7), cross_entropy_of(model, 2)
    reference.fit(images(24, seed=3), threshold=0.5)
    assert 0.1 < reference.active.mean() < 0.9
    sizes = []
    found = iba.analyze(
        x,
        lambda inputs: sizes.append(len(inputs)) or loss(inputs),
        "capacity",
        batch_size=5,
        active_neurons_threshold=0.5,
        seed=1,
    )
    # Before, it is checked what the closure gives for the image and for copies of it.
    assert sizes[-2:] == [5, 5]
    assert max(sizes[:-2]) == 2
    wanted = reference.capacity(x, loss, noise_of(1, 5, found.shape, 0), steps=2)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    iba.active_neurons_threshold = 0.5
    np.testing.assert_array_equal(iba.analyze(x, loss, "capacity", batch_size=5, seed=1), found)


def test_features_that_are_passed_by_order(cases, images, replacement):
    iba, model, reference = make(
        cases, images, replacement, "transformer", "blocks.0", optimization_steps=3, batch_size=2
    )
    x, loss = images(1, seed=7), cross_entropy_of(model, 2)
    passing = np.zeros((10, 8), bool)
    passing[7:] = True
    found = iba.analyze(x, loss, "capacity", seed=1, pass_mask=passing)
    wanted = reference.capacity(
        x, loss, noise_of(1, 2, found.shape, 1), steps=3, channel_axis=1, passing=passing
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    assert not found[7:].any()
    with iba.restrict_flow():
        restricted = iba(reference.features(x))
    assert torch.equal(restricted[:, 7:], reference.features(x)[:, 7:])
    assert not torch.equal(restricted[:, :7], reference.features(x)[:, :7])


def test_two_inputs_by_keyword(replacement):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 5)

        def forward(self, left, right):
            return self.out(torch.tanh(self.a(left)) + self.b(right))

    torch.manual_seed(0)
    model = Two().double()
    data = {"left": torch.randn(20, 3).double(), "right": torch.randn(20, 2).double()}
    x = {name: array[:1] for name, array in data.items()}

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x[:, :3], x[:, 3:])

    iba = IBA(model.a, optimization_steps=3, batch_size=2)
    iba.estimate(model, [data])

    def loss(inputs):
        return functional.cross_entropy(model(**inputs), torch.ones(len(inputs["left"])).long())

    found = iba.analyze(x, loss, "capacity", seed=1)
    joined = Joined()
    reference = Reference(replacement, joined, "inner.a")
    reference.fit(torch.cat(list(data.values()), 1))
    wanted = reference.capacity(
        torch.cat(list(x.values()), 1), cross_entropy_of(joined, 1), noise_of(1, 2, (4,), 0), steps=3
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_explainer_and_the_bottleneck_agree(cases, images):
    model, data, x = cases["residual"].make(), images(20, seed=3), images(1, seed=7)
    iba = IBA(model.conv1, optimization_steps=3)
    iba.estimate(model, [data])
    explainer = Explainer(model, layer="conv1", steps=3).fit([data], progbar=False)
    attribution = explainer.explain(x, target=1, seed=2)
    loss = cross_entropy_of(model, 1)
    np.testing.assert_allclose(iba.analyze(x, loss, "capacity", seed=2), attribution.capacity[0], rtol=1e-9)
    saliency = iba.analyze(x, loss, seed=2)
    assert saliency.shape == (6, 6)
    np.testing.assert_allclose(saliency, attribution.saliency[0], rtol=1e-9)
    np.testing.assert_allclose(saliency.sum(), attribution.total_bits[0], rtol=1e-9)
    np.testing.assert_allclose(to_saliency_map(iba.capacity(), (6, 6)), saliency, rtol=1e-9)


class TestBatches:
    def prepare(self, cases, images):
        model = cases["residual"].make()
        iba = IBA(model.conv1, optimization_steps=3, batch_size=4)
        iba.estimate(model, [images(20, seed=3)])
        return model, iba

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("max_batch", [None, 3, 6, 100])
    def test_each_image_is_explained_by_itself(self, cases, images, reduction, max_batch):
        model, iba = self.prepare(cases, images)
        x, targets = images(3, seed=7), torch.tensor([0, 4, 2])

        def loss_of(targets):
            def loss(inputs):
                repeated = targets.repeat_interleave(len(inputs) // len(targets))
                return functional.cross_entropy(model(inputs), repeated, reduction=reduction)

            return loss

        found = iba.analyze(x, loss_of(targets), "capacity", seed=5, max_batch=max_batch)
        maps = iba.analyze(x, loss_of(targets), seed=5, max_batch=max_batch)
        assert found.shape == (3, 4, 6, 6)
        assert maps.shape == (3, 6, 6)
        for index in range(3):
            one = slice(index, index + 1)
            alone = iba.analyze(x[one], loss_of(targets[one]), "capacity", seed=5)
            np.testing.assert_allclose(found[index], alone, rtol=1e-7, atol=1e-12)

    def test_max_batch_bounds_what_passes_at_once(self, cases, images):
        model, iba = self.prepare(cases, images)
        sizes = []

        def loss(inputs):
            sizes.append(len(inputs))
            return model(inputs).square().mean()

        whole = iba.analyze(images(1), loss, "capacity", seed=1)
        sizes.clear()
        parts = iba.analyze(images(1), loss, "capacity", seed=1, max_batch=3)
        np.testing.assert_allclose(parts, whole, rtol=1e-9)
        assert max(sizes) <= 3

    @pytest.mark.parametrize(("preferred", "most"), [(16, 12), (4, 6), (None, 24)])
    def test_a_batch_is_split_as_the_backend_likes_it(self, cases, images, monkeypatch, preferred, most):
        model, iba = self.prepare(cases, images)
        sizes = []

        def loss(inputs):
            sizes.append(len(inputs))
            return model(inputs).square().mean()

        x = images(6)
        expected = iba.analyze(x, loss, "capacity", seed=1, max_batch=24)
        sizes.clear()
        monkeypatch.setattr(TorchFramework, "preferred_batch", lambda self, shape, like: preferred)
        found = iba.analyze(x, loss, "capacity", seed=1)
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
        assert max(sizes) == most


class TestEstimate:
    def test_exactly_the_asked_number_of_samples_counts(self, cases, images):
        model = cases["unet"].make()
        data = images(50, seed=3)
        loader = [(data[start : start + 8], torch.zeros(8)) for start in range(0, 50, 8)]
        iba = IBA(model.bottom)
        iba.estimate(model, loader, n_samples=21)
        assert iba.estimator.n_samples() == 21
        with torch.no_grad():
            seen = []
            handle = model.bottom.register_forward_hook(lambda module, args, output: seen.append(output))
            model.eval()(data[:21])
            handle.remove()
        np.testing.assert_allclose(iba.estimator.mean(), seen[0].mean(0), rtol=1e-10)
        np.testing.assert_allclose(iba.estimator.std(), seen[0].std(0), rtol=1e-10)

    @pytest.mark.parametrize("kind", ["tensors", "generator", "loader", "dicts"])
    def test_any_iterable_will_do(self, cases, images, kind):
        model, data = cases["unet"].make(), images(12)
        batches = {
            "tensors": [data[:8], data[8:]],
            "generator": (part for part in (data[:8], data[8:])),
            "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data, torch.zeros(12)), 5),
            "dicts": [{"x": data[:8]}, {"x": data[8:]}],
        }[kind]
        iba = IBA(model.bottom)
        iba.estimate(model, batches, progbar=False)
        assert iba.estimator.n_samples() == 12

    def test_it_goes_on_only_if_told_to(self, cases, images):
        model = cases["unet"].make()
        iba = IBA(model.bottom)
        iba.estimate(model, [images(5)])
        iba.estimate(model, [images(5, seed=1)], reset=False)
        assert iba.estimator.n_samples() == 10
        iba.estimate(model, [images(4)])
        assert iba.estimator.n_samples() == 4

    def test_inputs_may_have_another_size_than_before(self, cases, images):
        model = cases["nested"].make()
        iba = IBA(model[0][0])
        for size in (6, 5):
            iba.estimate(model[:3], [images(6)[..., :size]])
            assert iba.estimator.mean().shape == (4, 4, size - 2)
            if size == 6:
                iba.analyze(images(1), lambda x: model[:3](x).square().mean(), optimization_steps=1)
        message = r"shape \(4, 4, 3\), but the mask of the last analysis has \(4, 4, 4\)"
        with pytest.raises(InputError, match=message), iba.restrict_flow():
            model[:3](images(1)[..., :5])

    def test_the_estimator_keeps_its_type(self, cases, images):
        model = cases["unet"].make()
        for estimator in (WelfordEstimator(), TorchWelfordEstimator()):
            iba = IBA(model.bottom, estimator=estimator)
            iba.estimate(model, [images(5)])
            iba.reset_estimate()
            assert iba.estimator is estimator
            assert estimator.n_samples() == 0
            iba.estimate(model, [images(6)])
            assert iba.analyze(images(1), cross_entropy_of(model, 1)).shape == (6, 6)
            iba.detach()

    def test_mean_and_std_may_be_given_instead(self, cases, images):
        model = cases["residual"].make()
        iba = IBA(model.conv1)
        iba.estimate(model, [images(20)])
        mean, std = iba.estimator.mean(), iba.estimator.std()
        given = IBA(model.conv1, feature_mean=mean, feature_std=std.numpy())
        x, loss = images(1), cross_entropy_of(model, 1)
        np.testing.assert_array_equal(given.analyze(x, loss, seed=1), iba.analyze(x, loss, seed=1))

    def test_by_hand(self, cases, images):
        model = cases["unet"].make().eval()
        by_hand, estimated = IBA(model.bottom), IBA(model.bottom)
        with by_hand.enable_estimation(), by_hand.interrupt_execution():
            model(images(9))
            raise AssertionError("the model ran on")
        model(images(3))
        estimated.estimate(model, [images(9)])
        assert by_hand.estimator.n_samples() == 9
        torch.testing.assert_close(by_hand.estimator.mean(), estimated.estimator.mean())

    def test_too_little_or_bad_data_is_an_error(self, cases, images):
        model = cases["unet"].make()
        iba = IBA(model.bottom)
        with pytest.raises(InputError, match="dataloader held 0 samples; at least 2"):
            iba.estimate(model, [])
        with pytest.raises(InputError, match="dataloader held 1 samples"):
            iba.estimate(model, [images(1)])
        with pytest.raises(InputError, match="n_samples=0"):
            iba.estimate(model, [images(4)], n_samples=0)
        with pytest.raises(InputError, match="NaN or infinite"):
            iba.estimate(model, [images(4), images(4) * torch.nan])
        with pytest.raises(NotEstimatedError):
            iba.analyze(images(1), cross_entropy_of(model, 1))

    def test_only_the_head_runs(self, cases, images, count_calls):
        model = cases["unet"].make()
        calls = count_calls(model)
        IBA(model.bottom).estimate(model, [images(4)] * 5)
        # One batch is compared with its first image, which has also run through the whole model.
        assert calls["bottom"] == 7
        assert calls["join"] == 1


class TestInTheModel:
    def test_it_passes_everything_on_until_told_otherwise(self, cases, images):
        model, x = cases["residual"].make().eval(), images(2)
        expected = model(x)
        iba = IBA(model.conv1)
        iba.estimate(model, [images(20)])
        assert torch.equal(model(x), expected)
        iba.analyze(images(1), cross_entropy_of(model, 1))
        assert torch.equal(model(x), expected)
        with iba.restrict_flow():
            assert not torch.allclose(model(x), expected)
        assert torch.equal(model(x), expected)

    def test_the_flow_is_restricted_by_the_last_mask(self, cases, images):
        model, x = cases["residual"].make().eval(), images(1)
        iba = IBA(model.conv1, relu=False)
        iba.estimate(model, [images(20)])
        features = images(4000)[:, :1].expand(-1, 4, -1, -1) * 0 + iba.estimator.mean() + 1
        for analysed in (False, True):
            if analysed:
                iba.analyze(x, cross_entropy_of(model, 1), beta=30)
            with iba.restrict_flow(), torch.no_grad():
                z = iba(features)
            share = torch.sigmoid(iba.alpha if analysed else torch.tensor(5.0).double())
            for axis in (2, 3) if analysed else ():
                share = blur(share, 1.0, axis)
            std = iba.estimator.std().clamp(min=0.01)
            error = (z.mean(0) - iba.estimator.mean() - share) / std
            assert error.abs().max() < 0.1
            spread = z.std(0) / std / (1 - share)
            torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0.1, atol=0)
            # log(1/(1-share)) ... the capacity at one unit above the mean
            r = 1 / std
            nats = -0.5 * (1 + torch.log((1 - share) ** 2) - (r * share) ** 2 - (1 - share) ** 2)
            active = iba.estimator.active_neurons()
            torch.testing.assert_close(
                iba.capacity(), (nats * active).expand(4, 6, 6) if nats.ndim == 3 else (nats * active)[0]
            )

    def test_half_precision_features_stay_in_their_precision(self, images):
        iba = IBA(feature_mean=np.zeros((3, 6, 6)), feature_std=np.ones((3, 6, 6)))
        with iba.restrict_flow():
            assert iba(images(2).bfloat16()).dtype == torch.bfloat16

    def test_restricting_is_differentiable(self, images):
        iba = IBA(feature_mean=np.zeros((3, 6, 6)), feature_std=np.ones((3, 6, 6)))
        x = images(2).requires_grad_()
        with iba.restrict_flow():
            (iba(x).sum() + iba.capacity().sum()).backward()
        assert x.grad.abs().min() > 0

    def test_a_bottleneck_that_is_a_layer_of_the_model(self, cases, images):
        model = cases["nested"].make().eval()
        x, loss_target = images(1), 2
        hooked = IBA(model[1], optimization_steps=3)
        hooked.estimate(model, [images(20)])
        expected = hooked.analyze(x, cross_entropy_of(model, loss_target), seed=1)
        hooked.detach()
        iba = IBA(optimization_steps=3)
        with_iba = insert_into_sequential(model, iba, 2)
        iba.estimate(with_iba, [images(20)])
        found = iba.analyze(x, cross_entropy_of(with_iba, loss_target), seed=1)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert torch.equal(with_iba(x), model(x))
        with pytest.raises(InputError, match="hangs on no layer"):
            iba.detach()

    def test_detached_it_leaves_the_model_as_it_was(self, cases, images, snapshot):
        model, x = cases["residual"].make(), images(2)
        before = snapshot(model, x)
        for where in ("output", "input"):
            iba = IBA(model.conv1, input_or_output=where)
            iba.estimate(model, [images(5)])
            iba.analyze(images(1), cross_entropy_of(model, 1))
            iba.detach()
            assert snapshot(model, x) == before
            with pytest.raises(InputError, match="not any more"):
                iba.detach()

    def test_switches_are_restored_when_the_body_raises(self, images):
        iba = IBA(feature_mean=np.zeros((3, 6, 6)), feature_std=np.ones((3, 6, 6)))
        x = images(1)
        for context in (iba.restrict_flow, iba.enable_estimation, iba.interrupt_execution):
            with pytest.raises(ZeroDivisionError), context():
                raise ZeroDivisionError
            assert iba(x) is x
        assert iba.estimator.n_samples() == 0

    def test_contexts_nest(self, cases, images):
        model = cases["residual"].make().eval()
        iba = IBA(model.conv1)
        iba.estimate(model, [images(5)])
        x, loss = images(1), cross_entropy_of(model, 1)
        expected, plain = iba.analyze(x, loss, seed=1), model(x)
        with iba.restrict_flow(), iba.enable_estimation():
            np.testing.assert_array_equal(iba.analyze(x, loss, seed=1), expected)
            with iba.interrupt_execution():
                model(x)
            assert not torch.equal(model(x), plain)
        assert iba.estimator.n_samples() == 7

    def test_layers_that_return_tuples(self, cases, images):
        model = cases["recurrent"].make().eval()
        iba = IBA(model.lstm)
        iba.estimate(model, [images(20)])
        with iba.restrict_flow():
            restricted = model(images(2))
        assert restricted.shape == (2, 5)
        assert not torch.allclose(restricted, model(images(2)))


class TestNothingIsLeftBehind:
    def test_after_analysing_with_and_without_an_exception(self, case, images, snapshot):
        model = case.make().train()
        for parameter in list(model.parameters())[::2]:
            parameter.requires_grad_(False)
        layer, _, call = case.layers[0].partition(":")
        iba = IBA(model.get_submodule(layer), call=int(call) if call else None, optimization_steps=2)
        x = images(1)
        before = snapshot(model, x)
        iba.estimate(model, [images(6)])
        iba.analyze(x, cross_entropy_of(model, 1))

        for at in range(4):
            passes = []

            def failing(inputs, at=at, passes=passes):
                passes.append(None)
                if len(passes) > at:
                    raise ZeroDivisionError
                return cross_entropy_of(model, 1)(inputs)

            if at < 3:
                with pytest.raises(ZeroDivisionError):
                    iba.analyze(x, failing)
        with pytest.raises(OptimizationError):
            iba.analyze(x, lambda inputs: cross_entropy_of(model, 1)(inputs) * torch.nan)
        assert snapshot(model, x) == before

    def test_two_hundred_explanations_hold_no_more_than_two(self, cases, images):
        model = cases["residual"].make()
        iba = IBA(model.conv1, optimization_steps=2, batch_size=2)
        iba.estimate(model, [images(6)])
        explainer = Explainer(model, layer="conv1", steps=2, samples=2).fit([images(6)], progbar=False)

        def held():
            gc.collect()
            found = [item for item in gc.get_objects() if type(item) in (torch.Tensor, nn.Parameter)]
            hooks = sum(len(module._forward_hooks) for module in model.modules())
            return len(found), sum(tensor.nelement() for tensor in found), hooks

        for count in range(200):
            iba.analyze(images(1), cross_entropy_of(model, 1))
            explainer.explain(images(1), target=1)
            if count == 1:
                after_two = held()
        assert all(now <= before for now, before in zip(held(), after_two, strict=True))

    def test_the_layers_before_the_bottleneck_run_once(self, cases, images, count_calls):
        model = cases["residual"].make()
        iba = IBA(model.conv1)
        iba.estimate(model, [images(6)])
        calls = count_calls(model)
        loss = cross_entropy_of(model, 1)
        # The first time, the closure is looked at.
        iba.analyze(images(1), loss, optimization_steps=1)
        calls.update(dict.fromkeys(calls, 0))
        iba.analyze(images(1), loss, optimization_steps=7)
        assert calls["stem"] == calls["norm"] == calls["act"] == calls["conv1"] == 1
        assert calls["conv2"] == calls["out"] == 7


def leaves_of(tensor):
    """The tensors that a backward pass from `tensor` would give a gradient to."""
    found, seen, todo = [], set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                found.append(node.variable)
    return found


class WeightGradients(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes what the backward passes of convolutions and batch normalisations compute."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (
            torch.ops.aten.convolution_backward.default,
            torch.ops.aten.native_batch_norm_backward.default,
        ):
            self.masks.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


class TestWork:
    """What an explanation costs: one pass of the head, and gradients for nothing but the noisy copies."""

    @pytest.mark.parametrize("images_at_once", [1, 3])
    def test_the_head_runs_once_per_explanation(self, cases, images, count_calls, images_at_once):
        model = cases["residual"].make()
        explainer = Explainer(model, "conv1", steps=7, samples=2).fit([images(6)], progbar=False)
        calls = count_calls(model)
        # The first time, the model is looked at.
        explainer.explain(images(images_at_once), target=1)
        calls.update(dict.fromkeys(calls, 0))
        for done in (1, 2):
            explainer.explain(images(images_at_once), target=1)
            assert calls["stem"] == calls["norm"] == calls["act"] == calls["conv1"] == done
            # One pass for the answer to the image itself, and one for what survives of it.
            assert calls["conv2"] == calls["out"] == done * (1 + 7 + 1)

    def test_the_noisy_copies_are_the_only_leaf(self, case, images):
        model = case.make()
        layer, _, call = case.layers[0].partition(":")
        leaves = []

        def score(outputs):
            logits = first(outputs)
            if logits.requires_grad:
                leaves.append(leaves_of(logits))
            return logits[:, 0]

        explainer = Explainer(model, case.layers[0], steps=2, samples=2).fit([images(6)], progbar=False)
        explainer.explain(images(1), score)
        iba = IBA(
            model.get_submodule(layer), call=int(call) if call else None, optimization_steps=2, batch_size=2
        )
        iba.estimate(model, [images(6)])
        iba.analyze(images(1), lambda x: score(model(x)).mean())
        # Two steps in both, and the first look at the closure.
        assert len(leaves) == 5
        for (copies,) in leaves:
            assert copies.shape == (2, *iba.alpha.shape[1:])

    def test_no_gradient_of_a_weight_is_computed(self, cases, images):
        model = cases["residual"].make()
        explainer = Explainer(model, "norm", steps=2, samples=2).fit([images(6)], progbar=False)
        iba = IBA(model.norm, optimization_steps=2, batch_size=2)
        iba.estimate(model, [images(6)])
        with WeightGradients() as seen:
            explainer.explain(images(1), target=1)
            iba.analyze(images(1), cross_entropy_of(model, 1))
        # Three convolutions after the layer, two steps, two ways.
        assert seen.masks == [(True, False, False)] * 12
        with WeightGradients() as seen:
            model(images(1)).sum().backward()
        assert (True, True, True) in seen.masks, "the test does not see gradients of weights"


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_outside_are_on_where_needed(cases, images, outside):
    model = cases["residual"].make()
    iba = IBA(model.conv1)
    iba.estimate(model, [images(6)])
    expected = iba.analyze(images(1), cross_entropy_of(model, 1), seed=1)
    with outside():
        iba.estimate(model, [images(6)])
        found = iba.analyze(images(1), cross_entropy_of(model, 1), seed=1)
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(found, expected)


class TestErrors:
    @pytest.fixture
    def iba(self, cases, images):
        self.model = cases["residual"].make()
        iba = IBA(self.model.conv1)
        iba.estimate(self.model, [images(6)])
        return iba

    def analyze(self, iba, x, **options):
        def closure(inputs):
            raise AssertionError("the model ran")

        iba.analyze(x, closure, **options)

    def test_before_estimating(self, cases, images):
        model = cases["residual"].make()
        with pytest.raises(NotEstimatedError, match=r"call estimate\(model, dataloader\) first"):
            self.analyze(IBA(model.conv1), images(1))
        with pytest.raises(NotEstimatedError, match="no input has passed"):
            IBA().capacity()
        iba = IBA()
        with pytest.raises(NotEstimatedError), iba.restrict_flow():
            iba(images(1))

    def test_bad_inputs(self, iba, images):
        x = images(1)
        with pytest.raises(InputError, match=r"\(3, 6, 6\) and no batch axis"):
            self.analyze(iba, x[0])
        with pytest.raises(InputError, match="the number of axes differs"):
            self.analyze(iba, x[..., None])
        with pytest.raises(InputError, match="channels must come first"):
            self.analyze(iba, x.permute(0, 2, 3, 1))
        with pytest.raises(InputError, match=r"input_t has shape \(6,\)"):
            self.analyze(iba, x[0, 0, 0])
        with pytest.raises(InputError, match="no image"):
            self.analyze(iba, x[:0])
        with pytest.raises(InputError, match="must be a tensor"):
            self.analyze(iba, x.numpy())
        x[0, 1, 2, 3] = torch.nan
        with pytest.raises(InputError, match=r"input_t holds nan at index \(0, 1, 2, 3\)"):
            self.analyze(iba, x)

    def test_bad_options(self, iba, images):
        for options, message in (
            ({"mode": "map"}, "mode='map'"),
            ({"beta": -1}, "beta=-1"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"optimization_steps": 1.5}, "optimization_steps=1.5"),
        ):
            with pytest.raises(InputError, match=message):
                self.analyze(iba, images(1), **options)
        for options, message in (
            ({"input_or_output": "middle"}, "input_or_output='middle'"),
            ({"layer": "conv1"}, "layer='conv1' must be a module"),
            ({"feature_mean": np.zeros(3)}, "feature_mean and feature_std"),
            ({"beta": float("nan")}, "beta=nan"),
        ):
            with pytest.raises(InputError, match=message):
                IBA(**options)

    def test_losses_that_are_none(self, iba, images):
        model = self.model
        for closure, message in (
            (lambda x: model(x).sum().item(), "returned -?[0-9.]+; a floating-point tensor"),
            (lambda x: model(x).argmax(), r"returned tensor\(.*floating-point tensor"),
            (lambda x: model(x).T.mean(1), r"a loss of shape \(5,\) for 10 inputs"),
        ):
            with pytest.raises(InputError, match=message):
                iba.analyze(images(1), closure)
        with pytest.raises(LayerError, match="does not depend on layer 'conv1'"):
            iba.analyze(images(1), lambda x: model(x).detach().mean())
        with pytest.raises(LayerError, match="layer 'conv1' does not run"):
            iba.analyze(images(1), lambda x: x.mean())

    def test_a_feature_map_of_another_shape(self, iba, images):
        x = torch.zeros(1, 3, 8, 8).double()
        with pytest.raises(InputError, match=r"\(batch, 3, 8, 8\).* on inputs of shape \(batch, 3, 6, 6\)"):
            self.analyze(iba, x)
        message = r"\(4, 8, 8\).*\(4, 6, 6\)"
        other = IBA(self.model.conv1)
        other.load_state_dict(iba.state_dict())
        with pytest.raises(InputError, match=message):
            other.analyze(x, lambda x: self.model.conv1(x.mean(1, keepdim=True).expand(-1, 4, -1, -1)).mean())
        with pytest.raises(InputError, match=message), iba.restrict_flow():
            iba(torch.zeros(1, 4, 8, 8))

    def test_more_maps_than_masks(self, iba, images):
        iba.analyze(images(2), lambda x: self.model(x).mean())
        with (
            pytest.raises(InputError, match="3 feature maps do not go with the 2 masks"),
            iba.restrict_flow(),
        ):
            self.model(images(3))


class TestState:
    def test_state_goes_into_another_bottleneck(self, cases, images):
        model = cases["residual"].make()
        iba, other = IBA(model.conv1), IBA(model.conv1)
        iba.estimate(model, [images(6)])
        other.load_state_dict(iba.state_dict())
        x, loss = images(1), cross_entropy_of(model, 1)
        np.testing.assert_array_equal(other.analyze(x, loss, seed=1), iba.analyze(x, loss, seed=1))

    def test_state_is_that_of_tensors_alone(self, cases, images, tmp_path):
        from safetensors.torch import load_file, save_file

        model = cases["residual"].make()
        iba = IBA(model.conv1)
        iba.estimate(model, [images(6)])
        save_file(iba.state_dict(), tmp_path / "iba.safetensors")
        other = IBA(model.conv1)
        other.load_state_dict(load_file(tmp_path / "iba.safetensors"))
        torch.testing.assert_close(other.estimator.std(), iba.estimator.std(), rtol=0, atol=0)
        assert not any("conv1" in name or "layer" in name for name in iba.state_dict())


def test_tokens_fold_into_a_map_of_the_image(cases, images):
    model = cases["transformer"].make()
    iba = IBA(model.blocks[0], tokens=Tokens(prefix=1, grid=(3, 3)))
    iba.estimate(model, [images(20)])
    x, loss = images(1), cross_entropy_of(model, 1)
    saliency = iba.analyze(x, loss, seed=1)
    capacity = iba.analyze(x, loss, "capacity", seed=1)
    assert saliency.shape == (6, 6)
    np.testing.assert_allclose(saliency.sum(), capacity[1:].sum() / np.log(2))
    with iba.restrict_flow():
        assert model(images(2)).shape == (2, 5)
