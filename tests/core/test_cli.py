"""The command line, on tiny networks of both frameworks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import iba_core
from iba_core import CombinedAttribution, Explainer, MissingDependencyError
from iba_core.bottleneck.settings import KEEP, BottleneckSettings, preset_settings
from iba_core.cli import console, demo, main, network, photographs, results, statistics
from iba_core.cli.network import Network, parse_size, read_class_names
from iba_core.cli.quiet import quiet_start
from iba_core.datasets import Run
from iba_core.framework import adapter
from iba_core.pictures.images import Preprocessing, image_batches, image_files, load_image
from iba_core.targets import class_probabilities

torch = pytest.importorskip("torch")
WITH_TENSORFLOW = find_spec("tensorflow") is not None

MODULE = """
import torch
from torch import nn

from iba_core.pictures.images import Preprocessing

COUNT = 3


def _net(channels=3):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16 * 16, 5),
    )


def plain():
    return _net()


def told():
    net = _net()
    net.preprocessing = Preprocessing.preset("imagenet", (32, 32))
    net.class_names = ["cat", "Tiger Cat", "crane", "crane", "American Staffordshire terrier"]
    return net


class Own(nn.Sequential):
    preprocessing = Preprocessing(size=(32, 32))


def own():
    return Own(*_net())


def altered():
    net = told()
    with torch.no_grad():
        net[3].weight[2] *= 1.5
    return net


def grey():
    net = _net(1)
    net.preprocessing = Preprocessing(size=(32, 32), channels=1)
    return net


def needs(weights):
    return _net()


def broken():
    raise RuntimeError("the weights are gone")


def leaves():
    raise SystemExit(3)


class Quiet(nn.Sequential):
    @property
    def preprocessing(self):
        raise RuntimeError("ask me later")


def silent():
    return Quiet(*_net())


def sigmoid(count=3):
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, count), nn.Sigmoid()
    )
    net.preprocessing = Preprocessing(size=(16, 16))
    return net


def one_output():
    net = sigmoid(1)
    with torch.no_grad():
        net[3].bias.fill_(-1.0)
    return net


def raw():
    return one_output()[:4]


def certain():
    net = sigmoid(3)
    net[4] = nn.Softmax(dim=1)
    with torch.no_grad():
        net[3].bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    return net


class Meta(type):
    def __getattr__(cls, name):
        raise OSError("no attribute")


class Nested(metaclass=Meta):
    @staticmethod
    def build():
        return _net()


net = _net()
"""


def write_keras_model(path):
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(6, 3, padding="same", activation="relu", name="first"),
            layers.MaxPooling2D(name="half"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="logits"),
        ]
    ).save(path)


def require_tensorflow(*arguments):
    """Skip the test if the command line is asked for something that needs TensorFlow, and it is missing."""
    asks = any(word in str(argument) for argument in arguments for word in (".keras", "tensorflow"))
    # With every backend at work, what none of them can load is not put down to a missing one.
    asks = asks or any(word in arguments for word in ("tf", "jax", "effnet"))
    if asks and not WITH_TENSORFLOW:
        pytest.skip("TensorFlow is not installed")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a module of models, a Keras file, photographs, and statistics for `told`."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny_nets.py").write_text(MODULE)
    (folder / "lacking_net.py").write_text("import a_package_that_is_not_there\n")
    (folder / "leaving_net.py").write_text("import sys\n\nsys.exit('bye\\x1b[31m')\n")
    (folder / "wrong_net.py").write_text("def build(:\n")
    if WITH_TENSORFLOW:
        write_keras_model(folder / "net.keras")
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for name in ("one.jpg", "two.png", "three.png"):
        pixels = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 48)).save(folder / "photos" / name)
    (folder / "bad.jpg").write_text("this is no image")
    (folder / "empty").mkdir()
    (folder / "data").mkdir()
    for index in range(12):
        pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{index}.png")
    told = Network.load  # the statistics are made by the library, not by the command that is tested
    before = os.getcwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        net = told("tiny_nets:told")
    finally:
        os.chdir(before)
    batches = image_batches(image_files(folder / "data"), net.preprocessing, 12, "channels_first")
    Explainer(net.adapter.model, "3").fit(batches, progbar=False).save(folder / "told.safetensors")
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def iba(workplace, monkeypatch, capfd):
    """Run the command line in the folder, on 80 columns; gives exit code, stdout and stderr."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(statistics, "CROPS", 16)

    def run(*arguments):
        require_tensorflow(*arguments)
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["iba", *map(str, arguments)])
        code = main()
        out, err = capfd.readouterr()
        for line in (out + err).splitlines():
            assert "…" not in line
        for line in out.splitlines():
            assert len(line) <= 80
        return code, out, err

    return run


@pytest.fixture
def fails(iba):
    """Run the command line, expect one line on stderr and exit code 2, and return the line."""

    def run(*arguments):
        code, out, err = iba(*arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("iba: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.removeprefix("iba: error: ").rstrip("\n")

    return run


@pytest.fixture
def untouched(monkeypatch):
    """Let the test fail if a model is loaded."""

    def load(*arguments):
        raise AssertionError("a model was loaded before the error")

    monkeypatch.setattr(Network, "load", load)


def flat(out):
    """What was printed, as one line."""
    return " ".join(out.split())


def found(folder, name="one.jpg"):
    """The attribution of a photograph in the folder of a run."""
    (record,) = [record for record in Run.open(folder) if record.name == name]
    return record.attribution()


FAST = ("--steps", 2, "--samples", 3)
TOLD = ("--model", "tiny_nets:told", "--stats", "told.safetensors", *FAST)


# -- iba explain ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "framework", "backend"),
    [("tiny_nets:plain", "PyTorch", "torch"), ("net.keras", "TensorFlow", "tensorflow")],
)
def test_explain_writes_picture_numbers_and_table(iba, workplace, tmp_path, model, framework, backend):
    code, out, err = iba(
        "explain",
        "photos/one.jpg",
        "--model",
        model,
        "--size",
        32,
        *FAST,
        "--out",
        tmp_path / "new" / "folder",
    )
    assert (code, err) == (0, "")
    folder = tmp_path / "new" / "folder"
    assert len(os.listdir(folder / "results")) == 1
    (record,) = Run.open(folder)
    assert (record.path, record.layer) == (str(workplace / "photos" / "one.jpg"), found(folder).layer)
    with Image.open(record.picture_path) as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(maxcolors=10**7)) > 1000
    attribution = found(folder)
    assert attribution.saliency.shape == (1, 32, 32)
    assert attribution.settings == BottleneckSettings(steps=2, samples=3)
    assert attribution.seed == 0
    assert attribution.total_bits[0] > 0
    np.testing.assert_allclose(attribution.saliency.sum(), attribution.total_bits, rtol=1e-5)

    out = flat(out)
    assert f"{model}, in {framework} {sys.modules[backend].__version__.partition('+')[0]}" in out
    assert re.search(rf"Layer +{re.escape(attribution.layer)}, chosen automatically", out)
    assert "crops of the packaged sample photographs" in out
    assert f"iba estimate {model} FOLDER --out STATS" in out
    assert re.search(r"32 x 32 pixels, values 0 to 1; assumed, since the network does not say", out)


