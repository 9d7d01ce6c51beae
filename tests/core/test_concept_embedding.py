"""Concept embeddings: the identities of a hyperplane, for many hyperplanes."""

import copy
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from iba_core.concepts import ConceptEmbedding
from iba_core.concepts.detection import filters_of
from iba_core.errors import InputError, StateError
from iba_core.state import read_state, write_state

# Without a deadline: the machine may be busy with other tests.
often = settings(deadline=None, max_examples=60)

numbers = st.floats(-100, 100).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
factors = st.floats(0.01, 100) | st.floats(-100, -0.01)


def vectors(size):
    return hnp.arrays(np.float64, size, elements=numbers).filter(np.any)


@st.composite
def embeddings(draw, size=4):
    return ConceptEmbedding(
        draw(vectors(size)), bias=draw(numbers), scaling_factor=draw(factors), concept_name="face"
    )


points = hnp.arrays(np.float64, (5, 4), elements=numbers)


def close(actual, expected, size=1.0):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * max(1.0, size))


def magnitude(plane, v):
    """Size of the summands of a distance, which bounds its rounding."""
    n = np.abs(plane.normal_vec).ravel()
    return abs(plane.scaling_factor) * float((np.abs(v) @ n).max() + abs(plane.bias))


# -- the hyperplane -------------------------------------------------------------------------------


@often
@given(embeddings(), points)
def test_distance_is_both_sides_of_the_identity(plane, v):
    n, b, s = plane.normal_vec, plane.support_factor, plane.scaling_factor
    size = magnitude(plane, v)
    close(plane.distance(v), s * (v @ n + plane.bias), size)
    close(plane.distance(v), s * ((v - b * n) @ n), size)
    close(plane.bias, -b * (n @ n), abs(plane.bias))


@often
@given(embeddings())
def test_support_vector_is_the_closest_point_to_the_origin(plane):
    support = plane.support_vec
    close(plane.distance(support), 0, magnitude(plane, support))
    close(np.linalg.norm(support), abs(plane.bias) / np.linalg.norm(plane.normal_vec))


@often
@given(vectors(4), numbers, factors)
def test_bias_and_support_factor_say_the_same(n, b, s):
    by_factor = ConceptEmbedding(n, b, s)
    assert by_factor == ConceptEmbedding(n, scaling_factor=s, bias=by_factor.bias)
    close(by_factor.support_factor, b, abs(b))


def test_hand_worked_plane():
    plane = ConceptEmbedding([3.0, 4.0], bias=-10.0)
    assert plane.length == 5.0
    assert plane.support_factor == 0.4
    np.testing.assert_allclose(plane.support_vec, [1.2, 1.6])
    # The point (6, 8) is 10 from the origin, the plane 2; the distance is times the length 5.
    assert plane.distance([6.0, 8.0]) == 40.0
    assert plane.normalize().distance([6.0, 8.0]) == 40.0
    assert plane.normalize().forget_scaling().distance([6.0, 8.0]) == 8.0
    assert plane.distance([0.0, 0.0]) == -10.0


def test_distance_takes_batches_of_windows_and_of_vectors():
    rng = np.random.default_rng(0)
    plane = ConceptEmbedding(rng.normal(size=(3, 2, 5)), bias=0.5)
    windows = rng.normal(size=(4, 7, 3, 2, 5))
    expected = np.einsum("abcij,cij->ab", windows, plane.normal_vec) + 0.5
    np.testing.assert_allclose(plane.distance(windows), expected)
    np.testing.assert_allclose(plane.distance(windows.reshape(4, 7, 30)), expected)
    assert plane.distance(windows[0, 0]).shape == ()
    with pytest.raises(InputError, match=r"\(3, 2, 4\).*\(3, 2, 5\) or \(30,\)"):
        plane.distance(windows[0, 0, ..., :4])


# -- representations ------------------------------------------------------------------------------

METHODS = ["scale", "normalize", "to_pos_scaling", "unique", "unique_upper_sphere"]


@pytest.mark.parametrize("method", METHODS)
@often
@given(plane=embeddings(), v=points)
def test_every_representation_measures_the_same_distance(method, plane, v):
    other = getattr(plane, method)()
    close(other.distance(v), plane.distance(v), magnitude(plane, v))
    assert other == plane
    assert other.concept_name == "face"


