"""One confusion matrix, every figure derived from it.

The metric of record: void ignored, at each photograph's own size, one confusion matrix over the whole split. IoU of a
class = TP / (TP + FP + FN); mIoU = mean over the classes that occur in prediction or target; pixel accuracy = share of
valid pixels that are right.

``paper_inferred``, beside it: the figures that the UCSD paper seems to report. Its words say "determined over the whole
validation set", but its numbers fit another rule: void counts as background, masks and logits are squashed to 224x224,
and IoU is averaged over the classes that occur in 16 consecutive images of the list, then over these sixteens. Accuracy
is the share of all 224x224 pixels that are right.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vocseg.data.labels import VOID

PAPER_SIZE = (224, 224)
PAPER_IMAGES = 16


class Evaluation:
    """Gathers one split's predictions and losses; call :meth:`compute` when all of it has been seen.

    Of several processes each feeds it its own share of the split, and all get the figures of the whole. The scores come
    from torchmetrics. Beside them it keeps each image's own count matrix, from which everything else
    can be derived later (all-background figures, intervals over images, the worst images).

    Args:
        num_classes: number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # predictions are label maps already, so torchmetrics need neither argmax nor check them
        common = {"num_classes": num_classes, "ignore_index": VOID, "validate_args": False}
        self.scores = MetricCollection(
            {
                "miou": MulticlassJaccardIndex(average="macro", **common),
                "iou": MulticlassJaccardIndex(average="none", zero_division=float("nan"), **common),
                "pixel_accuracy": MulticlassAccuracy(average="micro", **common),
            },
            compute_groups=[["miou", "iou"], ["pixel_accuracy"]],
        )
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.scores.reset()
        self.loss_sum, self.loss_count = 0.0, 0.0
        self.matrices: dict[int, Tensor] = {}
        self.squashed: dict[int, Tensor] = {}

    def update_loss(self, total: Tensor, count: Tensor) -> None:
        """Adds one batch's loss: its sum over pixels and the weight of these pixels."""
        self.loss_sum = self.loss_sum + total.detach().double()
        self.loss_count = self.loss_count + count.detach().double()

    def update_image(self, prediction: Tensor, target: Tensor, index: int, squashed: Tensor | None = None) -> None:
        """Adds one image.

        Args:
            prediction: int64 [H, W], labels 0..C-1.
            target: integer [H, W], labels 0..C-1 and 255 = void.
            index: the image's place in the split's list.
            squashed: the prediction at 224x224 for ``paper_inferred``; None: from ``prediction``, by nearest pixel.
        """
        target = target.long()
        self.scores.to(prediction.device).update(prediction[None], target[None])
        self.matrices[int(index)] = confusion_matrix(prediction, target, self.num_classes)
        squashed = _squash(prediction) if squashed is None else squashed
        self.squashed[int(index)] = confusion_matrix(squashed, _squash(target), self.num_classes)

    def compute(self, device: torch.device | str = "cpu") -> "Result":
        """The figures of everything seen since the last reset, in all processes.

        Args:
            device: where torchmetrics' counts are; with several processes those of one that had no image must be there.
        """
        scores = {name: value.cpu() for name, value in self.scores.to(device).compute().items()}
        shares = all_gather_objects(
            {
                "loss": (float(self.loss_sum), float(self.loss_count)),
                "matrices": {index: matrix.cpu() for index, matrix in self.matrices.items()},
                "squashed": {index: matrix.cpu() for index, matrix in self.squashed.items()},
            }
        )
        loss_sum, loss_count = (sum(parts) for parts in zip(*(share["loss"] for share in shares), strict=True))
        return Result(
            loss=loss_sum / loss_count if loss_count else 0.0,
            miou=float(scores["miou"]),
            pixel_accuracy=float(scores["pixel_accuracy"]),
            iou=scores["iou"].tolist(),
            matrices=self._stacked([share["matrices"] for share in shares]),
            squashed=self._stacked([share["squashed"] for share in shares]),
        )

    def _stacked(self, shares: list[dict[int, Tensor]]) -> Tensor:
        matrices = {index: matrix for share in shares for index, matrix in share.items()}
        if not matrices:
            return torch.zeros(0, self.num_classes + 1, self.num_classes, dtype=torch.int64)
        return torch.stack([matrices[index] for index in sorted(matrices)])


