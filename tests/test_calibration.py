"""The calibration error and its bins, against torchmetrics and a computation by hand."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from vocseg import calibration
from vocseg.calibration import BINS, Calibration, bin_counts, confidence_map
from vocseg.inference import probability_map


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [1, 3000, 10**9])
def test_the_confidence_is_the_highest_probability(at_once, dtype, monkeypatch):
    monkeypatch.setattr(calibration, "LOGITS_AT_ONCE", at_once)
    logits = (torch.randn(7, 12, 9, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    found = confidence_map(logits, (31, 40))
    assert found.dtype == torch.float32
    assert torch.allclose(found, probability_map(logits.float(), (31, 40)).amax(0), atol=1e-6)


def test_extreme_logits_have_a_probability():
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, -1e4]]])
    assert confidence_map(logits, (1, 2)).tolist() == [[1.0, 0.5]]


def test_the_error_equals_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(5, 2000, generator=generator) * 2).softmax(0)
    target = torch.randint(0, 5, (2000,), generator=generator)
    confidence, label = probabilities.max(0)
    halves = [
        bin_counts(confidence[part].numpy(), (label == target)[part].numpy())
        for part in (slice(0, 700), slice(700, 2000))
    ]
    ordinary = MulticlassCalibrationError(5, n_bins=BINS)
    assert Calibration(np.stack(halves)).ece == pytest.approx(float(ordinary(probabilities.T, target)), abs=1e-6)


def test_bins_include_their_upper_end_and_keep_means():
    confidence = np.array([[0.0, 1 / 15, 0.1], [0.5, 0.99, 1.0]])
    right = np.array([[False, True, False], [True, True, False]])
    curve = Calibration(bin_counts(confidence, right)[None])
    assert curve.pixels.tolist() == [2, 1, *[0] * 5, 1, *[0] * 6, 2]
    assert curve.accuracy[[0, 1, 7, 14]].tolist() == [0.5, 0.0, 1.0, 0.5]
    assert curve.confidence[[0, 1, 7, 14]] == pytest.approx([1 / 30, 0.1, 0.5, 0.995])
    assert np.isnan(curve.accuracy[2:7]).all()
    assert curve.ece == pytest.approx((2 * (0.5 - 1 / 30) + 0.1 + 0.5 + 2 * 0.495) / 6)
    assert math.isnan(Calibration(np.zeros((1, 3, BINS))).ece)
