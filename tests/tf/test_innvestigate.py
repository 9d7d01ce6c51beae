"""The bottleneck as an analyzer of the package innvestigate."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from iba_core import Explainer
from iba_core.bottleneck.optimization import BottleneckOptimizer
from iba_core.errors import InputError, LayerError, NotEstimatedError, StateError
from iba_core.targets import DistributionTarget
from iba_tf import IBACopy, IBACopyInnvestigate, IBALayer, TFWelfordEstimator, model_wo_softmax
from iba_tf.framework import TensorFlowFramework

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 16, 12, 3)).astype(np.float32)
HYPERPARAMETERS = {"steps": 3, "batch_size": 4, "beta": 0.01}
"""With so little weight of the information, the loss decides about the map."""


def build(library=keras, activation=None):
    layers = library.layers
    inputs = library.Input((16, 12, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(inputs)
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = library.Model(inputs, layers.Dense(5, activation=activation, name="logits")(x))
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.5, weight.shape) for weight in model.weights])
    return model


@pytest.fixture(params=[keras, tf_keras], ids=["keras", "tf_keras"])
def library(request):
    return request.param


def fitted(model, mode="max_activation", **options):
    analyzer = IBACopyInnvestigate(model, mode, "conv2", **HYPERPARAMETERS, **options)
    analyzer.fit(IMAGES)
    return analyzer


@pytest.fixture(scope="module")
def explained():
    """Maps of three images for a target, by the Explainer on the model of Keras 3."""
    explainer = Explainer(build(), layer="conv2", steps=3, samples=4, beta=0.01)
    explainer.fit([IMAGES], progbar=False)
    return lambda target: explainer.explain(IMAGES[:3], target=target, seed=5).saliency


def test_the_signatures_are_the_references():
    def arguments(function):
        parameters = inspect.signature(function).parameters.values()
        return {
            p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
        }

    empty = inspect.Parameter.empty
    statistics = ("estimator", "feature_mean", "feature_std", "feature_active")
    assert arguments(IBACopyInnvestigate.__init__) == {
        "model": empty,
        "neuron_selection_mode": "max_activation",
        "feature_name": None,
        **dict.fromkeys(statistics),
        "batch_size": 10,
        "steps": 10,
        "beta": 10.0,
        "learning_rate": 1,
        "min_std": 0.01,
        "smooth_std": 1,
        "normalize_beta": True,
        "session": None,
        "copy_session_config": None,
        "disable_model_checks": False,
    }
    assert list(arguments(IBACopyInnvestigate.__init__))[14:] == [
        "session",
        "copy_session_config",
        "disable_model_checks",
    ]
    assert arguments(IBACopyInnvestigate.fit) == {"X": empty, "session": None, "run_kwargs": None}
    assert arguments(IBACopyInnvestigate.fit_generator) == {
        "generator": empty,
        "steps_per_epoch": None,
        "epochs": 1,
        "verbose": 1,
        "session": None,
        "progbar": True,
    }
    assert arguments(IBACopyInnvestigate.analyze) == {"X": empty, "neuron_selection": None}
    assert list(arguments(IBACopyInnvestigate.predict)) == ["X"]
    assert issubclass(IBACopyInnvestigate, IBACopy)


class TestAnalyzing:
    @pytest.mark.parametrize(
        ("mode", "selections"),
        [
            ("max_activation", [(None, None)]),
            ("index", [(2, 2), ([2], 2), ([[0], [4], [1]], [0, 4, 1])]),
            ("all", [(None, DistributionTarget())]),
        ],
    )
    def test_each_sample_gets_its_map(self, explained, mode, selections):
        analyzer = fitted(build(), mode)
        for selection, target in selections:
            maps = analyzer.analyze(IMAGES[:3], selection, seed=5)
            assert maps.shape == (3, 16, 12)
            np.testing.assert_allclose(maps, explained(target), rtol=1e-3, atol=1e-5)
        alone = analyzer.analyze(IMAGES[1:2], None if mode != "index" else [4], seed=5)
        np.testing.assert_allclose(alone, maps[1:2], rtol=1e-3, atol=1e-5)

    def test_both_generations_of_keras_agree(self, library, explained):
        analyzer = fitted(build(library))
        np.testing.assert_allclose(
            analyzer.analyze(IMAGES[:3], seed=5), explained(None), rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(analyzer.predict(IMAGES), build(library)(IMAGES), rtol=1e-4, atol=1e-5)

    def test_many_images_are_explained_in_parts(self, monkeypatch):
        analyzer = fitted(build())
        expected = analyzer.analyze(IMAGES, seed=5)
        monkeypatch.setattr(TensorFlowFramework, "preferred_batch", lambda *_: 8)
        images, run = [], BottleneckOptimizer.run
        monkeypatch.setattr(
            BottleneckOptimizer,
            "run",
            lambda self, tail, *args, **kwargs: (
                images.append(tail.features.shape[0]),
                run(self, tail, *args, **kwargs),
            )[1],
        )
        np.testing.assert_allclose(analyzer.analyze(IMAGES, seed=5), expected, rtol=1e-3, atol=1e-5)
        # Two images with four copies each.
        assert images == [2] * 6

    def test_hyperparameters_are_set_once(self):
        analyzer = fitted(build())
        before = analyzer.analyze(IMAGES[:1], seed=5)
        analyzer.set_default(beta=1000.0)
        assert analyzer.analyze(IMAGES[:1], seed=5).sum() < before.sum()

    def test_the_copy_follows_on_request(self, library):
        model = build(library)
        analyzer = fitted(model)
        before = analyzer.analyze(IMAGES[:1], seed=5)
        model.get_layer("logits").set_weights([RNG.normal(size=(6, 5)), np.zeros(5)])
        np.testing.assert_array_equal(analyzer.analyze(IMAGES[:1], seed=5), before)
        with pytest.raises(InputError, match="update_variables before saving"):
            analyzer.save()
        analyzer.update_variables()
        analyzer.assert_variables_equal()
        assert not np.allclose(analyzer.analyze(IMAGES[:1], seed=5), before, rtol=1e-2)

    def test_several_inputs(self):
        image, table = keras.Input((6, 6, 2), name="image"), keras.Input((3,), name="table")
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(image))
        model = keras.Model([image, table], keras.layers.Dense(5)(keras.layers.Concatenate()([x, table])))
        X = [RNG.normal(size=(8, 6, 6, 2)), RNG.normal(size=(8, 3))]
        analyzer = IBACopyInnvestigate(model, feature_name="conv", steps=2)
        analyzer.fit(X)
        assert analyzer.analyze([x[:2] for x in X]).shape == (2, 6, 6)

    def test_sequences(self):
        inputs = keras.Input((9, 3))
        x = keras.layers.Conv1D(4, 3, padding="same", name="conv")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)))
        X = RNG.normal(size=(8, 9, 3))
        analyzer = IBACopyInnvestigate(model, feature_name="conv", steps=2)
        analyzer.fit(X)
        assert analyzer.analyze(X[:2]).shape == (2, 9)

    def test_a_layer_is_chosen_if_none_is_named(self):
        layers = keras.layers
        model = keras.Sequential([keras.Input((64, 64, 3))])
        for number, size in enumerate((4, 6, 8, 8), start=1):
            model.add(layers.Conv2D(size, 3, strides=1 + number % 2, padding="same", name=f"conv{number}"))
        model.add(layers.GlobalAveragePooling2D())
        model.add(layers.Dense(3))
        analyzer = IBACopyInnvestigate(model)
        assert analyzer.state_dict()["feature_name"] in ("conv1", "conv2")
        open_size = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(3, 3), layers.Flatten()])
        with pytest.raises(InputError, match="no definite shape; name a layer"):
            IBACopyInnvestigate(open_size)


class TestEstimating:
    def test_what_fit_takes(self, library):
        analyzer = IBACopyInnvestigate(build(library), feature_name="conv2")
        analyzer.fit(IMAGES, batch_size=5, verbose=0, disable_no_training_warning=True)
        other = IBACopyInnvestigate(build(library), feature_name="conv2")
        other.fit(IMAGES)
        assert analyzer.estimator.n_samples() == other.estimator.n_samples() == 12
        np.testing.assert_allclose(analyzer.estimator.std(), other.estimator.std(), rtol=1e-5)
        with pytest.raises(InputError, match="'batchsize' is no argument of fit"):
            analyzer.fit(IMAGES, batchsize=3)

    def test_steps_and_epochs(self, capsys):
        def generator():
            while True:
                yield IMAGES[:4], np.zeros(4)

        analyzer = IBACopyInnvestigate(build(), feature_name="conv2")
        analyzer.fit_generator(generator(), steps_per_epoch=2, epochs=3, verbose=0)
        assert analyzer.estimator.n_samples() == 24
        assert capsys.readouterr().err == ""
        analyzer.fit_generator(generator(), steps=1, verbose=1, workers=2)
        assert analyzer.estimator.n_samples() == 28
        assert "Estimating" in capsys.readouterr().err
        analyzer.fit_generator([(IMAGES, None), (IMAGES, None)], epochs=2, progbar=False)
        assert analyzer.estimator.n_samples() == 76
        with pytest.raises(InputError, match="gave no samples"):
            analyzer.fit_generator([])

    def test_data_sets_of_keras(self):
        class Data(keras.utils.PyDataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return IMAGES[index : index + 2], np.zeros(2)

        analyzer = IBACopyInnvestigate(build(), feature_name="conv2")
        analyzer.fit_generator(Data(), verbose=0)
        assert analyzer.estimator.n_samples() == 6
        data = tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros(12))).batch(6)
        analyzer.fit_generator(data, epochs=2, verbose=0)
        assert analyzer.estimator.n_samples() == 30

    def test_statistics_may_be_given(self, explained):
        estimator = TFWelfordEstimator(build().get_layer("conv2").output)
        estimator.fit(build().get_layer("conv2")(build().get_layer("conv1")(IMAGES)))
        analyzer = IBACopyInnvestigate(build(), feature_name="conv2", estimator=estimator, **HYPERPARAMETERS)
        np.testing.assert_allclose(
            analyzer.analyze(IMAGES[:3], seed=5), explained(None), rtol=1e-3, atol=1e-5
        )


class TestSaving:
    def test_the_state_makes_an_equal_analyzer(self, library):
        analyzer = fitted(build(library), "index")
        class_name, state = analyzer.save()
        assert class_name == "IBACopyInnvestigate"
        expected = analyzer.analyze(IMAGES[:2], [0, 3], seed=5)
        for name in (class_name, IBACopyInnvestigate):
            loaded = IBACopyInnvestigate.load(name, state)
            assert loaded.get_default() == analyzer.get_default()
            np.testing.assert_allclose(
                loaded.analyze(IMAGES[:2], [0, 3], seed=5), expected, rtol=1e-4, atol=1e-6
            )

    def test_a_file_makes_an_equal_analyzer(self, tmp_path):
        model = build()
        name = model.get_layer("conv2").output.name
        analyzer = IBACopyInnvestigate(model, feature_name=name, **HYPERPARAMETERS)
        analyzer.fit(IMAGES)
        analyzer.save_npz(tmp_path / "analyzer.npz")
        with np.load(tmp_path / "analyzer.npz", allow_pickle=False) as file:
            assert {file[name].dtype.kind for name in file.files} <= set("biufU")
        loaded = IBACopyInnvestigate.load_npz(tmp_path / "analyzer.npz")
        np.testing.assert_array_equal(loaded.predict(IMAGES), analyzer.predict(IMAGES))
        np.testing.assert_allclose(
            loaded.analyze(IMAGES[:2], seed=5), analyzer.analyze(IMAGES[:2], seed=5), rtol=1e-4, atol=1e-6
        )

    def test_given_statistics_and_no_statistics(self, tmp_path):
        mean, std = RNG.uniform(0.1, 1, (2, 7, 5, 6))
        active = RNG.random((7, 5, 6)) > 0.5
        given = {"feature_mean": mean, "feature_std": std, "feature_active": active}
        for options in ({}, given):
            analyzer = IBACopyInnvestigate(build(), feature_name="conv2", **options)
            # NumPy appends the ending, as it always does.
            analyzer.save_npz(tmp_path / "analyzer")
            state = IBACopyInnvestigate.load_npz(tmp_path / "analyzer").state_dict()
            assert state["estimator"] is None
            for name in given:
                np.testing.assert_array_equal(state[name], options.get(name))

    def test_wrong_files_and_states(self, tmp_path):
        (tmp_path / "broken.npz").write_bytes(b"PK but no more")
        np.savez(tmp_path / "pickled.npz", class_name="IBACopyInnvestigate", settings=np.array({"a": 1}))
        np.savez(tmp_path / "other.npz", x=np.zeros(3))
        for name in ("broken.npz", "pickled.npz", "other.npz", "missing.npz"):
            with pytest.raises(StateError, match=r"npz' (is|holds no)"):
                IBACopyInnvestigate.load_npz(tmp_path / name)
        _, state = IBACopyInnvestigate(build(), feature_name="conv2").save()
        with pytest.raises(StateError, match=r"class_name='LRP' is none of .*IBACopyInnvestigate"):
            IBACopyInnvestigate.load("LRP", state)
        with pytest.raises(StateError, match="lacks 'neuron_selection_mode'"):
            IBACopyInnvestigate.load(
                "IBACopyInnvestigate", {k: v for k, v in state.items() if k != "neuron_selection_mode"}
            )
        with pytest.raises(StateError, match="no model that can be loaded safely"):
            IBACopyInnvestigate.load("IBACopyInnvestigate", {**state, "model": state["model"][:100]})
        with pytest.raises(StateError, match="library='os'"):
            IBACopyInnvestigate.load("IBACopyInnvestigate", {**state, "library": "os"})

    def test_code_in_a_model_is_not_run(self):
        inputs = keras.Input((4, 4, 3))
        x = keras.layers.Lambda(lambda x: x * 2, output_shape=(4, 4, 3), name="code")(inputs)
        model = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Conv2D(3, 3, name="conv")(x)))
        name, state = IBACopyInnvestigate(model, feature_name="conv").save()
        with pytest.raises(StateError, match="no model that can be loaded safely"):
            IBACopyInnvestigate.load(name, state)

    @pytest.mark.parametrize("ending", [".h5", ".keras"])
    def test_code_in_a_model_of_keras_2_is_not_run(self, ending, tmp_path):
        written = str(tmp_path / "written.npy")
        inputs = tf_keras.Input((4, 4, 3))
        x = tf_keras.layers.Lambda(lambda x: x + len(np.save(written, 1) or ""))(inputs)
        x = tf_keras.layers.Flatten()(tf_keras.layers.Conv2D(3, 3, name="conv2")(x))
        tf_keras.Model(inputs, x).save(tmp_path / f"model{ending}")
        Path(written).unlink()
        name, state = IBACopyInnvestigate(build(tf_keras), feature_name="conv2").save()
        state["model"] = np.frombuffer((tmp_path / f"model{ending}").read_bytes(), np.uint8)
        with pytest.raises(StateError, match="no model that can be loaded safely"):
            IBACopyInnvestigate.load(name, state)
        assert not Path(written).exists()

    @pytest.mark.parametrize(
        ("module", "kind", "config"),
        [
            ("tf_keras.src.layers.core.tf_op_layer", "TFOpLambda", {"function": "io.write_file"}),
            ("tf_keras.src.layers.core.tf_op_layer", "ClassMethod", {"cls_symbol": "io.TFRecordWriter"}),
            ("subprocess", "Popen", {}),
            ("builtins", "function", "eval"),
            ("keras.utils", "function", "get_file"),
        ],
    )
    def test_a_model_of_keras_2_names_nothing_but_layers(self, module, kind, config):
        name, state = IBACopyInnvestigate(build(tf_keras), feature_name="conv2").save()
        content = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(state["model"].tobytes())) as model,
            zipfile.ZipFile(content, "w") as changed,
        ):
            for entry in model.namelist():
                data = model.read(entry)
                if entry == "config.json":
                    configuration = json.loads(data)
                    configuration["config"]["layers"][1]["config"]["activation"] = {
                        "module": module,
                        "class_name": kind,
                        "config": config,
                        "registered_name": kind,
                    }
                    data = json.dumps(configuration)
                changed.writestr(entry, data)
        state["model"] = np.frombuffer(content.getvalue(), np.uint8)
        with pytest.raises(StateError, match="names functions that do more than compute"):
            IBACopyInnvestigate.load(name, state)

    def test_registered_layers_and_functions_of_keras_2_are_restored(self):
        @tf_keras.saving.register_keras_serializable("iba_test")
        class Doubled(tf_keras.layers.Layer):
            def call(self, inputs):
                return inputs * 2

        @tf_keras.saving.register_keras_serializable("iba_test")
        def doubled(x):
            return x * 2

        model = build(tf_keras)
        x = tf_keras.layers.Dense(5, activation=doubled)(Doubled()(model.output) + 1.0)
        analyzer = IBACopyInnvestigate(tf_keras.Model(model.input, x), feature_name="conv2")
        loaded = IBACopyInnvestigate.load(*analyzer.save())
        np.testing.assert_allclose(loaded.predict(IMAGES), analyzer.predict(IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copied_analyzer_is_independent(library, way):
    model = build(library, "softmax")
    analyzer = fitted(model, "index", disable_model_checks=True)
    before = analyzer.analyze(IMAGES[:2], 3, seed=5)
    other, copied = way((model, analyzer))
    np.testing.assert_allclose(copied.analyze(IMAGES[:2], 3, seed=5), before, rtol=1e-4, atol=1e-6)
    other.get_layer("logits").set_weights([RNG.normal(size=(6, 5)), np.zeros(5)])
    copied.update_variables()
    found = copied.analyze(IMAGES[:2], 3, seed=5)
    assert not np.allclose(found, before, rtol=1e-2)
    loaded = IBACopyInnvestigate.load(*copied.save())
    np.testing.assert_allclose(loaded.analyze(IMAGES[:2], 3, seed=5), found, rtol=1e-4, atol=1e-6)
    analyzer.update_variables()
    np.testing.assert_array_equal(analyzer.analyze(IMAGES[:2], 3, seed=5), before)


class TestWrongUse:
    def test_a_softmax(self, library, explained):
        model = build(library, "softmax")
        with pytest.raises(InputError, match=r"ends in a softmax; give model_wo_softmax\(model\)"):
            IBACopyInnvestigate(model, feature_name="conv2")
        as_it_is = fitted(model, disable_model_checks=True).analyze(IMAGES[:3], seed=5)
        np.testing.assert_allclose(as_it_is, explained(None), rtol=1e-2, atol=1e-3)

    def test_the_softmax_can_be_removed(self, library, explained):
        analyzer = fitted(model_wo_softmax(build(library, "softmax")))
        np.testing.assert_allclose(
            analyzer.analyze(IMAGES[:3], seed=5), explained(None), rtol=1e-3, atol=1e-5
        )

    def test_models(self):
        with pytest.raises(InputError, match="model of type IBALayer is no Keras model"):
            IBACopyInnvestigate(IBALayer())
        model = build()
        pair = keras.Model(model.input, [model.output, model.get_layer("pool").output])
        with pytest.raises(InputError, match="the model has 2 outputs"):
            IBACopyInnvestigate(pair, feature_name="conv2")
        with pytest.raises(LayerError, match=r"'conv22'.*'conv2'"):
            IBACopyInnvestigate(model, feature_name="conv22")
        with pytest.raises(InputError, match="neuron_selection_mode='max' is none of"):
            IBACopyInnvestigate(model, "max")

    def test_selections(self):
        with pytest.raises(InputError, match="neuron_selection is for neuron_selection_mode='index'"):
            fitted(build()).analyze(IMAGES[:1], 2)
        analyzer = fitted(build(), "index")
        with pytest.raises(InputError, match="and none is given"):
            analyzer.analyze(IMAGES[:1])
        with pytest.raises(InputError, match="target=5 is outside the model's 5 classes"):
            analyzer.analyze(IMAGES[:1], 5)
        with pytest.raises(InputError, match=r"target has shape \(2,\) for 3 images"):
            analyzer.analyze(IMAGES[:3], [1, 2])

    def test_samples(self):
        analyzer = IBACopyInnvestigate(build(), feature_name="conv2")
        with pytest.raises(NotEstimatedError, match="0 samples seen"):
            analyzer.analyze(IMAGES[:1])
        analyzer.fit(IMAGES)
        with pytest.raises(InputError, match=r"has shape \(16, 12, 3\)"):
            analyzer.analyze(IMAGES[0])
        with pytest.raises(InputError, match="X holds nan"):
            analyzer.analyze(IMAGES[:1] * np.nan)
        with pytest.raises(InputError, match="X is an empty batch"):
            analyzer.analyze(IMAGES[:0])


def test_a_model_built_in_a_v1_graph():
    """Keras 2 in a v1 graph with a session, and the feature map by its tensor's name."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        model = tf_keras.Sequential(
            [
                tf_keras.layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 3), name="conv"),
                tf_keras.layers.Flatten(),
                tf_keras.layers.Dense(5),
            ]
        )
        session.run(tf.compat.v1.global_variables_initializer())
        images = IMAGES[:, :8, :8]
        for name in ("conv", model.get_layer("conv").output.name):
            analyzer = IBACopyInnvestigate(model, neuron_selection_mode="index", feature_name=name, steps=2)
            analyzer.fit(images)
            assert analyzer.analyze(images[:2], neuron_selection=3).shape == (2, 8, 8)
        expected = session.run(model.output, {model.input: images})
        np.testing.assert_allclose(analyzer.predict(images), expected, rtol=1e-5, atol=1e-6)
