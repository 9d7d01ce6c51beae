"""What the losses and metrics of concepts must do as Keras losses and metrics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from iba_core.errors import InputError
from iba_tf.concepts import (
    BalancedBCELoss,
    BalancedPenaltyReducedFocalLoss,
    IoU,
    Net2VecLoss,
    SetIoU,
    TverskyLoss,
    WeightedLossSum,
)

LOSSES = [Net2VecLoss, TverskyLoss, BalancedBCELoss, BalancedPenaltyReducedFocalLoss]


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return rng.random((3, 4, 5, 1), np.float32), (rng.random((3, 4, 5, 1)) > 0.5).astype(np.float32)


@pytest.mark.parametrize("make", LOSSES)
def test_keras_calls_with_the_truth_first(make, masks):
    outputs, targets = masks
    loss = make()
    assert isinstance(loss, keras.losses.Loss)
    assert float(loss(targets, outputs)) == pytest.approx(float(loss.forward(*map(tf.constant, masks))))


@pytest.mark.parametrize("make", LOSSES)
def test_sample_weights_weigh_images(make, masks):
    outputs, targets = masks
    loss = make(dtype="float64", **({"factor_pos_class": 0.5} if make is BalancedBCELoss else {}))
    values = loss.call(tf.constant(targets, tf.float64), tf.constant(outputs, tf.float64)).numpy()
    weights = np.array([1.0, 0.0, 2.5])
    each = values.reshape(3, -1)
    mean = make is not BalancedPenaltyReducedFocalLoss
    expected = (each * weights[:, None]).sum() / (each.size if mean else 1)
    assert float(loss(targets, outputs, sample_weight=weights)) == pytest.approx(expected)
    assert float(loss(targets, outputs, sample_weight=np.ones(3))) == pytest.approx(
        float(loss(targets, outputs))
    )


def test_the_channel_axis_is_where_keras_has_it(masks):
    outputs, targets = masks
    assert Net2VecLoss().data_format == "channels_last"
    expected = float(TverskyLoss()(targets[..., 0], outputs[..., 0]))
    assert float(TverskyLoss()(targets, outputs)) == pytest.approx(expected)
    moved = [np.moveaxis(a, -1, 1) for a in (targets, outputs)]
    assert float(TverskyLoss(data_format="channels_first")(*moved)) == pytest.approx(expected)


@keras.saving.register_keras_serializable("iba_tests")
def largest(values):
    return keras.ops.max(values)


@pytest.mark.parametrize(
    "loss",
    [
        Net2VecLoss(0.3, "sum", 0.2, name="agreement"),
        TverskyLoss(0.4, largest, from_logit=True, smooth=1.0),
        BalancedBCELoss(0.2, from_logit=True, dtype="float64"),
        BalancedPenaltyReducedFocalLoss(0.7, 1.5, 3),
        WeightedLossSum([Net2VecLoss(), BalancedBCELoss()], [0.25, 0.75]),
        WeightedLossSum([keras.losses.BinaryCrossentropy(), TverskyLoss()]),
        IoU("sum", 0.4, 0.1),
        SetIoU(0.4, 0.1),
    ],
    ids=lambda loss: loss.name,
)
def test_configurations_come_back(loss, masks):
    outputs, targets = masks
    config = keras.saving.serialize_keras_object(loss)
    copy = keras.saving.deserialize_keras_object(config)
    assert type(copy) is type(loss)
    assert (copy.name, copy.dtype) == (loss.name, loss.dtype)
    assert float(copy(targets, outputs)) == pytest.approx(float(loss(targets, outputs)))
    if not isinstance(loss, WeightedLossSum):
        assert copy.settings == loss.settings


def test_a_custom_reduction_reduces_the_weighted_values(masks):
    outputs, targets = masks
    values = TverskyLoss(reduction="none")(targets, outputs).numpy()
    assert float(TverskyLoss(reduction=largest)(targets, outputs)) == pytest.approx(values.max())
    weighted = TverskyLoss(reduction=largest)(targets, outputs, sample_weight=[0.1, 0.2, 3.0])
    assert float(weighted) == pytest.approx((values[:, 0] * [0.1, 0.2, 3.0]).max())


def test_batches_of_unknown_size_trace_once(masks):
    loss = WeightedLossSum([TverskyLoss(), BalancedBCELoss(), BalancedPenaltyReducedFocalLoss()])
    traces = []

    @tf.function(input_signature=[tf.TensorSpec((None, None, 5, 1)), tf.TensorSpec((None, None, 5, 1))])
    def traced(targets, outputs):
        traces.append(targets.shape)
        return loss(targets, outputs)

    for size in (3, 2):
        outputs, targets = (a[:size] for a in masks)
        assert float(traced(targets, outputs)) == pytest.approx(float(loss(targets, outputs)), rel=1e-5)
    assert len(traces) == 1

    # AutoGraph would wrap the error in one of its own.
    @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((None, 5))], autograph=False)
    def mismatched(targets, outputs):
        return loss(targets, outputs)

    with pytest.raises(InputError, match=r"targets has shape \(None, 4\)"):
        mismatched.get_concrete_function()


def test_fit_compiles_loss_and_metrics(masks, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(10, 5, 5, 2)).astype(np.float32)
    targets = (x[..., :1] > 0.3).astype(np.float32)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 5, 2)), keras.layers.Conv2D(1, 1, activation="sigmoid")])
    model.compile(
        keras.optimizers.Adam(0.1),
        loss=WeightedLossSum([TverskyLoss(), BalancedBCELoss()]),
        metrics=[SetIoU(name="set_iou"), IoU(name="iou")],
    )
    model.fit(x, targets, batch_size=4, epochs=25, verbose=0)
    results = model.evaluate(x, targets, batch_size=3, verbose=0, return_dict=True)
    predicted = tf.constant(model.predict(x, verbose=0))
    assert results["set_iou"] > 0.9
    # Over batches of different sizes, as over all at once.
    assert results["set_iou"] == pytest.approx(float(SetIoU().forward(predicted, targets)), abs=1e-6)
    assert results["iou"] == pytest.approx(float(IoU().forward(predicted, targets)), abs=1e-6)
    model.save(tmp_path / "model.keras")
    assert repr(keras.models.load_model(tmp_path / "model.keras").loss) == repr(model.loss)


def test_metrics_run_over_weighted_batches(masks):
    outputs, targets = masks
    weights = np.array([1.0, 0.0, 2.0])
    ious = IoU(reduction="none").forward(*map(tf.constant, masks)).numpy()[:, 0]
    for reduction, expected in (("mean", (ious * weights).sum() / 3), ("sum", (ious * weights).sum())):
        metric = IoU(reduction)
        for i in range(3):
            metric.update_state(targets[i : i + 1], outputs[i : i + 1], sample_weight=weights[i : i + 1])
        assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
        metric.reset_state()
        assert float(metric.result()) == 0.0
    predicted, truth = outputs[..., 0] > 0.5, targets[..., 0] > 0
    intersections = (predicted & truth).sum(axis=(1, 2))
    unions = (predicted | truth).sum(axis=(1, 2))
    metric = SetIoU()
    value = metric(targets, outputs, sample_weight=weights)
    assert float(value) == pytest.approx((intersections @ weights) / (unions @ weights), rel=1e-6)


def test_a_metric_cannot_run_with_any_reduction(masks):
    outputs, targets = masks
    with pytest.raises(InputError, match="cannot run over batches"):
        IoU(reduction=largest).update_state(targets, outputs)
