"""`IBAReadout` against the published method, written out plainly in float64."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from iba_core import (
    InputError,
    LayerError,
    NotEstimatedError,
    StateError,
    WelfordEstimator,
)
from iba_core.readout.formulas import readout_sizes
from iba_core.readout.state import ReadoutState
from iba_torch import IBA, IBAReadout, TorchWelfordEstimator

READOUT_LAYERS = ("first", "second", "last", "hidden", "out")


class Net(nn.Module):
    """Three resolutions, in-place activations and two dense layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.hidden = nn.Linear(5, 7)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(7, 3)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(self.norm(self.second(x)))
        x = self.last(x)
        x = self.drop(functional.relu_(self.hidden(functional.relu_(x).mean((2, 3)))))
        return self.out(x)


def make_model(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype)


def make_data(n=24, dtype=torch.float64, size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, size, size, dtype=dtype, generator=generator)
    x[:, :, : size // 2] *= 3
    return x, torch.randint(3, (n,), generator=generator)


def batches(x, y, size=8):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def make_readout(model=None, layer="second", readout_layers=READOUT_LAYERS, estimate=True, seed=3, **kwargs):
    model = make_model() if model is None else model
    readout = IBAReadout(layer, readout_layers, model, **kwargs)
    if estimate:
        dtype = next(model.parameters()).dtype
        readout.estimate(model, batches(*make_data(dtype=dtype)))
        shake(readout, seed)
    return model, readout


def shake(readout, seed=3):
    """Weights under which every part of the network shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in readout.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * 0.3)


def record(model, layers, x):
    """Features of the layers in evaluation mode, as they leave the layers."""
    model, seen = copy.deepcopy(model).eval(), {}
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for name in layers:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.detach().clone()})
        )
    with torch.no_grad():
        model(x.clone())
    return [seen[name] for name in layers]


def blur(x, sigma=1.0):
    """Gaussian over the last two axes, cut off at two standard deviations, mirrored at the borders."""
    radius = max(1, round(2 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    for axis in (2, 3):
        size = x.shape[axis]
        padded = x.index_select(axis, torch.from_numpy(np.pad(np.arange(size), radius, mode="reflect")))
        windows = [padded.narrow(axis, start, size) for start in range(2 * radius + 1)]
        x = sum(float(w) * window for w, window in zip(kernel / kernel.sum(), windows, strict=True))
    return x


def plain_capacity(model, readout, layer, readout_layers, x, data, min_std=0.01):
    """The paper's section 3.3 with `interpolate` and 1x1 convolutions in two dimensions."""
    own = record(model, [layer], x)[0]
    read = []
    for feature, seen in zip(
        record(model, readout_layers, x), record(model, readout_layers, data), strict=True
    ):
        r = (feature - seen.mean(0)) / seen.std(0).clamp(min=min_std)
        r = r[:, :, None, None].expand(-1, -1, *own.shape[2:]) if r.ndim == 2 else r
        read.append(functional.interpolate(r, own.shape[2:], mode="bilinear", align_corners=False))
    y = torch.cat(read, 1)
    weights = [p.detach() for p in readout.parameters()]
    for i in (0, 2, 4):
        y = functional.conv2d(y if i == 0 else functional.relu(y), weights[i][..., None], weights[i + 1])
    passed = blur(torch.sigmoid(y))
    seen = record(model, [layer], data)[0]
    r = (own - seen.mean(0)) / seen.std(0).clamp(min=min_std)
    blocked = 1 - passed
    nats = -0.5 * (1 + torch.log(blocked**2) - (r * passed) ** 2 - blocked**2)
    return (nats * ((seen != 0).double().mean(0) > 0.01)).numpy()


# -- explaining -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["first", "second", "last"])
def test_the_capacity_is_that_of_the_paper(layer):
    model, readout = make_readout(layer=layer)
    x, _ = make_data(2, seed=9)
    expected = plain_capacity(model, readout, layer, READOUT_LAYERS, x, make_data()[0])
    capacity = readout.analyze(x, model, mode="capacity")
    np.testing.assert_allclose(capacity, expected, rtol=1e-6, atol=1e-9)
    assert np.ptp(capacity) > 0.1
    np.testing.assert_allclose(
        readout.analyze(x[:1], model, mode="capacity"), expected[0], rtol=1e-6, atol=1e-9
    )


def test_explaining_costs_one_nested_and_one_restricted_pass(count_calls):
    model, readout = make_readout()
    calls = count_calls(model)
    # The first one of a model also looks at what the axes of the features come of.
    readout.analyze(make_data(3)[0], model)
    calls.update(dict.fromkeys(calls, 0))
    readout.analyze(make_data(3)[0], model)
    assert calls[""] == 2
    assert {name: n for name, n in calls.items() if name != "relu"} == {
        name: 2 for name in calls if name != "relu"
    }


def test_the_pass_gets_the_restricted_features():
    model, readout = make_readout()
    model.eval()
    x, _ = make_data(2)
    plain = model(x)
    with torch.no_grad(), readout.restrict_flow():
        restricted = model(x)
    assert not torch.allclose(plain, restricted)
    assert torch.equal(model(x), plain)


def test_at_the_start_the_mask_is_that_of_the_initial_alpha():
    model, readout = make_readout(estimate=False, initial_alpha=2.0)
    data = batches(*make_data())
    readout.estimate(model, data)
    iba = IBA(model.second, initial_alpha=2.0)
    iba.estimate(model, data)
    x, _ = make_data(1, seed=9)
    with torch.no_grad():
        with iba.restrict_flow():
            model.eval()(x)
        iba.detach()
    np.testing.assert_allclose(readout.analyze(x, model, mode="capacity"), iba.capacity(), rtol=1e-9)


def test_a_layer_that_runs_twice_is_named_by_its_call():
    with pytest.raises(LayerError, match="'relu' runs 2 times"):
        make_readout(readout_layers=["relu"])
    model, readout = make_readout(readout_layers=["relu:1"])
    data = make_data()[0]
    seen = functional.relu(record(model, ["norm"], data)[0])
    np.testing.assert_allclose(readout.estimators[0].mean(), seen.mean(0), atol=1e-12)
    assert readout.analyze(data[:1], model).shape == (8, 8)
    with pytest.raises(LayerError, match="runs once"):
        IBAReadout("relu:0", ["first"], model)


def test_sequences_of_tokens_have_their_channels_last():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), nn.Flatten(), nn.Linear(30, 2)
    ).double()
    readout = IBAReadout("0", ["1", "2", "4"], model)
    x = torch.randn(12, 6, 3, dtype=torch.float64)
    readout.estimate(model, [x])
    assert readout.network[0].in_channels == 8 + 5 + 2
    assert readout.network[-1].out_channels == 8
    shake(readout)
    capacity = readout.analyze(x[:2], model, mode="capacity")
    assert capacity.shape == (2, 6, 8)
    # At the last token the network sees that token's features; the mask is not smoothed without sigma.
    readout.sigma = None
    nats = readout.analyze(x[:1], model, mode="capacity")[-1]
    r = [(seen[0] - seen.mean(0)) / seen.std(0).clamp(min=0.01) for seen in record(model, ["1", "2", "4"], x)]
    with torch.no_grad():
        alpha = readout.network(torch.cat([r[0][-1], r[1][-1], r[2]])[None, :, None])[0, :, 0]
    passed = torch.sigmoid(alpha)
    seen = record(model, ["0"], x)[0][:, -1]
    own = (seen[0] - seen.mean(0)) / seen.std(0).clamp(min=0.01)
    expected = 0.5 * ((own * passed) ** 2 + (1 - passed) ** 2 - 1) - torch.log(1 - passed)
    np.testing.assert_allclose(nats, expected, rtol=1e-6, atol=1e-9)


