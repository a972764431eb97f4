"""``paper_inferred``: the evaluation protocol that the paper's figures seem to follow.

The paper's words say "determined over the whole validation set", but its figures fit another rule: void counts as
background, masks and logits are resized to 224x224, and IoU is averaged over the classes that occur in 16 consecutive
images of the list, then over these groups of 16. Accuracy is the share of all 224x224 pixels that are right.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vocseg.confusion import ConfusionMatrices, scores_of
from vocseg.inference import label_map
from vocseg.metrics import SegmentationMetric

SIZE = (224, 224)
GROUP = 16


class PaperProtocol(L.Callback):
    """Counts validation and test at 224x224, and logs ``<split>/paper_inferred/miou`` and ``.../pixel_accuracy``.

    Attributes:
        matrices: of the last validation (``val``) and test, in the order of the split's list.
    """

    def __init__(self) -> None:
        self.matrices: dict[str, ConfusionMatrices] = {}
        self._metric: SegmentationMetric | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts one batch."""
        self._update(pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts one batch."""
        self._update(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs ``val/paper_inferred/...``."""
        self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs ``test/paper_inferred/...``."""
        self._log(pl_module, "test")

    def _update(self, pl_module: L.LightningModule, outputs: Any, batch: Any) -> None:
        if self._metric is None:
            self._metric = SegmentationMetric(len(getattr(pl_module, "class_names", ())))
        masks = batch.get("original_mask", batch["mask"]) if isinstance(batch, Mapping) else batch[1]
        predictions = [label_map(logits, SIZE) for logits in outputs["logits"]]
        self._metric.update(predictions, [resize_labels(mask) for mask in masks], outputs["index"])

    def _log(self, pl_module: L.LightningModule, split: str) -> None:
        if self._metric is None:
            return
        self.matrices[split] = self._metric.compute().matrices
        self._metric.reset()
        scores = paper_inferred(self.matrices[split])
        pl_module.log_dict({f"{split}/paper_inferred/{name}": value for name, value in scores.items()}, sync_dist=True)


def paper_inferred(matrices: ConfusionMatrices) -> dict[str, float]:
    """Derives mIoU and pixel accuracy under the paper's protocol, whatever the batch size was.

    Args:
        matrices: counted at 224x224, in the order of the split's list.

    Returns:
        ``miou`` and ``pixel_accuracy``, NaN without images.
    """
    groups = [
        void_as_background(sum((matrices[index] for index in range(first, min(first + GROUP, len(matrices)))), start=0))
        for first in range(0, len(matrices), GROUP)
    ]
    if not groups:
        return {"miou": float("nan"), "pixel_accuracy": float("nan")}
    return {
        "miou": float(np.mean([scores_of(group)["miou"] for group in groups])),
        "pixel_accuracy": scores_of(void_as_background(matrices.total()))["pixel_accuracy"],
    }


def void_as_background(matrix: Any) -> np.ndarray:
    """A confusion matrix, integer [C+1, C], with the pixels of its void row moved to row 0."""
    moved = np.array(matrix)
    moved[0] += moved[-1]
    moved[-1] = 0
    return moved


def resize_labels(labels: Tensor) -> Tensor:
    """Resizes labels, integer [H, W], to 224x224 by nearest pixel."""
    return F.interpolate(labels[None, None].float(), size=SIZE, mode="nearest-exact")[0, 0].long()
