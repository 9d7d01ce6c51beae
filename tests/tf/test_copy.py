"""The bottleneck in a copy of a graph, for graphs of every kind."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from iba_core import Explainer
from iba_core.errors import InputError, LayerError, NotEstimatedError, StateError
from iba_tf import GraphModel, IBACopy, IBALayer, TFWelfordEstimator

v1 = tf.compat.v1

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 6, 6, 2)).astype(np.float32)
TABLE = RNG.normal(size=(12, 3)).astype(np.float32)
SHAPES = {
    "conv1/kernel": (3, 3, 2, 4),
    "conv1/bias": (4,),
    "conv2/kernel": (3, 3, 4, 4),
    "conv2/bias": (4,),
    "classes/kernel": (7, 5),
    "classes/bias": (5,),
    "score/kernel": (7, 1),
    "score/bias": (1,),
}
WEIGHTS = {name: RNG.normal(0, 0.6, shape).astype(np.float32) for name, shape in SHAPES.items()}
TABLE_OF_FOUR = RNG.normal(size=(12, 4)).astype(np.float32)
HYPERPARAMETERS = {"steps": 4, "batch_size": 5, "beta": 0.01}
"""With so little weight of the information, the loss decides about the map."""


def network(image, table, weights):
    """A residual block with two outputs. A second input and a skip connection reach its tail."""

    def convolution(x, name):
        return tf.nn.conv2d(x, weights[f"{name}/kernel"], 1, "SAME") + weights[f"{name}/bias"]

    skip = convolution(image, "conv1")
    feature = tf.nn.relu(skip, name="feature")
    x = tf.reduce_mean(convolution(feature, "conv2") + skip, axis=(1, 2))
    x = tf.concat([x, table], axis=1)
    outputs = [
        tf.add(tf.matmul(x, weights[f"{name}/kernel"]), weights[f"{name}/bias"], name=name)
        for name in ("classes", "score")
    ]
    return feature, *outputs


def functional(library):
    """The network as a model of Keras 3 or 2."""
    layers = library.layers
    image, table = library.Input((6, 6, 2), name="image"), library.Input((3,), name="table")
    skip = layers.Conv2D(4, 3, padding="same", name="conv1")(image)
    feature = layers.ReLU(name="feature")(skip)
    x = layers.Conv2D(4, 3, padding="same", name="conv2")(feature)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add(name="add")([x, skip]))
    x = layers.Concatenate(name="join")([x, table])
    outputs = [layers.Dense(5, name="classes")(x), layers.Dense(1, name="score")(x)]
    model = library.Model([image, table], outputs)
    for name in ("conv1", "conv2", "classes", "score"):
        model.get_layer(name).set_weights([WEIGHTS[f"{name}/kernel"], WEIGHTS[f"{name}/bias"]])
    return model


@keras.saving.register_keras_serializable("iba_tests")
class Subclassed(keras.Model):
    """The network as a model without a graph of symbolic tensors."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv1 = keras.layers.Conv2D(4, 3, padding="same", name="conv1")
        self.relu = keras.layers.ReLU(name="feature")
        self.conv2 = keras.layers.Conv2D(4, 3, padding="same", name="conv2")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.classes = keras.layers.Dense(5, name="classes")
        self.score = keras.layers.Dense(1, name="score")

    def call(self, inputs):
        image, table = inputs
        skip = self.conv1(image)
        x = keras.ops.concatenate([self.pool(self.conv2(self.relu(skip)) + skip), table], axis=1)
        return [self.classes(x), self.score(x)]


def subclassed():
    model = Subclassed()
    model([IMAGES[:1], TABLE[:1]])
    for name in ("conv1", "conv2", "classes", "score"):
        getattr(model, name).set_weights([WEIGHTS[f"{name}/kernel"], WEIGHTS[f"{name}/bias"]])
    return model


SPECS = (tf.TensorSpec((None, 6, 6, 2), tf.float32, "image"), tf.TensorSpec((None, 3), tf.float32, "table"))


class Module(tf.Module):
    """The network as TensorFlow's own module."""

    def __init__(self):
        super().__init__()
        self.weights = {name: tf.Variable(value, name=name) for name, value in WEIGHTS.items()}

    @tf.function(input_signature=SPECS)
    def __call__(self, image, table):
        _, classes, score = network(image, table, self.weights)
        return {"classes": classes, "score": score}


@pytest.fixture
def session():
    """The network as a v1 graph, with reference and resource variables, and a session."""
    graph = tf.Graph()
    with graph.as_default():
        image = v1.placeholder(tf.float32, (None, 6, 6, 2), name="image")
        table = v1.placeholder(tf.float32, (None, 3), name="table")
        weights = {
            name: v1.get_variable(name, initializer=value, use_resource="conv" in name)
            for name, value in WEIGHTS.items()
        }
        feature, classes, score = network(image, table, weights)
        initializer = v1.global_variables_initializer()
    with v1.Session(graph=graph).as_default() as session:
        session.run(initializer)
        # The default graph is another one: the code under test must find this one.
        yield SimpleNamespace(
            graph=graph,
            session=session,
            image=image,
            table=table,
            weights=weights,
            feature=feature,
            classes=classes,
            score=score,
        )
        session.close()


