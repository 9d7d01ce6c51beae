"""Models split at every layer: head and tail together are the model, which stays as it was."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from iba_core.errors import InputError, LayerError
from iba_core.framework.inputs import take
from iba_tf import GraphModel, TensorFlowAdapter


def flat_numpy(outputs):
    return [np.asarray(x) for x in keras.tree.flatten(outputs)]


def all_layers(model):
    return list(model._flatten_layers(include_self=True, recursive=True))


def snapshot(model, inputs):
    """Everything about a model that explaining must leave alone."""
    return {
        "inbound": [len(layer._inbound_nodes) for layer in all_layers(model)],
        "outbound": [len(layer._outbound_nodes) for layer in all_layers(model)],
        "trainable": [layer.trainable for layer in all_layers(model)],
        "losses": [len(layer.losses) for layer in all_layers(model)],
        "weights": [weight.numpy().tobytes() for weight in model.variables],
        "outputs": [x.tobytes() for x in flat_numpy(model(inputs, training=False))],
    }


WITHOUT_LAYERS = ["siamese", "two_ends", "tuples", "recurrent", "positions"]
EVERY_MODEL = ["plain", "residual", "unet", "nested", *WITHOUT_LAYERS]


@pytest.fixture(
    params=[("layers", name) for name in EVERY_MODEL] + [("operations", name) for name in WITHOUT_LAYERS],
    ids="-".join,
)
def case(request, models):
    """A model as the graph of its layers' calls, or as one of operations, and inputs for it."""
    kind, name = request.param
    model = models.randomize(getattr(models, name)())
    made = model if kind == "layers" else GraphModel.from_keras(model)
    return SimpleNamespace(model=model, inputs=models.sample_inputs(model), adapter=TensorFlowAdapter(made))


def names_of_layers(adapter, inputs):
    return [info.name for info in adapter.layers(inputs)]


def split_or_none(adapter, name):
    """A split, or None where no output depends on the layer or its features are one for all images."""
    try:
        return adapter.split(name)
    except LayerError:
        return None


def run_and_raise(split, inputs):
    with split.head(inputs) as tail:
        tail(tail.features)
        raise ZeroDivisionError


def test_head_and_tail_are_the_model_at_every_layer(case):
    adapter, model, inputs, copies = case.adapter, case.model, case.inputs, 3
    expected = [np.repeat(x, copies, axis=0) for x in flat_numpy(model(inputs, training=False))]
    splits = [split for name in names_of_layers(adapter, inputs) if (split := split_or_none(adapter, name))]
    assert len(splits) >= 4
    for split in splits:
        with split.head(inputs) as tail:
            outputs = tail(tf.repeat(tail.features, copies, axis=0))
            keras.tree.assert_same_structure(outputs, model(inputs, training=False))
            np.testing.assert_array_equal(tail.features, split.features(inputs))
        for found, wanted in zip(flat_numpy(outputs), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=split.layer_name)


