"""Calibration: whether a network is right as often as its probabilities say.

Source: Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", equations 2 and 3. The pixels
are put into M bins by their confidence, the probability of their predicted class. With acc(B) the share of right pixels
of a bin, conf(B) their mean confidence, and n the number of all pixels:

    ECE = sum over the bins of |B| / n * |acc(B) - conf(B)|
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vocseg.network import resize

BINS = 15
"""Number of bins of equal width, as in the paper."""
LOGITS_AT_ONCE = 4_000_000
"""Resized logits that :func:`confidence_map` holds at a time: 16 MB of float32."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Calibration:
    """Confidence and accuracy of a split.

    Attributes:
        counts: float64 [N, 3, BINS]; see :func:`bin_counts`.
    """

    counts: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        """The number of pixels in each bin, int64 [BINS]."""
        return self.counts[:, 0].sum(0).astype(np.int64)

    @property
    def confidence(self) -> np.ndarray:
        """The mean confidence of each bin, float64 [BINS]; NaN for an empty one."""
        return self._means(1)

    @property
    def accuracy(self) -> np.ndarray:
        """The share of each bin's pixels that are right, float64 [BINS]; NaN for an empty one."""
        return self._means(2)

    @property
    def ece(self) -> float:
        """The expected calibration error, from 0 to 1; NaN without any pixel."""
        pixels, confidence, right = self.counts.sum(0)
        return float(np.abs(right - confidence).sum() / pixels.sum()) if pixels.any() else float("nan")

    def _means(self, row: int) -> np.ndarray:
        pixels, sums = self.counts.sum(0)[[0, row]]
        return np.divide(sums, pixels, out=np.full(BINS, np.nan), where=pixels > 0)


def confidence_map(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The highest class probability of each pixel: the maximum of :func:`vocseg.inference.probability_map`.

    A few classes are resized at a time: at 6000x4000 the probabilities of 21 classes would take 2 GB.

    Args:
        logits: of one image, float [C, h, w].
        size: H and W.

    Returns:
        float32 [H, W].
    """
    height, width = (int(side) for side in size)
    at_once = max(LOGITS_AT_ONCE // max(height * width, 1), 1)
    highest = total = None
    for first in range(0, len(logits), at_once):
        part = resize(logits[None, first : first + at_once].float().contiguous(), (height, width))[0]
        top = part.amax(0)
        if highest is None or total is None:
            highest, total = top, part.sub_(top).exp_().sum(0)
        else:
            before, highest = highest, torch.maximum(highest, top)
            total.mul_(before.sub_(highest).exp_()).add_(part.sub_(highest).exp_().sum(0))
    if total is None:
        raise ValueError("Logits of no class have no probability.")
    return total.reciprocal_()


def bin_counts(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sums the pixels of one image by bin. Bin m holds the confidences above m / BINS, and up to (m + 1) / BINS.

    Args:
        confidence: probabilities of the predicted classes, floats of any shape.
        right: whether the prediction is right, bool of the same shape.

    Returns:
        float64 [3, BINS]: number of pixels, sum of their confidences, number of right ones.
    """
    confidence = np.asarray(confidence, np.float64).ravel()
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(np.int64)
    weights = (None, confidence, right.ravel())
    return np.stack([np.bincount(bins, each, BINS) for each in weights]).astype(np.float64)
