"""Graphs of operations split where it is hard: sizes, loops, branches, nested functions, odd batch axes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context
from tensorflow.python.framework.func_graph import FuncGraph

from iba_core import Explainer
from iba_core.errors import InputError, LayerError
from iba_tf import GraphModel, TensorFlowAdapter

v1 = tf.compat.v1


def flat_numpy(outputs):
    return [np.asarray(x) for x in tf.nest.flatten(outputs)]


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check_split(made, layer, inputs, copies=3, **options):
    """Head and tail are the model, for copies too, and the gradient is that of finite differences."""
    adapter = TensorFlowAdapter(made)
    expected = [np.repeat(x, copies, axis=0) for x in flat_numpy(adapter.predict(inputs))]
    split = adapter.split(layer, **options)

    with split.head(inputs) as tail:

        @tf.function(autograph=False)
        def value_and_grad(z, carry):
            def function(z):
                return sum(tf.reduce_sum(tf.square(x)) for x in tf.nest.flatten(tail.run(z, carry))), ()

            return adapter.framework.value_and_grad(function, z)

        z = tf.repeat(tail.features, copies, axis=0)
        for found, wanted in zip(flat_numpy(tail(z)), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(tail.features, split.features(inputs))
        shift = 1e-3 * drawn(*z.shape, seed=1)
        _, _, gradient = value_and_grad(z, tail.carry)
        higher, *_ = value_and_grad(z + shift, tail.carry)
        lower, *_ = value_and_grad(z - shift, tail.carry)
    assert np.abs(gradient).max() > 0
    scale = np.linalg.norm(gradient) * np.linalg.norm(shift)
    np.testing.assert_allclose((higher - lower) / 2, np.sum(gradient * shift), atol=0.05 * scale)
    return split


@keras.saving.register_keras_serializable("iba_tests")
class Segmenter(keras.Model):
    """Sizes of the input return at the end; a nested function calls layers; the output is a dict."""

    def __init__(self):
        super().__init__()
        self.down = layers.Conv2D(4, 3, strides=2, padding="same", name="down")
        self.mixers = [layers.Dense(4, activation="tanh", name=f"mixer{index}") for index in range(2)]
        self.classes = layers.Conv2D(2, 1, name="classes")

    @tf.function
    def mixed(self, x):
        for mixer in self.mixers:
            x = mixer(x)
        return x

    def call(self, image):
        x = self.mixed(self.down(image))
        x = self.classes(x) if image.shape[-1] == 3 else x
        x = tf.image.resize(x, tf.shape(image)[1:3])
        return {"map": x, "flat": tf.reshape(x, (tf.shape(image)[0], -1))}


def test_sizes_of_the_head_fit_the_batch_of_the_tail():
    model = Segmenter()
    x = drawn(2, 9, 8, 3)
    model(x)  # the nested function has a trace of its own by now
    made = GraphModel.from_keras(model)
    assert [info.name for info in made.layers(x)] == ["down", "mixer0", "mixer1", "classes"]
    for layer in ("down", "mixer1", "classes"):
        split = check_split(made, layer, x)
    other = drawn(3, 10, 8, 3)  # features of the same shape, but the output is larger
    with split.head(x) as tail, split.head(other) as other_tail:
        assert tail.features.shape[1:] == other_tail.features.shape[1:]
        found = other_tail(other_tail.features)
        np.testing.assert_allclose(found["map"], model(other)["map"], rtol=1e-4, atol=1e-5)
    assert flat_numpy(made.predict(other))[0].shape == (3, 160)


def test_functions_of_the_user_keep_no_trace_of_ours():
    model = Segmenter()
    x = drawn(2, 9, 8, 3)
    model(x)
    GraphModel.from_keras(model).layers(x)
    graph = model.mixed.get_concrete_function(tf.TensorSpec((2, 5, 4, 4))).graph
    assert not [operation.name for operation in graph.get_operations() if "iba" in operation.name]


def test_recurrent_layers_and_tuples():
    first, second = keras.Input((5, 4), name="first"), keras.Input((3,), name="second")
    x = layers.Dense(4, activation="tanh", name="before")(first)
    sequence, *states = layers.LSTM(4, return_sequences=True, return_state=True, name="lstm")(x)
    joined = layers.Concatenate(name="join")([*states, layers.Dense(2, name="embed")(second)])
    flat = layers.Flatten(name="flat")(sequence)
    model = keras.Model(
        [first, second], [layers.Dense(3, name="one")(joined), layers.Dense(2, name="two")(flat)]
    )
    inputs = {"first": drawn(2, 5, 4), "second": drawn(2, 3)}
    made = GraphModel.from_keras(model)
    infos = {info.name: info.output_shape for info in made.layers(inputs)}
    assert (infos["before"], infos["lstm"], infos["join"]) == ((5, 4), None, (10,))
    values = model.get_layer("lstm")(model.get_layer("before")(inputs["first"]))
    for index, layer in enumerate(("lstm", "lstm[1]", "lstm[2]")):
        split = check_split(made, layer, inputs)
        assert split.layer_name == layer
        np.testing.assert_allclose(split.features(inputs), values[index], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            TensorFlowAdapter(model).split(layer).features(inputs), values[index], rtol=1e-5
        )
    check_split(made, "before", inputs)
    for adapter in (TensorFlowAdapter(made), TensorFlowAdapter(model)):
        with pytest.raises(LayerError, match=r"'lstm' has 3 result"):
            adapter.split("lstm[3]")


def test_images_may_follow_one_another_along_any_axis():
    """Features of a layer that sees time steps as images, or time before images, are those of an image."""

    class Folded(tf.Module):
        def __call__(self, x):
            frames = tf.tanh(tf.reshape(x, (-1, 4)), name="frames")
            by_time = tf.transpose(tf.reshape(frames, (-1, x.shape[1], 4)), (1, 0, 2), name="time")
            return tf.reduce_sum(by_time[-1] * by_time[0] + frames[: tf.shape(x)[0]] * 0.0, axis=-1)

    x = drawn(2, 3, 4)
    made = GraphModel.of(Folded())
    last = {"data_format": "channels_last"}
    assert check_split(made, "frames", x, **last).features(x).shape == (2, 3, 4)
    assert check_split(made, "time", x, **last).features(x).shape == (2, 3, 4)
    np.testing.assert_allclose(made.split("time", **last).features(x), np.tanh(x), rtol=1e-6)


def test_what_mixes_the_images_is_refused():
    class Similarities(tf.Module):
        def __call__(self, x):
            x = tf.tanh(x, name="feature")
            return tf.reduce_sum(tf.matmul(x, x, transpose_b=True, name="similar"), axis=-1)

    made = GraphModel.of(Similarities())
    with pytest.raises(
        LayerError, match=r"'similar:0' has shape \(1, 1\) for one image and \(2, 2\) for two"
    ):
        made.split("similar").features(drawn(3, 4))


def test_images_that_their_values_drop_are_refused():
    class Positive(tf.Module):
        def __call__(self, x):
            x = tf.tanh(tf.boolean_mask(x, x[:, 0] > 0), name="feature")
            return tf.square(x)

    split = GraphModel.of(Positive()).split("feature")
    x = np.array([[1, 2], [3, 4], [-5, 6]], np.float32)
    assert split.features(x[:2]).shape == (2, 2)
    with pytest.raises(LayerError, match="'feature:0' has 2 rows for 3 images"):
        split.features(x)
    with pytest.raises(LayerError, match="'feature:0' has 2 rows for 3 images"), split.head(x):
        pass


def test_a_batch_of_fixed_size_is_named():
    graph = tf.Graph()
    with graph.as_default():
        x = tf.nn.relu(v1.placeholder(tf.float32, (1, 4, 3), name="x"), name="feature")
        tf.reduce_sum(tf.reshape(x, (1, 12)), axis=-1, name="out")
    split = GraphModel.from_graph_def(graph.as_graph_def()).split("feature", data_format="channels_last")
    with pytest.raises(LayerError, match="no image has an output of its own"), split.head(drawn(1, 4, 3)):
        pass


@pytest.mark.parametrize("new_control_flow", [True, False])
def test_branches_of_both_versions_are_split_around(new_control_flow):
    graph = tf.Graph()
    before = v1.control_flow_v2_enabled()
    (v1.enable_control_flow_v2 if new_control_flow else v1.disable_control_flow_v2)()
    try:
        with graph.as_default():
            x = v1.placeholder(tf.float32, (None, 4), name="x")
            training = v1.placeholder_with_default(False, (), name="training")
            x = side = tf.tanh(x, name="feature")
            x = tf.cond(training, lambda: x * 0.0, lambda: tf.sin(x) + 1.0)
            x = tf.identity(x, name="later")
            tf.cond(training, lambda: x, lambda: x * tf.exp(side), name="last")
            tf.identity(graph.get_operations()[-1].outputs[0], name="out")
    finally:
        (v1.enable_control_flow_v2 if before else v1.disable_control_flow_v2)()
    made = GraphModel.from_session(graph, v1.Session(graph=graph), outputs="out")
    x = drawn(2, 4)
    expected = (np.sin(np.tanh(x)) + 1) * np.exp(np.tanh(x))
    np.testing.assert_allclose(made.predict(x), expected, rtol=1e-5)
    np.testing.assert_array_equal(made.predict({"x": x, "training": True}), np.zeros((2, 4)))
    for layer in ("feature", "later"):
        check_split(made, layer, x)


def test_a_loop_of_tensorflow_1_is_refused():
    graph = tf.Graph()
    v1.disable_control_flow_v2()
    try:
        with graph.as_default():
            x = v1.placeholder(tf.float32, (None, 4), name="x")
            tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.sin(x)), (0, x), name="loop")
            last = graph.get_operations()[-1].outputs[0]
    finally:
        v1.enable_control_flow_v2()
    with pytest.raises(InputError, match=r"a loop of TensorFlow 1, 'loop/\w+', .*enable_control_flow_v2"):
        GraphModel.from_session(graph, v1.Session(graph=graph), outputs=last)


def test_code_may_branch_on_tensors():
    class Branching(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(2.0)

        def __call__(self, x):
            x = tf.tanh(x, name="feature")
            if tf.reduce_sum(x) > 1e6:
                x = x * 0.0
            for _ in tf.range(3):
                x = x * self.scale
            return x

    made = GraphModel.of(Branching())
    check_split(made, "feature", drawn(2, 4))
    np.testing.assert_allclose(made.predict(drawn(2, 4)), 8 * np.tanh(drawn(2, 4)), rtol=1e-6)


@pytest.mark.parametrize(("data_format", "shape"), [("NCHW", (None, 3, 6, 5)), ("NHWC", (None, 6, 5, 3))])
def test_the_data_format_is_that_of_the_nearest_operations(data_format, shape):
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, shape, name="image")
        x = tf.nn.relu(x, name="before")
        x = tf.nn.bias_add(x, tf.ones(3), data_format=data_format, name="bias")
        x = tf.tanh(x, name="after")
        x = tf.transpose(x, (0, 2, 3, 1) if data_format == "NCHW" else (0, 3, 1, 2), name="turned")
        tf.reduce_sum(x, (1, 2) if data_format == "NCHW" else (2, 3), name="out")
    made = GraphModel.from_graph_def(graph.as_graph_def())
    here = "channels_first" if data_format == "NCHW" else "channels_last"
    other = "channels_last" if data_format == "NCHW" else "channels_first"
    for layer, expected in (("before", here), ("after", here), ("turned", other)):
        split = made.split(layer)
        assert (split.data_format, split.input_format) == (expected, here)
    assert made.split("out").data_format == "channels_last"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_features_of_low_precision_have_a_bottleneck_in_float32(policy):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, dtype=policy, name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="logits", dtype=policy)(layers.Flatten(dtype=policy)(x)))
    made = GraphModel.from_keras(model)
    explainer = Explainer(made, layer="conv").fit([drawn(8, 6, 6, 3)], progbar=False)
    assert made.split("conv").features(drawn(1, 6, 6, 3)).dtype == policy.removeprefix("mixed_")
    attribution = explainer.explain(drawn(2, 6, 6, 3), 1, seed=0, steps=2, samples=2)
    assert attribution.capacity.dtype == np.float32
    wanted = Explainer(model, layer="conv", estimator=explainer.estimator)
    expected = wanted.explain(drawn(2, 6, 6, 3), 1, seed=0, steps=2, samples=2)
    np.testing.assert_allclose(attribution.capacity, expected.capacity, rtol=1e-2, atol=1e-3)


def small():
    # Of other weights, logits of some image may by chance be a distribution, which is another loss.
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.Conv2D(6, 3, activation="relu", name="second"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="logits"),
        ]
    )


def test_the_tail_may_end_at_a_layer():
    model = small()
    made, x = GraphModel.from_keras(model), drawn(2, 8, 8, 3)
    split = made.split("first", end_layer="second")
    with split.head(x) as tail:
        found = tail(tf.repeat(tail.features, 2, axis=0))
    wanted = model.get_layer("second")(model.get_layer("first")(x))
    np.testing.assert_allclose(found, np.repeat(wanted, 2, axis=0), rtol=1e-5, atol=1e-6)
    with pytest.raises(LayerError, match="layer 'first' does not depend on layer 'second'"):
        made.split("second", end_layer="first")
    with pytest.raises(LayerError, match=r"runs no layer 'secnd'; the closest name is 'second'"):
        made.split("first", end_layer="secnd")


def operations_that_run(function):
    """Types of all operations that TensorFlow runs for a call, after its own optimisations."""
    context.context().enable_graph_collection()
    context.context().enable_run_metadata()
    try:
        function()
        collected = context.context().export_run_metadata()
    finally:
        context.context().disable_run_metadata()
        context.context().disable_graph_collection()
    graphs = [graph for part in collected.function_graphs for graph in part.partition_graphs]
    graphs += collected.partition_graphs
    return {node.op for graph in graphs for node in graph.node}


@pytest.mark.parametrize("kind", ["layers", "operations"])
class TestExplaining:
    @pytest.fixture
    def explained(self, kind):
        """An adapter and an explainer that has explained one image."""
        model = small()
        adapter = TensorFlowAdapter(model if kind == "layers" else GraphModel.from_keras(model))
        explainer = Explainer(adapter, layer="first").fit([drawn(8, 8, 8, 3)], progbar=False)
        explainer.explain(drawn(1, 8, 8, 3), 1, seed=0, steps=2, samples=2)
        return adapter, explainer

    def test_gradients_of_weights_are_not_computed(self, explained):
        _, explainer = explained
        x = drawn(1, 8, 8, 3)
        found = operations_that_run(lambda: explainer.explain(x, 1, seed=0, steps=2, samples=3))
        assert any("BackpropInput" in name for name in found)
        assert not any("BackpropFilter" in name for name in found)

    def test_a_hundred_images_of_a_shape_take_one_trace_and_leave_nothing(self, explained, monkeypatch):
        _, explainer = explained
        traces = []
        made = FuncGraph.__init__

        def counting(graph, name, *args, **kwargs):
            traces.append(name)
            made(graph, name, *args, **kwargs)

        images = drawn(100, 8, 8, 3)

        def explain(x):
            explainer.explain(x[None], 1, seed=0, steps=1, samples=2)

        def objects():
            gc.collect()
            things = gc.get_objects()
            return sum(isinstance(thing, FuncGraph) for thing in things), len(things)

        explain(images[0])
        graphs, before = objects()
        monkeypatch.setattr(FuncGraph, "__init__", counting)
        for image in images:
            explain(image)
        after = objects()
        assert traces == []
        assert after[0] <= graphs  # other tests may leave some that are collected now
        assert after[1] - before < 100
        assert not v1.get_default_graph().get_operations()

    def test_steps_compile_with_xla(self, explained):
        adapter, explainer = explained
        with_xla = Explainer(adapter, layer="first", estimator=explainer.estimator, compile=True)
        found, expected = (e.explain(drawn(1, 8, 8, 3), 1, seed=0, steps=2) for e in (with_xla, explainer))
        np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-4, atol=1e-5)


def test_the_original_is_left_alone():
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        weight = v1.get_variable("weight", (4, 4), use_resource=False)
        counter = v1.get_variable("counter", (), use_resource=True)
        with tf.control_dependencies([counter.assign_add(1.0)]):
            x = tf.tanh(tf.matmul(x, weight), name="feature")
        out = tf.matmul(x, weight, name="out")
        session = v1.Session(graph=graph)
        session.run(v1.global_variables_initializer())
    graph.finalize()
    before = graph.as_graph_def(), session.run([weight, counter])
    made = GraphModel.from_session(graph, session, outputs=out)
    explainer = Explainer(made, layer="feature").fit([drawn(8, 4)], progbar=False)
    explainer.explain(drawn(2, 4), lambda outputs: outputs[:, 0], steps=2, samples=2)
    assert graph.as_graph_def() == before[0]
    for found, wanted in zip(session.run([weight, counter]), before[1], strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert set(made.variables) == {"weight"}


SCRIPT = """
import sys
import numpy as np
import tensorflow as tf
from iba_core import Explainer
from iba_tf import GraphModel

