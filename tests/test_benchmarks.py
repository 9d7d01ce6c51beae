"""The instruments of the benchmarks measure correctly, and the README has their results."""

import importlib
import itertools
import json
import mmap
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import (
    gpu,
    harness,
    memory,
    plain_keras_tail,
    plain_tail,
    presets,
    published,
    readme,
    report,
    scale,
    tables,
    trust,
)
from iba_core import Explainer
from iba_core.evaluation import Evaluation, Metric
from iba_core.pictures.images import image_files

ROOT = Path(__file__).parents[1]
RESULTS = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(harness.RESULTS.glob("*.json"))]


@pytest.mark.parametrize("names", ["a", "ab", "abc", "abcd", "abcde", "abcdef"])
def test_each_case_has_each_place_and_follows_each_other_equally_often(names):
    rounds = len(names) * (1 + len(names) % 2)
    orders = [harness.in_turns(names, number) for number in range(rounds)]
    places = Counter(place for order in orders for place in enumerate(order))
    neighbours = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert set(places.values()) == {rounds // len(names)}
    assert len(places) == len(names) ** 2
    assert len(neighbours) == len(names) * (len(names) - 1)
    assert len(set(neighbours.values())) <= 1


def test_cases_run_in_their_turns():
    order = []
    harness.interleaved({name: lambda name=name: order.append(name) for name in "abcd"}, rounds=3)
    assert "".join(order) == "abcd" + "abdc" + "bcad" + "cdba"


def test_warm_ups_come_before_all_else():
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "ab"}
    harness.interleaved(cases, rounds=2, warmups={"b": lambda: order.append("w")})
    assert "".join(order) == "w" + "ab" + "ba"


def test_ratios_are_taken_within_rounds():
    # The machine is ten times slower in the second round; the ratio of 2 stays.
    slow, fast = iter([2.0, 20.0, 2.0]), iter([1.0, 10.0, 1.0])
    timings = harness.interleaved({"slow": slow.__next__, "fast": fast.__next__}, rounds=3, warmups={})
    assert timings.ratio("slow", "fast") == 2.0
    assert timings.median("slow") == 2.0
    assert timings.quartiles("slow", "fast") == (2.0, 2.0)
    assert timings.quartiles("slow") == (2.0, 11.0)


def test_a_case_without_a_time_of_its_own_is_timed_whole():
    assert 0.02 <= harness.seconds_of(lambda: time.sleep(0.02)) < 1


def test_a_short_case_runs_again_in_its_turn():
    seconds = iter([0.3, 0.1, 0.2, 1.0])
    assert harness.seconds_of(seconds.__next__, turn=0.5) == pytest.approx(0.2)
    assert list(seconds) == [1.0]


def test_the_budget_leaves_the_least_number_of_rounds():
    timings = harness.interleaved({"a": lambda: time.sleep(0.01)}, rounds=50, budget=0.0, least=3)
    assert len(timings.seconds["a"]) == 3


@pytest.mark.parametrize("measure", [memory.peak, memory.sampled_peak])
def test_peak_is_what_is_allocated(measure):
    def work():
        # From the kernel: the allocator may keep as much from the explanations of other tests.
        with mmap.mmap(-1, 50_000_000) as block:
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            time.sleep(0.05)

    assert 49e6 < measure(work) < 60e6
    assert measure(lambda: None) < 5e6


def test_goals_have_a_side():
    results = harness.Results("none")
    results.goal("low", 1.0, at_most=1.1)
    results.goal("high", 1.0, at_least=1.1)
    assert [goal.met for goal in results.yardsticks] == [True, False]


def test_result_survives_its_file(tmp_path, capsys):
    results = harness.Results("none", photographs=3)
    table = results.table("Title", tables.Column("Name"), tables.Column("Time", ".2f", "s"), note="A note.")
    table.rows += [["one", 1.234], ["none", None]]
    results.goal("what", 2.0, at_most=3.0)
    content = report.load(results.write(tmp_path))
    shown = tables.markdown(content)
    assert shown.strip() == capsys.readouterr().out.strip()
    assert "| one | 1.23 s |\n| none |  |" in shown
    assert "| what | 2 | at most 3 | yes |" in shown
    assert "photographs 3" in shown
    assert content["tables"][0]["rows"][0][1] == 1.234