@pytest.fixture(scope="module")
def expected():
    """Capacities of three images for the class 2, by the Explainer on the model of Keras 3."""
    explainer = Explainer(functional(keras), layer="feature", steps=4, samples=5, beta=0.01)
    explainer.fit([((IMAGES, TABLE),)], progbar=False)
    return explainer.explain((IMAGES[:3], TABLE[:3]), target=2, seed=7).capacity


def outputs_of(s, images=IMAGES, table=TABLE):
    return s.session.run([s.classes, s.score], {s.image: images, s.table: table})


def close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.fixture
def bound(session):
    """The v1 graph with its copy, a classification loss, and an estimated distribution."""
    iba = IBACopy(session.feature, [session.classes, session.score], **HYPERPARAMETERS)
    target = iba.set_classification_loss()
    iba.fit({session.image: IMAGES, session.table: TABLE})
    return SimpleNamespace(iba=iba, target=target, **vars(session))


def analyze(bound, images=1, **options):
    feeds = {bound.image: IMAGES[:images]}, {"table": TABLE[:images], bound.target: 2}
    return bound.iba.analyze(*feeds, seed=7, **options)


def set_value(s, name, value):
    """Change a variable of the v1 graph."""
    with s.graph.as_default():
        s.session.run(v1.assign(s.weights[name], value))


def test_the_signatures_are_the_references():
    def arguments(function):
        parameters = inspect.signature(function).parameters.values()
        return {
            p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
        }

    empty = inspect.Parameter.empty
    overrides = ("batch_size", "steps", "beta", "learning_rate", "min_std", "smooth_std", "normalize_beta")
    given = arguments(IBACopy.__init__)
    assert list(given) == [
        "feature",
        "outputs",
        "estimator",
        "feature_mean",
        "feature_std",
        "feature_active",
        "graph",
        "session",
        "copy_session_config",
        *overrides,
    ]
    assert [given[name] for name in overrides] == [10, 10, 10, 1, 0.01, 1, True]
    assert set(list(given.values())[:9]) == {empty, None}
    assert arguments(IBACopy.analyze) == {
        "feature_feed_dict": empty,
        **dict.fromkeys(("copy_feed_dict", *overrides, "session", "pass_mask")),
        "progbar": False,
    }
    for name in ("set_default", "fit", "fit_generator", "restrict_flow"):
        assert arguments(getattr(IBACopy, name)) == arguments(getattr(IBALayer, name))
    for name in (
        "get_copied_outputs",
        "assert_variables_equal",
        "update_variables",
        "set_classification_loss",
    ):
        assert arguments(getattr(IBACopy, name)) == {}
    for name in ("copied_session_and_graph_as_default", "feature_shape", "state_dict"):
        assert arguments(getattr(IBACopy, name)) == {}
    for name in ("get_feature", "predict"):
        assert arguments(getattr(IBACopy, name)) == {"feed_dict": empty}


