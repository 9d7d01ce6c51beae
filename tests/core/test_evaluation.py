"""Formulas of the evaluation: worked values, SciPy, and plain loops."""

import json

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from iba_core import InputError
from iba_core.evaluation import (
    Estimate,
    Evaluation,
    Metric,
    agreement,
    bootstrap,
    boxes_to_masks,
    mass_in_box,
    paired,
    pointing_game,
    sparseness,
)
from iba_core.evaluation.formulas import area, gini, infidelity_of, pearson, share_inside, spearman
from iba_core.evaluation.localisation import QUANTILES, mosaics
from iba_core.evaluation.places import Tiles, generator_of, imputed
from iba_core.evaluation.randomization import permuted
from iba_core.framework.layout import Layout

GENERATOR = np.random.default_rng(3)
ROWS = GENERATOR.gamma(0.5, size=(4, 30))
OTHER = ROWS + GENERATOR.gamma(0.5, size=(4, 30))


# -- formulas, in every framework ----------------------------------------------------------------------------


def test_correlation_is_scipys(framework):
    found = framework.to_numpy(pearson(framework.asarray(ROWS), framework.asarray(OTHER)))
    expected = [scipy.stats.pearsonr(a, b).statistic for a, b in zip(ROWS, OTHER, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_a_constant_row_correlates_with_nothing(framework, scale):
    rows = framework.asarray(scale * ROWS)
    constant = framework.asarray(np.full_like(ROWS, 0.1 * scale))
    assert (framework.to_numpy(pearson(rows, constant)) == 0).all()
    np.testing.assert_allclose(framework.to_numpy(pearson(rows, rows)), 1.0)


def test_rank_correlation_is_scipys_also_with_ties():
    ties = np.round(ROWS, 1)
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(ties, OTHER, strict=True)]
    np.testing.assert_allclose(spearman(ties, OTHER), expected, atol=1e-12)


def test_gini_is_the_mean_difference_of_all_pairs(framework):
    found = framework.to_numpy(gini(framework.asarray(np.sort(ROWS, axis=1))))
    pairs = np.abs(ROWS[:, :, None] - ROWS[:, None]).mean(axis=(1, 2)) / (2 * ROWS.mean(axis=1))
    np.testing.assert_allclose(found, pairs, atol=1e-12)


def test_area_is_numpys(framework):
    found = framework.to_numpy(area(framework.asarray(ROWS)))
    np.testing.assert_allclose(found, scipy.integrate.trapezoid(ROWS, dx=1 / 29, axis=1), atol=1e-12)


def test_infidelity_takes_the_factor_that_fits_best(framework):
    sums, deltas = framework.asarray(ROWS), framework.asarray(OTHER)
    found = framework.to_numpy(infidelity_of(sums, deltas, normalize=True))
    expected = [
        np.linalg.lstsq(a[:, None], b, rcond=None)[1][0] / len(a) for a, b in zip(ROWS, OTHER, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    plain = framework.to_numpy(infidelity_of(sums, deltas, normalize=False))
    np.testing.assert_allclose(plain, ((ROWS - OTHER) ** 2).mean(axis=1), atol=1e-12)


def test_share_inside_of_nothing_is_unknown(framework):
    values = np.array([[1.0, 3.0], [0.0, 0.0], [1.0, 1.0]])
    inside = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    found = framework.to_numpy(share_inside(framework.asarray(values), framework.asarray(inside)))
    np.testing.assert_array_equal(found, [0.75, np.nan, np.nan])


# -- tiles and imputation ------------------------------------------------------------------------------------


def test_tiles_of_any_size_rank_by_their_means():
    saliency = np.arange(15.0).reshape(3, 5)
    tiles = Tiles.of((3, 5), (2, 3))
    assert tiles.numbers.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [2, 2, 2, 3, 3]]
    assert tiles.sizes.tolist() == [6, 4, 3, 2]
    np.testing.assert_allclose(tiles.sums(saliency), [21, 24, 33, 27])
    # By their sums, tile 2 would come before the smaller tile 3.
    assert tiles.ranks(saliency, GENERATOR).tolist() == [3, 2, 1, 0]


def test_equal_tiles_come_in_any_order():
    tiles = Tiles.of((4, 4))
    first = [int(np.argmin(tiles.ranks(np.ones((4, 4)), np.random.default_rng(seed)))) for seed in range(40)]
    assert len(set(first)) > 10


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_imputation_solves_for_the_mean_of_the_neighbours(data_format):
    image = GENERATOR.normal(size=(6, 5, 2))
    mask = GENERATOR.random((6, 5)) < 0.5
    given = image if data_format == "channels_last" else np.moveaxis(image, -1, 0)
    found = imputed(given, mask, Layout.of(given.shape, data_format))
    found = found if data_format == "channels_last" else np.moveaxis(found, 0, -1)
    np.testing.assert_array_equal(found[~mask], image[~mask])
    for row, column in np.argwhere(mask):
        near = [
            (row + down, column + right, 1 / 6 if 0 in (down, right) else 1 / 12)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if (down, right) != (0, 0) and 0 <= row + down < 6 and 0 <= column + right < 5
        ]
        total = sum(weight for *_, weight in near)
        mean = sum(weight * found[r, c] for r, c, weight in near) / total
        np.testing.assert_allclose(found[row, column], mean, atol=1e-12)


def test_where_all_is_missing_the_mean_stands():
    image = GENERATOR.normal(size=(2, 4, 4))
    found = imputed(image, np.ones((4, 4), bool), Layout.of(image.shape, "channels_first"))
    np.testing.assert_allclose(found, np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape))


def test_random_numbers_of_a_picture_do_not_depend_on_its_format():
    image = GENERATOR.normal(size=(3, 4, 5))
    first = generator_of(7, image, Layout.of(image.shape, "channels_first")).random(3)
    last = generator_of(7, np.moveaxis(image, 0, -1), Layout.of((4, 5, 3), "channels_last")).random(3)
    np.testing.assert_array_equal(first, last)
    assert (generator_of(8, image, Layout.of(image.shape, "channels_first")).random(3) != first).all()


# -- maps and objects ----------------------------------------------------------------------------------------


def test_the_highest_place_may_lie_beside_the_object():
    maps, masks = np.zeros((2, 5, 5)), np.zeros((2, 5, 5), bool)
    maps[:, 0, 0] = 1
    masks[0, 0, 2] = True
    np.testing.assert_array_equal(pointing_game(maps, masks), [0, np.nan])
    np.testing.assert_array_equal(pointing_game(maps, masks, tolerance=1.5), [0, np.nan])
    np.testing.assert_array_equal(pointing_game(maps, masks, tolerance=2), [1, np.nan])


def test_heat_ratio_counts_what_is_above_each_quantile():
    maps = np.array([[[4.0, 3.0], [2.0, 1.0]]])
    masks = np.array([[[True, False], [False, True]]])
    assert mass_in_box(maps, masks) == pytest.approx(0.5)
    assert mass_in_box(maps, masks, quantiles=[0.5]) == pytest.approx(4 / 7)
    assert mass_in_box(maps, masks, quantiles=[0, 0.5]) == pytest.approx((0.5 + 4 / 7) / 2)
    assert len(QUANTILES) == 10
    # Negative values are no heat.
    assert mass_in_box(maps - 3.5, masks) == pytest.approx(1.0)


def test_boxes_are_masks():
    masks = boxes_to_masks([[1, 0, 3, 2], [-5, 2, 1, 9]], (3, 4))
    assert masks.sum(axis=(1, 2)).tolist() == [4, 1]
    assert masks[0, 1, 2]
    assert masks[1, 2, 0]
    with pytest.raises(InputError, match="boxes holds one outside"):
        boxes_to_masks([[4, 0, 9, 2]], (3, 4))


def test_mosaics_hold_different_classes_at_their_places():
    images = np.arange(5.0)[:, None, None, None] + np.zeros((5, 4, 4, 1))
    pictures, groups = mosaics(images, np.array([0, 0, 1, 2, 3]), Layout(3, 2), (2, 2))
    assert pictures.shape == (1, 4, 4, 1)
    (group,) = groups
    assert len({(0, 0, 1, 2, 3)[index] for index in group}) == 4
    for place, index in enumerate(group):
        row, column = divmod(place, 2)
        assert (pictures[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] == index).all()
    assert len(mosaics(images, np.zeros(5, int), Layout(3, 2))[0]) == 0


def test_sparseness_of_a_single_value_is_nearly_one():
    maps = np.zeros((1, 10, 10))
    maps[0, 3, 3] = -2
    assert sparseness(maps) == pytest.approx(0.99)


def test_agreement_of_the_highest_places():
    a = np.arange(20.0)[None]
    assert agreement(a, a[:, ::-1], "top", 0.2) == 0
    assert agreement(a, -a, "pearson") == pytest.approx(-1)
    shifted = np.roll(a, 1)
    assert agreement(a, shifted, "top", 0.2) == pytest.approx(0.75)
    with pytest.raises(InputError, match="second"):
        agreement(a, a[:, 1:])


# -- intervals -----------------------------------------------------------------------------------------------


def test_the_interval_is_about_as_wide_as_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(2.0, 3.0, 200)
    estimate = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(200)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.value == pytest.approx(half, rel=0.1)
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.1)


