"""Forwards that do more than compute: with checkpoints, unseen writes, a state, random numbers."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn import functional
from torch.utils import checkpoint as checkpoints

from iba_core import Explainer, LayerError
from iba_torch import IBA, TorchAdapter, TorchSplit
from iba_torch.tail import rewrites

pytestmark = pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad", "ignore:.*torch.jit.*:DeprecationWarning"
)


def images(count, seed=0):
    return torch.randn(count, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))


class Network(nn.Module):
    """A stem, three blocks and a linear end."""

    def __init__(self, forward=None):
        super().__init__()
        self.stem, self.act, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(4, 5)
        self.a, self.b, self.c = block(), block(), block()
        self.chosen = forward
        self.run = checkpoints.checkpoint

    def forward(self, x):
        return self.out(self.chosen(self, x).mean((2, 3)))


def made(build):
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def reference(model, layer, x, z, copies):
    """Output of the whole model, whose layer's output is replaced by `z` in a hook."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    # In the place of a checkpoint, what it runs.
    model.run = lambda function, *args, use_reentrant: function(*args)
    name, _, call = layer.partition(":")
    seen = []

    def replaced(module, args, output):
        seen.append(output)
        return z.clone() if len(seen) - 1 == int(call or 0) else output

    model.get_submodule(name).register_forward_hook(replaced)
    return model(x.repeat_interleave(copies, 0))


def check(build, layer, batches=(1, 2)):
    """A tail gives the outputs and gradients of the whole model in every pass, and leaves that alone."""
    for on in (True, False):
        for count in batches:
            model, x = made(build), images(count)
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            with nullcontext() if on else rewrites.disabled():
                split = TorchAdapter(model).split(layer)
                for _ in range(2):
                    with split.head(x) as tail:
                        for copies in (1, 1, 3):
                            compare(model, layer, tail, x, copies)
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, state[name]), name
            assert all(parameter.grad is None for parameter in model.parameters())


def compare(model, layer, tail, x, copies):
    features = tail.features.repeat_interleave(copies, 0)
    z = features + 0.3 * torch.randn(
        features.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)
    )
    kept, found = z.clone(), []

    def objective(z):
        output = tail(z)
        return output.sin().sum(), output

    _, output, gradient = TorchAdapter.framework.value_and_grad(objective, z)
    assert torch.equal(z, kept)
    theirs = z.clone().requires_grad_()
    wanted = reference(model, layer, x, theirs, copies)
    found = torch.autograd.grad(wanted.sin().sum(), theirs)[0]
    torch.testing.assert_close(output, wanted.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient, found, rtol=1e-8, atol=1e-10)


# -- checkpoints -----------------------------------------------------------------------------------------


def in_rows(model, x, reentrant):
    for part in (model.a, model.b, model.c):
        x = model.run(part, x, use_reentrant=reentrant)
    return x


def rows(model, x, reentrant):
    return in_rows(model, model.stem(x), reentrant)


def skipping(model, x, reentrant):
    """A part reads what the head remembers, and calls a module that the head has called."""
    first = model.act(model.stem(x))
    part = lambda y: model.act(model.c(model.b(y)) + model.act(first))  # noqa: E731  # as checkpoints are used
    return model.run(part, model.a(first), use_reentrant=reentrant)


def nested(model, x, reentrant):
    def inner(y):
        return model.run(model.b, model.a(y), use_reentrant=reentrant)

    return model.c(model.run(inner, model.stem(x), use_reentrant=reentrant))


def beside(model, x, reentrant):
    """A part before the layer, whose output is read after it."""
    first = model.stem(x)
    side = model.run(model.a, first, use_reentrant=reentrant)
    return model.c(model.b(first) * side)


def in_place(model, x, reentrant):
    first = model.stem(x)

    def part(y):
        y = model.b(y)
        y += first
        return model.c(y.mul_(2))

    return model.run(part, model.a(first), use_reentrant=reentrant)


