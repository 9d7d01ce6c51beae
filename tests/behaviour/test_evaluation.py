"""Evaluation of maps, on models of every framework."""

import numpy as np
import pytest

from iba_core import Explainer, InputError
from iba_core.concepts import GradCAM
from iba_core.evaluation import (
    ConstantMask,
    Gradients,
    IntegratedGradients,
    Metric,
    Occlusion,
    RandomMaps,
    ScoredModel,
    SmoothGrad,
    degradation,
    deletion,
    evaluate,
    grid_pointing_game,
    infidelity,
    insertion,
    max_sensitivity,
    perturbation_curve,
    perturbation_pairs,
    randomization_check,
    road_hits,
    seed_stability,
    sensitivity_n,
)
from iba_core.framework.namespace import softmax
from tests.backends import (
    CLASSES,
    SIZE,
    SMALL_LAYER,
    Dense,
    Flatten,
    assert_same_state,
    fitted,
    smooth_images,
)

MAPS = np.random.default_rng(5).gamma(0.5, size=(3, SIZE, SIZE))
CHOSEN = np.array([1, 4, 0])


@pytest.fixture(scope="module")
def model(backend):
    return backend.small("float64")


@pytest.fixture(scope="module")
def x(backend):
    return backend.images(smooth_images(3)).astype("float64")


@pytest.fixture(scope="module")
def probabilities(model):
    """The model's probabilities of the chosen classes for images (N, ...) of one of the three."""
    scored = ScoredModel(model)
    return lambda images, index: softmax(scored.outputs(scored.tensor(images)))[:, CHOSEN[index]]


def pixels(backend, array):
    """An array (..., H, W) beside the channels of the backend's images."""
    return array[..., None, :, :] if backend.data_format == "channels_first" else array[..., None]


