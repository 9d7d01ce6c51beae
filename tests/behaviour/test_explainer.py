"""One test body for both frameworks: the same network, explained by the same class."""

import copy
from abc import ABC, abstractmethod
from dataclasses import fields, replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from iba_core import (
    Attribution,
    Explainer,
    InputError,
    LayerError,
    NotEstimatedError,
    OptimizationError,
    StateError,
    WelfordEstimator,
)
from iba_core.bottleneck.settings import PRESETS
from iba_core.targets import class_probabilities
from iba_core.timing import BareTail

SIZE, SIDE, CLASSES = 12, 6, 5
LAYER = "second"


def weights():
    """Weights of the network, in Keras' shapes, float64."""
    generator = np.random.default_rng(4)
    return {
        "first": [generator.normal(size=(3, 3, 3, 6)) / 3, generator.normal(size=6)],
        "norm": [generator.uniform(0.5, 2, size=6) for _ in range(4)],
        "second": [generator.normal(size=(3, 3, 6, 8)) / 4, generator.normal(size=8)],
        "third": [generator.normal(size=(3, 3, 8, 8)) / 4, generator.normal(size=8)],
        "logits": [generator.normal(size=(SIDE * SIDE * 8, CLASSES)) / 8, generator.normal(size=CLASSES) / 4],
    }


class Side(ABC):
    """What the tests need of a framework."""

    @abstractmethod
    def model(self, dtype="float64"):
        """The network, with layers first, norm, second, third and logits."""

    @abstractmethod
    def of(self, x):
        """Images (B, H, W, C) in the model's data format."""

    @abstractmethod
    def state(self, model):
        """Everything about the model that explaining must not change, comparable by `same`."""

    @abstractmethod
    def raise_after(self, passes):
        """A score that raises at one of its calls."""


class Torch(Side):
    def model(self, dtype="float64"):
        net = nn.Sequential()
        net.add_module("first", nn.Conv2d(3, 6, 3, padding=1))
        net.add_module("norm", nn.BatchNorm2d(6, eps=1e-3))
        net.add_module("act", nn.ReLU())
        net.add_module("second", nn.Conv2d(6, 8, 3, padding=1, stride=2))
        net.add_module("act2", nn.ReLU(inplace=True))
        net.add_module("drop", nn.Dropout(0.5))
        net.add_module("third", nn.Conv2d(8, 8, 3, padding=1))
        net.add_module("act3", nn.ReLU())
        net.add_module("flat", nn.Flatten())
        net.add_module("logits", nn.Linear(SIDE * SIDE * 8, CLASSES))
        # Keras pads a strided window at the far side alone.
        net.second.padding = 0
        net.act = nn.Sequential(nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)))
        net.double()
        with torch.no_grad():
            for name, (first, second, *rest) in weights().items():
                layer = net.get_submodule(name)
                if rest:
                    layer.running_mean.copy_(torch.from_numpy(rest[0]))
                    layer.running_var.copy_(torch.from_numpy(rest[1]))
                    layer.weight.copy_(torch.from_numpy(first))
                elif first.ndim == 4:
                    layer.weight.copy_(torch.from_numpy(first.transpose(3, 2, 0, 1)))
                else:
                    channels_first = first.reshape(SIDE, SIDE, 8, CLASSES).transpose(3, 2, 0, 1)
                    layer.weight.copy_(torch.from_numpy(channels_first.reshape(CLASSES, -1)))
                layer.bias.copy_(torch.from_numpy(second))
        return net.to(getattr(torch, dtype)).eval()

    def of(self, x):
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))

    def state(self, model):
        hooks = [
            len(value) if hasattr(value, "__len__") else value
            for module in model.modules()
            for name, value in vars(module).items()
            if "hook" in name
        ]
        flags = [(module.training, *vars(module)) for module in model.modules()]
        grads = [(p.requires_grad, p.grad, p._version) for p in model.parameters()]
        values = [value.clone().numpy() for value in model.state_dict().values()]
        x = self.of(images(2)).astype(values[0].dtype)
        with torch.no_grad():
            outputs = copy.deepcopy(model).eval()(torch.from_numpy(x)).numpy()
        return {
            "flags": [hooks, flags, grads, nn.Module.__call__],
            "arrays": [*values, outputs],
        }

    def raise_after(self, passes):
        calls = []

        def score(outputs):
            calls.append(1)
            if len(calls) > passes:
                raise ZeroDivisionError("in the middle")
            return outputs[:, 0]

        return score


