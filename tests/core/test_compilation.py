"""A data set that takes long is compiled, if that is found to be faster."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, compilation
from iba_core.bottleneck.formulas import BottleneckSettings, preset_settings
from iba_core.compilation import CompilationTrial, brief_settings
from iba_torch import TorchAdapter

LONG = 5000
"""Batches that take long enough at a second each."""


class Worker:
    """Takes, by its own clock, the seconds it is told, and so many more the first time it compiles."""

    def __init__(self, monkeypatch, plain=1.0, machine=0.5, compiling=60.0):
        self.now = 0.0
        self.plain, self.machine, self.compiling = plain, machine, compiling
        self.runs = []
        self.forgotten = 0
        monkeypatch.setattr(compilation, "perf_counter", lambda: self.now)

    def __call__(self, settings, jit_compile):
        if jit_compile and not any(compiled for _, compiled in self.runs):
            self.now += self.compiling
        self.now += (self.machine if jit_compile else self.plain) * settings.steps / 10
        self.runs.append((settings.steps, jit_compile))
        return len(self.runs)

    def forget(self):
        self.forgotten += 1

    @property
    def whole(self):
        """Whether each of the batches ran compiled; the brief ones of the trial left out."""
        return [bool(compiled) for steps, compiled in self.runs if steps == 10]


@pytest.fixture
def settings():
    return BottleneckSettings()


def test_a_long_data_set_is_compiled_once_that_is_faster(monkeypatch, settings):
    worker = Worker(monkeypatch)
    trial = CompilationTrial(range(LONG), forget=worker.forget)
    results = [trial.run(worker, settings, (8, 3)) for _ in range(6)]
    assert worker.whole == [False] * 3 + [True] * 3
    assert [steps for steps, _ in worker.runs].count(2) == 4, "two brief runs each, the first uncounted"
    assert results == [1, 2, 3, 8, 9, 10]
    assert not worker.forgotten


@pytest.mark.parametrize(
    ("batches", "machine"),
    [(range(1000), 0.5), (range(LONG), 0.95), (range(LONG), 3.0), (iter(range(LONG)), 0.5)],
    ids=["too short", "hardly faster", "slower", "of unknown length"],
)
def test_else_it_is_not(monkeypatch, settings, batches, machine):
    worker = Worker(monkeypatch, machine=machine)
    trial = CompilationTrial(batches, forget=worker.forget)
    for _ in range(6):
        trial.run(worker, settings, (8, 3))
    assert worker.whole == [False] * 6
    tried = batches == range(LONG)
    assert len(worker.runs) == (10 if tried else 6)
    assert worker.forgotten == tried


@pytest.mark.parametrize("place", range(6))
def test_what_is_left_over_is_not_compiled_for(monkeypatch, settings, place):
    worker = Worker(monkeypatch)
    trial = CompilationTrial(range(LONG), forget=worker.forget)
    trial.run(worker, settings, (8, 3))
    expected = [False, False, True, True, True, True]
    expected.insert(place, False)
    for number in range(7):
        trial.run(worker, settings, (5 if number == place else 8, 3))
    assert worker.whole == [False, *expected]


def test_what_serves_one_batch_alone_is_not_compiled(monkeypatch, settings):
    worker = Worker(monkeypatch)
    trial = CompilationTrial(range(LONG), forget=worker.forget)
    for _ in range(6):
        trial.run(worker, settings, None)
    assert worker.whole == [False] * 6


@pytest.mark.parametrize("fails", [True, False])
def test_a_compiler_that_nobody_asked_for_may_fail_in_silence(monkeypatch, settings, fails):
    worker = Worker(monkeypatch, machine=2.0)

    def work(settings, jit_compile):
        if jit_compile:
            warnings.warn("the model runs uncompiled", stacklevel=1)
            if fails:
                raise RuntimeError("an operation that the compiler does not know")
        return worker(settings, jit_compile)

    trial = CompilationTrial(range(LONG), forget=worker.forget)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            trial.run(work, settings, (8, 3))
    assert worker.whole == [False] * 6
    assert worker.forgotten == 1


def test_a_first_batch_that_takes_long_to_trace_does_not_count(monkeypatch, settings):
    worker = Worker(monkeypatch, plain=1e5)
    trial = CompilationTrial(range(1000), forget=worker.forget)
    trial.run(worker, settings, 1)
    worker.plain = 1.0
    for _ in range(5):
        trial.run(worker, settings, 1)
    assert worker.whole == [False] * 6


@pytest.mark.parametrize("name", ["default", "fast"])
def test_brief_settings_meet_all_shapes(name):
    settings = BottleneckSettings(**preset_settings(name))
    brief = brief_settings(settings)
    assert brief.steps == 2
    assert set(brief.schedule) == set(settings.schedule)


@pytest.mark.parametrize("compile", [None, False])
def test_an_explainer_switches_it_on_by_itself_unless_told_not_to(monkeypatch, compile):
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: graphs.append(module) or module)
    monkeypatch.setattr(compilation, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(compilation, "LEAST_GAIN", 0.0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    explainer = Explainer(model, "1", samples=3, compile=compile).fit(
        [torch.randn(8, 3, 8, 8)], progbar=False
    )
    batches = list(torch.randn(6, 2, 3, 8, 8))
    numbers = []
    for batch, found in zip(batches, explainer.explain_iter(batches, 1, seed=0, progbar=False), strict=True):
        numbers.append(len(graphs))
        np.testing.assert_allclose(found.capacity, explainer.explain(batch, 1, seed=0).capacity, rtol=1e-5)
    assert numbers[:3] == [0, 0, 0]
    assert (numbers[3] > 0) == (compile is None)
    assert numbers[3] == numbers[-1], "compiled once"


def test_compile_says_so_whatever_the_adapter_was_made_for(monkeypatch):
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: graphs.append(module) or module)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    for own in (False, True):
        adapter = TorchAdapter(model)
        adapter.jit_compile = own
        for compile in (None, False, True):
            graphs.clear()
            explainer = Explainer(adapter, "1", samples=2, compile=compile)
            explainer.fit([torch.randn(4, 3, 8, 8)], progbar=False).explain(torch.randn(1, 3, 8, 8), 1)
            assert bool(graphs) == (own if compile is None else compile)
            assert adapter.jit_compile == own
