"""Evaluation metrics: one sparse confusion matrix per image, and every score derived from their sum.

The metric of record: void is ignored; labels are compared at each image's own size; one confusion matrix is summed over
the whole split. IoU of a class = TP / (TP + FP + FN). mIoU = mean IoU over the classes that occur in prediction or
target. Pixel accuracy = share of the valid pixels that are right. Mean class accuracy = mean recall, TP / (TP + FN),
over the classes that occur in the target, background included (mmsegmentation's mAcc).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vocseg.confusion import ConfusionMatrices, pixel_cells, scores_of

if TYPE_CHECKING:
    from vocseg.boundary import BoundaryScores
    from vocseg.calibration import Calibration


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
            (pixel_cells(prediction, target, self.num_classes) + number * size).flatten()
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
        return ConfusionMatrices(
            self.num_classes, offsets, cells[entries].astype(np.int32), counts[entries].astype(np.int32)
        )


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


def all_gather_objects(share: Any) -> list[Any]:
    """The object of every process, in all of them; any object that can be pickled."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [share]
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, share)
    return shares


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
