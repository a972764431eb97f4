"""Boundary IoU: how well the outlines of the regions agree.

Source: Cheng, Girshick, Dollár, Berg and Kirillov 2021, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation", section 4. For the mask G of a class in the truth and its mask P in the prediction, with G_d the pixels
within the distance d of the contour of G:

    Boundary IoU = |(G_d and G) and (P_d and P)| / |(G_d and G) or (P_d and P)|

Both counts are summed over the images of a split before they are divided, as those of the IoU are.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2  # albumentations' own dependency
import numpy as np

DISTANCE = 0.02
"""The distance d as a share of the image's diagonal, as in the paper."""


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class BoundaryScores:
    """Boundary IoU of a split.

    Attributes:
        counts: int64 [N, 2, C]: of each image and class the pixels in the intersection and in the union of the two
            boundary regions; see :func:`boundary_counts`.
    """

    counts: np.ndarray

    @property
    def iou(self) -> list[float]:
        """Boundary IoU of each class; NaN for a class that occurs in neither prediction nor target."""
        return _ratio(*self.counts.sum(0)).tolist()

    @property
    def miou(self) -> float:
        """The mean over the classes that occur; NaN where all pixels are void."""
        return float(_mean(_ratio(*self.counts.sum(0))))

    def miou_per_image(self) -> np.ndarray:
        """Each image's own mean over the classes that it shows, float64 [N]; NaN for an image that is all void."""
        return _mean(_ratio(self.counts[:, 0], self.counts[:, 1]))


def boundary_counts(
    prediction: np.ndarray, target: np.ndarray, num_classes: int, distance: float = DISTANCE
) -> np.ndarray:
    """Counts the boundary pixels of one image.

    A pixel belongs to the boundary region of its class if another label, or the outside of the image, lies within d
    pixels (in a square: the larger of the distances along the two axes, as of d erosions with a square of 3x3 pixels).
    So the image's border is a contour, as in the authors' implementation. d is ``distance`` times the diagonal,
    rounded, and at least 1.

    Void does not count: those pixels are void in the prediction, too. The contour of a region at void is then the same
    in both, and a prediction that is right at all other pixels has the score 1.

    Args:
        prediction: integer [H, W], labels 0..C-1.
        target: integer [H, W], labels 0..C-1; everything else counts as void.
        num_classes: C, at most 65535.
        distance: d as a share of the image's diagonal.

    Returns:
        int64 [2, C]: pixels in the intersection and in the union of the two boundary regions of each class.
    """
    dtype = np.uint8 if num_classes <= 255 else np.uint16  # those that OpenCV erodes
    valid = (target >= 0) & (target < num_classes)
    truth, predicted = (np.where(valid, labels, num_classes).astype(dtype) for labels in (target, prediction))
    if not valid.any():  # also an image without pixels, which OpenCV refuses
        return np.zeros((2, num_classes), np.int64)
    reach = max(round(distance * math.hypot(*target.shape)), 1)
    of_truth, of_prediction = (_is_boundary(labels, reach) & valid for labels in (truth, predicted))
    both = of_truth & of_prediction & (truth == predicted)
    shared, in_truth, in_prediction = (
        np.bincount(labels[region], minlength=num_classes)
        for labels, region in ((truth, both), (truth, of_truth), (predicted, of_prediction))
    )
    return np.stack([shared, in_truth + in_prediction - shared])


def _is_boundary(labels: np.ndarray, reach: int) -> np.ndarray:
    """The pixels with another label, or the outside, within ``reach`` pixels: bool [H, W]; all classes at once."""
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    outside: dict[str, Any] = {"borderType": cv2.BORDER_CONSTANT}
    lowest = cv2.erode(labels, square, **outside, borderValue=0)
    highest = cv2.dilate(labels, square, **outside, borderValue=int(np.iinfo(labels.dtype).max))
    return lowest != highest


def _ratio(shared: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.divide(shared, union, out=np.full(union.shape, np.nan), where=union > 0)


def _mean(iou: np.ndarray) -> np.ndarray:
    """The mean of the last axis without NaN; NaN where there is nothing else."""
    occurs = ~np.isnan(iou)
    return _ratio(np.where(occurs, iou, 0).sum(-1), occurs.sum(-1))