class TestAVersion1Graph:
    def test_it_is_explained_as_any_other_model(self, bound, expected):
        close(analyze(bound), expected[0])
        close(analyze(bound, images=3), expected)
        close(analyze(bound, images=3, max_batch=5), expected)

    def test_it_is_explained_from_within(self, session, expected):
        """As in v1 programs: the graph and the session are the default ones all the time."""
        s = session
        with s.graph.as_default():
            operations = len(s.graph.get_operations())
            iba = IBACopy("feature:0", ["classes:0"], **HYPERPARAMETERS)
            target = iba.set_classification_loss()
            iba.fit_generator({s.image: IMAGES[i : i + 4], s.table: TABLE[i : i + 4]} for i in (0, 4, 8))
            table = target.graph.get_tensor_by_name("table:0")
            found = iba.analyze({s.image: IMAGES[:1]}, {table: TABLE[:1], target: [2]}, seed=7)
            np.testing.assert_array_equal(iba.predict({s.image: IMAGES, s.table: TABLE}), outputs_of(s)[:1])
            assert len(s.graph.get_operations()) == operations
        close(found, expected[0])

    def test_the_places_are_named_in_many_ways(self, session):
        s = session
        for feature in (s.feature, "feature:0", "feature", s.feature.op):
            for outputs in ([s.classes], ["classes:0"], "classes", s.classes, [s.classes.op]):
                iba = IBACopy(feature, outputs, graph=s.graph, session=s.session)
                assert tuple(iba.feature_shape()) == (None, 6, 6, 4)
                assert iba.state_dict()["feature_name"] == "feature:0"
                assert iba.state_dict()["output_names"] == ["classes:0"]

    def test_predictions_and_features_are_the_originals(self, bound):
        found = bound.iba.predict({bound.image: IMAGES, bound.table: TABLE})
        for copied, original in zip(found, outputs_of(bound), strict=True):
            np.testing.assert_allclose(copied, original, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            bound.iba.get_feature({bound.image: IMAGES}),
            bound.session.run(bound.feature, {bound.image: IMAGES}),
            rtol=1e-5,
            atol=1e-6,
        )

    def test_threads_share_it(self, bound):
        expected = [analyze(bound, beta=beta) for beta in (0.01, 1, 100, 1000)]
        with ThreadPoolExecutor(4) as threads:
            found = threads.map(lambda beta: analyze(bound, beta=beta), (0.01, 1, 100, 1000))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)

    def test_the_original_is_not_altered(self, bound):
        before = bound.graph.as_graph_def().SerializeToString(deterministic=True)
        values = bound.session.run(bound.weights)
        analyze(bound)
        with bound.iba.copied_session_and_graph_as_default():
            bound.iba.get_copied_outputs()
        assert bound.graph.as_graph_def().SerializeToString(deterministic=True) == before
        for name, value in bound.session.run(bound.weights).items():
            np.testing.assert_array_equal(value, values[name])

    @pytest.mark.parametrize("name", ["conv2/kernel", "classes/kernel", "score/bias"])
    def test_changes_reach_the_copy_when_it_is_updated(self, bound, name):
        """Resource and reference variables, those of the second output included."""
        before, feed = analyze(bound), {bound.image: IMAGES[:1], bound.table: TABLE[:1]}
        bound.iba.assert_variables_equal()
        set_value(bound, name, 2 * WEIGHTS[name] + 1)
        with pytest.raises(AssertionError, match=f"'{name}'.*update_variables"):
            bound.iba.assert_variables_equal()
        np.testing.assert_array_equal(analyze(bound), before)
        bound.iba.update_variables()
        bound.iba.assert_variables_equal()
        for copied, original in zip(
            bound.iba.predict(feed), bound.session.run([bound.classes, bound.score], feed), strict=True
        ):
            np.testing.assert_allclose(copied, original, rtol=1e-5, atol=1e-6)
        changed = not np.allclose(analyze(bound), before, rtol=1e-3)
        assert changed == (name != "score/bias")

    def test_the_copied_graph_and_session_are_real(self, bound):
        feed = {"image:0": IMAGES, "table:0": TABLE}
        with bound.iba.copied_session_and_graph_as_default():
            graph, session = v1.get_default_graph(), v1.get_default_session()
            outputs = bound.iba.get_copied_outputs()
            assert session.graph is graph
            assert graph is not bound.graph
            assert [x.name for x in outputs] == ["classes:0", "score:0"]
            assert all(x.graph is graph for x in outputs)
            for copied, original in zip(session.run(outputs, feed), outputs_of(bound), strict=True):
                np.testing.assert_allclose(copied, original, rtol=1e-5, atol=1e-6)
        assert v1.get_default_session() is bound.session
        set_value(bound, "classes/bias", WEIGHTS["classes/bias"] + 1)
        bound.iba.update_variables()
        np.testing.assert_allclose(session.run(outputs[0], feed), outputs_of(bound)[0], rtol=1e-5, atol=1e-6)

    def test_the_session_takes_a_configuration(self, session):
        config = v1.ConfigProto(intra_op_parallelism_threads=1)
        iba = IBACopy(session.feature, [session.classes], copy_session_config=config)
        with iba.copied_session_and_graph_as_default():
            assert v1.get_default_session()._config.intra_op_parallelism_threads == 1

    def test_only_the_tail_runs_in_the_loop(self):
        runs = {"head": [], "tail": []}

        def noted(x, place):
            def note(value):
                runs[place].append(len(value))
                return np.zeros_like(value)

            zeros = tf.numpy_function(note, [x], tf.float32)
            return x + tf.stop_gradient(tf.ensure_shape(zeros, x.shape))

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32, "x")])
        def model(x):
            feature = tf.nn.relu(noted(x, "head"), name="feature")
            return tf.matmul(noted(feature, "tail"), tf.ones((4, 3)))

        iba = IBACopy("feature", None, graph=model, **HYPERPARAMETERS)
        iba.set_classification_loss()
        iba.fit(TABLE_OF_FOUR)
        for _ in range(2):
            for rows in runs.values():
                rows.clear()
            iba.analyze(TABLE_OF_FOUR[:1], target=2)
        assert runs == {"head": [1], "tail": [5] * 4}

    def test_one_trace_serves_all_images_and_leaves_nothing(self, bound, monkeypatch):
        copied = bound.target.graph
        imports, import_graph_def = [], tf.graph_util.import_graph_def
        for module in (tf.graph_util, v1):
            monkeypatch.setattr(
                module,
                "import_graph_def",
                lambda *args, **kwargs: (imports.append(1), import_graph_def(*args, **kwargs))[1],
            )
        analyze(bound)
        assert imports
        imports.clear()
        sizes = [len(graph.get_operations()) for graph in (bound.graph, copied, v1.get_default_graph())]
        process = psutil.Process()
        for index in range(100):
            feeds = (
                {bound.image: IMAGES[index % 12][None]},
                {"table": TABLE[index % 12][None], bound.target: 1},
            )
            bound.iba.analyze(*feeds, steps=2)
            if index == 20:
                gc.collect()
                memory = process.memory_info().rss
        gc.collect()
        assert not imports
        assert sizes == [len(g.get_operations()) for g in (bound.graph, copied, v1.get_default_graph())]
        assert process.memory_info().rss - memory < 20 * 2**20


