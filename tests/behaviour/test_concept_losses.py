"""Losses and metrics of masks: one body for every framework, judged by sums over pixels and by hand."""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest

from iba_core.errors import InputError

PACKAGES = {"NumPy": "iba_core.concepts", "Torch": "iba_torch.concepts", "TensorFlow": "iba_tf.concepts"}


@pytest.fixture
def concepts(framework):
    """The framework's module of losses and metrics."""
    return import_module(PACKAGES[type(framework).__name__])


# -- the judges: plain sums over pixels -------------------------------------------------------------


def pixels(p, t):
    return zip(np.ravel(p).tolist(), np.ravel(t).tolist(), strict=True)


def masks_of(a):
    return a[None] if a.ndim < 3 else a.reshape(-1, *a.shape[-2:])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def per_mask(one):
    """Mean over the masks of a batch of a function of a mask's pixels."""
    return lambda p, t: np.mean(
        [one(list(pixels(a, b))) for a, b in zip(masks_of(p), masks_of(t), strict=True)]
    )


def net2vec(b, thresh=0.0):
    return per_mask(lambda mask: -sum(b * p if t > thresh else (1 - b) * (1 - p) for p, t in mask))


def tversky(b, smooth=0.0, logit=False):
    def one(mask):
        mask = [(sigmoid(p) if logit else p, t > 0) for p, t in mask]
        found = sum(p for p, t in mask if t) + smooth
        spurious = sum(p for p, t in mask if not t)
        missed = sum(1 - p for p, t in mask if t)
        whole = found + b * spurious + (1 - b) * missed
        return 1 - found / whole if whole else 0.0

    return per_mask(one)


def bce(b=None, logit=False):
    def loss(p, t):
        weight = 1 - t.mean() if b is None else b
        probabilities = [(sigmoid(x) if logit else x, y) for x, y in pixels(p, t)]
        return np.mean(
            [-weight * y * math.log(x) - (1 - weight) * (1 - y) * math.log(1 - x) for x, y in probabilities]
        )

    return loss


def focal(b, alpha, beta, logit=False):
    def loss(p, t):
        mask = [(sigmoid(x) if logit else x, y) for x, y in pixels(p, t)]
        total = -sum(
            b * (1 - x) ** alpha * math.log(x)
            if y == 1
            else (1 - b) * (1 - y) ** beta * x**alpha * math.log(1 - x)
            for x, y in mask
        )
        return total / max(1, sum(y == 1 for _, y in mask))

    return loss


# Name, arguments, judge, whether the outputs are logits.
LOSSES = {
    "net2vec": ("Net2VecLoss", {}, net2vec(0.5), False),
    "net2vec weighted": (
        "Net2VecLoss",
        {"factor_pos_class": 0.9, "target_thresh": 0.35},
        net2vec(0.9, 0.35),
        False,
    ),
    "tversky": ("TverskyLoss", {}, tversky(0.7), False),
    "dice of logits": (
        "TverskyLoss",
        {"factor_false_positives": 0.5, "from_logit": True},
        tversky(0.5, 0, True),
        True,
    ),
    "tversky smooth": ("TverskyLoss", {"smooth": 1.0}, tversky(0.7, 1.0), False),
    "bce automatic": ("BalancedBCELoss", {}, bce(), False),
    "bce fixed": ("BalancedBCELoss", {"factor_pos_class": 0.8}, bce(0.8), False),
    "bce of logits": ("BalancedBCELoss", {"from_logit": True}, bce(None, True), True),
    "focal": ("BalancedPenaltyReducedFocalLoss", {}, focal(0.5, 2, 4), False),
    "focal weighted": (
        "BalancedPenaltyReducedFocalLoss",
        {"factor_pos_class": 0.7, "alpha": 1.5, "beta": 0.5},
        focal(0.7, 1.5, 0.5),
        False,
    ),
    "focal without focus": (
        "BalancedPenaltyReducedFocalLoss",
        {"alpha": 0, "beta": 0},
        focal(0.5, 0, 0),
        False,
    ),
    "focal of logits": (
        "BalancedPenaltyReducedFocalLoss",
        {"from_logit": True},
        focal(0.5, 2, 4, True),
        True,
    ),
}
SHAPES = {"one row": (6,), "one image": (4, 5), "batch": (3, 4, 5)}