def test_the_model_may_be_part_of_a_larger_one(snapshot):
    model, readout = make_readout()
    whole = nn.Sequential(nn.Dropout(0.5), model, nn.BatchNorm1d(3)).double()
    x, _ = make_data()
    expected = readout.analyze(x, model)
    before = snapshot(whole, x)
    readout.estimate(whole, [x])
    np.testing.assert_allclose(readout.analyze(x, whole), expected)
    assert snapshot(whole, x) == before


# -- estimating -------------------------------------------------------------------------------------------


def test_one_pass_estimates_all_layers(count_calls):
    model, readout = make_readout(estimate=False)
    calls = count_calls(model)
    x, y = make_data()
    readout.estimate(model, batches(x, y), n_samples=20)
    # Three batches; the rest, on one image, finds out where the channels are. The layer of the bottleneck, as
    # a readout layer, is known by then.
    one_image = 2 * (1 + len(READOUT_LAYERS)) - 1
    assert calls[""] == 3 + one_image
    for estimator, features in zip(
        readout.estimators, record(make_model(), READOUT_LAYERS, x[:20]), strict=True
    ):
        assert estimator.n_samples() == 20
        np.testing.assert_allclose(estimator.mean(), features.mean(0), atol=1e-12)
        np.testing.assert_allclose(estimator.std(), features.std(0), atol=1e-12)
    assert readout.estimator.n_samples() == 20
    channels = (4 + 6 + 5 + 7 + 3, 6)
    assert [tuple(p.shape[:2])[::-1] for p in readout.parameters() if p.ndim > 1] == list(
        readout_sizes(*channels)
    )