@often
@given(embeddings())
def test_representations_have_their_form(plane):
    sign = math.copysign(1, plane.scaling_factor)
    close(plane.normalize().length, 1)
    assert math.copysign(1, plane.normalize().scaling_factor) == sign
    assert plane.scale().scaling_factor == 1
    close(
        plane.scale().support_factor, plane.support_factor / plane.scaling_factor, abs(plane.support_factor)
    )
    assert plane.to_pos_scaling().scaling_factor > 0
    close(plane.unique().length, 1)
    assert plane.unique().scaling_factor > 0
    upper = plane.unique_upper_sphere()
    close(upper.length, 1)
    assert upper.normal_vec[np.flatnonzero(upper.normal_vec)[0]] > 0
    assert plane.forget_scaling().scaling_factor == 1
    np.testing.assert_array_equal(plane.forget_scaling().normal_vec, plane.normal_vec)


@often
@given(embeddings(), factors)
def test_unique_representations_are_unique(plane, factor):
    other = ConceptEmbedding(
        factor * plane.normal_vec, bias=factor * plane.bias, scaling_factor=plane.scaling_factor / factor
    )
    for method in ("unique", "unique_upper_sphere"):
        a, b = getattr(plane, method)(), getattr(other, method)()
        close(a.normal_vec, b.normal_vec)
        close(a.bias, b.bias, abs(b.bias))
        close(a.scaling_factor, b.scaling_factor, abs(b.scaling_factor))


def test_the_upper_sphere_includes_its_equator():
    plane = ConceptEmbedding([0.0, -2.0, 1.0], bias=3.0).unique_upper_sphere()
    np.testing.assert_allclose(plane.normal_vec, np.array([0, 2, -1]) / 5**0.5)
    assert plane.scaling_factor == pytest.approx(-(5**0.5))
    assert plane.bias == pytest.approx(-3 / 5**0.5)


# -- two concepts ---------------------------------------------------------------------------------


@often
@given(embeddings(), factors, factors)
def test_equality_sees_the_distance_and_the_hyperplane(plane, factor, scale):
    same = ConceptEmbedding(
        factor * plane.normal_vec, bias=factor * plane.bias, scaling_factor=plane.scaling_factor / factor
    )
    assert plane == same
    rescaled = ConceptEmbedding(plane.normal_vec, bias=plane.bias, scaling_factor=scale)
    assert rescaled.same_hyperplane(plane)
    assert (rescaled == plane) == math.isclose(scale, plane.scaling_factor, rel_tol=1e-6)
    moved = ConceptEmbedding(plane.normal_vec, bias=plane.bias + 0.01 * plane.length)
    assert not moved.same_hyperplane(plane) or abs(plane.bias) > 1e3 * plane.length
    opposite = ConceptEmbedding(-plane.normal_vec, bias=-plane.bias, scaling_factor=plane.scaling_factor)
    assert opposite.same_hyperplane(plane)
    assert opposite != plane
    assert plane != "face"
    assert not plane.same_hyperplane(ConceptEmbedding(np.ones(3), bias=0))


@often
@given(embeddings(), embeddings())
def test_cosine_and_angle(a, b):
    u = math.copysign(1, a.scaling_factor) * a.normal_vec
    v = math.copysign(1, b.scaling_factor) * b.normal_vec
    expected = np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1)
    assert a.cosine(b) == pytest.approx(expected, abs=1e-12)
    assert math.cos(a.angle(b)) == pytest.approx(expected, abs=1e-12)
    assert 0 <= a.angle(b) <= math.pi
    assert a.angle(b) == pytest.approx(b.angle(a))


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 1.0, math.pi / 2, 3.0, math.pi])
def test_small_angles_keep_their_digits(angle):
    a = ConceptEmbedding([2.0, 0.0], bias=1.0)
    b = ConceptEmbedding([math.cos(angle), math.sin(angle)], bias=5.0, scaling_factor=3.0)
    assert a.angle(b) == pytest.approx(angle, rel=1e-8)
    flipped = ConceptEmbedding(-b.normal_vec, bias=-5.0, scaling_factor=3.0)
    assert a.angle(flipped) == pytest.approx(math.pi - angle, rel=1e-8, abs=1e-15)