def test_the_tail_depends_on_the_features_alone_and_on_what_is_carried(case):
    """With another image's features and its own carry, the tail gives that image's outputs."""
    adapter, model, inputs = case.adapter, case.model, case.inputs
    first, second = take(inputs, 0, 1), take(inputs, 1, 2)
    expected = flat_numpy(model(second, training=False))
    for name in names_of_layers(adapter, inputs)[::2]:
        if (split := split_or_none(adapter, name)) is None:
            continue
        with split.head(second) as tail, split.head(first):
            outputs = tail(tail.features)
        for found, wanted in zip(flat_numpy(outputs), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_tail_is_differentiable_in_the_features_and_runs_in_a_function(case):
    adapter, inputs = case.adapter, case.inputs
    split = next(
        split for name in names_of_layers(adapter, inputs) if (split := split_or_none(adapter, name))
    )

    with split.head(inputs) as tail:

        @tf.function
        def value_and_grad(z, carry):
            def function(z):
                value = sum(tf.reduce_sum(tf.square(x)) for x in keras.tree.flatten(tail.run(z, carry)))
                return value, ()

            return adapter.framework.value_and_grad(function, z)

        value, _, gradient = value_and_grad(tail.features, tail.carry)
        shift = 1e-2 * np.random.default_rng(0).normal(size=tail.features.shape).astype(np.float32)
        higher, *_ = value_and_grad(tail.features + shift, tail.carry)
        lower, *_ = value_and_grad(tail.features - shift, tail.carry)
    assert gradient.shape == tail.features.shape
    np.testing.assert_allclose(
        (higher - lower) / 2, np.sum(gradient * shift), rtol=0.05, atol=0.02 * abs(value)
    )


def test_splitting_and_running_changes_nothing(case):
    adapter, model, inputs = case.adapter, case.model, case.inputs
    before = snapshot(model, inputs)
    adapter.layers(inputs)
    adapter.predict(inputs)
    for name in names_of_layers(adapter, inputs)[::3]:
        if (split := split_or_none(adapter, name)) is None:
            continue
        split.features(inputs)
        with pytest.raises(ZeroDivisionError):
            run_and_raise(split, inputs)
    assert snapshot(model, inputs) == before


def test_a_failing_tail_changes_nothing():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="features")(inputs)

    @keras.saving.register_keras_serializable("iba_tests")
    class Picky(layers.Layer):
        def call(self, x):
            if x.shape[0] == 6:
                raise ZeroDivisionError
            return x

    model = keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization()(Picky()(x))))
    x = np.ones((2, 4), np.float32)
    before = snapshot(model, x)
    split = TensorFlowAdapter(model).split("features")
    with pytest.raises(ZeroDivisionError), split.head(x) as tail:
        tail(tf.repeat(tail.features, 3, axis=0))
    assert snapshot(model, x) == before
    model.variables[0].assign(np.ones((4, 4)))  # and variables can be assigned as before
    np.testing.assert_array_equal(model.variables[0], np.ones((4, 4)))


def test_a_stateful_layer_does_not_move_on():
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(2, 5, 3)),
            layers.Dense(4, name="dense"),
            layers.LSTM(4, stateful=True, name="lstm"),
            layers.Dense(2, activity_regularizer="l2", name="logits"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    model.predict(x, verbose=0)
    states = [v.numpy() for v in model.get_layer("lstm").states]
    adapter = TensorFlowAdapter(model)
    adapter.predict(x)
    # It takes two sequences, no more and no fewer.
    with pytest.raises(InputError, match="the model fails on a batch of 1"), adapter.split("dense").head(x):
        pass
    np.testing.assert_array_equal([v.numpy() for v in model.get_layer("lstm").states], states)
    assert model.losses == []


def test_dropout_asked_for_in_the_graph_is_off():
    inputs = keras.Input((50,))
    x = layers.Dropout(0.5, name="always")(layers.Dense(50, name="dense")(inputs), training=True)
    model = keras.Model(inputs, x)
    x = np.ones((3, 50), np.float32)
    split = TensorFlowAdapter(model).split("dense")
    with split.head(x) as tail:
        np.testing.assert_array_equal(tail(tail.features), tail.features)


def test_weights_changed_after_the_split_count():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a"), layers.Dense(2, name="b")])
    split = TensorFlowAdapter(model).split("a")
    x = np.ones((2, 3), np.float32)
    split.features(x)
    model.set_weights([2 * weight + 1 for weight in model.get_weights()])
    with split.head(x) as tail:
        np.testing.assert_allclose(tail(tail.features), model(x), rtol=1e-6)


def test_only_the_tail_runs_in_the_tail():
    calls = []

    class Counting(layers.Layer):
        def call(self, x):
            calls.append(self.name)
            return x + 1.0

    inputs = keras.Input((3,))
    x = Counting(name="before")(inputs)
    x = Counting(name="at")(x)
    side = Counting(name="side")(inputs)
    x = Counting(name="after")(x)
    model = keras.Model(inputs, layers.Add()([x, side]))
    split = TensorFlowAdapter(model).split("at")
    calls.clear()
    split.features(np.ones((2, 3)))
    assert set(calls) == {"at", "before"}
    with split.head(np.ones((2, 3))) as tail:
        calls.clear()
        tail(tail.features)
    assert calls == ["after"]
    assert len(tail.carry) == 1


def test_layers_are_listed_in_order_with_shapes(models):
    listed = TensorFlowAdapter(models.nested()).layers(np.zeros((2, 8, 8, 3)))
    assert [(info.name, info.kind, info.output_shape) for info in listed] == [
        ("rescale", "Rescaling", (8, 8, 3)),
        ("backbone/conv1", "Conv2D", (8, 8, 4)),
        ("backbone/relu", "ReLU", (8, 8, 4)),
        ("backbone/conv2", "Conv2D", (8, 8, 4)),
        ("backbone/add", "Add", (8, 8, 4)),
        ("backbone", "Functional", (8, 8, 4)),
        ("side", "Conv2D", (8, 8, 4)),
        ("outer_add", "Add", (8, 8, 4)),
        ("head/pool", "GlobalAveragePooling2D", (4,)),
        ("head/logits", "Dense", (5,)),
        ("head", "Sequential", (5,)),
    ]


def test_listed_shapes_are_those_of_the_inputs():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="conv")])
    (info,) = TensorFlowAdapter(model).layers(np.zeros((1, 9, 7, 3)))
    assert info.output_shape == (7, 5, 4)


