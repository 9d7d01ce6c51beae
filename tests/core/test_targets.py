"""Targets: the kinds that are allowed, and the errors of the others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit

from iba_core import (
    ClassTarget,
    DistributionTarget,
    InputError,
    LogitTarget,
    RegressionTarget,
    ScoreTarget,
    SegmentationTarget,
    SumTarget,
)
from iba_core.targets import (
    OfOutput,
    are_probabilities,
    as_target,
    class_probabilities,
    first_output,
    kind_of_outputs,
    main_index,
    main_output,
)

LOGITS = np.array([[0.0, 3.0, 1.0], [4.0, 0.0, 2.0]])


def losses(target, outputs=LOGITS):
    loss, rows = as_target(target).resolve(outputs)
    return loss(outputs, *rows)


def expected(classes):
    return -np.log(class_probabilities(LOGITS))[np.arange(2), classes]


@pytest.mark.parametrize(
    ("target", "classes"),
    [(None, [1, 0]), (2, [2, 2]), (np.int64(1), [1, 1]), ([0, 2], [0, 2]), (np.array([2, 1]), [2, 1])],
)
def test_classes_are_explained_through_their_cross_entropy(target, classes):
    np.testing.assert_allclose(losses(target), expected(classes))
    np.testing.assert_allclose(losses(target, class_probabilities(LOGITS)), expected(classes))


def test_a_callable_is_a_score_to_keep_high():
    np.testing.assert_array_equal(losses(lambda outputs: outputs[:, 1]), [-3.0, 0.0])
    target = ScoreTarget(len)
    assert as_target(target) is target


def test_equal_losses_share_a_compiled_step():
    first, second = as_target(0).resolve(LOGITS)[0], as_target([1, 2]).resolve(LOGITS)[0]
    assert first is second
    assert as_target(len).resolve(LOGITS)[0] == as_target(len).resolve(LOGITS)[0]


def test_a_distribution_is_kept_whole():
    p = class_probabilities(LOGITS)
    for outputs in (LOGITS, p):
        loss, rows = as_target(DistributionTarget()).resolve(outputs)
        np.testing.assert_allclose(loss(outputs, *rows), -(p * np.log(p)).sum(axis=1))
        # Any other prediction costs more, by its divergence from the first one.
        other = np.array([[1.0, 3.0, 1.0], [4.0, 1.0, 1.0]])
        q = class_probabilities(other)
        np.testing.assert_allclose(
            loss(other if outputs is LOGITS else q, *rows), -(p * np.log(q)).sum(axis=1), rtol=1e-6
        )
    with pytest.raises(InputError, match=r"output has shape \(2, 1\), not \(images, classes\)"):
        as_target(DistributionTarget()).resolve(LOGITS[:, :1])


def test_logits_of_sigmoids_are_taken_for_what_the_user_says_they_are():
    single, several = np.array([[0.5], [-800.0]]), np.array([[0.5, -2.0, 800.0]])
    one = ClassTarget([1, 0], "sigmoid_logits")
    right = [-np.log(expit(0.5)), 0.0]
    np.testing.assert_allclose(losses(one, single), right, rtol=1e-12)
    np.testing.assert_allclose(
        losses(ClassTarget(1, "sigmoid_logits"), single), [right[0], 800.0], rtol=1e-12
    )
    np.testing.assert_allclose(losses(ClassTarget(1, "sigmoid_logits"), several), [-np.log(expit(-2.0))])
    np.testing.assert_array_equal(
        ClassTarget(None, "sigmoid_logits").resolve_classes(single), [1, 0], "the likelier class"
    )
    np.testing.assert_allclose(class_probabilities(single, "sigmoid_logits")[0], [1 - expit(0.5), expit(0.5)])
    p = expit(np.array([0.5, -2.0]))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    np.testing.assert_allclose(losses(DistributionTarget("sigmoid_logits"), several), [entropy])
    np.testing.assert_allclose(losses(DistributionTarget("sigmoid"), expit(several[:, :2])), [entropy])


def test_a_batch_is_explained_in_parts():
    target = ClassTarget([4, 5, 6])
    np.testing.assert_array_equal(target.select(1, 3, 3).classes, [5, 6])
    assert ClassTarget(4).select(1, 3, 3).classes == 4
    with pytest.raises(InputError, match=r"shape \(3,\) for 4 images"):
        target.select(0, 2, 4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "target=3 is outside the model's 3 classes, 0 to 2"),
        ([0, -1], "target=-1 is outside"),
        (1.0, "whole number"),
        ("cat", "whole number"),
    ],
)
def test_wrong_targets_are_errors(target, message):
    with pytest.raises(InputError, match=message):
        as_target(target).resolve(LOGITS)
    with pytest.raises(InputError, match=r"one output, .*ClassTarget\(1, activation='sigmoid_logits'\)"):
        as_target(0).resolve(LOGITS[:, :1])
    np.testing.assert_array_equal(losses(LogitTarget(0), LOGITS[:, :1]), [0.0, -4.0])
    with pytest.raises(InputError, match=r"output has shape \(2, 3, 4\)"):
        as_target(0).resolve(np.zeros((2, 3, 4)))


def test_probabilities_are_told_from_logits():
    assert are_probabilities(np.array([[0.2, 0.8], [0.0, 1.0]]))
    assert not are_probabilities(np.array([[1.2, -0.2]]))
    assert not are_probabilities(np.array([[0.2, 0.2]]))
    np.testing.assert_allclose(class_probabilities(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])


def test_the_main_output_is_found():
    for outputs in (
        LOGITS,
        (LOGITS, 0),
        [LOGITS],
        {"logits": LOGITS, "x": 0},
        SimpleNamespace(logits=LOGITS),
        ({"a": LOGITS},),
    ):
        assert main_output(outputs) is LOGITS


def test_a_logit_is_kept_high_whatever_the_others_do():
    np.testing.assert_array_equal(losses(LogitTarget(2)), [-1.0, -2.0])
    np.testing.assert_array_equal(losses(LogitTarget()), [-3.0, -4.0])
    assert isinstance(LogitTarget([0, 1]).select(0, 1, 2), LogitTarget)


def test_a_regression_output_is_kept():
    np.testing.assert_array_equal(losses(RegressionTarget()), [0.0, 0.0])
    np.testing.assert_allclose(losses(RegressionTarget([0.0, 0.0, 0.0])), [10 / 3, 20 / 3])
    values = np.zeros((2, 3))
    np.testing.assert_allclose(losses(RegressionTarget(values)), [10 / 3, 20 / 3])
    each = RegressionTarget([[0.0, 3.0, 1.0], [0.0, 0.0, 0.0]]).select(1, 2, 2)
    np.testing.assert_allclose(losses(each, LOGITS[1:]), [20 / 3])
    with pytest.raises(InputError, match=r"values have shape \(2,\)"):
        losses(RegressionTarget([0.0, 1.0]))


def test_a_region_of_a_segmentation_is_kept(framework):
    rng = np.random.default_rng(0)
    outputs, mask = rng.normal(size=(2, 4, 5, 6)), rng.random((5, 6)) > 0.5
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    expected = -np.log(p[:, 3])[:, mask].mean(axis=1)
    for target, x in (
        (SegmentationTarget(3, mask), outputs),
        (SegmentationTarget(3, mask, "channels_last"), outputs.transpose(0, 2, 3, 1)),
    ):
        loss, rows = target.resolve(x)
        found = loss(framework.asarray(x), *(framework.asarray(row) for row in rows))
        np.testing.assert_allclose(framework.to_numpy(found), expected)
    for wrong, message in (
        (SegmentationTarget(4, mask), "index=4 is outside the model's 4 classes"),
        (SegmentationTarget(0, mask.T), r"must have the shape \(5, 6\)"),
    ):
        with pytest.raises(InputError, match=message):
            wrong.resolve(outputs)
    with pytest.raises(InputError, match="0 pixels set"):
        SegmentationTarget(0, mask & False)
    with pytest.raises(InputError, match="a segmentation was expected"):
        SegmentationTarget(0, mask).resolve(LOGITS)


def test_losses_add_up():
    target = SumTarget((1, LogitTarget([0, 2]), RegressionTarget()), weights=(1.0, 0.5, 2.0))
    np.testing.assert_allclose(losses(target), expected([1, 1]) - 0.5 * np.array([0.0, 2.0]))
    first, second = (SumTarget((k, LogitTarget(k))).resolve(LOGITS)[0] for k in (0, 1))
    assert first == second
    assert hash(first) == hash(second)
    np.testing.assert_array_equal(target.select(1, 2, 2).targets[1].classes, [2])
    with pytest.raises(InputError, match=r"weights=.* must be a sequence of 2 finite numbers"):
        SumTarget((1, 2), weights=(1.0,))


class TestSigmoid:
    """Probabilities that do not sum to 1."""

    OUTPUTS = np.array([[0.2, 0.9, 0.6], [0.4, 0.3, 0.5]])

    def test_the_loss_is_that_of_the_class_alone(self):
        loss, rows = ClassTarget([0, 2], activation="sigmoid").resolve(self.OUTPUTS)
        np.testing.assert_allclose(loss(self.OUTPUTS, *rows), -np.log([0.2, 0.5]))

    def test_a_single_output_is_a_classifier_of_two_classes(self):
        outputs = np.array([[0.25], [0.75]])
        for classes, expected in (([1, 1], [0.25, 0.75]), ([0, 0], [0.75, 0.25]), (None, [0.75, 0.75])):
            loss, rows = ClassTarget(classes, activation="sigmoid").resolve(outputs)
            np.testing.assert_allclose(loss(outputs, *rows), -np.log(expected))
        np.testing.assert_allclose(class_probabilities(outputs, "sigmoid"), [[0.75, 0.25], [0.25, 0.75]])
        with pytest.raises(InputError, match="target=2 is outside the model's 2 classes"):
            ClassTarget(2, activation="sigmoid").resolve(outputs)

    def test_the_distribution_is_the_sum_over_the_classes(self):
        loss, rows = DistributionTarget("sigmoid").resolve(self.OUTPUTS)
        p = self.OUTPUTS
        entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(axis=1)
        np.testing.assert_allclose(loss(p, *rows), entropy)
        assert (loss(p * 0.9, *rows) > entropy).all()

    def test_it_is_known_from_the_model_alone(self):
        assert kind_of_outputs(self.OUTPUTS, "sigmoid") == "sigmoid"
        assert kind_of_outputs(self.OUTPUTS, "other") == "logits"
        assert kind_of_outputs(self.OUTPUTS) == "logits"
        assert kind_of_outputs(np.array([[0.5, 0.5]]), "sigmoid") == "sigmoid"
        assert kind_of_outputs(np.array([[0.5, 0.5]]), "unknown") == "softmax"
        assert kind_of_outputs(np.array([[0.5, 1.5]]), "unknown") == "logits"
        with pytest.raises(InputError, match="lie between 0 and 1 and do not sum to 1"):
            kind_of_outputs(self.OUTPUTS, "unknown")

    def test_what_the_user_says_counts(self):
        assert ClassTarget(1, activation="other").ending_in("sigmoid").activation == "other"
        assert ClassTarget(1).ending_in("sigmoid").activation == "sigmoid"
        assert LogitTarget(1).ending_in("sigmoid").activation is None
        both = SumTarget((ClassTarget(1), LogitTarget(0))).ending_in("sigmoid")
        assert [part.activation for part in both.targets] == ["sigmoid", None]
        with pytest.raises(InputError, match="activation='tanh' is unknown"):
            ClassTarget(1, activation="tanh")


def test_of_several_outputs_the_logits_or_the_only_table_is_meant():
    hidden, other = np.zeros((2, 4, 5)), np.ones((2, 7))
    assert main_output({"embedding": other, "logits": LOGITS}) is LOGITS
    assert main_output({"loss": None, "logits": LOGITS}) is LOGITS
    assert main_output({"loss": None, "x": hidden}) is hidden
    assert main_output({"hidden": hidden, "scores": LOGITS, "index": np.ones((2, 3), int)}) is LOGITS
    assert main_output((None, LOGITS)) is LOGITS
    with pytest.raises(InputError, match=r"the outputs \['embedding', 'scores'\]; say which one .* output="):
        main_output({"embedding": other, "scores": LOGITS})
    assert first_output({"embedding": other, "scores": LOGITS}) is other


def test_an_output_is_chosen_by_name_or_number():
    outputs = {"embedding": np.ones((2, 7)), "scores": (LOGITS, None)}
    for output in ("scores", 1):
        assert main_output(outputs, output) is LOGITS
        assert main_index(outputs, output) == 1
    assert main_output(SimpleNamespace(scores=LOGITS), "scores") is LOGITS
    assert main_output([np.ones(2), LOGITS], 1) is LOGITS
    for output in ("score", 2):
        with pytest.raises(
            InputError, match=r"output=.* is not among the model's outputs: \['embedding', 'scores'\]"
        ):
            main_output(outputs, output)
    loss, rows = ClassTarget(1).resolve(LOGITS)
    np.testing.assert_array_equal(OfOutput(loss, "scores")(outputs, *rows), loss(LOGITS, *rows))
    assert OfOutput(loss, "scores") == OfOutput(loss, "scores")


def test_a_model_without_arrays_is_refused():
    with pytest.raises(InputError, match="returns NoneType, in which no array is found"):
        main_output((None, None))
