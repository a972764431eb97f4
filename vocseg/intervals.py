"""Intervals of a score over the choice of images."""

from collections.abc import Iterator, Sequence

import numpy as np

from vocseg.confusion import ConfusionMatrices, mean_ratio, ratio

RESAMPLES = 2000
"""Resamples of the bootstrap interval."""
DRAWS_AT_ONCE = 1_000_000
"""Images drawn at a time for the resamples: 16 MB. Sums of counts are exact, so the interval does not depend on it."""


def bootstrap_interval(
    matrices: ConfusionMatrices | Sequence[ConfusionMatrices],
    minus: ConfusionMatrices | Sequence[ConfusionMatrices] | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of a mIoU, or of the difference of two, over the choice of images.

    Percentile bootstrap (Efron 1979) of 2,000 resamples of the images. For a difference both networks are evaluated on
    the same resamples, so that the difficulty of the images cancels.

    Args:
        matrices: of a network, N images; or of several trainings of it, whose mIoU is averaged.
        minus: of another network on the same images; None: the interval of the mIoU itself.
        seed: of the resamples.

    Returns:
        The 2.5th and 97.5th percentiles; NaN if there is no image.
    """
    values = _mean_resampled_miou(matrices, seed)
    if minus is not None:
        values = values - _mean_resampled_miou(minus, seed)
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def class_intervals(matrices: ConfusionMatrices, seed: int = 0) -> np.ndarray:
    """The 95 % interval of each class's IoU over the choice of images, as :func:`bootstrap_interval`.

    Args:
        matrices: of a network, N images.
        seed: of the resamples.

    Returns:
        float64 [C, 2], the 2.5th and 97.5th percentiles; NaN for a class that occurs nowhere. Resamples in which a
        class does not occur are left out.
    """
    values = np.concatenate([ratio(hits, union) for hits, union in _resampled(matrices, seed)])
    intervals = np.full((matrices.num_classes, 2), np.nan)
    occurs = ~np.isnan(values).all(0)
    intervals[occurs] = np.nanpercentile(values[:, occurs], [2.5, 97.5], axis=0).T
    return intervals


def _mean_resampled_miou(matrices: ConfusionMatrices | Sequence[ConfusionMatrices], seed: int) -> np.ndarray:
    several = [matrices] if isinstance(matrices, ConfusionMatrices) else matrices
    return np.mean([_resampled_miou(each, seed) for each in several], axis=0)


def _resampled_miou(matrices: ConfusionMatrices, seed: int) -> np.ndarray:
    return np.concatenate([mean_ratio(hits, union) for hits, union in _resampled(matrices, seed)])


def _resampled(matrices: ConfusionMatrices, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Correct pixels and union of each class in resamples of the images, float64 [some of the resamples, C] each."""
    hits, union = matrices.marginals()
    images = len(matrices)
    if not images:
        yield hits.astype(np.float64).sum(0, keepdims=True), union.astype(np.float64).sum(0, keepdims=True)
        return
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, DRAWS_AT_ONCE // max(images, 1)))
    for first in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(images, np.full(images, 1 / images), min(at_once, RESAMPLES - first))
        weights = drawn.astype(np.float64)
        yield weights @ hits, weights @ union