# -- metrics that take places away ---------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "tile"), [("morf", 1), ("lerf", 4), ("insertion", 5)])
def test_curves_are_those_of_a_plain_loop(backend, model, x, probabilities, order, tile):
    curves = perturbation_curve(model, x, MAPS, CHOSEN, order=order, tile=tile, steps=3, baseline="mean")
    axes = (1, 2) if backend.data_format == "channels_first" else (0, 1)
    for index, image in enumerate(x):
        mean = np.broadcast_to(image.mean(axis=axes, keepdims=True), image.shape)
        rows, columns = np.indices((SIZE, SIZE)) // tile
        side = -(-SIZE // tile)
        means = [MAPS[index][(rows == i) & (columns == j)].mean() for i in range(side) for j in range(side)]
        order_of_tiles = np.argsort(means)[:: 1 if order == "lerf" else -1]
        for step in range(4):
            changed = order_of_tiles[: int(np.ceil(step * side**2 / 3))]
            taken = pixels(backend, np.isin(rows * side + columns, changed))
            start, end = (mean, image) if order == "insertion" else (image, mean)
            expected = probabilities(np.where(taken, end, start)[None], index)
            np.testing.assert_allclose(curves[index, step], expected[0], atol=1e-9)


def test_areas_are_those_of_the_curves(model, x):
    options = {"tile": 3, "steps": 4, "baseline": "zero"}
    curves = {
        order: np.trapezoid(perturbation_curve(model, x, MAPS, CHOSEN, order=order, **options), dx=1 / 4)
        for order in ("morf", "lerf", "insertion")
    }
    np.testing.assert_allclose(insertion(model, x, MAPS, CHOSEN, **options), curves["insertion"])
    np.testing.assert_allclose(deletion(model, x, MAPS, CHOSEN, **options), curves["morf"])
    np.testing.assert_allclose(
        degradation(model, x, MAPS, CHOSEN, **options), curves["lerf"] - curves["morf"]
    )


def test_a_constant_map_degrades_nothing(model, x):
    np.testing.assert_array_equal(degradation(model, x, np.ones_like(MAPS), CHOSEN, tile=3), 0)


@pytest.mark.parametrize("baseline", ["mean", "blur", "noise", "inpaint", "zero"])
def test_results_depend_neither_on_the_batch_nor_on_its_division(model, x, baseline):
    whole = perturbation_curve(model, x, MAPS, CHOSEN, tile=2, steps=3, baseline=baseline)
    little = ScoredModel(model, max_batch=3)
    parts = [
        perturbation_curve(
            little, x[i : i + 1], MAPS[i : i + 1], CHOSEN[i], tile=2, steps=3, baseline=baseline
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-9)


def test_baselines_are_arrays_and_functions_too(model, x):
    options = {"tile": 4, "steps": 2}
    zero = perturbation_curve(model, x, MAPS, CHOSEN, baseline="zero", **options)
    for baseline in (0.0, np.zeros_like(x), np.zeros_like):
        found = perturbation_curve(model, x, MAPS, CHOSEN, baseline=baseline, **options)
        np.testing.assert_array_equal(found, zero)


def test_pairs_are_sums_of_maps_and_falls_of_the_score(backend, model, x, probabilities):
    # One set of all tiles but one, drawn until each was left out once.
    pairs = perturbation_pairs(model, x, MAPS, CHOSEN, n=3, samples=30, tile=6, baseline="zero")
    for index, image in enumerate(x):
        whole = probabilities(image[None], index)[0]
        for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
            kept = np.zeros((SIZE, SIZE), bool)
            kept[6 * row : 6 * row + 6, 6 * column : 6 * column + 6] = True
            fall = whole - probabilities((image * pixels(backend, kept))[None], index)[0]
            total = MAPS[index][~kept].sum()
            distance = np.abs(pairs[index, 0] - [total, fall]).max(axis=1)
            assert distance.min() < 1e-9


def test_of_a_linear_model_the_contributions_are_faithful(backend):
    """Sums of weights times pixels are what the logit loses: correlation 1, infidelity 0."""
    model = backend.network((4, 4, 1), [Flatten(), Dense("logits", 3)], dtype="float64")
    images = smooth_images(3)[:, :4, :4, :1].astype("float64")
    x = backend.images(images)
    scored = ScoredModel(model, score="logit")
    maps = IntegratedGradients(scored, steps=1)(x, 1)
    options = {"n": (2, 5), "samples": 20, "tile": 1, "baseline": "zero"}
    np.testing.assert_allclose(sensitivity_n(scored, x, maps, 1, **options), 1.0)
    np.testing.assert_allclose(sensitivity_n(scored, x, maps, 1, pooled=True, **options), 1.0)
    np.testing.assert_allclose(infidelity(scored, x, maps, 1, normalize=False, **options), 0.0, atol=1e-18)
    # Each map on its own scale: perfect within pictures, not over them.
    scaled = maps * np.array([1.0, 5.0, 0.1])[:, None, None]
    np.testing.assert_allclose(sensitivity_n(scored, x, scaled, 1, **options), 1.0)
    assert sensitivity_n(scored, x, scaled, 1, pooled=True, **options) < 0.95
    np.testing.assert_allclose(infidelity(scored, x, scaled, 1, **options), 0.0, atol=1e-18)


def test_road_counts_how_often_the_class_survives(model, x):
    scored = ScoredModel(model)
    predicted = scored.predicted(scored.tensor(x))
    hits = road_hits(model, x, MAPS, percentages=(0, 50, 100))
    assert set(np.unique(hits)) <= {0.0, 1.0}
    assert (hits[:, 0] == 1).all()
    assert (road_hits(model, x, MAPS, (predicted + 1) % CLASSES, percentages=(0,)) == 0).all()


def test_maps_of_each_number_take_numbers_away(backend, model, x):
    full = np.random.default_rng(0).random(x.shape)
    curve = perturbation_curve(model, x, full, CHOSEN, steps=2, baseline="zero")
    scored = ScoredModel(model)
    half = np.where(full >= np.median(full, axis=(1, 2, 3), keepdims=True), 0, x)
    np.testing.assert_allclose(curve[:, 1], scored.scores(scored.tensor(half), CHOSEN), atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": MAPS[:2]}, r"maps has shape \(2, 12, 12\) for inputs of shape \(3, "),
        ({"maps": MAPS * np.nan}, "maps holds nan"),
        ({"target": 7}, "target=7 is outside the model's 5 classes"),
        ({"target": [1, 2]}, "target has shape"),
        ({"target": lambda outputs: 0}, "ScoredModel"),
        ({"tile": 0}, "tile=0"),
        ({"tile": (2, 2, 2)}, "tile="),
        ({"baseline": "mode"}, "baseline='mode' is none of 'mean'"),
        ({"baseline": np.zeros(7)}, "baseline has shape"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"order": "best"}, "order='best'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_refused(model, x, arguments, message):
    with pytest.raises(InputError, match=message):
        perturbation_curve(model, **{"x": x, "maps": MAPS, "target": 1, **arguments})


def test_the_score_is_what_the_user_says(model, x):
    logit = ScoredModel(model, score="logit")
    tensor = logit.tensor(x)
    outputs = logit.outputs(tensor)
    np.testing.assert_allclose(logit.scores(tensor, CHOSEN), outputs[np.arange(3), CHOSEN])
    margin = ScoredModel(model, score=lambda outputs: outputs[:, 0] - outputs[:, 1])
    curve = perturbation_curve(margin, x, MAPS, steps=2)
    np.testing.assert_allclose(curve[:, 0], outputs[:, 0] - outputs[:, 1])
    with pytest.raises(InputError, match="give one"):
        perturbation_curve(margin, x, MAPS, 1)


# -- methods -------------------------------------------------------------------------------------------------


def test_gradients_are_finite_differences(backend, model, x):
    scored = ScoredModel(model, score="logit")
    found = Gradients(model, channels="none")(x, CHOSEN)
    direction = np.random.default_rng(0).normal(size=x.shape)
    up, down = (scored.scores(scored.tensor(x + step * direction), CHOSEN) for step in (1e-6, -1e-6))
    slopes = (found * direction).reshape(3, -1).sum(axis=1)
    np.testing.assert_allclose(slopes, (up - down) / 2e-6, rtol=1e-5, atol=1e-8)
    axis = 1 if backend.data_format == "channels_first" else -1
    np.testing.assert_allclose(Gradients(model)(x, CHOSEN), np.abs(found).sum(axis=axis))


def test_integrated_gradients_sum_to_the_difference(model, x):
    scored = ScoredModel(model, score="logit")
    maps = IntegratedGradients(model, steps=300)(x, CHOSEN)
    ends = [scored.scores(scored.tensor(each), CHOSEN) for each in (x, np.zeros_like(x))]
    # The gradient jumps where a unit begins to act, so the sum over points is not exact.
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), ends[0] - ends[1], atol=2e-2)


def test_occlusion_is_a_plain_loop(backend, model, x):
    scored = ScoredModel(model, score="logit")
    maps = Occlusion(model, tile=5, baseline="zero")(x, CHOSEN)
    for row, column in ((0, 0), (5, 10), (10, 10)):
        kept = np.ones((SIZE, SIZE))
        kept[row : row + 5, column : column + 5] = 0
        size = (kept == 0).sum()
        hidden = x * pixels(backend, kept)
        falls = scored.scores(scored.tensor(x), CHOSEN) - scored.scores(scored.tensor(hidden), CHOSEN)
        np.testing.assert_allclose(maps[:, row, column] * size, falls, atol=1e-9)


def test_smooth_grad_without_noise_is_the_gradient(model, x):
    smooth = SmoothGrad(model, samples=2, noise=0)(x, CHOSEN)
    np.testing.assert_allclose(smooth, Gradients(model)(x, CHOSEN))
    one, same, other = (SmoothGrad(model, samples=2)(x, CHOSEN, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_constant_mask_shows_how_unusual_the_features_are(backend, x):
    explainer = fitted(backend, smooth_std=0)
    features = explainer.adapter.split(SMALL_LAYER).features(explainer.adapter.to_inputs(x))
    z = explainer.adapter.framework.to_numpy(features) - explainer.estimator.mean()
    squares = (z / np.maximum(explainer.estimator.std(), 0.01)) ** 2
    passed = 1 / (1 + np.exp(-5.0))
    nats = (squares * passed**2 + (1 - passed) ** 2 - 1) / 2 - np.log(1 - passed)
    active = np.broadcast_to(np.asarray(explainer.estimator.active_neurons()), nats.shape)
    total = (nats * active).reshape(3, -1).sum(axis=1) / np.log(2)
    np.testing.assert_allclose(ConstantMask(explainer)(x).sum(axis=(1, 2)), total, rtol=1e-4)


# -- other sanity checks -------------------------------------------------------------------------------------


def test_the_sensitivity_of_a_linear_method(model, x):
    scored = ScoredModel(model)
    still = max_sensitivity(scored, lambda images, classes: np.ones((len(images), 2)), x, samples=2)
    np.testing.assert_array_equal(still, 0)
    seen = []

    def itself(images, classes):
        seen.append(images)
        return images

    found = max_sensitivity(scored, itself, x, radius=0.1, samples=3)
    changes = [np.linalg.norm((each - x).reshape(3, -1), axis=1) for each in seen[1:]]
    lengths = np.linalg.norm(x.reshape(3, -1), axis=1)
    np.testing.assert_allclose(found, np.max(changes, axis=0) / lengths)
    assert np.abs(np.array(seen[1:]) - x).max() <= 0.1


def test_stability_is_the_least_correlation_between_seeds(backend, model, x):
    explainer = fitted(backend)
    found = seed_stability(model, explainer, x, CHOSEN, seeds=(0, 1, 2))
    maps = [explainer.explain(x, CHOSEN, seed=seed).saliency.reshape(3, -1) for seed in (0, 1, 2)]
    least = [
        min(np.corrcoef(maps[a][i], maps[b][i])[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))) for i in range(3)
    ]
    np.testing.assert_allclose(found, least, atol=1e-6)
    assert (seed_stability(model, Gradients(model), x) == 1).all()


def test_the_grid_game_is_won_by_who_knows_the_place(backend, model):
    x = backend.images(smooth_images(4)).astype("float64")
    classes = np.array([0, 1, 2, 3])

    def cheat(pictures, wanted):
        # One mosaic, its four classes asked for in the order of the places.
        asked = cheat.asked = getattr(cheat, "asked", -1) + 1
        maps = np.full((len(pictures), SIZE, SIZE), 0.01)
        row, column = divmod(asked, 2)
        maps[:, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] = 1
        return maps

    assert (grid_pointing_game(model, cheat, x, classes) > 0.9).all()
    even = grid_pointing_game(
        model, lambda pictures, wanted: np.ones((len(pictures), SIZE, SIZE)), x, classes
    )
    np.testing.assert_allclose(even, 0.25)
    assert np.isnan(grid_pointing_game(model, cheat, x, 1)).all()


@pytest.mark.parametrize("layer_order", ["top_down", "independent"])
def test_randomization_changes_copies_only(backend, layer_order):
    model = backend.small("float32")
    x = backend.images(smooth_images(2)).astype("float32")
    before = backend.state(model, smooth_images(2).astype("float32"))
    result = randomization_check(model, Gradients, x, 1, layer_order=layer_order, stages=2)
    assert_same_state(before, backend.state(model, smooth_images(2).astype("float32")))
    assert result.correlation.shape == (2, 2)
    names = [name for stage in result.layers for name in stage]
    assert sorted(names) == ["first", "logits", "norm", "second", "third"]
    assert result.layers[0] == ("logits",)
    assert np.isnan(result.bits).all()
    upwards = randomization_check(model, Gradients, x, 1, layer_order="bottom_up", layers=["first", "second"])
    assert upwards.layers == (("first",), ("second",))


def test_randomization_reports_bits(backend):
    model = backend.small("float32")
    x = backend.images(smooth_images(12)).astype("float32")

    def make(model):
        return Explainer(model, SMALL_LAYER, steps=3, samples=3).fit(x, progbar=False)

    result = randomization_check(model, make, x[:2], stages=1)
    assert (result.bits > 0).all()
    assert "Spearman" in str(result)
    assert len(result.to_dict()["bits"][0]) == 2
    # A method that does not look at the model stays as it is.
    blind = randomization_check(model, RandomMaps, x[:2], stages=1)
    np.testing.assert_allclose(blind.correlation, 1.0)


def test_randomization_wants_names_of_layers(model, x):
    with pytest.raises(InputError, match=r"layers holds 'frist'.*'first'"):
        randomization_check(model, Gradients, x, layers=["frist"])


# -- the table -----------------------------------------------------------------------------------------------


def methods_of(backend, explainer):
    model = explainer.adapter.model
    return {
        "bits": explainer,
        "Grad-CAM": GradCAM(model, [SMALL_LAYER]),
        "gradients": Gradients(model),
        "brightness": lambda x, target: x.mean(axis=1 if backend.data_format == "channels_first" else -1),
        "random": RandomMaps(model),
    }


def test_a_table_of_methods_and_metrics(backend, x):
    explainer = fitted(backend, steps=3, samples=3)
    methods = methods_of(backend, explainer)
    masks = np.median(MAPS) < MAPS
    metrics = [
        *("insertion", "infidelity", "mass_in_box", "pointing_game", "sparseness", "bits"),
        Metric.of("degradation", tile=3, steps=4),
        Metric.of("sensitivity_n", n=4, samples=6, tile=3),
        Metric.of("sensitivity_n_pooled", n=4, samples=6, tile=3),
        Metric.of("insertion", label="coarse", tile=6),
    ]
    metrics[1] = Metric.of("infidelity", n=4, samples=6, tile=3)
    whole = evaluate(methods, [(x, CHOSEN, masks)], metrics, progbar=False)
    parts = [(x[i : i + 1], CHOSEN[i : i + 1], masks[i : i + 1]) for i in range(3)]
    streamed = evaluate(methods, iter(parts), metrics, progbar=False)
    for method in methods:
        for metric in whole.metrics:
            a, b = (table.estimate(method, metric.name) for table in (whole, streamed))
            assert a.value == pytest.approx(b.value, abs=1e-5, nan_ok=True), (method, metric.name)
    assert whole.estimate("gradients", "bits").n == 0
    assert whole.estimate("bits", "bits").value == pytest.approx(
        explainer.explain(x, CHOSEN, seed=0).total_bits.mean(), rel=1e-5
    )
    maps = methods["Grad-CAM"](x, CHOSEN)
    own = insertion(explainer, x, maps, CHOSEN)
    np.testing.assert_allclose(whole.values["Grad-CAM"]["insertion"], own, atol=1e-6)
    assert len(whole) == 3
    assert all(seconds.min() > 0 for seconds in whole.seconds.values())


def test_classes_are_predicted_where_none_is_given(backend, model, x):
    scored = ScoredModel(model)
    predicted = scored.predicted(scored.tensor(x))
    asked = []

    def method(images, classes):
        asked.append(classes)
        return MAPS[: len(images)]

    evaluate({"it": method}, [x], ["sparseness"], model=scored, progbar=False)
    evaluate({"it": method}, [x], ["sparseness"], model=scored, target=2, progbar=False)
    np.testing.assert_array_equal(asked, [predicted, [2, 2, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": {}}, "methods={} must be a dict"),
        ({"methods": {"it": 3}}, "methods\\['it'\\] is of type int"),
        ({"metrics": ["insertoin"]}, "'insertion'"),
        ({"metrics": ["insertion", "insertion"]}, "same name"),
        ({"metrics": ["mass_in_box"]}, "needs masks"),
        ({"batches": []}, "batches is empty"),
        ({"model": None}, "model is not given"),
        ({"methods": {"it": lambda x, target: np.ones(3)}}, "the method gives shape"),
    ],
)
def test_wrong_tables_are_refused(model, x, arguments, message):
    given = {
        "methods": {"it": lambda x, target: MAPS},
        "batches": [x],
        "metrics": ["sparseness"],
        "model": model,
    }
    given |= arguments
    with pytest.raises(InputError, match=message):
        evaluate(given.pop("methods"), given.pop("batches"), given.pop("metrics"), progbar=False, **given)


def test_evaluation_leaves_the_model_as_it_was(backend):
    model = backend.small("float32")
    x = backend.images(smooth_images(2)).astype("float32")
    before = backend.state(model, smooth_images(2).astype("float32"))
    methods = {"gradients": Gradients(model), "occlusion": Occlusion(model, tile=6)}
    evaluate(methods, [x], ["insertion", "max_sensitivity"], progbar=False)
    assert_same_state(before, backend.state(model, smooth_images(2).astype("float32")))