class Result:
    """The figures of one split.

    Attributes:
        loss: mean loss per valid pixel, at the input's size.
        miou: mean IoU over the classes that occur in prediction or target; nan when every pixel is void.
        pixel_accuracy: share of valid pixels that are right.
        iou: IoU of each class, nan for a class that occurs in neither.
        matrices: int64 [N, C+1, C], pixels of each image by true label (the last row void) and predicted label, in the
            order of the split's list.
        squashed: the same of predictions and masks at 224x224.
    """

    def __init__(
        self, loss: float, miou: float, pixel_accuracy: float, iou: list[float], matrices: Tensor, squashed: Tensor
    ) -> None:
        self.loss, self.miou, self.pixel_accuracy, self.iou = loss, miou, pixel_accuracy, iou
        self.matrices, self.squashed = matrices, squashed

    def all_background(self) -> dict[str, float]:
        """What a predictor that calls every pixel class 0 would score here: the floor that a network must clear."""
        return scores_of(all_background(self.matrices).sum(0))

    def paper_inferred(self) -> dict[str, float]:
        """The figures under the paper's protocol: see :func:`paper_inferred`."""
        return paper_inferred(self.squashed)


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts an image's pixels by true and predicted label.

    Args:
        prediction: int64 [H, W], labels 0..C-1.
        target: int64 [H, W], labels 0..C-1; everything else counts as void.
        num_classes: C.

    Returns:
        int64 [C+1, C]; rows are true labels, the last one void.
    """
    rows = torch.where((target >= 0) & (target < num_classes), target, num_classes)
    cells = torch.bincount((rows * num_classes + prediction).flatten(), minlength=(num_classes + 1) * num_classes)
    return cells.reshape(num_classes + 1, num_classes)


def iou_of(matrix: Tensor) -> list[float]:
    """Derives each class's IoU from a count matrix int64 [C+1, C]; nan for a class that occurs nowhere."""
    valid = matrix[:-1].double()
    hits = valid.diag()
    return (hits / (valid.sum(0) + valid.sum(1) - hits)).tolist()


def scores_of(matrix: Tensor) -> dict[str, float]:
    """Derives mIoU and pixel accuracy from a count matrix int64 [C+1, C]; nan where no pixel is valid."""
    valid = matrix[:-1].double()
    return {
        "miou": float(torch.tensor(iou_of(matrix), dtype=torch.float64).nanmean()),
        "pixel_accuracy": float(valid.diag().sum() / valid.sum()),
    }


def all_background(matrices: Tensor) -> Tensor:
    """The count matrices, int64 [N, C+1, C], of a predictor that calls every pixel of the same images class 0."""
    constant = torch.zeros_like(matrices)
    constant[..., 0] = matrices.sum(-1)
    return constant


def paper_inferred(squashed: Tensor) -> dict[str, float]:
    """Derives mIoU and pixel accuracy under the paper's protocol, whatever the batch size was.

    Args:
        squashed: int64 [N, C+1, C], count matrices at 224x224 in the list's order.

    Returns:
        ``miou`` and ``pixel_accuracy``, nan without images.
    """
    matrices = squashed[:, :-1].double()
    matrices[:, 0] += squashed[:, -1]  # void is background
    means = []
    for images in matrices.split(PAPER_IMAGES) if len(matrices) else ():
        void = torch.zeros(1, images.shape[-1], dtype=images.dtype)
        means.append(scores_of(torch.cat([images.sum(0), void]))["miou"])
    return {
        "miou": float(np.mean(means)) if means else float("nan"),
        "pixel_accuracy": float(matrices.sum(0).diag().sum() / matrices.sum()),
    }


def bootstrap_interval(matrices: Tensor, than: Tensor | None = None, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mIoU, or of the difference of two, over the choice of images.

    Percentile bootstrap (Efron 1979) of 2,000 resamples; both networks' images are drawn alike, so that what a hard
    photograph costs both does not count.

    Args:
        matrices: int64 [N, C+1, C].
        than: of another network on the same images; None: the interval of the mIoU itself.
        seed: of the draws.

    Returns:
        The 2.5th and 97.5th percentiles.
    """
    values = _resampled_miou(matrices, seed)
    if than is not None:
        values = values - _resampled_miou(than, seed)
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _resampled_miou(matrices: Tensor, seed: int, resamples: int = 2000) -> np.ndarray:
    counts = matrices[:, :-1].double().numpy()
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
    sums = np.tensordot(drawn.astype(float), counts, axes=1)
    hits = np.diagonal(sums, axis1=1, axis2=2)
    union = sums.sum(1) + sums.sum(2) - hits
    return np.nanmean(np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0), axis=1)


def all_gather_objects(share: Any) -> list[Any]:
    """Every process's share, in all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [share]
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, share)
    return shares


def _squash(labels: Tensor) -> Tensor:
    return F.interpolate(labels[None, None].float(), size=PAPER_SIZE, mode="nearest-exact")[0, 0].long()