class TestLosses:
    def test_a_cross_entropy_as_model_loss_equals_the_classification(self, bound, expected):
        with bound.iba.copied_session_and_graph_as_default():
            logits, _ = bound.iba.get_copied_outputs()
            labels = v1.placeholder(tf.int32, (None,), name="labels")
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            column = loss[:, None]
        table = loss.graph.get_tensor_by_name("table:0")
        for shaped in (loss, column):
            bound.iba.set_model_loss(shaped)
            found = bound.iba.analyze(
                {bound.image: IMAGES[:3]}, {table: TABLE[:3], labels: [2, 2, 2]}, seed=7
            )
            close(found, expected)
        with pytest.raises(InputError, match=r"the model takes .*'labels'"):
            bound.iba.analyze({bound.image: IMAGES[:1]}, {table: TABLE[:1]})
        with pytest.raises(InputError, match="without a class"):
            bound.iba.analyze({bound.image: IMAGES[:1]}, {table: TABLE[:1], labels: [2]}, target=2)

    def test_a_mean_is_for_one_image(self, bound, expected):
        with bound.iba.copied_session_and_graph_as_default():
            logits, _ = bound.iba.get_copied_outputs()
            loss = -tf.reduce_mean(tf.nn.log_softmax(logits)[:, 2])
        bound.iba.set_model_loss(loss, v1.train.AdamOptimizer)
        feed = {bound.image: IMAGES[:1], bound.table: TABLE[:1]}
        close(bound.iba.analyze(feed, {}, seed=7), expected[0])
        assert bound.iba.target is None
        feed = {bound.image: IMAGES[:2], bound.table: TABLE[:2]}
        with pytest.raises(InputError, match="2 images, and a scalar model_loss cannot tell them apart"):
            bound.iba.analyze(feed)

    def test_a_loss_may_use_any_output_and_new_variables(self, bound):
        with bound.iba.copied_session_and_graph_as_default():
            _, score = bound.iba.get_copied_outputs()
            wanted = v1.get_variable("wanted", initializer=np.float32(0.5))
            loss = tf.square(score - wanted)
            with pytest.raises(InputError, match="'wanted' of the model_loss is not initialized"):
                bound.iba.set_model_loss(loss)
            v1.get_default_session().run(wanted.initializer)
        bound.iba.set_model_loss(loss)
        feed = {bound.image: IMAGES[:1], bound.table: TABLE[:1]}
        found = bound.iba.analyze(feed, seed=7)
        explainer = Explainer(functional(keras), layer="feature", steps=4, samples=5, beta=0.01)
        explainer.fit([((IMAGES, TABLE),)], progbar=False)
        reference = explainer.explain(
            (IMAGES[:1], TABLE[:1]), target=lambda outputs: -tf.square(outputs[1][:, 0] - 0.5), seed=7
        )
        close(found, reference.capacity[0])
        # The variables of the model are the copy's in this loss, too.
        set_value(bound, "score/bias", WEIGHTS["score/bias"] + 3)
        bound.iba.update_variables()
        assert not np.allclose(bound.iba.analyze(feed, seed=7), found, rtol=1e-3)

    def test_wrong_losses_are_named(self, bound):
        with pytest.raises(InputError, match="'classes:0' is no tensor of the copied graph"):
            bound.iba.set_model_loss(bound.classes)
        with bound.iba.copied_session_and_graph_as_default():
            logits, _ = bound.iba.get_copied_outputs()
            with pytest.raises(InputError, match=r"model_loss has shape \(None, 5\)"):
                bound.iba.set_model_loss(logits)
            with pytest.raises(InputError, match="'SGD' is not Adam"):
                bound.iba.set_model_loss(logits[:, 0], keras.optimizers.SGD)
            table = v1.get_default_graph().get_tensor_by_name("table:0")
            with pytest.raises(LayerError, match="feature:0"):
                bound.iba.set_model_loss(tf.reduce_mean(table))

    def test_a_softmax_is_refused_and_its_logits_named(self, session):
        with session.graph.as_default():
            probabilities = tf.identity(tf.nn.softmax(session.classes), name="probabilities")
        iba = IBACopy("feature:0", probabilities)
        with pytest.raises(InputError, match=r"comes from a softmax.*'classes:0'"):
            iba.set_classification_loss()