class Keras(Side):
    def model(self, dtype="float64"):
        layers = keras.layers
        inputs = keras.Input((SIZE, SIZE, 3), dtype=dtype)
        x = layers.Conv2D(6, 3, padding="same", name="first", dtype=dtype)(inputs)
        x = layers.BatchNormalization(name="norm", dtype=dtype)(x)
        x = layers.ReLU(name="act", dtype=dtype)(x)
        x = layers.Conv2D(8, 3, strides=2, padding="same", name="second", dtype=dtype)(x)
        x = layers.ReLU(name="act2", dtype=dtype)(x)
        x = layers.Dropout(0.5, name="drop", dtype=dtype)(x)
        x = layers.Conv2D(8, 3, padding="same", name="third", dtype=dtype)(x)
        x = layers.ReLU(name="act3", dtype=dtype)(x)
        x = layers.Flatten(name="flat", dtype=dtype)(x)
        model = keras.Model(inputs, layers.Dense(CLASSES, name="logits", dtype=dtype)(x))
        for name, arrays in weights().items():
            model.get_layer(name).set_weights(arrays)
        return model

    def of(self, x):
        return x

    def state(self, model):
        flags = [
            (layer.name, layer.trainable, len(layer._inbound_nodes), len(layer._outbound_nodes), *vars(layer))
            for layer in model.layers
        ]
        values = [np.array(value) for value in model.get_weights()]
        outputs = model(images(2), training=False).numpy()
        return {
            "flags": [flags, [variable.trainable for variable in model.variables]],
            "arrays": [*values, outputs],
        }

    def raise_after(self, passes):
        def score(outputs):
            # The score is traced once and runs as a graph: only the graph itself can raise later.
            raise ZeroDivisionError("in the middle")

        return score


SIDES = {"torch": Torch(), "tensorflow": Keras()}


@pytest.fixture(params=list(SIDES))
def side(request):
    return SIDES[request.param]