def make_masks(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    outputs = rng.uniform(0.05, 0.95, shape)
    targets = {
        "binary": (rng.random(shape) > 0.6).astype(float),
        "empty": np.zeros(shape),
        "full": np.ones(shape),
        "soft": np.round(rng.random(shape), 1),
    }[kind]
    return outputs, targets


@pytest.fixture(params=LOSSES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return LOSSES[request.param]


@pytest.fixture(params=["binary", "empty", "full", "soft"])
def kind(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values(framework, concepts, case, kind, shape):
    name, arguments, judge, logits = case
    outputs, targets = make_masks(kind, shape)
    if logits:
        outputs = np.log(outputs / (1 - outputs))
    loss = getattr(concepts, name)(**arguments)
    expected = judge(outputs, targets)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        value = loss.forward(framework.asarray(outputs, dtype), framework.asarray(targets, dtype))
        value = framework.to_numpy(value)
        assert value.shape == ()
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)


def test_gradients(framework, concepts, case, kind):
    name, arguments, judge, logits = case
    outputs, targets = make_masks(kind, (2, 3, 2))
    if logits:
        outputs = np.log(outputs / (1 - outputs))
    loss = getattr(concepts, name)(**arguments)
    step = 1e-6
    expected = np.empty_like(outputs)
    for index in np.ndindex(outputs.shape):
        shift = np.zeros_like(outputs)
        shift[index] = step
        expected[index] = (judge(outputs + shift, targets) - judge(outputs - shift, targets)) / (2 * step)
    for dtype in (np.float64, np.float32):
        # NumPy's gradients are difference quotients in float64, whatever the dtype asked for.
        t = framework.asarray(targets, dtype)
        actual = framework.gradient(lambda x, t=t: loss.forward(x, t), outputs.astype(dtype))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# -- worked by hand -----------------------------------------------------------------------------------

P = [[0.8, 0.4], [0.1, 0.6]]
T = [[1.0, 1.0], [0.0, 0.0]]

HAND = [
    # TP = 1.2, TN = 0.9 + 0.4.
    ("Net2VecLoss", {}, -0.5 * 1.2 - 0.5 * 1.3),
    ("Net2VecLoss", {"factor_pos_class": 0.25}, -0.25 * 1.2 - 0.75 * 1.3),
    # FP = 0.7, FN = 0.8.
    ("TverskyLoss", {}, 1 - 1.2 / (1.2 + 0.7 * 0.7 + 0.3 * 0.8)),
    ("TverskyLoss", {"factor_false_positives": 0.5}, 1 - 2.4 / (2.4 + 0.7 + 0.8)),
    ("BalancedBCELoss", {}, -0.5 * math.log(0.8 * 0.4 * 0.9 * 0.4) / 4),
    ("BalancedBCELoss", {"factor_pos_class": 1.0}, -math.log(0.8 * 0.4) / 4),
    (
        "BalancedPenaltyReducedFocalLoss",
        {},
        -0.5
        * (0.04 * math.log(0.8) + 0.36 * math.log(0.4) + 0.01 * math.log(0.9) + 0.36 * math.log(0.4))
        / 2,
    ),
    # Above 0.5 are the first and the last pixel: 1 in common, 3 in all.
    ("IoU", {}, 1 / 3),
    ("IoU", {"output_thresh": 0.3}, 2 / 3),
    ("SetIoU", {"output_thresh": 0.3}, 2 / 3),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), HAND)
def test_worked_by_hand(framework, concepts, name, arguments, expected):
    function = getattr(concepts, name)(**arguments)
    value = function.forward(framework.asarray(P, np.float64), framework.asarray(T, np.float64))
    assert float(framework.to_numpy(value)) == pytest.approx(expected, abs=1e-6)


def test_soft_targets_of_the_focal_loss_weigh_less(framework, concepts):
    loss = concepts.BalancedPenaltyReducedFocalLoss(factor_pos_class=0.5)
    value = loss.forward(framework.asarray([0.5, 0.5]), framework.asarray([1.0, 0.5]))
    assert float(value) == pytest.approx(0.5 * 0.25 * math.log(2) * (1 + 0.5**4))


# -- metrics -----------------------------------------------------------------------------------------


def test_iou_of_empty_and_of_disjoint_masks(framework, concepts):
    outputs = framework.asarray([[[0.0, 0.0]], [[0.9, 0.0]], [[0.9, 0.9]]], np.float32)
    targets = framework.asarray([[[0, 0]], [[0, 1]], [[1, 1]]], np.int32)
    values = framework.to_numpy(concepts.IoU(reduction="none").forward(outputs, targets))
    np.testing.assert_allclose(values, [1.0, 0.0, 1.0], atol=1e-6)
    # Pixels: 2 in common, 4 in all.
    assert float(concepts.SetIoU().forward(outputs, targets)) == pytest.approx(0.5, abs=1e-6)


def test_thresholds_are_exclusive(framework, concepts):
    outputs = framework.asarray([0.5, 0.51], np.float64)
    targets = framework.asarray([0.0, 0.1], np.float64)
    assert float(concepts.IoU().forward(outputs, targets)) == pytest.approx(1.0)
    assert float(concepts.IoU(label_thresh=0.1).forward(outputs, targets)) == pytest.approx(0.0, abs=1e-5)
    assert float(concepts.Net2VecLoss(target_thresh=0.1).forward(outputs, targets)) == pytest.approx(-0.495)


def test_set_iou_of_a_data_set_is_not_the_mean_of_its_batches(framework, concepts):
    rng = np.random.default_rng(0)
    outputs, targets = rng.random((7, 5, 6)), rng.random((7, 5, 6)) > rng.random((7, 1, 1))
    metric = concepts.SetIoU()
    for start in (0, 3, 6):
        metric.update(
            framework.asarray(outputs[start : start + 3], np.float32),
            framework.asarray(targets[start : start + 3]),
        )
    predicted = outputs > 0.5
    expected = (predicted & targets).sum() / (predicted | targets).sum()
    assert float(framework.to_numpy(metric.value())) == pytest.approx(expected, abs=1e-6)
    metric.reset()
    metric.update(framework.asarray([[1.0, 0.0]]), framework.asarray([[1.0, 1.0]]))
    assert float(framework.to_numpy(metric.value())) == pytest.approx(0.5, abs=1e-6)


def test_set_iou_counts_beyond_what_float32_can(framework, concepts):
    metric = concepts.SetIoU()
    ones = framework.asarray(np.ones(2**22), np.float32)
    for _ in range(4):
        metric.update(ones, ones)
    single, none = framework.asarray([1.0], np.float32), framework.asarray([0.0], np.float32)
    for _ in range(200):
        metric.update(single, none)
    assert 1 - float(framework.to_numpy(metric.value())) == pytest.approx(200 / 2**24, rel=0.01)


# -- shapes, reductions, dtypes ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Net2VecLoss", "TverskyLoss", "IoU"])
def test_leading_axes_hold_a_mask_each(framework, concepts, name):
    rng = np.random.default_rng(1)
    outputs, targets = rng.random((2, 3, 4, 5)), (rng.random((2, 3, 4, 5)) > 0.5).astype(float)
    function = getattr(concepts, name)(reduction="none", data_format="channels_first")
    values = framework.to_numpy(function.forward(framework.asarray(outputs), framework.asarray(targets)))
    assert values.shape == (2, 3)
    for index in np.ndindex(2, 3):
        single = function.forward(framework.asarray(outputs[index]), framework.asarray(targets[index]))
        assert float(values[index]) == pytest.approx(float(single))
    last = getattr(concepts, name)(reduction="none", data_format="channels_last")
    moved = [framework.asarray(np.moveaxis(a, 1, -1)) for a in (outputs, targets)]
    np.testing.assert_allclose(framework.to_numpy(last.forward(*moved)), values)


def test_reductions(framework, concepts):
    outputs, targets = make_masks("binary", (3, 4, 5))
    o, t = framework.asarray(outputs), framework.asarray(targets)
    none = framework.to_numpy(concepts.Net2VecLoss(reduction="none").forward(o, t))
    assert none.shape == (3,)
    reductions = {
        "mean": none.mean(),
        "sum": none.sum(),
        concepts.BatchReduction.sum: none.sum(),
        lambda values: values[0] - values[2]: none[0] - none[2],
    }
    for reduction, expected in reductions.items():
        value = concepts.Net2VecLoss(reduction=reduction).forward(o, t)
        assert float(value) == pytest.approx(expected)
    each = framework.to_numpy(concepts.BalancedBCELoss(reduction="none").forward(o, t))
    assert each.shape == (3, 4, 5)
    assert float(concepts.BalancedBCELoss(reduction="sum").forward(o, t)) == pytest.approx(each.sum())


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float32, np.float64])
def test_targets_may_have_any_dtype(framework, concepts, case, dtype):
    name, arguments, _, _ = case
    outputs, targets = make_masks("binary", (3, 4, 5))
    loss = getattr(concepts, name)(**arguments)
    expected = loss.forward(framework.asarray(outputs), framework.asarray(targets))
    actual = loss.forward(framework.asarray(outputs), framework.asarray(targets, dtype))
    assert float(actual) == float(expected)