def test_estimation_by_hand_is_the_same():
    model, readout = make_readout(estimate=False)
    x, _ = make_data()
    model.eval()
    with readout.enable_estimation(), torch.no_grad():
        model(x)
    shake(readout)
    _, other = make_readout()
    np.testing.assert_allclose(readout.analyze(x[:1], model), other.analyze(x[:1], other.model), rtol=1e-6)


class Halved(TorchWelfordEstimator):
    def std(self):
        return super().std() / 2


def test_resetting_keeps_the_estimators_types_and_the_network():
    model, readout = make_readout(estimator_type=Halved)
    weights = [p.clone() for p in readout.parameters()]
    x = make_data(1)[0]
    before = readout.analyze(x, model)
    readout.reset_estimate()
    assert {type(e) for e in (readout.estimator, *readout.estimators)} == {Halved}
    assert all(e.n_samples() == 0 for e in (readout.estimator, *readout.estimators))
    with pytest.raises(NotEstimatedError, match="estimate"):
        readout.analyze(x, model)
    readout.estimate(model, batches(*make_data()))
    assert all(torch.equal(a, b) for a, b in zip(weights, readout.parameters(), strict=True))
    np.testing.assert_allclose(readout.analyze(x, model), before)
    _, plain = make_readout(model)
    assert not np.allclose(plain.analyze(x, model), before)


# -- training ---------------------------------------------------------------------------------------------


def test_a_loop_of_ones_own_trains_the_network_alone():
    model, readout = make_readout(estimate=False)
    x, y = make_data()
    readout.estimate(model, batches(x, y))
    model.eval().requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(readout.parameters(), lr=0.01)
    torch.manual_seed(0)
    capacities = []
    for _ in range(20):
        with readout.restrict_flow():
            loss = functional.cross_entropy(model(x), y) + 10 * readout.capacity().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        capacities.append(float(readout.capacity().detach().mean()))
    assert capacities[-1] < 0.8 * capacities[0]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_capacitys_gradient_is_that_of_finite_differences():
    model, readout = make_readout()
    model.eval().requires_grad_(False)
    x, _ = make_data(2)
    weight = next(readout.parameters())

    def information():
        with readout.restrict_flow():
            model(x)
        return readout.capacity().mean()

    (gradient,) = torch.autograd.grad(information(), weight)
    for index in ((0, 0, 0), (3, 7, 0), (5, 20, 0)):
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                weight[index] += shift
                values.append(float(information()))
                weight[index] -= shift
        assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("beta_steps", "rise"), [(None, 2), (3, 3)])
