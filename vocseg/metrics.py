"""One confusion matrix, every figure derived from it.

The metric of record: void ignored, at each photograph's own size, one confusion matrix over the whole split. IoU of a
class = TP / (TP + FP + FN); mIoU = mean over the classes that occur in prediction or target; pixel accuracy = share of
valid pixels that are right.
"""

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vocseg.data.labels import VOID


class Evaluation:
    """Gathers one split's predictions and losses; call :meth:`compute` when all of it has been seen.

    The scores come from torchmetrics. Beside them it keeps each image's own count matrix, from which everything else
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

    def update_loss(self, total: Tensor, count: Tensor) -> None:
        """Adds one batch's loss: its sum over pixels and the weight of these pixels."""
        self.loss_sum = self.loss_sum + total.detach().double()
        self.loss_count = self.loss_count + count.detach().double()

    def update_image(self, prediction: Tensor, target: Tensor, index: int) -> None:
        """Adds one image.

        Args:
            prediction: int64 [H, W], labels 0..C-1.
            target: integer [H, W], labels 0..C-1 and 255 = void.
            index: the image's place in the split's list.
        """
        target = target.long()
        self.scores.to(prediction.device).update(prediction[None], target[None])
        self.matrices[int(index)] = count_matrix(prediction, target, self.num_classes)

    def compute(self) -> "Result":
        """The figures of everything seen since the last reset."""
        scores = {name: value.cpu() for name, value in self.scores.compute().items()}
        order = sorted(self.matrices)
        empty = torch.zeros(0, self.num_classes + 1, self.num_classes, dtype=torch.int64)
        return Result(
            loss=float(self.loss_sum / self.loss_count) if self.loss_count else 0.0,
            miou=float(scores["miou"]),
            pixel_accuracy=float(scores["pixel_accuracy"]),
            iou=scores["iou"].tolist(),
            matrices=torch.stack([self.matrices[index] for index in order]).cpu() if order else empty,
        )


class Result:
    """The figures of one split.

    Attributes:
        loss: mean loss per valid pixel, at the input's size.
        miou: mean IoU over the classes that occur in prediction or target; nan when every pixel is void.
        pixel_accuracy: share of valid pixels that are right.
        iou: IoU of each class, nan for a class that occurs in neither.
        matrices: int64 [N, C+1, C], pixels of each image by true label (the last row void) and predicted label, in the
            order of the split's list.
    """

    def __init__(self, loss: float, miou: float, pixel_accuracy: float, iou: list[float], matrices: Tensor) -> None:
        self.loss, self.miou, self.pixel_accuracy, self.iou, self.matrices = loss, miou, pixel_accuracy, iou, matrices

    def all_background(self) -> dict[str, float]:
        """What a predictor that calls every pixel class 0 would score here: the floor that a network must clear."""
        valid = self.matrices.sum(0)[:-1].sum(1)
        constant = torch.zeros(len(valid) + 1, len(valid), dtype=torch.int64)
        constant[:-1, 0] = valid
        return scores_of(constant)


def count_matrix(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
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


def scores_of(matrix: Tensor) -> dict[str, float]:
    """Derives mIoU and pixel accuracy from a count matrix int64 [C+1, C]; nan where no pixel is valid."""
    valid = matrix[:-1].double()
    hits = valid.diag()
    union = valid.sum(0) + valid.sum(1) - hits
    return {
        "miou": float((hits[union > 0] / union[union > 0]).mean()),
        "pixel_accuracy": float(hits.sum() / valid.sum()),
    }