def test_half_precision_does_not_overflow(framework, concepts):
    shape = (1, 400, 400)
    value = concepts.Net2VecLoss().forward(
        framework.asarray(np.ones(shape), np.float16), framework.asarray(np.ones(shape), np.float16)
    )
    assert float(value) == -80000.0


@pytest.mark.parametrize(
    "name",
    ["Net2VecLoss", "TverskyLoss", "BalancedBCELoss", "BalancedPenaltyReducedFocalLoss", "IoU", "SetIoU"],
)
def test_mismatched_and_empty_shapes_are_errors(framework, concepts, name):
    function = getattr(concepts, name)()
    for shape, other in (((2, 3), (3, 2)), ((2, 3), (2, 3, 1)), ((4, 4), (1, 4)), ((3,), ())):
        with pytest.raises(InputError, match="targets has shape"):
            function.forward(framework.asarray(np.ones(shape)), framework.asarray(np.ones(other)))
    for shape in ((), (0,), (2, 0, 3)):
        if shape == () and "B" in name:  # the losses of pixels
            continue
        with pytest.raises(InputError, match="outputs has shape"):
            function.forward(framework.asarray(np.ones(shape)), framework.asarray(np.ones(shape)))


def test_the_loss_of_a_single_pixel_needs_no_axis(framework, concepts):
    p, t = framework.asarray(0.25, np.float64), framework.asarray(1.0, np.float64)
    bce = concepts.BalancedBCELoss(factor_pos_class=0.75).forward(p, t)
    focal = concepts.BalancedPenaltyReducedFocalLoss(factor_pos_class=0.75).forward(p, t)
    assert tuple(bce.shape) == tuple(focal.shape) == ()
    assert float(framework.to_numpy(bce)) == pytest.approx(-0.75 * math.log(0.25))
    assert float(framework.to_numpy(focal)) == pytest.approx(-0.75 * 0.75**2 * math.log(0.25))