def test_table_tells_what_the_library_computes(iba, workplace, tmp_path):
    code, out, _ = iba("explain", "photos/one.jpg", "photos/two.png", *TOLD, "--seed", 7, "--out", tmp_path)
    assert code == 0
    net = Network.load("tiny_nets:told")
    explainer = Explainer(net.adapter.model, steps=2, samples=3).load(workplace / "told.safetensors")
    for name in ("one.jpg", "two.png"):
        x = net.inputs(load_image(workplace / "photos" / name))
        attribution = explainer.explain(x, seed=7)
        (row,) = (line for line in out.splitlines() if line.startswith(name))
        index = int(attribution.classes[0])
        probabilities = class_probabilities(attribution.outputs)[0]
        restricted = class_probabilities(explainer.predict_restricted(x, attribution, 3, seed=7)[0])
        survives = restricted[:, index].mean() / probabilities[index]
        bits = attribution.total_bits[0]
        assert f"▸ {index} {net.class_names[index].split()[0]}" in row
        figures = re.search(r"([\d.]+) % +([\d,]+) +([\d.e+-]+) +(\d+) % +([\d.]+) s *$", row)
        assert figures[1] == f"{100 * probabilities[index]:.1f}"
        assert figures[2] == f"{bits:,.0f}"
        assert figures[3] == f"{bits / 32**2:.3g}"
        assert figures[4] == f"{100 * survives:.0f}"
        top = np.argsort(-probabilities)[:3]
        for other in top:
            assert f"{100 * probabilities[other]:.1f} %" in out
        np.testing.assert_array_equal(found(tmp_path, name).capacity, attribution.capacity)
    out = flat(out)
    assert "3, the layer of the statistics" in out
    assert "told.safetensors, of 12 images" in out
    assert "as the network asks for" in out


def test_hyperparameters_reach_the_bottleneck(iba, tmp_path):
    options = ("--beta", 2.5, "--steps", 3, "--samples", 4, "--seed", 11, "--layer", "3")
    assert iba("explain", "photos/one.jpg", *TOLD, *options, "--out", tmp_path)[0] == 0
    attribution = found(tmp_path)
    assert attribution.settings == BottleneckSettings(beta=2.5, steps=3, samples=4)
    assert (attribution.seed, attribution.layer) == (11, "3")
    assert attribution.model_losses.shape == (3, 1)


def test_a_preset_sets_what_no_option_says(iba, tmp_path):
    options = ("--preset", "fast", "--steps", 2, "--samples", 3)
    assert iba("explain", "photos/one.jpg", *TOLD, *options, "--out", tmp_path)[0] == 0
    expected = BottleneckSettings(**{**preset_settings("fast"), "steps": 2, "samples": 3})
    assert found(tmp_path).settings == expected


def test_one_seed_one_map(iba, tmp_path):
    capacities = {}
    for run, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert iba("explain", "photos/one.jpg", *TOLD, "--seed", seed, "--out", tmp_path / run)[0] == 0
        capacities[run] = found(tmp_path / run).capacity
    np.testing.assert_array_equal(capacities["a"], capacities["b"])
    assert not np.array_equal(capacities["a"], capacities["c"])


@pytest.mark.parametrize("target", ["1", "tiger cat", "TIGER CAT"])
def test_target_by_index_or_name(iba, tmp_path, target):
    _, out, _ = iba("explain", "photos/one.jpg", *TOLD, "--target", target, "--out", tmp_path)
    assert found(tmp_path).classes.tolist() == [1]
    assert "▸ 1 Tiger Cat" in out


def test_target_among_the_unlikely_is_shown_too(iba, tmp_path):
    net = Network.load("tiny_nets:told")
    x = net.inputs(load_image("photos/one.jpg"))
    logits = net.adapter.framework.to_numpy(net.adapter.predict(net.adapter.to_inputs(x)))[0]
    least = int(logits.argmin())
    _, out, _ = iba("explain", "photos/one.jpg", *TOLD, "--target", least, "--out", tmp_path)
    first = next(i for i, line in enumerate(out.splitlines()) if line.startswith("one.jpg"))
    assert f"▸ {least} " in "\n".join(out.splitlines()[first + 3 : first + 5])


def test_methods_are_compared(iba, tmp_path):
    methods = "bottleneck, bottleneck, fast, Grad-CAM, random"
    options = ("--methods", methods, "--metrics", "insertion,sparseness,bits")
    command = ("evaluate", "photos", "--model", "tiny_nets:told", *options)
    code, out, _ = iba(*command, "--out", tmp_path)
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines() if line and line[0] != " "]
    assert {"Method", "bottleneck", "bottleneck,", "Grad-CAM", "random"} <= set(rows)
    assert set(os.listdir(tmp_path)) == {"evaluation.csv", "evaluation.json", "evaluation.png"}
    assert len((tmp_path / "evaluation.csv").read_text().splitlines()) == 1 + 4 * 3


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--methods", "Grad-CAN", "methods='Grad-CAN' is no method; the closest name"),
        ("--methods", " , ", "methods=' , ' names none"),
        ("--metrics", "insertions", "metrics='insertions' is no metric; the closest name"),
        ("--metrics", "mass_in_box", "metrics='mass_in_box' needs masks"),
    ],
)
def test_unknown_methods_and_metrics(fails, tmp_path, option, value, message):
    command = ("evaluate", "photos", "--model", "tiny_nets:told", option, value)
    assert fails(*command, "--out", tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tiger", "target='tiger' is not a class of the network; the closest name is 'tiger cat'"),
        ("crane", "target='crane' is the name of the classes 2 and 3; give the index"),
        ("5", "target=5 is outside the model's 5 classes, 0 to 4"),
        ("-1", "target=-1 is outside the model's 5 classes, 0 to 4"),
    ],
)
def test_wrong_targets(fails, monkeypatch, tmp_path, target, message):
    def fit(*arguments, **options):
        raise AssertionError("the features were estimated before the error")

    monkeypatch.setattr(Explainer, "fit", fit)
    command = ("explain", "photos/one.jpg", "--model", "tiny_nets:told", f"--target={target}")
    assert fails(*command, "--out", tmp_path / "out") == message
    assert not (tmp_path / "out").exists()


def test_target_by_name_needs_names(fails):
    message = fails(
        "explain", "photos/one.jpg", "--model", "tiny_nets:plain", "--size", 32, "--target", "cat"
    )
    assert message == "target='cat' is a name, but the network's classes have no names; give an index"


