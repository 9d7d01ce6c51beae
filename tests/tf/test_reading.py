"""How TensorFlow models are read: channels, inputs, outputs, gradients; right or refused."""

from __future__ import annotations

import gc
import pickle
import weakref
from threading import Barrier, Thread

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager.polymorphic_function import function_type_utils

from iba_core import Explainer
from iba_core.errors import InputError, LayerError
from iba_core.framework.inputs import Shared
from iba_tf import GraphModel, IBACopy, IBALayer, TensorFlowAdapter

v1 = tf.compat.v1


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def format_at(model, layer):
    split = TensorFlowAdapter(model).split(layer)
    return split.data_format, split.input_format


class TestChannels:
    """All sizes are 6, so that none of them can tell."""

    def test_they_follow_a_permutation(self):
        inputs = keras.Input((6, 6, 6))
        x = layers.Conv2D(6, 1, name="conv")(inputs)
        x = layers.Permute((3, 1, 2), name="turned")(layers.ReLU(name="relu")(x))
        x = keras.ops.transpose(layers.Activation("tanh", name="tanh")(x), (0, 2, 3, 1))
        model = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.Conv2D(6, 1, name="last")(x)))
        first, last = ("channels_first", "channels_last"), ("channels_last", "channels_last")
        assert [format_at(model, name) for name in ("conv", "relu", "turned", "tanh", "last")] == [
            last,
            last,
            first,
            first,
            last,
        ]

    def test_dense_layers_inside_a_block_do_not_hide_its_convolution(self):
        """A ConvNeXt block, channels first, with dense layers on transposed maps."""
        inputs = keras.Input((6, 6, 6))
        x = layers.DepthwiseConv2D(3, padding="same", data_format="channels_first")(inputs)
        x = layers.LayerNormalization(name="norm")(layers.Permute((2, 3, 1))(x))
        x = layers.Dense(6, name="out")(layers.Dense(12, activation="gelu", name="wide")(x))
        x = layers.Add(name="block")([inputs, layers.Permute((3, 1, 2))(x)])
        model = keras.Model(inputs, layers.GlobalAveragePooling2D(data_format="channels_first")(x))
        for name, wanted in (("norm", "last"), ("wide", "last"), ("out", "last"), ("block", "first")):
            assert format_at(model, name) == (f"channels_{wanted}", "channels_first")

    def test_a_layer_of_ones_own_is_looked_into(self):
        @keras.saving.register_keras_serializable("iba_tests")
        class Turning(layers.Layer):
            def call(self, x):
                return tf.transpose(tf.nn.relu(x), (0, 3, 1, 2))

        inputs = keras.Input((6, 6, 6))
        x = Turning(name="turning")(layers.Conv2D(6, 1, name="conv")(inputs))
        model = keras.Model(inputs, layers.Dense(2)(layers.Flatten(name="flat")(x)))
        assert format_at(model, "turning") == ("channels_first", "channels_last")

    def test_two_readings_are_a_question(self):
        """The mixer of an MLP-Mixer makes channels of the tokens."""
        inputs = keras.Input((6, 6))
        x = layers.Permute((2, 1), name="tokens_last")(layers.LayerNormalization(name="norm")(inputs))
        model = keras.Model(inputs, layers.Flatten()(layers.Dense(6, name="mixed")(x)))
        adapter = TensorFlowAdapter(model)
        with pytest.raises(LayerError, match=r"channels on axis 1 of .*, and what comes after it on axis 2;"):
            adapter.split("tokens_last")
        for data_format in ("channels_first", "channels_last"):
            assert adapter.split("tokens_last", data_format=data_format).data_format == data_format
        explainer = Explainer(model, "tokens_last", data_format="channels_first")
        explainer.fit([drawn(8, 6, 6)], progbar=False)
        capacity = explainer.explain(drawn(1, 6, 6), 0, steps=2, samples=2, seed=0).capacity
        assert capacity.shape == (1, 6, 6)

    def test_operations_say_it_as_layers_do(self):
        class Block(tf.Module):
            def __init__(self):
                self.kernel, self.bias = tf.Variable(drawn(6, 6)), tf.Variable(drawn(6))

            def __call__(self, x):
                x = tf.tanh(x + self.bias, name="biased")
                x = tf.tanh(tf.tensordot(x, self.kernel, 1), name="dense")
                x = tf.transpose(x, (0, 3, 1, 2), name="turned")
                x = tf.tanh(tf.einsum("bchw,cd->bdhw", x, self.kernel), name="first")
                return tf.reduce_mean(x, (2, 3))

        block = Block()
        made = GraphModel.from_function(block, tf.TensorSpec((None, 6, 6, 6)))
        for name, wanted in (("biased", "last"), ("dense", "last"), ("turned", "first"), ("first", "first")):
            assert format_at(made, name) == (f"channels_{wanted}", "channels_last"), name
        assert format_at(pickle.loads(pickle.dumps(made)), "first")[0] == "channels_first"

    def test_a_subclassed_model_says_it_before_it_has_run(self):
        class First(keras.Model):
            def __init__(self):
                super().__init__()
                self.conv = layers.Conv2D(4, 1, data_format="channels_first", name="conv")
                self.head = layers.Dense(2)

            def call(self, x):
                return self.head(tf.reduce_mean(self.conv(x), (2, 3)))

        model = First()
        model.build((None, 3, 6, 6))
        assert format_at(model, "conv") == ("channels_first", "channels_first")
        assert TensorFlowAdapter(model).data_format == "channels_first"

    def test_frames_in_the_batch_are_axes_of_the_map(self):
        """The frames of a video run as a batch; the map of a video has them as its first axis."""

        def model(data_format):
            shape = (8, 8, 4) if data_format == "channels_last" else (4, 8, 8)
            inputs = keras.Input((3, *shape))
            # No convolution: that of channels first does not run on every processor.
            x = layers.ZeroPadding2D(1, data_format=data_format, name="padded")(
                keras.ops.reshape(inputs, (-1, *shape))
            )
            x = layers.GlobalAveragePooling2D(data_format=data_format)(x)
            return keras.Model(inputs, layers.LSTM(3)(keras.ops.reshape(x, (-1, 3, 4))))

        x = drawn(6, 3, 8, 8, 4)
        explainer = Explainer(model("channels_last"), "padded").fit([x], progbar=False)
        found = explainer.explain(x[:2], 1, steps=2, samples=2, seed=0)
        assert (found.capacity.shape, found.saliency.shape) == ((2, 3, 10, 10, 4), (2, 3, 8, 8))
        with pytest.raises(LayerError, match="the channels are on axis 1, neither the first nor the last"):
            TensorFlowAdapter(model("channels_first")).split("padded").features(drawn(2, 3, 4, 8, 8))

    @pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
    def test_the_users_word_reaches_every_class(self, data_format):
        inputs = keras.Input((4, 4))
        iba = IBALayer(data_format=data_format, name="iba")
        model = keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(iba(inputs))))
        target = iba.set_classification_loss(model.output)
        iba.fit(drawn(8, 4, 4))
        of_layer = iba.analyze({inputs: drawn(1, 4, 4), target: 1}, seed=0, steps=2)
        tanh = layers.Activation("tanh", name="tanh")
        plain = keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(tanh(inputs))))
        with pytest.raises(LayerError, match="data_format="):
            IBACopy("tanh", None, graph=plain)
        copied = IBACopy("tanh", None, graph=plain, data_format=data_format)
        copied.set_classification_loss()
        copied.fit(drawn(8, 4, 4))
        assert of_layer.shape == copied.analyze(drawn(1, 4, 4), target=1, seed=0, steps=2).shape == (4, 4)
        clone = IBALayer.from_config(iba.get_config())
        assert clone.get_config() == iba.get_config()