def images(n, seed=0):
    """Images (n, H, W, 3), float64: smooth, so that they differ in more than noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(n, 4, 4, 3)).repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
    return coarse + 0.3 * generator.normal(size=coarse.shape)


def fitted(side, dtype="float64", model=None, **settings):
    """An explainer whose statistics are those of 40 images."""
    explainer = Explainer(model or side.model(dtype), LAYER, **{"beta": 1.0, **settings})
    batches = [side.of(images(40, seed=1)[i : i + 15]).astype(dtype) for i in range(0, 40, 15)]
    return explainer.fit(batches, progbar=False)


def both(dtype, x, target, **options):
    """Attributions of the same images by both frameworks."""
    return [
        fitted(side, dtype).explain(side.of(x).astype(dtype), target, **options) for side in SIDES.values()
    ]


def same(state, other):
    assert state["flags"] == other["flags"]
    for array, another in zip(state["arrays"], other["arrays"], strict=True):
        np.testing.assert_array_equal(array, another)


# -- the two frameworks agree ---------------------------------------------------------------------


def test_the_two_networks_are_one():
    outputs = [fitted(side).predict(side.of(images(3))) for side in SIDES.values()]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-12)
    assert len(set(outputs[0].argmax(axis=1))) > 1


@pytest.mark.parametrize("target", [None, 2, [0, 1, 4]], ids=["predicted", "one", "each"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.1, "steps": 25, "smooth_std": 0},
        {"preset": "fast"},
        {"steps": 60, "tolerance": 0.03, "samples": 3, "antithetic": True},
    ],
    ids=["default", "own", "fast", "until converged"],
)
def test_one_seed_one_capacity_in_double_precision(target, settings):
    ours, theirs = both("float64", images(3), target, seed=5, **settings)
    a, b = ours.capacity_channels_first(), theirs.capacity_channels_first()
    assert a.dtype == b.dtype == np.float64
    assert a.shape == (3, 8, SIDE, SIDE)
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * a.max())
    np.testing.assert_allclose(ours.saliency, theirs.saliency, rtol=1e-6)
    np.testing.assert_allclose(ours.model_losses, theirs.model_losses, rtol=1e-6)
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_array_equal(ours.steps_taken, theirs.steps_taken)
    if "tolerance" in settings:
        assert (ours.steps_taken < 60).all()


def test_one_seed_one_map_in_single_precision():
    ours, theirs = both("float32", images(3), None, seed=5)
    assert ours.capacity.dtype == theirs.capacity.dtype == np.float32
    for a, b in zip(ours.capacity_channels_first(), theirs.capacity_channels_first(), strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] >= 0.9999
    np.testing.assert_allclose(ours.total_bits, theirs.total_bits, rtol=1e-3)


def test_a_callable_target_means_the_same_in_both():
    def score(outputs):
        return outputs[:, 1] - outputs[:, 3]

    ours, theirs = both("float64", images(2), score, seed=1)
    assert ours.classes is None
    assert theirs.classes is None
    a, b = ours.capacity_channels_first(), theirs.capacity_channels_first()
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * a.max())
    # With the bottleneck wide open, the loss is minus the score of the image itself.
    for wide_open in both("float64", images(2), score, seed=1, initial_alpha=40.0, steps=1):
        np.testing.assert_allclose(wide_open.model_losses[0], -score(wide_open.outputs), rtol=1e-9)


def test_statistics_move_between_the_frameworks(tmp_path):
    x = images(1)
    for here, there in (("torch", "tensorflow"), ("tensorflow", "torch")):
        path = tmp_path / f"{here}.safetensors"
        fitted(SIDES[here]).save(path)
        side = SIDES[there]
        loaded = Explainer(side.model(), beta=1.0).load(path)
        assert loaded.layer == LAYER
        assert loaded.estimator.n_samples() == 40
        expected = fitted(side).explain(side.of(x), seed=0).capacity
        np.testing.assert_allclose(loaded.explain(side.of(x), seed=0).capacity, expected, rtol=1e-9)
        with pytest.raises(InputError, match="channels must come"):
            loaded.explain(SIDES[here].of(x))


# -- the same in each framework -------------------------------------------------------------------


def test_an_explanation_is_what_its_names_say(side):
    explainer = fitted(side)
    x = side.of(images(2))
    result = explainer.explain(x, seed=0)
    assert len(result) == 2
    assert result.layer == LAYER
    assert result.saliency.shape == (2, SIZE, SIZE)
    assert result.mask.shape == result.capacity.shape
    assert (result.capacity >= -1e-12).all()
    assert ((result.mask > 0) & (result.mask < 1)).all()
    np.testing.assert_allclose(result.total_bits, result.capacity.sum(axis=(1, 2, 3)) / np.log(2))
    np.testing.assert_allclose(result.saliency.sum(axis=(1, 2)), result.total_bits)
    np.testing.assert_allclose(result.outputs, explainer.predict(x))
    assert result.model_losses.shape == result.informations.shape == (10, 2)
    assert (result.informations[-1] < result.informations[0]).all()


def test_presets_are_sets_of_settings(side):
    x, fast = side.of(images(2)), PRESETS["fast"]
    expected = fitted(side, **fast).explain(x, seed=0)
    for found in (
        fitted(side, preset="fast").explain(x, seed=0),
        fitted(side).explain(x, seed=0, preset="fast"),
        next(fitted(side).explain_iter([x], seed=0, preset="fast", progbar=False)),
    ):
        assert found.settings == expected.settings
        np.testing.assert_array_equal(found.capacity, expected.capacity)
    assert fitted(side, beta=3.0).explain(x, preset="fast").settings.beta == 3
    assert fitted(side).explain(x, preset="fast", samples=1).settings.samples == 1
    assert fitted(side, preset="fast", samples=1).settings.samples == 1
    slow = fitted(side, preset="fast").explain(x, seed=0, preset="default")
    np.testing.assert_array_equal(slow.capacity, fitted(side).explain(x, seed=0).capacity)


def test_converged_images_do_not_feel_those_that_go_on(side):
    explainer, settings = fitted(side), {"seed": 0, "steps": 60, "tolerance": 0.03, "samples": 3}
    together = explainer.explain(side.of(images(3)), **settings)
    assert len(set(together.steps_taken)) > 1
    assert together.model_losses.shape == together.informations.shape == (60, 3)
    for i, steps in enumerate(together.steps_taken):
        alone = explainer.explain(side.of(images(3)[i : i + 1]), **settings)
        assert alone.steps_taken == [steps]
        np.testing.assert_allclose(together.capacity[i], alone.capacity[0], rtol=1e-7)
        np.testing.assert_array_equal(together.informations[steps:, i], together.informations[steps - 1, i])
        plain = explainer.explain(side.of(images(3)[i : i + 1]), seed=0, steps=int(steps), samples=3)
        np.testing.assert_allclose(together.capacity[i], plain.capacity[0], rtol=1e-7)


def test_more_beta_means_fewer_bits(side):
    explainer, x = fitted(side), side.of(images(2))
    bits = [explainer.explain(x, seed=0, steps=30, beta=beta).total_bits for beta in (0.1, 1, 10)]
    assert (bits[0] > bits[1]).all()
    assert (bits[1] > bits[2]).all()


def test_noise_follows_the_seed_alone(side):
    explainer, x = fitted(side), side.of(images(1))
    first, again, other, free = (explainer.explain(x, seed=seed).capacity for seed in (1, 1, 2, None))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, free)


def test_one_input_needs_no_batch_axis(side):
    explainer, x = fitted(side), side.of(images(1))
    np.testing.assert_array_equal(
        explainer.explain(x[0], seed=0).capacity, explainer.explain(x, seed=0).capacity
    )


@pytest.mark.parametrize("max_batch", [None, 4, 10, 25])
def test_a_batch_is_as_good_as_its_images(side, max_batch):
    explainer, x = fitted(side), side.of(images(3))
    targets = [4, 0, 2]
    together = explainer.explain(x, targets, seed=3, max_batch=max_batch)
    singles = [explainer.explain(x[i], targets[i], seed=3) for i in range(3)]
    for field in ("capacity", "saliency", "mask", "outputs"):
        expected = np.concatenate([getattr(single, field) for single in singles])
        np.testing.assert_allclose(getattr(together, field), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        together.model_losses, np.concatenate([single.model_losses for single in singles], axis=1), rtol=1e-8
    )
    assert together.classes.tolist() == targets


def test_no_more_than_max_batch_pass_at_once(side):
    explainer, x = fitted(side), side.of(images(3))
    sizes = []
    inner = explainer._cut.tail

    def tail(z, carry):
        sizes.append(int(z.shape[0]))
        return inner(z, carry)

    explainer._cut.tail = tail
    explainer.explain(x, max_batch=7)
    assert max(sizes) <= 7


@pytest.mark.parametrize("target", [None, 3, [3, 1], np.array([3, 1]), (3, 1)], ids=str)
def test_targets_of_classes(side, target):
    explainer, x = fitted(side), side.of(images(2))
    result = explainer.explain(x, target, seed=0)
    predicted = explainer.predict(x).argmax(axis=1)
    expected = predicted if target is None else np.broadcast_to(target, 2)
    np.testing.assert_array_equal(result.classes, expected)
    named = explainer.explain(x, expected.tolist(), seed=0)
    np.testing.assert_array_equal(result.capacity, named.capacity)


def test_targets_may_be_tensors():
    index = np.array([3, 1])
    for name, target in (("torch", torch.from_numpy(index)), ("tensorflow", tf.constant(index))):
        result = fitted(SIDES[name]).explain(SIDES[name].of(images(2)), target, seed=0)
        assert result.classes.tolist() == [3, 1]


def test_inputs_may_be_tensors():
    for name, convert in (("torch", torch.from_numpy), ("tensorflow", tf.constant)):
        explainer, x = fitted(SIDES[name]), SIDES[name].of(images(2))
        np.testing.assert_array_equal(
            explainer.explain(convert(x), seed=0).capacity, explainer.explain(x, seed=0).capacity
        )


def test_data_sets_yield_inputs_and_more(side):
    x = side.of(images(20, seed=1))
    plain = Explainer(side.model(), LAYER).fit([x[:12], x[12:]], progbar=False)
    pairs = ((x[i : i + 1], "label") for i in range(20))
    paired = Explainer(side.model(), LAYER).fit(pairs, progbar=False)
    np.testing.assert_allclose(plain.estimator.std(), paired.estimator.std(), rtol=1e-12)
    few = Explainer(side.model(), LAYER).fit([x[:12], x[12:]], n_samples=15, progbar=False)
    assert few.estimator.n_samples() == 15
    reference = Explainer(side.model(), LAYER).fit([x[:15]], progbar=False)
    np.testing.assert_allclose(few.estimator.mean(), reference.estimator.mean(), rtol=1e-12)


def test_statistics_may_be_given(side):
    known = fitted(side)
    estimator = WelfordEstimator()
    estimator.load_state_dict(known.estimator.state_dict())
    given = Explainer(side.model(), LAYER, estimator=estimator, beta=1.0)
    x = side.of(images(1))
    np.testing.assert_array_equal(given.explain(x, seed=0).capacity, known.explain(x, seed=0).capacity)


def test_saved_statistics_are_those_that_were_fitted(side, tmp_path):
    known = fitted(side)
    known.save(tmp_path / "stats")
    loaded = Explainer(side.model(), LAYER, beta=1.0).load(tmp_path / "stats")
    x = side.of(images(1))
    np.testing.assert_array_equal(loaded.explain(x, seed=0).capacity, known.explain(x, seed=0).capacity)
    with pytest.raises(StateError, match=r"describes the layer 'second', the explainer cuts at 'third'"):
        Explainer(side.model(), "third").load(tmp_path / "stats")


def test_attributions_survive_a_file(side, tmp_path):
    explainer = fitted(side)
    for target, seed in ((None, 4), (lambda outputs: outputs[:, 0], None)):
        result = explainer.explain(side.of(images(2)), target, seed=seed, beta=3.0)
        result.save(tmp_path / "a.safetensors")
        loaded = Attribution.load(tmp_path / "a.safetensors")
        for field in fields(Attribution):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(result, field.name))
        np.testing.assert_array_equal(loaded.total_bits, result.total_bits)


def test_restricted_predictions(side):
    explainer, x = fitted(side), side.of(images(2))
    result = explainer.explain(x, seed=0, steps=30)
    outputs = explainer.predict_restricted(x, result, samples=40, seed=1)
    assert outputs.shape == (2, 40, CLASSES)
    np.testing.assert_array_equal(outputs, explainer.predict_restricted(x, result, samples=40, seed=1))
    assert not np.allclose(outputs, explainer.predict_restricted(x, result, samples=40, seed=2))
    assert outputs.std(axis=1).min() > 0

    open_mask = replace(result, mask=np.ones_like(result.mask))
    everything = explainer.predict_restricted(x, open_mask, samples=3, seed=1)
    np.testing.assert_allclose(everything, np.repeat(result.outputs[:, None], 3, axis=1), rtol=1e-9)

    # With all replaced by noise, two images are the same.
    shut_mask = replace(result, mask=np.zeros_like(result.mask))
    nothing = explainer.predict_restricted(x, shut_mask, samples=3, seed=1)
    np.testing.assert_allclose(nothing[0], nothing[1], rtol=1e-9)

    probability = class_probabilities(outputs[0])[:, result.classes[0]].mean()
    chance = class_probabilities(explainer.predict_restricted(x, shut_mask, samples=40, seed=1)[0])[
        :, result.classes[0]
    ].mean()
    assert probability > chance


def test_a_layer_is_chosen_where_none_is_named(side):
    explainer = Explainer(side.model())
    assert explainer.layer is None
    explainer.fit([side.of(images(10))], progbar=False)
    assert explainer.layer in {"first", "norm", "act", "act2", "second", "third", "drop", "act3"}
    assert explainer.explain(side.of(images(1))).layer == explainer.layer


# -- what explaining leaves behind: nothing -------------------------------------------------------


def in_training(model):
    """The model as it is in the middle of training: some weights frozen, torch's modules in training mode."""
    if isinstance(model, nn.Module):
        model.train()
        model.second.eval()
        model.first.weight.requires_grad_(False)
    else:
        model.get_layer("first").trainable = False
    return model


