"""Every damaged file gives the numbers that were written, or one of the library's errors, in one sentence."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from iba_core import Attribution, BottleneckSettings, IBAError, WelfordEstimator
from iba_core.concepts import ConceptEmbedding
from iba_core.errors import StateError
from iba_core.pictures.images import load_image
from iba_core.pictures.masks import mask_picture
from iba_core.readout.formulas import WEIGHTS, readout_sizes
from iba_core.readout.state import ReadoutState
from iba_core.readout.training import KIND, read_checkpoint
from iba_core.state import read_npz, read_state, write_npz, write_state
from tests.robustness.damage import damaged_bytes, rewritten_state
from tests.robustness.totals import write_totals

SECONDS, MEMORY = 20, 2**30
"""Most time for one file, and most memory for all of them together, in bytes."""

RNG = np.random.default_rng(0)


# -- the files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        write: writes one.
        read: reads it, and gives its numbers by name.
        exact: whether the format has a checksum, so that other numbers are noticed.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], dict[str, Any]]
    exact: bool = True


def estimator_state(*shape: int) -> dict[str, np.ndarray]:
    estimator = WelfordEstimator()
    estimator.fit(RNG.normal(size=(12, *shape)))
    return estimator.state_dict()


def read_estimator(path: Path) -> dict[str, Any]:
    estimator = WelfordEstimator.load(path)
    return {**estimator.state_dict(), "std": estimator.std() if estimator.n_samples() > 1 else 0.0}


def write_attribution(path: Path) -> None:
    maps = RNG.uniform(0.1, 1, (2, 3, 4, 5))
    Attribution(
        saliency=RNG.uniform(0, 1, (2, 8, 10)),
        capacity=maps.astype(np.float32),
        mask=maps.astype(np.float32),
        outputs=RNG.normal(size=(2, 6)),
        model_losses=RNG.uniform(0, 1, (3, 2)),
        informations=RNG.uniform(0, 1, (3, 2)),
        layer="layer3",
        data_format="channels_first",
        settings=BottleneckSettings(steps=3, samples=2),
        classes=np.array([1, 5]),
        seed=7,
        steps_taken=np.array([3, 3]),
    ).save(path)


def read_attribution(path: Path) -> dict[str, Any]:
    found = Attribution.load(path)
    assert np.isfinite(found.total_bits).all()
    return {**vars(found), "bits": found.total_bits}


def readout_state() -> ReadoutState:
    sizes = readout_sizes(5, 2)
    shapes = [shape for inputs, outputs in sizes for shape in ((outputs, inputs), (outputs,))]
    assert len(shapes) == len(WEIGHTS)
    return ReadoutState(
        weights=tuple(RNG.normal(size=shape).astype(np.float32) for shape in shapes),
        estimators=(estimator_state(2, 3, 3), estimator_state(2, 3, 3), estimator_state(3, 6, 6)),
        given=None,
        facts={
            "framework": "torch",
            "layer": "conv1",
            "readout_layers": ["conv1", "conv2"],
            "data_formats": ["channels_first"] * 3,
            "input_shape": [3, 8, 8],
            "settings": {
                "sigma": 1.0,
                "min_std": 0.01,
                "initial_alpha": 5.0,
                "active_neurons_threshold": 0.01,
                "relu": False,
                "robust": True,
                "tokens": None,
            },
        },
    )


def numbers_of(state: ReadoutState) -> dict[str, Any]:
    # What loading does with it.
    assert state.settings
    assert state.shapes()
    state.check("torch", "conv1", ["conv1", "conv2"])
    return {**state.arrays(), "facts": state.facts, "tokens": state.tokens}


def write_checkpoint(path: Path) -> None:
    state = readout_state()
    count = sum(weight.size for weight in state.weights)
    moments = {f"training.{name}": RNG.normal(size=count) for name in ("first", "second", "best")}
    report = {"epoch": 0, "objective": 1.5, "loss": 1.0, "information": 0.5, "validation": 2.0}
    facts = {"best_value": 2.0, "stalled": 0, "steps": 4, "reports": [report]}
    write_state(path, state.arrays() | moments, KIND, {"readout": state.facts, "training": facts})


def read_the_checkpoint(path: Path) -> dict[str, Any]:
    state, progress = read_checkpoint(path)
    return {**numbers_of(state), **{name: value for name, value in vars(progress).items() if name != "adam"}}


def write_embedding(path: Path) -> None:
    ConceptEmbedding(RNG.normal(size=(4, 3, 3)), bias=0.5, concept_name="face", layer_id="conv").save(path)


STATES = {
    "estimator": Kind(lambda path: write_state(path, estimator_state(3, 4, 4), "estimator"), read_estimator),
    "attribution": Kind(write_attribution, read_attribution),
    "embedding": Kind(write_embedding, lambda path: ConceptEmbedding.load(path).settings),
    "readout": Kind(
        lambda path: readout_state().save(path), lambda path: numbers_of(ReadoutState.read(path))
    ),
    "checkpoint": Kind(write_checkpoint, read_the_checkpoint),
    "plain": Kind(
        lambda path: write_state(path, {"a": np.arange(9.0)}, "plain", {"words": ["one", "two"]}),
        lambda path: dict(zip(("arrays", "facts"), read_state(path, "plain"), strict=True)),
    ),
}

NPZ = Kind(
    lambda path: write_npz(
        path, {"a": RNG.normal(size=(3, 4)), "b": np.array("some text"), "c": np.arange(5)}
    ),
    read_npz,
)


def image_kind(format: str) -> Kind:
    def write(path: Path) -> None:
        pixels = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((24, 18)).save(path, format)

    def read(path: Path) -> dict[str, Any]:
        pixels = np.asarray(load_image(path))
        assert pixels.ndim == 3
        mask = mask_picture(path) if pixels.size < 10**6 else None
        return {"pixels": pixels, "mask": None if mask is None else np.asarray(mask)}

    return Kind(write, read, exact=False)


IMAGES = {
    format: image_kind(format)
    for format in ("BMP", "GIF", "ICO", "JPEG", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")
}


# -- the judge ----------------------------------------------------------------------------------------


class TooLong(BaseException):
    """A file takes too long. Nothing that reads a file may catch it."""


@contextmanager
def limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def outcome(kind: Kind, path: Path, expected: dict[str, Any] | None) -> str:
    """``"refused"``, ``"equal"``, ``"other"`` numbers, or what is wrong with the error."""
    try:
        with limited():
            found = kind.read(path)
    except IBAError as error:
        message = str(error)
        return "refused" if message and "\n" not in message else f"no sentence: {message!r}"
    except BaseException as error:
        return f"raw {type(error).__name__}: {error}"[:200]
    if expected is not None and same(found, expected):
        return "equal"
    return "other" if expected is None or not kind.exact else "accepted with other numbers"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def judge(
    name: str, kind: Kind, folder: Path, seeds: range, totals: Counter[str], rewrite: bool = False
) -> None:
    good, bad = folder / "good", folder / "bad"
    kind.write(good)
    expected, content = kind.read(good), good.read_bytes()
    assert outcome(kind, good, expected) == "equal"
    wrong, before = [], peak()
    for seed in seeds:
        if rewrite:
            bad.write_bytes(content)
            rewritten_state(bad, seed)
            result = outcome(kind, bad, None)
        else:
            bad.write_bytes(damaged_bytes(content, seed))
            result = outcome(kind, bad, expected)
        totals["files"] += 1
        if result in ("refused", "equal", "other"):
            totals[result] += 1
        else:
            totals["raw" if not result.startswith("accepted") else "accepted"] += 1
            wrong.append(f"{name}, seed {seed}: {result}")
    assert not wrong, "\n".join(wrong[:20])
    assert peak() - before < MEMORY


@pytest.mark.parametrize("name", STATES)
def test_state_files(tmp_path, name):
    totals: Counter[str] = Counter()
    judge(name, STATES[name], tmp_path, range(80), totals)
    assert totals["refused"] > 60


@pytest.mark.parametrize("name", [name for name in STATES if name != "plain"])
def test_state_files_of_other_programs(tmp_path, name):
    judge(name, STATES[name], tmp_path, range(80), Counter(), rewrite=True)


@pytest.mark.parametrize(
    ("name", "array", "value"),
    [
        ("estimator", "mean", np.nan),
        ("estimator", "m2", -1.0),
        ("estimator", "nonzero", 2.5),
        ("estimator", "nonzero", 99.0),
        ("estimator", "n_samples", 0),
        ("attribution", "capacity", np.inf),
        ("attribution", "capacity", -1.0),
        ("attribution", "saliency", -1.0),
        ("attribution", "mask", 1.5),
        ("attribution", "model_losses", np.nan),
        ("embedding", "normal_vec", np.nan),
        ("embedding", "scaling_factor", 0.0),
        ("readout", "network.0.weight", np.nan),
        ("readout", "bottleneck.m2", -1.0),
        ("readout", "readouts.1.mean", np.inf),
        ("checkpoint", "training.second", np.nan),
    ],
)
def test_values_that_cannot_be_are_refused_in_files_without_a_checksum(tmp_path, name, array, value):
    path = tmp_path / "file"
    STATES[name].write(path)
    with safe_open(path, framework="numpy") as file:
        header = {key: text for key, text in file.metadata().items() if key != "iba_checksum"}
        arrays = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    save_file(arrays, path, metadata=header)
    STATES[name].read(path)
    arrays[array].reshape(-1)[-1] = value
    save_file(arrays, path, metadata=header)
    with pytest.raises(StateError):
        STATES[name].read(path)


def test_npz_files(tmp_path):
    judge("npz", NPZ, tmp_path, range(80), Counter())


@pytest.mark.parametrize("name", IMAGES)
def test_images(tmp_path, name):
    judge(name, IMAGES[name], tmp_path, range(30), Counter())


# -- models -------------------------------------------------------------------------------------------


class Opener:
    """A process that opens models, since a damaged one may end it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.robustness.open_models", str(self.folder)]
        root = Path(__file__).parents[2]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, path: Path) -> str:
        """What opening gave, see `tests.robustness.open_models`; "crash" or "hang" if there is no answer."""
        print(path, file=self.process.stdin, flush=True)
        timer_over = time.monotonic() + 4 * SECONDS
        os.set_blocking(self.process.stdout.fileno(), False)
        try:
            while time.monotonic() < timer_over:
                if line := self.process.stdout.readline():
                    return str(json.loads(line))
                if self.process.poll() is not None:
                    break
                time.sleep(0.005)
            result = "hang" if self.process.poll() is None else f"crash {self.process.returncode}"
        finally:
            os.set_blocking(self.process.stdout.fileno(), True)
        self.close()
        self.start()
        return result

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()


