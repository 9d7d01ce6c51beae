"""Work shared by a cluster on this machine: workers die, nothing is lost, nothing comes twice."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from iba_core import InputError, MissingDependencyError
from iba_core.datasets import Run, cluster, explain_dataset
from iba_core.datasets.items import ArrayItem
from iba_core.datasets.work import Work
from iba_core.datasets.workers import Workers, spread
from tests.backends import Torch, fitted, smooth_images
from tests.behaviour.test_datasets import (
    FAST,
    assert_it_goes_on,
    explained,
    explainer,
    kill_at_work,
    pictures,
)

__all__ = ["explained", "explainer"]

TOGETHER = {"ray": "local", "jobs": 2}


@pytest.fixture(scope="module")
def ray():
    """The package, where it can start a cluster: some machines have too little shared memory, or no ports."""
    found = pytest.importorskip("ray")
    start = "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False); ray.shutdown()"
    try:
        subprocess.run([sys.executable, "-c", start], check=True, timeout=180, capture_output=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"Ray starts no cluster here: {error}")
    return found


@dataclass(frozen=True, eq=False)
class Deadly(ArrayItem):
    """An input that kills the process that reads it, as often as there are bullets."""

    bullets: Path = Path()

    def load(self):
        for bullet in self.bullets.iterdir():
            bullet.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load()


def deadly(name, x, folder, bullets):
    folder.mkdir()
    for number in range(bullets):
        (folder / f"{number}").touch()
    return Deadly(name, x, bullets=folder)


def assert_all_there_once(run, explainer, inputs):
    """Each input has one record, one line and one file, with what the explainer gives."""
    assert sorted(record.name for record in run) == sorted(inputs)
    lines = (run.folder / "journal.jsonl").read_bytes().splitlines()
    files = [path for path in (run.folder / "results").iterdir() if not path.name.startswith(".")]
    assert len(lines) == len(files) == len(inputs)
    for record in run:
        expected = explainer.explain(inputs[record.name][None], seed=0, steps=2, samples=2)
        np.testing.assert_allclose(record.attribution().capacity, expected.capacity, rtol=1e-4, atol=1e-6)


def assert_same_statistics(explainer, other):
    """Means, deviations and active neurons to 1e-10, of each half and of the whole."""
    ours, theirs = ({**part.state_dict()} for part in (explainer.estimator, other.estimator))
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-10, atol=1e-10, err_msg=name)


def test_a_worker_dies_and_nothing_is_lost(ray, tmp_path):
    """The one that `make test` runs: others are in `make soak`, for both frameworks."""
    backend = Torch()
    explainer = fitted(backend)
    inputs = dict(zip("abcdef", backend.images(smooth_images(6)), strict=True))
    items = [ArrayItem(name, x) for name, x in inputs.items()]
    items[3] = deadly("d", inputs["d"], tmp_path / "bullets", 1)
    run = explainer.map(items, tmp_path / "run", pictures=False, **TOGETHER, **FAST)
    assert not list((tmp_path / "bullets").iterdir()), "a worker was killed"
    assert not run.failed
    assert_all_there_once(run, explainer, inputs)
    assert not ray.is_initialized()


# -- statistics -----------------------------------------------------------------------------------------


def named(x):
    return [(f"{number}", image) for number, image in enumerate(x)]


@pytest.mark.parametrize("batch_size", [7, 32])
def test_parts_merge_to_what_fit_estimates(backend, batch_size):
    x = backend.images(smooth_images(150, seed=3))
    batches = [x[i : i + batch_size] for i in range(0, 150, batch_size)]
    alone = fitted(backend).fit(batches, 140, progbar=False)
    together = fitted(backend).fit_dataset(named(x), 140, batch_size=batch_size, progbar=False)
    assert together.estimator.n_samples() == 140
    assert_same_statistics(alone, together)
    errors = [each.bits_error(x[:2], steps=2, samples=2) for each in (alone, together)]
    np.testing.assert_allclose(*errors, rtol=1e-6)


def test_fit_dataset_chooses_a_layer_and_refuses_too_few(backend):
    explainer = type(fitted(backend))(backend.small())
    x = backend.images(smooth_images(4))
    with pytest.raises(InputError, match="inputs held 1 samples; at least 2"):
        explainer.fit_dataset(named(x[:1]), progbar=False)
    assert explainer.layer is None
    with pytest.raises(InputError, match="inputs of different shapes need batch_size=1"):
        explainer.fit_dataset([*named(x), ("odd", x[0, :, 1:])], progbar=False)
    explainer.fit_dataset(named(x), progbar=False)
    assert explainer.layer == type(explainer)(backend.small()).fit([x], progbar=False).layer


@pytest.mark.soak
def test_workers_estimate_what_one_does(ray, backend):
    x = backend.images(smooth_images(300, seed=3))
    alone = fitted(backend).fit([x[i : i + 16] for i in range(0, 300, 16)], progbar=False)
    one = fitted(backend).fit_dataset(named(x), batch_size=16, progbar=False)
    for workers in ({"jobs": 2}, TOGETHER, {"ray": "local", "jobs": 3}):
        other = fitted(backend).fit_dataset(named(x), batch_size=16, progbar=False, **workers)
        assert_same_statistics(alone, other)
        # The parts and their order are those of one process.
        for name, array in one.estimator.state_dict().items():
            np.testing.assert_allclose(other.estimator.state_dict()[name], array, rtol=1e-12, err_msg=name)


# -- workers that die, or have no room ------------------------------------------------------------------


@pytest.mark.soak
def test_what_always_kills_is_noted(ray, backend, tmp_path):
    explainer = fitted(backend)
    inputs = dict(zip("abcdef", backend.images(smooth_images(6)), strict=True))
    items = [ArrayItem(name, x) for name, x in inputs.items()]
    items[1] = deadly("b", inputs["b"], tmp_path / "bullets", 3)
    with pytest.warns(UserWarning, match="b: 3 workers have died"):
        run = explainer.map(items, tmp_path / "run", **TOGETHER, **FAST)
    assert [record.name for record in run.failed] == ["b"]
    run = explainer.map(items, tmp_path / "run", **FAST)
    assert len(run) == 6
    assert not run.failed


PROGRAM = """
import sys
from iba_core.datasets import explain_dataset
from tests.backends import BACKENDS, fitted
from tests.behaviour.test_datasets import FAST, PREPROCESSING

