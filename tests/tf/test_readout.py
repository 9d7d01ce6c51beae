"""`IBAReadout` on the graphs that Keras models come in."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from iba_core import InputError, LayerError, NotEstimatedError, StateError, Tokens, WelfordEstimator
from iba_tf import IBAReadout, TFWelfordEstimator


def data_of(models, model, batch=12):
    return models.sample_inputs(model, batch)


def make_readout(models, model, layer, readout_layers, batch=12, **kwargs):
    """A readout whose network is no mere constant."""
    readout = IBAReadout(layer, readout_layers, model, **kwargs)
    readout.estimate(model, [data_of(models, model, batch)])
    generator = np.random.default_rng(0)
    readout.network.set_weights(
        [generator.normal(size=weight.shape) * 0.3 for weight in readout.network.get_weights()]
    )
    return readout


def plain_capacity(readout, own, readout_layers, seen, sigma=None):
    """The paper's section 3.3 for one place, in NumPy, of features and those that have been seen."""
    normalized = [
        (x - known.mean(0)) / np.maximum(known.std(0, ddof=1), 0.01)
        for x, known in zip(readout_layers, seen[1:], strict=True)
    ]
    alpha = readout.network(np.concatenate(normalized, -1)[:, None]).numpy()[:, 0]
    passed = 1 / (1 + np.exp(-alpha.astype(np.float64)))
    r = (own - seen[0].mean(0)) / np.maximum(seen[0].std(0, ddof=1), 0.01)
    nats = -0.5 * (1 + 2 * np.log(1 - passed) - (r * passed) ** 2 - (1 - passed) ** 2)
    return np.where((seen[0] != 0).mean(0) > 0.01, nats, 0)


@pytest.mark.parametrize(
    ("name", "layer", "readout_layers"),
    [
        ("plain", "conv1", ["relu", "conv2", "pool", "logits"]),
        ("residual", "add", ["stem", "add", "relu2"]),
        ("unet", "down2", ["down1", "bottom", "classes"]),
        ("nested", "backbone/conv1", ["rescale", "backbone/add", "head/logits"]),
        ("siamese", "tower:1/conv", ["tower:0/conv", "logits"]),
        ("two_ends", "pool", ["conv", "embed", "classes"]),
        ("recurrent", "lstm", ["embedding", "logits"]),
        ("positions", "norm", ["tokens", "attention"]),
    ],
)
def test_models_of_every_shape_of_graph(models, name, layer, readout_layers):
    model = models.randomize(getattr(models, name)())
    weights = model.get_weights()
    readout = make_readout(models, model, layer, readout_layers)
    inputs = data_of(models, model, 2)
    capacity = readout.analyze(inputs, model, mode="capacity")
    assert capacity.shape[0] == 2
    assert np.isfinite(capacity).all()
    assert capacity.any()
    output, differentiable = readout.restricted(inputs)
    np.testing.assert_allclose(differentiable, capacity, rtol=1e-4, atol=1e-5)
    expected = keras.tree.map_structure(lambda x: tuple(x.shape), model(inputs))
    assert keras.tree.map_structure(lambda x: tuple(x.shape), output) == expected
    assert all(np.array_equal(old, new) for old, new in zip(weights, model.get_weights(), strict=True))


def test_a_dense_bottleneck_is_computed_as_the_paper_says(models):
    model = models.randomize(models.plain())
    readout = make_readout(models, model, "pool", ["pool", "logits"])
    seen = [model_part(model, name)(data_of(models, model)).numpy() for name in ("pool", "pool", "logits")]
    nats = readout.analyze(data_of(models, model)[:3], mode="capacity")
    expected = plain_capacity(readout, seen[0][:3], [each[:3] for each in seen[1:]], seen)
    np.testing.assert_allclose(nats, expected, rtol=1e-3, atol=1e-4)
    assert readout.analyze(data_of(models, model)[:1]).shape == ()