def test_blocks_of_the_readme_are_filled_from_the_results(tmp_path):
    results = harness.Results("none")
    results.table("Title", tables.Column("Number", "d")).rows.append([7])
    results.goal("what", 2.0, at_most=3.0)
    results.write(tmp_path)
    other = "<!-- bench:other -->\nc\n<!-- /bench:other -->"
    text = f"a <!-- bench:none:goals -->\nold\n<!-- /bench:none --> b {other}"
    new = readme.filled(text, tmp_path)
    assert "old" not in new
    assert "| what | 2 | at most 3 | yes |\n<!-- /bench:none --> b" in new
    assert new.endswith(other)
    assert readme.filled(new, tmp_path) == new
    results.table("Second", tables.Column("Letter")).rows.append(["x"])
    results.write(tmp_path)
    first = readme.filled("<!-- bench:none:1 -->\n<!-- /bench:none -->", tmp_path)
    assert "**Title**" in first
    assert "python 3" in first
    assert "**Second**" not in first
    assert "**Goals**" not in first


@pytest.mark.parametrize("page", readme.pages(), ids=lambda page: page.name)
def test_pages_agree_with_the_results(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"<!-- bench:(\w+)", text))
    assert named <= {content["program"] for content in RESULTS}
    assert readme.filled(text) == text


@pytest.mark.parametrize("content", RESULTS, ids=lambda content: content["program"])
def test_recorded_goals_follow_from_the_figures(content):
    for goal in content["yardsticks"]:
        measured, wanted = goal["measured"], goal["goal"]
        assert goal["met"] == (measured <= wanted if goal["sense"] == "at most" else measured >= wanted)
    path = harness.RESULTS / f"{content['program']}.md"
    assert path.read_text(encoding="utf-8") == tables.markdown(content)


@pytest.mark.parametrize(("most", "rise"), [(0.0, 7.0), (0.5, 0.3), (10.0, 7.0)])
def test_the_largest_rise_is_that_of_a_step_that_was_kept(most, rise):
    losses = np.array([[1.0], [1.3], [8.3], [0.9], [1.0]])
    found = SimpleNamespace(settings=SimpleNamespace(max_rise=most), model_losses=losses)
    assert presets.largest_rise(found) == pytest.approx(rise)


def test_presets_are_compared_on_the_photographs_that_both_explained():
    place = {"framework": "torch", "layer": "blocks.4", "statistics": "packaged"}
    figures = {"copies": 96, "seconds": 2.0, "rises": [0.1, 0.2], "bits": [10.0, 20.0], "correlations": []}
    rows = [
        {**place, "photograph": name, "method": method, "degradation": area, **more}
        for method, areas, more in (
            ("paper", {"a": 0.1, "b": 0.2}, {**figures, "survival": [0.4, 1.0]}),
            (
                "default",
                {"a": 0.3, "b": 0.3, "c": 9.0},
                {**figures, "survival": [0.9], "correlations": [0.8]},
            ),
            ("Grad-CAM", {"a": 0.0, "b": 0.0, "c": 0.0}, {}),
        )
        for name, area in areas.items()
    ]
    results = harness.Results("none")
    presets.tabulate(results, rows)
    table, differences = results.tables
    assert table.rows[0][:-1] == ["PyTorch", "blocks.4", "paper", 2, 96, 2.0, None, None, 0.2, 0.7, 0.5, 15.0]
    assert table.rows[1][6:8] == [0.8, pytest.approx(0.8)]
    assert table.rows[2][:4] == ["PyTorch", "blocks.4", "Grad-CAM", 3]
    found = {(ours, theirs): (n, float(text.split()[0])) for _, _, ours, theirs, n, text in differences.rows}
    assert found == {
        ("default", "paper"): (2, 0.15),
        ("default", "Grad-CAM"): (3, 3.2),
        ("paper", "Grad-CAM"): (2, 0.15),
    }


def test_a_command_names_no_folder_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["program", "--images", str(tmp_path), "--out", "build/here"])
    assert harness.command().endswith(f"--images {tmp_path.name} --out build/here")