# -- ensembles ------------------------------------------------------------------------------------

ensembles = st.lists(embeddings(), min_size=1, max_size=4)


@often
@given(ensembles, points)
def test_mean_by_distance_is_the_mean_of_the_distances(planes, v):
    scaled = np.mean([p.scaling_factor * p.normal_vec for p in planes], axis=0)
    assume(np.linalg.norm(scaled) > 1e-3)
    mean = ConceptEmbedding.mean_by_distance(planes)
    assert mean.scaling_factor == 1
    close(
        mean.distance(v),
        np.mean([p.distance(v) for p in planes], axis=0),
        max(magnitude(p, v) for p in planes),
    )


@often
@given(ensembles)
def test_mean_has_mean_euclidean_distance_zero(planes):
    units = [p.unique() for p in planes]
    assume(np.linalg.norm(np.mean([u.normal_vec for u in units], axis=0)) > 1e-3)
    mean = ConceptEmbedding.mean(planes)
    close(mean.length, 1)
    assert mean.scaling_factor == pytest.approx(np.mean([u.scaling_factor for u in units]))
    rng = np.random.default_rng(0)
    tangents = rng.normal(size=(3, 4))
    on_plane = mean.support_vec + tangents - np.outer(tangents @ mean.normal_vec, mean.normal_vec)
    euclidean = np.mean([u.forget_scaling().distance(on_plane) for u in units], axis=0)
    close(euclidean, 0, 1e3 * max(1, np.abs(mean.support_vec).max()))


@often
@given(
    st.lists(
        st.tuples(hnp.arrays(np.float64, 4, elements=st.floats(-0.3, 0.3)), numbers, factors), min_size=1
    )
)
def test_mean_by_angle_balances_the_distances_along_its_normal(members):
    # Directions within a cone, so that all are in one hemisphere.
    planes = [
        ConceptEmbedding(np.sign(s) * (np.array([1, 0, 0, 0]) + n), bias=np.sign(s) * b, scaling_factor=s)
        for n, b, s in members
    ]
    mean = ConceptEmbedding.mean_by_angle(planes)
    close(mean.length, 1)
    units = [p.unique() for p in planes]
    start, direction = mean.support_vec, mean.normal_vec
    steps = [-(start @ u.normal_vec + u.bias) / (direction @ u.normal_vec) for u in units]
    close(np.sum(steps), 0, 100 * len(steps))
    # The direction is the one with the largest sum of cosines.
    sums = [sum(float(d @ u.normal_vec) for u in units) for d in (direction, *_tilted(direction))]
    assert sums[0] >= max(sums[1:]) - 1e-12


def _tilted(direction):
    for axis in np.eye(4):
        for step in (0.01, -0.01):
            tilted = direction + step * axis
            yield tilted / np.linalg.norm(tilted)


@often
@given(embeddings(), st.integers(1, 4))
def test_every_mean_of_copies_is_the_original(plane, copies):
    for mean in (ConceptEmbedding.mean, ConceptEmbedding.mean_by_distance, ConceptEmbedding.mean_by_angle):
        assert mean([plane] * copies) == plane
        assert mean([[plane.scale()], [plane.normalize()] * copies]) == plane


def test_hand_worked_means():
    a = ConceptEmbedding([2.0, 0.0], bias=-2.0)
    b = ConceptEmbedding([0.0, 4.0], bias=-12.0)
    by_distance = ConceptEmbedding.mean_by_distance([a, b])
    np.testing.assert_allclose(by_distance.normal_vec, [1.0, 2.0])
    assert by_distance.bias == -7.0
    mean = ConceptEmbedding.mean([a, b])
    np.testing.assert_allclose(mean.normal_vec, np.ones(2) / 2**0.5)
    # x - 1 and y - 3 have the mean (x + y)/2 - 2.
    assert mean.bias == pytest.approx(-4 / 2**0.5)
    assert mean.scaling_factor == 3.0
    by_angle = ConceptEmbedding.mean_by_angle([a, b])
    # Along the diagonal, the planes are at 1 * sqrt(2) and 3 * sqrt(2).
    assert by_angle.bias == pytest.approx(-2 * 2**0.5)