class TestInputs:
    def test_captions_are_shared(self):
        """K images and K captions: each image is compared with all of them."""
        image, caption = keras.Input((6, 6, 3), name="image"), keras.Input((5,), name="caption")
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(image))
        scores = layers.Dense(4)(x) @ keras.ops.transpose(layers.Dense(4)(caption))
        model = keras.Model([image, caption], scores)
        images, captions = drawn(4, 6, 6, 3), drawn(4, 5, seed=1)
        explainer = Explainer(model, "conv").fit([((images, captions),)], progbar=False)
        options = {"seed": 0, "steps": 2, "samples": 3}
        together = explainer.explain((images, captions), [0, 1, 2, 3], **options)
        for i in range(4):
            alone = explainer.explain((images[i : i + 1], Shared(captions)), i, **options)
            np.testing.assert_allclose(alone.capacity[0], together.capacity[i], rtol=1e-4, atol=1e-5)
        copied = IBACopy("conv", None, graph=model)
        copied.set_classification_loss()
        copied.fit({"image": images, "caption": captions})
        feed = {"image": images, "caption": captions}
        several = copied.analyze(feed, target=[0, 1, 2, 3], seed=0, steps=2)
        feed = {"image": images[2:3], "caption": Shared(captions)}
        np.testing.assert_allclose(
            several[2], copied.analyze(feed, target=2, seed=0, steps=2), rtol=1e-4, atol=1e-5
        )

    def test_a_model_whose_images_are_on_the_second_axis_is_refused(self):
        class TimeMajor(keras.Model):
            def __init__(self):
                super().__init__()
                self.lstm, self.head = layers.LSTM(5, return_sequences=True, name="lstm"), layers.Dense(3)

            def call(self, x):
                return self.head(self.lstm(tf.transpose(x, (1, 0, 2)))[:, -1])

        model, x = TimeMajor(), drawn(4, 4, 3)
        model(x)
        explainer = Explainer(model, "lstm").fit([x], progbar=False)
        with pytest.raises(LayerError, match=r"has shape \(4, 3\) for one image and for two"):
            explainer.explain(x[:2], 0, steps=2, samples=2)


