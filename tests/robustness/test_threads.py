"""Many threads and tasks: results are those of one, and nobody else sees anything."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from iba_core import Explainer
from iba_core.concepts import ConceptEmbedding, locate
from tests.backends import fitted, smooth_images
from tests.robustness.networks import CLASSES, LAYER, images, network
from tests.robustness.test_faults import SHARE
from tests.robustness.totals import write_totals

pytestmark = pytest.mark.filterwarnings("ignore:the model reads some of its input by a way around")

QUICK = {"steps": 2, "samples": 2}


@pytest.fixture(scope="module")
def explainer(backend):
    return fitted(backend, samples=3, steps=3)


def all_at_once(tasks: list[Callable[[], Any]]) -> list[Any]:
    """What the tasks give, each in a thread of its own, which start together."""
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        barrier.wait(60)
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def explanations(explainer: Explainer, x: np.ndarray, start: int) -> list[np.ndarray]:
    """Of every eighth task; some batches are of two images, which is another shape."""
    tasks = [(index, target) for index in range(8) for target in (0, 2)][start::8]
    return [explainer.explain(x[i : i + 1 + i % 2], t, seed=i).capacity for i, t in tasks]


def test_eight_threads_give_the_serial_results(backend, explainer):
    x = backend.images(smooth_images(9))
    expected = [explanations(explainer, x, start) for start in range(8)]
    fresh = copy.deepcopy(explainer)  # nothing has been compiled or planned for it
    found = all_at_once([lambda start=start: explanations(fresh, x, start) for start in range(8)])
    for results, wanted in zip(found, expected, strict=True):
        for result, other in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(result, other)


def test_tasks_give_the_serial_results(backend, explainer):
    x = backend.images(smooth_images(9))
    expected = [explanations(explainer, x, start) for start in range(8)]

    async def run() -> list[Any]:
        calls = (asyncio.to_thread(explanations, explainer, x, start) for start in range(8))
        return await asyncio.gather(*calls)

    for results, wanted in zip(asyncio.run(run()), expected, strict=True):
        for result, other in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(result, other)


def test_everything_at_once_gives_the_serial_results(backend):
    """Explanations, predictions, activation maps and located concepts of one model, each in two threads."""
    model, x = network(backend), images(backend, 4)
    explainer = Explainer(model, LAYER, **QUICK).fit([x], progbar=False)
    cam = backend.module("concepts").GradCAM(model, [LAYER])
    embedding = ConceptEmbedding(np.ones((4, 1, 1)), bias=0.0, layer_id=LAYER)
    doors = [
        lambda: explainer.explain(x[:2], 1, seed=0).capacity,
        lambda: np.concatenate(
            [m.capacity for m in explainer.explain_iter([x[:2], x[2:]], 0, seed=1, progbar=False)]
        ),
        lambda: cam(x, [0, 1, 2, 3]),
        lambda: locate(model, embedding, x),
    ]
    expected = [door() for door in doors]
    found = all_at_once([lambda door=door: [door() for _ in range(3)] for door in doors * 2])
    for results, wanted in zip(found, expected * 2, strict=True):
        for result in results:
            np.testing.assert_array_equal(result, wanted)


# -- other threads use the model ---------------------------------------------------------------------------


def train(backend: Any, model: Any, steps: int) -> list[np.ndarray]:
    """Train a model with dropout and normalisation; its weights and statistics in the end."""
    xs, ys = images(backend, 4 * steps, seed=3), np.arange(4 * steps) % CLASSES
    if backend.name == "torch":
        torch = backend.torch
        model.train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(steps):
            assert all(module.training for module in model.modules())
            rows = slice(4 * step, 4 * step + 4)
            optimizer.zero_grad()
            outputs = model(torch.from_numpy(xs[rows]))
            assert outputs.requires_grad
            torch.nn.functional.cross_entropy(outputs, torch.from_numpy(ys[rows])).backward()
            optimizer.step()
        return [value.numpy().copy() for value in model.state_dict().values()]
    backend.keras.utils.set_random_seed(1)
    loss = backend.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(backend.keras.optimizers.SGD(0.05), loss)
    for step in range(steps):
        model.train_on_batch(xs[4 * step : 4 * step + 4], ys[4 * step : 4 * step + 4])
    return [np.array(value) for value in model.get_weights()]


def test_a_thread_trains_the_model_meanwhile(backend):
    """It ends with the weights and statistics that it has when it trains alone."""
    steps = 12
    wanted = train(backend, network(backend), steps)
    model, x = network(backend), images(backend, 2)
    explainer = Explainer(model, LAYER, **QUICK).fit([x], progbar=False)
    explainer.explain(x, 1, seed=0)
    done, explained = threading.Event(), []

    def explain() -> None:
        while not done.is_set() or not explained:
            explained.append(explainer.explain(x, 1, seed=0).capacity)

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(explain) for _ in range(3)]
        try:
            found = train(backend, model, steps)
        finally:
            done.set()
        for each in running:
            each.result()
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert explained


def test_a_thread_runs_the_model_meanwhile(backend):
    """Its outputs are as ever, with a gradient where there is one."""
    model, x = network(backend), images(backend, 2)
    explainer = Explainer(model, LAYER, **QUICK).fit([x], progbar=False)
    expected = explainer.explain(x, 1, seed=0).capacity
    if backend.name == "torch":
        model.eval()

    def run() -> tuple[np.ndarray, np.ndarray]:
        tensor = backend.asarray(x)
        if backend.name == "torch":
            outputs = model(tensor.requires_grad_())
            outputs.sum().backward()
            return outputs.detach().numpy(), tensor.grad.numpy()
        with backend.tf.GradientTape() as tape:
            tape.watch(tensor)
            outputs = model(tensor, training=False)
        return outputs.numpy(), tape.gradient(outputs, tensor).numpy()

    wanted, done = run(), threading.Event()

    def explain() -> list[np.ndarray]:
        found = []
        while not done.is_set() or not found:
            found.append(explainer.explain(x, 1, seed=0).capacity)
        return found

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(explain) for _ in range(2)]
        try:
            for _ in range(20):
                for one, other in zip(run(), wanted, strict=True):
                    np.testing.assert_array_equal(one, other)
        finally:
            done.set()
        for each in running:
            for result in each.result():
                np.testing.assert_array_equal(result, expected)


# -- restricted flow -----------------------------------------------------------------------------------------


def test_restrictions_overlap_at_random(backend):
    """Contexts of many threads, which nest and overlap; a thread outside of them runs the plain model."""
    restrict, run = restricted_model(backend)
    plain, failures = run(), []

    def use(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(5):
            if generator.random() < 0.3:
                if not np.array_equal(run(), plain):
                    failures.append(f"thread {seed}: restricted outside")
                continue
            with restrict():
                if generator.random() < 0.5:
                    with restrict():
                        inner = run()
                    if np.array_equal(inner, plain):
                        failures.append(f"thread {seed}: not restricted in the inner context")
                if np.array_equal(run(), plain):
                    failures.append(f"thread {seed}: not restricted")

    all_at_once([lambda seed=seed: use(seed) for seed in range(6)])
    assert not failures
    np.testing.assert_array_equal(run(), plain)


def restricted_model(backend: Any) -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
    """A context that restricts a model by a bottleneck, and what runs the model."""
    x = images(backend, 1)
    if backend.name == "torch":
        torch, model = backend.torch, network(backend).eval()
        iba = backend.module().IBA(model.get_submodule(LAYER), optimization_steps=2, batch_size=2)
        iba.estimate(model, [torch.from_numpy(images(backend, 8))])
        iba.analyze(torch.from_numpy(x), lambda inputs: model(inputs)[:, 1].mean(), beta=1000)

        def run() -> np.ndarray:
            with torch.no_grad():
                return model(torch.from_numpy(x)).numpy()

        return iba.restrict_flow, run
    keras = backend.keras
    iba = backend.module().IBALayer(steps=2, batch_size=2)
    inputs = keras.Input((8, 8, 3))
    features = iba(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(features)))
    iba.set_classification_loss(model)
    iba.fit(images(backend, 8))
    iba.analyze(x, target=1, beta=1000)
    return iba.restrict_flow, lambda: np.asarray(model(x))


# -- for long ------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_threads_give_the_serial_results_for_long(backend, explainer):
    x = backend.images(smooth_images(9))
    expected = [explanations(explainer, x, start) for start in range(8)]
    rounds = max(1, round(100 * SHARE))

    def run(start: int) -> tuple[int, int]:
        done = differing = 0
        for _ in range(rounds):
            for result, wanted in zip(explanations(explainer, x, start), expected[start], strict=True):
                done, differing = done + 1, differing + (not np.array_equal(result, wanted))
        return done, differing

    counts = all_at_once([lambda start=start: run(start) for start in range(8)])
    done, differing = map(sum, zip(*counts, strict=True))
    write_totals(f"threads_{backend.name}", {"threads": 8, "explanations": done, "differing": differing})
    assert not differing
