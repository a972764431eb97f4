"""Losses: modules ``(logits, mask) -> scalar``. Void pixels are ignored; the loss of a batch with only void is 0.

``logits`` is float [B, C, H, W], in any precision (computed in float32), and ``mask`` int64 [B, H, W].
"""

from vocseg.losses.base import Loss
from vocseg.losses.cross_entropy import INVERSE_FREQUENCY, CrossEntropy, FocalLoss, OHEMCrossEntropy, inverse_frequency
from vocseg.losses.overlap import Dice, LovaszSoftmax
from vocseg.losses.sums import SumOfLosses, loss_totals

__all__ = [
    "INVERSE_FREQUENCY",
    "CrossEntropy",
    "Dice",
    "FocalLoss",
    "Loss",
    "LovaszSoftmax",
    "OHEMCrossEntropy",
    "SumOfLosses",
    "inverse_frequency",
    "loss_totals",
]