def test_same_names_do_not_overwrite_each_other(iba, workplace, tmp_path):
    for folder, source in (("a", "one.jpg"), ("b", "two.png")):
        (tmp_path / folder).mkdir()
        load_image(workplace / "photos" / source).save(tmp_path / folder / "same.png")
    load_image(workplace / "photos" / "one.jpg").save(tmp_path / "a" / "Same.jpg")
    out = tmp_path / "out"
    assert iba("explain", tmp_path / "a", tmp_path / "b" / "same.png", *TOLD, "--out", out)[0] == 0
    run = Run.open(out)
    assert sorted(record.name for record in run) == ["Same.jpg", "same.png", "same.png"]
    assert len({record.picture for record in run}) == len(os.listdir(out / "pictures")) == 3
    assert len({record.attribution().capacity.tobytes() for record in run}) == 3


def test_a_photograph_given_twice_is_explained_once(iba, tmp_path):
    _, out, _ = iba("explain", "photos/one.jpg", "photos/../photos/one.jpg", *TOLD, "--out", tmp_path)
    assert len(os.listdir(tmp_path / "results")) == 1
    assert out.count("▸") == 2  # in the row, and in the legend


def test_results_are_not_explained_themselves(iba, workplace, tmp_path):
    load_image(workplace / "photos" / "one.jpg").save(tmp_path / "x.png")
    for _ in range(2):
        assert iba("explain", tmp_path, *TOLD, "--out", tmp_path / "out")[0] == 0
        assert [record.name for record in Run.open(tmp_path / "out")] == ["x.png"]
    # Named, they are photographs like any other.
    (picture,) = (tmp_path / "out" / "pictures").iterdir()
    assert iba("explain", picture, *TOLD, "--out", tmp_path / "out")[0] == 0
    assert len(Run.open(tmp_path / "out")) == 2


def test_folders_are_searched(iba, tmp_path):
    assert iba("explain", "photos", *TOLD, "--out", tmp_path)[0] == 0
    assert len(Run.open(tmp_path)) == 3


def test_a_second_run_explains_nothing_again(iba, monkeypatch, tmp_path):
    command = ("explain", "photos", *TOLD, "--out", tmp_path)
    first = iba(*command)[1]

    def explain(*arguments, **options):
        raise AssertionError("it was explained again")

    monkeypatch.setattr(Explainer, "explain", explain)
    code, second, _ = iba(*command)
    assert code == 0
    assert "3 explained, 3 of them earlier" in flat(second)
    assert [line for line in second.splitlines() if "%" in line] == [
        line for line in first.splitlines() if "%" in line
    ]


def test_several_targets(iba, tmp_path):
    code, out, _ = iba(
        "explain", "photos", *TOLD, "--target", "tiger cat", "--target", 0, "--target", 1, "--out", tmp_path
    )
    assert code == 0
    run = Run.open(tmp_path)
    assert sorted((record.name, record.class_name) for record in run) == sorted(
        (name, target) for name in ("one.jpg", "two.png", "three.png") for target in ("cat", "Tiger Cat")
    )
    assert len(os.listdir(tmp_path / "pictures")) == 6
    assert len([line for line in out.splitlines() if line.startswith("one.jpg")]) == 2