explainer = fitted(BACKENDS[sys.argv[1]]())
explain_dataset(
    explainer, sys.argv[2], sys.argv[3], ray="local", jobs=2, preprocessing=PREPROCESSING, **FAST
)
"""


@pytest.mark.soak
def test_a_killed_program_leaves_no_workers_and_goes_on(ray, backend, explained, tmp_path):
    names = pictures(tmp_path / "in", 40)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", backend.name, tmp_path / "in", tmp_path / "run"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}) as process:
        journal = tmp_path / "run" / "journal.jsonl"
        while not journal.exists():
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        kill_at_work(process.pid, tmp_path / "run", lambda: process.poll() is not None)
    psutil.wait_procs(children, timeout=120)
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]
    assert_it_goes_on(fitted(backend), explained, names, tmp_path)


def where(explainer, task, options):
    """What a worker knows of itself."""
    time.sleep(0.5)
    return os.getpid(), os.environ["OMP_NUM_THREADS"], tuple(explainer.adapter.placed)


@dataclass
class Placed:
    """What a worker tells where its model is to be."""

    placed: list

    def place(self, device):
        self.placed.append(device)


@pytest.mark.soak
def test_workers_share_a_gpu(ray, monkeypatch):
    """A cluster that is said to have a GPU has room for two halves of it."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        explainer = SimpleNamespace(adapter=Placed([]))
        for gpus, jobs, count in ((0.5, None, 2), (0.5, 3, 2), (1.0, None, 1), (0.0, None, 4)):
            work = Work(where, explainer)
            found = set(spread(work, range(40), Workers(jobs, "auto", gpus)))
            assert len({pid for pid, *_ in found}) <= count
            assert {threads for _, threads, _ in found} == {"1"}
            assert {placed for *_, placed in found} == {("cuda",) if gpus else ()}
        assert ray.is_initialized(), "it was not ours to end"
    finally:
        ray.shutdown()


def told(explainer, task, options):
    raise InputError(f"{task} is wrong")


@pytest.mark.soak
def test_errors_and_places(ray, tmp_path):
    """Errors come as workers raise them, and a process is afterwards as before."""
    before = signal.getsignal(signal.SIGTERM), sys.excepthook, dict(os.environ)
    work = Work(told, SimpleNamespace(adapter=None))
    with pytest.raises(InputError, match=r"^5 is wrong$"):
        list(spread(work, [5], Workers(1, "local", 0.0)))
    with pytest.raises(
        InputError, match="the cluster has no room for a worker, with 1 processors and 0 GPUs"
    ):
        list(spread(work, [5], Workers(1, "local", 0.5)))
    with pytest.raises(InputError, match="needs a model that can be pickled"):
        list(spread(Work(told, SimpleNamespace(lock=(i for i in ()))), [5], Workers(1, "local", 0.0)))
    assert (signal.getsignal(signal.SIGTERM), sys.excepthook, dict(os.environ)) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ray": "somewhere"}, "ray='somewhere' must be the address of a cluster"),
        ({"ray": 3}, "ray=3 must be the address of a cluster"),
        ({"gpus": 0.5}, "gpus=0.5 is for workers on a cluster; give ray="),
        ({"ray": "local", "gpus": 2}, "gpus=2 must be"),
        ({"jobs": 0}, "jobs=0 must be a whole number from 1 to 1024"),
    ],
)
def test_wrong_arguments(change, message, tmp_path):
    pytest.importorskip("ray")
    explainer = fitted(Torch())
    with pytest.raises(InputError, match=message):
        explainer.map({"a": np.zeros(3)}, tmp_path / "run", **change)
    with pytest.raises(InputError, match=message):
        explainer.fit_dataset({"a": np.zeros(3)}, **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://[::1]:1", "127.0.0.1:99999"])
def test_where_nothing_listens_there_is_no_cluster(ray, address):
    with pytest.raises(InputError, match="no cluster answers there"):
        list(spread(Work(told, None), [1], Workers(1, address, 0.0)))
    assert not ray.is_initialized()


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'iba-core\[ray\]'"):
        explain_dataset(fitted(Torch()), {"a": np.zeros(3)}, tmp_path / "run", ray="local")
    assert not Run(tmp_path / "run")