@often
@given(st.lists(embeddings(), min_size=2, max_size=5), st.integers(0, 1))
def test_variance_and_deviation_are_those_of_the_unique_entries(planes, ddof):
    units = [p.unique() for p in planes]
    variances = ConceptEmbedding.variance(planes, ddof)
    for i, name in enumerate(("normal_vec", "support_factor", "scaling_factor")):
        entries = np.array([getattr(u, name) for u in units])
        expected = ((entries - entries.mean(axis=0)) ** 2).sum(axis=0) / (len(planes) - ddof)
        np.testing.assert_allclose(variances[i], expected, rtol=1e-9)
        np.testing.assert_allclose(ConceptEmbedding.std_deviation(planes, ddof)[i] ** 2, expected, rtol=1e-9)


def test_ensembles_without_a_middle_are_errors():
    a = ConceptEmbedding([1.0, 0.0], bias=1.0)
    opposite = ConceptEmbedding([-1.0, 0.0], bias=1.0)
    for mean in (ConceptEmbedding.mean, ConceptEmbedding.mean_by_distance, ConceptEmbedding.mean_by_angle):
        with pytest.raises(InputError, match="cancel out"):
            mean([a, opposite])
        with pytest.raises(InputError, match="empty"):
            mean([])
        with pytest.raises(InputError, match=r"one shape|must be .*, as this one"):
            mean([a, ConceptEmbedding(np.ones(3), bias=0)])
    far = ConceptEmbedding([-1.0, 0.1], bias=1.0)
    with pytest.raises(InputError, match=r"embeddings\[2\].*right angle"):
        ConceptEmbedding.mean_by_angle([a, a, far])
    with pytest.raises(InputError, match="1 entries; a variance with ddof=1"):
        ConceptEmbedding.variance([a])
    with pytest.raises(InputError, match=r"one shape|must be .*, as this one"):
        a.cosine(ConceptEmbedding(np.ones(3), bias=0))


# -- degenerate arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normal_vec": [0.0, 0.0], "bias": 1}, "normal_vec is zero"),
        ({"normal_vec": [], "bias": 1}, "at least one value|one axis and one entry"),
        ({"normal_vec": 3.0, "bias": 1}, "one axis"),
        ({"normal_vec": [1.0, np.nan], "bias": 1}, "normal_vec holds nan"),
        ({"normal_vec": ["n"], "bias": 1}, "must be an array of real numbers"),
        ({"normal_vec": [1.0]}, "neither bias nor support_factor"),
        ({"normal_vec": [1.0], "bias": 1, "support_factor": 1}, "both given"),
        ({"normal_vec": [1.0], "bias": [1, 2]}, "bias=.* must be one number"),
        ({"normal_vec": [1.0], "bias": np.inf}, "bias=inf must be a finite number"),
        ({"normal_vec": [1.0], "bias": 1, "scaling_factor": 0}, "scaling_factor is 0"),
        ({"normal_vec": np.ones((2, 3, 3)), "bias": 1, "kernel_size": (3, 5)}, r"kernel_size=\(3, 5\)"),
    ],
)
def test_degenerate_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises(InputError, match=message):
        ConceptEmbedding(**arguments)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_lengths_are_exact_where_their_squares_leave_the_range(size):
    plane = ConceptEmbedding([3 * size, 4 * size], bias=size)
    assert plane.length == pytest.approx(5 * size)
    np.testing.assert_allclose(plane.unique().normal_vec, [0.6, 0.8])
    assert plane.unique().bias == pytest.approx(0.2)


def test_kernel_size_follows_from_the_normal_vector():
    assert ConceptEmbedding(np.ones((8, 3, 5)), bias=0).kernel_size == (3, 5)
    assert ConceptEmbedding(np.ones((1, 8, 3, 5)), bias=0, kernel_size=[3, 5]).kernel_size == (3, 5)
    assert ConceptEmbedding(np.ones(8), bias=0).kernel_size == (1, 1)


def test_an_embedding_keeps_a_copy_of_what_it_was_given():
    weights = np.float32([1, 2])
    plane = ConceptEmbedding(weights, bias=np.float32([3]))
    weights[:] = 0
    np.testing.assert_array_equal(plane.normal_vec, [1, 2])
    with pytest.raises(ValueError, match="read-only"):
        plane.normal_vec[0] = 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(plane)
    assert copy.deepcopy(plane) == plane