def test_explain_writes_a_report_on_request(iba, tmp_path):
    pytest.importorskip("jinja2")
    code, out, err = iba("explain", "photos/one.jpg", *TOLD, "--report", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "report/index.html" in out
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "1 input, 1 explanation" in page
    assert "tiny_nets:told" in page
    assert len(list((tmp_path / "report" / "maps").iterdir())) == 1


def test_a_broken_photograph_is_reported_and_skipped(iba, tmp_path):
    with pytest.warns(UserWarning, match=r"bad\.jpg is not an image"):
        code, out, err = iba("explain", "photos/one.jpg", "bad.jpg", *TOLD, "--out", tmp_path)
    assert code == 1
    assert "is not an image; the formats are" in flat(out)
    assert err.endswith("iba: 1 of 2 could not be explained\n")
    assert "1 explained, 1 not" in flat(out)
    assert [(record.name, record.error is None) for record in Run.open(tmp_path)] == [
        ("one.jpg", True),
        ("bad.jpg", False),
    ]


def test_names_of_classes_from_a_file(iba, tmp_path):
    (tmp_path / "names.txt").write_text("ape\nbee\ncow\ndoe\neel\n", encoding="utf-8")
    options = ("--classes", tmp_path / "names.txt", "--target", "Cow")
    code, out, _ = iba("explain", "photos/one.jpg", *TOLD, *options, "--out", tmp_path / "out")
    assert code == 0
    assert "▸ 2 cow" in out
    assert found(tmp_path / "out").class_names == ("cow",)


@pytest.mark.parametrize("text", ["a\n b \n", '["a", "b"]'])
def test_files_of_names(tmp_path, text):
    (tmp_path / "names").write_text(text)
    assert read_class_names(tmp_path / "names") == ["a", "b"]


@pytest.mark.parametrize("text", ["", "[1]", "[", b"\xff\xfe"])
def test_files_without_names(fails, tmp_path, text):
    (tmp_path / "names").write_bytes(text.encode() if isinstance(text, str) else text)
    message = fails("explain", "photos/one.jpg", "--classes", tmp_path / "names")
    assert message.startswith(f"classes={str(tmp_path / 'names')!r} ")


def test_results_as_json(iba, tmp_path):
    code, out, _ = iba("explain", "photos", *TOLD, "--json", "--out", tmp_path)
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.soak
def test_two_processes_explain_what_one_does(iba, tmp_path):
    runs = []
    for jobs in (1, 2):
        assert iba("explain", "photos", *TOLD, "--jobs", jobs, "--out", tmp_path / str(jobs))[0] == 0
        runs.append({record.key: record for record in Run.open(tmp_path / str(jobs))})
    assert runs[0].keys() == runs[1].keys()
    for key, record in runs[0].items():
        assert runs[1][key].bits == pytest.approx(record.bits, rel=1e-4)


@pytest.mark.soak
def test_a_cluster_explains_what_one_process_does(iba, tmp_path):
    """Also a network whose class is in a file of the folder."""
    pytest.importorskip("ray")
    for net in ("tiny_nets:told", "tiny_nets:own"):
        runs = []
        for name, options in (("alone", ()), ("together", ("--ray", "local", "--jobs", 2))):
            stats, out = tmp_path / f"{name}.safetensors", tmp_path / net / name
            told = (net, "data", "--size", 32, "--layer", "3", "--out", stats, *options)
            assert iba("estimate", *told)[0] == 0
            told = ("photos", "--model", net, "--size", 32, "--stats", stats, *FAST, "--out", out, *options)
            assert iba("explain", *told)[0] == 0
            runs.append({record.path: record for record in Run.open(out)})
        assert runs[0].keys() == runs[1].keys()
        for path, record in runs[0].items():
            assert runs[1][path].bits == pytest.approx(record.bits, rel=1e-4)


def test_a_share_of_a_gpu_is_for_a_cluster(fails):
    message = fails("explain", "photos", *TOLD, "--gpus", 0.5)
    assert message.startswith("gpus=0.5 is for workers on a cluster; give ray=")


def test_the_device_of_your_choice(iba, fails, tmp_path):
    command = ("explain", "photos/one.jpg", *TOLD, "--out", tmp_path, "--device")
    assert iba(*command, "cpu")[0] == 0
    assert fails(*command, "abacus").startswith("device='abacus' cannot be used")
    keras = ("layers", "net.keras")
    assert iba(*keras)[0] == 0


def test_one_scale_for_all_pictures(iba, tmp_path):
    sizes = []
    for vmax in (1e-6, 1e6):
        assert iba("explain", "photos/one.jpg", *TOLD, "--vmax", vmax, "--out", tmp_path / str(vmax))[0] == 0
        (record,) = Run.open(tmp_path / str(vmax))
        with Image.open(record.picture_path) as image:
            sizes.append(np.asarray(image.convert("RGB"))[200:400, 600:900].mean())
    assert sizes[0] > sizes[1] + 50


# -- several layers, and a beta for each photograph ---------------------------------------------------


def test_explain_makes_one_map_of_several_layers(iba, tmp_path):
    layers = ("--layer", "0", "--layer", "3")
    stats, out = tmp_path / "both.safetensors", tmp_path / "out"
    assert iba("estimate", "tiny_nets:told", "data", *layers, "--out", stats)[0] == 0
    for options in (layers, ()):  # the layers of the statistics
        code, shown, _ = iba(
            "explain",
            "photos/one.jpg",
            "--model",
            "tiny_nets:told",
            "--stats",
            stats,
            *options,
            *FAST,
            "--out",
            out,
        )
        assert code == 0
        assert "0, 3: geometric mean of their maps" in flat(shown)
    combined = found(out)
    assert isinstance(combined, CombinedAttribution)
    assert [part.layer for part in combined.parts] == ["0", "3"]


def test_explain_chooses_the_layers_of_one_map(iba, tmp_path):
    out, listed = tmp_path / "out", flat(iba("layers", "efficientnet-lite0")[1])
    assert "blocks.4, blocks.10, marked by *, make one map by default" in listed
    for options in ((), ("--layer", "auto")):
        code, shown, _ = iba("explain", "photos/one.jpg", *options, *FAST, "--out", out)
        assert code == 0
        assert "blocks.4, blocks.10, chosen automatically: geometric mean of their maps" in flat(shown)
        assert "packaged" in flat(shown)
    assert found(out).layer == "blocks.4, blocks.10"
    assert len(os.listdir(out / "results")) == 1  # both are the same


def test_explain_finds_a_beta_for_each_photograph(iba, fails, tmp_path):
    for number, (options, keep) in enumerate(
        ((("--keep", 0.8), 0.8), (("--beta", "auto"), KEEP), (("--beta", 3), None))
    ):
        out = tmp_path / f"{number}"
        assert iba("explain", "photos/one.jpg", *TOLD, *options, "--out", out)[0] == 0
        assert found(out).settings.keep == keep
    assert "beta='much' must be a number, or auto" in fails(
        "explain", "photos/one.jpg", *TOLD, "--beta", "much"
    )
    assert "keep=2.0 must be" in fails("explain", "photos/one.jpg", *TOLD, "--keep", 2)


def test_explain_begins_at_the_mask_of_a_readout(iba, fails, workplace, tmp_path):
    net = Network.load("tiny_nets:told", None, None, None)
    module = import_module("iba_torch").IBAReadout("3", ["3"], net.adapter.model, gradients=True)
    picture = net.preprocessing(load_image("photos/one.jpg"), "channels_first")[None]
    module.estimate(net.adapter.model, [np.concatenate([picture, -picture, 0.5 * picture])])
    module.save(tmp_path / "readout.safetensors")
    told = ("photos/one.jpg", "--model", "tiny_nets:told", "--stats", "told.safetensors")
    begin = ("--readout", tmp_path / "readout.safetensors")
    explainer = Explainer(net.adapter.model, warm_start=module).load("told.safetensors")
    expected = explainer.explain(picture, seed=0)
    said = {
        (): "the masks are as it gives them",
        ("--steps", 2): "2 steps from the mask",
        ("--keep", 0.7): "",
    }
    explained = {}
    for number, (options, note) in enumerate(said.items()):
        code, out, _ = iba("explain", *told, *begin, *options, "--out", tmp_path / f"{number}")
        assert (code, note in flat(out)) == (0, True)
        explained[options] = found(tmp_path / f"{number}")
    np.testing.assert_allclose(explained[()].capacity, expected.capacity, rtol=1e-5)
    assert [each.steps_taken.tolist() for each in explained.values()] == [[1], [2], [1]]
    assert explained["--keep", 0.7].settings.keep == 0.7
    assert "none.safetensors" in fails("explain", *told, "--readout", "none.safetensors")


# -- statistics that are kept -------------------------------------------------------------------------


def test_statistics_are_estimated_once(iba, monkeypatch, tmp_path):
    monkeypatch.setenv("IBA_CACHE", str(tmp_path / "cache"))
    fits = []
    fit = Explainer.fit

    def counted(self, *arguments, **options):
        fits.append(arguments)
        return fit(self, *arguments, **options)

    monkeypatch.setattr(Explainer, "fit", counted)

    def run(*options, model="tiny_nets:told"):
        before = len(fits)
        target = ("--out", tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert iba("explain", "photos/one.jpg", "--model", model, *FAST, *options, *target)[0] == 0
        return len(fits) - before, found(target[1])

    count, first = run()
    assert count == 1
    count, second = run()
    assert count == 0
    np.testing.assert_array_equal(first.capacity, second.capacity)
    assert run("--layer", "3")[0] == 1
    assert run("--preprocess", "unit")[0] == 1
    assert run("--no-cache")[0] == 1
    assert run(model="tiny_nets:sigmoid")[0] == 1
    assert run()[0] == 0
    for entry in (tmp_path / "cache" / "statistics").iterdir():
        content = bytearray(entry.read_bytes())
        content[-1] ^= 1
        entry.write_bytes(content)
    count, third = run()
    assert count == 1
    np.testing.assert_array_equal(first.capacity, third.capacity)
    monkeypatch.setenv("IBA_CACHE", "")
    assert run()[0] == 1
    monkeypatch.setenv("IBA_CACHE", str(tmp_path / "bad" / "file"))
    (tmp_path / "bad").write_text("no folder")
    assert run()[0] == 1


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("bad.jpg", "bad.jpg is not an image; the formats are AVIF, BMP, "),
        ("nowhere.jpg", "nowhere.jpg does not exist; an image file was expected"),
    ],
)
def test_one_bad_photograph_is_found_before_any_work(fails, untouched, tmp_path, photo, message):
    command = ("explain", "photos/one.jpg", photo, "--strict", "--out", tmp_path / "out")
    assert fails(*command).startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_found_before_any_work(fails, untouched):
    assert fails("explain", "photos/one.jpg", "nowhere.jpg").startswith("nowhere.jpg does not exist")