class TestState:
    def test_it_makes_a_round_trip(self, bound, session):
        bound.iba.set_default(beta=3.0, smooth_std=0)
        other = IBACopy("feature", ["classes", "score"], graph=session.graph)
        other.load_state_dict(bound.iba.state_dict())
        assert other.get_default() == bound.iba.get_default()
        target = other.set_classification_loss()
        found = other.analyze({bound.image: IMAGES[:1], bound.table: TABLE[:1]}, {target: 2}, seed=7)
        np.testing.assert_allclose(found, analyze(bound), rtol=1e-5, atol=1e-7)
        state = {**bound.iba.state_dict(), "feature_name": "other:0"}
        with pytest.raises(
            StateError, match="is of the feature map 'other:0', the bottleneck is at 'feature:0'"
        ):
            other.load_state_dict(state)
        with pytest.raises(StateError, match="lacks feature_name, output_names"):
            other.load_state_dict(
                {k: v for k, v in state.items() if k not in ("output_names", "feature_name")}
            )

    def test_an_estimator_or_statistics_may_be_given(self, bound, expected):
        estimator = TFWelfordEstimator("feature:0", bound.graph)
        estimator.fit({bound.image: IMAGES}, bound.session)
        active = estimator.active_neurons()
        for options in (
            {"estimator": estimator},
            {"feature_mean": estimator.mean(), "feature_std": estimator.std(), "feature_active": active},
        ):
            iba = IBACopy(bound.feature, bound.classes, **options, **HYPERPARAMETERS)
            target = iba.set_classification_loss()
            found = iba.analyze({bound.image: IMAGES[:1], bound.table: TABLE[:1]}, {target: 2}, seed=7)
            close(found, expected[0])

    def test_the_original_may_be_run_instead_to_estimate(self, session):
        iba = IBACopy(session.feature, session.classes)
        metadata = v1.RunMetadata()
        options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
        set_value(session, "conv1/bias", WEIGHTS["conv1/bias"] + 1)
        iba.fit(
            {session.image: IMAGES},
            session.session,
            run_kwargs={"options": options, "run_metadata": metadata},
        )
        assert metadata.step_stats.dev_stats
        iba.fit_generator([{session.image: IMAGES}], run_kwargs={"options": options}, progbar=False)
        assert iba.estimator.n_samples() == 24
        with session.graph.as_default(), tf.name_scope("further"):
            further = tf.square(tf.identity(session.feature), name="square")
        with session.graph.as_default():
            output = tf.reduce_sum(further, (1, 2))
        of_scope = IBACopy("further", [output], graph=session.graph)
        of_scope.fit({session.image: IMAGES}, session.session)
        np.testing.assert_allclose(
            of_scope.estimator.mean(),
            session.session.run(further, {session.image: IMAGES}).mean(axis=0),
            rtol=1e-4,
            atol=1e-5,
        )
        feature = session.session.run(session.feature, {session.image: IMAGES})
        np.testing.assert_allclose(iba.estimator.mean(), feature.mean(axis=0), rtol=1e-4, atol=1e-5)

    def test_a_generator_is_stopped_at_the_sample(self, session):
        iba = IBACopy(session.feature, session.classes)
        iba.fit_generator(({session.image: IMAGES} for _ in range(9)), n_samples=30, progbar=False)
        assert iba.estimator.n_samples() == 30

    def test_hyperparameters_and_layer_arguments(self, session):
        iba = IBACopy(session.feature, session.classes, beta=3, steps=2, name="neck")
        assert iba.get_default()["beta"] == 3
        assert iba.name == "neck"
        with iba.copied_session_and_graph_as_default():
            assert any(op.name.startswith("neck/") for op in v1.get_default_graph().get_operations())
        with pytest.raises(InputError, match="steps=-1"):
            IBACopy(session.feature, session.classes, steps=-1)
        with pytest.raises(ValueError, match="nonsense"):
            IBACopy(session.feature, session.classes, nonsense=1)

    def test_the_report(self, bound, expected):
        bound.iba.collect_all()
        capacity = analyze(bound)
        report = bound.iba.get_report()
        assert list(report) == ["init", 0, 1, 2, 3, "final"]
        assert sorted(report["init"]) == bound.iba.available_report_variables()
        np.testing.assert_allclose(report["final"]["capacity"][0], capacity, rtol=1e-5)
        assert report[0]["logits"].shape == (5, 5)

    def test_the_pass_mask_spares_features(self, bound):
        mask = np.zeros((6, 6, 4), bool)
        mask[:3] = True
        capacity = analyze(bound, pass_mask=mask)
        assert np.all(capacity[:3] == 0)
        assert capacity[3:].sum() > 0


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
class TestCopies:
    def explain(self, iba):
        return iba.analyze({"image": IMAGES[:1], "table": TABLE[:1]}, target=2, seed=7)

    def test_of_a_v1_graph(self, bound, way):
        before = analyze(bound)
        copied = way(bound.iba)
        with copied.restrict_flow():
            copied.predict({"image": IMAGES[:1], "table": TABLE[:1]})
        set_value(bound, "conv2/kernel", 2 * WEIGHTS["conv2/kernel"] + 1)
        bound.iba.update_variables()
        changed = analyze(bound)
        assert not np.allclose(changed, before, rtol=1e-3)
        copied.fit({"image": IMAGES, "table": TABLE})
        assert bound.iba.estimator.n_samples() == 12
        copied.load_state_dict(bound.iba.state_dict())
        np.testing.assert_array_equal(self.explain(copied), before)
        copied.assert_variables_equal()
        feed = {"image": IMAGES[:1], "table": TABLE[:1], copied.target: 2}
        np.testing.assert_array_equal(copied.analyze(feed, seed=7), before)
        np.testing.assert_array_equal(analyze(bound), changed)

    def test_with_a_keras_model(self, way, expected):
        model = functional(keras)
        iba = IBACopy(model.get_layer("feature"), model.outputs, graph=model, **HYPERPARAMETERS)
        iba.set_classification_loss()
        iba.fit({"image": IMAGES, "table": TABLE})
        other, copied = way((model, iba))
        close(self.explain(copied), expected[0])
        rng = np.random.default_rng(5)
        for layer in ("conv2", "classes"):
            weights = other.get_layer(layer).get_weights()
            other.get_layer(layer).set_weights([rng.normal(size=x.shape) for x in weights])
        close(self.explain(copied), expected[0])
        with pytest.raises(AssertionError, match="conv2"):
            copied.assert_variables_equal()
        copied.update_variables()
        found = self.explain(copied)
        assert not np.allclose(found, expected[0], rtol=1e-2)
        explainer = Explainer(other, layer="feature", steps=4, samples=5, beta=0.01)
        explainer.fit([((IMAGES, TABLE),)], progbar=False)
        close(found, explainer.explain((IMAGES[:1], TABLE[:1]), target=2, seed=7).capacity[0])
        iba.update_variables()
        close(self.explain(iba), expected[0])

    def test_of_a_function(self, way, expected):
        module = Module()
        iba = IBACopy("feature", ["classes"], graph=module.__call__, **HYPERPARAMETERS)
        iba.fit({"image": IMAGES, "table": TABLE})
        copied = way(iba)
        module.weights["conv2/kernel"].assign(WEIGHTS["conv2/kernel"] + 1)
        copied.update_variables()
        with pytest.raises(InputError, match="no model loss yet"):
            self.explain(copied)
        copied.set_classification_loss()
        close(self.explain(copied), expected[0])
        untraced = IBACopy("feature", None, graph=tf.function(lambda x: tf.nn.relu(x, name="feature") * 2))
        with pytest.raises(InputError, match="cannot be copied, because its model has no graph"):
            way(untraced)

    def test_a_subclassed_model(self, way):
        iba = IBACopy("feature", None, graph=subclassed(), **HYPERPARAMETERS)
        iba.set_classification_loss()
        iba.fit([IMAGES, TABLE])
        before = iba.analyze([IMAGES[:1], TABLE[:1]], target=2, seed=7)
        found = way(iba).analyze([IMAGES[:1], TABLE[:1]], target=2, seed=7)
        np.testing.assert_allclose(found, before, rtol=1e-4, atol=1e-6)


