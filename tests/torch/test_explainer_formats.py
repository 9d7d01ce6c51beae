"""`Explainer` where a PyTorch layer has its channels last, and where features are passed by order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from iba_core import Explainer, InputError

RNG = np.random.default_rng(0)
BATCH = RNG.normal(size=(6, 4, 10)).astype(np.float32)


@pytest.fixture
def tokens() -> nn.Module:
    """Four tokens of ten channels through a norm with channels last."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.Flatten(), nn.Linear(32, 3)).eval()


def test_statistics_of_a_layer_with_channels_last_are_saved_and_loaded(tokens, tmp_path):
    fitted = Explainer(tokens, "1").fit([BATCH], progbar=False)
    fitted.save(tmp_path / "stats.safetensors")
    loaded = Explainer(tokens, "1").load(tmp_path / "stats.safetensors")
    options = {"target": 1, "seed": 0, "steps": 2, "samples": 2}
    expected = fitted.explain(BATCH[:2], **options)
    found = loaded.explain(BATCH[:2], **options)
    assert expected.capacity.shape == (2, 4, 8)
    np.testing.assert_array_equal(found.capacity, expected.capacity)
    again = Explainer(tokens, "1").load(tmp_path / "stats.safetensors")
    np.testing.assert_array_equal(
        again.predict_restricted(BATCH[:2], expected, seed=0),
        fitted.predict_restricted(BATCH[:2], expected, seed=0),
    )


def test_passed_features_stay_whole_in_the_restricted_prediction(tokens):
    explainer = Explainer(tokens, "1").fit([BATCH], progbar=False)
    everything = np.ones((4, 8), bool)
    attribution = explainer.explain(BATCH[:1], 0, pass_mask=everything, steps=2, samples=2)
    restricted = explainer.predict_restricted(BATCH[:1], attribution, pass_mask=everything)
    np.testing.assert_allclose(restricted[0], np.repeat(explainer.predict(BATCH[:1]), 10, axis=0), rtol=1e-5)


def test_no_smoothing_can_be_asked_for_in_both_ways(tokens):
    assert Explainer(tokens, "1", smooth_std=None).settings.smooth_std is None
    assert Explainer(tokens, "1", smooth_std=0).settings.smooth_std == 0
    with pytest.raises(InputError, match="'smooth' is no setting"):
        Explainer(tokens, "1", smooth=0)


@pytest.mark.parametrize(
    ("score", "given"),
    [
        (lambda outputs: outputs, r"shape \([24], 3\)"),
        (lambda outputs: outputs.sum(), r"shape \(\)"),
        (lambda outputs: outputs[:1, 0], r"shape \(1,\)"),
        (lambda outputs: 1.0, "float"),
    ],
)
def test_a_score_must_be_one_for_each_output(tokens, score, given):
    explainer = Explainer(tokens, "1").fit([BATCH], progbar=False)
    message = f"the target's score has {given} for [24] outputs|gives {given}; scores were expected"
    with pytest.raises(InputError, match=message):
        explainer.explain(BATCH[:2], score, steps=2, samples=2)


def test_bytes_are_pixels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    images = RNG.integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    explainer = Explainer(model, "0").fit([images], progbar=False)
    options = {"seed": 0, "steps": 1, "samples": 2}
    np.testing.assert_array_equal(
        explainer.explain(images, **options).capacity,
        explainer.explain(images.astype(np.float32), **options).capacity,
    )
