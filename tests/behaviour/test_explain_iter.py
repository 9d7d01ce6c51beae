"""Explaining a data set batch by batch, and how a batch is split, the same in both frameworks."""

import weakref

import numpy as np
import pytest

from iba_core import ClassTarget, Explainer, InputError, NotEstimatedError
from iba_core.framework.framework import rows_in_cache
from tests.backends import Activation, Conv, Dense, Flatten

SIZE, CLASSES = 6, 4
SETTINGS = {"samples": 4, "steps": 3}


LAYER = "features"
LAYERS = [
    Conv("conv", 5, padding="valid"),
    Activation(LAYER),
    Conv("last", 4, padding="valid"),
    Flatten(),
    Dense("logits", CLASSES),
]


@pytest.fixture
def model(backend):
    return backend.network((SIZE, SIZE, 3), LAYERS, dtype="float64")


@pytest.fixture
def x(backend):
    return backend.images(np.random.default_rng(1).normal(size=(5, SIZE, SIZE, 3)))


@pytest.fixture
def explainer(backend, model):
    data = backend.images(np.random.default_rng(0).normal(size=(20, SIZE, SIZE, 3)))
    return Explainer(model, layer=LAYER, **SETTINGS).fit([data], progbar=False)


LABELS = np.array([0, 3, 1, 2, 2])


def assert_same(attributions, expected):
    assert [len(attribution) for attribution in attributions] == [2, 2, 1]
    for name in ("saliency", "capacity", "classes", "outputs"):
        found = np.concatenate([getattr(attribution, name) for attribution in attributions])
        np.testing.assert_allclose(found, getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_a_loader_brings_the_targets(backend, explainer, x):
    loader = backend.loader(x, LABELS, batch_size=2)
    found = list(explainer.explain_iter(loader, seed=3, progbar=False))
    assert_same(found, explainer.explain(x, LABELS, seed=3))


def test_batches_without_targets_are_explained_for_the_class_predicted(explainer, x):
    expected = explainer.explain(x, seed=3)
    bare = [x[start : start + 2] for start in (0, 2, 4)]
    for batches in (bare, [(inputs,) for inputs in bare]):
        assert_same(list(explainer.explain_iter(iter(batches), seed=3, progbar=False)), expected)


def test_a_target_given_goes_before_those_of_the_batches(backend, explainer, x):
    loader = backend.loader(x, LABELS, batch_size=2)
    for target in (ClassTarget(), 1):
        found = list(explainer.explain_iter(loader, target, seed=3, progbar=False))
        assert_same(found, explainer.explain(x, target, seed=3))


def test_one_batch_is_in_memory_at_a_time(explainer, x):
    seen = []

    def batches():
        for _ in range(5):
            batch = x[:2].copy()
            seen.append(weakref.ref(batch))
            yield batch
            del batch

    attributions = []
    for number, attribution in enumerate(explainer.explain_iter(batches(), progbar=False), start=1):
        attributions.append(weakref.ref(attribution))
        assert len(seen) == number, "no batch is taken before it is asked for"
        assert sum(ref() is not None for ref in seen) == 1
        assert sum(ref() is not None for ref in attributions) == 1
        del attribution
    assert len(attributions) == 5


def test_a_mask_of_what_passes_can_follow_from_the_inputs(explainer, x):
    def first_row(inputs):
        mask = np.zeros((len(inputs), *explainer.estimator.shape), bool)
        mask[:, :, 0] = True
        return mask

    for attribution in explainer.explain_iter([x[:2], x[2:]], pass_mask=first_row, progbar=False):
        assert (attribution.capacity[:, :, 0] == 0).all()
        assert (attribution.capacity[:, :, 1:] > 0).any()


def test_wrong_arguments_are_told_before_the_first_batch(model, explainer):
    def batches():
        raise AssertionError("a batch was taken")
        yield

    with pytest.raises(InputError, match="betta"):
        explainer.explain_iter(batches(), betta=1)
    with pytest.raises(NotEstimatedError, match="fit"):
        Explainer(model, layer=LAYER).explain_iter(batches())


def test_no_batches_are_an_error(explainer):
    with pytest.raises(InputError, match="batches is empty"):
        next(explainer.explain_iter([]))


def test_progress(explainer, x, capsys):
    list(explainer.explain_iter([x[:1], x[1:2]], steps=1))
    assert "2/2" in capsys.readouterr().err
    list(explainer.explain_iter([x[:1]], steps=1, progbar=False))
    assert not capsys.readouterr().err


def test_caches_hold_at_least_some_maps():
    assert rows_in_cache((80, 28, 28)) == 16
    assert rows_in_cache((64, 8, 8)) == 64
    assert rows_in_cache(()) == 2**18


def test_a_processor_takes_as_many_maps_as_its_caches_hold(explainer, x):
    like = next(iter(explainer.adapter.to_inputs((x,))))
    assert explainer.adapter.framework.preferred_batch((80, 28, 28), like) == 16


@pytest.mark.parametrize(("preferred", "most"), [(None, 20), (9, 8), (8, 8), (3, 4)])
def test_a_batch_is_split_between_images_as_the_backend_likes_it(explainer, x, monkeypatch, preferred, most):
    expected = explainer.explain(x, LABELS, seed=3)
    rows = []
    framework = type(explainer.adapter.framework)
    monkeypatch.setattr(framework, "preferred_batch", lambda self, shape, like: preferred)
    found = explainer.explain(x, _noting(LABELS, rows), seed=3)
    assert max(rows) == most
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-9, atol=1e-12)


def _noting(labels, rows):
    """The classes as a target whose loss notes how many outputs it gets."""

    class Noting(ClassTarget):
        def resolve(self, outputs):
            loss, data = super().resolve(outputs)

            def noting(outputs, *data):
                rows.append(int(outputs.shape[0]))
                return loss(outputs, *data)

            return noting, data

    return Noting(labels)