class TestRestrictedFlow:
    def test_it_acts_on_predictions_and_on_the_copied_session(self, bound):
        feed = {bound.image: IMAGES[:1], bound.table: TABLE[:1]}
        with pytest.raises(NotEstimatedError, match="call analyze before"), bound.iba.restrict_flow():
            pass
        before = bound.iba.predict(feed)[0]
        bound.iba.analyze({bound.image: IMAGES[:1]}, {"table": TABLE[:1], bound.target: 2}, beta=1000)
        fed = {"image:0": IMAGES[:1], "table:0": TABLE[:1]}
        with bound.iba.restrict_flow():
            assert not np.allclose(bound.iba.predict(feed)[0], before, atol=1e-2)
            with bound.iba.copied_session_and_graph_as_default():
                session, (logits, _) = v1.get_default_session(), bound.iba.get_copied_outputs()
            first, second = session.run(logits, fed), session.run(logits, fed)
            assert not np.allclose(first, before, atol=1e-2)
            assert not np.allclose(first, second)
        np.testing.assert_allclose(bound.iba.predict(feed)[0], before, rtol=1e-6)
        np.testing.assert_allclose(session.run(logits, fed), before, rtol=1e-5, atol=1e-6)
        with pytest.raises(ZeroDivisionError), bound.iba.restrict_flow():
            raise ZeroDivisionError
        np.testing.assert_allclose(session.run(logits, fed), before, rtol=1e-5, atol=1e-6)

    def test_a_copied_graph_that_is_made_meanwhile_is_restricted_until_the_end(self, bound):
        bound.iba.analyze({bound.image: IMAGES[:1]}, {"table": TABLE[:1], bound.target: 2}, beta=1000)
        copied = copy.deepcopy(bound.iba)
        before = copied.predict({"image": IMAGES[:1], "table": TABLE[:1]})[0]
        fed = {"image:0": IMAGES[:1], "table:0": TABLE[:1]}
        with copied.restrict_flow(), copied.copied_session_and_graph_as_default():
            session, (logits, _) = v1.get_default_session(), copied.get_copied_outputs()
            assert not np.allclose(session.run(logits, fed), before, atol=1e-2)
        np.testing.assert_allclose(session.run(logits, fed), before, rtol=1e-5, atol=1e-6)