def test_the_model_is_left_as_it_was(side):
    model = in_training(side.model())
    before = side.state(model)
    explainer = fitted(side, model=model)
    same(side.state(model), before)
    result = explainer.explain(side.of(images(3)), max_batch=10)
    same(side.state(model), before)
    explainer.predict_restricted(side.of(images(3)), result)
    explainer.predict(side.of(images(3)))
    explainer.adapter.layers(explainer.adapter.to_inputs(side.of(images(1))))
    same(side.state(model), before)


@pytest.mark.parametrize("passes", [0, 1, 5])
def test_the_model_is_left_as_it_was_after_an_exception(side, passes):
    model = in_training(side.model())
    explainer = fitted(side, model=model)
    x = side.of(images(2))
    expected = explainer.explain(x, 1, seed=0).capacity
    before = side.state(model)
    with pytest.raises(ZeroDivisionError):
        explainer.explain(x, side.raise_after(passes))
    same(side.state(model), before)
    np.testing.assert_array_equal(explainer.explain(x, 1, seed=0).capacity, expected)


def test_a_data_set_that_breaks_off_leaves_the_model_and_the_statistics(side):
    model = in_training(side.model())
    explainer = fitted(side, model=model)
    known = explainer.estimator.mean()
    before = side.state(model)

    def batches():
        yield side.of(images(5))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        explainer.fit(batches(), progbar=False)
    same(side.state(model), before)
    np.testing.assert_array_equal(explainer.estimator.mean(), known)


