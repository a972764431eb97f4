"""Evaluation metrics: one sparse confusion matrix per image, and every score derived from their sum.

The metric of record: void is ignored; labels are compared at each image's own size; one confusion matrix is summed over
the whole split. IoU of a class = TP / (TP + FP + FN). mIoU = mean IoU over the classes that occur in prediction or
target. Pixel accuracy = share of the valid pixels that are right. Mean class accuracy = mean recall, TP / (TP + FN),
over the classes that occur in the target, background included (mmsegmentation's mAcc).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

if TYPE_CHECKING:
    from vocseg.boundary import BoundaryScores
    from vocseg.calibration import Calibration

RESAMPLES = 2000
"""Resamples of the bootstrap interval."""
DRAWS_AT_ONCE = 1_000_000
"""Images drawn at a time for the resamples: 16 MB. Sums of counts are exact, so the interval does not depend on it."""


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
        return _mean_ratio(*self.marginals())

    def iou_per_image(self) -> np.ndarray:
        """Each image's own IoU of each class, float64 [N, C]; NaN for a class that the image does not show."""
        return _ratio(*self.marginals())

    def pixel_accuracy_per_image(self) -> np.ndarray:
        """Share of each image's valid pixels that are right, float64 [N]; NaN for an image that is all void."""
        rows, columns = np.divmod(self.cells, self.num_classes)
        valid, images = rows < self.num_classes, self._images()
        right, out_of = (
            np.bincount(images[some], weights=self.counts[some], minlength=len(self))
            for some in (rows == columns, valid)
        )
        return _ratio(right, out_of)

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


