"""Data sets explained into a folder: results are skipped once they are there, and errors are noted."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iba_core import Attribution, ClassTarget, Explainer, InputError, StateError
from iba_core.datasets import Record, Run, explain_dataset
from iba_core.pictures.images import Preprocessing
from tests.backends import SIZE, Activation, Dense, Flatten, fitted, smooth_images

FAST = {"steps": 2, "samples": 2, "progbar": False}
PREPROCESSING = Preprocessing(size=(SIZE, SIZE))


def pictures(folder, count, seed=0):
    """Write small pictures, the odd ones into a subfolder, and give their names as a run shows them."""
    generator = np.random.default_rng(seed)
    (folder / "odd").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("odd" if index % 2 else "") / f"{index}.png")
    return {f"odd/{index}.png" if index % 2 else f"{index}.png" for index in range(count)}


@pytest.fixture
def explainer(backend):
    return fitted(backend)


@pytest.fixture
def explained(explainer, monkeypatch):
    """How often the explainer has explained."""
    calls = []
    explain = Explainer.explain

    def counted(self, x, target=None, **options):
        calls.append(target)
        return explain(self, x, target, **options)

    monkeypatch.setattr(Explainer, "explain", counted)
    return calls


def test_every_result_is_that_of_the_explainer(backend, explainer, tmp_path):
    x = backend.images(smooth_images(2))
    run = explain_dataset(explainer, {"a": x[0], "b": x[1]}, tmp_path / "run", [0, None], seed=3, **FAST)
    assert [(each.name, each.target) for each in run] == [
        ("a", "0"),
        ("a", "predicted"),
        ("b", "0"),
        ("b", "predicted"),
    ]
    for record in Run.open(tmp_path / "run"):
        target = 0 if record.target == "0" else None
        expected = explainer.explain(x["ab".index(record.name)][None], target, seed=3, steps=2, samples=2)
        found = record.attribution()
        np.testing.assert_array_equal(found.capacity, expected.capacity)
        index = int(expected.classes[0])
        assert record.class_index == index
        assert record.bits == pytest.approx(float(expected.total_bits[0]))
        assert record.probability == pytest.approx(float(expected.probabilities[0, index]))
        assert record.survival == pytest.approx(float(expected.survival[0]))
        assert record.bits_per_pixel == pytest.approx(record.bits / SIZE**2)
        assert record.seconds > 0
        assert [each[2] for each in record.top[:3]] == sorted(expected.probabilities[0], reverse=True)[:3]
        with Image.open(record.input_path) as image:
            assert image.size == (SIZE, SIZE)
        with Image.open(record.picture_path) as image:
            assert image.width > image.height > 480
    assert len({record.picture for record in run}) == 4
    assert len({record.input for record in run}) == 2


def test_what_is_there_is_skipped(backend, explainer, explained, tmp_path):
    x = backend.images(smooth_images(3))
    inputs = dict(zip("abc", x, strict=True))
    explain_dataset(explainer, {"a": x[0]}, tmp_path, **FAST)
    assert len(explained) == 1
    run = explain_dataset(explainer, inputs, tmp_path, **FAST)
    assert (len(explained), len(run)) == (3, 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    run = explain_dataset(explainer, inputs, tmp_path, **FAST)
    assert (len(explained), len(run)) == (3, 3)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    # A lost file is made again; a damaged last line of the journal is left out.
    next(iter(run)).result_path.unlink()
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b'{"key": "torn')
    run = explain_dataset(explainer, inputs, tmp_path, **FAST)
    assert (len(explained), len(run)) == (4, 3)
    assert len(Run.open(tmp_path)) == 3


def test_pictures_are_drawn_again_without_explaining(backend, explainer, explained, tmp_path):
    inputs = {"a": backend.images(smooth_images(1))[0]}
    (first,) = explain_dataset(explainer, inputs, tmp_path, **FAST)
    before = first.picture_path.read_bytes()
    (second,) = explain_dataset(explainer, inputs, tmp_path, vmax=100.0, **FAST)
    assert second == replace(first, vmax=100.0)
    assert second.picture_path.read_bytes() != before
    second.picture_path.unlink()
    (third,) = explain_dataset(explainer, inputs, tmp_path, **FAST)
    assert third == first
    assert third.picture_path.read_bytes() == before
    assert len(explained) == 1


def test_pictures_that_were_not_asked_for_are_drawn_later(backend, explainer, explained, tmp_path):
    inputs = {"a": backend.images(smooth_images(1))[0]}
    (first,) = explain_dataset(explainer, inputs, tmp_path, pictures=False, **FAST)
    assert (first.picture, first.drawn) == (None, False)
    (second,) = explain_dataset(explainer, inputs, tmp_path, **FAST)
    assert second.picture_path.is_file()
    assert second == replace(first, picture=second.picture, input=second.input, drawn=True)
    (third,) = explain_dataset(explainer, inputs, tmp_path, pictures=False, **FAST)
    assert third == second
    assert len(explained) == 1


def test_what_is_no_picture_is_looked_at_once(explained, tmp_path, backend):
    model = backend.network((6,), [Dense("layer", 4), Dense("out", 3)], seed=0)
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    explainer = Explainer(model, "layer").fit([x], progbar=False)
    for _ in range(2):
        (record,) = explain_dataset(explainer, {"a": x[0]}, tmp_path, **FAST)
        assert (record.picture, record.drawn) == (None, True)
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == len(explained) == 1


def test_names_given_later_reach_what_is_there(backend, explainer, explained, tmp_path):
    inputs = {"a": backend.images(smooth_images(1))[0]}
    names = ["cat", "dog", "crane", "ant", "bee"]
    (first,) = explain_dataset(explainer, inputs, tmp_path, **FAST)
    assert first.class_name is None
    (named,) = explain_dataset(explainer, inputs, tmp_path, class_names=names, **FAST)
    assert named.class_name == names[first.class_index]
    assert [each[1] for each in named.top] == [names[each[0]] for each in first.top]
    assert named.class_name in named.picture
    assert list((tmp_path / "pictures").iterdir()) == [named.picture_path]
    (renamed,) = explain_dataset(explainer, inputs, tmp_path, class_names=names[::-1], pictures=False, **FAST)
    assert renamed.class_name == names[::-1][first.class_index]
    assert renamed.picture == named.picture
    assert len(explained) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"beta": 3.0}, {"targets": 2}, {"steps": 3}])
def test_other_settings_are_other_results(backend, explainer, explained, tmp_path, change):
    inputs = {"a": backend.images(smooth_images(1))[0]}
    explain_dataset(explainer, inputs, tmp_path, **FAST)
    run = explain_dataset(explainer, inputs, tmp_path, **{**FAST, **change})
    assert (len(explained), len(run), len(list((tmp_path / "results").iterdir()))) == (2, 2, 2)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_another_layer_model_or_distribution_gives_other_results(backend, explained, tmp_path):
    x = backend.images(smooth_images(4))
    model = backend.small()
    weights = fitted(backend).adapter.weights()
    weights["logits"][1][0] += 1e-3
    other = fitted(backend).adapter.with_weights(weights)
    explainers = [
        Explainer(model, "second").fit([x], progbar=False),
        Explainer(model, "third").fit([x], progbar=False),
        Explainer(model, "second").fit([x[:3]], progbar=False),
        Explainer(other, "second").fit([x], progbar=False),
        Explainer(backend.small(), "second").fit([x], progbar=False),
    ]
    for explainer in explainers:
        run = explain_dataset(explainer, {"a": x[0]}, tmp_path, **FAST)
    # The last is the first again.
    assert (len(explained), len(run), len(run.setups)) == (4, 4, 4)
    assert {record.layer for record in run} == {"second", "third"}


def test_the_same_content_is_explained_once(backend, explainer, explained, tmp_path):
    x = backend.images(smooth_images(1))[0]
    run = explain_dataset(explainer, {"a": x, "b": x.copy()}, tmp_path, **FAST)
    assert (len(explained), [record.name for record in run]) == (1, ["a", "b"])
    assert len({record.key for record in run}) == 1


def test_what_changes_under_a_name_is_explained_again(backend, explainer, tmp_path):
    x = backend.images(smooth_images(2))
    explain_dataset(explainer, {"a": x[0]}, tmp_path, **FAST)
    (record,) = explain_dataset(explainer, {"a": x[1]}, tmp_path, **FAST)
    expected = explainer.explain(x[1:], seed=0, steps=2, samples=2)
    np.testing.assert_array_equal(record.attribution().capacity, expected.capacity)


def test_a_broken_file_is_noted_and_tried_again(explainer, explained, tmp_path):
    names = pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "1b.png").write_text("no picture")
    options = {"preprocessing": PREPROCESSING, **FAST}
    with pytest.warns(UserWarning, match=r"1b\.png is not an image"):
        run = explain_dataset(explainer, tmp_path / "in", tmp_path / "run", **options)
    assert {record.name for record in run if record.error is None} == names
    (failed,) = run.failed
    assert failed.name == "1b.png"
    assert failed.path == str(tmp_path / "in" / "1b.png")
    with pytest.raises(InputError, match=r"'1b.png' has no attribution: .* is not an image"):
        failed.attribution()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "in" / "1b.png")
    run = explain_dataset(explainer, tmp_path / "in", tmp_path / "run", **options)
    assert (len(run), run.failed, len(explained)) == (4, [], 4)


def test_strict_stops_at_the_first(explainer, explained, tmp_path):
    pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "1.png").write_text("no picture")
    options = {"preprocessing": PREPROCESSING, "strict": True, **FAST}
    with pytest.raises(InputError, match=r"1\.png is not an image"):
        explain_dataset(explainer, tmp_path / "in", tmp_path / "run", **options)
    assert len(Run.open(tmp_path / "run")) == len(explained) == 1


def test_what_fits_no_input_is_raised(backend, explainer, tmp_path):
    x = backend.images(smooth_images(2))
    with pytest.raises(InputError, match="target=9 is outside the model's 5 classes, 0 to 4"):
        explain_dataset(explainer, {"a": x[0], "b": x[1]}, tmp_path, 9, **FAST)
    wrong = np.full_like(x[0], np.nan)
    with pytest.raises(InputError, match="x holds nan"):
        explain_dataset(explainer, {"a": wrong, "b": x[1]}, tmp_path, **FAST)
    with pytest.warns(UserWarning, match="b: x holds nan"):
        run = explain_dataset(explainer, {"a": x[0], "b": wrong}, tmp_path, **FAST)
    assert [record.name for record in run.failed] == ["b"]


def test_the_summary_has_a_row_for_each_record(explainer, tmp_path):
    pictures(tmp_path / "in", 2)
    odd = ["=1+1", "a b\n$x_", "../up", "caf\udce9", ".hidden?"]
    for name in odd:
        Image.new("RGB", (9, 9), "blue").save(
            tmp_path / "in" / "odd" / f"{name.replace('/', '-')}.png", "PNG"
        )
    (tmp_path / "in" / "bad.png").write_text("no picture")
    with pytest.warns(UserWarning, match="bad.png"):
        run = explain_dataset(
            explainer, tmp_path / "in", tmp_path / "run", ["dog", None], preprocessing=PREPROCESSING,
            class_names=["cat", "dog", "crane"], **FAST,
        )  # fmt: skip
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(row["path"], row["target"]) for row in rows] == [(r.path, r.target) for r in run]
    assert all(row["class_name"] == "dog" for row in rows if row["target"] == "1" and row["error"] is None)
    with open(tmp_path / "run" / "summary.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows)
    for row, line in zip(rows, table, strict=True):
        for name in ("key", "setup", "layer"):
            assert line[name] == row[name]
        for name in ("probability", "bits", "survival", "seconds"):
            assert line[name] == ("" if row[name] is None else str(row[name]))
        assert not line["name"].startswith("=")
        if row["error"] is None:
            assert (tmp_path / "run" / row["picture"]).is_file()
            assert Attribution.load(tmp_path / "run" / row["result"]).layer == row["layer"]
    assert {path.suffix for path in (tmp_path / "run" / "pictures").iterdir()} == {".png"}
    assert not (tmp_path / "up.png").exists()


@pytest.mark.soak
def test_processes_give_what_one_gives(backend, explainer, tmp_path):
    assert_processes_give_what_one_gives(backend, explainer, tmp_path)


def assert_processes_give_what_one_gives(backend, explainer, tmp_path):
    x = backend.images(smooth_images(3))
    inputs = {**dict(zip("abc", x, strict=True)), "d": np.full_like(x[0], np.inf)}
    runs = []
    for jobs in (1, 2):
        with pytest.warns(UserWarning, match="d: x holds inf"):
            runs.append(explain_dataset(explainer, inputs, tmp_path / str(jobs), jobs=jobs, **FAST))
    alone, together = runs
    assert [record.key for record in alone] == [record.key for record in together]
    for one, other in zip(alone, together, strict=True):
        assert one.error == other.error
        if one.error is None:
            np.testing.assert_allclose(one.attribution().capacity, other.attribution().capacity, rtol=1e-4)


KILLED = """
import sys
from iba_core.datasets import explain_dataset
from tests.backends import BACKENDS, fitted
from tests.behaviour.test_datasets import FAST, PREPROCESSING