def model_part(model, name):
    return keras.Model(model.inputs[0], model.get_layer(name).output)


def test_tokens_have_their_channels_last(models):
    model = models.randomize(models.positions())
    tokens = Tokens(prefix=1)
    readout = make_readout(models, model, "norm", ["tokens"], tokens=tokens, sigma=None)
    x = data_of(models, model)
    seen = [model_part(model, name)(x).numpy()[:, 2] for name in ("norm", "tokens")]
    nats = readout.analyze(x[:3], mode="capacity")[:, 2]
    expected = plain_capacity(readout, seen[0][:3], [seen[1][:3]], seen)
    np.testing.assert_allclose(nats, expected, rtol=1e-3, atol=1e-4)
    # The three tokens after the first, resized to the four of the input.
    assert readout.analyze(x[:1]).shape == (4,)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_precisions(policy):
    options = {"dtype": keras.DTypePolicy(policy)}
    inputs = keras.Input((6, 6, 2), dtype="float64" if policy == "float64" else "float32")
    x = layers.Conv2D(4, 3, activation="relu", name="conv", **options)(inputs)
    x = layers.GlobalAveragePooling2D(**options)(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits", **options)(x))
    readout = IBAReadout("conv", ["conv", "logits"], model)
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 2))
    readout.estimate(model, [x])
    precision = "float64" if policy == "float64" else "float32"
    assert readout.analyze(x[:2], mode="capacity").dtype == precision
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    history = readout.fit([(x, np.arange(8) % 3)], loss, epochs=2, seed=0)
    assert history[1].information < history[0].information
    assert {weight.dtype for weight in readout.network.weights} == {precision}


def test_a_loop_of_ones_own_trains_the_network_alone(models):
    model = models.randomize(models.plain())
    readout = make_readout(models, model, "conv1", ["relu", "logits"])
    x, y = data_of(models, model), np.arange(12) % 5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(0.01)
    before, informations = model.get_weights(), []

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            output, capacity = readout.restricted(x)
            information = tf.reduce_mean(capacity)
            objective = loss(y, output) + 10 * information
        gradients = tape.gradient(objective, readout.trainable_variables)
        optimizer.apply(gradients, readout.trainable_variables)
        return information

    informations = [float(step(x, y)) for _ in range(20)]
    assert informations[-1] < 0.8 * informations[0]
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))


def test_estimators_and_features_of_ones_own(models):
    class Halved(WelfordEstimator):
        def std(self):
            return super().std() / 2

    model = models.randomize(models.plain())
    plain = make_readout(models, model, "conv1", ["conv2"])
    x = data_of(models, model, 1)
    halved = make_readout(models, model, "conv1", ["conv2"], estimator_type=Halved)
    assert {type(each) for each in (halved.estimator, *halved.estimators)} == {Halved}
    assert not np.allclose(halved.analyze(x), plain.analyze(x))
    seen = model_part(model, "conv1")(data_of(models, model)).numpy()
    given = make_readout(
        models, model, "conv1", ["conv2"], feature_mean=seen.mean(0), feature_std=seen.std(0, ddof=1)
    )
    np.testing.assert_allclose(given.analyze(x), plain.analyze(x), rtol=1e-4, atol=1e-6)
    other = IBAReadout("conv1", ["conv2"], model)
    other.load_state_dict(given.state_dict())
    np.testing.assert_array_equal(other.analyze(x), given.analyze(x))
    with pytest.raises(InputError, match="go together"):
        IBAReadout("conv1", ["conv2"], model, feature_mean=seen.mean(0))


