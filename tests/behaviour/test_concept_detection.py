"""The detection model of both frameworks: one body for both, judged by SciPy's correlation."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from scipy import signal
from scipy.special import expit
from torch import nn

import iba_tf.concepts
import iba_torch.concepts
from iba_core.concepts import ConceptEmbedding, ModelStump, SegmentationConcept2D
from iba_core.concepts.hyperplanes import same_padding, window_size, windows
from iba_core.errors import InputError, LayerError

RNG = np.random.default_rng(0)

KERNELS = [(1, 1), (3, 3), (2, 4), (5, 2)]


class Torch:
    Model = iba_torch.concepts.ConceptDetectionModel2D
    data_format = "channels_first"

    @staticmethod
    def run(model, x, training=False):
        """Heatmaps (E, B, H, W) of feature maps (B, C, H, W)."""
        with torch.no_grad():
            return model.train(training)(torch.from_numpy(x))[:, :, 0].numpy()

    @staticmethod
    def predictive(model, x):
        with torch.no_grad():
            return [part.numpy() for part in model.predictive(torch.from_numpy(x))]

    @staticmethod
    def main_model():
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())

    relu = "1"
    flat = "3"


class Keras:
    Model = iba_tf.concepts.ConceptDetectionModel2D
    data_format = "channels_last"

    @staticmethod
    def run(model, x, training=False):
        return model(x.transpose(0, 2, 3, 1), training=training)[..., 0].numpy()

    @staticmethod
    def predictive(model, x):
        return [part.numpy() for part in model.predictive(tf.constant(x.transpose(0, 2, 3, 1)))]

    @staticmethod
    def main_model():
        return keras.Sequential(
            [
                keras.Input((10, 14, 3)),
                keras.layers.Conv2D(6, 3, padding="same", name="0"),
                keras.layers.ReLU(name="1"),
                keras.layers.AveragePooling2D(2, name="2"),
                keras.layers.Flatten(name="3"),
            ]
        )

    relu = "1"
    flat = "3"


@pytest.fixture(params=[Torch, Keras], ids=["torch", "tensorflow"])
def backend(request):
    return request.param


def maps(channels=5, shape=(7, 6)):
    return RNG.normal(size=(2, channels, *shape)).astype(np.float32)


def a_concept(backend, **arguments):
    shape = (4, 3, 10, 14) if backend.data_format == "channels_first" else (4, 10, 14, 3)
    return SegmentationConcept2D("square", (RNG.normal(size=shape), np.zeros((4, 10, 14))), **arguments)


# -- formulas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_padding_keeps_the_size(kernel_size):
    for side, (before, after) in zip(kernel_size, same_padding(kernel_size), strict=True):
        assert before + after == side - 1
        assert after - before in (0, 1)


def test_the_window_is_the_share_of_the_map():
    assert window_size((0.5, 0.25), (14, 14)) == (7, 4)
    assert window_size((0.01, 1.0), (7, 9)) == (1, 9)


@pytest.mark.parametrize("kernel_size", KERNELS)
@pytest.mark.parametrize("padded", [True, False])
def test_windows_make_a_product_of_a_convolution(framework, kernel_size, padded):
    x, weight = RNG.normal(size=(2, 6, 7, 3)), RNG.normal(size=(3, *kernel_size))
    padding = same_padding(kernel_size) if padded else ((0, 0), (0, 0))
    rows = framework.to_numpy(windows(framework.asarray(x), kernel_size, padding))
    np.testing.assert_allclose(rows @ weight.ravel(), correlate(x.transpose(0, 3, 1, 2), weight, padding))


def correlate(x, weight, padding):
    padded = np.pad(x, ((0, 0), (0, 0), *padding))
    return np.stack([signal.correlate(image, weight, "valid")[0] for image in padded])


# -- the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", KERNELS)
@pytest.mark.parametrize("apply_padding", [True, False])
@pytest.mark.parametrize("apply_sigmoid", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_heatmaps_are_distances_from_hyperplanes(
    backend, kernel_size, apply_padding, apply_sigmoid, use_bias
):
    model = backend.Model(
        in_channels=5,
        kernel_size=kernel_size,
        ensemble_count=3,
        apply_padding=apply_padding,
        apply_sigmoid=apply_sigmoid,
        use_bias=use_bias,
    )
    x = maps()
    weight, bias = model.hyperplanes()
    assert weight.shape == (3, 5, *kernel_size)
    assert bool(bias.any()) == use_bias
    padding = same_padding(kernel_size) if apply_padding else ((0, 0), (0, 0))
    expected = np.stack([correlate(x, n, padding) + b for n, b in zip(weight, bias, strict=True)])
    got = backend.run(model, x)
    np.testing.assert_allclose(got, expit(expected) if apply_sigmoid else expected, atol=2e-6)


def test_the_output_has_the_seeds_axes(backend):
    model = backend.Model(in_channels=5, kernel_size=(3, 2), ensemble_count=4)
    if backend is Torch:
        assert model(torch.zeros(2, 5, 7, 6)).shape == (4, 2, 1, 7, 6)
    else:
        assert model(np.zeros((2, 7, 6, 5))).shape == (4, 2, 7, 6, 1)
        assert model.compute_output_shape((2, 7, 6, 5)) == (4, 2, 7, 6, 1)


def test_keras_takes_maps_with_channels_first():
    model = Keras.Model(in_channels=5, kernel_size=(3, 2), data_format="channels_first")
    last = Keras.Model.from_embedding(model.to_embedding())
    x = maps()
    output = model(x)
    assert output.shape == model.compute_output_shape(x.shape) == (1, 2, 1, 7, 6)
    np.testing.assert_allclose(output[:, :, 0], Keras.run(last, x), atol=1e-6)


@pytest.mark.parametrize("other", [Torch, Keras])
@pytest.mark.parametrize("arguments", [{}, {"apply_padding": False, "use_bias": False}])
def test_an_embedding_is_the_same_function_in_either_framework(backend, other, arguments, tmp_path):
    model = backend.Model(
        in_channels=5, kernel_size=(2, 3), ensemble_count=2, concept_name="c", layer_id="relu", **arguments
    )
    loaded = []
    for index, embedding in enumerate(model.to_embedding()):
        embedding.save(tmp_path / f"{index}.safetensors")
        loaded.append(ConceptEmbedding.load(tmp_path / f"{index}.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = other.Model.from_embedding(loaded)
    x = maps()
    np.testing.assert_allclose(other.run(again, x), backend.run(model, x), atol=1e-6)
    if other is backend:
        np.testing.assert_array_equal(other.run(again, x), backend.run(model, x))
    assert again.settings == model.settings


def test_embeddings_are_copies(backend):
    model = backend.Model(in_channels=5, kernel_size=(1, 1), concept_name="c", layer_id="relu")
    (embedding,) = model.to_embedding()
    before = embedding.normal_vec.copy()
    model.reset_parameters()
    np.testing.assert_array_equal(embedding.normal_vec, before)
    assert not np.allclose(model.hyperplanes()[0], before)
    assert (embedding.concept_name, embedding.layer_id, embedding.kernel_size) == ("c", "relu", (1, 1))


def test_the_support_factor_is_that_of_the_seed(backend):
    (embedding,) = backend.Model(in_channels=5, kernel_size=(2, 2)).to_embedding()
    model = backend.Model.from_embedding(embedding)
    weight, bias = model.hyperplanes()
    assert embedding.support_factor == pytest.approx(-bias[0] / (weight**2).sum(), rel=1e-5)
    vector = RNG.normal(size=embedding.normal_vec.shape)
    distance = ((vector - embedding.support_vec) * embedding.normal_vec).sum()
    assert distance == pytest.approx((vector * weight[0]).sum() + bias[0], rel=1e-5)


def test_a_scaling_factor_goes_into_the_weights_with_a_warning(backend):
    plane = ConceptEmbedding(RNG.normal(size=5), bias=0.5, scaling_factor=-3.0)
    with pytest.warns(UserWarning, match="scaling factors"):
        model = backend.Model.from_embedding(plane, apply_sigmoid=False)
    x = maps()
    expected = plane.distance(x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(backend.run(model, x)[0], expected, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.Model.from_embedding(plane, legacy_warnings=False)


def test_arguments_overrule_the_embedding(backend):
    (embedding,) = backend.Model(in_channels=5, kernel_size=(3, 3), concept_name="c").to_embedding()
    model = backend.Model.from_embedding(embedding, concept_name="other", apply_sigmoid=False)
    assert (model.concept_name, model.apply_sigmoid, model.kernel_size) == ("other", False, (3, 3))
    with pytest.raises(InputError, match="the other arguments"):
        backend.Model.from_embedding(embedding, kernel_size=(1, 1))
    with pytest.raises(InputError, match="use_bias=False, but"):
        backend.Model.from_embedding(embedding, use_bias=False)
    with pytest.raises(InputError, match="embeddings_list is empty"):
        backend.Model.from_embedding([])
    other = ConceptEmbedding(np.ones((5, 1, 1)), bias=0.0)
    with pytest.raises(InputError, match="an ensemble needs one shape"):
        backend.Model.from_embedding([embedding, other])


def test_reset_draws_from_the_bound(backend):
    model = backend.Model(in_channels=400, kernel_size=(2, 2), ensemble_count=4)
    for _ in range(2):
        weight, bias = model.hyperplanes()
        assert np.abs(weight).max() <= 1 / 40
        assert np.abs(weight).max() > 0.98 / 40
        assert np.abs(bias).max() <= 1 / 40
        model.reset_parameters()


# -- what is found out ------------------------------------------------------------------------------


def test_channels_and_window_follow_from_layer_and_concept(backend):
    concept, main = a_concept(backend, rel_size=(0.5, 0.25)), backend.main_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = backend.Model(concept, main, backend.relu)
    assert (model.in_channels, model.kernel_size) == (6, (5, 4))
    assert model.concept is concept
    assert model.concept_name == "square"
    assert model.main_model is main
    assert isinstance(model.main_model_stump, ModelStump)
    assert model.layer_id == backend.relu
    (embedding,) = model.to_embedding()
    assert embedding.normal_vec.shape == (6, 5, 4)
    assert embedding.meta_info["rel_size"] == (0.5, 0.25)


def test_a_wrong_number_of_channels_is_replaced_with_a_warning(backend):
    concept, main = a_concept(backend, rel_size=(0.5, 0.25)), backend.main_model()
    with pytest.warns(UserWarning, match="in_channels=4 is replaced by 6"):
        model = backend.Model(concept, main, backend.relu, in_channels=4)
    assert model.in_channels == 6


def test_without_relative_size_the_window_is_one_pixel_with_a_warning(backend):
    with pytest.warns(UserWarning, match=r"kernel_size is set to \(1, 1\)"):
        model = backend.Model(a_concept(backend), backend.main_model(), backend.relu)
    assert model.kernel_size == (1, 1)
    with pytest.warns(UserWarning, match=r"kernel_size is set to \(1, 1\)"):
        assert backend.Model(in_channels=5).kernel_size == (1, 1)


def test_the_main_model_is_no_part_of_the_weights(backend):
    model = backend.Model(
        a_concept(backend), backend.main_model(), backend.relu, kernel_size=(1, 1), in_channels=6
    )
    names = list(model.state_dict()) if backend is Torch else [weight.name for weight in model.weights]
    assert names == (["weight", "bias"] if backend is Torch else ["kernel", "bias"])
    assert model.settings["model"] is model.main_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "in_channels is missing"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"in_channels": 5, "kernel_size": (0, 1)}, "kernel_size"),
        ({"in_channels": 5, "kernel_size": (1, 1), "ensemble_count": 0}, "ensemble_count=0"),
    ],
)
def test_wrong_arguments_are_named(backend, arguments, message):
    with pytest.raises(InputError, match=message):
        backend.Model(**arguments)


def test_wrong_layers_and_inputs_are_named(backend):
    main = backend.main_model()
    with pytest.raises(InputError, match="without layer_id"):
        backend.Model(model=main, in_channels=6, kernel_size=(1, 1))
    with pytest.raises(LayerError, match="no layer"):
        backend.Model(model=main, layer_id="nowhere", in_channels=6, kernel_size=(1, 1))
    with pytest.raises(LayerError, match="two spatial axes"):
        backend.Model(a_concept(backend), main, backend.flat)
    with pytest.raises(InputError, match="and 5 channels"):
        backend.run(backend.Model(in_channels=5, kernel_size=(1, 1)), maps(4))


# -- laplace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [(1, 1), (2, 3)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_evaluation_takes_the_uncertainty_into_account(backend, kernel_size, use_bias):
    model = backend.Model(
        in_channels=3, kernel_size=kernel_size, ensemble_count=2, use_laplace=True, use_bias=use_bias
    )
    x = maps(3)
    plain = backend.run(model, x)
    size = 3 * kernel_size[0] * kernel_size[1] + use_bias
    factors = RNG.normal(size=(2, size, size)).astype(np.float32)
    model.load_laplace_factors(factors)
    np.testing.assert_array_equal(model.laplace_factors(), factors)

    rows = windows(x.transpose(0, 2, 3, 1), kernel_size, same_padding(kernel_size))
    phi = np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], axis=-1) if use_bias else rows
    variance = np.stack([np.square(phi @ factor.T).sum(axis=-1) for factor in factors])
    weight, bias = model.hyperplanes()
    logits = np.stack([rows @ n.ravel() + b for n, b in zip(weight, bias, strict=True)])
    expected = expit(logits / np.sqrt(1 + np.pi / 8 * variance))
    np.testing.assert_allclose(backend.run(model, x), expected, atol=1e-5)
    np.testing.assert_allclose(backend.run(model, x, training=True), plain, atol=1e-6)
    mean, spread = backend.predictive(model, x)
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    np.testing.assert_allclose(spread, variance, rtol=1e-4)

    model.reset_parameters()
    assert not model.laplace_factors().any()


def test_what_an_embedding_cannot_hold_is_warned_of(backend):
    model = backend.Model(in_channels=3, kernel_size=(1, 1), use_laplace=True)
    with pytest.warns(UserWarning, match="do not hold the uncertainty"):
        assert backend.Model.from_embedding(model.to_embedding()).use_laplace


def test_without_laplace_there_is_no_posterior(backend):
    model = backend.Model(in_channels=3, kernel_size=(1, 1))
    for call in (
        model.laplace_factors,
        lambda: model.load_laplace_factors(np.eye(4)[None]),
        lambda: backend.predictive(model, maps(3)),
    ):
        with pytest.raises(InputError, match="use_laplace=False"):
            call()
    with pytest.raises(InputError, match="factors has shape"):
        backend.Model(in_channels=3, kernel_size=(1, 1), use_laplace=True).load_laplace_factors(np.eye(4))


# -- what only one framework has --------------------------------------------------------------------


def test_torch_state_and_gradients():
    model = Torch.Model(in_channels=3, kernel_size=(2, 2), use_laplace=True)
    model.load_laplace_factors(RNG.normal(size=(1, 13, 13)))
    again = Torch.Model(in_channels=3, kernel_size=(2, 2), use_laplace=True)
    again.load_state_dict(model.state_dict())
    x = maps(3)
    np.testing.assert_array_equal(Torch.run(again, x), Torch.run(model, x))
    model.train()(torch.from_numpy(x)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_keras_model_survives_saving(tmp_path):
    inputs = keras.Input((None, None, 3))
    layer = Keras.Model(in_channels=3, kernel_size=(2, 2), use_laplace=True, ensemble_count=2)
    layer.load_laplace_factors(RNG.normal(size=(2, 13, 13)))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "concept.keras")
    x = maps(3).transpose(0, 2, 3, 1)
    loaded = keras.models.load_model(tmp_path / "concept.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