def test_a_layer_with_several_outputs_has_no_single_shape(models):
    listed = TensorFlowAdapter(models.tuples()).layers(np.zeros((1, 6, 6, 2)))
    assert {info.name: info.output_shape for info in listed}["halves"] is None


def test_layers_are_found_by_name_object_and_symbolic_tensor(models):
    model = models.nested()
    backbone = model.get_layer("backbone")
    adapter = TensorFlowAdapter(model)
    cases = {
        "rescale": ["rescale", model.get_layer("rescale"), model.get_layer("rescale").output],
        "backbone/conv2": ["conv2", backbone.get_layer("conv2"), backbone.get_layer("conv2").output],
        "backbone": ["backbone", backbone, model.get_layer("outer_add").input[0]],
        "head/pool": ["head/pool", model.get_layer("head").get_layer("pool")],
    }
    for name, layers_ in cases.items():
        for layer in layers_:
            assert adapter.split(layer).layer_name == name


def test_a_symbolic_tensor_chooses_among_the_outputs_of_a_layer(models):
    model = models.tuples()
    x = models.sample_inputs(model)
    first, second = model.get_layer("halves").output
    adapter = TensorFlowAdapter(model)
    both = model.get_layer("halves")(model.get_layer("conv")(x))
    for symbol, expected in zip((first, second), both, strict=True):
        np.testing.assert_allclose(adapter.split(symbol).features(x), expected, rtol=1e-6)
    np.testing.assert_allclose(adapter.split("halves").features(x), both[0], rtol=1e-6)


def test_a_shared_layer_is_split_at_one_of_its_calls(models):
    model = models.randomize(models.siamese())
    adapter = TensorFlowAdapter(model)
    with pytest.raises(LayerError, match=r"'tower' runs 2 times.*'tower:0' or 'tower:1'"):
        adapter.split("tower")
    with pytest.raises(LayerError, match="'tower:0/conv' or 'tower:1/conv'"):
        adapter.split(model.get_layer("tower").get_layer("conv"))
    x = models.sample_inputs(model)
    tower = model.get_layer("tower")
    for name, side in (("tower:0", "left"), ("tower:1", "right")):
        np.testing.assert_allclose(adapter.split(name).features(x), tower(x[side]), rtol=1e-5)
    left, right = model.get_layer("difference").input
    assert adapter.split(left).layer_name == "tower:0"
    assert adapter.split(right).layer_name == "tower:1"


def test_an_unknown_layer_is_answered_with_the_closest_names(models):
    adapter = TensorFlowAdapter(models.nested())
    with pytest.raises(LayerError, match=r"runs no layer 'conv3'; the closest names are .*'backbone/conv2'"):
        adapter.split("conv3")
    with pytest.raises(LayerError, match="runs no layer 'stranger'"):
        adapter.split(layers.Dense(3, name="stranger"))
    with pytest.raises(LayerError, match="runs no layer 'int'"):
        adapter.split(3)


