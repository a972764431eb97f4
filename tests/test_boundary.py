"""Boundary IoU against counts of pixel after pixel."""

import math

import numpy as np
import pytest

from vocseg.boundary import BoundaryScores, boundary_counts


def brute_force(prediction, target, num_classes, reach):
    """Each pixel looks at all pixels within reach; one class at a time."""
    height, width = target.shape
    prediction = np.where((target >= 0) & (target < num_classes), prediction, -1)
    counts = np.zeros((2, num_classes), int)
    for label in range(num_classes):
        regions = []
        for mask in (target == label, prediction == label):
            region = set()
            for y, x in np.argwhere(mask).tolist():
                near = [(y + dy, x + dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
                inside = [(0 <= row < height and 0 <= column < width and mask[row, column]) for row, column in near]
                if not all(inside):
                    region.add((y, x))
            regions.append(region)
        counts[:, label] = len(regions[0] & regions[1]), len(regions[0] | regions[1])
    return counts


def blobs(rng, size, values):
    """Labels in blocks of 6 pixels, so that some pixels are far from any contour."""
    coarse = rng.choice(values, [-(-side // 6) for side in size])
    return np.kron(coarse, np.ones((6, 6), int))[: size[0], : size[1]]


@pytest.mark.parametrize("num_classes", [4, 255, 300])
@pytest.mark.parametrize("size", [(1, 1), (5, 30), (24, 17), (31, 36)])
def test_the_counts_equal_those_of_every_pixel(size, num_classes):
    rng = np.random.default_rng(0)
    target = blobs(rng, size, [0, 1, 3, num_classes - 1, 999])
    prediction = blobs(rng, size, [0, 1, 2, num_classes - 1])
    for share in (0.001, 0.05, 0.2):
        reach = max(round(share * math.hypot(*size)), 1)
        found = boundary_counts(prediction, target, num_classes, share)
        assert np.array_equal(found, brute_force(prediction, target, num_classes, reach)), share


def test_the_distance_is_two_per_cent_of_the_diagonal():
    square = np.zeros((300, 400), np.uint8)
    square[100:200, 100:200] = 1  # the diagonal is 500 pixels, the distance 10
    assert boundary_counts(square, square, 2)[:, 1].tolist() == [100**2 - 80**2] * 2
    border = 300 * 400 - 280 * 380  # the border of the image is a contour
    assert boundary_counts(square, square, 2)[0, 0] == 120**2 - 100**2 + border


def test_void_counts_nowhere_and_does_not_lower_a_right_prediction():
    target = np.full((40, 60), 255, np.uint8)
    target[5:35, 5:25], target[5:35, 35:55] = 0, 1
    right = np.where(target == 255, 1, target)
    scores = BoundaryScores(boundary_counts(right, target, 3)[None])
    assert scores.iou[:2] == [1.0, 1.0]
    assert math.isnan(scores.iou[2])
    assert scores.miou == 1.0
    nothing = BoundaryScores(boundary_counts(right, np.full_like(target, 255), 3)[None])
    assert math.isnan(nothing.miou)
    assert np.isnan(nothing.miou_per_image()).all()


def test_the_counts_are_summed_over_the_images_before_they_are_divided():
    counts = np.array([[[1, 0], [2, 0]], [[0, 3], [6, 3]]])
    scores = BoundaryScores(counts)
    assert scores.iou == [1 / 8, 1.0]
    assert scores.miou == (1 / 8 + 1) / 2
    assert scores.miou_per_image().tolist() == [1 / 2, 1 / 2]


def test_an_image_without_pixels():
    assert not boundary_counts(np.zeros((0, 3), int), np.zeros((0, 3), int), 2).any()