def dense(model, x, reentrant):
    """As a DenseNet saves memory: only where a gradient is taken."""
    found = [model.stem(x)]
    for part in (model.a, model.b, model.c):
        mixed = lambda *given, part=part: part(sum(given))  # noqa: E731  # as checkpoints are used
        needed = any(each.requires_grad for each in found)
        found.append(model.run(mixed, *found, use_reentrant=reentrant) if needed else mixed(*found))
    return sum(found)


def made_sequence(model, x, reentrant):
    """As timm does it: a part runs some modules of a sequence."""
    x, parts = model.stem(x), [*model.a, *model.b, *model.c]
    for start in range(0, len(parts), 3):

        def part(y, start=start):
            for each in parts[start : start + 3]:
                y = each(y)
            return y

        x = model.run(part, x, use_reentrant=reentrant)
    return x


EXACT = {
    rows: ["stem"],
    skipping: ["stem", "act:0", "a", "a.2"],
    nested: ["stem", "c"],
    beside: ["stem", "b", "c.1"],
    in_place: ["stem", "a"],
    dense: ["stem", "a.1", "b", "c.3"],
    made_sequence: ["stem"],
}
INSIDE = {
    rows: ["a", "b.1", "c.3"],
    skipping: ["b", "c.0", "act:1"],
    nested: ["a", "b.2"],
    beside: ["a.2"],
    in_place: ["b.0", "c"],
    made_sequence: ["a.2", "b.0"],
}
REENTRANT = {
    **{(way, layer): "refused" for way, layers in EXACT.items() for layer in layers},
    (nested, "c"): "exact",
    (beside, "b"): "exact",
    (beside, "c.1"): "exact",
    (dense, "c.3"): "exact",
}


def flat(cases):
    return [pytest.param(way, layer, id=f"{way.__name__}-{layer}") for way in cases for layer in cases[way]]


class TestCheckpoints:
    @pytest.mark.parametrize(("way", "layer"), flat(EXACT))
    def test_parts_that_the_backward_pass_runs_again(self, way, layer):
        check(lambda: Network(lambda model, x: way(model, x, False)), layer)

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize(("way", "layer"), flat(INSIDE))
    def test_a_layer_inside_of_one_is_refused(self, way, layer, reentrant):
        with pytest.raises(LayerError, match=r"runs inside of torch\.utils\.checkpoint"):
            check(lambda: Network(lambda model, x: way(model, x, reentrant)), layer)

    @pytest.mark.parametrize(("way", "layer", "outcome"), [(*key, REENTRANT[key]) for key in REENTRANT])
    def test_the_reentrant_kind(self, way, layer, outcome):
        refused = pytest.raises(LayerError, match="use_reentrant=True, which gives no gradient for features")
        with refused if outcome == "refused" else nullcontext():
            check(lambda: Network(lambda model, x: way(model, x, True)), layer)

    def test_no_error_of_the_reentrant_kind_is_raw(self):
        """Also where it runs no module, so that only the backward pass meets it."""
        way = lambda model, x: model.run(torch.tanh, model.stem(x), use_reentrant=True)  # noqa: E731
        model = made(lambda: Network(way))
        explainer = Explainer(model, "stem", steps=2, samples=2).fit([images(4)], progbar=False)
        with pytest.raises(LayerError, match="use_reentrant=True"):
            explainer.explain(images(1), 1)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_tail_that_ends_in_one(self, reentrant):
        model, x = made(lambda: Network(lambda model, x: rows(model, x, reentrant))).eval(), images(2)
        refused = pytest.raises(LayerError, match="use_reentrant=True") if reentrant else nullcontext()
        with refused, TorchAdapter(model).split("stem", "b.1").head(x) as tail:
            for _ in range(2):
                found = TorchAdapter.framework.value_and_grad(
                    lambda z: (tail(z).sin().sum(), ()), tail.features
                )
                z = tail.features.clone().requires_grad_()
                wanted = model.b[:2](model.a(z)).sin().sum()
                torch.testing.assert_close(found[0], wanted.detach())
                torch.testing.assert_close(found[2], torch.autograd.grad(wanted, z)[0])
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None

    def test_one_that_a_closure_makes_is_refused_and_leaves_the_model_alone(self):
        model, x = made(lambda: Network(None)).train(), images(2)
        state = copy.deepcopy(model.state_dict())

        def loss(x):
            y = checkpoints.checkpoint(model.b, model.a(model.stem(x)), use_reentrant=False)
            return model.c(y).mean((1, 2, 3))

        iba = IBA(model.a, optimization_steps=2)
        iba.estimate(nn.Sequential(model.stem, model.a), [images(4)])
        with pytest.raises(
            LayerError, match=r"the closure itself runs Sequential in torch\.utils\.checkpoint"
        ):
            iba.analyze(x, loss)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]), name