def test_what_cannot_be_split_says_why(models):
    inputs = keras.Input((3,))
    used, unused = Pair(name="unused")(inputs)
    adapter = TensorFlowAdapter(keras.Model(inputs, used))
    with pytest.raises(LayerError, match=r"no output of the model depends on layer 'unused\[1\]'"):
        adapter.split(unused)
    whole = keras.ops.cast(inputs, "int32")
    adapter = TensorFlowAdapter(keras.Model(inputs, keras.ops.cast(whole, "float32")))
    with pytest.raises(LayerError, match=r"layer 'cast\w*' gives int32 of shape \(None, 3\)"):
        adapter.split(whole)
    with pytest.raises(LayerError, match=r"'later' is not built.*keras\.Input"):
        TensorFlowAdapter(keras.Sequential([layers.Dense(3, name="a")], name="later")).split("a")

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(LayerError, match="'subclassed' is not built: call it on a batch once"):
        TensorFlowAdapter(Subclassed(name="subclassed"))


class Pair(layers.Layer):
    def call(self, x):
        return x * 1.0, x * 2.0


def test_a_nested_model_with_a_call_of_its_own_is_one_layer(models):
    class Doubling(keras.Model):
        def call(self, x, training=None):
            return 2.0 * super().call(x, training=training)

    inner = keras.Input((3,))
    doubling = Doubling(inner, layers.Dense(4, name="dense")(inner), name="doubling")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2, name="logits")(doubling(inputs)))
    adapter = TensorFlowAdapter(model)
    assert [info.name for info in adapter.layers(np.zeros((1, 3)))] == ["doubling", "logits"]
    x = np.ones((2, 3), np.float32)
    with adapter.split("doubling").head(x) as tail:
        np.testing.assert_allclose(tail.features, doubling(x), rtol=1e-6)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_the_data_format_is_that_of_the_nearest_layers(data_format):
    inputs = keras.Input((3, 4, 5))
    x = layers.Activation("relu", name="before")(inputs)
    x = layers.AveragePooling2D(1, data_format=data_format, name="pool")(x)
    x = layers.Activation("relu", name="after")(x)
    x = layers.Flatten(name="flatten")(x)
    adapter = TensorFlowAdapter(keras.Model(inputs, layers.Dense(2, name="logits")(x)))
    for name in ("before", "pool", "after"):
        split = adapter.split(name)
        assert (split.data_format, split.input_format) == (data_format, data_format)
    assert adapter.split("flatten").data_format == "channels_last"
    assert adapter.data_format == data_format


def test_the_data_format_follows_the_graph_of_the_inputs():
    class Either(keras.Model):
        def __init__(self):
            super().__init__()
            self.relu = layers.Activation("relu", name="relu")

        def call(self, x):
            data_format = "NCHW" if x.shape[1] == 3 else "NHWC"
            return tf.nn.bias_add(self.relu(x), tf.zeros(3), data_format=data_format)

    first, last = np.zeros((1, 3, 4, 5)), np.zeros((1, 4, 5, 3))
    model = Either()
    model(last)
    adapter = TensorFlowAdapter(model)
    split = adapter.split("relu")
    for x, data_format in (first, "channels_first"), (last, "channels_last"), (first, "channels_first"):
        split.features(x)
        for known in split, adapter.split("relu"):
            assert (known.data_format, known.input_format) == (data_format, data_format)


def test_the_user_says_where_the_channels_are_if_no_layer_does():
    inputs = keras.Input((3, 4, 5))
    adapter = TensorFlowAdapter(keras.Model(inputs, layers.Activation("relu", name="relu")(inputs)))
    with pytest.raises(LayerError, match=r"no layer around 'relu' says which axis .* \(None, 3, 4, 5\)"):
        adapter.split("relu")
    for data_format in ("channels_first", "channels_last"):
        split = adapter.split("relu", data_format=data_format)
        with split.head(np.ones((2, 3, 4, 5), np.float32)):
            assert (split.data_format, split.input_format) == (data_format, data_format)
    with pytest.raises(InputError, match="data_format='first' is neither"):
        adapter.split("relu", data_format="first")


def test_low_precision_features_keep_their_dtype():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_float16", name="conv")(inputs)
    x = layers.Flatten(dtype="mixed_float16")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits", dtype="mixed_float16")(x))
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    split = TensorFlowAdapter(model).split("conv")
    with split.head(x) as tail:
        assert tail.features.dtype == tf.float16
        outputs = tail(tf.cast(tail.features, tf.float32))
    assert outputs.dtype == tf.float16
    np.testing.assert_allclose(outputs, model(x), rtol=1e-2, atol=1e-2)
