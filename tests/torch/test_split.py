"""Models split at every layer: head and tail together are the model, which stays as it was.

The judge is the plain model with a hook that writes the feature map into the layer's output.
"""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import suppress

import pytest
import torch
from torch import nn

from iba_core.errors import InputError, LayerError
from iba_torch import TorchAdapter, TorchSplit
from iba_torch.tail.trees import tensors

TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def total(output):
    """A scalar that every number of an output takes part in differently."""
    weights = torch.Generator().manual_seed(1)
    return sum(
        (torch.rand(t.shape[1:], generator=weights, dtype=t.dtype) * t.sin()).sum() for t in tensors(output)
    )


def use(split, inputs):
    split.features(inputs)
    with split.head(inputs) as tail:
        tail(tail.features)


def assert_close(found, wanted, message):
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE, msg=lambda text: f"{message}: {text}")


@pytest.mark.parametrize(("batch", "copies"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_the_tail_is_the_model_with_the_feature_map_put_in(case, images, replacement, batch, copies):
    """Values and gradients, for other features than the input's own, several times in a row."""
    for layer in case.layers:
        model = case.make().eval().requires_grad_(False)
        x, other = images(batch), images(batch, seed=5)
        split = TorchAdapter(model).split(layer)
        features = split.features(other).repeat_interleave(copies, 0)
        with split.head(x) as tail:
            assert tail.carry == ()
            for step in range(3):
                z = (features * (1 + step)).requires_grad_()
                before = z.detach().clone()
                output = tail(z)
                (gradient,) = torch.autograd.grad(total(output), z)
                assert torch.equal(z, before), f"{layer}: the tail wrote into z"

                wanted_z = before.clone().requires_grad_()
                with replacement[0](model, layer, wanted_z):
                    wanted = model(x.repeat_interleave(copies, 0))
                    (wanted_gradient,) = torch.autograd.grad(total(wanted), wanted_z)
                assert type(output) is type(wanted)
                assert_close(output, wanted, f"{layer}, pass {step}")
                assert_close(gradient, wanted_gradient, f"{layer}, gradient of pass {step}")


def test_the_tail_can_begin_at_the_input_of_a_layer(case, images, replacement):
    for layer in case.layers:
        model = case.make().eval()
        x, other = images(2), images(2, seed=5)
        name, _, call = layer.partition(":")
        split = TorchSplit(
            model,
            model.get_submodule(name),
            where="input",
            call=int(call) if call else None,
            # Nothing but reshaping is done with the axes of an input.
            data_format="channels_first",
        )
        z = split.features(other).repeat_interleave(3, 0)
        if type(model).__name__ == "Residual" and layer == "act":
            # The model goes on with the tensor that the layer writes into, not with what it returns.
            with pytest.raises(LayerError, match="does not depend on layer"), split.head(x):
                pass
            continue
        with split.head(x) as tail:
            outputs = [tail(z), tail(z)]
        with replacement[0](model, layer, z.clone(), "input"):
            wanted = model(x.repeat_interleave(3, 0))
        for output in outputs:
            assert_close(output, wanted, layer)


def test_features_are_the_output_of_the_layer(case, images):
    for layer in case.layers:
        model = case.make().eval()
        x, seen = images(3), []
        name, _, call = layer.partition(":")
        split = TorchAdapter(model).split(layer)
        found = split.features(x)
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(tensors(output)[0].detach().clone())
        )
        fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        model(x.clone())
        torch.backends.mha.set_fastpath_enabled(fastpath)
        handle.remove()
        wanted = seen[int(call or 0)]
        wanted = wanted if len(wanted) == 3 else wanted.transpose(0, 1)
        assert_close(found, wanted, layer)
        with split.head(x) as tail:
            assert torch.equal(tail.features, found)
        assert not found.requires_grad


class TestNothingIsLeftBehind:
    def mixed(self, case):
        model = case.make().train()
        for index, module in enumerate(model.modules()):
            module.training = bool(index % 2)
        for index, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(bool(index % 3))
        next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
        return model

    def test_after_every_call(self, case, images, snapshot):
        model, x = self.mixed(case), images(2)
        kept = x.clone()
        before = snapshot(model, x)
        adapter = TorchAdapter(model)
        adapter.layers(x)
        adapter.predict(x)
        for layer in case.layers:
            split = adapter.split(layer)
            split.features(x)
            with split.head(x) as tail:
                adapter.framework.value_and_grad(lambda z, tail=tail: (total(tail(z)), ()), tail.features)
        assert snapshot(model, x) == before
        assert torch.equal(x, kept)

    def test_after_an_exception_anywhere(self, case, images, snapshot):
        model, x = self.mixed(case), images(2)
        before = snapshot(model, x)

        class ExpectedError(Exception):
            pass

        adapter = TorchAdapter(model)
        with pytest.raises(ExpectedError), adapter.split(case.layers[-1]).head(x):
            raise ExpectedError
        assert snapshot(model, x) == before

        def failing(module, args):
            raise ExpectedError

        for module in model.modules():
            handle = module.register_forward_pre_hook(failing)
            split = adapter.split(case.layers[-1])
            for work in (
                lambda: adapter.predict(x),
                lambda: adapter.layers(x),
                lambda split=split: use(split, x),
            ):
                with suppress(ExpectedError):
                    work()
            handle.remove()
        assert snapshot(model, x) == before

    def test_after_a_tail_that_raises(self, images, snapshot):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).double()
        x = images(2)
        before = snapshot(model, x)

        def run(inputs):
            outputs = model(inputs)
            if outputs.shape[0] == 6:
                raise ZeroDivisionError
            return outputs

        split = TorchSplit(run, model[0])
        with split.head(x) as tail:
            tail(tail.features)
            with pytest.raises(ZeroDivisionError):
                tail(tail.features.repeat_interleave(3, 0))
        with pytest.raises(ZeroDivisionError), split.head(x) as tail:
            tail(tail.features.repeat_interleave(3, 0))
        assert snapshot(model, x) == before
        with split.head(x) as tail:
            assert tail(tail.features).shape == (2, 5)

    def test_no_graph_and_no_features_are_kept(self, case, images):
        model, x = case.make(), images(1)
        split = TorchAdapter(model).split(case.layers[0])
        kept = []
        with split.head(x) as tail:
            z = tail.features.repeat_interleave(3, 0).requires_grad_()
            output = tail(z)
            kept += [weakref.ref(t) for t in (z, tail.features, *tensors(output))]
            del z, output, tail
        gc.collect()
        assert [ref() for ref in kept] == [None] * len(kept)


