"""One small network in every form that TensorFlow has for networks: the maps are the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from iba_core import Explainer
from iba_core.errors import InputError, LayerError, StateError
from iba_tf import GraphModel, TensorFlowAdapter

v1 = tf.compat.v1
tf_keras = pytest.importorskip("tf_keras")

SPEC = tf.TensorSpec((None, 8, 8, 3), name="image")


def network(framework):
    """A network with a skip connection around its middle, by Keras 3 or Keras 2."""
    layers = framework.layers
    inputs = framework.Input((8, 8, 3), name="image")
    x = skip = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.Add(name="add")([skip, x])
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    return framework.Model(inputs, layers.Dense(5, name="logits")(x), name="net")


class Subclassed(keras.Model):
    def __init__(self, layers):
        super().__init__()
        self.stem, self.norm, self.conv, self.add, self.pool, self.flatten, self.logits = layers

    def call(self, image, training=False):
        skip = self.stem(image)
        x = self.conv(self.norm(skip, training=training))
        return self.logits(self.flatten(self.pool(self.add([skip, x]))))


class Module(tf.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    @tf.function(input_signature=[SPEC])
    def __call__(self, image):
        return self.model(image, training=False)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    shapes = [weight.shape for weight in network(keras).weights]
    drawn = [rng.normal(0, 0.5, shape).astype(np.float32) for shape in shapes]
    drawn[5] = np.abs(drawn[5]) + 0.5  # the variance
    return drawn


@pytest.fixture(scope="module")
def model(weights):
    model = network(keras)
    model.set_weights(weights)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def v1_session(weights):
    """A graph of TensorFlow 1, with variables of both kinds, and its session."""
    graph = tf.Graph()
    with graph.as_default():
        image = v1.placeholder(tf.float32, (None, 8, 8, 3), name="image")
        training = v1.placeholder_with_default(False, (), name="is_training")
        numbers = iter(weights)

        def variable(name, use_resource):
            initial = v1.constant_initializer(value := next(numbers))
            return v1.get_variable(name, value.shape, initializer=initial, use_resource=use_resource)

        def convolution(x, name):
            kernel, bias = variable(f"{name}/kernel", False), variable(f"{name}/bias", True)
            with tf.name_scope(f"{name}/"):
                return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias), name="Relu")

        skip = convolution(image, "stem")
        gamma, beta, mean, variance = (variable(f"norm/{i}", bool(i % 2)) for i in range(4))
        x = tf.nn.batch_normalization(skip, mean, variance, beta, gamma, 1e-3)
        x = tf.cond(training, lambda: tf.nn.dropout(x, 0.5), lambda: tf.identity(x))
        x = tf.nn.max_pool2d(convolution(x, "conv") + skip, 2, 2, "VALID")
        x = tf.reshape(x, (tf.shape(x)[0], 4 * 4 * 4))
        x = tf.matmul(x, variable("logits/kernel", False)) + variable("logits/bias", True)
        tf.identity(x, name="logits/out")
        session = v1.Session(graph=graph)
        session.run(v1.global_variables_initializer())
    return graph, session


def subclassed(model, tmp_path, v1_session):
    built = Subclassed(model.layers[1:])
    built(np.zeros((1, 8, 8, 3)))
    return built, "conv"


def function(model, tmp_path, v1_session):
    return tf.function(lambda image: model(image, training=False)), "conv"


def concrete_function(model, tmp_path, v1_session):
    return function(model, tmp_path, v1_session)[0].get_concrete_function(SPEC), "net_1/conv_1"


def module(model, tmp_path, v1_session):
    return Module(model), "conv"


def legacy_keras(model, tmp_path, v1_session):
    legacy = network(tf_keras)
    legacy.set_weights(model.get_weights())
    return legacy, "conv"


def exported(model, tmp_path, v1_session):
    model.export(tmp_path / "saved", verbose=False)
    return GraphModel.from_saved_model(tmp_path / "saved"), "net_1/conv_1/Relu"


def saved_model(model, tmp_path, v1_session):
    tf.saved_model.save(Module(model), tmp_path / "saved")
    return GraphModel.from_saved_model(tmp_path / "saved", signature="serving_default"), "net_1/conv_1"


def legacy_saved_model(model, tmp_path, v1_session):
    legacy_keras(model, tmp_path, v1_session)[0].save(tmp_path / "saved", save_format="tf")
    return GraphModel.from_saved_model(tmp_path / "saved"), "net/conv/Relu:0"


def frozen(model, tmp_path, v1_session):
    graph_def = frozen_graph_def(model)
    (tmp_path / "frozen.pb").write_bytes(graph_def.SerializeToString())
    return GraphModel.from_graph_def(tmp_path / "frozen.pb"), "net_1/conv_1/Relu"


def session(model, tmp_path, v1_session):
    return GraphModel.from_session(*v1_session, outputs="logits/out"), "conv/Relu"


def v1_saved_model(model, tmp_path, v1_session):
    graph, session = v1_session
    inputs, outputs = (graph.get_tensor_by_name(name) for name in ("image:0", "logits/out:0"))
    with graph.as_default():
        signature = v1.saved_model.predict_signature_def({"picture": inputs}, {"scores": outputs})
        builder = v1.saved_model.Builder(str(tmp_path / "saved"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
    builder.save()
    return GraphModel.from_saved_model(tmp_path / "saved"), "conv/Relu"


def v1_frozen(model, tmp_path, v1_session):
    graph, session = v1_session
    graph_def = graph.as_graph_def()
    return v1.graph_util.convert_variables_to_constants(session, graph_def, ["logits/out"]), "conv"


def frozen_graph_def(model):
    concrete = tf.function(lambda image: model(image, training=False)).get_concrete_function(SPEC)
    return convert_variables_to_constants_v2(concrete).graph.as_graph_def()


FORMS = [
    subclassed,
    function,
    concrete_function,
    module,
    legacy_keras,
    exported,
    saved_model,
    legacy_saved_model,
    frozen,
    session,
    v1_saved_model,
    v1_frozen,
]


@pytest.fixture(scope="module")
def explained(model, images):
    """The map of the functional Keras 3 model."""
    return explain(model, "conv", images)


def explain(model, layer, images):
    explainer = Explainer(model, layer=layer).fit([images], progbar=False)
    return explainer.explain(images[:2], target=1, seed=0, steps=3, samples=3)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_of_a_network_has_the_same_maps(form, model, images, explained, tmp_path, v1_session):
    built, layer = form(model, tmp_path, v1_session)
    np.testing.assert_allclose(
        TensorFlowAdapter(built).predict(images), model(images, training=False), rtol=1e-5, atol=1e-5
    )
    found = explain(built, layer, images)
    np.testing.assert_allclose(found.capacity, explained.capacity, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.total_bits, explained.total_bits, rtol=1e-5)
    np.testing.assert_allclose(found.model_losses, explained.model_losses, rtol=1e-5, atol=1e-5)
    assert found.data_format == "channels_last"


def load(graph, session, variables, values):
    with graph.as_default():
        for variable, value in zip(variables, values, strict=True):
            variable.load(value, session)


class TestVariables:
    def test_a_session_is_read_when_the_model_is_made_and_when_it_is_told(self, v1_session, images):
        graph, session = v1_session
        made = GraphModel.from_session(graph, session, outputs="logits/out")
        names = {"stem/kernel", "stem/bias", "conv/kernel", "conv/bias", "logits/kernel", "logits/bias"}
        assert set(made.variables) == names | {f"norm/{index}" for index in range(4)}
        before = made.predict(images).numpy()
        with graph.as_default():
            kernel, bias = (v for v in v1.global_variables() if v.op.name in ("stem/kernel", "stem/bias"))
        saved = session.run([kernel, bias])
        try:
            load(graph, session, (kernel, bias), [2 * value + 1 for value in saved])
            np.testing.assert_array_equal(made.predict(images), before)
            assert set(made.changed_variables()) == {"stem/kernel", "stem/bias"}
            made.update_variables()
            assert made.changed_variables() == []
            np.testing.assert_allclose(
                made.predict(images), session.run("logits/out:0", {"image:0": images}), rtol=1e-5
            )
            assert not np.allclose(made.predict(images), before)
        finally:
            load(graph, session, (kernel, bias), saved)

    @pytest.mark.parametrize("form", [function, subclassed, legacy_keras], ids=lambda form: form.__name__)
    def test_live_models_are_read_when_they_run_and_copies_are_not(self, form, weights, images, tmp_path):
        model = network(keras)
        model.set_weights(weights)
        live, layer = form(model, tmp_path, None)
        made = GraphModel.of(live)
        split = made.split(layer)
        before = made.predict(images).numpy()
        copy = made.copy()
        original = live if form is legacy_keras else model
        original.set_weights([2 * weight for weight in original.get_weights()])
        expected = original(images, training=False)
        np.testing.assert_allclose(made.predict(images), expected, rtol=1e-4)
        with split.head(images) as tail:
            np.testing.assert_allclose(tail(tail.features), expected, rtol=1e-4)
        assert made.changed_variables() == []
        np.testing.assert_allclose(copy.predict(images), before, rtol=1e-5)
        assert len(copy.changed_variables()) == 10
        copy.update_variables()
        assert copy.changed_variables() == []
        np.testing.assert_allclose(copy.predict(images), expected, rtol=1e-4)
        assert not {id(v) for v in copy.variables.values()} & {id(v) for v in made.variables.values()}

    def test_variables_of_keras_have_the_names_that_keras_gives(self, model):
        named = GraphModel.from_keras(model).variables
        assert set(named) == {weight.path for weight in model.weights}

    def test_a_variable_without_a_value_is_named(self):
        graph = tf.Graph()
        with graph.as_default():
            x = v1.placeholder(tf.float32, (None, 2), name="x")
            out = x * v1.get_variable("scale", (2,), use_resource=False)
        with pytest.raises(InputError, match=r"no value in the session.*scale"):
            GraphModel.from_session(graph, v1.Session(graph=graph), outputs=out)


class TestInputs:
    @pytest.fixture(scope="class")
    @staticmethod
    def graph():
        graph = tf.Graph()
        with graph.as_default():
            first = v1.placeholder(tf.float32, (None, 3), name="first")
            second = v1.placeholder(tf.int32, (None, 3), name="second")
            rate = v1.placeholder(tf.float32, (), name="rate")
            offset = v1.placeholder_with_default(tf.constant(1.0) + 1.0, (), name="offset")
            x = tf.identity(tf.tanh(first) * rate, name="scaled")
            v1.placeholder(tf.float32, (None,), name="unused")
            tf.identity(x + tf.cast(second, tf.float32) + offset, name="sum")
            tf.reduce_sum(x, 1, name="total")
        return graph

    @pytest.fixture
    def made(self, graph):
        outputs = {"sum": "sum:0", "total": graph.get_operation_by_name("total")}
        return GraphModel.from_session(
            graph, v1.Session(graph=graph), outputs=outputs, defaults={"rate": 3.0}
        )

    first, second = np.full((2, 3), 0.5), np.arange(6).reshape(2, 3)

    def test_inputs_come_by_name_by_placeholder_or_in_order(self, made, graph):
        expected = np.tanh(0.5) * 3 + self.second + 2
        assert made.input_names == ["first", "second", "rate", "offset"]
        placeholder = graph.get_tensor_by_name("first:0")
        for inputs in (
            (self.first, self.second),
            {"first": self.first, "second:0": self.second},
            {placeholder: self.first, "second": self.second},
        ):
            found = made.predict(inputs)
            np.testing.assert_allclose(found["sum"], expected, rtol=1e-6)
            np.testing.assert_allclose(found["total"], np.full(2, 9 * np.tanh(0.5)), rtol=1e-6)
        named = {"first": self.first, "second": self.second, "rate": 1.0, "offset": 0.0}
        np.testing.assert_allclose(made.predict(named)["sum"], np.tanh(0.5) + self.second, rtol=1e-6)

    def test_a_scalar_input_reaches_the_tail(self, made):
        split = made.split("scaled")
        inputs = {"second": self.second, "first": self.first, "offset": 5.0}
        assert list(TensorFlowAdapter(made).to_inputs({"offset": 5.0, "first": self.first})) == [
            "first",
            "offset",
        ]
        with split.head(inputs) as tail:
            assert all(x.shape[0] == 2 for x in tail.carry)
            found = tail(tf.repeat(tail.features, 2, axis=0))
        expected = np.repeat(np.tanh(0.5) * 3 + self.second + 5, 2, axis=0)
        np.testing.assert_allclose(found["sum"], expected, rtol=1e-6)

    def test_features_do_without_the_inputs_that_they_do_not_depend_on(self, made):
        np.testing.assert_allclose(
            made.split("scaled").features({"first": self.first}), 3 * np.tanh(self.first), rtol=1e-6
        )
        with pytest.raises(InputError, match=r"given for \['second'\]"):
            made.split("scaled").features({"second": self.second})

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            (first, r"one input is given; the model takes 2: \['first', 'second'\]"),
            ({"first": first}, r"given for \['first'\]; the model takes \['first', 'second', 'rate'"),
            ({"frist": first, "second": second}, r"given for \['frist', 'second'\]"),
            ((first[:, :2], second), r"'first' has shape \(2, 2\); the model takes \(batch, 3\)"),
            ({"first": first, "second": second, "rate": first}, "'rate' has shape .* takes a single value"),
        ],
    )
    def test_wrong_inputs_are_named(self, made, inputs, message):
        with pytest.raises(InputError, match=message):
            TensorFlowAdapter(made).predict(inputs)

    def test_inputs_of_a_graph_are_chosen_and_named(self, graph):
        session = v1.Session(graph=graph)
        made = GraphModel.from_session(
            graph, session, outputs="total", inputs={"image": "first", "gain": "rate"}
        )
        assert made.input_names == ["image", "gain"]
        np.testing.assert_allclose(
            made.predict({"image": self.first, "gain": 1.0}), 3 * np.tanh([0.5, 0.5]), rtol=1e-6
        )
        with pytest.raises(InputError, match="leaves out the placeholder 'rate'"):
            GraphModel.from_session(graph, session, outputs="total", inputs="first")
        with pytest.raises(InputError, match=r"no operation 'frist'; the closest names are 'first'"):
            GraphModel.from_session(graph, session, outputs="total", inputs="frist")
        with pytest.raises(InputError, match=r"no operation 'totale'; the closest names are 'total'"):
            GraphModel.from_session(graph, session, outputs="totale")
        with pytest.raises(InputError, match="depend on no placeholder"):
            GraphModel.from_graph_def(graph.as_graph_def(), outputs="Const")


class TestNames:
    @pytest.fixture
    def made(self, v1_session):
        return GraphModel.from_session(*v1_session, outputs="logits/out")

    def test_places_are_operations_tensors_and_scopes(self, made, v1_session):
        graph, _ = v1_session
        for layer in (
            "conv",
            "conv/Relu",
            "conv/Relu:0",
            graph.get_operation_by_name("conv/Relu"),
            graph.get_tensor_by_name("conv/Relu:0"),
        ):
            split = made.split(layer)
            assert split.feature_shape == (8, 8, 4)
        names = [info.name for info in made.layers(np.zeros((1, 8, 8, 3)))]
        assert names.index("stem/Conv2D") < names.index("stem/Relu") < names.index("conv/Relu")
        assert not any("read" in name.lower() or "/kernel" in name for name in names)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ("conv/Rleu", r"runs no layer 'conv/Rleu'; the closest names are 'conv/Relu'"),
            ("is_training", "'is_training' gives bool of shape"),
            ("conv/kernel", "'conv/kernel' gives float32 of shape .* that depend on the input"),
            ("logits/kernel/Assign", "no output of the model depends on layer 'logits/kernel/Assign'"),
            (3, "runs no layer 'int'"),
            ("conv[1]", r"layer 'conv\[1\]': 'conv' has 1 result"),
        ],
    )
    def test_what_cannot_be_split_says_why(self, made, layer, message):
        with pytest.raises(LayerError, match=message):
            TensorFlowAdapter(made).split(layer)

    def test_layers_of_keras_have_names_paths_and_objects(self, model, images):
        inner = keras.Input((8, 8, 3))
        backbone = keras.Model(inner, keras.layers.Conv2D(2, 3, name="deep")(inner), name="backbone")

        class Twice(keras.Model):
            def __init__(self):
                super().__init__()
                self.backbone = backbone
                self.join = keras.layers.Add(name="join")

            def call(self, x):
                return self.join([self.backbone(x), self.backbone(-x)])

        twice = Twice()
        twice(images)
        adapter = TensorFlowAdapter(twice)
        assert [info.name for info in adapter.layers(images)] == [
            "backbone:0/deep",
            "backbone:0",
            "backbone:1/deep",
            "backbone:1",
            "join",
        ]
        for layer in ("backbone:1/deep", "backbone:1"):
            split = adapter.split(layer)
            np.testing.assert_allclose(split.features(images), backbone(-images), rtol=1e-5)
            assert split.layer_name == layer
        split = adapter.split(backbone.get_layer("deep"))
        with pytest.raises(LayerError, match=r"'deep' runs 2 times.*'backbone:0/deep' or 'backbone:1/deep'"):
            split.features(images)
        with pytest.raises(LayerError, match=r"no layer 'deeep'; the closest name is 'deep'"):
            adapter.split("deeep")
        with pytest.raises(LayerError, match="no layer 'stranger'"):
            adapter.split(keras.layers.Add(name="stranger"))


class TestFiles:
    def test_a_missing_or_damaged_file_is_named(self, tmp_path):
        with pytest.raises(StateError, match=r"no model file '.*absent\.pb'"):
            GraphModel.from_graph_def(tmp_path / "absent.pb")
        with pytest.raises(StateError, match=r"no SavedModel in '.*absent'"):
            GraphModel.from_saved_model(tmp_path / "absent")
        for content in (b"no graph at all", b""):
            (tmp_path / "damaged.pb").write_bytes(content)
            with pytest.raises(StateError, match=r"damaged\.pb' is no frozen graph"):
                GraphModel.from_graph_def(tmp_path / "damaged.pb")
            (tmp_path / "saved_model.pb").write_bytes(content)
            with pytest.raises(StateError, match=r"SavedModel in '.*' is damaged"):
                GraphModel.from_saved_model(tmp_path)

    def test_a_truncated_saved_model_is_named(self, model, tmp_path):
        model.export(tmp_path, verbose=False)
        (data,) = tmp_path.glob("variables/*.data*")
        data.write_bytes(data.read_bytes()[:100])
        with pytest.raises(StateError, match="cannot be loaded"):
            GraphModel.from_saved_model(tmp_path)

    def test_signatures_and_tags_are_chosen(self, model, tmp_path):
        module = Module(model)
        double = tf.function(lambda image: {"twice": 2 * model(image), "once": model(image)})
        signatures = {"one": module.__call__, "two": double.get_concrete_function(SPEC)}
        tf.saved_model.save(module, tmp_path, signatures=signatures)
        x = np.ones((2, 8, 8, 3), np.float32)
        found = GraphModel.from_saved_model(tmp_path, signature="two", tags="serve").predict(x)
        np.testing.assert_allclose(found["twice"], 2 * model(x), rtol=1e-5)
        with pytest.raises(InputError, match="has the signatures 'one', 'two'; choose by signature="):
            GraphModel.from_saved_model(tmp_path)
        with pytest.raises(InputError, match=r"signature='tow' is none .* the closest name is 'two'"):
            GraphModel.from_saved_model(tmp_path, signature="tow")
        with pytest.raises(InputError, match=r"tags='train': .* the tags \['serve'\]"):
            GraphModel.from_saved_model(tmp_path, tags="train")

    def test_a_saved_module_without_a_signature_is_called(self, tmp_path):
        class Plain(tf.Module):
            @tf.function
            def __call__(self, x):
                return tf.nn.relu(x * 2.0, name="feature")

        plain = Plain()
        plain(tf.zeros((2, 3)))
        plain.__call__.get_concrete_function(tf.TensorSpec((None, 3)))
        tf.saved_model.save(plain, tmp_path)
        made = GraphModel.from_saved_model(tmp_path)
        np.testing.assert_array_equal(made.predict(np.ones((4, 3), np.float32)), np.full((4, 3), 2.0))

    def test_a_graph_that_is_not_frozen_is_refused(self, v1_session):
        with pytest.raises(InputError, match=r"not frozen: it has variables, such as '.*from_session"):
            GraphModel.from_graph_def(v1_session[0].as_graph_def(), outputs="logits/out")

    def test_outputs_of_a_graph_are_found(self):
        graph = tf.Graph()
        with graph.as_default():
            x = v1.placeholder(tf.float32, (None, 2), name="x")
            tf.add(x, 1.0, name="first")
            tf.multiply(x, 2.0, name="second")
            tf.constant(1.0, name="apart")
        found = GraphModel.from_graph_def(graph.as_graph_def()).predict(np.ones((1, 2)))
        np.testing.assert_array_equal(found, np.full((2, 1, 2), 2.0))


def test_what_belongs_to_the_backend():
    for owned in (tf.function(lambda x: x), Module(None), tf_keras.Sequential(), v1.GraphDef()):
        assert TensorFlowAdapter.owns(owned)
    for other in (lambda x: x, tf.Module(), np.ones(3), "saved_model"):
        assert not TensorFlowAdapter.owns(other)