class TestOutputs:
    def test_a_file_gives_its_outputs_in_order(self, tmp_path):
        module = tf.Module()
        module.weight = tf.Variable(drawn(4, 12))

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def numbered(x):
            return tuple(x @ module.weight[:, i : i + 1] for i in range(12))

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def named(x):
            return {"scores": x @ module.weight, "embedding": tf.tanh(x), "logits": x}

        tf.saved_model.save(module, tmp_path, signatures={"numbered": numbered, "named": named})
        x = drawn(2, 4)
        found = GraphModel.from_saved_model(tmp_path, signature="numbered").predict(x)
        for index, output in enumerate(found):
            np.testing.assert_allclose(output[:, 0], x @ module.weight.numpy()[:, index], rtol=1e-5)
        model = GraphModel.from_saved_model(tmp_path, signature="named")
        assert list(model.predict(x)) == ["embedding", "logits", "scores"]
        np.testing.assert_allclose(Explainer(model).predict(x), x)
        np.testing.assert_allclose(
            Explainer(model, output="scores").predict(x), x @ module.weight.numpy(), rtol=1e-5
        )

    def test_entries_that_are_none_do_not_count(self):
        class WithLoss(keras.Model):
            def __init__(self):
                super().__init__()
                self.conv, self.head = layers.Conv2D(4, 3, name="conv"), layers.Dense(3)

            def call(self, x):
                pooled = tf.reduce_mean(self.conv(x), (1, 2))
                return {"loss": None, "hidden": [None, pooled], "logits": self.head(pooled)}

        model, x = WithLoss(), drawn(4, 6, 6, 3)
        logits = model(x)["logits"]
        explainer = Explainer(model, "conv").fit([x], progbar=False)
        np.testing.assert_allclose(explainer.predict(x), logits, rtol=1e-5)
        assert explainer.explain(x[:1], 2, steps=2, samples=2).classes.tolist() == [2]

    @pytest.mark.parametrize("traced", [False, True])
    def test_the_end_of_a_model_is_known(self, traced):
        inputs = keras.Input((6, 6, 3))
        features = layers.Conv2D(4, 3, name="conv")(inputs)
        x = layers.GlobalAveragePooling2D()(features)
        tags = layers.Reshape((2,))(layers.Activation("sigmoid")(layers.Dense(2)(x)))
        classes = layers.Dense(3, activation="softmax")(x)
        soft = keras.ops.softmax(keras.ops.squeeze(layers.Dense(3)(x)[:, None], axis=1))
        model = keras.Model(inputs, [tags, classes, soft, layers.Dense(2)(x), keras.ops.exp(x)])
        made = GraphModel.from_keras(model) if traced else model
        with TensorFlowAdapter(made).split("conv").head(drawn(1, 6, 6, 3)) as tail:
            assert tail.activations() == ["sigmoid", "softmax", "softmax", "other", "other"]

    def test_a_scalar_output_of_probabilities_is_two_classes(self):
        inputs = keras.Input((6, 6, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
        model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
        x = drawn(8, 6, 6, 3)
        explainer = Explainer(model, "conv").fit([x], progbar=False)
        found = explainer.explain(x[:1], 0, steps=1, samples=1, seed=0)
        assert found.classes.tolist() == [0]


class TestWhatNothingDependsOn:
    MESSAGE = "does not depend on the layer, or is cut off from it"

    @pytest.fixture(scope="class")
    def branches(self):
        inputs = keras.Input((6, 6, 3))
        first, second = (layers.Conv2D(4, 3, name=name)(inputs) for name in ("first", "second"))
        pool = layers.GlobalAveragePooling2D()
        return keras.Model(inputs, [layers.Dense(3)(pool(first)), layers.Dense(2)(pool(second))])

    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize(
        "target",
        [
            None,  # the first output is on another branch
            lambda outputs: tf.stop_gradient(outputs[1])[:, 0],
            lambda outputs: tf.cast(tf.argmax(outputs[1], axis=1), tf.float32),
            lambda outputs: tf.ones(outputs[1].shape[0]),
        ],
    )
    def test_is_an_error(self, branches, target, traced):
        x = drawn(4, 6, 6, 3)
        model = GraphModel.from_keras(branches) if traced else branches
        explainer = Explainer(model, "second").fit([x], progbar=False)
        with pytest.warns(UserWarning, match="around layer"), pytest.raises(LayerError, match=self.MESSAGE):
            explainer.explain(x[:1], target, steps=2, samples=2)

    def test_a_gradient_that_stops_in_the_model_is_an_error(self):
        class Stopped(tf.Module):
            def __call__(self, x):
                z = tf.tanh(x, name="feature")
                return tf.stop_gradient(z) + tf.round(z), 2 * z

        explainer = Explainer(Stopped(), "feature").fit([drawn(8, 4)], progbar=False)
        with pytest.raises(LayerError, match=self.MESSAGE):
            explainer.explain(drawn(1, 4), 0, steps=2, samples=2)
        explainer.explain(drawn(1, 4), lambda outputs: outputs[1][:, 0], steps=2, samples=2)


WEIGHT = tf.Variable(2.0)


@tf.custom_gradient
def of_its_own(x):
    y = tf.sin(x)
    # It takes a tensor from within, the argument, and an array.
    return y, lambda towards: towards * tf.cos(x) * 10.0 + y * np.float32(0.5)


@tf.custom_gradient
def of_a_variable(x):
    return x * WEIGHT, lambda towards, variables: (towards * WEIGHT * 5.0, [tf.reduce_sum(towards * x)])


class Reversed(tf.Module):
    def __init__(self):
        self.weight, self.nested = WEIGHT, tf.function(of_its_own)

    def __call__(self, x):
        return self.after(tf.tanh(x, name="feature"))

    def after(self, z):
        return tf.nn.silu(of_its_own(z) + self.nested(z)) + of_a_variable(z) * of_its_own(tf.sin(z))


class TestCustomGradients:
    @pytest.mark.parametrize("kind", ["traced", "declared", "pickled", "copied", "file"])
    def test_they_stay_when_a_model_becomes_operations(self, kind, tmp_path):
        module, spec = Reversed(), tf.TensorSpec((None, 3))
        made = GraphModel.of(module) if kind == "traced" else GraphModel.from_function(module, spec)
        if kind == "pickled":
            made = pickle.loads(pickle.dumps(made))
        if kind == "copied":
            made = made.copy()
        if kind == "file":
            tf.saved_model.save(module, tmp_path, tf.function(module.__call__, input_signature=[spec]))
            made = GraphModel.from_saved_model(tmp_path)
        adapter = TensorFlowAdapter(made)
        with adapter.split("feature").head(drawn(2, 3)) as tail:
            gradients = [
                adapter.framework.value_and_grad(
                    lambda z, f=f: (tf.reduce_sum(f(z) ** 2), ()), tail.features
                )[2]
                for f in (tail, module.after)
            ]
        np.testing.assert_allclose(*gradients, rtol=1e-5)

    def test_a_copy_is_explained_by_them(self):
        inputs = keras.Input((3,))
        x = layers.Dense(4, activation="tanh", name="features")(inputs)
        model = keras.Model(inputs, layers.Dense(2)(layers.Lambda(of_its_own)(x)))
        found = []
        for made in (model, GraphModel.from_keras(model)):
            explainer = Explainer(made, "features").fit([drawn(16, 3)], progbar=False)
            found.append(explainer.explain(drawn(1, 3), 1, seed=0, steps=4, samples=2).capacity)
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)

    def test_a_frozen_graph_that_lacks_one_is_refused(self):
        graph = tf.Graph()
        with graph.as_default():
            z = tf.tanh(v1.placeholder(tf.float32, (None, 3), name="x"), name="feature")
            tf.tanh(of_its_own(z), name="after")
        made = GraphModel.from_graph_def(graph.as_graph_def(), outputs="after")
        with pytest.raises(LayerError, match=r"has a gradient of its own \(tf.custom_gradient\)"):
            made.split("feature")
        made.split("after")


class TestSequentialModelsAndBlocks:
    @pytest.mark.parametrize("kind", ["add", "file"])
    def test_a_layers_output_is_that_of_the_model(self, kind, tmp_path):
        model = keras.Sequential([keras.Input((6, 6, 3))])
        for layer in (layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu"), layers.Flatten()):
            model.add(layer)
        model.add(layers.Dense(3, name="logits"))
        if kind == "file":
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
        x, maps = drawn(8, 6, 6, 3), []
        for options in (
            {"feature": "relu", "outputs": None, "graph": model},
            {"feature": model.get_layer("relu").output, "outputs": model.get_layer("logits").output},
            {"feature": model.get_layer("relu").output, "outputs": None, "graph": model},
        ):
            iba = IBACopy(**options)
            iba.set_classification_loss()
            iba.fit(x)
            maps.append(iba.analyze(x[:1], target=1, seed=0, steps=2))
        np.testing.assert_allclose(maps[1], maps[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(maps[2], maps[0], rtol=1e-5, atol=1e-6)

    def test_a_layer_inside_another_one_is_pointed_to(self):
        class Block(layers.Layer):
            def __init__(self, **options):
                super().__init__(**options)
                self.conv = layers.Conv2D(4, 3, name="inner")

            def call(self, x):
                return tf.nn.relu(self.conv(x))

        inputs = keras.Input((6, 6, 3))
        x = layers.GlobalAveragePooling2D()(Block(name="block")(inputs))
        model = keras.Model(inputs, layers.Dense(3)(x))
        with pytest.raises(LayerError, match=r"it is inside layer 'block'.*GraphModel.from_keras\(model\)"):
            Explainer(model, "block/inner")
        Explainer(GraphModel.from_keras(model), "block/inner")


class TestNothingIsLeft:
    @pytest.mark.parametrize("kind", ["layers", "operations", "copy"])
    def test_a_new_model_for_each_explanation_is_forgotten(self, kind):
        class Plain(keras.Model):
            def __init__(self):
                super().__init__()
                self.conv, self.head = layers.Conv2D(4, 3, name="conv"), layers.Dense(3)

            def call(self, x):
                return self.head(tf.reduce_mean(self.conv(x), (1, 2)))

        x = drawn(4, 6, 6, 3)

        def explained():
            inputs = keras.Input((6, 6, 3))
            x_ = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
            model = Plain() if kind == "operations" else keras.Model(inputs, layers.Dense(3)(x_))
            model(x)
            if kind == "copy":
                iba = IBACopy("conv", None, graph=model)
                iba.set_classification_loss()
                iba.fit(x)
                iba.analyze(x[:1], target=1, steps=1)
            else:
                explainer = Explainer(model, "conv").fit([x], progbar=False)
                explainer.explain(x[:1], 1, steps=1, samples=2)
            return weakref.ref(model)

        explained()
        gc.collect()
        before = len(gc.get_objects())
        models = [explained() for _ in range(3)]
        gc.collect()
        assert [model() for model in models] == [None] * 3
        assert len(gc.get_objects()) - before < 150

    def test_an_interrupt_while_tracing_leaves_a_working_explainer(self):
        interrupt = []

        class Interrupted(keras.Model):
            def __init__(self):
                super().__init__()
                self.conv, self.head = layers.Conv2D(4, 3, name="conv"), layers.Dense(3)

            def call(self, x):
                if interrupt:
                    raise interrupt.pop()
                return self.head(tf.reduce_mean(self.conv(x), (1, 2)))

        model, x = Interrupted(), drawn(4, 6, 6, 3)
        model(x)
        expected = Explainer(model, "conv").fit([x], progbar=False).explain(x[:1], 1, seed=0, steps=2)
        explainer = Explainer(model, "conv")
        interrupt.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            explainer.fit([x], progbar=False)
        found = explainer.fit([x], progbar=False).explain(x[:1], 1, seed=0, steps=2)
        np.testing.assert_array_equal(found.capacity, expected.capacity)
        assert len(model(x)) == 4

    def test_an_interrupt_within_tensorflow_does_not_stop_other_threads(self, monkeypatch):
        """TensorFlow's own lock of a function stays closed if an interrupt strikes right after it."""
        inputs = keras.Input((6, 6, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
        explainer = Explainer(keras.Model(inputs, layers.Dense(3)(x)), "conv")
        explainer.fit([drawn(4, 6, 6, 3)], progbar=False)

        def explain():
            return explainer.explain(drawn(1, 6, 6, 3), 1, steps=2, samples=2, seed=0)

        expected = explain()
        undisturbed = function_type_utils.canonicalize_function_inputs

        def interrupted(*_):
            monkeypatch.setattr(function_type_utils, "canonicalize_function_inputs", undisturbed)
            raise KeyboardInterrupt

        monkeypatch.setattr(function_type_utils, "canonicalize_function_inputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explain()
        found = []
        thread = Thread(target=lambda: found.append(explain()), daemon=True)
        thread.start()
        thread.join(60)
        np.testing.assert_array_equal(found[0].capacity, expected.capacity)

    def test_fits_in_two_threads_lose_no_samples(self):
        inputs = keras.Input((4,))
        iba = IBALayer()
        keras.Model(inputs, layers.Dense(2)(iba(layers.Dense(3)(inputs))))
        both = Barrier(2)

        def batches(seed):
            yield drawn(5, 4, seed=seed)
            both.wait(60)
            yield drawn(5, 4, seed=seed + 1)

        threads = [Thread(target=iba.fit_generator, args=(batches(s), 10, False)) for s in (0, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert iba.estimator.n_samples() == 20


def test_another_framework_below_keras_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="dense")])
    with pytest.raises(InputError, match="KERAS_BACKEND=tensorflow"):
        Explainer(model, "dense")