@pytest.mark.parametrize("kind", ["keras", "graph"])
def test_an_estimation_that_fails_leaves_an_estimator_its_model(models, kind):
    model = models.randomize(models.plain())
    x = data_of(models, model)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, (None, 2), name="x")
    tensor = model.get_layer("conv1").output if kind == "keras" else "x:0"
    estimator = TFWelfordEstimator(tensor, graph)
    readout = make_readout(models, model, "conv1", ["conv2"], estimator=estimator)
    before = estimator.mean()
    with pytest.raises(InputError):
        readout.estimate(model, [x, np.full_like(x, np.nan)])
    assert readout.estimator is estimator
    np.testing.assert_array_equal(estimator.mean(), before)
    model.get_layer("conv1").set_weights([w * 2 for w in model.get_layer("conv1").get_weights()])
    estimator.reset()
    if kind == "keras":
        estimator.fit({model.inputs[0]: x})
        np.testing.assert_allclose(estimator.mean(), model_part(model, "conv1")(x).numpy().mean(0), atol=1e-5)
    else:
        with tf.compat.v1.Session(graph=graph) as session:
            estimator.fit({"x:0": np.eye(2)}, session)
        np.testing.assert_array_equal(estimator.mean(), [0.5, 0.5])


def test_an_estimator_of_ones_own_may_keep_something_else_than_moments(models):
    class Extremes(WelfordEstimator):
        top = 0.0

        def fit(self, x):
            self.top = max(self.top, float(np.max(x)))
            if not self.n_samples():
                super().fit(x)

        def std(self):
            return np.full_like(self.mean(), self.top)

    model = models.randomize(models.plain())
    x = data_of(models, model)
    readout = make_readout(models, model, "conv1", ["conv2"], estimator_type=Extremes)
    before = readout.analyze(x[:1])
    readout.estimate(model, [x * 3], reset=False)
    assert not np.allclose(readout.analyze(x[:1]), before)


def test_many_explanations_are_traced_once(models):
    calls = []

    class Traced(layers.Layer):
        """Its Python code runs when it is traced, and never again."""

        def call(self, x):
            calls.append(None)
            return tf.identity(x)

    inputs = keras.Input((6, 6, 2))
    x = Traced(name="traced")(layers.Conv2D(4, 3, name="conv")(inputs))
    model = keras.Model(inputs, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x)))
    readout = make_readout(models, model, "conv", ["conv", "logits"])
    readout.analyze(models.sample_inputs(model, 2, 0))
    before = len(calls)
    for seed in range(1, 5):
        readout.analyze(models.sample_inputs(model, 2, seed))
    assert len(calls) == before
    assert len(tf.compat.v1.get_default_graph().get_operations()) == 0


def test_states_of_other_layers_and_damaged_ones_are_refused(models, tmp_path):
    model = models.randomize(models.plain())
    readout = make_readout(models, model, "conv1", ["conv2", "logits"])
    other = IBAReadout("conv1", ["logits", "conv2"], model)
    state = readout.state_dict()
    with pytest.raises(StateError, match=r"reading \['conv2', 'logits'\]"):
        other.load_state_dict(state)
    for name in ("network.0.weight", "facts", "readouts.1.mean"):
        with pytest.raises(StateError, match="lacks"):
            readout.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(StateError, match="does not fit"):
        readout.load_state_dict({**state, "network.0.weight": state["network.0.weight"][:, :-1]})
    assert other.network is None
    with pytest.raises(NotEstimatedError, match="estimate"):
        _ = other.trainable_variables


def test_what_cannot_be_read_says_so(models):
    model = models.recurrent()
    with pytest.raises(LayerError, match=r"no layer 'lst'"):
        IBAReadout("lst", ["embedding"], model)
    twins = models.siamese()
    with pytest.raises(LayerError, match="runs 2 times"):
        IBAReadout("difference", [twins.get_layer("tower")], twins)
    plain = models.plain()
    readout = IBAReadout("conv1", ["conv2"], plain)
    with pytest.raises(InputError, match="not the model"):
        readout.estimate(twins, [])
    with pytest.raises(InputError, match="readout_layers"):
        IBAReadout("conv1", "conv2", plain)

    class Subclassed(keras.Model):
        pass

    with pytest.raises(LayerError, match="no graph"):
        IBAReadout("conv1", ["conv2"], Subclassed())