def test_masks_lie_on_their_photographs(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            picture = np.zeros((300, 400, 3), np.uint8)
            picture[:, 250:] = 255
            suffix = "png" if folder == "masks" else "bmp"
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.{suffix}")
    paths = image_files(tmp_path / "images")
    found = list(trust.Photographs(paths, tmp_path / "masks", "channels_last").batches())
    assert len(found) == 2
    for x, target, mask in found:
        assert target is None
        np.testing.assert_array_equal(mask, x.mean(axis=-1) > 0)
        assert 0.1 < mask.mean() < 0.5


def test_methods_are_compared_with_the_two_that_matter():
    values = np.arange(12.0).reshape(3, 4)
    names = (trust.OURS, trust.PAPER, trust.REFERENCE)
    rows = {name: {"degradation": row} for name, row in zip(names, values, strict=True)}
    seconds = {name: np.full(4, float(number)) for number, name in enumerate(names)}
    results = harness.Results("trust")
    trust.tabulate(results, "a network", Evaluation([Metric.of("degradation")], rows, seconds))
    whole, from_reference, from_paper = results.tables
    assert [row[-1] for row in whole.rows] == [0.0, 1.0, 2.0]
    assert [row[1][:6] for row in from_reference.rows] == ["-8.000", "-4.000"]
    assert [row[1][:6] for row in from_paper.rows] == ["-4.000", "4.000 "]


def test_makefile_runs_programs_that_exist():
    names = re.search(r"^BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in [*names[1].split(), "quick", "report", "readme"]:
        assert callable(importlib.import_module(f"benchmarks.{name}").main)
    for name in report.PLOTS:
        assert callable(importlib.import_module(f"benchmarks.{name}").plot)


def test_slope_of_a_power():
    # The machine is ten times slower in the second round, from somewhere in the third one on five times.
    values = [[factor * 3.0 * size**0.7 for factor in (1, 10, 1 if size < 32 else 5)] for size in (1, 8, 32)]
    assert scale.slope_of([1, 8, 32], values) == pytest.approx(0.7)


def test_operations_of_a_tail_are_those_of_its_layers():
    # Forward and the gradient of the feature map; none for weights.
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten(), nn.Linear(320, 2))
    x = torch.randn(1, 3, 8, 8)
    explainer = Explainer(model, "0").fit([torch.randn(4, 3, 8, 8)], progbar=False)
    convolution, linear = 64 * 5 * 4 * 9, 320 * 2
    assert gpu.tail_flops(explainer, "0", x) == 2 * 2 * (convolution + linear)


def test_no_graphics_card_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr() == ("", "gpu: no GPU was found, so nothing was measured\n")


def test_the_plain_tail_is_the_rest_of_the_network():
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in ("stem", "blocks", "head"):
        parts = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh()) for _ in range(3)))
        model.add_module(name, parts)
    x = torch.randn(1, 3, 24, 24)
    tail = plain_tail.tail_modules("efficientnet-lite0", model, "blocks.1")
    features = model.blocks[:2](model.stem(x))
    torch.testing.assert_close(tail(features), model(x))
    assert plain_tail.PlainTail(tail, features.detach()).seconds(2, 3) > 0
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_plain_tail_of_keras_is_the_rest_of_the_network():
    inputs = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(4, 3, name="features")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(features))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    z = keras.Model(inputs, features)(x)
    tail = plain_keras_tail.PlainKerasTail(model, "features", z)
    value, gradient = tail.value_and_grad(z)
    np.testing.assert_allclose(value, model(x).numpy().sum(), rtol=1e-5)
    # The network is linear after the features.
    constant = tail.value_and_grad(z * 0)[0]
    np.testing.assert_allclose((gradient * z).numpy().sum(), value - constant, rtol=1e-4)
    assert tail.seconds(2, 3) > 0


def test_published_algorithm_gives_the_same_map():
    """What is compared for its time does the same thing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 12 * 12, 5),
    ).eval()
    x = torch.randn(1, 3, 12, 12)
    explainer = Explainer(model, "1").fit([torch.randn(256, 3, 12, 12)], progbar=False)
    target = int(model(x).argmax())
    ours = explainer.explain(x, target, samples=100, seed=0).capacity[0] / np.log(2)
    estimator = explainer.estimator
    plain = published.PublishedBottleneck(
        model,
        model[1],
        torch.from_numpy(estimator.mean()).float(),
        torch.from_numpy(estimator.std()).float(),
        torch.from_numpy(estimator.active_neurons()),
    )
    map_ = plain.explain(x, target, steps=11, samples=100)
    assert np.corrcoef(ours.sum(0).ravel(), map_.ravel())[0, 1] > 0.99
    assert map_.sum() == pytest.approx(ours.sum(), rel=0.05)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[1]._forward_hooks