# -- writes that PyTorch does not count --------------------------------------------------------------------


def scripted(x):
    # Scripted functions cannot be copied, as the reference copies the model.
    scripted_clamp(x)


@torch.jit.script
def scripted_clamp(x: torch.Tensor):
    x.data.clamp_(min=0)


def through_dlpack(x):
    torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x.detach())).clamp_(min=0)


def through_numpy(x):
    array = x.detach().numpy()
    array.clip(0, None, out=array)


def uncounted(x):
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(x):
        x.clamp_(min=0)


def other_memory(x):
    x.data = x.detach().clamp(min=0)


WRITES = {
    "data": lambda x: x.data.clamp_(min=0),
    "numpy": through_numpy,
    "dlpack": through_dlpack,
    "uncounted": uncounted,
    "other memory": other_memory,
    "scripted": scripted,
}


class Writing(nn.Module):
    """Writes in one of the places of a model with a skip connection."""

    def __init__(self, how, where):
        super().__init__()
        self.write, self.where = WRITES[how], where
        self.stem, self.a, self.b = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))
        self.side, self.out = Clamping(self.write), nn.Linear(4, 5)

    def forward(self, x):
        def at(place, tensor):
            if self.where == place:
                self.write(tensor)

        at("the input, before", x)
        first = self.stem(x)
        at("a skip, before", first)
        if self.where == "a skip, in a module":
            self.side(first)
        y = self.a(first.tanh())
        at("the features", y)
        at("a view of the features", y.permute(0, 2, 3, 1))
        y = self.b(y) + y
        at("a skip, after", first)
        at("the input, after", x)
        return self.out((y + first + x.mean(1, keepdim=True)).mean((2, 3)))