def test_a_reduction_that_is_no_mean_is_drawn_alike():
    values = np.random.default_rng(0).normal(size=(40, 1))
    plain, drawn = bootstrap(values), bootstrap(values, lambda part: float(part.mean()))
    assert (plain.value, plain.low, plain.high) == pytest.approx((drawn.value, drawn.low, drawn.high))


def test_what_makes_pictures_differ_cancels_in_pairs():
    easy = np.random.default_rng(0).normal(0, 10, 30)
    gain = np.random.default_rng(1).normal(1, 0.1, 30)
    estimate = paired(easy + gain, easy)
    assert 0 < estimate.low < 1 < estimate.high < 1.1
    slow = paired(easy + gain, easy, lambda part: float(part.mean()))
    assert (slow.low, slow.high) == pytest.approx((estimate.low, estimate.high))


def test_pictures_without_a_number_are_left_out():
    assert bootstrap([1.0, np.nan, 3.0]).n == 2
    assert bootstrap([np.nan]).n == 0
    assert str(bootstrap([np.nan])) == "-"
    assert str(bootstrap([0.5])) == "0.500"


# -- table ---------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    better = np.linspace(0.4, 0.6, 8)
    values = {"ours": {"area": better, "spread": better}, "theirs": {"area": better - 0.1, "spread": better}}
    return Evaluation(
        [Metric("area", lambda case: [], True), Metric("spread", lambda case: [], False)],
        values,
        {name: np.full(8, 0.25) for name in values},
    )