def test_if_no_photograph_can_be_read_it_is_an_error(fails, tmp_path):
    assert fails("explain", "bad.jpg", *TOLD, "--out", tmp_path / "out").startswith("bad.jpg is not an image")
    assert not (tmp_path / "out").exists()


def test_empty_folder(fails, untouched):
    assert fails("explain", "empty").startswith("empty holds no image")
    assert fails("estimate", "tiny_nets:told", "empty", "--out", "s").startswith("empty holds no image")


def test_output_must_be_a_folder(fails, tmp_path):
    (tmp_path / "file").write_text("")
    message = fails("explain", "photos/one.jpg", *TOLD, "--out", tmp_path / "file")
    assert message == f"out={str(tmp_path / 'file')!r} cannot be made a folder: File exists"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "33"), "the model has no layer '33'; the closest name is '3'"),
        (("--beta", -1), "beta=-1.0 must be a finite number, 0 or more"),
        (("--samples", 0), "samples=0 must be a whole number, 1 or more"),
        (("--steps", -1), "steps=-1 must be a whole number, 1 or more"),
        (("--preset", "quick"), "preset='quick' is no preset; there are 'default', 'paper', 'fast'"),
        (("--seed", -1), "Invalid value for '--seed'"),
        (("--backend", "jax"), "backend='jax' is not installed; there are 'tensorflow', 'torch'"),
        (("--preprocess", "imagnet"), "name='imagnet' is no preprocessing; the closest name is 'imagenet'"),
        (("--size", "big"), "size='big' must be a number of pixels such as 224, or WIDTHxHEIGHT"),
        (("--stats", "net.keras"), "path='net.keras' is truncated or not a safetensors file"),
        (("--stats", "none"), "path='none' is not a file; a file with a saved estimator is needed"),
        (("--stats", "told.safetensors", "--layer", "0"), "told.safetensors describes the layer '3', but"),
    ],
)
def test_wrong_options_of_explain(fails, tmp_path, options, message):
    command = ("explain", "photos/one.jpg", "--model", "tiny_nets:told", "--out", tmp_path / "out")
    assert fails(*command, *options).startswith(message)
    assert not (tmp_path / "out").exists()


def test_unknown_layers_of_keras_offer_the_closest(fails):
    message = fails("explain", "photos/one.jpg", "--model", "net.keras", "--layer", "sekond")
    assert message == "the model runs no layer 'sekond'; the closest name is 'second'"


def test_statistics_of_another_size(fails, workplace, tmp_path):
    message = fails("explain", "photos/one.jpg", *TOLD, "--size", 36, "--out", tmp_path)
    assert "set the size with --size" in message


def test_preprocessing_and_size_of_your_choice(iba, tmp_path):
    options = ("--preprocess", "symmetric", "--out", tmp_path)
    _, out, _ = iba("explain", "photos/one.jpg", *TOLD, *options)
    assert "32 x 32 pixels, values -1 to 1; preprocessing 'symmetric', as you ask for" in " ".join(
        out.split()
    )
    net = Network.load("tiny_nets:told", preset="symmetric")
    assert net.preprocessing == Preprocessing.preset("symmetric", (32, 32))


def test_long_names_break_between_their_parts(iba, workplace, tmp_path):
    name = "the-holiday_photograph.of.2024-with_quite_a-long.name.png"
    load_image(workplace / "photos" / "one.jpg").save(tmp_path / name)
    out_folder = tmp_path / "results"
    _, out, _ = iba("explain", tmp_path / name, *TOLD, "--target", 4, "--out", out_folder)
    start = next(i for i, line in enumerate(out.splitlines()) if line.startswith("the-holiday"))
    lines = [line[:13].rstrip() for line in out.splitlines()[start : start + 5]]
    assert "".join(lines).startswith("the-holiday_photograph.of.2024-with_quite_a-long.name.png"[:40])
    assert all(re.search(r"([-_.]|png)$", line) for line in lines if line)
    assert "▸ 4 American" in out
    assert "Staffordshire terrier" in out


@pytest.mark.parametrize(("model", "target"), [("sigmoid", 1), ("one_output", 0), ("one_output", 1)])
def test_the_probability_is_the_models_own(iba, workplace, tmp_path, model, target):
    code, out, _ = iba(
        "explain",
        "photos/one.jpg",
        "--model",
        f"tiny_nets:{model}",
        "--target",
        target,
        *FAST,
        "--out",
        tmp_path,
    )
    assert code == 0
    net = Network.load(f"tiny_nets:{model}")
    with torch.no_grad():
        given = net.adapter.model(torch.from_numpy(net.inputs(load_image("photos/one.jpg"))))[0].numpy()
    present = given[0] if model == "one_output" else given[target]
    expected = 1 - present if (model, target) == ("one_output", 0) else present
    assert re.search(rf"▸ class {target} +{100 * expected:.1f} %", out)
    attribution = found(tmp_path)
    np.testing.assert_allclose(attribution.model_losses[0, 0] > 0, True)


def test_one_logit_is_explained_once_the_user_says_what_it_is(iba, tmp_path):
    options = ("photos/one.jpg", "--model", "tiny_nets:raw", "--size", 16, *FAST, "--out", tmp_path)
    code, _, err = iba("explain", *options)
    assert code == 2
    assert "could be the logit of a class or a score: give --activation sigmoid_logits" in " ".join(
        err.split()
    )
    code, out, _ = iba("explain", *options, "--activation", "sigmoid_logits", "--target", 0)
    assert code == 0
    net = Network.load("tiny_nets:raw", size=(16, 16))
    with torch.no_grad():
        given = net.adapter.model(torch.from_numpy(net.inputs(load_image("photos/one.jpg"))))[0]
    assert re.search(rf"▸ class 0 +{100 * (1 - torch.sigmoid(given).item()):.1f} %", out)


def test_a_class_of_probability_0(iba, tmp_path):
    options = ("--model", "tiny_nets:certain", "--target", 1, *FAST, "--out", tmp_path)
    code, out, err = iba("explain", "photos/one.jpg", *options)
    assert (code, err) == (0, "")
    assert "nan" not in out
    assert re.search(r"▸ class 1 +0\.0 %", out)
    assert re.search(r"^one\.jpg.* - +[\d.]+ s *$", out, re.MULTILINE)


def test_names_are_shown_harmlessly(iba, workplace, tmp_path):
    names = ["[bold]a[red]", "$b_{$", ":smile:\x1b[31m", os.fsdecode(b"caf\xe9"), "two\nlines"]
    (tmp_path / "in\x07").mkdir()
    for name in names:
        load_image(workplace / "photos" / "one.jpg").save(tmp_path / "in\x07" / f"{name}.png", "PNG")
    code, out, err = iba("explain", tmp_path / "in\x07", *TOLD, "--out", tmp_path / "out\x1b[2J")
    assert (code, err) == (0, "")
    assert not {"\x1b", "\x07"} & set(out)
    assert len(Run.open(tmp_path / "out\x1b[2J")) == 5
    table = "".join(line[:13].strip() for line in out.splitlines())
    for shown in (
        "[bold]a[red].png",
        "$b_{$.png",
        ":smile:\\x1b[31m.png",
        "caf\\udce9.png",
        "two\\nlines.png",
    ):
        assert shown in table


