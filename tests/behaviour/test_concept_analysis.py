"""Learning concepts in a small network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import iba_torch.concepts
from iba_core import Explainer
from iba_core.concepts import (
    ConceptAnalysis,
    Hyperplane,
    ModelStump,
    Net2VecLoss,
    SegmentationConcept2D,
    TrainingSettings,
    approximate_posterior,
    locate,
    train_detection_model,
)
from iba_core.concepts.analysis import constant_mask_iou, heatmap_iou
from iba_core.concepts.data import SegmentationData
from iba_core.concepts.locating import mean_probability, member_distances, plot_heatmap, save_heatmap
from iba_core.concepts.training import Examples, HyperplaneTrainer, standard_coordinates
from iba_core.default_layer import layers_over_depth
from iba_core.errors import InputError, LayerError, OptimizationError
from iba_core.framework.adapter import LayerInfo, find_adapter
from tests.backends import Torch
from tests.squares import QUICK, images_of, make_concept, make_model, squares

TORCH = Torch()


# -- one layer or several -----------------------------------------------------------------------------


def test_the_concept_is_found_and_the_baselines_are_not(backend):
    result = ConceptAnalysis(make_concept(backend), make_model(backend), ["0", "2"], **QUICK).run()
    for layer in result.layers:
        assert layer.iou > 0.5
        assert layer.iou > result.constant_iou + 0.2
        assert layer.iou > layer.random_iou + 0.2
    assert result.best.mean_validation_iou == max(layer.mean_validation_iou for layer in result.layers)
    assert result.held_out == "test"
    assert result["2"].map_shape == (8, 8)
    assert result["2"].channels == 6
    with pytest.raises(KeyError):
        result["3"]
    assert result.embeddings["0"].layer_id == "0"
    assert result.embeddings["0"].concept_name == "square"


def test_without_layers_those_of_the_whole_depth_are_compared(backend):
    result = ConceptAnalysis(make_concept(backend), make_model(backend), **QUICK).run()
    assert [layer.layer for layer in result.layers] == ["2", "3"]
    assert result.best.iou > result.constant_iou + 0.2


def test_layers_over_the_depth_are_equally_far_from_each_other(backend):
    adapter = find_adapter(make_model(backend))
    layers = [f"conv{number}" for number in range(12)]
    shape = (8, 8, 4) if adapter.data_format == "channels_last" else (4, 8, 8)
    infos = [LayerInfo(name, "Conv", shape) for name in layers]
    x = backend.images(np.zeros((1, 16, 16, 3), np.float32))
    adapter.layers = lambda inputs: [*infos, LayerInfo("logits", "Dense", (5,))]
    assert layers_over_depth(adapter, x, 4) == ["conv0", "conv4", "conv7", "conv11"]
    assert layers_over_depth(adapter, x, 20) == layers
    adapter.layers = lambda inputs: [LayerInfo("logits", "Dense", (5,))]
    with pytest.raises(LayerError, match="no layer has maps with two spatial axes"):
        layers_over_depth(adapter, x)


def test_a_concept_that_no_layer_knows_is_said_to_be_unknown(backend):
    images, masks = images_of(backend, squares(12, 0)[0]), np.ones((12, 16, 16), np.float32)
    masks[:, :2] = 0  # the same mask for every image
    parts = (slice(0, 8), slice(8, 12))
    concept = SegmentationConcept2D("frame", *((images[part], masks[part]) for part in parts))
    with pytest.warns(UserWarning, match="no layer knows 'frame': IoU .* at best, 1.000 of the same mask"):
        ConceptAnalysis(concept, make_model(backend), ["2"], **QUICK).run()


class Counted:
    """Images that count how often each is read."""

    def __init__(self, images):
        self.images, self.asked = images, Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked[int(index)] += 1
        return self.images[index]


def test_all_layers_are_read_in_one_pass_and_give_what_each_gives_alone(backend, monkeypatch):
    model, train, val = make_model(backend), squares(12, 0), squares(8, 1)
    images = [Counted(images_of(backend, pictures)) for pictures, _ in (train, val)]
    concept = SegmentationConcept2D("square", (images[0], train[1]), (images[1], val[1]))

    passes, adapter = Counter(), type(find_adapter(model))
    common = adapter.features_of

    def learn(factor):
        def features_of(self, inputs, layers):
            passes[len(inputs)] += 1
            return [factor * features for features in common(self, inputs, layers)]

        monkeypatch.setattr(adapter, "features_of", features_of)
        return ConceptAnalysis(concept, model, ["0", "2"], epochs=3, progbar=False).run()

    together = learn(1)
    assert set(images[0].asked.values()) == set(images[1].asked.values()) == {1}
    # The first image of each part says that one pass suffices.
    assert passes == {1: 2, 12: 1, 8: 1}
    # Where one pass gives something else, each layer is split off by itself.
    apart = learn(2)
    assert passes == {1: 4, 12: 1, 8: 1}
    for layer, other in zip(together.layers, apart.layers, strict=True):
        np.testing.assert_allclose(layer.embedding.normal_vec, other.embedding.normal_vec, atol=1e-3)


def test_the_bits_of_a_concept_lie_where_it_is(backend):
    concept, model = make_concept(backend), make_model(backend)
    plane = ConceptAnalysis(concept, model, ["2"], **QUICK).run().best.embedding
    images, masks = squares(4, 9)
    for layer in ("0", "2"):  # before that of the concept, and its own
        explainer = Explainer(model, layer, samples=2, steps=8, beta=1, learning_rate=1.0)
        explainer.fit(list(concept.train_data.batches(20)), progbar=False)
        saliency = explainer.explain(images_of(backend, images), target=plane, seed=0).saliency
        assert (saliency * masks).sum() / saliency.sum() > 2.5 * masks.mean()


def with_negatives(backend, count, seed, colour):
    """Squares to find, and as many pictures with a square of another colour, which is not the concept."""
    images, masks = squares(count, seed)
    others, places = squares(count, seed + 100)
    others += (np.array(colour)[:, None, None] - np.array([1.5, -0.5, 0.0])[:, None, None]) * places[:, None]
    return images_of(backend, np.concatenate([images, others])), np.concatenate([masks, 0 * places])


def test_pictures_without_the_concept_teach_it_and_judge_it(backend):
    model, bluish = make_model(backend), (1.0, -0.5, 1.0)
    test = with_negatives(backend, 12, 2, bluish)

    def learn(train, folds=1):
        held_out = None if folds > 1 else test
        concept = SegmentationConcept2D("square", train, test if folds == 1 else None, held_out)
        return ConceptAnalysis(concept, model, ["2"], folds=folds, **QUICK).run()

    negatives = with_negatives(backend, 30, 0, bluish)
    taught, untaught = learn(negatives), learn(tuple(part[:30] for part in negatives))
    assert taught.negatives == untaught.negatives == 12
    assert taught.best.false_area < 0.2 * untaught.best.false_area
    assert taught.best.false_alarms < 0.6
    assert untaught.best.false_alarms > 0.9
    # The figures are those of the heatmaps themselves.
    heatmaps = locate(model, taught.best.embedding, test[0])[12:] > 0.5
    assert taught.best.false_alarms == pytest.approx(heatmaps.any(axis=(1, 2)).mean())
    assert taught.best.false_area == pytest.approx(heatmaps.mean())
    assert taught.header()[-1] == "False alarms"
    assert taught.rows()[0][-1] == f"{taught.best.false_alarms:.0%}, {taught.best.false_area:.1%}"
    assert {len(row) for row in taught.rows()} == {6}
    folded = learn(negatives, folds=2)
    assert folded.negatives == 30
    assert 0 <= folded.best.false_area < untaught.best.false_area


def test_without_such_pictures_nothing_is_said_of_false_alarms(backend):
    result = ConceptAnalysis(make_concept(backend), make_model(backend), ["2"], **QUICK).run()
    assert (result.negatives, result.best.false_alarms, result.best.false_area) == (0, None, None)
    assert {len(row) for row in (*result.rows(), result.header())} == {5}


def test_one_seed_gives_one_result(backend):
    concept, model = make_concept(backend), make_model(backend)

    def learn(seed):
        return ConceptAnalysis(concept, model, ["2"], seed=seed, epochs=3, progbar=False).run().best.embedding

    np.testing.assert_array_equal(learn(1).normal_vec, learn(1).normal_vec)
    assert not np.array_equal(learn(1).normal_vec, learn(2).normal_vec)


def test_a_file_serves_as_well_as_memory_and_is_removed(backend, tmp_path):
    concept, model = make_concept(backend), make_model(backend)
    kept = [
        ConceptAnalysis(concept, model, ["2"], cache=cache, epochs=3, progbar=False).run().best
        for cache in (None, tmp_path)
    ]
    np.testing.assert_array_equal(kept[0].embedding.normal_vec, kept[1].embedding.normal_vec)
    assert kept[0].iou == kept[1].iou
    assert not list(tmp_path.iterdir())


def test_maps_kept_in_a_file_are_on_disk(backend, tmp_path):
    stump, data = ModelStump(make_model(backend), "2"), make_concept(backend).val_data
    file = tmp_path / "maps.npy"
    in_file = Examples.compute(stump, data, file=file, batch_size=5, progbar=False)
    in_memory = Examples.compute(stump, data, progbar=False)
    assert isinstance(in_file.maps, np.memmap)
    np.testing.assert_allclose(np.load(file), in_memory.maps, atol=1e-6)
    expected = squares(16, 1)[1].reshape(16, 8, 2, 8, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(in_file.targets, expected, atol=1e-6)


def test_every_image_is_validated_on_once(backend, monkeypatch):
    seen = []
    fit = HyperplaneTrainer.fit

    def spy(self, member, rows, validation, **others):
        seen.append((member, set(rows.tolist()), set(validation[1].tolist())))
        return fit(self, member, rows=rows, validation=validation, **others)

    monkeypatch.setattr(HyperplaneTrainer, "fit", spy)
    concept = make_concept(backend, (10, 0, 8))
    result = ConceptAnalysis(
        concept, make_model(backend), ["2"], folds=3, ensemble_count=2, epochs=2, progbar=False
    ).run()
    assert [member for member, _, _ in seen] == list(range(6))
    assert all(rows | held == set(range(10)) and not rows & held for _, rows, held in seen)
    assert sorted(i for _, _, held in seen[::2] for i in held) == list(range(10))
    best = result.best
    assert len(best.embeddings) == len(best.validation_iou) == 6
    mean = np.mean([plane.scale().normal_vec for plane in best.embeddings], axis=0)
    np.testing.assert_allclose(best.embedding.normal_vec, mean)
    assert "±" in result.table()
    maps = ModelStump(make_model(backend), "2").maps(concept.test_data.images)
    alone = heatmap_iou(maps, concept.test_data, [best.embedding])
    assert best.embedding_iou == pytest.approx(alone)
    assert best.iou == pytest.approx(heatmap_iou(maps, concept.test_data, best.embeddings))


def test_what_nothing_was_held_out_for_is_judged_by_the_folds(backend):
    concept = make_concept(backend, (12, 0, 0))
    result = ConceptAnalysis(concept, make_model(backend), ["2"], folds=2, epochs=3, progbar=False).run()
    assert result.held_out == "training"
    assert result.best.iou == pytest.approx(np.mean(result.best.validation_iou))
    assert result.best.embedding_iou is None
    validated = ConceptAnalysis(
        make_concept(backend, (12, 8, 0)), make_model(backend), ["2"], epochs=3, progbar=False
    )
    assert validated.run().held_out == "validation"


def test_the_window_may_follow_from_the_relative_size(backend):
    concept = make_concept(backend, rel_size=(0.375, 0.25))
    result = ConceptAnalysis(
        concept, make_model(backend), ["2"], kernel_size=None, use_bias=False, epochs=2, progbar=False
    ).run()
    (embedding,) = result.best.embeddings
    assert embedding.kernel_size == (3, 2)
    assert embedding.bias == 0


def test_the_model_is_left_as_it_was(backend):
    model = make_model(backend)
    x = images_of(backend, squares(2, 5)[0])
    if backend.name == "torch":
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
    else:
        before = [value.copy() for value in model.get_weights()]
    ConceptAnalysis(make_concept(backend), model, ["2"], epochs=2, progbar=False).run()
    if backend.name == "torch":
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())
    else:
        for value, old in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(value, old)
        assert model(x).shape == (2, 1, 1, 6)


def test_the_result_is_a_table_and_a_plot(backend):
    matplotlib = pytest.importorskip("matplotlib.figure")
    result = ConceptAnalysis(
        make_concept(backend), make_model(backend), ["0", "2"], epochs=3, progbar=False
    ).run()
    lines = result.table().splitlines()
    assert lines[0].split() == ["Layer", "Features", "IoU,", "validation", "IoU,", "test", "Random"]
    assert lines[2].startswith("0")
    assert "6 x 16 x 16" in lines[2]
    assert sum(" *" in line for line in lines) == 1
    assert f"{result.constant_iou:.3f}" in lines[-1]
    ax = result.plot(matplotlib.Figure().subplots())
    heights = [bar.get_height() for bar in ax.patches]
    expected = [r.iou for r in result.layers] + [r.random_iou for r in result.layers]
    assert heights == pytest.approx(expected)


# -- wrong arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "layers is empty"),
        ({"layers": "2"}, "must be a list"),
        ({"folds": 0}, "folds=0"),
        ({"folds": 41}, "folds=41 must be from 1 to the 40"),
        ({"ensemble_count": 0}, "ensemble_count=0"),
        ({"kernel_size": None}, "rel_size"),
        ({"kernel_size": (0, 1)}, "kernel_size"),
        ({"cache": "no/such/folder"}, "is not a folder"),
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed=-1"),
        ({"use_laplace": True, "weight_decay": 0.0}, "weight_decay above 0"),
        ({"use_laplace": True, "loss": Net2VecLoss()}, "needs a BalancedBCELoss"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ConceptAnalysis(make_concept(TORCH), make_model(TORCH), **{"layers": ["2"], **arguments})


def test_nothing_to_validate_with_and_wrong_layers_are_named():
    with pytest.raises(InputError, match="no validation data"):
        ConceptAnalysis(make_concept(TORCH, (4, 0, 4)), make_model(TORCH), ["2"])
    with pytest.raises(LayerError, match="no layer 'nowhere'"):
        ConceptAnalysis(make_concept(TORCH), make_model(TORCH), ["nowhere"])
    bad = squares(4, 0)
    bad[0][2, 0, 3, 3] = np.nan
    concept = SegmentationConcept2D("square", bad, squares(2, 1))
    with pytest.raises(InputError, match="NaN or infinite"):
        ConceptAnalysis(concept, make_model(TORCH), ["2"], progbar=False).run()
    images, masks = squares(4, 0)
    concept = SegmentationConcept2D("square", (images, 0 * masks), squares(2, 1))
    with pytest.raises(InputError, match="no training mask marks the concept"):
        ConceptAnalysis(concept, make_model(TORCH), ["2"], kernel_size=(1, 1), progbar=False).run()


# -- training ---------------------------------------------------------------------------------------


def examples(backend=TORCH, layer="2"):
    stump = ModelStump(make_model(backend), layer)
    parts = make_concept(backend)
    return [
        Examples.compute(stump, data, progbar=False) for data in (parts.train_data, parts.val_data)
    ], stump


def test_standard_coordinates_undo_mean_and_scale():
    (train, _), _ = examples()
    basis = standard_coordinates(train.maps, (1, 1), True)
    phi = np.concatenate([train.maps.reshape(-1, 6), np.ones((train.maps[..., 0].size, 1))], axis=1)
    standard = phi.astype(np.float64) @ basis
    np.testing.assert_allclose(standard[:, :-1].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standard[:, :-1].std(axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(standard[:, -1], 1)
    raw = phi[:, :-1] @ standard_coordinates(train.maps, (1, 1), False)
    np.testing.assert_allclose(np.sqrt((raw**2).mean(axis=0)), 1, rtol=1e-3)


def test_a_dead_channel_has_finite_coordinates():
    maps = np.random.default_rng(0).normal(size=(4, 3, 3, 2))
    maps[..., 1] = 0
    assert np.isfinite(standard_coordinates(maps, (2, 2), True)).all()
    assert np.isfinite(standard_coordinates(np.zeros_like(maps), (1, 1), False)).all()


def test_training_ends_at_the_optimum_that_scipy_finds(backend):
    """Full batches, many steps: the regularised logistic regression in standard coordinates."""
    from scipy.optimize import minimize
    from scipy.special import log_expit

    (train, _), stump = examples(backend)
    settings = TrainingSettings(epochs=800, batch_size=40, learning_rate=0.05, weight_decay=1e-2)
    trainer = HyperplaneTrainer(stump.adapter.framework, train, (1, 1), True, settings)
    learnt = trainer.fit(progbar=False)
    phi = (
        np.concatenate([train.maps.reshape(-1, 6), np.ones((train.targets.size, 1))], axis=1) @ trainer.basis
    )
    t = train.targets.ravel()

    def objective(x):
        f = phi @ x
        return -0.5 * np.mean(t * log_expit(f) + (1 - t) * log_expit(-f)) + 0.005 * x @ x

    expected = minimize(objective, np.zeros(7), tol=1e-12)
    assert learnt.losses[-1] == pytest.approx(expected.fun, rel=1e-4)
    np.testing.assert_allclose(np.linalg.solve(trainer.basis, learnt.parameters), expected.x, atol=2e-3)


def test_training_stops_where_validation_does_not_improve():
    (train, validation), stump = examples()
    # Validation data that contradicts: each step makes it worse.
    contrary = replace(validation, targets=1 - validation.targets)
    settings = TrainingSettings(epochs=50, patience=3)
    trainer = HyperplaneTrainer(stump.adapter.framework, train, (1, 1), True, settings)
    start = trainer.basis @ np.full(7, 0.01)
    stopped = trainer.fit(start=start, validation=(contrary, None), progbar=False)
    assert stopped.epochs + 3 == len(stopped.validation_losses) < 50
    assert min(stopped.validation_losses) == stopped.validation_losses[stopped.epochs - 1]
    assert len(trainer.fit(start=start, progbar=False).losses) == 50


@pytest.mark.parametrize("loss", ["probabilities", "logits"])
def test_losses_of_the_framework_teach_too(backend, loss):
    """Net2Vec takes probabilities, Dice here logits."""
    losses = {
        "probabilities": lambda c: c.Net2VecLoss(factor_pos_class=0.7, target_thresh=0.5),
        "logits": lambda c: c.TverskyLoss(0.5, target_thresh=0.5, from_logit=True),
    }
    (train, validation), stump = examples(backend)
    settings = TrainingSettings(epochs=40, learning_rate=0.1, loss=losses[loss](backend.module("concepts")))
    learnt = HyperplaneTrainer(stump.adapter.framework, train, (1, 1), True, settings).fit(progbar=False)
    plane = backend.module("concepts").ConceptDetectionModel2D(in_channels=6, kernel_size=(1, 1))
    plane.load_hyperplanes(learnt.parameters[:6].reshape(1, 6, 1, 1), learnt.parameters[6:])
    data = make_concept(backend).val_data
    assert heatmap_iou(validation.maps, data, plane.to_embedding()) > 0.5


def test_a_loss_that_is_not_finite_stops_training():
    (train, _), stump = examples()
    trainer = HyperplaneTrainer(
        stump.adapter.framework, train, (1, 1), True, TrainingSettings(loss=lambda p, t: (p * np.inf).sum())
    )
    with pytest.raises(OptimizationError, match="in epoch 1; lower learning_rate"):
        trainer.fit(progbar=False)


@pytest.mark.parametrize(
    "arguments", [{}, {"apply_padding": False, "kernel_size": (3, 2)}, {"use_bias": False}]
)
def test_a_detection_model_is_trained_in_place(backend, arguments):
    concept = make_concept(backend)
    model = backend.module("concepts").ConceptDetectionModel2D(
        concept,
        make_model(backend),
        "2",
        ensemble_count=2,
        use_laplace=True,
        in_channels=6,
        **{"kernel_size": (1, 1), **arguments},
    )
    before = model.hyperplanes()[0]
    learnt = train_detection_model(model, epochs=30, learning_rate=0.1, progbar=False)
    assert all(isinstance(plane, Hyperplane) and plane.losses[-1] < plane.losses[0] for plane in learnt)
    assert not np.allclose(model.hyperplanes()[0], before)
    size = model.hyperplanes()[0][0].size
    np.testing.assert_allclose(learnt[1].parameters[:size], model.hyperplanes()[0][1].ravel(), rtol=1e-5)
    assert model.laplace_factors().any(axis=(1, 2)).all()
    maps = model.main_model_stump(concept.test_data.images)
    with torch.no_grad():
        heatmaps = np.asarray(model.eval()(maps) if backend.name == "torch" else model(maps))
    assert np.isfinite(heatmaps).all()
    if "apply_padding" not in arguments:
        ours = ModelStump(make_model(backend), "2").maps(concept.test_data.images)
        expected = mean_probability(ours, model.to_embedding(), model.laplace_factors())
        np.testing.assert_allclose(heatmaps.mean(axis=0).reshape(expected.shape), expected, atol=1e-4)
        assert heatmap_iou(ours, concept.test_data, model.to_embedding()) > 0.5


def test_the_posterior_of_learnt_weights_is_that_of_their_training(backend):
    concept = make_concept(backend)
    kind = backend.module("concepts").ConceptDetectionModel2D
    model = kind(concept, make_model(backend), "2", kernel_size=(1, 1), in_channels=6, use_laplace=True)
    train_detection_model(model, epochs=3, progbar=False)
    again = kind.from_embedding(
        model.to_embedding(), legacy_warnings=False, concept=concept, model=make_model(backend)
    )
    assert not again.laplace_factors().any()
    approximate_posterior(again, progbar=False)
    np.testing.assert_allclose(again.laplace_factors(), model.laplace_factors(), rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="use_laplace=False"):
        approximate_posterior(kind(concept, make_model(backend), "2", kernel_size=(1, 1), in_channels=6))


def test_members_start_where_the_model_stands():
    model = iba_torch.concepts.ConceptDetectionModel2D(
        make_concept(TORCH), make_model(TORCH), "2", kernel_size=(1, 1), in_channels=6
    )
    start = model.to_embedding()[0]
    train_detection_model(model, epochs=1, learning_rate=1e-7, progbar=False)
    assert model.to_embedding()[0].cosine(start) > 0.999999


def test_training_needs_a_concept_and_a_model(backend):
    model = backend.module("concepts").ConceptDetectionModel2D(in_channels=6, kernel_size=(1, 1))
    with pytest.raises(InputError, match="concept is missing"):
        train_detection_model(model)
    with pytest.raises(InputError, match="model and layer_id is missing"):
        train_detection_model(model, make_concept(backend))
    wrong = backend.module("concepts").ConceptDetectionModel2D(
        None, make_model(backend), "2", kernel_size=(1, 1), in_channels=5
    )
    with pytest.raises(InputError, match="has 6 channels"):
        train_detection_model(wrong, make_concept(backend), progbar=False)


# -- locating ---------------------------------------------------------------------------------------


def test_heatmaps_have_the_size_of_the_image(backend):
    concept, model = make_concept(backend), make_model(backend)
    result = ConceptAnalysis(concept, model, ["2"], **QUICK).run()
    heatmaps = locate(model, result.best.embedding, concept.test_data.images)
    assert heatmaps.shape == (16, 16, 16)
    inside, outside = (heatmaps[concept.test_data.masks == value].mean() for value in (1, 0))
    assert inside > outside + 0.4
    both = locate(model, [result.best.embedding] * 2, concept.test_data.images[:2])
    np.testing.assert_allclose(both, heatmaps[:2], atol=1e-6)


def test_locating_needs_a_layer_that_fits():
    planes = iba_torch.concepts.ConceptDetectionModel2D(in_channels=5, kernel_size=(1, 1)).to_embedding()
    images = squares(2, 0)[0]
    with pytest.raises(InputError, match="layer is missing"):
        locate(make_model(TORCH), planes, images)
    with pytest.raises(InputError, match="has 6 channels, but the concept 5"):
        locate(make_model(TORCH), planes, images, layer="2")
    with pytest.raises(InputError, match="embeddings is empty"):
        locate(make_model(TORCH), [], images)


def test_distances_are_those_of_the_embedding():
    plane = iba_torch.concepts.ConceptDetectionModel2D(in_channels=5, kernel_size=(1, 1)).to_embedding()[0]
    maps = np.random.default_rng(0).normal(size=(40, 3, 4, 5))
    np.testing.assert_allclose(member_distances(maps, [plane])[0], plane.distance(maps[..., None, None]))


def test_a_heatmap_is_drawn_and_saved(tmp_path):
    matplotlib = pytest.importorskip("matplotlib.figure")
    picture = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    heatmap = np.linspace(0, 1, 240).reshape(12, 20)
    save_heatmap(tmp_path / "a.png", picture, heatmap, "square")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    ax = plot_heatmap(picture, heatmap, "square", matplotlib.Figure().subplots())
    np.testing.assert_array_equal(ax.images[1].get_array(), heatmap)
    with pytest.raises(InputError, match="heatmap has shape"):
        plot_heatmap(picture, heatmap[:5], ax=ax)


# -- baselines --------------------------------------------------------------------------------------


def test_the_constant_mask_knows_only_where_things_usually_are():
    masks = np.zeros((8, 64, 64), np.float32)
    masks[:, 10:30, 20:40] = 1
    images = np.zeros((8, 1, 1, 1))
    data = SegmentationData(images, masks)
    assert constant_mask_iou(data, data) == pytest.approx(1.0)
    elsewhere = SegmentationData(images, np.roll(masks, 30, axis=1))
    assert constant_mask_iou(data, elsewhere) < 0.01
