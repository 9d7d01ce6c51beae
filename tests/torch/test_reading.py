"""What a model is called with and what is read of it: right, or refused with one sentence."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import Explainer, InputError, LayerError
from iba_core.framework.inputs import Shared
from iba_torch import IBA, IBAReadout
from iba_torch.adapter import TorchAdapter
from iba_torch.framework import TorchFramework
from iba_torch.tail.split import TorchSplit

OPTIONS = {"steps": 3, "samples": 2}


def made(build):
    torch.manual_seed(0)
    return build().double().eval()


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 6, 6, dtype=torch.float64, generator=generator)


def nll(model):
    return lambda x: functional.cross_entropy(
        model(x), torch.zeros(len(x), dtype=torch.long), reduction="none"
    )


class TestLoadedStatistics:
    """A batch as large as another axis, with statistics that were gathered elsewhere."""

    @pytest.fixture
    def model(self, cases):
        """Seven steps in the first axis, so that seven images look the same."""
        return cases["recurrent_second"].make().eval()

    @pytest.mark.parametrize("layer", ["embed", "lstm", "norm"])
    @pytest.mark.parametrize("where", ["output", "input"])
    def test_the_first_head(self, model, replacement, layer, where):
        x = images(7)
        wanted = TorchSplit(model, model.get_submodule(layer), where=where).features(x[:2])
        with TorchSplit(model, model.get_submodule(layer), where=where).head(x) as tail:
            torch.testing.assert_close(tail.features[:2], wanted)
            z = tail.features.repeat_interleave(2, 0) * 0.9
            found = tail(z)
        with replacement[0](model, layer, z, where):
            torch.testing.assert_close(found, model(x.repeat_interleave(2, 0)))

    @pytest.mark.parametrize("layer", ["embed", "lstm"])
    def test_explainer(self, model, layer):
        estimator = Explainer(model, layer).fit([images(5, 1)], progbar=False).estimator
        together = Explainer(model, layer, estimator=estimator, **OPTIONS).explain(images(7), 0, seed=0)
        for index in range(7):
            alone = Explainer(model, layer, estimator=estimator, **OPTIONS)
            found = alone.explain(images(7)[index : index + 1], 0, seed=0)
            np.testing.assert_allclose(found.capacity[0], together.capacity[index], rtol=1e-6)

    @pytest.mark.parametrize("layer", ["embed", "lstm"])
    def test_iba(self, model, layer):
        statistics = Explainer(model, layer).fit([images(5, 1)], progbar=False).estimator
        given = {"feature_mean": statistics.mean(), "feature_std": statistics.std()}

        def analyze(x):
            iba = IBA(model.get_submodule(layer), batch_size=2, optimization_steps=3, **given)
            capacity = iba.analyze(x, nll(model), mode="capacity", seed=0)
            with iba.restrict_flow():
                assert model(x).shape == (len(x), 5)
            restricted = iba.capacity().detach()
            iba.detach()
            return capacity, restricted

        together, mean = analyze(images(7))
        assert tuple(mean.shape) == together.shape[1:]
        np.testing.assert_allclose(mean, together.mean(0), rtol=1e-6)
        np.testing.assert_allclose(analyze(images(7)[2:3])[0], together[2], rtol=1e-6)

    def test_readout(self, model):
        def readout():
            return IBAReadout("embed", ["lstm", "norm"], model)

        torch.manual_seed(0)
        fitted = readout()
        fitted.estimate(model, [images(7, 1)], progbar=False)
        state = fitted.state_dict()
        fitted.detach()
        found = []
        for x in (images(7), images(7)[2:3]):
            loaded = readout()
            loaded.load_state_dict(state)
            found.append(loaded.analyze(x, model, mode="capacity"))
            loaded.detach()
        np.testing.assert_allclose(found[1], found[0][2], rtol=1e-6)

    def test_a_tail_that_ends_at_a_layer(self, model):
        adapter = TorchAdapter(model)
        with adapter.split("embed", end_layer="lstm").head(images(7)) as tail:
            together = tail(tail.features)
        for index in (0, 4):
            with (
                TorchAdapter(model)
                .split("embed", end_layer="lstm")
                .head(images(7)[index : index + 1]) as tail
            ):
                torch.testing.assert_close(tail(tail.features)[0], together[index])

    def test_as_many_class_embeddings_as_images(self):
        class Zero(nn.Module):
            """Scores are products with the embeddings of ten classes."""

            def __init__(self):
                super().__init__()
                self.body, self.names = nn.Conv2d(3, 4, 3), nn.Embedding(10, 4)

            def forward(self, x):
                names = self.names(torch.arange(10))
                return functional.normalize(self.body(x).mean((2, 3))) @ functional.normalize(names).T

        model = made(Zero)
        statistics = Explainer(model, "body").fit([images(5, 1)], progbar=False).estimator
        together = Explainer(model, "body", estimator=statistics, **OPTIONS).explain(images(10), 3, seed=0)
        alone = Explainer(model, "body", estimator=statistics, **OPTIONS).explain(images(10)[6:7], 3, seed=0)
        np.testing.assert_allclose(alone.capacity[0], together.capacity[6], rtol=1e-6)


class Captions(nn.Module):
    """Compares images with captions."""

    def __init__(self):
        super().__init__()
        self.body, self.words = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4)

    def forward(self, captions, x):
        return self.body(x).mean((2, 3)) @ self.words(captions).mean(1).T


def test_a_shared_input_stays_whole():
    model, x = made(Captions), images(5)
    captions = torch.arange(20).reshape(5, 4) % 9
    with TorchAdapter(model).split("body").head((Shared(captions), x)) as tail:
        found = tail(tail.features.repeat_interleave(3, 0))
    torch.testing.assert_close(found, model(captions, x).repeat_interleave(3, 0))


class Detector(nn.Module):
    """Takes a list of images and returns a list of dicts, as detectors do."""

    def __init__(self):
        super().__init__()
        self.body, self.classes, self.boxes = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images, targets=None):
        if not all(image.ndim == 3 for image in images):
            raise ValueError("a list of images with three axes was expected")
        features = self.body(torch.stack(list(images))).relu()
        found = []
        for scores, boxes in zip(
            self.classes(features).flatten(2), self.boxes(features).flatten(2), strict=True
        ):
            best = scores.amax(0).topk(3).indices
            found.append({"boxes": boxes[:, best].T, "scores": scores[:, best]})
        return found


class Scores(nn.Module):
    """The best score of each class."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, x):
        return torch.stack([found["scores"].amax(1) for found in self.detector(list(x))])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_list_of_images_is_refused(count):
    given = list(images(count))
    explainer = Explainer(made(Detector), "body")
    with pytest.raises(InputError, match=r"takes a list of images.*one batch x"):
        explainer.fit([(given, None)] * 2, progbar=False)