def test_long_names_give_short_files(iba, workplace, tmp_path):
    name = "x" * 250 + ".png"
    load_image(workplace / "photos" / "one.jpg").save(tmp_path / name)
    assert iba("explain", tmp_path / name, *TOLD, "--out", tmp_path / "out")[0] == 0
    assert [record.name for record in Run.open(tmp_path / "out")] == [name]


# -- iba layers -----------------------------------------------------------------------------------


def test_layers_lists_shapes_and_the_default(iba):
    code, out, _ = iba("layers", "tiny_nets:told")
    assert code == 0
    for row in (
        r"0 +Conv2d +4 x 32 x 32",
        r"2 +MaxPool2d +4 x 16 x 16",
        r"7 +Flatten +2048",
        r"8 +Linear +5",
    ):
        assert re.search(rf"^[ *] +{row} *$", out, re.MULTILINE)
    (marked,) = re.findall(r"^\* +(\S+)", out, re.MULTILINE)
    assert f"{marked}, marked by *, is the default" in flat(out)

    code, out, _ = iba("layers", "net.keras")
    assert code == 0
    assert re.search(r"^. +half +MaxPooling2D +16 x 16 x 6 *$", out, re.MULTILINE)


def test_explain_takes_the_layer_that_layers_marks(iba, tmp_path):
    _, out, _ = iba("layers", "tiny_nets:told")
    (marked,) = re.findall(r"^\* +(\S+)", out, re.MULTILINE)
    iba("explain", "photos/one.jpg", "--model", "tiny_nets:told", *FAST, "--out", tmp_path)
    assert found(tmp_path).layer == marked


@pytest.mark.parametrize("model", ["tiny_nets:net", "tiny_nets:Nested.build"])
def test_models_by_name(iba, model):
    code, out, _ = iba("layers", model, "--size", "32x32", "--backend", "torch")
    assert code == 0
    assert "32 x 32 pixels" in out


def test_grey_pictures(iba, tmp_path):
    code, out, _ = iba("explain", "photos/one.jpg", "--model", "tiny_nets:grey", *FAST, "--out", tmp_path)
    assert code == 0
    assert "32 x 32 pixels, grey" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("tiny_nest:told",),
            "model='tiny_nest:told': there is no module 'tiny_nest', neither in this folder nor installed",
        ),
        (("iba_core.nowhere:f",), "model='iba_core.nowhere:f': there is no module 'iba_core.nowhere'"),
        (
            ("tiny_nets:tolt",),
            "model='tiny_nets:tolt': module 'tiny_nets' has no attribute 'tolt'; the closest",
        ),
        (("tiny_nets:COUNT",), "model='tiny_nets:COUNT' is a int, neither a callable nor a model"),
        (
            ("tiny_nets:needs",),
            "model='tiny_nets:needs' cannot be called without arguments: missing a required",
        ),
        (("builtins:dict",), "model is of type builtins.dict, which no backend serves"),
        (
            ("tiny_nets:told", "--backend", "tf"),
            "backend='tf' does not serve a model of type torch.nn.modules",
        ),
        (
            ("net.keras", "--backend", "torch"),
            "model='net.keras' cannot be loaded by the backend 'torch'; give",
        ),
        (
            ("effnet",),
            "model='effnet' cannot be loaded; give 'efficientnet-lite0', a SavedModel folder, a ",
        ),
        (("none.keras",), "there is no model file 'none.keras'"),
        (
            ("tiny_nets:plain", "--size", 24),
            "the network fails on a picture of 24 x 24 pixels and 3 channels",
        ),
        (("net.keras", "--size", 24), "input "),
    ],
)
def test_models_that_are_none(fails, arguments, message):
    assert fails("layers", *arguments).startswith(message)


def test_a_damaged_keras_file(fails, workplace, tmp_path):
    require_tensorflow(".keras")
    content = (workplace / "net.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(content[: len(content) // 2])
    assert "half.keras' is no Keras model" in fails("layers", tmp_path / "half.keras")


def test_a_framework_that_is_missing_is_named(fails, monkeypatch):
    def missing(name):
        raise MissingDependencyError(f"{name} is not installed: pip install 'iba-core[{name}]'")

    for module in (network, adapter):
        monkeypatch.setattr(module, "load_backend", missing)
    assert "pip install 'iba-core[torch]'" in fails("layers", "efficientnet-lite0")
    assert fails("layers", "net.keras", "--backend", "tf").startswith("tf is not installed")
    assert "pip install 'iba-core[tensorflow]'" in fails("demo")


def test_drawing_needs_matplotlib(fails, untouched, monkeypatch):
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    message = "drawing the maps needs matplotlib: pip install 'iba-core[plot]'"
    assert fails("explain", "photos/one.jpg") == message
    assert fails("demo") == message


# -- iba estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "layer"), [("tiny_nets:told", "3"), ("net.keras", "second")])
def test_estimate_writes_statistics_that_explain_takes(iba, workplace, tmp_path, model, layer):
    stats = tmp_path / "stats.safetensors"
    code, out, _ = iba("estimate", model, "data", "--layer", layer, "--batch-size", 5, "--out", stats)
    assert code == 0
    assert "all 12 in data; these are few, about 5000 are recommended" in flat(out)
    net = Network.load(model)
    fitted = Explainer(net.adapter.model, layer).fit(
        image_batches(image_files(workplace / "data"), net.preprocessing, 12, net.adapter.data_format),
        progbar=False,
    )
    loaded = Explainer(net.adapter.model, layer).load(stats)
    np.testing.assert_allclose(loaded.estimator.mean(), fitted.estimator.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.estimator.std(), fitted.estimator.std(), rtol=1e-5, atol=1e-6)
    code, out, _ = iba(
        "explain", "photos/one.jpg", "--model", model, "--stats", stats, *FAST, "--out", tmp_path
    )
    assert code == 0
    assert f"{layer}, the layer of the statistics" in flat(out)


def test_statistics_of_pictures_prepared_otherwise_are_refused(iba, fails, tmp_path):
    stats = tmp_path / "stats.safetensors"
    plain = ("tiny_nets:plain", "--size", 32)
    assert iba("estimate", *plain, "data", "--layer", "3", "--preprocess", "imagenet", "--out", stats)[0] == 0
    fixed = ("explain", "photos/one.jpg", "--model", *plain, "--stats", stats, *FAST, "--out", tmp_path)
    message = fails(*fixed)
    assert re.search(
        r"stats=.* are for another preprocessing \(32 x 32 pixels.*\) than that of the network "
        r"\(32 x 32 pixels.*\); give the same --preprocess and --size, or estimate them again",
        message,
    )
    assert iba(*fixed, "--preprocess", "imagenet")[0] == 0
    # Statistics that say nothing of the pictures are taken as they are.
    explainer = Explainer(Network.load("tiny_nets:plain").adapter.model).load(stats)
    explainer.save(stats)
    assert iba(*fixed)[0] == 0


def test_estimate_takes_no_more_than_it_is_told(iba, tmp_path):
    stats = tmp_path / "stats.safetensors"
    code, out, _ = iba("estimate", "tiny_nets:told", "data", "--n-samples", 7, "--out", stats)
    assert code == 0
    assert "7 of 12 in data, chosen at random" in out
    assert Explainer(Network.load("tiny_nets:told").adapter.model).load(stats).estimator.n_samples() == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "--out", "nowhere/s"), "out='nowhere/s' cannot be written: its folder does not exist"),
        (("data", "--out", "photos"), "out='photos' is a folder; a file was expected"),
        (("nowhere", "--out", "s"), "nowhere does not exist; a folder was expected"),
        (("bad.jpg", "--out", "s"), "bad.jpg is a file; a folder was expected"),
        (("data", "--out", "s", "--n-samples", 1), "n_samples=1 must be a whole number, 2 or more"),
        (("data", "--out", "s", "--batch-size", 0), "batch_size=0 must be a whole number, 1 or more"),
        (("data", "--out", "s", "--layer", "33"), "the model has no layer '33'; the closest name is '3'"),
        (("single", "--out", "s"), "inputs held 1 samples; at least 2 are needed"),
        (("damaged", "--out", "s"), "damaged/no.png is not an image; the formats are "),
    ],
)
def test_wrong_uses_of_estimate(fails, workplace, arguments, message):
    for name in ("single", "damaged"):
        (workplace / name).mkdir(exist_ok=True)
    load_image(workplace / "photos" / "one.jpg").save(workplace / "single" / "one.png")
    (workplace / "damaged" / "no.png").write_text("no image")
    assert fails("estimate", "tiny_nets:told", *arguments).startswith(message)
    assert not (workplace / "s").exists()


