"""Targets of concepts: worked numbers on every framework, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from iba_core import ClassTarget, InputError, LogitTarget, SumTarget
from iba_core.concepts import (
    ClassifierOutputTarget,
    ConceptEmbedding,
    ConceptEmbeddingTarget,
    DifferenceFromConceptTarget,
    SimilarityToConceptTarget,
)
from iba_core.concepts.targets import cosine_similarity
from iba_core.targets import as_target

RNG = np.random.default_rng(0)


def softplus(x):
    return np.logaddexp(0.0, x)


def losses(target, outputs):
    loss, rows = target.resolve(outputs)
    assert all(len(row) == len(outputs) for row in rows)
    return loss(outputs, *rows)


def numbers(framework, value):
    return float(framework.to_numpy(value))


def test_scores_of_one_output(framework):
    row = framework.asarray([3.0, 4.0, 0.0])
    concept = framework.asarray([1.0, 0.0, 0.0])
    assert numbers(framework, ClassifierOutputTarget(1)(row)) == 4.0
    assert numbers(framework, ClassifierOutputTarget()(row)) == 4.0
    assert numbers(framework, SimilarityToConceptTarget(concept)(row)) == pytest.approx(0.6)
    assert numbers(framework, DifferenceFromConceptTarget(concept)(row)) == pytest.approx(0.4)
    plane = ConceptEmbedding([1.0, 2.0, 0.0], bias=-1.0, scaling_factor=0.5)
    assert numbers(framework, ConceptEmbeddingTarget(plane)(row)) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "target",
    [
        ClassifierOutputTarget(2),
        ClassifierOutputTarget(),
        SimilarityToConceptTarget(np.array([1.0, -2.0, 0.5])),
        DifferenceFromConceptTarget(np.array([1.0, -2.0, 0.5])),
    ],
    ids=lambda target: type(target).__name__,
)
def test_the_loss_is_minus_the_score(framework, target):
    outputs = RNG.normal(size=(4, 3))
    scores = [numbers(framework, target(framework.asarray(row))) for row in outputs]
    loss, rows = target.resolve(outputs)
    found = loss(framework.asarray(outputs), *map(framework.asarray, rows))
    np.testing.assert_allclose(framework.to_numpy(found), -np.array(scores), rtol=1e-6)


def test_scores_are_differentiable(framework):
    row, concept = np.array([3.0, 4.0]), np.array([0.0, 2.0])
    # cos = y / sqrt(x^2 + y^2)
    expected = [-12 / 125, 9 / 125]
    gradient = framework.gradient(SimilarityToConceptTarget(concept), row)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    gradient = framework.gradient(DifferenceFromConceptTarget(concept), row)
    np.testing.assert_allclose(gradient, np.negative(expected), rtol=1e-6)


def test_features_of_any_rank_and_type(framework):
    outputs = RNG.normal(size=(2, 3, 2, 2))
    target = SimilarityToConceptTarget(framework.asarray(outputs[0]))
    assert losses(target, outputs)[0] == pytest.approx(-1.0)
    assert losses(target, outputs)[1] > -1.0


def test_a_zero_output_is_similar_to_nothing(framework):
    zeros = np.zeros(3)
    value = cosine_similarity(framework.asarray(zeros), framework.asarray(np.ones(3)))
    assert numbers(framework, value) == 0.0
    gradient = framework.gradient(SimilarityToConceptTarget(np.ones(3)), zeros)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("features", [np.zeros(3), np.array([1.0, np.nan]), np.zeros(0)])
def test_features_that_are_no_direction(features):
    with pytest.raises(InputError, match="features"):
        SimilarityToConceptTarget(features)


def test_shapes_that_do_not_fit():
    with pytest.raises(InputError, match=r"features have shape \(3,\).*\(5,\)"):
        SimilarityToConceptTarget(np.ones(3)).resolve(np.ones((2, 5)))
    with pytest.raises(InputError, match="outside the model's 5 classes"):
        ClassifierOutputTarget(5)(np.ones(5))
    plane = ConceptEmbedding(np.ones(4), bias=0.0)
    for outputs in (np.ones((2, 5)), np.ones((2, 5, 6, 6)), np.ones((2, 4, 4, 4, 4, 4))):
        with pytest.raises(InputError, match=r"normal vector of shape \(4,\)"):
            ConceptEmbeddingTarget(plane).resolve(outputs)
    window = ConceptEmbedding(np.ones((4, 3, 3)), bias=0.0, layer_id="conv5")
    for outputs in (np.ones((2, 4, 2, 6)), np.ones((2, 4)), np.ones((2, 7, 4))):
        with pytest.raises(InputError, match="layer 'conv5'"):
            ConceptEmbeddingTarget(window).resolve(outputs)


# -- hyperplanes ------------------------------------------------------------------------------------


def test_cross_entropy_of_the_concept_in_nats():
    plane = ConceptEmbedding([1.0, -2.0], bias=0.5)
    outputs = np.array([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(losses(as_target(plane), outputs), softplus(-np.array([1.5, -3.5])))


def test_every_representation_of_a_hyperplane_has_one_loss():
    plane = ConceptEmbedding([1.0, -2.0], bias=0.5, scaling_factor=3.0)
    outputs = RNG.normal(size=(4, 2))
    expected = losses(as_target(plane), outputs)
    for other in (plane.unique(), plane.scale(), plane.unique_upper_sphere()):
        np.testing.assert_allclose(losses(as_target(other), outputs), expected, rtol=1e-12)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("window", [None, (2, 3)])
def test_places_count_as_far_as_the_concept_is_there(framework, data_format, window):
    normal = RNG.normal(size=(3, *(window or ())))
    plane = ConceptEmbedding(normal, bias=0.3, scaling_factor=-2.0)
    reference, outputs = RNG.normal(size=(2, 2, 3, 4, 5))

    def distances(maps):
        height, width = window or (1, 1)
        patches = np.lib.stride_tricks.sliding_window_view(maps, (height, width), axis=(2, 3))
        return plane.distance(
            np.moveaxis(patches, 1, 3) if window else patches[..., 0, 0].transpose(0, 2, 3, 1)
        )

    present = 1 / (1 + np.exp(-distances(reference)))
    weights = present / present.sum(axis=(1, 2), keepdims=True)
    expected = (weights * softplus(-distances(outputs))).sum(axis=(1, 2))

    def rearranged(maps):
        return maps if data_format == "channels_first" else np.moveaxis(maps, 1, -1)

    loss, rows = as_target(plane).resolve(rearranged(reference))
    found = loss(framework.asarray(rearranged(outputs)), *map(framework.asarray, rows))
    np.testing.assert_allclose(framework.to_numpy(found), expected, rtol=1e-9)
    score = ConceptEmbeddingTarget(plane)(framework.asarray(rearranged(reference)[0]))
    assert numbers(framework, score) == pytest.approx((weights * distances(reference))[0].sum())


def test_tokens_are_places():
    plane = ConceptEmbedding(np.array([1.0, 0.0, 0.0]), bias=0.0)
    outputs = np.zeros((1, 7, 3))
    outputs[0, 4, 0] = 50.0
    # The other tokens are undecided: one sure place and six halves, each of which loses log 2.
    assert losses(as_target(plane), outputs)[0] == pytest.approx(6 * 0.5 / 4 * np.log(2))


def test_an_axis_that_may_be_either_must_be_named():
    plane = ConceptEmbedding(np.array([1.0, 0.0, 0.0]), bias=0.0)
    outputs = RNG.normal(size=(1, 3, 4, 3))
    with pytest.raises(InputError, match="data_format="):
        as_target(plane).resolve(outputs)
    first = losses(ConceptEmbeddingTarget(plane, data_format="channels_first"), outputs)
    swapped = np.moveaxis(outputs, 1, -1)
    last = losses(ConceptEmbeddingTarget(plane, data_format="channels_last"), swapped)
    np.testing.assert_allclose(first, last)


def test_equal_shapes_share_a_compiled_step():
    outputs = np.ones((1, 3, 4, 4))
    planes = [ConceptEmbedding(RNG.normal(size=3), bias=bias) for bias in (0.0, 1.0)]
    first, second = (as_target(plane).resolve(outputs)[0] for plane in planes)
    assert first == second
    assert hash(first) == hash(second)
    references = [SimilarityToConceptTarget(RNG.normal(size=3)) for _ in range(2)]
    assert len({target.resolve(np.ones((1, 3)))[0] for target in references}) == 1


def test_the_layer_of_a_target():
    plane = ConceptEmbedding([1.0, 0.0], bias=0.0, layer_id="conv5")
    assert as_target(plane).layer == "conv5"
    assert ConceptEmbeddingTarget(plane, layer="conv4").layer == "conv4"
    assert as_target(ConceptEmbedding([1.0], bias=0.0)).layer is None
    assert ClassTarget(3).layer is None
    assert DifferenceFromConceptTarget(np.ones(3), layer="pool").layer == "pool"
    assert ClassifierOutputTarget(3, layer="pool").layer == "pool"
    assert SumTarget((plane, plane)).layer == "conv5"
    assert SumTarget((LogitTarget(1), ClassTarget(2))).layer is None
    with pytest.raises(InputError, match="different layers"):
        SumTarget((plane, 3))