def test_a_soft_pixel_is_split_or_counts_as_foreground(framework, concepts):
    p, t = framework.asarray([0.25, 0.5], np.float64), framework.asarray([0.25, 0.0], np.float64)
    split = concepts.BalancedBCELoss(factor_pos_class=0.75).forward(p, t)
    whole = concepts.BalancedBCELoss(factor_pos_class=0.75, soft_weights=False).forward(p, t)
    background = -0.25 * math.log(0.5)
    expected = -0.75 * 0.25 * math.log(0.25) - 0.25 * 0.75 * math.log(0.75)
    assert float(framework.to_numpy(split)) == pytest.approx((expected + background) / 2)
    expected = -0.75 * (0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(framework.to_numpy(whole)) == pytest.approx((expected + background) / 2)


@pytest.mark.parametrize("name", ["IoU", "SetIoU"])
def test_iou_without_smoothing_is_exact_and_defined_for_empty_masks(framework, concepts, name):
    metric = getattr(concepts, name)(smooth=0)
    ones, zeros = framework.asarray([[1.0, 1.0]], np.float32), framework.asarray([[0.0, 0.0]], np.float32)
    half = framework.asarray([[1.0, 0.0]], np.float32)
    values = [metric.forward(ones, half), metric.forward(zeros, ones), metric.forward(zeros, zeros)]
    assert [float(framework.to_numpy(value)) for value in values] == [0.5, 0.0, 1.0]


# -- the edges of the range ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certain_predictions_are_finite(framework, concepts, case, dtype):
    name, arguments, _, logits = case
    values = np.array([0.0, 1.0, 0.0, 1.0, 0.5], dtype)
    outputs = (values - dtype(0.5)) * 2000 if logits else values
    targets = np.array([1.0, 0.0, 0.0, 1.0, 1.0], dtype)
    loss = getattr(concepts, name)(**arguments)
    value = loss.forward(framework.asarray(outputs), framework.asarray(targets))
    assert np.isfinite(framework.to_numpy(value))
    if type(framework).__name__ != "NumPy":
        gradient = framework.gradient(lambda x: loss.forward(x, framework.asarray(targets)), outputs)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_nothing_found_where_nothing_is_has_no_tversky_loss(framework, concepts, factor):
    loss = concepts.TverskyLoss(factor, reduction="none")
    outputs = np.array([[[0.0, 0.0]], [[1.0, 0.5]]])
    targets = np.array([[[0, 0]], [[1, 0]]])
    values = framework.to_numpy(loss.forward(framework.asarray(outputs), framework.asarray(targets)))
    np.testing.assert_allclose(values, [0.0, 1 - 1 / (1 + factor * 0.5)])
    if type(framework).__name__ != "NumPy":
        total = concepts.TverskyLoss(factor, reduction="sum")
        gradient = framework.gradient(lambda x: total.forward(x, framework.asarray(targets)), outputs)
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.isfinite(gradient).all()


def test_logits_keep_their_gradient_where_probabilities_lose_it(framework, concepts):
    loss = concepts.BalancedBCELoss(factor_pos_class=0.5, from_logit=True)
    targets = framework.asarray([1.0, 0.0], np.float32)
    gradient = framework.gradient(lambda x: loss.forward(x, targets), np.float32([-200, 200]))
    np.testing.assert_allclose(gradient, [-0.25, 0.25], rtol=1e-6)


# -- learning ------------------------------------------------------------------------------------------


def test_minimising_learns_the_mask(framework, concepts, case):
    name, arguments, _, logits = case
    targets = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    arguments = {key: value for key, value in arguments.items() if key != "factor_pos_class"}
    loss = getattr(concepts, name)(**arguments)
    x = np.full(targets.shape, 0.0 if logits else 0.5)
    for _ in range(30):
        x = x - 0.3 * np.sign(framework.gradient(lambda x: loss.forward(x, framework.asarray(targets)), x))
        x = x if logits else np.clip(x, 0.05, 0.95)
    np.testing.assert_array_equal(x > (0 if logits else 0.5), targets > 0)


# -- settings ------------------------------------------------------------------------------------------


def test_settings_and_repr_reproduce_the_instance(concepts):
    for name in (
        "Net2VecLoss",
        "TverskyLoss",
        "BalancedBCELoss",
        "BalancedPenaltyReducedFocalLoss",
        "IoU",
        "SetIoU",
    ):
        function = getattr(concepts, name)()
        for copy in (type(function)(**function.settings), eval(repr(function), vars(concepts).copy())):
            assert type(copy) is type(function)
            assert copy.settings == function.settings
            assert repr(copy) == str(copy) == repr(function)
    loss = concepts.Net2VecLoss(0.3, concepts.BatchReduction.sum, 0.2, data_format="channels_first")
    assert loss.settings == {
        "factor_pos_class": 0.3,
        "reduction": concepts.BatchReduction.sum,
        "target_thresh": 0.2,
        "data_format": "channels_first",
    }
    assert repr(loss).startswith(
        "Net2VecLoss(factor_pos_class=0.3, reduction=BatchReduction.sum, target_thresh=0.2"
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "Net2VecLoss",
            {"factor_pos_class": 1.5},
            "factor_pos_class=1.5 must be a finite number from 0 to 1",
        ),
        ("Net2VecLoss", {"factor_pos_class": math.nan}, "factor_pos_class=nan"),
        (
            "Net2VecLoss",
            {"reduction": "median"},
            "reduction='median' is neither one of 'mean', 'sum', 'none'",
        ),
        ("Net2VecLoss", {"data_format": "NHWC"}, "data_format='NHWC'"),
        ("TverskyLoss", {"factor_false_positives": -0.1}, "factor_false_positives=-0.1"),
        ("TverskyLoss", {"smooth": -1}, "smooth=-1"),
        ("BalancedBCELoss", {"factor_pos_class": 2}, "factor_pos_class=2"),
        ("BalancedPenaltyReducedFocalLoss", {"alpha": 0.5}, "alpha=0.5"),
        ("BalancedPenaltyReducedFocalLoss", {"beta": -1}, "beta=-1"),
        ("IoU", {"smooth": -1}, "smooth=-1"),
        ("SetIoU", {"smooth": -1}, "smooth=-1"),
        ("WeightedLossSum", {"losses": []}, "losses is empty"),
        ("WeightedLossSum", {"losses": [abs], "weights": [1, 2]}, r"weights=\[1, 2\] must be a sequence"),
    ],
)
def test_wrong_arguments_are_named(concepts, name, arguments, message):
    with pytest.raises(InputError, match=message):
        getattr(concepts, name)(**arguments)
    with pytest.raises((TypeError, ValueError), match="unknown_argument"):
        getattr(concepts, name)(unknown_argument=1, **{k: v for k, v in arguments.items() if k == "losses"})


def test_set_iou_without_masks(concepts):
    metric = concepts.SetIoU()
    if concepts.__name__ == "iba_tf.concepts":
        # Keras asks for results inside compiled functions, where nothing can be raised.
        assert float(metric.value()) == 1.0
    else:
        with pytest.raises(InputError, match="call update"):
            metric.value()


# -- sums of losses ------------------------------------------------------------------------------------


def test_weighted_sum(framework, concepts):
    outputs, targets = make_masks("binary", (3, 4, 5))
    o, t = framework.asarray(outputs, np.float32), framework.asarray(targets, np.float32)
    parts = [concepts.TverskyLoss(), concepts.BalancedBCELoss()]
    values = [float(part.forward(o, t)) for part in parts]
    assert float(concepts.WeightedLossSum(parts).forward(o, t)) == pytest.approx(sum(values) / 2)
    weighted = concepts.WeightedLossSum(parts, weights=[2.0, -1.0])
    assert float(weighted.forward(o, t)) == pytest.approx(2 * values[0] - values[1])
    assert weighted.settings == {"losses": parts, "weights": [2.0, -1.0]}
    assert repr(weighted) == f"WeightedLossSum(losses={parts!r}, weights=[2.0, -1.0])"