# -- iba demo -------------------------------------------------------------------------------------


def test_demo_compares_the_frameworks(iba, monkeypatch, tmp_path):
    require_tensorflow("tensorflow")
    import keras

    weights = np.random.default_rng(0)
    kernel, bias = weights.normal(size=(3, 3, 3, 4)), weights.normal(size=4)
    dense = weights.normal(size=(4 * 16 * 16, 5)) / 30

    def torch_net():
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(1024, 5, bias=False)
        )
        with torch.no_grad():
            net[0].weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
            net[0].bias.copy_(torch.from_numpy(bias))
            net[2].weight.copy_(torch.from_numpy(dense.T))
        return net

    def keras_net():
        net = keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                keras.layers.Conv2D(4, 3, padding="same", name="0"),
                keras.layers.Permute((3, 1, 2)),
                keras.layers.Flatten(),
                keras.layers.Dense(5, use_bias=False),
            ]
        )
        net.set_weights([kernel, bias, dense])
        return net

    def load(name, backend):
        model = torch_net() if backend == "torch" else keras_net()
        adapter = network.find_adapter(model, backend)
        return Network(name, adapter, Preprocessing(size=(16, 16)), "for a test", list("abcde"))

    monkeypatch.setattr(Network, "load", load)
    monkeypatch.setattr(demo, "LAYER", "0")
    code, out, _ = iba("demo", "--out", tmp_path / "demo")
    assert code == 0
    assert sorted(os.listdir(tmp_path / "demo")) == ["cat.png", "coffee.png", "overview.png", "rocket.png"]
    sizes = {name: Image.open(tmp_path / "demo" / f"{name}.png").size for name in demo.PHOTOGRAPHS}
    width, height = max(width for width, _ in sizes.values()), sum(height for _, height in sizes.values())
    assert Image.open(tmp_path / "demo" / "overview.png").size == (width, height)
    agreement = re.findall(r"^(cat|coffee|rocket) +([\d.]+) +([\d.]+) % +([\d.e+-]+)", out, re.MULTILINE)
    assert [name for name, *_ in agreement] == list(demo.PHOTOGRAPHS)
    for _, correlation, bits, logits in agreement:
        assert float(correlation) > 0.9999
        assert float(bits) < 0.1
        assert float(logits) < 1e-5
    times = re.findall(r"^(PyTorch|TensorFlow) [\d.]+ +([\d.]+) s +([\d.]+) s +[\d.]+ +([\d.]+) s", out, re.M)
    assert [name for name, *_ in times] == ["PyTorch", "TensorFlow"]


# -- the command as a whole -----------------------------------------------------------------------


def test_version_and_help(iba):
    assert iba("--version") == (0, f"iba {iba_core.__version__}\n", "")
    code, without, _ = iba()
    assert code == 0
    assert iba("--help")[1] == without
    for command in ("explain", "evaluate", "layers", "estimate", "demo"):
        assert command in without
        code, out, _ = iba(command, "--help")
        assert code == 0
        assert f"iba {command} [OPTIONS]" in out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("iba ex", ["explain"]),
        ("iba explain --preset f", ["fast"]),
        ("iba layers eff", ["efficientnet-lite0"]),
        ("iba explain --preprocess s", ["symmetric"]),
    ],
)
def test_the_shell_completes_what_is_typed(iba, monkeypatch, capfd, words, offered):
    monkeypatch.setenv("_IBA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        iba()
    assert capfd.readouterr().out.split() == offered


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--wrong",), "No such option: --wrong"),
        (("explian",), "No such command 'explian'"),
        (("explain",), "Missing argument 'PHOTO'"),
        (("explain", "photos/one.jpg", "--steps", "many"), "Invalid value for '--steps'"),
        (("estimate", "net.keras", "data"), "Missing option '--out'"),
    ],
)
def test_wrong_words_are_one_line_too(fails, arguments, message):
    assert fails(*arguments).startswith(message)


def test_bugs_keep_their_traceback(iba, monkeypatch):
    def bug(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Network, "load", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        iba("layers", "tiny_nets:told")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny_nets:broken", "model='tiny_nets:broken' fails: RuntimeError: the weights are gone; --debug"),
        ("tiny_nets:leaves", "model='tiny_nets:leaves' fails: SystemExit: 3; --debug shows the traceback"),
        ("tiny_nets:Nested.fails", "model='tiny_nets:Nested.fails' cannot be found: OSError: no attribute;"),
        (
            "lacking_net:build",
            "model='lacking_net:build' cannot be imported: ModuleNotFoundError: No module named "
            "'a_package_that_is_not_there'; --debug shows the traceback",
        ),
        (
            "leaving_net:build",
            "model='leaving_net:build' cannot be imported: SystemExit: bye\\x1b[31m; --debug",
        ),
        ("wrong_net:build", "model='wrong_net:build' cannot be imported: SyntaxError: "),
        ("tiny_nets:silent", "the network's preprocessing fails: RuntimeError: ask me later"),
    ],
)
def test_what_the_users_program_raises_is_one_line(fails, model, message):
    assert fails("layers", model).startswith(message)


