"""Confusion matrices, one per image and sparse, and the scores that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class ConfusionMatrices:
    """One confusion matrix per image, of which only the cells that occur are stored.

    A matrix has C+1 rows (true labels, the last row void) and C columns (predicted labels). An image has few of the
    C (C + 1) cells: its objects, and what they are confused with.

    Attributes:
        num_classes: C.
        offsets: int64 [N+1]; image i owns the entries ``offsets[i]`` to ``offsets[i + 1]`` of the two arrays below.
        cells: int32 [M], row * C + column, ascending within an image.
        counts: int32 [M], pixels in that cell.
    """

    num_classes: int
    offsets: np.ndarray
    cells: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_dense(cls, matrices: np.ndarray) -> "ConfusionMatrices":
        """From an integer array [N, C+1, C]."""
        flat = matrices.reshape(len(matrices), matrices.shape[1] * matrices.shape[2])
        images, cells = np.nonzero(flat)
        return cls(matrices.shape[2], _offsets(images, len(flat)), _int32(cells), _int32(flat[images, cells]))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str = "") -> "ConfusionMatrices":
        """From what :meth:`to_arrays` returned.

        Raises:
            KeyError: an array is missing.
        """
        num_classes, offsets, cells, counts = (
            arrays[f"{prefix}{name}"] for name in ("num_classes", "offsets", "cells", "counts")
        )
        return cls(int(num_classes), offsets.astype(np.int64), _int32(cells), _int32(counts))

    def to_arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """As named arrays, for a ``.npz`` file."""
        return {
            f"{prefix}num_classes": np.array(self.num_classes),
            f"{prefix}offsets": self.offsets,
            f"{prefix}cells": self.cells,
            f"{prefix}counts": self.counts,
        }

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """The matrix of one image, int64 [C+1, C]."""
        index = range(len(self))[index]  # negative indices count from the end; IndexError past it
        entries = slice(self.offsets[index], self.offsets[index + 1])
        return self._dense(self.cells[entries], self.counts[entries])

    def total(self) -> np.ndarray:
        """The sum over all images, int64 [C+1, C]."""
        return self._dense(self.cells, self.counts)

    def all_background(self) -> "ConfusionMatrices":
        """The matrices of a predictor that labels every pixel of the same images as class 0."""
        background = self.cells // self.num_classes * self.num_classes
        keys = self._images() * self._size + background
        unique, inverse = np.unique(keys, return_inverse=True)
        counts = np.bincount(inverse, weights=self.counts, minlength=len(unique))
        images, cells = np.divmod(unique, self._size)
        return ConfusionMatrices(self.num_classes, _offsets(images, len(self)), _int32(cells), _int32(counts))

    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """Correct pixels and union of each image and class, both float64 [N, C]; void is left out."""
        valid = self.cells < self.num_classes**2
        images, counts = self._images()[valid], self.counts[valid]
        rows, columns = np.divmod(self.cells[valid], self.num_classes)
        shape = (len(self), self.num_classes)
        hits, union = np.zeros(shape), np.zeros(shape)
        right = rows == columns
        hits[images[right], rows[right]] = counts[right]
        np.add.at(union, (images, rows), counts)
        np.add.at(union, (images[~right], columns[~right]), counts[~right])
        return hits, union

    def miou_per_image(self) -> np.ndarray:
        """Each image's own mIoU, float64 [N]; NaN for an image whose pixels are all void."""
        return mean_ratio(*self.marginals())

    def iou_per_image(self) -> np.ndarray:
        """Each image's own IoU of each class, float64 [N, C]; NaN for a class that the image does not show."""
        return ratio(*self.marginals())

    def pixel_accuracy_per_image(self) -> np.ndarray:
        """Share of each image's valid pixels that are right, float64 [N]; NaN for an image that is all void."""
        rows, columns = np.divmod(self.cells, self.num_classes)
        valid, images = rows < self.num_classes, self._images()
        right, out_of = (
            np.bincount(images[some], weights=self.counts[some], minlength=len(self))
            for some in (rows == columns, valid)
        )
        return ratio(right, out_of)

    @property
    def _size(self) -> int:
        return self.num_classes * (self.num_classes + 1)

    def _images(self) -> np.ndarray:
        """The image that each entry belongs to, int64 [M]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def _dense(self, cells: np.ndarray, counts: np.ndarray) -> np.ndarray:
        # float64 sums of integers are exact up to 2**53 pixels
        sums = np.bincount(cells, weights=counts, minlength=self._size)
        return sums.astype(np.int64).reshape(self.num_classes + 1, self.num_classes)


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts an image's pixels by true and predicted label.

    Args:
        prediction: integer [H, W], labels 0..C-1.
        target: integer [H, W], labels 0..C-1; everything else counts as void.
        num_classes: C.

    Returns:
        int64 [C+1, C]; rows are true labels, the last one void.
    """
    size = num_classes * (num_classes + 1)
    counts = torch.bincount(pixel_cells(prediction, target, num_classes).flatten(), minlength=size)
    return counts.reshape(num_classes + 1, num_classes)


def iou_of(matrix: np.ndarray) -> list[float]:
    """Derives each class's IoU from a confusion matrix, integer [C+1, C]; NaN for a class that occurs nowhere."""
    valid = matrix[:-1].astype(np.float64)
    hits = valid.diagonal()
    return ratio(hits, valid.sum(0) + valid.sum(1) - hits).tolist()


def scores_of(matrix: np.ndarray) -> dict[str, float]:
    """Derives ``miou``, ``pixel_accuracy`` and ``mean_accuracy`` from a confusion matrix, integer [C+1, C].

    All are NaN where no pixel is valid.
    """
    valid = matrix[:-1].astype(np.float64)
    hits = valid.diagonal()
    return {
        "miou": float(mean_ratio(hits, valid.sum(0) + valid.sum(1) - hits)),
        "pixel_accuracy": float(ratio(hits.sum(), valid.sum())),
        "mean_accuracy": float(mean_ratio(hits, valid.sum(1))),
    }


def pixel_cells(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The cell of each pixel, row * C + column, int32 [H, W]."""
    # older versions of torch refuse a limit that the type cannot hold
    rows = target.clamp(max=min(num_classes, torch.iinfo(target.dtype).max))
    if target.dtype.is_signed:
        rows = torch.where(target < 0, num_classes, rows)
    return rows.to(torch.int32) * num_classes + prediction.to(torch.int32)


def _offsets(image: np.ndarray, images: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(image, minlength=images))]).astype(np.int64)


def _int32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32)  # an image has fewer than 2**31 pixels and cells


def ratio(hits: np.ndarray, out_of: np.ndarray) -> np.ndarray:
    """``hits / out_of``, float64; NaN where ``out_of`` is 0."""
    hits, out_of = np.asarray(hits, dtype=np.float64), np.asarray(out_of, dtype=np.float64)
    return np.divide(hits, out_of, out=np.full_like(hits, np.nan), where=out_of > 0)


def mean_ratio(hits: np.ndarray, out_of: np.ndarray) -> np.ndarray:
    """The mean of ``hits / out_of`` over the classes (the last axis) with ``out_of`` > 0; NaN without any."""
    occurs = out_of > 0
    sums = np.divide(hits, out_of, out=np.zeros_like(hits), where=occurs).sum(-1)
    return ratio(sums, occurs.sum(-1))
