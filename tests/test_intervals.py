"""Bootstrap intervals against a dense implementation."""

import tracemalloc

import numpy as np
import pytest
import torch

from vocseg import intervals
from vocseg.confusion import ConfusionMatrices, confusion_matrix, iou_of, scores_of
from vocseg.intervals import bootstrap_interval, class_intervals


def random_matrices(seed=0, number=30, classes=4):
    """Dense matrices, int64 [N, C+1, C], of which most cells are zero, and the same as ConfusionMatrices."""
    rng = np.random.default_rng(seed)
    shape = (number, classes + 1, classes)
    dense = np.where(rng.random(shape) < 0.3, rng.integers(1, 100, shape), 0)
    return dense, ConfusionMatrices.from_dense(dense)


def test_class_intervals_are_those_of_resampled_ious():
    dense, _ = random_matrices()
    dense[:, 1] = dense[:, :, 1] = 0  # a class that occurs nowhere
    images, classes = len(dense), dense.shape[2]
    drawn = np.random.default_rng(3).multinomial(images, np.full(images, 1 / images), 2000)
    values = np.array([iou_of(np.tensordot(weights, dense, axes=1)) for weights in drawn])
    found = class_intervals(ConfusionMatrices.from_dense(dense), seed=3)
    assert np.isnan(found[1]).all()
    for label in set(range(classes)) - {1}:
        assert found[label] == pytest.approx(np.nanpercentile(values[:, label], [2.5, 97.5]))


def test_the_bootstrap_interval_contains_the_score_and_repeats():
    rng = np.random.default_rng(0)
    predictions, targets = [], []
    for _ in range(30):
        target = rng.integers(0, 3, (12, 12))
        wrong = rng.random((12, 12)) < rng.random()
        predictions.append(np.where(wrong, rng.integers(0, 3, (12, 12)), target))
        targets.append(target)
    pairs = zip(predictions, targets, strict=True)
    dense = [confusion_matrix(torch.from_numpy(guess), torch.from_numpy(target), 3).numpy() for guess, target in pairs]
    matrices = ConfusionMatrices.from_dense(np.stack(dense))
    low, high = bootstrap_interval(matrices)
    assert low < scores_of(matrices.total())["miou"] < high
    assert (low, high) == bootstrap_interval(matrices)
    assert (low, high) != bootstrap_interval(matrices, seed=1)
    # if all images are equal, every resample has the same score
    constant = ConfusionMatrices.from_dense(np.repeat(matrices[0][None], 30, axis=0))
    assert bootstrap_interval(constant) == pytest.approx([scores_of(constant.total())["miou"]] * 2)


def dense_resampled_miou(dense, seed):
    counts = dense[:, :-1].astype(float)
    images = len(counts)
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), 2000)
    sums = np.tensordot(drawn.astype(float), counts, axes=1)
    hits = np.diagonal(sums, axis1=1, axis2=2)
    union = sums.sum(1) + sums.sum(2) - hits
    return np.nanmean(np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0), axis=1)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_bootstrap_interval_equals_that_of_a_dense_implementation(seed):
    (first, sparse_first), (second, sparse_second) = random_matrices(0), random_matrices(1)
    values = dense_resampled_miou(first, seed)
    assert bootstrap_interval(sparse_first, seed=seed) == tuple(np.nanpercentile(values, [2.5, 97.5]))
    values = values - dense_resampled_miou(second, seed)
    expected = tuple(np.nanpercentile(values, [2.5, 97.5]))
    assert bootstrap_interval(sparse_first, minus=sparse_second, seed=seed) == expected


def test_the_bootstrap_of_many_images_takes_little_memory_and_gives_the_same_interval(monkeypatch):
    images = 20_000
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    rng = np.random.default_rng(0)
    matrices = ConfusionMatrices.from_dense(rng.integers(1, 9, (images, 3, 2)))
    tracemalloc.start()
    interval = bootstrap_interval(matrices)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 25e6  # all resamples at once: 32 MB
    monkeypatch.setattr(intervals, "DRAWS_AT_ONCE", intervals.RESAMPLES * images)
    assert interval == bootstrap_interval(matrices)


def test_the_interval_of_no_image_is_nan():
    low, high = bootstrap_interval(ConfusionMatrices.from_dense(np.zeros((0, 4, 3), np.int64)))
    assert np.isnan([low, high]).all()