# -- wrong uses -----------------------------------------------------------------------------------


def test_an_unknown_layer_offers_the_closest_names(side):
    with pytest.raises(LayerError, match=r"'secnd'; the closest names? (is|are) 'second'"):
        Explainer(side.model(), "secnd")


def test_analysis_needs_an_estimate(side):
    explainer, x = Explainer(side.model(), LAYER), side.of(images(1))
    for use in (lambda: explainer.explain(x), lambda: explainer.save("nowhere")):
        with pytest.raises(NotEstimatedError, match=r"not estimated; call fit\(batches\)"):
            use()


def test_one_sample_is_no_distribution(side):
    explainer, x = Explainer(side.model(), LAYER), side.of(images(1))
    with pytest.raises(InputError, match="held 1 samples; at least 2 are needed"):
        explainer.fit([x], progbar=False)
    with pytest.raises(InputError, match="held 0 samples"):
        explainer.fit([], progbar=False)
    with pytest.raises(InputError, match="n_samples=1 is too few"):
        explainer.fit([side.of(images(5))], n_samples=1, progbar=False)
    with pytest.raises(NotEstimatedError):
        explainer.explain(x)


def test_wrong_inputs_are_told_before_any_work(side, monkeypatch):
    explainer, x = fitted(side), images(2)
    monkeypatch.setattr(explainer._cut, "open", None)
    monkeypatch.setattr(explainer._cut, "tail", None)
    wrong_order = x if isinstance(side, Torch) else np.moveaxis(x, -1, 1)
    broken = side.of(x.copy())
    broken[1, 2, 2, 1] = np.nan
    for bad, message in (
        (side.of(x)[0, 0], r"x has shape \(batch, \d+\), .*another number of axes"),
        (side.of(x)[None], r"x has shape \(batch, 2, .*another number of axes"),
        (wrong_order, r"the model takes 3 channels, as in \(batch, .*; the channels must come (first|last)"),
        (side.of(x[..., :2]), r"but the model takes 3 channels"),
        (broken, r"x holds nan at index \(1, 2, 2, 1\); every value must be finite"),
        (np.full_like(broken, np.inf), r"x holds inf at index \(0, 0, 0, 0\)"),
        (side.of(x)[:0], r"x is an empty batch"),
    ):
        with pytest.raises(InputError, match=message):
            explainer.explain(bad)


