"""Compiled, parallel, scripted and exported models are explained as the plain ones are, or say why not."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from iba_core import Explainer, LayerError
from iba_torch import IBA, TorchSplit

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()


def compiled(model):
    wrapped = torch.compile(model, backend="eager")
    # Compiled before there is any bottleneck.
    wrapped(torch.zeros(2, 3, 6, 6))
    return wrapped


def compiled_in_place(model):
    model.compile(backend="eager")
    model(torch.zeros(2, 3, 6, 6))
    return model


def compiled_parts(model):
    model[2] = compiled_part = torch.compile(model[2], backend="eager")
    compiled_part(torch.zeros(2, 4, 6, 6))
    return model


def scripted_parts(model):
    model[2] = torch.jit.script(model[2])
    return model


def traced_by_fx(model):
    return torch.fx.symbolic_trace(model)


def unflattened(model):
    shapes = ({0: torch.export.Dim("images")},)
    return torch.export.unflatten(
        torch.export.export(model, (torch.zeros(2, 3, 6, 6),), dynamic_shapes=shapes)
    )


WRAPPERS = (
    compiled,
    compiled_in_place,
    compiled_parts,
    nn.DataParallel,
    scripted_parts,
    traced_by_fx,
    unflattened,
)


@pytest.fixture
def data(images):
    return images(20, torch.float32, 3)


@pytest.fixture
def x(images):
    return images(2, torch.float32)


@pytest.fixture
def expected(data, x):
    return explain(network(), data, x)


def explain(model, data, x):
    explainer = Explainer(model, layer="0", steps=3, samples=3).fit([data], progbar=False)
    return explainer.explain(x, target=1, seed=0).capacity


@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
class TestWrapped:
    def test_the_explainer_finds_the_same(self, wrap, data, x, expected):
        np.testing.assert_allclose(explain(wrap(network()), data, x), expected, rtol=1e-3, atol=1e-6)

    def test_so_does_the_bottleneck_and_it_restricts_the_flow(self, wrap, data, x, expected):
        model = wrap(network())
        inner = getattr(model, "_orig_mod", getattr(model, "module", model))
        plain = model(x)
        iba = IBA(inner.get_submodule("0"), optimization_steps=3, batch_size=3)
        iba.estimate(model, [data])
        assert iba.estimator.n_samples() == len(data)

        def loss(inputs):
            return functional.cross_entropy(model(inputs), torch.ones(len(inputs)).long())

        found = iba.analyze(x, loss, "capacity", seed=0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
        with iba.restrict_flow():
            assert (model(x) - plain).abs().max() > 0.01
        torch.testing.assert_close(model(x), plain)
        with iba.enable_estimation():
            model(x)
        assert iba.estimator.n_samples() == len(data) + 2
        with iba.interrupt_execution():
            model(x)
            raise AssertionError("the model ran on")
        iba.detach()
        torch.testing.assert_close(model(x), plain)


def test_layers_inside_of_a_scripted_module_say_so(data):
    scripted = torch.jit.script(network())
    model = nn.Sequential(nn.Identity(), scripted)
    for name in ("1.0", "1.2.0"):
        with pytest.raises(
            LayerError, match=rf"layer '{name}' does not run .* scripted, and layers in there"
        ):
            Explainer(model, layer=name).fit([data], progbar=False)
    message = "layer is a scripted {}, on which PyTorch allows no hooks; put it into an nn.Sequential"
    for name, kind in (("", "Sequential"), ("0", "Conv2d")):
        with pytest.raises(LayerError, match=message.format(kind)):
            IBA(dict(scripted.named_modules())[name])
    around = nn.Sequential(scripted)
    iba = IBA(around)
    iba.estimate(around, [data])
    assert iba.estimator.shape == (5,)


def test_layers_of_an_exported_program_say_how_to_get_them_back(data):
    shapes = ({0: torch.export.Dim("images")},)
    program = torch.export.export(network(), (torch.zeros(2, 3, 6, 6),), dynamic_shapes=shapes)
    with pytest.raises(LayerError, match=r"'0' does not run .* torch\.export\.unflatten makes them so"):
        explain(program.module(), data, data[:1])


def test_models_with_a_bottleneck_can_be_copied_and_pickled(data, x):
    model = network()
    iba = IBA(model[0])
    iba.estimate(model, [data])
    file = io.BytesIO()
    torch.save((model, iba), file)
    file.seek(0)
    for other_model, other in (copy.deepcopy((model, iba)), torch.load(file, weights_only=False)):
        assert other.layer is other_model[0]
        with other.restrict_flow():
            assert not torch.allclose(other_model(x), model(x))
        other.detach()
        torch.testing.assert_close(other_model(x), model(x))


def test_a_model_compiled_while_a_head_is_open_is_split_too(images, x, monkeypatch):
    calls = nn.Module.__call__, nn.Module._call_impl
    first, second = network(), compiled_in_place(network())
    with monkeypatch.context() as patch:
        patch.setattr("iba_torch.tail.calls.compiler_is_loaded", lambda: False)
        opened = TorchSplit(lambda inputs: first(inputs) + 0, first[0]).head(x)
        opened.__enter__()
    assert nn.Module._call_impl is not calls[1]
    try:
        features = TorchSplit(lambda inputs: second(inputs) + 0, second[0]).features(x)
        torch.testing.assert_close(first(x), network()(x))
    finally:
        opened.__exit__(None, None, None)
    torch.testing.assert_close(features, second[0](x))
    assert (nn.Module.__call__, nn.Module._call_impl) == calls