def maps_held(shape):
    """How many tensors of a shape, each with memory of its own, Python holds."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.shape == shape]
    return len({tensor.untyped_storage().data_ptr() for tensor in found})


class TestWork:
    # What cannot be remembered runs again: windows of images, and what hides its tensors.
    AGAIN = frozenset({"table", "mix", "first.conv", "second.conv"})

    def test_the_head_runs_once_and_the_layers_after_it_in_every_pass(self, case, images, count_calls, cases):
        if case is cases["collecting"]:
            pytest.skip("what its forward keeps is kept only where all modules run")
        for layer in case.layers:
            if ":" in layer:
                continue
            model = case.make().eval()
            adapter = TorchAdapter(model)
            with_weights = {n for n, m in model.named_modules() if m._parameters and not m._modules}
            calls = count_calls(model)
            adapter.predict(images(1))
            in_all = dict(calls)
            calls.update(dict.fromkeys(calls, 0))
            split = adapter.split(layer)
            # The first time it is checked against the whole model.
            with split.head(images(1)):
                pass
            calls.update(dict.fromkeys(calls, 0))
            with split.head(images(1)) as tail:
                in_head = dict(calls)
                for _ in range(3):
                    tail(tail.features.repeat_interleave(4, 0))
            for name in with_weights - self.AGAIN:
                assert calls[name] == in_head[name] + 3 * (in_all[name] - in_head[name]), (layer, name)

    def test_features_run_the_head_and_nothing_else(self, images, count_calls, cases):
        model = cases["unet"].make()
        calls = count_calls(model)
        split = TorchAdapter(model).split("bottom")
        split.features(images(1))
        calls.update(dict.fromkeys(calls, 0))
        split.features(images(4))
        assert {name for name, count in calls.items() if count} == {
            *("", "down1", "down1.0", "down1.1", "down2", "down2.0", "down2.1", "bottom")
        }

    def test_parameters_get_no_gradient_and_save_nothing(self, case, images):
        model = case.make()
        split = TorchAdapter(model).split(case.layers[0])
        with split.head(images(1)) as tail:
            z = tail.features.clone().requires_grad_()
            output = total(tail(z))
            seen, todo = set(), [output.grad_fn]
            while todo:
                node = todo.pop()
                if node is not None and node not in seen:
                    seen.add(node)
                    todo += [following for following, _ in node.next_functions]
            leaves = {node.variable for node in seen if hasattr(node, "variable")}
            assert leaves == {z}

    def test_a_plain_sequential_keeps_no_outputs_of_its_head(self, images):
        model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)))
        x = images(2, torch.float32)
        split = TorchAdapter(model).split("4")
        before = maps_held(x.shape)
        with split.head(x):
            # The features, and the input of the passes.
            assert maps_held(x.shape) - before == 1


class TestCalls:
    def test_a_layer_that_runs_more_than_once_must_be_chosen(self, cases, images):
        adapter = TorchAdapter(cases["shared"].make())
        with pytest.raises(LayerError, match=r"'relu' runs 4 times .* call=0 to call=3"):
            adapter.split("relu").features(images(2))
        split = adapter.split("relu")
        with (
            pytest.raises(LayerError, match=r"'relu' runs 4 times .* call=0 to call=3"),
            split.head(images(2)) as tail,
        ):
            tail(tail.features)
        with pytest.raises(LayerError, match=r"runs 4 time.*no call=4"):
            adapter.split("relu:4").features(images(2))
        with pytest.raises(LayerError, match="no call=4"), adapter.split("relu:4").head(images(2)):
            pass

    def test_a_layer_that_never_runs_is_an_error(self, images):
        class Unused(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, x):
                return self.used(x)

        adapter = TorchAdapter(Unused().double())
        with pytest.raises(LayerError, match="'unused' does not run"):
            adapter.split("unused").features(images(1))
        with (
            pytest.raises(LayerError, match="'unused' does not run"),
            adapter.split("unused").head(images(1)),
        ):
            pass

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_a_layer_in_a_scripted_module_is_an_error_that_says_so(self, images):
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        model = nn.Sequential(nn.Conv2d(3, 3, 1), scripted, nn.Conv2d(4, 2, 1))
        adapter, x = TorchAdapter(model), images(2, torch.float32)
        with pytest.raises(LayerError, match=r"'1\.0' does not run .*scripted"):
            adapter.split("1.0").features(x)
        expected = model(x)
        for layer in ("0", "1"):
            split = adapter.split(layer)
            with split.head(x) as tail:
                torch.testing.assert_close(tail(tail.features), expected)

    def test_an_output_that_does_not_depend_on_the_layer_is_an_error(self, images):
        class Deaf(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

            def forward(self, x):
                return self.out(self.conv(x).detach())

        split = TorchAdapter(Deaf().double()).split("conv")
        with (
            pytest.raises(LayerError, match="does not depend on layer 'conv'"),
            split.head(images(1)) as tail,
        ):
            tail(tail.features.clone().requires_grad_())

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.Embedding(4, 4), None),
            (
                type("Count", (nn.Module,), {"forward": lambda self, x: x.long()})(),
                r"int64; a feature map is floating point",
            ),
            (type("Mean", (nn.Module,), {"forward": lambda self, x: x.mean((1, 2, 3))})(), r"shape \(2,\)"),
            (type("All", (nn.Module,), {"forward": lambda self, x: x.mean((0, 1))})(), r"shape \(6, 6\)"),
            (type("Nothing", (nn.Module,), {"forward": lambda self, x: None})(), "holds no tensor"),
        ],
    )
    def test_an_output_that_is_no_feature_map_is_an_error(self, layer, message, images):
        if message is None:
            model, x = layer, torch.arange(3)[:, None]
            assert TorchAdapter(model).split(model).features(x).shape == (3, 1, 4)
            return
        with pytest.raises(LayerError, match=message):
            TorchAdapter(layer).split(layer).features(images(2))

    def test_wrong_z_is_an_error(self, cases, images):
        split = TorchAdapter(cases["unet"].make()).split("bottom")
        with split.head(images(2)) as tail:
            with pytest.raises(InputError, match=r"z has the shape \(3, 6, 1, 1\).*\(n \* 2, 6, 1, 1\)"):
                tail(torch.zeros(3, 6, 1, 1))
            with pytest.raises(InputError, match="z has the shape"):
                tail(tail.features[:, :3])
        with pytest.raises(RuntimeError, match="inside of the context of its head"):
            tail(tail.features)


class TestInputs:
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 5)

        def forward(self, left, right, scale=1.0, flag=None):
            hidden = torch.tanh(self.a(left)) * scale
            hidden = hidden + self.b(right)
            return {"logits": self.out(hidden), "flag": flag}

    @pytest.mark.parametrize("kind", [tuple, list, dict])
    def test_several_inputs(self, kind):
        model = self.Two().double()
        left, right = torch.randn(2, 3).double(), torch.randn(2, 2).double()
        if kind is dict:
            inputs = {"left": left, "right": right, "scale": torch.tensor(2.0), "flag": "up"}
            expected = model(left, right, torch.tensor(2.0), "up")
        else:
            inputs = kind((left, right))
            expected = model(left, right)
        adapter = TorchAdapter(model)
        assert_close(adapter.predict(inputs), expected, kind.__name__)
        for layer in ("a", "b"):
            split = adapter.split(layer)
            with split.head(inputs) as tail:
                output = tail(tail.features.repeat_interleave(3, 0))
            torch.testing.assert_close(output["logits"], expected["logits"].repeat_interleave(3, 0))
            assert output["flag"] == expected["flag"]

    def test_inputs_without_images_are_an_error(self, cases):
        split = TorchAdapter(cases["unet"].make()).split("bottom")
        for inputs in ("text", {}, torch.tensor(1.0), torch.zeros(0, 3, 6, 6)):
            with pytest.raises(InputError, match="inputs"):
                split.features(inputs)

    def test_inference_mode_outside_does_not_matter(self, cases, images):
        model = cases["residual"].make()
        with torch.inference_mode():
            x = images(1)
            split = TorchAdapter(model).split("conv1")
            with split.head(x) as tail:
                _, _, gradient = TorchAdapter.framework.value_and_grad(
                    lambda z: (total(tail(z)), ()), tail.features
                )
            assert torch.is_inference_mode_enabled()
        assert gradient.abs().max() > 0


class TestWrappers:
    def test_compiled_and_parallel_models_are_looked_through(self, images):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
        x = images(2, torch.float32)
        expected = model(x)
        compiled_inside = nn.Sequential(model[0], torch.compile(model[1], backend="eager"), model[2])
        in_place = nn.Sequential(*model)
        in_place.compile(backend="eager")
        for wrapped in (
            torch.compile(model, backend="eager"),
            nn.DataParallel(model),
            nn.Sequential(nn.DataParallel(model)),
            compiled_inside,
            in_place,
        ):
            split = TorchAdapter(wrapped).split(model[0])
            with split.head(x) as tail:
                torch.testing.assert_close(tail(tail.features), expected)

    def test_a_closure_over_a_compiled_model(self, images):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
        compiled = torch.compile(model, backend="eager")
        x = images(2, torch.float32)
        compiled(x)

        @torch.compile(backend="eager")
        def closure(inputs):
            return compiled(inputs).square().mean()

        split = TorchSplit(closure, model[0])
        with split.head(x) as tail:
            torch.testing.assert_close(tail(tail.features), compiled(x).square().mean())

    def test_names_may_carry_the_wrappers(self, cases):
        model = cases["unet"].make()
        assert TorchAdapter(nn.DataParallel(model)).split("module.bottom").module is model.bottom
        assert TorchAdapter(torch.compile(model)).split("_orig_mod.bottom").module is model.bottom


def test_the_models_own_hooks_stay_in_effect(images):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 1)).double()
    handles = [layer.register_forward_hook(lambda module, args, output: output * 2) for layer in model]
    x = images(2)
    expected = model(x)
    split = TorchAdapter(model).split("1")
    with split.head(x) as tail:
        assert_close(tail(tail.features), expected, "hooks")
    assert len(handles) == 3


def test_several_models_in_one_closure(images, count_calls):
    """Every model that the closure runs is replaced, also one that first runs after the split."""
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).double()
    decoder = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 2, 3)).double()
    x, calls = images(2), count_calls(encoder)
    split = TorchSplit(lambda inputs: decoder(encoder(inputs)), encoder)
    with split.head(x):
        calls.update(dict.fromkeys(calls, 0))
    with split.head(x) as tail:
        first = tail(tail.features)
        assert torch.equal(tail(tail.features), first)
        assert decoder[1].weight.requires_grad
        assert decoder.training
    assert calls[""] == 1
    assert all(module.training for module in (encoder, decoder))
    assert decoder[1].weight.requires_grad


def test_code_that_catches_everything_does_not_catch_the_end_of_the_head(images):
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            try:
                return self.conv(x)
            except Exception:
                return x

    model = Careful().double()
    assert TorchAdapter(model).split("conv").features(images(2)).shape == (2, 2, 4, 4)


def test_other_threads_run_their_models_untouched(images, cases):
    model, x = cases["residual"].make().eval(), images(1)
    expected, found = model(x), []
    split = TorchAdapter(model).split("conv1")
    with split.head(x):
        thread = threading.Thread(target=lambda: found.append(model(x)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_explaining_in_two_threads_restores_the_model(images, cases):
    model, x = cases["residual"].make().train(), images(1)
    cut_off = threading.Event()

    def explain():
        split = TorchAdapter(model).split("conv1")
        with split.head(x) as tail:
            cut_off.wait(0.05)
            tail(tail.features)

    threads = [threading.Thread(target=explain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("transformer", "blocks.1", "channels_last"),
        ("transformer", "patch", "channels_first"),
        ("recurrent", "lstm", "channels_last"),
        ("recurrent_second", "norm", "channels_last"),
        ("volumes", "1", "channels_first"),
        ("volumes", "4", "channels_first"),
        ("unet", "join", "channels_first"),
    ],
)
def test_the_place_of_the_channels_follows_from_the_layers(cases, images, name, layer, expected):
    split = TorchAdapter(cases[name].make()).split(layer)
    split.features(images(2))
    assert split.data_format == expected


class TestAxisOfTheImages:
    """Where it cannot be told from the shapes of one pass: as many time steps, or windows, as images."""

    @pytest.mark.parametrize("layer", ["embed", "lstm", "norm"])
    @pytest.mark.parametrize("where", ["output", "input"])
    @pytest.mark.parametrize("first", [7, 5, 1], ids=lambda n: f"first {n}")
    def test_as_many_steps_as_images(self, cases, images, replacement, layer, where, first):
        model = cases["recurrent_second"].make().eval()
        x, other = images(7), images(7, seed=5)
        split = TorchSplit(model, model.get_submodule(layer), where=where)
        split.features(images(first, seed=1))
        found = split.features(other)
        for index in range(7):
            assert_close(found[index], split.features(other[index : index + 1])[0], "features")
        with split.head(x) as tail:
            assert_close(tail.features[3], split.features(x[3:4])[0], "head")
            output = tail(found.repeat_interleave(2, 0))
        with replacement[0](model, layer, found.repeat_interleave(2, 0), where):
            wanted = model(x.repeat_interleave(2, 0))
        assert_close(output, wanted, "tail")

    def test_a_tail_that_ends_at_such_a_layer(self, cases, images):
        model = cases["recurrent_second"].make().eval()
        split = TorchAdapter(model).split("embed", end_layer="lstm")
        split.features(images(2))
        with split.head(images(7)) as tail:
            together = tail(tail.features)
        for index in range(7):
            with split.head(images(7)[index : index + 1]) as tail:
                assert_close(tail(tail.features)[0], together[index], "tail")

    def test_a_single_step(self, images):
        """One image, one step, one feature: nothing but another pass can tell."""

        class Step(nn.Module):
            def __init__(self):
                super().__init__()
                self.scan, self.norm, self.out = nn.Linear(108, 1), nn.LayerNorm(1), nn.Linear(1, 5)

            def forward(self, x):
                return self.out(self.norm(self.scan(x.flatten(1)).unsqueeze(0)).mean(0))

        adapter = TorchAdapter(Step().double())
        split = adapter.split("norm")
        split.features(images(1))
        with split.head(images(1)) as tail:
            assert tail(tail.features.repeat_interleave(3, 0)).shape == (3, 5)

    def test_windows_as_many_as_images(self, cases, images):
        """Four windows of each of nine images, each of nine places: no axis is that of the images."""
        model = cases["windowed"].make().eval()
        adapter, x = TorchAdapter(model), images(9)
        with pytest.raises(LayerError, match=r"'mix' has the shape \(36, 9, 4\) for a batch of 9"):
            adapter.split("mix").features(x)
        split = adapter.split("norm")
        split.features(x)
        with torch.no_grad(), split.head(x) as tail:
            assert_close(tail(tail.features.repeat_interleave(2, 0)), model(x).repeat_interleave(2, 0), "")


class Look(nn.Module):
    """Notes how the maps that pass it lie in memory, for all copies of the one made last."""

    def __init__(self):
        super().__init__()
        type(self).seen = []

    def forward(self, x):
        self.seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x


class TestOrderInMemory:
    def model(self, last):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), Look(), nn.Conv2d(4, 4, 3), last, nn.Linear(16, 5))

    def run_tail(self, model, x):
        split = TorchAdapter(model).split("0")
        with split.head(x) as tail:
            for _ in range(3):
                z = tail.features.repeat_interleave(2, 0).requires_grad_()
                output = tail(z)
                (gradient,) = torch.autograd.grad(total(output), z)
        plain = tail.features.repeat_interleave(2, 0).requires_grad_()
        wanted = model[1:](plain)
        (wanted_gradient,) = torch.autograd.grad(total(wanted), plain)
        torch.testing.assert_close(output, wanted)
        torch.testing.assert_close(gradient, wanted_gradient)
        return model[1].seen

    def test_the_maps_lie_as_a_processor_likes_them(self, images):
        seen = self.run_tail(self.model(nn.Flatten()), images(2, torch.float32))
        # The first pass is that of the head.
        assert seen[-4:] == [True, True, True, False]

    @pytest.mark.parametrize("asks", ["view", "as_strided", "is_contiguous", "data_ptr"])
    def test_a_layer_that_asks_for_the_plain_order_gets_it(self, images, asks):
        class Flat(nn.Module):
            def forward(self, x):
                if asks == "view":
                    return x.view(len(x), -1)
                if asks == "as_strided":
                    return torch.as_strided(x, (len(x), 16), (16, 1))
                if asks == "is_contiguous" and not x.is_contiguous():
                    raise RuntimeError("x must be contiguous")
                if asks == "data_ptr":
                    x.data_ptr()
                return x.flatten(1)

        seen = self.run_tail(self.model(Flat()), images(2, torch.float32))
        # Tried once, and not again.
        assert seen.count(True) == 1
        assert seen[-4:] == [False] * 4

    @pytest.mark.parametrize("asks", ["nothing", "view", "as_strided"])
    def test_the_head_too_runs_in_that_order_unless_a_layer_asks(self, images, asks):
        class Middle(nn.Module):
            def forward(self, x):
                if asks == "view":
                    return x.view(len(x), -1).reshape(x.shape)
                if asks == "as_strided":
                    size = x[0].numel()
                    return torch.as_strided(x, (len(x), size), (size, 1)).reshape(x.shape)
                return x

        look, x = Look(), images(2, torch.float32)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), look, Middle(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
        wanted, kept = model[:4](x).detach(), x.clone()
        look.seen.clear()
        split = TorchAdapter(model).split("3")
        for _ in range(2):
            with split.head(x) as tail:
                torch.testing.assert_close(tail.features, wanted)
                # What is made of them is to lie as the tail takes it best.
                assert tail.features.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, kept)
        # After a whole pass in plain order, tried once, and not again where it is refused.
        assert look.seen == [False, *([True, True] if asks == "nothing" else [True, False, False])]

    def test_other_errors_are_the_models_own(self, images):
        class Failing(nn.Module):
            def forward(self, x):
                if torch.is_grad_enabled():
                    raise RuntimeError("no view of mine")
                return x.flatten(1)

        model = self.model(Failing())
        split = TorchAdapter(model).split("0")
        with (
            pytest.raises(RuntimeError, match="no view of mine"),
            split.head(images(2, torch.float32)) as tail,
        ):
            tail(tail.features)

    def test_double_precision_and_maps_with_channels_last_stay(self, images):
        seen = self.run_tail(self.model(nn.Flatten()).double(), images(2))
        assert seen[-4:] == [False] * 4
        look = Look()
        model = nn.Sequential(nn.Linear(6, 4), look, nn.Linear(4, 2))
        split = TorchAdapter(model).split("0")
        with split.head(images(2, torch.float32)) as tail:
            tail(tail.features)
        assert split.data_format == "channels_last"
        assert look.seen[-1] is False


def test_channels_last_memory_is_kept_in_the_tail(images):
    look = Look()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), look, nn.Conv2d(4, 2, 3)).double()
    model.to(memory_format=torch.channels_last)
    x = images(2).to(memory_format=torch.channels_last)
    split = TorchAdapter(model).split("0")
    with split.head(x) as tail:
        tail(tail.features.repeat_interleave(2, 0).contiguous())
    assert all(look.seen)


class TestOneRow:
    """PyTorch's own gradient of a normalisation of one row is wrong where that of its output is strided."""

    @pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nn.BatchNorm2d])
    @pytest.mark.parametrize("rewrites", [False, True])
    def test_the_gradient_is_right(self, norm, rewrites):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm, self.out = nn.Conv2d(3, 6, 3), norm(6), nn.Linear(6, 2)

            def forward(self, x):
                return self.out(self.norm(self.conv(x)).flatten(2).transpose(1, 2)[:, -1].tanh())

        torch.manual_seed(0)
        model = Model().double().eval()
        split = TorchAdapter(model, rewrites=rewrites).split("conv")
        x = torch.randn(1, 3, 10, 6, dtype=torch.float64)
        with split.head(x) as tail:
            z = tail.features.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(tail(z)[0, 1], z)
            step = 1e-6 * torch.randn_like(z)
            with torch.no_grad():
                difference = (tail(z + step) - tail(z - step))[0, 1] / 2
        torch.testing.assert_close((gradient * step).sum(), difference, rtol=1e-6, atol=0)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    with pytest.raises(LayerError, match=r"were made in torch\.inference_mode"):
        TorchAdapter(model).split("0")