v1 = tf.compat.v1
v1.disable_v2_behavior() if sys.argv[1] == "disable_v2_behavior" else v1.disable_eager_execution()
x = v1.placeholder(tf.float32, (None, 8, 8, 3), name="image")
training = v1.placeholder_with_default(False, (), name="is_training")
rng = np.random.default_rng(0)
first, second = (
    v1.get_variable(name, initializer=rng.normal(0, 0.5, shape).astype(np.float32))
    for name, shape in (("first", (3, 3, 3, 4)), ("second", (256, 5)))
)
x = tf.nn.relu(tf.nn.conv2d(x, first, 1, "SAME"), name="conv/Relu")
x = v1.cond(training, lambda: x * 2.0, lambda: tf.identity(x))
out = tf.matmul(tf.reshape(x, (tf.shape(x)[0], 256)), second, name="logits")
session = v1.Session()
session.run(v1.global_variables_initializer())
operations = len(v1.get_default_graph().get_operations())
made = GraphModel.from_session(v1.get_default_graph(), session, outputs=out)
images = np.random.default_rng(1).normal(size=(6, 8, 8, 3)).astype(np.float32)
explainer = Explainer(made, layer="conv").fit([images], progbar=False)
found = explainer.explain(images[:2], 1, seed=0, steps=3, samples=3)
np.testing.assert_allclose(
    explainer.predict(images), session.run(out, {"image:0": images}), rtol=1e-4, atol=1e-5
)
assert len(v1.get_default_graph().get_operations()) == operations
assert not tf.executing_eagerly()
assert (type(tf.TensorShape([1])[0]) is int) == (sys.argv[1] != "disable_v2_behavior")
np.save(sys.argv[2], found.capacity)
"""


@pytest.mark.parametrize("switch", ["disable_eager_execution", "disable_v2_behavior"])
def test_programs_of_tensorflow_1_are_explained_as_they_stand(switch, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), switch, str(tmp_path / "found.npy")],
        env=dict(os.environ),
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    rng = np.random.default_rng(0)
    first, second = (tf.constant(rng.normal(0, 0.5, s).astype(np.float32)) for s in ((3, 3, 3, 4), (256, 5)))

    def network(x):
        x = tf.nn.relu(tf.nn.conv2d(x, first, 1, "SAME"), name="feature")
        return tf.matmul(tf.reshape(x, (-1, 256)), second)

    images = drawn(6, 8, 8, 3, seed=1)
    explainer = Explainer(tf.function(network), layer="feature").fit([images], progbar=False)
    expected = explainer.explain(images[:2], 1, seed=0, steps=3, samples=3)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected.capacity, rtol=1e-4, atol=1e-5)