def test_debug_shows_the_traceback(iba):
    for arguments in (("--debug", "layers", "tiny_nets:broken"), ("layers", "tiny_nets:broken", "--debug")):
        code, out, err = iba(*arguments)
        assert (code, out) == (2, "")
        assert "Traceback (most recent call last)" in err
        assert 'in broken\n    raise RuntimeError("the weights are gone")' in err
        assert err.splitlines()[-1].startswith("iba: error: model='tiny_nets:broken' fails: RuntimeError")
    assert "--debug" in iba("--help")[1]


STUBBORN = """
import time

for _ in range(600):
    try:
        time.sleep(0.1)
    except BaseException:
        pass
"""


def interrupted(workplace, delay, *arguments):
    """Run the command, press Ctrl-C `delay` seconds after its start, and give its end."""
    program = (
        "import iba_command; iba_command.catch_interruptions(); print('started', flush=True); "
        "raise SystemExit(iba_command.main())"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=workplace, **pipes) as process:
        assert process.stdout.readline() == "started\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 0.8])
def test_ctrl_c_is_one_line_while_everything_is_imported(workplace, delay):
    assert interrupted(workplace, delay, "layers", "tiny_nets:told") == (130, "", "iba: interrupted\n")


def test_nothing_swallows_ctrl_c(workplace):
    (workplace / "stubborn_net.py").write_text(STUBBORN)
    assert interrupted(workplace, 6, "layers", "stubborn_net:build") == (130, "", "iba: interrupted\n")


def test_ctrl_c_leaves_no_half_file(tmp_path):
    program = (
        "import iba_command, sys, time; iba_command.catch_interruptions()\n"
        "from iba_core.files import write_atomically\n"
        "with write_atomically('file') as file:\n"
        "    file.write(b'half'); print('started', flush=True); time.sleep(60)\n"
    )
    (tmp_path / "file").write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert len(os.listdir(tmp_path)) == 2
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 130
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_interruption(iba, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Network, "load", interrupted)
    assert iba("layers", "net.keras")[0] == 130


def test_reader_that_has_seen_enough(workplace):
    program = "from iba_core.cli import main; raise SystemExit(main())"
    command = f"set -o pipefail; {sys.executable} -c '{program}' layers tiny_nets:told | true"
    run = subprocess.run(["bash", "-c", command], check=False, cwd=workplace, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.returncode in (0, 1)


def test_help_imports_no_framework():
    code = (
        "import sys; sys.argv = ['iba', 'explain', '--help']\n"
        "from iba_core.cli import main\n"
        "assert main() == 0\n"
        "heavy = {'torch', 'tensorflow', 'keras', 'matplotlib', 'skimage', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# -- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("blocks.11.depthwise.norm", 12, ["blocks.11.", "depthwise.", "norm"]),
        ("drilling platform", 10, ["drilling", "platform"]),
        ("short", 10, ["short"]),
        ("a/b", 1, ["a", "/", "b"]),
        ("unbreakable", 4, ["unbr", "eaka", "ble"]),
    ],
)
def test_folding(text, width, lines):
    assert console.folded(text, width).split("\n") == lines


def test_paragraphs_break_between_words():
    text = console.paragraph("of crops in some/folder-with/a-long_name, and more", 16).plain.split("\n")
    assert text == ["of crops in", "some/folder-", "with/a-long_", "name, and more"]


def test_progress_counts_and_ends_with_an_error(monkeypatch, capfd):
    monkeypatch.setattr(console, "console", lambda stderr: Console(file=sys.stderr, force_terminal=True))
    batches = [np.zeros((3, 2)), np.zeros((4, 2))]
    with console.tracked(batches, "Counting", 7) as tracked:
        assert [len(batch) for batch in tracked] == [3, 4]
    err = capfd.readouterr().err
    assert "Counting" in err
    assert "7/7" in err

    def break_off():
        with console.tracked(batches, "Counting", 7) as tracked:
            next(tracked)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        break_off()
    assert capfd.readouterr().err.endswith("\x1b[2K")  # the bar is wiped, the cursor shown again


def test_sizes():
    assert parse_size("224") == (224, 224)
    assert parse_size("320x240") == (240, 320)
    assert parse_size(None) is None


def test_start_notes_are_left_out_and_errors_are_not(capfd):
    with quiet_start():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written\n")
        os.write(2, b"I0000 00:00:1795332422.913267    7926 port.cc:153] custom operations are on\n")
        os.write(2, b"E0000 00:00:1795332422.913267    7926 cuda.cc:1] no such device\n")
        os.write(2, b"a module speaks\n")
    assert capfd.readouterr().err == (
        "E0000 00:00:1795332422.913267    7926 cuda.cc:1] no such device\na module speaks\n"
    )


def test_stderr_comes_back_after_an_error(capfd):
    with pytest.raises(ImportError), quiet_start():
        raise ImportError
    print("heard", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "heard\n"


def test_outputs_of_photographs(tmp_path):
    photograph = photographs.Photograph(Path("a/cat.jpg"), "cat-iba")
    assert photograph.output(tmp_path, ".png") == tmp_path / "cat-iba.png"


# -- iba compare ----------------------------------------------------------------------------------


def test_compare_names_the_layer_at_which_two_networks_part(iba, tmp_path):
    pair = ("compare", "tiny_nets:told", "tiny_nets:altered", "photos/one.jpg", "photos/two.png")
    code, out, err = iba(*pair, "--no-maps", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["comparison.json", "comparison.png"]
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert (found["begins_at"], found["inputs"], "maps" in found) == ("3", 2, False)
    assert found["names"] == ["tiny_nets:told", "tiny_nets:altered"]
    assert "The models begin to differ at 3, by" in flat(out)
    code, out, _ = iba("compare", "tiny_nets:told", "tiny_nets:told", "photos/one.jpg", "--out", tmp_path)
    assert code == 0
    assert "The models agree" in flat(out)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["maps"]["pearson"] == [pytest.approx(1)]
    assert set(found["seconds"]) == {"outputs", "features", "explanations", "statistics"}


def test_compare_gives_both_networks_the_same_pictures(iba, tmp_path):
    # One does not say which pictures it expects, and has the same weights.
    pair = ("compare", "tiny_nets:plain", "tiny_nets:told", "photos/one.jpg")
    code, out, _ = iba(*pair, "--no-maps", "--out", tmp_path)
    assert code == 0
    assert "The models agree" in flat(out)


def test_compare_says_what_is_wrong(fails, tmp_path):
    pair = ("compare", "tiny_nets:told", "tiny_nets:told", "photos/one.jpg", "--out", tmp_path)
    assert "has no partner" in fails(*pair, "--layer", "33")
    assert "pairs='colour'" in fails(*pair, "--pairs", "colour")
    assert "is not a class of the network" in fails(*pair, "--target", "tree frog")
