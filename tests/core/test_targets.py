"""Targets: what may be given, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from iba_core import ClassTarget, InputError, ScoreTarget
from iba_core.targets import are_probabilities, as_target, class_probabilities, main_output

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
def test_wrong_targets_are_named(target, message):
    with pytest.raises(InputError, match=message):
        as_target(target).resolve(LOGITS)
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