class Clamping(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.write = write

    def forward(self, x):
        self.write(x)
        return x.mean()


class TestUnseenWrites:
    PLACES = (
        *("the input, before", "a skip, before", "a skip, in a module", "the features"),
        *("a view of the features", "a skip, after", "the input, after"),
    )

    @pytest.mark.parametrize("where", PLACES)
    @pytest.mark.parametrize("how", WRITES)
    def test_they_are_exact_in_every_pass(self, how, where):
        check(lambda: Writing(how, where), "a")


# -- what a forward keeps ----------------------------------------------------------------------------------


class Early(nn.Module):
    """A part of the head that keeps something for a part of the tail."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer, self.kept = way, nn.Conv2d(4, 4, 1), []
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        y = self.layer(x)
        if self.way == "attribute":
            self.feature = y.tanh()
        elif self.way == "dict":
            self.shared = {"feature": y}
        elif self.way == "list":
            self.kept.append(y)
        elif self.way == "buffer":
            self.mean += 0.5
        return y

    def read(self):
        kept = {"attribute": lambda: self.feature, "dict": lambda: self.shared["feature"]}
        kept |= {"list": lambda: sum(self.kept), "buffer": lambda: self.mean}
        return kept[self.way]()


class Keeping(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.stem, self.early, self.late = nn.Conv2d(3, 4, 1), Early(way), nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        return self.out((self.late(self.early(self.stem(x))) * self.early.read()).mean((2, 3)))


class Stateful(nn.Module):
    """Changes its state before and after the layer, and depends on it."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.stem, self.middle, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("average", torch.ones(4, 1, 1))
        self.number, self.words, self.features, self.size = 0, {}, [], None

    def step(self, y):
        return getattr(self, self.way)(y)

    def counter(self, y):
        self.count += 1
        return y * (1 + self.count)

    def replaced_buffer(self, y):
        self.count = self.count + 1
        return y * (1 + self.count)

    def data_of_a_buffer(self, y):
        self.count.data.add_(1)
        return y * (1 + self.count)

    def moving_average(self, y):
        self.average.mul_(0.9).add_(0.05)
        return y * self.average.clone()

    def attribute(self, y):
        self.number += 1
        return y * self.number

    def entry(self, y):
        self.words["n"] = self.words.get("n", 0) + 1
        return y * self.words["n"]

    def growing_list(self, y):
        self.features.append(y)
        return y + sum(each.mean((2, 3), keepdim=True) for each in self.features)

    def cached_by_batch(self, y):
        if self.size is None:
            self.size = torch.full((len(y), 1, 1, 1), 2.0)
        return y * self.size

    def forward(self, x):
        y = self.step(self.stem(x))
        y = self.step(self.middle(y))
        return self.out(y.mean((2, 3)))


STATES = ["counter", "replaced_buffer", "data_of_a_buffer", "moving_average", "attribute", "entry"]
STATES += ["growing_list", "cached_by_batch"]


class TestState:
    @pytest.mark.parametrize("layer", ["stem", "early.layer", "early", "late"])
    @pytest.mark.parametrize("way", ["attribute", "dict", "list", "buffer"])
    def test_what_the_head_keeps_reaches_the_tail_for_each_copy(self, way, layer):
        check(lambda: Keeping(way), layer)

    @pytest.mark.parametrize("layer", ["stem", "middle"])
    @pytest.mark.parametrize("way", STATES)
    def test_every_pass_begins_in_the_state_of_the_model(self, way, layer):
        check(lambda: Stateful(way), layer)

    def test_a_hidden_state_with_a_graph(self):
        class Hidden(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.cell, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
                self.hidden = None

            def forward(self, x):
                y = self.stem(x)
                for _ in range(2):
                    self.hidden = self.cell(y if self.hidden is None else y + self.hidden)
                return self.out(self.hidden.mean((2, 3)))

        check(Hidden, "stem")

    @pytest.mark.parametrize(
        "observer",
        [
            *(quantization.MinMaxObserver, quantization.HistogramObserver),
            lambda: quantization.PerChannelMinMaxObserver(ch_axis=1),
        ],
    )
    def test_observers_of_quantisation_stay_as_they_are(self, observer):
        way = lambda model, x: model.second(model.b(model.first(model.stem(x))))  # noqa: E731

        def build():
            model = Network(way)
            model.first, model.second = observer(), observer()
            return model

        for layer in ("stem", "first", "b"):
            check(build, layer)

    @pytest.mark.filterwarnings("ignore:what the model gives for an image")
    def test_nothing_is_left_by_any_use(self):
        way = lambda model, x: model.fake(model.b(model.stem(x)))  # noqa: E731
        model = made(lambda: Network(way))
        model.fake = quantization.FakeQuantize(quantization.MovingAverageMinMaxObserver).double()
        model.fake.enable_observer()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        explainer = Explainer(model, "stem", steps=2, samples=2).fit([images(6)], progbar=False)
        explainer.explain(images(2), 1, seed=0)
        explainer.predict(images(2))
        explainer.adapter.layers(images(1))
        iba = IBA(model.stem, optimization_steps=2)
        iba.estimate(model, [images(6)])
        iba.analyze(images(1), lambda x: model(x).mean())
        iba.detach()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_what_only_some_passes_keep_is_refused(self):
        class Sometimes(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.out, self.number = nn.Conv2d(3, 4, 1), nn.Linear(4, 5), 0

            def forward(self, x):
                y = self.stem(x)
                if bool((y > 100).any()):
                    self.number += 1
                return self.out(y.mean((2, 3)) * (1 + self.number))

        model, x = made(Sometimes), images(1)
        split = TorchAdapter(model).split("stem")
        with split.head(x) as tail:
            tail(tail.features)

        def use():
            with split.head(x) as tail:
                for scale in (1, 1, 1000, 1):
                    tail(tail.features * scale)

        with pytest.raises(LayerError, match="in some passes only"):
            use()


# -- random numbers and weights ----------------------------------------------------------------------------


class Random(nn.Module):
    def __init__(self, way, where):
        super().__init__()
        self.way, self.where = way, where
        self.stem, self.a, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.noisy(x) if self.where == "head" else x
        x = self.a(x)
        x = self.noisy(x) if self.where == "tail" else x
        return self.out(x.mean((2, 3)))

    def noisy(self, x):
        if self.way == "dropout":
            return functional.dropout(x, 0.3, training=True)
        if self.way == "normal":
            return x + 0.1 * torch.randn(x.shape, dtype=x.dtype)
        part = lambda x: functional.dropout(x.tanh(), 0.3, training=True)  # noqa: E731
        return checkpoints.checkpoint(part, x, use_reentrant=False)


@pytest.mark.filterwarnings("ignore:the model gives other outputs")
class TestRandomNumbers:
    @pytest.mark.parametrize("where", ["head", "tail"])
    @pytest.mark.parametrize("way", ["dropout", "normal", "checkpoint"])
    def test_a_seed_makes_them_reproducible_and_the_process_keeps_its_own(self, way, where):
        torch.manual_seed(0)
        model, x = Random(way, where).double(), images(2)
        explainer = Explainer(model, "a", steps=2, samples=2)
        before = torch.get_rng_state()
        explainer.fit([images(6, seed=1)], progbar=False)
        found = []
        for seed in (3, 3, 4):
            found.append(explainer.explain(x, 1, seed=seed))
            explainer.predict(x)
            explainer.predict_restricted(x, found[-1], samples=2, seed=0)
            assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(9)
        other = Explainer(model, "a", steps=2, samples=2, estimator=explainer.estimator)
        found.append(other.explain(x, 1, seed=3))
        for again in (found[1], found[3]):
            np.testing.assert_array_equal(again.capacity, found[0].capacity)
            np.testing.assert_array_equal(again.model_losses, found[0].model_losses)
        assert not np.array_equal(found[2].model_losses, found[0].model_losses)

    def test_also_after_an_error(self):
        class Failing(nn.Module):
            def forward(self, x):
                x = functional.dropout(x, 0.3, training=True)
                if torch.is_grad_enabled() and x.requires_grad:
                    raise ZeroDivisionError
                return x

        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), Failing(), nn.Flatten(), nn.Linear(144, 2)).double()
        explainer = Explainer(model, "0", steps=2, samples=2).fit([images(6)], progbar=False)
        before = torch.get_rng_state()
        with pytest.raises(ZeroDivisionError):
            explainer.explain(images(1), 1, seed=0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_models_that_draw_nothing_leave_other_threads_their_numbers(self):
        torch.manual_seed(0)
        seen = []

        class Looking(nn.Module):
            def forward(self, x):
                seen.append(torch.get_rng_state())
                return x

        model = nn.Sequential(
            nn.Conv2d(3, 4, 1), Looking(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)
        ).double()
        before = torch.get_rng_state()
        explainer = Explainer(model, "0", steps=2, samples=2).fit([images(6)], progbar=False)
        explainer.explain(images(1), 1, seed=0)
        assert seen
        assert all(torch.equal(state, before) for state in seen)

    @pytest.mark.parametrize("way", ["no_grad", "data", "set"])
    @pytest.mark.parametrize("layer", ["stem", "b"])
    def test_weights_that_a_forward_writes_into(self, way, layer):
        def scaled(model, x):
            if way == "no_grad":
                with torch.no_grad():
                    model.scale.mul_(0.5)
            elif way == "data":
                model.scale.data.mul_(0.5)
            else:
                model.scale.data = model.scale.data * 0.5
            return model.c(model.b(model.stem(x)) * model.scale)

        def build():
            model = Network(scaled)
            model.scale = nn.Parameter(torch.ones(4, 1, 1))
            return model

        check(build, layer)

    def test_weights_of_a_closure_that_a_forward_writes_into(self):
        def scaled(model, x):
            with torch.no_grad():
                model.scale.mul_(0.5)
            return model.b(model.stem(x)) * model.scale

        model = made(lambda: Network(scaled))
        model.scale = nn.Parameter(torch.ones(4, 1, 1, dtype=torch.float64))
        with TorchSplit(lambda x: model(x).sum(1), model.stem).head(images(1)) as tail:
            found = tail(tail.features)
            torch.testing.assert_close(tail(tail.features), found)
        assert torch.equal(model.scale, torch.ones_like(model.scale))
        torch.testing.assert_close(found, copy.deepcopy(model).eval()(images(1)).sum(1).detach())


class TestInferenceMode:
    @pytest.mark.parametrize("layer", ["a", "b"])
    @pytest.mark.parametrize("reads", ["nothing", "sum", "product"])
    def test_a_part_of_the_head_that_runs_in_it(self, layer, reads):
        def forward(model, x):
            with torch.inference_mode(model.infers):
                first = model.stem(x)
            y = model.b(model.a(first))
            return {"nothing": y, "sum": y + first, "product": y * first}[reads]

        model, x = made(lambda: Network(forward)).eval(), images(2)
        model.infers = False
        plain = copy.deepcopy(model)
        model.infers = True
        split = TorchAdapter(model).split(layer)
        for _ in range(2):
            with split.head(x) as tail:
                for copies in (1, 3):
                    compare(plain, layer, tail, x, copies)


class TestErrors:
    def test_an_error_that_comes_once_changes_no_later_map(self):
        """Whatever its text says and wherever it comes: nothing is tried again on account of it."""
        waiting, passes = [], []

        class Failing(nn.Module):
            def forward(self, x):
                passes.append(None)
                if waiting and len(passes) == waiting[0]:
                    raise RuntimeError(
                        "view size is not compatible with input tensor's stride, in-place contiguous"
                    )
                return x.view_as(x)

        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Failing(), nn.Conv2d(8, 8, 3)),
            *(Failing(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
        ).eval()
        x, batches = images(2).float(), [images(6).float()]
        new = lambda: Explainer(model, "0", steps=2, samples=2)  # noqa: E731  # one line for each use
        fitted = new().fit(batches, progbar=False)
        wanted = fitted.explain(x, 1, seed=0).capacity
        passes.clear()
        Explainer(model, "0", steps=2, samples=2, estimator=fitted.estimator).explain(x, 1, seed=0)
        total = len(passes)
        for at in range(1, total + 1):
            explainer = Explainer(model, "0", steps=2, samples=2, estimator=fitted.estimator)
            passes.clear()
            waiting[:] = [at]
            with pytest.raises(RuntimeError, match="view size is not compatible"):
                explainer.explain(x, 1, seed=0)
            assert len(passes) == at
            waiting.clear()
            np.testing.assert_array_equal(explainer.explain(x, 1, seed=0).capacity, wanted)