if __name__ == "__main__":
    explainer = fitted(BACKENDS[sys.argv[1]]())
    print("ready", flush=True)
    explain_dataset(
        explainer, sys.argv[2], sys.argv[3], jobs=int(sys.argv[4]), preprocessing=PREPROCESSING, **FAST
    )
"""


@pytest.mark.soak
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_run_goes_on_where_it_was(backend, explainer, explained, tmp_path, jobs):
    names = pictures(tmp_path / "in", 40)
    (tmp_path / "program.py").write_text(KILLED)
    command = [sys.executable, "program.py", backend.name, tmp_path / "in", tmp_path / "run", str(jobs)]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *sys.path])
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}) as process:
        kill_at_work(process.pid, tmp_path / "run", lambda: process.poll() is not None)
    assert_it_goes_on(explainer, explained, names, tmp_path)


def kill_at_work(pid, folder, has_ended, results=3):
    """Send SIGKILL to a process once it has explained some inputs into a folder."""
    journal = folder / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < results:
        assert not has_ended(), "it ended by itself"
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)


def assert_it_goes_on(explainer, explained, names, tmp_path):
    """A run that was killed explains what is missing, and nothing else."""
    done = len(Run.open(tmp_path / "run"))
    assert done >= 3
    run = explain_dataset(explainer, tmp_path / "in", tmp_path / "run", preprocessing=PREPROCESSING, **FAST)
    assert len(explained) == len(names) - done
    assert {record.name for record in run} == names
    assert len(run) == len(names)
    files = [path for path in (tmp_path / "run" / "results").iterdir() if not path.name.startswith(".")]
    assert len(files) == len(names)
    assert all(len(record.attribution()) == 1 for record in Run.open(tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": 3}, "inputs=3 must be a folder, a list of image files"),
        ({"inputs": [np.zeros(3)]}, "inputs is a float64 array of shape .3,., and is no pair"),
        ({"inputs": "twice"}, "inputs has the name 'a' twice"),
        ({"inputs": "nowhere"}, "nowhere does not exist"),
        ({"targets": "dog"}, "targets='dog' is a name, but the network's classes have no names"),
        ({"targets": []}, "targets is empty"),
        ({"targets": [lambda outputs: outputs[:, 0]]}, "is no single class; give other targets as a dict"),
        ({"targets": {3: 1}}, "targets=3 must be a dict of targets by name"),
        ({"jobs": 0}, "jobs=0 must be a whole number from 1 to 1024"),
        ({"vmax": -1}, "vmax=-1 must be a finite number, above 0"),
        ({"seed": None}, "seed=None"),
        ({"beta": -1}, "beta=-1"),
    ],
)
def test_wrong_arguments(backend, explainer, tmp_path, change, message):
    arguments = {"inputs": {"a": backend.images(smooth_images(1))[0]}, "out": tmp_path / "run", **FAST}
    if change.get("inputs") == "twice":
        change = {"inputs": [*arguments["inputs"].items()] * 2}
    with pytest.raises(InputError, match=message):
        explain_dataset(explainer, **{**arguments, **change})


def test_any_target_by_name(backend, explainer, tmp_path):
    inputs = {"a": backend.images(smooth_images(1))[0]}
    targets = {"first output": lambda outputs: outputs[:, 0], "likeliest": None}
    score, likeliest = explain_dataset(explainer, inputs, tmp_path, targets, **FAST)
    assert (score.target, score.class_index, score.probability) == ("first output", None, None)
    assert "first-output" in score.picture
    assert likeliest.class_index is not None


def test_the_explainers_own_settings(backend, tmp_path):
    explainer = fitted(backend, steps=2, samples=2, beta="auto")
    x = backend.images(smooth_images(1))
    expected = explainer.explain(x, seed=0)
    (record,) = explain_dataset(explainer, {"a": x[0]}, tmp_path, progbar=False)
    assert record.attribution().settings == explainer.settings
    np.testing.assert_array_equal(record.attribution().capacity, expected.capacity)


def test_several_layers_together(backend, explained, tmp_path):
    x = backend.images(smooth_images(4))
    for combine in ("mean", "geometric"):
        explainer = Explainer(backend.small(), ["second", "third"], combine=combine).fit([x], progbar=False)
        for _ in range(2):
            run = explain_dataset(explainer, {"a": x[0]}, tmp_path, **FAST)
    assert len(run) == len(run.setups) == 2
    for record in run:
        assert record.layer == "second, third"
        assert record.bits == pytest.approx(float(record.attribution().total_bits[0]))


# -- the folder ---------------------------------------------------------------------------------------


def record(**changes):
    values = {"key": "k", "name": "a", "target": "predicted", "setup": "s", "layer": "conv"}
    return Record(**{**values, **changes})


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(StateError, match="holds no run"):
        Run.open(tmp_path)
    run = Run(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(StateError, match="holds no setup yet"):
        _ = run.settings


def test_the_journal_keeps_what_was_whole(tmp_path):
    run = Run(tmp_path)
    run.begin({"id": "s", "started": "2026-01-01", "layer": "conv"})
    first = record(top=((1, "dog", 0.5),), bits=2.5, warnings=("mind",))
    run.add(first)
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(b'{"key": "b", "name"')
    again = Run.open(tmp_path)
    assert list(again) == [replace(first, folder=tmp_path)]
    again.add(record(name="b"))
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write(
            b'[1]\n\xff\n{"key": 1}\n{"key": "x", "name": "x", "target": "t", "setup": "s", "layer": "l", '
        )
        file.write(b'"picture": "../../etc/passwd"}\n')
    assert [each.name for each in Run.open(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1, "id": "other", "started": ""}', '{"format": 2}'])
def test_damaged_setups_are_refused(tmp_path, text):
    Run(tmp_path).begin({"id": "s", "started": "2026-01-01"})
    (tmp_path / "setups" / "s.json").write_text(text)
    with pytest.raises(StateError, match=r"s\.json holds no setup"):
        Run.open(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    Run(tmp_path).begin({"id": "s", "started": "2026-01-01"})
    path = tmp_path / "setups" / "s.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StateError, match="is of format 2; this version reads format 1"):
        Run.open(tmp_path)


def test_what_the_user_says_of_the_axes_makes_other_results(backend, explained, tmp_path):
    """A layer of 8 x 8 x 8 can be told to have its channels first or last."""
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 8)).astype(np.float32)
    model = backend.network(
        (8, 8, 8), [Activation("layer", "tanh"), Flatten("flat"), Dense("out", 3)], seed=0
    )
    for told in ("channels_first", "channels_last"):
        explainer = Explainer(model, "layer", data_format=told).fit([x], progbar=False)
        run = explain_dataset(explainer, {"a": x[0]}, tmp_path / "run", 1, statistics="one", **FAST)
    assert len(explained) == len(run) == 2


def test_results_among_the_inputs_are_no_inputs(explainer, tmp_path):
    names = pictures(tmp_path / "in", 2)
    for _ in range(2):
        run = explain_dataset(
            explainer, tmp_path / "in", tmp_path / "in" / "run", preprocessing=PREPROCESSING, **FAST
        )
        assert {record.name for record in run} == names


def test_the_summary_holds_what_another_process_wrote(backend, explainer, tmp_path):
    x = backend.images(smooth_images(2))
    first = Run(tmp_path / "run")
    explain_dataset(explainer, {"b": x[1]}, tmp_path / "run", 0, **FAST)
    first.write_summary()
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["name"] for row in rows] == ["b"]


def test_long_names_of_many_bytes_make_files(backend, explainer, tmp_path):
    x = backend.images(smooth_images(1))
    run = explain_dataset(explainer, {"猫" * 300: x[0]}, tmp_path / "run", 0, **FAST)
    (record,) = run
    assert record.error is None
    assert record.picture_path.is_file()


def test_a_damaged_result_is_made_again(backend, explainer, tmp_path):
    x = backend.images(smooth_images(1))
    (record,) = explain_dataset(explainer, {"a": x[0]}, tmp_path / "run", 0, **FAST)
    record.result_path.write_bytes(record.result_path.read_bytes()[:50])
    record.picture_path.unlink()
    (again,) = explain_dataset(explainer, {"a": x[0]}, tmp_path / "run", 0, **FAST)
    assert again.error is None
    assert again.attribution().total_bits == pytest.approx(record.bits)


def test_different_targets_of_one_name_are_refused(backend, explainer, tmp_path):
    x = backend.images(smooth_images(1))
    targets = [1, ClassTarget(1, activation="softmax")]
    with pytest.raises(InputError, match="called '1'"):
        explain_dataset(explainer, {"a": x[0]}, tmp_path / "run", targets, **FAST)


def test_a_run_can_be_pickled(explainer, backend, tmp_path):
    x = backend.images(smooth_images(1))
    run = explain_dataset(explainer, {"a": x[0]}, tmp_path, pictures=False, **FAST)
    assert list(pickle.loads(pickle.dumps(run))) == list(run)