def test_the_steps_are_those_of_pytorchs_adam(beta_steps, rise):
    """With a rate of its own for the last bias, alone at first, clipped gradients, and a rising beta."""
    model, readout = make_readout()
    model.eval()
    x, y = make_data(8)
    twin_model, twin = make_readout()
    twin_model.eval().requires_grad_(False)
    settings = {"epochs": 4, "lr": 5e-4, "beta": 20, "warm_up": 2, "beta_steps": beta_steps}
    readout.fit([(x, y)], lambda out, y: out.sum() * 0, **settings)
    *others, level = twin.parameters()
    optimizer = torch.optim.Adam([{"params": others, "lr": 5e-4}, {"params": [level], "lr": 0.1}])
    norms = []
    for number in range(4):
        beta = 20 * 0.03 ** max(1 - number / rise, 0)
        for group, rates in zip(optimizer.param_groups, ((0.0, 5e-4), (0.1, 5e-3)), strict=True):
            group["lr"] = rates[number >= 2]
        with twin.restrict_flow():
            twin_model(x)
        optimizer.zero_grad()
        (beta * twin.capacity().mean()).backward()
        norms.append(float(nn.utils.clip_grad_norm_(twin.parameters(), 1.0)))
        optimizer.step()
    assert norms[0] < 1 < norms[-1]
    for ours, theirs in zip(readout.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path):
    data = torch.utils.data.DataLoader(list(zip(*make_data(), strict=True)), batch_size=8, shuffle=True)
    validation = batches(*make_data(8, seed=5))
    settings = {"lr": 0.01, "beta": 5, "validation": validation, "seed": 0}
    model, whole = make_readout()
    expected = whole.fit(data, functional.cross_entropy, epochs=4, **settings)
    _, half = make_readout(model)
    path = tmp_path / "training.safetensors"
    half.fit(data, functional.cross_entropy, epochs=2, checkpoint=path, **settings)
    fresh = IBAReadout("second", READOUT_LAYERS, model)
    history = fresh.fit(data, functional.cross_entropy, epochs=4, checkpoint=path, **settings)
    assert history == expected
    for ours, theirs in zip(fresh.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    x = make_data(1)[0]
    np.testing.assert_array_equal(fresh.analyze(x, model), whole.analyze(x, model))


def test_the_price_of_information_is_the_constructors_unless_given():
    model, data = make_model(), batches(*make_data(8))
    found = []
    for options, given in (({}, {}), ({}, {"beta": 1.0}), ({"beta": 4}, {}), ({}, {"beta": 4.0})):
        _, readout = make_readout(model, **options)
        found += readout.fit(data, functional.cross_entropy, epochs=1, seed=0, **given)
        readout.detach()
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[0].objective != found[2].objective


def test_under_autocast_the_bottleneck_stays_in_full_precision():
    """The features come rounded, but the mask and its capacity are as exact as ever."""
    x, y = make_data(8, torch.float32)
    histories, settings = [], {"epochs": 3, "beta": 0, "lr": 0.01, "seed": 0}
    for low in (False, True):
        model, readout = make_readout(make_model(torch.float32))
        dtypes = []
        model.last.register_forward_hook(lambda module, args, output, seen=dtypes: seen.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            histories.append(readout.fit([(x, y)], functional.cross_entropy, **settings))
        assert set(dtypes) == {torch.bfloat16 if low else torch.float32}
        assert {parameter.dtype for parameter in readout.parameters()} == {torch.float32}
    for high, low in zip(*histories, strict=True):
        assert low.information == pytest.approx(high.information, rel=5e-3)


@pytest.mark.parametrize("by", ["fit", "hand"])
def test_a_step_makes_the_host_wait_for_nothing(monkeypatch, by):
    """A value that Python asks of a tensor is one that a device would have to send first."""
    model, readout = make_readout()
    x, y = make_data(8)
    act("fit", model, readout, x, y)
    with torch.no_grad(), readout.restrict_flow():
        model.eval()(x)
    asked = []

    def watch(name):
        plain = getattr(torch.Tensor, name)

        def watched(self, *args, **kwargs):
            asked.append(name)
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in ("item", "cpu", "numpy", "tolist", "__bool__", "__int__", "__float__", "__array__"):
        watch(name)
    if by == "hand":
        with readout.restrict_flow():
            loss = functional.cross_entropy(model(x), y) + readout.capacity().mean()
        torch.autograd.grad(loss, list(readout.parameters()))
        assert not asked
        return
    counts = []
    for batches_ in (2, 5):
        asked.clear()
        readout.fit([(x, y)] * batches_, functional.cross_entropy, epochs=1)
        counts.append(len(asked))
    assert counts[0] == counts[1]


# -- what is left of it ----------------------------------------------------------------------------------


def act(what, model, readout, x, y):
    if what == "analyze":
        readout.analyze(x, model)
    elif what == "estimate":
        readout.estimate(model, [x])
    else:
        readout.fit([(x, y)], functional.cross_entropy, epochs=2, validation=[(x, y)])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", ["analyze", "estimate", "fit"])
def test_the_model_is_left_as_it_was(snapshot, what, training):
    model, readout = make_readout()
    x, y = make_data(8)
    model.train(training)
    model.first.weight.requires_grad_(False)
    model.norm.eval()
    before, image = snapshot(model, x), x.clone()
    act(what, model, readout, x, y)
    assert snapshot(model, x) == before
    assert torch.equal(x, image)
    assert all(p.grad is None and p.requires_grad for p in readout.parameters())


@pytest.mark.parametrize("what", ["analyze", "estimate", "fit"])
def test_the_model_is_left_as_it_was_when_a_pass_fails(snapshot, what):
    model, readout = make_readout()
    x, y = make_data(8)
    model.train()
    before = snapshot(model, x)
    calls = []

    def fail(module, args):
        calls.append(None)
        if len(calls) == 2:
            raise ArithmeticError("on purpose")

    handle = model.out.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="on purpose"):
        act(what, model, readout, x, y)
    handle.remove()
    assert snapshot(model, x) == before
    readout.estimate(model, [x])
    assert readout.analyze(x, model).shape == (8, 8, 8)


def test_detaching_removes_every_hook():
    model = make_model()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    _, readout = make_readout(model)
    readout.detach()
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    for call in (readout.detach, lambda: readout.analyze(make_data(1)[0], model)):
        with pytest.raises(InputError, match="detached"):
            call()


def live():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_pass_that_fails_holds_no_inputs():
    model, readout = make_readout()
    x, _ = make_data(4)
    readout.analyze(x, model)
    handle = model.out.register_forward_pre_hook(lambda module, args: 1 / 0)
    before = live()
    with pytest.raises(ZeroDivisionError), readout.restrict_flow():
        model(x)
    handle.remove()
    # No results of a pass are kept, and no inputs.
    assert live() <= before


def test_explaining_and_training_hold_no_memory():
    model, readout = make_readout()
    x, y = make_data(4)

    for _ in range(2):
        act("fit", model, readout, x, y)
        readout.analyze(x, model)
    before = live()
    for _ in range(10):
        readout.analyze(x, model)
    act("fit", model, readout, x, y)
    readout.analyze(x, model)
    assert live() == before


# -- state ------------------------------------------------------------------------------------------------


def test_the_state_says_how_features_are_read():
    model, readout = make_readout(robust=True)
    x, _ = make_data(2, seed=9)
    for own in (False, True):
        fresh = IBAReadout("second", READOUT_LAYERS, model, robust=own)
        fresh.load_state_dict(readout.state_dict())
        assert fresh.robust is True
        np.testing.assert_array_equal(fresh.analyze(x), readout.analyze(x))
    plain = IBAReadout("second", READOUT_LAYERS, model, robust=True)
    plain.load_state_dict(make_readout()[1].state_dict())
    assert plain.robust is False


@pytest.mark.parametrize("given", [False, True])
def test_the_state_makes_the_round_trip_through_a_file(tmp_path, given):
    model = make_model()
    features = record(model, ["second"], make_data()[0])[0]
    kwargs = {"feature_mean": features.mean(0), "feature_std": features.std(0)} if given else {}
    readout = IBAReadout("second", READOUT_LAYERS, model, **kwargs)
    with readout.enable_estimation(), torch.no_grad():
        model.eval()(make_data()[0])
    shake(readout)
    save_file(readout.state_dict(), tmp_path / "readout.safetensors")
    fresh = IBAReadout("second", READOUT_LAYERS, model)
    fresh.load_state_dict(load_file(tmp_path / "readout.safetensors"))
    x = make_data(2)[0]
    np.testing.assert_array_equal(fresh.analyze(x, model), readout.analyze(x, model))
    np.testing.assert_array_equal(fresh.analyze(x, model), readout.analyze(x, model))
    # The sizes of the inputs come along.
    other = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    messages = []
    for each in (readout, fresh):
        with pytest.raises(InputError) as error:
            each.analyze(other, model)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert [e.n_samples() for e in fresh.estimators] == [24] * len(READOUT_LAYERS)
    for name, value in readout.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    other = IBAReadout("second", READOUT_LAYERS[::-1], model)
    with pytest.raises(StateError, match=r"reading \['first'"):
        other.load_state_dict(readout.state_dict())
    assert other.network is None


# -- errors -----------------------------------------------------------------------------------------------


def test_modules_and_shapes_are_checked():
    model, readout = make_readout()
    x, _ = make_data(4)
    with pytest.raises(InputError, match="WelfordEstimator"):
        IBAReadout("second", ["first"], model, WelfordEstimator)
    with pytest.raises(InputError, match="model"):
        readout.estimate(lambda x: x, [x])
    with pytest.raises(InputError, match="model"):
        readout.analyze(x, lambda x: x)
    other = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    with pytest.raises(InputError, match="12, 12"):
        readout.analyze(other, model)
    with pytest.raises(InputError, match=r"\(6, 6, 6\).*\(6, 4, 4\)"), readout.restrict_flow():
        model(other)


class Own(nn.Module):
    """An estimator that only its author knows."""

    def __init__(self):
        super().__init__()
        self.inner = TorchWelfordEstimator()

    def forward(self, x):
        return self.inner(x)

    def __getattr__(self, name):
        if name in ("mean", "std", "n_samples", "active_neurons", "reset"):
            return getattr(self.inner, name)
        return super().__getattr__(name)


def test_estimators_of_ones_own_are_kept_by_the_state_dict_alone(tmp_path):
    model, readout = make_readout(estimator_type=Own)
    x, _ = make_data(2, seed=9)
    fresh = IBAReadout("second", READOUT_LAYERS, model, Own)
    fresh.load_state_dict(readout.state_dict())
    np.testing.assert_array_equal(fresh.analyze(x), readout.analyze(x))
    with pytest.raises(InputError, match=r"Own.*state_dict"):
        readout.save(tmp_path / "readout.safetensors")


class Counting(TorchWelfordEstimator):
    """Knows the model, and counts in place."""

    def __init__(self):
        super().__init__()
        self.models, self.batches = [], np.zeros(1)

    def forward(self, x):
        self.batches += 1
        return super().forward(x)


def test_an_estimation_that_fails_leaves_an_estimator_its_model():
    model, readout = make_readout(estimator_type=Counting)
    estimator = readout.estimator
    estimator.models.append(model)
    mean, counted = estimator.mean(), int(estimator.batches[0])
    x, y = make_data()
    x[9:] = np.nan
    with pytest.raises(InputError):
        readout.estimate(model, batches(x, y))
    assert readout.estimator is estimator
    assert estimator.models[0] is model
    assert estimator.batches[0] == counted
    np.testing.assert_array_equal(estimator.mean(), mean)


class Turned(nn.Module):
    """Its layers `act` and `last` have the channels last, which their types do not say."""

    def __init__(self, speaks=True):
        super().__init__()
        self.conv, self.act, self.last, self.out = nn.Conv2d(3, 4, 1), nn.Tanh(), nn.ReLU(), nn.Linear(4, 2)
        self.speaks = speaks

    def forward(self, x):
        if not self.speaks:
            return self.last(self.act(x)).sum((1, 2, 3))[:, None] * torch.ones(2)
        x = self.last(self.act(self.conv(x).permute(0, 2, 3, 1)))
        return self.out(x.mean((1, 2)))


def test_statistics_of_another_framework_are_turned_as_the_model_needs_them(tmp_path):
    torch.manual_seed(0)
    model, images = Turned().eval(), torch.randn(6, 3, 4, 4)
    first = IBAReadout("act", ["conv", "last"], model)
    first.estimate(model, [images], progbar=False)
    right = first.analyze(images, mode="capacity")
    first.save(tmp_path / "readout")
    state = ReadoutState.read(tmp_path / "readout")
    assert state.facts["data_formats"] == ["channels_last", "channels_first", "channels_last"]
    replace(state, facts={**state.facts, "framework": "tensorflow"}).save(tmp_path / "other")
    first.detach()
    for use in ("analyze", "fit", "restrict"):
        second = IBAReadout("act", ["conv", "last"], model)
        second.load(tmp_path / "other")
        copied = copy.deepcopy(second.state_dict())
        if use == "fit":
            second.fit([(images, torch.ones(6))], lambda y, _: y.sum(1), epochs=1, lr=1e-12, progbar=False)
        elif use == "restrict":
            with second.restrict_flow():
                model(images)
        np.testing.assert_allclose(second.analyze(images, mode="capacity"), right, rtol=1e-4, atol=1e-6)
        second.load_state_dict(copied)
        np.testing.assert_allclose(second.analyze(images, mode="capacity"), right, rtol=1e-4, atol=1e-6)
        second.detach()


def test_a_readout_layer_of_unknown_channels_is_refused_without_a_false_way_out():
    model = Turned(speaks=False).eval()
    readout = IBAReadout("act", ["last"], model, data_format="channels_first")
    with pytest.raises(LayerError, match=r"of the readout layer 'last' come first or last, and no argument"):
        readout.estimate(model, [torch.randn(4, 4, 4, 4)], progbar=False)
    same = IBAReadout("act", ["act"], model, data_format="channels_first")
    same.estimate(model, [torch.randn(4, 4, 4, 4)], progbar=False)