# -- files ----------------------------------------------------------------------------------------


@often
@given(embeddings())
def test_a_saved_embedding_comes_back_bit_for_bit(tmp_path_factory, plane):
    path = tmp_path_factory.mktemp("embedding") / "file.safetensors"
    plane.save(path)
    loaded = ConceptEmbedding.load(path)
    np.testing.assert_array_equal(loaded.normal_vec, plane.normal_vec)
    assert (loaded.bias, loaded.scaling_factor) == (plane.bias, plane.scaling_factor)


def test_meta_information_is_saved(tmp_path):
    plane = ConceptEmbedding(
        np.ones((2, 3, 3)), 0.5, 2.0, concept_name="face", layer_id="blocks.5", model="Lite0", epochs=3
    )
    plane.save(tmp_path / "file")
    loaded = ConceptEmbedding.load(tmp_path / "file")
    assert repr(loaded) == repr(plane)
    assert loaded.meta_info == {"model": "Lite0", "epochs": 3}
    assert (loaded.concept_name, loaded.layer_id, loaded.kernel_size) == ("face", "blocks.5", (3, 3))
    assert ConceptEmbedding(**loaded.settings) == plane
    with pytest.raises(InputError, match="exists"):
        plane.save(tmp_path / "file", overwrite=False)
    with pytest.raises(InputError, match="JSON"):
        ConceptEmbedding([1.0], bias=0, model=object()).save(tmp_path / "other")


def test_broken_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "file"
    ConceptEmbedding([1.0, 2.0], bias=3.0).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(StateError, match="truncated"):
        ConceptEmbedding.load(path)
    write_state(path, {"mean": [1.0]}, "estimator")
    with pytest.raises(StateError, match="a saved estimator"):
        ConceptEmbedding.load(path)
    with pytest.raises(StateError, match="absent"):
        ConceptEmbedding.load(tmp_path / "absent")
    path.write_bytes(content)
    arrays, metadata = read_state(path, "concept embedding")
    write_state(path, {**arrays, "normal_vec": np.zeros(2)}, "concept embedding", metadata)
    with pytest.raises(StateError, match="normal_vec is zero"):
        ConceptEmbedding.load(path)


def test_the_first_of_an_ensemble_is_a_copy():
    planes = [ConceptEmbedding([1.0, 2.0], bias=3.0), ConceptEmbedding([4.0, 5.0], bias=6.0)]
    first = ConceptEmbedding.first([planes])
    assert first == planes[0]
    first.scaling_factor = 2.0
    assert planes[0].scaling_factor == 1.0
    with pytest.raises(InputError, match="embeddings is empty"):
        ConceptEmbedding.first([])


def test_the_arrays_of_hybrid_learning_are_read(tmp_path):
    arrays = {
        "normal_vec": np.full((1, 4, 2, 3), 0.5, np.float32),
        "support_factor": 2.0,
        "scaling_factor": 3.0,
    }
    np.savez(tmp_path / "face.npz", **arrays, concept_name="face", layer_id="None")
    plane = ConceptEmbedding.load(tmp_path / "face.npz")
    assert plane.normal_vec.shape == (1, 4, 2, 3)
    assert (plane.support_factor, plane.scaling_factor) == (2.0, 3.0)
    assert (plane.concept_name, plane.layer_id, plane.kernel_size) == ("face", None, (2, 3))
    weight, bias = filters_of([plane])
    assert weight.shape == (1, 4, 2, 3)
    np.testing.assert_allclose(bias, 3.0 * -2.0 * 24 * 0.25)
    outputs = np.random.default_rng(0).normal(size=(4, 5, 6))
    flat = ConceptEmbedding(plane.normal_vec[0], plane.support_factor, 3.0)
    assert plane.as_target()(outputs) == pytest.approx(flat.as_target()(outputs))
    np.savez(tmp_path / "odd.npz", normal_vec=np.ones(3))
    with pytest.raises(StateError, match=r"odd\.npz"):
        ConceptEmbedding.load(tmp_path / "odd.npz")