def test_wrong_targets_are_told_before_the_first_step(side, monkeypatch):
    explainer, x = fitted(side), side.of(images(2))
    monkeypatch.setattr(explainer, "_optimizer", None)
    for target, message in (
        (CLASSES, "target=5 is outside the model's 5 classes, 0 to 4"),
        (-1, "target=-1 is outside"),
        ([0, 7], "target=7 is outside"),
        ([0, 1, 2], r"target has shape \(3,\) for 2 images; give one class, or one for each image"),
        (1.5, r"target=.*1.5.* must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            explainer.explain(x, target)


def test_wrong_settings(side):
    explainer, x = fitted(side), side.of(images(1))
    for settings, message in (
        ({"beta": -1}, "beta=-1 must be a finite number, 0 or more"),
        ({"samples": 0}, "samples=0 must be a whole number, 1 or more"),
        ({"bta": 1}, "'bta' is no setting"),
        ({"max_batch": 0}, "max_batch=0 must be 1 or more"),
        ({"preset": "fastest"}, "preset='fastest' is none of the presets 'default', 'fast'"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"seed": "one"}, "seed='one' must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            explainer.explain(x, **settings)
    with pytest.raises(InputError, match="the estimator is of type dict; a WelfordEstimator was expected"):
        Explainer(side.model(), LAYER, estimator={})
    with pytest.raises(InputError, match="x holds 2 inputs, but the attribution 1"):
        explainer.predict_restricted(side.of(images(2)), explainer.explain(x))


def test_a_tail_in_lower_precision():
    """Autocast in PyTorch; a Keras model computes in the precision that it was made in."""
    full, half = (
        fitted(SIDES["torch"], "float32").explain(
            SIDES["torch"].of(images(2)).astype("float32"), seed=0, precision=precision
        )
        for precision in (None, "bfloat16")
    )
    assert half.capacity.dtype == np.float32
    assert not np.array_equal(full.capacity, half.capacity)
    for a, b in zip(full.capacity, half.capacity, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    side = SIDES["tensorflow"]
    with pytest.raises(InputError, match="precision='bfloat16' is not offered by the backend 'tensorflow'"):
        fitted(side, "float32").explain(images(1).astype("float32"), precision="bfloat16")


def test_a_loss_that_overflows_stops_with_the_step(side):
    explainer, x = fitted(side), side.of(images(1))
    with pytest.raises(OptimizationError, match=r"model's loss became .* at step 1 of 10"):
        explainer.explain(x, lambda outputs: outputs[:, 0] / 0.0)


# -- timing ---------------------------------------------------------------------------------------


def test_the_bare_tail_passes_as_often_as_it_is_told(side, monkeypatch):
    explainer, x = fitted(side), side.of(images(2))
    cut, shapes = explainer.adapter.cut(LAYER), []
    compiled = explainer.adapter.compile

    def counting(function, jit_compile=None):
        function = compiled(function, jit_compile)

        def run(z, carry):
            shapes.append(tuple(z.shape))
            value, gradient = function(z, carry)
            assert tuple(gradient.shape) == tuple(z.shape)
            assert np.abs(explainer.adapter.to_numpy(gradient)).max() > 0
            return value, gradient

        return run

    monkeypatch.setattr(explainer.adapter, "compile", counting)
    before = side.state(explainer.adapter.model)
    assert BareTail(explainer.adapter, cut).seconds(x, steps=4, samples=3) > 0
    assert [shape[0] for shape in shapes] == [6] * 4
    same(side.state(explainer.adapter.model), before)
