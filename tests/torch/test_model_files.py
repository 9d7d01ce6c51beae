"""Models in files, and as Hugging Face hands them over."""

import json
import re
import shutil
import sys
import zipfile
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export

from iba_core import Explainer, MissingDependencyError, StateError, Tokens
from iba_core.framework.adapter import load_model

X = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SETTINGS = {"steps": 2, "samples": 2}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        body = nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3)
        self.body, self.head = nn.Sequential(*body), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Network().eval()


def saved(model, path, shapes=({0: Dim.DYNAMIC},)):
    torch.export.save(export(model, (X,), dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize("layer", ["body", "body.1"])
def test_an_exported_program_has_its_layers_and_the_same_map(model, tmp_path, layer):
    path = saved(model, tmp_path / "net.pt2")
    maps = [
        Explainer(each, layer=layer, **SETTINGS).fit([X], progbar=False).explain(X[:2], target=1, seed=0)
        for each in (model, path, str(path))
    ]
    assert maps[0].total_bits.min() > 0
    for each in maps[1:]:
        np.testing.assert_allclose(each.saliency, maps[0].saliency, rtol=1e-4, atol=1e-6)


def test_a_program_for_one_batch_size_says_how_to_export_it(model, tmp_path):
    path = saved(model, tmp_path / "net.pt2", shapes=None)
    with pytest.raises(StateError, match=r"takes batches of 6 only; export it with dynamic_shapes="):
        Explainer(path)


def altered(path, change):
    """Change one file of an archive."""
    other = path.with_name("altered.pt2")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(other, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return other


def an_expression(name, content):
    evil = b"__import__('pathlib').Path('run').touch()"
    return (
        content.replace(b"Symbol('", evil + b" or Symbol('")
        if name.endswith("models/model.json")
        else content
    )


def pickled_weights(name, content):
    return (
        content.replace(b'"use_pickle": false', b'"use_pickle": true')
        if "weights_config" in name
        else content
    )


def code(name, content):
    if not name.endswith("models/model.json"):
        return content
    return json.dumps({**json.loads(content), "guards_code": ["print('run')"]}).encode()


def pickled_inputs(name, content):
    import pickle

    return pickle.dumps(print) if "sample_inputs" in name else content


def an_object(name, content):
    """PyTorch unpickles it, whatever ``use_pickle`` says."""
    return content.replace(b'"weight_0"', b'"opaque_obj_0"') if "weights_config" in name else content


def an_import(name, content):
    if not name.endswith("models/model.json"):
        return content
    return re.sub(rb'("in_spec": ")(.)', rb"\1__enum__ \2", content)


@pytest.mark.parametrize(
    "change", [an_expression, pickled_weights, code, pickled_inputs, an_object, an_import]
)
def test_what_would_run_as_it_is_read_is_refused(model, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    path = altered(saved(model, tmp_path / "net.pt2"), change)
    with pytest.raises(StateError, match=r"altered\.pt2"):
        Explainer(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", [str, str.upper])
def test_a_file_that_only_pytorch_would_see_is_refused(model, tmp_path, case):
    path = saved(model, tmp_path / "net.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("models/model.json"))
        archive.writestr(case(name), archive.read(name))
    with pytest.raises(StateError, match="two files of one name"):
        Explainer(path)


@pytest.mark.filterwarnings("ignore")
def test_a_script_and_weights_alone_are_refused_with_the_way_out(model, tmp_path):
    torch.jit.trace(model, X).save(tmp_path / "script.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for name, way in (
        ("script.pt", "save it with torch.export.save"),
        ("weights.pt", "make the model in Python"),
    ):
        with pytest.raises(StateError, match=way):
            Explainer(tmp_path / name)
    with pytest.raises(StateError, match="there is no model file"):
        Explainer(tmp_path / "none.pt2")


# -- ONNX ---------------------------------------------------------------------------------------------


@pytest.fixture
def torchvision(monkeypatch):
    """What onnx2torch imports for operations of detection, which need not be there for others."""
    for name in ("torchvision", "torchvision.ops"):
        empty = ModuleType(name)
        empty.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, empty)
    sys.modules["torchvision"].ops = sys.modules["torchvision.ops"]
    sys.modules["torchvision.ops"].roi_align = None
    # It keeps what it has imported.
    for name in [each for each in sys.modules if each.partition(".")[0] == "onnx2torch"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [each for each in sys.modules if each.partition(".")[0] == "onnx2torch"]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_file_is_explained_like_the_model_that_it_was_made_of(model, tmp_path, torchvision):
    pytest.importorskip("onnx2torch", reason="converts the file")
    path = tmp_path / "net.onnx"
    options = {
        "dynamo": False,
        "opset_version": 17,
        "input_names": ["x"],
        "dynamic_axes": {"x": {0: "batch"}},
    }
    torch.onnx.export(model, (X,), path, **options)
    converted = load_model(path)
    torch.testing.assert_close(converted(X), model(X), rtol=1e-5, atol=1e-5)
    maps = [
        Explainer(each, layer=layer, **SETTINGS).fit([X], progbar=False).explain(X[:2], target=1, seed=0)
        for each, layer in ((model, "body.2"), (path, "body/body/2/Relu"))
    ]
    assert maps[0].total_bits.min() > 0
    np.testing.assert_allclose(maps[1].saliency, maps[0].saliency, rtol=1e-3, atol=1e-6)


def test_an_onnx_file_without_its_converter_or_damaged_is_refused(tmp_path, torchvision, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"nothing of ONNX")
    if find_spec("onnx2torch") is not None:
        with pytest.raises(StateError, match="cannot be converted by onnx2torch"):
            Explainer(path)
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(MissingDependencyError, match="needs the package onnx2torch"):
        Explainer(path)


# -- Hugging Face -------------------------------------------------------------------------------------

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
IDS = torch.tensor([[1, 7, 9, 12, 2], [1, 30, 2, 0, 0], [1, 4, 4, 2, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


@pytest.fixture
def bert():
    transformers = pytest.importorskip("transformers", reason="the models come from there")
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **SMALL)).eval()


def test_padding_has_no_bits_and_no_part_in_the_statistics(bert):
    explainer = Explainer(bert, **SETTINGS).fit(BATCH, progbar=False)
    assert (explainer.layer, explainer.tokens) == ("bert.encoder.layer.0", Tokens(any_length=True))
    with torch.no_grad():
        hidden = bert(**BATCH, output_hidden_states=True).hidden_states[1]
    words = hidden[IDS != 0].numpy()
    assert explainer.estimator.n_samples() == len(words) == 12
    np.testing.assert_allclose(explainer.estimator.mean(), words.mean(axis=0), atol=1e-5)
    found = explainer.explain(BATCH, target=1, seed=0)
    assert (found.saliency[IDS.numpy() == 0] == 0).all()
    assert (found.saliency[IDS.numpy() != 0] > 0).all()
    # The padding of a text is as if it were not there.
    alone = explainer.explain({"input_ids": IDS[1:2, :3]}, target=1, seed=0)
    np.testing.assert_allclose(alone.outputs, found.outputs[1:2], atol=1e-5)


def test_a_mask_of_ones_own_is_kept_beside_the_padding(bert):
    explainer = Explainer(bert, **SETTINGS).fit(BATCH, progbar=False)
    passing = np.zeros((5, 16), bool)
    passing[0] = True
    found = explainer.explain(BATCH, target=1, seed=0, pass_mask=passing)
    assert (found.saliency[:, 0] == 0).all()
    assert (found.saliency[1] > 0).tolist() == [False, True, True, False, False]


def test_a_folder_and_a_pipeline_are_their_models(bert, tmp_path):
    from transformers import BatchEncoding, Pipeline

    class Own(Pipeline):
        def _sanitize_parameters(self, **kwargs):
            return {}, {}, {}

        preprocess = _forward = postprocess = None

    bert.save_pretrained(tmp_path / "bert")
    maps = [
        Explainer(each, **SETTINGS).fit(BatchEncoding(BATCH), progbar=False).explain(BATCH, target=1, seed=0)
        for each in (bert, tmp_path / "bert", Own(bert, tokenizer=None))
    ]
    for each in maps[1:]:
        np.testing.assert_allclose(each.saliency, maps[0].saliency, rtol=1e-5)


def test_a_folder_that_is_none_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for config, said in (
        ("{}", "names no architecture"),
        ('{"architectures": ["os"]}', "transformers lacks"),
    ):
        (folder / "config.json").write_text(config)
        with pytest.raises(StateError, match=said):
            Explainer(folder)
    shutil.rmtree(folder)