class TestWrongUse:
    @pytest.mark.parametrize(
        ("feature", "outputs", "message"),
        [
            ("featur:0", ["classes:0"], "'feature"),
            ("feature:0", ["clases:0"], "'classes'"),
            ("feature:3", ["classes:0"], "feature:3"),
            ("image:0", ["table:0"], "depends"),
            ("conv1/kernel", ["classes:0"], "conv1/kernel"),
        ],
    )
    def test_wrong_places_are_named(self, session, feature, outputs, message):
        with pytest.raises((InputError, LayerError), match=message):
            IBACopy(feature, outputs, graph=session.graph)

    def test_no_session_and_no_graph(self, session):
        with pytest.raises(InputError, match="outputs=None"):
            IBACopy(session.feature, None)
        with session.graph.as_default():
            stranger = tf.Graph()
            with stranger.as_default():
                other = v1.placeholder(tf.float32, (None, 3), name="other")
            with pytest.raises(InputError, match="'other:0' is in another graph"):
                IBACopy(session.feature, [session.classes, other])
        with pytest.raises(InputError, match="symbolic tensors, not tensors that hold values"):
            IBACopy(tf.constant(1.0), [session.classes])
        with pytest.raises(StateError, match=r"no model file 'nowhere\.keras'"):
            IBACopy("feature", None, graph="nowhere.keras")

    def test_an_uninitialized_variable(self):
        graph = tf.Graph()
        with graph.as_default():
            x = v1.placeholder(tf.float32, (None, 3), name="x")
            y = tf.matmul(tf.nn.relu(x, name="feature"), v1.get_variable("w", (3, 2)))
            with v1.Session() as session, pytest.raises(InputError, match="no value in the session"):
                IBACopy("feature", y, session=session)

    def test_feeds_are_checked(self, bound):
        feed = {bound.target: 2, "table": TABLE[:1]}
        with pytest.raises(InputError, match=r"'image' has shape \(6, 6, 2\)"):
            bound.iba.analyze({bound.image: IMAGES[0]}, feed)
        with pytest.raises(InputError, match="'picture'"):
            bound.iba.analyze({"picture": IMAGES[:1]}, feed)
        with pytest.raises(InputError, match="gives no class"):
            bound.iba.analyze({bound.image: IMAGES[:1]}, {"table": TABLE[:1]})
        with pytest.raises(InputError, match="target=5 is outside the model's 5 classes"):
            bound.iba.analyze({bound.image: IMAGES[:1]}, {"table": TABLE[:1], bound.target: 5})
        with pytest.raises(InputError, match="the input 'image' holds nan"):
            bound.iba.analyze({bound.image: IMAGES[:1] * np.nan}, feed)
        with pytest.raises(InputError, match="empty batch"):
            bound.iba.analyze({bound.image: IMAGES[:0]}, {"table": TABLE[:0], bound.target: 2})

    def test_order_of_calls(self, session):
        iba = IBACopy(session.feature, session.classes)
        feed = {session.image: IMAGES[:1], session.table: TABLE[:1]}
        with pytest.raises(InputError, match="no model loss yet"):
            iba.analyze(feed, {})
        target = iba.set_classification_loss()
        with pytest.raises(NotEstimatedError, match="0 samples seen"):
            iba.analyze(feed, {target: 1})