def test_a_list_of_dicts_is_refused_and_a_wrapped_detector_is_served(replacement):
    with pytest.raises(InputError, match="returns a list with a dict for each image"):
        Explainer(made(Detector), "body").fit([images(4)], progbar=False)
    model, x = made(lambda: Scores(Detector())), images(2)
    with TorchAdapter(model).split("detector.body").head(x) as tail:
        z = 0.7 * tail.features.repeat_interleave(3, 0)
        found = tail(z)
    with replacement[0](model, "detector.body", z):
        torch.testing.assert_close(found, model(x.repeat_interleave(3, 0)))


def test_several_inputs_in_a_list_are_no_list_of_images():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, a, b):
            return (self.a(a) + self.b(b)).mean(1)

    model, a, b = made(Sum), *torch.randn(2, 5, 7, 4, dtype=torch.float64)
    attribution = (
        Explainer(model, "a", **OPTIONS).fit([([a, b], None)], progbar=False).explain([a, b], 0, seed=0)
    )
    assert attribution.capacity.shape == (5, 7, 3)


def test_keras_on_pytorch_is_refused():
    code = (
        "import keras; from iba_core import Explainer, InputError\n"
        "model = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])\n"
        "try: Explainer(model, 'conv2d')\n"
        "except InputError as error: print(error)"
    )
    environment = {"KERAS_BACKEND": "torch", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert "is a Keras Sequential that runs on PyTorch" in found.stdout


def offload(module):
    """Keep the weights elsewhere but for the module's own calls, as accelerate does."""
    weights = dict(module.named_parameters(recurse=False))
    if not weights:
        return

    def forward(module, x):
        for name, weight in weights.items():
            module._parameters[name] = nn.Parameter(weight.data, requires_grad=False)
        output = type(module).forward(module, x)
        for name, weight in weights.items():
            module._parameters[name] = nn.Parameter(weight.to("meta"), requires_grad=False)
        return output

    module.forward = partial(forward, module)
    for name, weight in weights.items():
        module._parameters[name] = nn.Parameter(weight.to("meta"), requires_grad=False)


@pytest.mark.parametrize("layer", ["0", "1", "2"])
def test_offloaded_weights(layer):
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
        )

    x = images(4).numpy()
    wanted = Explainer(made(build), layer, **OPTIONS).fit([x], progbar=False).explain(x, 0, seed=0)
    model = made(build)
    for module in model:
        offload(module)
    found = Explainer(model, layer, **OPTIONS).fit([x], progbar=False).explain(x, 0, seed=0)
    np.testing.assert_array_equal(found.capacity, wanted.capacity)
    assert all(parameter.is_meta for parameter in model.parameters())