def test_table_compares_on_the_same_pictures(table):
    difference = table.compare("ours", "theirs", "area")
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert table.estimate("ours", "area").n == len(table) == 8
    with pytest.raises(InputError, match="no method of this table"):
        table.estimate("hours", "area")
    with pytest.raises(InputError, match="no metric of this table"):
        table.compare("ours", "theirs", "aria")


def test_table_is_text_and_numbers(table, tmp_path):
    text = str(table)
    assert text.splitlines()[0].split() == ["area", "↑", "spread", "↓"]
    assert text.splitlines()[1].startswith("ours")
    rows = table.to_csv(tmp_path / "table.csv").splitlines()
    assert rows[0] == "method,metric,value,low,high,n,higher_is_better"
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines() == rows
    stored = json.loads(table.to_json(tmp_path / "table.json"))
    assert stored == json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert stored["rows"][0]["value"] == pytest.approx(0.5)
    assert stored["values"]["theirs"]["area"][0] == pytest.approx(0.3)
    assert stored["seconds"] == {"ours": 0.25, "theirs": 0.25}


def test_table_draws_itself(table, tmp_path):
    pytest.importorskip("matplotlib")
    figure = table.plot(tmp_path / "table.png")
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["area ↑", "spread ↓"]
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_estimates_print_short():
    assert str(Estimate(0.5, 0.4, 0.6, 3)) == "0.500 [0.400, 0.600]"


def test_permutations_keep_the_values_of_each_array():
    weights = {"a": [np.arange(20.0).reshape(4, 5), np.arange(3.0)]}
    other = permuted(weights, seed=0)
    assert other["a"][0].shape == (4, 5)
    assert sorted(other["a"][0].ravel()) == sorted(weights["a"][0].ravel())
    assert (other["a"][0] != weights["a"][0]).any()