class Result:
    """The scores of one split; no dataclass, because torchmetrics would copy one that ``compute`` returns.

    Attributes:
        loss: mean loss per valid pixel at the input's size.
        miou: mean IoU over the classes that occur in prediction or target; NaN when every pixel is void.
        pixel_accuracy: share of valid pixels that are right; NaN as above.
        mean_accuracy: mean class accuracy; NaN as above.
        iou: IoU of each class, NaN for a class that occurs in neither prediction nor target.
        matrices: the confusion matrix of each image, in the order of the split's list.
        class_names: one name per class, for printing; None: ``class 0`` and so on.
        boundary, calibration: those of :class:`vocseg.callbacks.MoreScores`; None where they were not asked for.
    """

    boundary: "BoundaryScores | None" = None
    calibration: "Calibration | None" = None

    def __init__(
        self,
        loss: float,
        miou: float,
        pixel_accuracy: float,
        mean_accuracy: float,
        iou: list[float],
        matrices: ConfusionMatrices,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.loss, self.miou, self.iou = loss, miou, iou
        self.pixel_accuracy, self.mean_accuracy = pixel_accuracy, mean_accuracy
        self.matrices, self.class_names = matrices, class_names

    def __str__(self) -> str:
        """The scores as a table of plain text, beside those of :meth:`all_background`."""
        floor = self.all_background()
        names = self.class_names or [f"class {label}" for label in range(len(self.iou))]
        rows = [(f"{len(self.matrices)} images", "score", f"all {names[0]}"), ("mIoU", self.miou, floor["miou"])]
        rows += [("pixel accuracy", self.pixel_accuracy, floor["pixel_accuracy"])]
        rows += [("mean class accuracy", self.mean_accuracy, floor["mean_accuracy"]), ("loss", self.loss, "")]
        rows += [("boundary mIoU", self.boundary.miou, "")] if self.boundary else []
        rows += [("calibration error", self.calibration.ece, "")] if self.calibration else []
        rows += [(f"IoU {name}", iou, "") for name, iou in zip(names, self.iou, strict=True)]
        text = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
        widths = [max(len(row[column]) for row in text) for column in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {score:>{widths[1]}}  {least:>{widths[2]}}".rstrip() for name, score, least in text
        )

    def all_background(self) -> dict[str, float]:
        """The scores of a predictor that labels every pixel as class 0: the floor that a network must exceed."""
        return scores_of(self.matrices.all_background().total())


class SegmentationMetric(Metric):
    """Counts predictions against targets, image by image, and sums the evaluation loss.

    Of several processes each updates its own metric with its own share of the split; :meth:`compute` returns the scores
    of the whole split in all of them. The counts of each image are kept (sparse, on the CPU), because intervals over
    images, the worst images and the all-background scores are derived from them later.

    Args:
        num_classes: number of classes C.
        class_names: one name per class, for printing the result.
    """

    full_state_update = False
    images: list[Tensor]
    cells: list[Tensor]
    counts: list[Tensor]
    losses: list[Tensor]

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        super().__init__(dist_sync_fn=_gather, compute_with_cache=False)  # update_loss would not clear the cache
        self.num_classes, self.class_names = num_classes, class_names
        self.images_seen = 0
        self.add_state("images", [], dist_reduce_fx="cat")  # index, number of its cells, index, number, ...
        self.add_state("cells", [], dist_reduce_fx="cat")  # as in ConfusionMatrices
        self.add_state("counts", [], dist_reduce_fx="cat")
        self.add_state("losses", [], dist_reduce_fx="cat")  # sum, weight, sum, weight, ...

    def update(self, predictions: Sequence[Tensor], targets: Sequence[Tensor], indices: Sequence[int]) -> None:
        """Adds the images of a batch.

        Args:
            predictions: label maps, integer [H_i, W_i] with values 0..C-1, one per image.
            targets: integer [H_i, W_i] each; values outside 0..C-1 count as void.
            indices: index of each image in the split's list. Of an index that is added again only the last counts:
                samplers that pad repeat images.
        """
        size = self.num_classes * (self.num_classes + 1)
        cells = [
            (_cells(prediction, target, self.num_classes) + number * size).flatten()
            for number, (prediction, target, _) in enumerate(zip(predictions, targets, indices, strict=True))
        ]
        self.images_seen += len(cells)
        if cells:
            # one transfer from the device for the whole batch
            counts = torch.bincount(torch.cat(cells), minlength=len(cells) * size).cpu()
            entries = counts.nonzero()[:, 0]
            numbers = torch.bincount(entries // size, minlength=len(cells))
            images = torch.stack([torch.tensor([int(index) for index in indices]), numbers], 1).flatten()
            _append(self.images, images)
            _append(self.cells, (entries % size).to(torch.int32))
            _append(self.counts, counts[entries].to(torch.int32))  # an image has fewer than 2**31 pixels

    def update_loss(self, loss_sum: Tensor, weight: Tensor) -> None:
        """Adds a loss: summed over valid pixels, and the weight of these pixels (their number, if unweighted)."""
        _append(self.losses, torch.stack([loss_sum.detach().float(), weight.detach().float()]))

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self.images_seen = 0

    def compute(self) -> Result:
        """The scores of everything since the last reset, of all processes."""
        matrices = self._matrices()
        total = torch.from_numpy(matrices.total()[:-1])
        miou = MatrixJaccardIndex(self.num_classes, average="macro")
        iou = MatrixJaccardIndex(self.num_classes, average="none", zero_division=float("nan"))
        accuracy = MatrixAccuracy(self.num_classes, average="micro")
        for metric in (miou, iou, accuracy):
            metric.update(total)
        loss_sum, weight = _concatenated(self.losses).double().reshape(-1, 2).sum(0).tolist()
        return Result(
            loss=loss_sum / weight if weight else 0.0,
            miou=float(miou.compute()),
            pixel_accuracy=float(accuracy.compute()) if total.any() else float("nan"),
            mean_accuracy=scores_of(matrices.total())["mean_accuracy"],
            iou=iou.compute().tolist(),
            matrices=matrices,
            class_names=self.class_names,
        )

    def _matrices(self) -> ConfusionMatrices:
        """The matrices of all images, by ascending index."""
        images, cells, counts = (_concatenated(state).numpy() for state in (self.images, self.cells, self.counts))
        indices, numbers = images.astype(np.int64).reshape(-1, 2)[::-1].T
        starts = len(cells) - np.cumsum(numbers)  # backwards, so that the first of an index is the last that was added
        _, kept = np.unique(indices, return_index=True)
        offsets = np.concatenate([[0], np.cumsum(numbers[kept])])
        entries = np.repeat(starts[kept] - offsets[:-1], numbers[kept]) + np.arange(offsets[-1])
        return ConfusionMatrices(self.num_classes, offsets, _int32(cells[entries]), _int32(counts[entries]))


class MatrixJaccardIndex(MulticlassJaccardIndex):
    """torchmetrics' Jaccard index, updated with a confusion matrix instead of pixels."""

    def __init__(self, num_classes: int, **settings: Any) -> None:
        super().__init__(num_classes, sync_on_compute=False, **settings)

    def update(self, matrix: Tensor) -> None:  # type: ignore[override]  # a matrix takes the place of pixels
        """Adds a confusion matrix, int64 [C, C], rows are true labels."""
        self.confmat = self.confmat + matrix


class MatrixAccuracy(MulticlassAccuracy):
    """torchmetrics' accuracy, updated with a confusion matrix instead of pixels."""

    def __init__(self, num_classes: int, **settings: Any) -> None:
        super().__init__(num_classes, sync_on_compute=False, **settings)

    def update(self, matrix: Tensor) -> None:  # type: ignore[override]  # a matrix takes the place of pixels
        """Adds a confusion matrix, int64 [C, C], rows are true labels."""
        hits = matrix.diag()
        tp, fp, fn = hits, matrix.sum(0) - hits, matrix.sum(1) - hits
        tn = matrix.sum() - tp - fp - fn
        if self.average == "micro":
            tp, fp, tn, fn = (counts.sum(0, keepdim=True) for counts in (tp, fp, tn, fn))
        # torchmetrics types a state as list or tensor; with an average it is a tensor
        self.tp = self.tp + tp  # type: ignore[operator]
        self.fp = self.fp + fp  # type: ignore[operator]
        self.tn = self.tn + tn  # type: ignore[operator]
        self.fn = self.fn + fn  # type: ignore[operator]


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
    counts = torch.bincount(_cells(prediction, target, num_classes).flatten(), minlength=size)
    return counts.reshape(num_classes + 1, num_classes)


def iou_of(matrix: np.ndarray) -> list[float]:
    """Derives each class's IoU from a confusion matrix, integer [C+1, C]; NaN for a class that occurs nowhere."""
    valid = matrix[:-1].astype(np.float64)
    hits = valid.diagonal()
    return _ratio(hits, valid.sum(0) + valid.sum(1) - hits).tolist()


def scores_of(matrix: np.ndarray) -> dict[str, float]:
    """Derives ``miou``, ``pixel_accuracy`` and ``mean_accuracy`` from a confusion matrix, integer [C+1, C].

    All are NaN where no pixel is valid.
    """
    valid = matrix[:-1].astype(np.float64)
    hits = valid.diagonal()
    return {
        "miou": float(_mean_ratio(hits, valid.sum(0) + valid.sum(1) - hits)),
        "pixel_accuracy": float(_ratio(hits.sum(), valid.sum())),
        "mean_accuracy": float(_mean_ratio(hits, valid.sum(1))),
    }


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
        The 2.5th and 97.5th percentiles.
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
    values = np.concatenate([_ratio(hits, union) for hits, union in _resampled(matrices, seed)])
    intervals = np.full((matrices.num_classes, 2), np.nan)
    occurs = ~np.isnan(values).all(0)
    intervals[occurs] = np.nanpercentile(values[:, occurs], [2.5, 97.5], axis=0).T
    return intervals


def all_gather_objects(share: Any) -> list[Any]:
    """The object of every process, in all of them; any object that can be pickled."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [share]
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, share)
    return shares


def _cells(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
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


def _ratio(hits: np.ndarray, out_of: np.ndarray) -> np.ndarray:
    hits, out_of = np.asarray(hits, dtype=np.float64), np.asarray(out_of, dtype=np.float64)
    return np.divide(hits, out_of, out=np.full_like(hits, np.nan), where=out_of > 0)


def _mean_ratio(hits: np.ndarray, out_of: np.ndarray) -> np.ndarray:
    """The mean of ``hits / out_of`` over the classes (the last axis) with ``out_of`` > 0; NaN without any."""
    occurs = out_of > 0
    sums = np.divide(hits, out_of, out=np.zeros_like(hits), where=occurs).sum(-1)
    return _ratio(sums, occurs.sum(-1))


def _mean_resampled_miou(matrices: ConfusionMatrices | Sequence[ConfusionMatrices], seed: int) -> np.ndarray:
    several = [matrices] if isinstance(matrices, ConfusionMatrices) else matrices
    return np.mean([_resampled_miou(each, seed) for each in several], axis=0)


def _resampled_miou(matrices: ConfusionMatrices, seed: int) -> np.ndarray:
    return np.concatenate([_mean_ratio(hits, union) for hits, union in _resampled(matrices, seed)])


def _resampled(matrices: ConfusionMatrices, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Correct pixels and union of each class in resamples of the images, float64 [some of the resamples, C] each."""
    hits, union = matrices.marginals()
    images = len(matrices)
    generator = np.random.default_rng(seed)
    at_once = max(1, min(RESAMPLES, DRAWS_AT_ONCE // max(images, 1)))
    for first in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(images, np.full(images, 1 / images), min(at_once, RESAMPLES - first))
        weights = drawn.astype(np.float64)
        yield weights @ hits, weights @ union


def _append(parts: list[Tensor], part: Tensor) -> None:
    """Adds a part to a list state, and joins it with those before it that are no larger.

    Few tensors remain, and each is copied a few times. Many small ones, kept between the large ones that a batch needs
    and frees, would keep that memory from the system.
    """
    while parts and len(parts[-1]) <= len(part):
        part = torch.cat([parts.pop(), part])
    parts.append(part)


def _concatenated(state: list[Tensor] | Tensor) -> Tensor:
    """A list state on the CPU; a tensor already when it was gathered from several processes."""
    parts = [state] if isinstance(state, Tensor) else state
    return torch.cat([part.detach().cpu() for part in parts]) if parts else torch.zeros(0)


def _gather(result: Tensor, group: Any = None) -> list[Tensor]:
    """Gathers a state of :class:`SegmentationMetric` from all processes, of which some may have had no image."""
    shares = all_gather_objects(result.cpu())
    dtype = next((share.dtype for share in shares if share.numel()), result.dtype)
    return [share.to(result.device, dtype) for share in shares]