MODELS = ("net.keras", "net.h5", "frozen.pb", "saved/saved_model.pb", "saved/variables/variables.index")
"""Files of one model in all formats. The first and the last have checksums of their own."""

EXACT = ("net.keras", "saved/variables/variables.index")


def judge_models(folder: Path, counts: dict[str, range], totals: Counter[str]) -> None:
    opener = Opener(folder)
    wrong = []
    try:
        for name, seeds in counts.items():
            good = (folder / name).read_bytes()
            source = "saved" if name.startswith("saved/") else name
            assert opener.ask(folder / source) == "equal"
            for seed in seeds:
                (folder / name).write_bytes(damaged_bytes(good, seed))
                result = opener.ask(folder / source)
                totals["files"] += 1
                if result == "other" and name in EXACT:
                    result = "accepted"
                if result in ("refused", "equal", "other", "fails"):
                    totals[result] += 1
                else:
                    totals["accepted" if result == "accepted" else "raw"] += 1
                    wrong.append(f"{name}, seed {seed}: {result}")
            (folder / name).write_bytes(good)
    finally:
        opener.close()
    assert not wrong, "\n".join(wrong[:20])


needs_tensorflow = pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")


@needs_tensorflow
def test_models(tmp_path):
    judge_models(tmp_path, dict.fromkeys(MODELS, range(5)) | {"net.keras": range(20)}, Counter())