class Branches(nn.Module):
    """Two outputs, the first of which does not depend on one of the layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.first(x).mean((2, 3))), self.out(self.second(x).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, that quantisation moves elsewhere; and a way around
class TestNothingDependsOnTheLayer:
    def test_the_first_output_is_not_connected(self):
        model = made(Branches)
        explainer = Explainer(model, "second", **OPTIONS).fit([images(4)], progbar=False)
        with pytest.raises(LayerError, match="does not depend on"):
            explainer.explain(images(1), 0)
        iba = IBA(model.second, batch_size=2)
        iba.estimate(model, [images(4)], progbar=False)
        with pytest.raises(LayerError, match="does not depend on"):
            iba.analyze(images(1), lambda x: model(x)[0].mean(1))
        iba.detach()

    def test_whole_numbers(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        explainer = Explainer(model, "1", **OPTIONS).fit([images(4)], progbar=False)
        with pytest.raises(LayerError, match="does not depend on"):
            explainer.explain(images(1), 0)

    def test_a_constant(self):
        framework, x = TorchFramework(), torch.zeros(2)
        for function in (lambda x: (torch.ones(()), ()), lambda x: (torch.ones((), requires_grad=True), ())):
            with pytest.raises(LayerError, match="does not depend on the layer"):
                framework.value_and_grad(function, x)


class TestBatchStatistics:
    """A normalisation by the statistics of the batch, also in evaluation mode."""

    def build(self):
        norm = nn.BatchNorm2d(4, track_running_stats=False)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), norm, nn.Conv2d(4, 3, 3), nn.Flatten(2)).append(
            Last()
        )

    @pytest.mark.parametrize("layer", ["1", "2"])
    def test_explainer(self, layer):
        model = made(self.build)
        explainer = Explainer(model, layer, **OPTIONS)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            explainer.fit([images(4, 1)], progbar=False)
            together = explainer.explain(images(3), 0, seed=0)
        assert any("depends on the other images" in str(warning.message) for warning in caught)
        for index in range(3):
            found = explainer.explain(images(3)[index : index + 1], 0, seed=0)
            np.testing.assert_allclose(found.capacity[0], together.capacity[index])

    def test_iba_passes_the_copies_one_by_one(self):
        model, x = made(self.build), images(1)
        iba = IBA(model[1], batch_size=3, optimization_steps=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            iba.estimate(model, [images(4, 1)], progbar=False)
        rows = []

        def loss(x):
            rows.append(len(x))
            return nll(model)(x)

        with pytest.warns(UserWarning, match="depends on the other images"):
            found = iba.analyze(x, loss, mode="capacity", seed=0)
        assert set(rows[-6:]) == {1}
        estimator = iba.estimator
        with pytest.raises(LayerError, match="explain them one by one"):
            iba.analyze(images(2), loss)
        iba.detach()
        explainer = Explainer(model, "1", steps=2, samples=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explainer.fit([images(4, 1)], progbar=False)
            wanted = explainer.explain(x, 0, seed=0)
        np.testing.assert_allclose(explainer.estimator.mean(), estimator.mean())
        np.testing.assert_allclose(found, wanted.capacity[0], rtol=1e-6)

    def test_a_readout_is_refused(self):
        model = made(self.build)
        readout = IBAReadout("0", ["1", "3"], model)
        with pytest.raises(LayerError, match="by the statistics of the batch"):
            readout.estimate(model, [images(4, 1)], progbar=False)
        readout.detach()

    def test_a_normalisation_of_each_image_is_none(self):
        model = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Flatten(2), Last()))
        iba = IBA(model[0], batch_size=3, optimization_steps=2)
        iba.estimate(model, [images(4, 1)], progbar=False)
        assert iba.analyze(images(2), nll(model)).shape == (2, 6, 6)
        iba.detach()


class Last(nn.Module):
    def forward(self, x):
        return x[..., :3].mean(2)


@pytest.mark.parametrize(
    ("end", "wanted"),
    [
        (nn.Sigmoid(), "sigmoid"),
        (nn.Softmax(-1), "softmax"),
        (nn.Identity(), "other"),
        (nn.LogSoftmax(-1), "other"),
        (nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (3, 1)), nn.Flatten()), "sigmoid"),
    ],
)
def test_the_function_that_the_output_ends_in(end, wanted):
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten(), nn.Linear(4, 3), end))
    with TorchAdapter(model).split("0").head(images(2)) as tail:
        assert tail.activations() == [wanted]
