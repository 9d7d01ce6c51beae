"""What runs in place of a model: a shadow that shares its weights and leaves everything of it alone."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm
from torch.utils.checkpoint import checkpoint

from iba_core import Explainer, InputError, LayerError, NotEstimatedError
from iba_torch import IBA, TorchAdapter, TorchSplit
from iba_torch.tail import rewrites
from iba_torch.tail.rewrites.assumptions import Assumption, Outcome, State, run_assuming
from iba_torch.tail.shadow import Shadows
from iba_torch.tail.trees import tensors


def network(dropout=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Dropout(0.5 if dropout else 0.0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def photographs(count, seed=0):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def output(model, x, layer="0"):
    """What the model gives by way of a split, and the gradient of its sum for the features."""
    with TorchAdapter(model).split(layer).head(x) as tail:
        z = tail.features.clone().requires_grad_()
        found = tail(z)
        (gradient,) = torch.autograd.grad(found.sin().sum(), z)
    return found.detach(), gradient


class TestCopies:
    """Models of unusual make run as they are in evaluation mode, and follow their weights."""

    def check(self, model, layer="0"):
        x = photographs(2)
        for change in (lambda p: None, lambda p: p.mul_(-1.5), lambda p: p.add_(0.1)):
            with torch.no_grad():
                for parameter in model.parameters():
                    change(parameter)
            flags = [module.training for module in model.modules()]
            # With gradients: fused attention would be rounded in another way.
            wanted = in_evaluation_mode(model)(x.clone()).detach()
            torch.testing.assert_close(TorchAdapter(model).predict(x), wanted)
            torch.testing.assert_close(output(model, x, layer)[0], wanted)
            assert [module.training for module in model.modules()] == flags

    def test_plain(self):
        self.check(network())

    def test_the_adapter_follows_updates_and_replacements(self):
        model, x = network(dropout=False).eval(), photographs(2)
        adapter = TorchAdapter(model)
        split = adapter.split("0")

        def assert_same():
            with split.head(x) as tail:
                torch.testing.assert_close(tail(tail.features), model(x.clone()))
            torch.testing.assert_close(adapter.predict(x), model(x.clone()))

        def to_double_and_back():
            model.double()
            model.float()

        changes = [
            lambda: model[3][0].weight.data.mul_(2),
            lambda: model[3][0].weight.detach().add_(0.3),
            lambda: setattr(model[3][0], "weight", nn.Parameter(-model[3][0].weight.detach())),
            lambda: setattr(model[3][0].bias, "data", torch.ones(4)),
            lambda: model[1].running_mean.add_(1),
            lambda: model[1].running_mean.data.add_(1),
            lambda: setattr(model[1], "running_var", torch.full((4,), 0.2)),
            lambda: setattr(model[1], "eps", 0.5),
            lambda: model.__setitem__(2, nn.Tanh()),
            lambda: model.append(nn.Linear(5, 3)),
            lambda: setattr(model[5], "output_size", 1),
            to_double_and_back,
            lambda: model[3].register_forward_hook(lambda module, args, output: output * 3),
        ]
        assert_same()
        for change in changes:
            with torch.no_grad():
                change()
            assert_same()

    def test_weight_norm_old_and_new_and_parametrizations(self):
        class Doubled(nn.Module):
            def forward(self, weight):
                return 2 * weight

        model = network()
        with pytest.warns(FutureWarning, match="weight_norm"):
            weight_norm(model[3][0])
        parametrizations.weight_norm(model[0])
        parametrize.register_parametrization(model[7], "weight", Doubled())
        model(photographs(2))
        self.check(model)
        assert model[3][0].weight.grad_fn is not None, "the graph of the last pass is the model's own"

    def test_tied_and_shared_modules_and_plain_lists(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.first = nn.Conv2d(3, 3, 3, padding=1)
                self.second = nn.Conv2d(3, 3, 3, padding=1)
                self.second.weight = self.first.weight
                self.steps = [self.first, nn.ReLU(), self.first, self.second]
                self.hidden = {"out": (nn.Conv2d(3, 2, 1),)}

            def forward(self, x):
                for step in self.steps:
                    x = step(x)
                return self.hidden["out"][0](x).mean((2, 3))

        torch.manual_seed(0)
        self.check(Tied(), "first:0")
        model = Tied().eval()
        with torch.no_grad():
            model.hidden["out"][0].weight.mul_(3)
        torch.testing.assert_close(output(model, photographs(1), "second")[0], model(photographs(1)))

    def test_forwards_that_are_set_on_a_module(self):
        model = network()
        model[3][0].forward = functools.partial(type(model[3][0]).forward, model[3][0])
        inner, own = model[0], model[0].forward

        def wrapped(x):
            return own(x) + inner.bias.sum()

        model[0].forward = wrapped
        self.check(model)

    def test_attributes_that_cannot_be_copied_are_shared(self):
        class Locked(nn.Module):
            def __init__(self):
                super().__init__()
                self.lock = threading.Lock()
                self.file = sys.stderr
                self.layer = nn.Conv2d(3, 2, 1)
                self.names = iter("ab")

            def forward(self, x):
                with self.lock:
                    return self.layer(x).mean((2, 3))

        self.check(Locked(), "layer")

    def test_what_a_forward_stores_stays_in_the_shadow(self):
        class Storing(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.seen, self.last = nn.Conv2d(3, 2, 1), [], None
                self.register_buffer("count", torch.zeros(()))
                self.table = torch.zeros(3)
                self.notes = Notes()

            def forward(self, x):
                assert not self.seen
                assert self.last is None
                assert self.count == 0
                x = self.layer(x)
                self.seen.append(x)
                self.last = x
                self.count += 1
                self.table[0] += 1
                self.notes.text = "used"
                return x.mean((2, 3)) + self.table[0]

        model = Storing()
        x = photographs(1)
        wanted = model(x).detach()
        model = Storing().requires_grad_(False)
        model.load_state_dict(model.state_dict())
        adapter = TorchAdapter(model)
        for _ in range(3):
            adapter.predict(x)
        assert (model.seen, model.last, model.count.item(), model.table[0].item()) == ([], None, 0, 0)
        assert model.notes.text == "new"
        assert wanted.shape == (1, 2)

    def test_sets_arrays_long_lists_and_renormalised_embeddings_are_its_own(self):
        class Storing(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.active, self.used = nn.Conv2d(3, 2, 1), {"scale"}, set()
                self.counts, self.losses = np.zeros(3), [0.0] * 2000
                self.embedding = nn.Embedding(3, 2, max_norm=0.1)

            def forward(self, x):
                assert not self.used
                assert len(self.losses) < 2002
                self.used.add("forward")
                self.losses.append(1.0)
                self.counts[0] += 1
                y = self.layer(x).mean((2, 3)) + self.embedding(torch.tensor(1))
                return y * self.counts[0] * (2 if "scale" in self.active else 1)

        model, x = Storing(), photographs(1)
        weight = model.embedding.weight.detach().clone()
        adapter = TorchAdapter(model)
        first = adapter.predict(x)
        torch.testing.assert_close(adapter.predict(x), first)
        assert (model.active, model.used, len(model.losses), model.counts[0]) == ({"scale"}, set(), 2000, 0)
        assert torch.equal(model.embedding.weight, weight)
        model.active.remove("scale")
        torch.testing.assert_close(adapter.predict(x), first / 2)
        model.counts[0], model.losses[:] = 1, [0.0] * 2001
        torch.testing.assert_close(adapter.predict(x), first)
        with torch.no_grad():
            model.embedding.weight.neg_()
        wanted = copy.deepcopy(model)(x).detach()
        torch.testing.assert_close(adapter.predict(x), wanted)

    def test_objects_that_release_something_are_shared(self):
        released = []

        class Resource:
            def __del__(self):
                released.append(self)

        model, x = network(), photographs(1)
        model.resource = Resource()
        TorchAdapter(model).predict(x)
        gc.collect()
        assert not released

    def test_a_generator_of_the_model_keeps_its_state(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.generator = nn.Conv2d(3, 2, 1), torch.Generator().manual_seed(3)

            def forward(self, x):
                return self.layer(x).mean((2, 3)) + torch.randn(2, generator=self.generator)

        model = Noisy()
        before = model.generator.get_state()
        adapter = TorchAdapter(model)
        first = adapter.predict(photographs(1))
        torch.testing.assert_close(adapter.predict(photographs(1)), first)
        assert torch.equal(model.generator.get_state(), before)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_scripted_parts_in_training_mode(self):
        model = network()
        model[3] = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)))
        x = photographs(2)
        model.train()
        state = copy.deepcopy(model.state_dict())
        found = output(model, x, "3")[0]
        assert model[3].training
        assert all(parameter.requires_grad for parameter in model[3].parameters())
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name])
        torch.testing.assert_close(found, model.eval()(x))
        with torch.no_grad():
            next(model[3].parameters()).mul_(2)
        torch.testing.assert_close(output(model, x, "3")[0], model(x))

    def test_modules_that_are_made_in_a_closure_leave_nothing(self):
        model, x = network(dropout=False).eval(), photographs(1)
        split = TorchSplit(lambda inputs: model[:4](inputs).mean(), model[0])
        sizes = []
        for _ in range(4):
            with split.head(x) as tail:
                torch.testing.assert_close(tail(tail.features), model[:4](x).mean())
                tail(tail.features)
            del tail
            gc.collect()
            sizes.append(sum(isinstance(thing, nn.Module) for thing in gc.get_objects()))
        assert sizes[1:] == sizes[1:2] * 3


class Notes:
    """An ordinary object."""

    text = "new"


def in_evaluation_mode(model):
    """Runs the model itself in evaluation mode, and puts its flags back."""
    flags = {module: module.training for module in model.modules()}

    def run(x):
        for module in flags:
            module.training = False
        try:
            return model(x)
        finally:
            for module, flag in flags.items():
                module.training = flag

    return run


class TestThreads:
    def test_explaining_in_eight_threads_while_the_model_is_trained(self):
        """Serial results bit for bit; and the training is what it is without the explanations."""
        explained, trained, reference = network(), network(), network()
        explainer = Explainer(explained, "3.0", steps=3, samples=3).fit([photographs(16)], progbar=False)
        batches = [photographs(1 + seed % 3, seed) for seed in range(8)]
        explainer.explain(batches[0], 1, seed=0)
        wanted = [explainer.explain(x, 1, seed=0).capacity for x in batches]

        # A learning rate of 0 keeps the weights; statistics, gradients and dropout are the training's.
        def train(model, rounds):
            torch.manual_seed(1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            outputs = []
            for step in range(rounds):
                assert all(module.training for module in model.modules())
                assert all(parameter.requires_grad for parameter in model.parameters())
                optimizer.zero_grad()
                outputs.append(model(photographs(4, 100 + step)))
                outputs[-1].square().mean().backward()
                optimizer.step()
            return torch.stack(outputs).detach(), [p.grad.clone() for p in model.parameters()]

        stop, rounds = threading.Event(), 20
        one = Explainer(trained, "3.0", steps=3, samples=3, estimator=explainer.estimator)
        # The first explanation of each shape compares passes; a step of the training would come between them.
        for x in batches[:3]:
            one.explain(x, 1, seed=0)

        def explain(index):
            maps = []
            while not stop.is_set() or not maps:
                maps.append(one.explain(batches[index], 1, seed=0))
            return maps

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(explain, index) for index in range(8)]
            found = train(trained, rounds)
            stop.set()
            several = [future.result() for future in running]
        wanted_outputs, wanted_gradients = train(reference, rounds)
        assert torch.equal(found[0], wanted_outputs)
        for gradient, other in zip(found[1], wanted_gradients, strict=True):
            assert torch.equal(gradient, other)
        for (name, tensor), other in zip(
            trained.state_dict().items(), reference.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, other), name
        assert all(len(maps) for maps in several)

        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                maps = list(pool.map(lambda x: explainer.explain(x, 1, seed=0).capacity, batches))
                for index in range(8):
                    np.testing.assert_array_equal(maps[index], wanted[index])

    def test_two_heads_of_one_split_are_open_at_once(self):
        model = network(dropout=False).eval()
        split = TorchAdapter(model).split("0")
        a, b = photographs(1, 1), photographs(2, 2)
        with split.head(a) as first, split.head(b) as second:
            for _ in range(2):
                torch.testing.assert_close(first(first.features), model(a.clone()))
                torch.testing.assert_close(second(second.features), model(b.clone()))

    def test_flow_is_restricted_in_one_thread_alone(self):
        model = network(dropout=False).eval()
        iba = IBA(model[3])
        iba.estimate(model, [photographs(16)])
        iba.analyze(photographs(1), lambda x: model(x).square().mean(), beta=1000)
        x = photographs(2)
        plain, seen = model(x.clone()), {}

        def run(name):
            seen[name] = model(x.clone())

        with iba.restrict_flow():
            thread = threading.Thread(target=run, args=["other"])
            thread.start()
            thread.join()
            run("own")
        assert torch.equal(seen["other"], plain)
        assert not torch.allclose(seen["own"], plain)

    def test_contexts_of_tasks_may_overlap(self):
        model = network(dropout=False).eval()
        iba = IBA(model[3])
        iba.estimate(model, [photographs(16)])
        iba.analyze(photographs(1), lambda x: model(x).square().mean(), beta=1000)
        x = photographs(2)
        plain, fused = model(x.clone()), torch.backends.mha.get_fastpath_enabled()

        async def restricted(before, after):
            await asyncio.sleep(before)
            with iba.restrict_flow():
                await asyncio.sleep(after)
                return model(x.clone())

        async def unrestricted():
            await asyncio.sleep(0.02)
            return model(x.clone())

        async def all_of_them():
            return await asyncio.gather(restricted(0, 0.03), unrestricted(), restricted(0.01, 0.04))

        first, other, second = asyncio.run(all_of_them())
        assert torch.equal(other, plain)
        assert not torch.allclose(first, plain)
        assert not torch.allclose(second, plain)
        assert torch.equal(model(x.clone()), plain)
        assert torch.backends.mha.get_fastpath_enabled() == fused


class TestSwitchedOff:
    def test_without_rewrites_the_tail_gives_the_same(self, case, images):
        model, x = case.make(torch.float32).eval(), images(2, torch.float32)
        for layer in case.layers:
            found = []
            for on in (True, False):
                split = TorchAdapter(model).split(layer)
                for _ in range(2):
                    with nullcontext() if on else rewrites.disabled(), split.head(x) as tail:
                        z = tail.features.repeat_interleave(2, 0).requires_grad_()
                        outputs = tensors(tail(z))
                        total = sum(each.sin().sum() for each in outputs)
                        found.append([*outputs, torch.autograd.grad(total, z)[0]])
            for others in found[1:]:
                for one, other in zip(found[0], others, strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_a_map_is_the_same(self):
        model = network().eval()
        explainer = Explainer(model, "0", steps=4, samples=3).fit([photographs(16)], progbar=False)
        x = photographs(2)
        with_rewrites = explainer.explain(x, 1, seed=0)
        with rewrites.disabled():
            without = explainer.explain(x, 1, seed=0)
        np.testing.assert_allclose(with_rewrites.capacity, without.capacity, rtol=2e-3, atol=1e-5)
        adapter = TorchAdapter(model, rewrites=False)
        other = Explainer(adapter, "0", steps=4, samples=3, estimator=explainer.estimator)
        np.testing.assert_array_equal(other.explain(x, 1, seed=0).capacity, without.capacity)


class TestAssumptions:
    @pytest.mark.parametrize("how", ["data", "numpy"])
    @pytest.mark.parametrize("where", ["head", "tail"])
    def test_writes_that_pytorch_does_not_count(self, how, where):
        class Writing(nn.Module):
            def forward(self, x):
                if how == "data":
                    x.data.mul_(2)
                else:
                    x.detach().numpy()[:] *= 2
                return x

        class Skipping(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
                self.writing = Writing()

            def forward(self, x):
                skip = self.first(x)
                if where == "head":
                    self.writing(skip)
                y = self.second(skip.tanh())
                if where == "tail":
                    self.writing(skip)
                return (self.third(y) + skip).mean((2, 3))

        torch.manual_seed(0)
        model, x = Skipping(), photographs(2)
        wanted = model(x).detach()
        split = TorchAdapter(model).split("second")
        for _ in range(2):
            with split.head(x) as tail:
                for _ in range(3):
                    z = tail.features.clone().requires_grad_()
                    torch.testing.assert_close(tail(z).detach(), wanted)

    def test_they_end_with_what_they_were_observed_on(self):
        class Plain(nn.Module):
            def forward(self, x):
                return x

        class Doubling(nn.Module):
            def forward(self, x):
                x.detach().numpy()[:] *= 2
                return x

        class Skipping(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
                self.last = Plain()

            def forward(self, x):
                skip = self.first(x)
                y = self.second(skip.tanh())
                return (self.third(y) + self.last(skip)).mean((2, 3))

        model, x = Skipping(), photographs(2)
        split = TorchAdapter(model).split("second")

        def check(split, run):
            with split.head(x) as tail:
                for _ in range(3):
                    z = tail.features.clone().requires_grad_()
                    torch.testing.assert_close(tail(z).detach(), run(x.clone()).detach())

        check(split, model)
        model.last = Doubling()
        check(split, model)

        model.last, shadows = Plain(), Shadows()

        def doubled(x):
            first = model.first(x)
            y = model.second(first.tanh())
            first.detach().numpy()[:] *= 2
            return model.third(y) + first

        for closure in (model.forward, doubled):
            check(TorchSplit(closure, model.second, shadows=shadows), closure)

    def test_other_threads_see_only_what_has_been_shown(self):
        assumption, seen = Assumption("it holds"), []

        def run(relied):
            seen.append((assumption in relied, assumption.state))
            if relied or fails:
                raise RuntimeError("first" if relied else "again")
            return Outcome("done")

        def blame(error, relied):
            return relied

        fails = True
        with pytest.raises(RuntimeError, match="first"):
            run_assuming([assumption], run, blame)
        assert assumption.is_unknown
        fails = False
        assert run_assuming([assumption], run, blame) == "done"
        assert seen == [(True, State.UNKNOWN), (False, State.UNKNOWN)] * 2
        assert assumption.is_broken

    def test_errors_of_the_model_pass_through_as_they_are(self):
        """Also those that it raises once: no pass is tried again to find out."""

        class OnceError(RuntimeError):
            pass

        error = OnceError("view of a stride, in-place")
        waiting, passes = [], []

        class Failing(nn.Module):
            def forward(self, x):
                passes.append(None)
                if waiting:
                    raise waiting.pop()
                return x

        model = nn.Sequential(nn.Conv2d(3, 4, 3), Failing(), nn.Flatten(), nn.Linear(64, 2))
        with TorchAdapter(model).split("0").head(photographs(1)) as tail:
            z = tail.features.clone().requires_grad_()
            tail(z)
            tail(z)
            before = len(passes)
            waiting.append(error)
            with pytest.raises(OnceError) as caught:
                tail(z)
            assert caught.value is error
            assert len(passes) == before + 1
            tail(z)

    def test_checkpoints_after_the_layer(self):
        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem = nn.Conv2d(3, 4, 3, padding=1)
                self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

            def forward(self, x):
                return checkpoint(self.block, self.stem(x), use_reentrant=False).mean((2, 3))

        torch.manual_seed(0)
        model, x = Checkpointed().eval(), photographs(4)
        found, gradient = output(model, x, "stem")
        z = model.stem(x).detach().requires_grad_()
        wanted = model.block(z).mean((2, 3))
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sin().sum(), z)[0])

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_layer_inside_of_a_checkpoint_is_an_error(self, reentrant):
        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.stem, self.block = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())

            def forward(self, x):
                return checkpoint(self.block, self.stem(x), use_reentrant=reentrant).mean((2, 3))

        with pytest.raises(LayerError, match=r"layer 'block\.0' runs inside of torch\.utils\.checkpoint"):
            output(Checkpointed().eval(), photographs(1), "block.0")


class TestCopiesOfExplainers:
    @pytest.mark.parametrize("way", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
    def test_a_copy_explains_its_own_model(self, way):
        model, x = network().eval(), photographs(1)
        explainer = Explainer(model, "3.0", steps=2, samples=2).fit([photographs(16)], progbar=False)
        wanted = explainer.explain(x, 1, seed=0).capacity
        other = way(explainer)
        np.testing.assert_array_equal(other.explain(x, 1, seed=0).capacity, wanted)
        with torch.no_grad():
            for parameter in other.adapter.model.parameters():
                parameter.normal_()
        assert not np.allclose(other.explain(x, 1, seed=0).capacity, wanted)
        np.testing.assert_array_equal(explainer.explain(x, 1, seed=0).capacity, wanted)

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
    def test_a_copy_of_a_model_with_a_bottleneck(self, way):
        model, x = network().eval(), photographs(1)
        iba = IBA(model[3], optimization_steps=2)
        iba.estimate(model, [photographs(16)])
        with iba.restrict_flow():
            # Leaves a capacity with a graph.
            model(x.clone().requires_grad_() * 1)
        own = way((model, iba))

        def explain(model, iba):
            return iba.analyze(x, lambda inputs: model(inputs).square().mean(), "capacity", seed=0)

        wanted = explain(model, iba)
        np.testing.assert_array_equal(explain(*own), wanted)
        with torch.no_grad():
            for parameter in own[0].parameters():
                parameter.normal_()
        assert not np.allclose(explain(*own), wanted)
        np.testing.assert_array_equal(explain(model, iba), wanted)
        with own[1].restrict_flow():
            assert not torch.allclose(own[0](x.clone()), copy.deepcopy(own[0])(x.clone()))
        lone = way(model)
        torch.testing.assert_close(lone(x.clone()), model(x.clone()))


class TestNothingIsLeftBehind:
    def test_after_an_interrupt_at_any_line(self, snapshot):
        """Exceptions at line after line of the library, in every part of a use of a split."""
        model = network().train()
        x = photographs(2)
        before = snapshot(model, x)

        def use():
            split = TorchAdapter(model).split("3.0")
            split.features(x)
            with split.head(x) as tail:
                z = tail.features.clone().requires_grad_()
                torch.autograd.grad(tail(z).sum(), z)
            closure = TorchSplit(lambda inputs: model(inputs).mean(), model[3][0])
            with closure.head(x) as tail:
                tail(tail.features)

        lines = count_lines(use)
        assert lines > 500
        for at in range(0, lines, max(1, lines // 60)):
            with pytest.raises(KeyboardInterrupt):
                count_lines(use, at)
            assert snapshot(model, x) == before, at
        use()
        with TorchAdapter(model).split("3.0").head(x) as tail:
            torch.testing.assert_close(tail(tail.features), copy.deepcopy(model).eval()(x.clone()))

    def test_two_thousand_heads_hold_no_more_than_two(self):
        model, x = network().eval(), photographs(1)
        split = TorchAdapter(model).split("3.0")
        closure = TorchSplit(lambda inputs: model(inputs).mean(), model[3][0])

        def held():
            gc.collect()
            return sum(isinstance(thing, (torch.Tensor, nn.Module)) for thing in gc.get_objects())

        for count in range(1000):
            for each in (split, closure):
                with each.head(x) as tail:
                    tail(tail.features)
            del tail
            if count == 2:
                after_a_few = held()
        assert held() <= after_a_few

    def test_a_pool_is_empty_once_copied(self):
        shadows = Shadows()
        model = network()
        with shadows.lease() as shadow:
            shadow.of(model)
        for other in (copy.deepcopy(shadows), pickle.loads(pickle.dumps(shadows))):
            with other.lease() as one:
                assert not one.sites

    def test_an_estimation_that_fails_keeps_what_there_was(self):
        model = network().eval()
        iba = IBA(model[3], optimization_steps=2)

        def failing():
            yield photographs(4)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            iba.estimate(model, failing())
        with pytest.raises(NotEstimatedError):
            iba.analyze(photographs(1), lambda x: model(x).mean())
        iba.estimate(model, [photographs(16)])
        mean, count = iba.estimator.mean().clone(), iba.estimator.n_samples()
        with pytest.raises(ZeroDivisionError):
            iba.estimate(model, failing())
        with pytest.raises(InputError):
            iba.estimate(model, [photographs(1)])
        assert iba.estimator.n_samples() == count
        assert torch.equal(iba.estimator.mean(), mean)


def count_lines(function, interrupt_at=None):
    """How many lines of the splits' code run in a function; raise KeyboardInterrupt at one of them."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if "/iba_torch/tail/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines - 1 == interrupt_at:
                raise KeyboardInterrupt
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(outer)
    return lines