class TestModelsOfAllKinds:
    """The same network has the same explanation in every form, by names, layers and symbolic tensors."""

    def check(self, iba, expected, feed=None):
        feed = feed or (lambda images: {"image": IMAGES[:images], "table": TABLE[:images]})
        target = iba.set_classification_loss()
        iba.fit(feed(12))
        close(iba.analyze(feed(3), {target: [2, 2, 2]}, seed=7), expected)
        found = tf.nest.flatten(iba.predict(feed(12)))
        for copied, original in zip(found, self.outputs[: len(found)], strict=True):
            np.testing.assert_allclose(copied, original, rtol=1e-4, atol=1e-5)

    @pytest.fixture(autouse=True)
    def predict(self):
        weights = {name: tf.constant(value) for name, value in WEIGHTS.items()}
        self.outputs = network(IMAGES, TABLE, weights)[1:]

    @pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
    def test_functional(self, library, expected):
        model = functional(library)
        layer = model.get_layer("feature")
        nodes = [len(x._inbound_nodes) + len(x._outbound_nodes) for x in model.layers]
        self.check(IBACopy("feature", None, graph=model, **HYPERPARAMETERS), expected)
        self.check(IBACopy(layer, ["classes"], graph=model, **HYPERPARAMETERS), expected)
        iba = IBACopy(layer.output, model.outputs, **HYPERPARAMETERS)
        keys = model.inputs if library is keras else [x.ref() for x in model.inputs]
        self.check(iba, expected, lambda n: dict(zip(keys, (IMAGES[:n], TABLE[:n]), strict=True)))
        assert iba.state_dict()["feature_name"] == "feature"
        assert iba.state_dict()["output_names"] == ["classes", "score"]
        self.check(IBACopy(layer.output.name, model.output, graph=model, **HYPERPARAMETERS), expected)
        mixed = IBACopy(layer.output, ["classes"], graph=model)
        assert mixed.state_dict()["output_names"] == ["classes"]
        assert nodes == [len(x._inbound_nodes) + len(x._outbound_nodes) for x in model.layers]
        feed, before = (
            {"image": IMAGES[:1], "table": TABLE[:1]},
            iba.predict({"image": IMAGES, "table": TABLE}),
        )
        capacity = iba.analyze(feed, target=2, seed=7)
        model.get_layer("classes").set_weights([WEIGHTS["classes/kernel"] * 2, WEIGHTS["classes/bias"]])
        with pytest.raises(AssertionError, match="classes"):
            iba.assert_variables_equal()
        np.testing.assert_array_equal(iba.analyze(feed, target=2, seed=7), capacity)
        iba.update_variables()
        iba.assert_variables_equal()
        assert not np.allclose(iba.predict({"image": IMAGES, "table": TABLE})[0], before[0])
        assert not np.allclose(iba.analyze(feed, target=2, seed=7), capacity, rtol=1e-3)

    def test_subclassed(self, expected):
        model = subclassed()
        for feature in ("feature", model.relu):
            iba = IBACopy(feature, None, graph=model, **HYPERPARAMETERS)
            self.check(iba, expected, lambda n: [IMAGES[:n], TABLE[:n]])
        model.classes.bias.assign(WEIGHTS["classes/bias"] + 1)
        with pytest.raises(AssertionError, match="bias"):
            iba.assert_variables_equal()
        with pytest.raises(LayerError, match="no graph before it is called"):
            iba.get_copied_outputs()
        with pytest.raises(LayerError, match=r"'featur'.*'feature'"):
            IBACopy("featur", None, graph=model)

    def test_functions(self, expected):
        module = Module()
        for graph in (module.__call__, module.__call__.get_concrete_function()):
            iba = IBACopy("feature", ["classes"], graph=graph, **HYPERPARAMETERS)
            self.check(iba, expected)
            with iba.copied_session_and_graph_as_default():
                outputs = v1.get_default_session().run(
                    iba.get_copied_outputs(), {"image:0": IMAGES, "table:0": TABLE}
                )
            np.testing.assert_allclose(outputs[0], self.outputs[0], rtol=1e-4, atol=1e-5)
        module.weights["conv2/kernel"].assign(WEIGHTS["conv2/kernel"] + 1)
        with pytest.raises(AssertionError, match="conv2/kernel"):
            iba.assert_variables_equal()

    def test_files(self, session, expected, tmp_path):
        module = Module()
        concrete = module.__call__.get_concrete_function()
        tf.saved_model.save(module, str(tmp_path / "module"), signatures=concrete)
        functional(keras).export(tmp_path / "keras", verbose=False)
        functional(keras).save(tmp_path / "model.keras")
        with session.graph.as_default():
            v1.saved_model.simple_save(
                session.session,
                str(tmp_path / "old"),
                {"image": session.image, "table": session.table},
                {"classes": session.classes, "score": session.score},
            )
        frozen = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
        (tmp_path / "frozen.pb").write_bytes(frozen.SerializeToString())
        # Keras gives its own names to what it exports.
        nodes = GraphModel.from_saved_model(tmp_path / "keras").graph.nodes
        exported = next(name for name in nodes if name.endswith("/Relu"))
        for graph, feature, outputs in (
            (str(tmp_path / "module"), "feature", ["classes"]),
            (tmp_path / "old", "feature", ["classes", "score"]),
            (tmp_path / "keras", exported, ["output_0"]),
            (tmp_path / "model.keras", "feature", ["classes"]),
            (tmp_path / "frozen.pb", "feature", ["classes"]),
            (frozen, "feature:0", ["classes:0"]),
        ):
            self.check(IBACopy(feature, outputs, graph=graph, **HYPERPARAMETERS), expected)


def test_an_lstm_after_the_bottleneck_in_the_copied_graph():
    """Its loop is a function of the graph's library, which the copied graph also needs."""
    inputs = keras.Input((5, 3), name="sequence")
    x = keras.layers.Dense(4, name="tokens")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.LSTM(6)(x)))
    sequences = RNG.normal(size=(8, 5, 3)).astype(np.float32)
    iba = IBACopy("tokens", model.output, graph=model, steps=2)
    iba.fit(sequences)
    with iba.copied_session_and_graph_as_default():
        (logits,) = iba.get_copied_outputs()
        found = v1.get_default_session().run(logits, {"sequence:0": sequences})
        loss = -tf.nn.log_softmax(logits)[:, 1]
    np.testing.assert_allclose(found, model(sequences), rtol=1e-5, atol=1e-6)
    iba.set_model_loss(loss)
    by_loss = iba.analyze(sequences[:1], seed=0)
    iba.set_classification_loss()
    np.testing.assert_allclose(iba.analyze(sequences[:1], target=1, seed=0), by_loss, rtol=1e-4, atol=1e-6)


@keras.saving.register_keras_serializable("iba_tests")
class Pair(keras.layers.Layer):
    """A custom layer whose output is a tuple."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scale = keras.layers.Dense(4)

    def call(self, x):
        y = self.scale(x)
        return y[..., :2], y[..., 2:]


def test_a_layer_whose_output_is_a_tuple():
    inputs = keras.Input((4, 4, 3), name="image")
    first, second = Pair(name="pair")(inputs)
    x = keras.layers.Flatten()(keras.layers.Multiply()([first, keras.ops.sigmoid(second)]))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    images = RNG.normal(size=(8, 4, 4, 3)).astype(np.float32)
    for feature, index in (("pair", 0), ("pair[1]", 1), (first, 0), (second, 1)):
        iba = IBACopy(feature, [model.output], graph=model, steps=1)
        iba.fit(images)
        iba.set_classification_loss()
        assert iba.analyze(images[:1], target=1).shape == (4, 4, 2)
        expected = model.get_layer("pair")(images)[index]
        np.testing.assert_allclose(iba.get_feature(images), expected, rtol=1e-5, atol=1e-6)