# -- the long run -------------------------------------------------------------------------------------


@pytest.mark.soak
def test_ten_thousand_damaged_files(tmp_path):
    totals: Counter[str] = Counter()
    faults = []

    def run(name: str, kind: Kind, seeds: range, rewrite: bool = False) -> None:
        try:
            judge(name, kind, tmp_path, seeds, totals, rewrite)
        except AssertionError as error:
            faults.append(str(error))

    for name, kind in STATES.items():
        run(name, kind, range(1000, 1600))
        if name != "plain":
            run(name, kind, range(1000, 1500), rewrite=True)
    run("npz", NPZ, range(1000, 2200))
    for name, kind in IMAGES.items():
        run(name, kind, range(1000, 1250))
    if find_spec("tensorflow") is not None:
        counts = {"net.keras": 400, "net.h5": 100, "frozen.pb": 100, "saved/saved_model.pb": 80}
        counts["saved/variables/variables.index"] = 60
        folder = tmp_path / "models"
        folder.mkdir()
        try:
            judge_models(folder, {name: range(1000, 1000 + count) for name, count in counts.items()}, totals)
        except AssertionError as error:
            faults.append(str(error))
    names = ("files", "refused", "equal", "other", "fails", "raw", "accepted")
    write_totals("files", {name: totals[name] for name in names})
    assert not faults, "\n".join(faults)
    assert totals["files"] >= 10_000


def test_the_judge_sees_what_is_wrong(tmp_path):
    """Each fault that it looks for, once."""
    path = tmp_path / "file"
    path.touch()

    def raises(error: BaseException) -> Callable[[Path], dict[str, Any]]:
        def read(path: Path) -> dict[str, Any]:
            raise error

        return read

    kind = Kind(lambda path: None, lambda path: {"a": 1})
    assert outcome(kind, path, {"a": 1}) == "equal"
    assert outcome(kind, path, {"a": 2}) == "accepted with other numbers"
    assert outcome(replace(kind, exact=False), path, {"a": 2}) == "other"
    assert outcome(replace(kind, read=raises(IBAError("one sentence"))), path, {}) == "refused"
    assert outcome(replace(kind, read=raises(IBAError("two\nlines"))), path, {}).startswith("no sentence")
    for error in (KeyError("a"), RecursionError(), TooLong(), MemoryError()):
        assert outcome(replace(kind, read=raises(error)), path, {}).startswith(f"raw {type(error).__name__}")
