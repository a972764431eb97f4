"""Scores that are computed on request: boundary IoU and calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from vocseg.boundary import BoundaryScores, boundary_counts
from vocseg.calibration import BINS, Calibration, bin_counts, confidence_map
from vocseg.callbacks.base import class_names_of
from vocseg.errors import VocsegError, check_choice
from vocseg.metrics import all_gather_objects

SCORES = ("boundary", "calibration")


class MoreScores(L.Callback):
    """Adds boundary IoU or calibration to the results of validation and test.

    They are logged as ``test/boundary_miou`` and ``test/ece`` (or ``val/...``), and are the attributes ``boundary``
    and ``calibration`` of the task's ``results["test"]``. What each is says :mod:`vocseg.boundary` and
    :mod:`vocseg.calibration`. Few numbers are kept per image, whatever its size. Of an image that comes again only the
    last counts, as samplers that pad repeat images; so several processes have the scores of one.

    Args:
        names: ``boundary``, ``calibration``, or both.

    Raises:
        VocsegError: it is no list, or has an unknown name or one twice.
    """

    def __init__(self, names: Sequence[str] = SCORES) -> None:
        self.names = check_scores(names)
        self._counts: dict[str, dict[int, np.ndarray]] = {}
        self._result: dict[str, Any] = {}

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets what was counted."""
        self._counts = {name: {} for name in self.names}

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the pixels of a batch."""
        self._update(pl_module, outputs, batch)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Computes and logs the scores."""
        self._compute(pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Computes and logs the scores."""
        self._compute(pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the scores to the task's result, which is complete only now."""
        self._attach(pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the scores to the task's result."""
        self._attach(pl_module, "test")

    def _update(self, pl_module: L.LightningModule, outputs: Any, batch: Any) -> None:
        if not isinstance(outputs, Mapping) or not {"index", "labels", "logits"} <= set(outputs):
            raise VocsegError(
                f"The scores {', '.join(self.names)} need the labels and logits that the steps of SegmentationTask "
                f"return; those of {type(pl_module).__name__} return something else."
            )
        mask = batch["mask"] if isinstance(batch, Mapping) else batch[1]
        targets = batch.get("original_mask", mask) if isinstance(batch, Mapping) else mask
        classes = len(class_names_of(pl_module))
        images = zip(outputs["index"], outputs["labels"], outputs["logits"], targets, strict=True)
        for index, prediction, logits, target in images:
            truth, labels = _array(target), _array(prediction)
            if "boundary" in self._counts:
                self._counts["boundary"][index] = boundary_counts(labels, truth, classes)
            if "calibration" in self._counts:
                valid = (truth >= 0) & (truth < classes)
                confidence = confidence_map(logits, truth.shape).cpu().numpy()
                self._counts["calibration"][index] = bin_counts(confidence[valid], (labels == truth)[valid])

    def _compute(self, pl_module: L.LightningModule, stage: str) -> None:
        classes = len(class_names_of(pl_module))
        shapes = {"boundary": (2, classes), "calibration": (3, BINS)}
        self._result = {}
        for name, counts in self._counts.items():
            every = {index: each for share in all_gather_objects(counts) for index, each in share.items()}
            stacked = np.array([every[index] for index in sorted(every)]).reshape(-1, *shapes[name])
            if name == "boundary":
                scores = BoundaryScores(stacked)
                self._result[name] = scores
                # all processes have the same scores already; sync_dist tells Lightning not to warn
                pl_module.log(f"{stage}/boundary_miou", scores.miou, sync_dist=True)
            else:
                calibration = Calibration(stacked)
                self._result[name] = calibration
                pl_module.log(f"{stage}/ece", calibration.ece, sync_dist=True)
        self._counts = {}

    def _attach(self, pl_module: L.LightningModule, stage: str) -> None:
        result = getattr(pl_module, "results", {}).get(stage)
        if result is not None:  # else it is a user's own task
            for name, scores in self._result.items():
                setattr(result, name, scores)
        self._result = {}


def check_scores(names: Any) -> list[str]:
    """The names of the scores to compute, each once.

    Raises:
        VocsegError: as :class:`MoreScores`.
    """
    if not isinstance(names, list | tuple):
        raise VocsegError(f'scores must be a list, such as "[boundary, calibration]"; got {names!r}.')
    for name in names:
        check_choice("Each of the scores", name, SCORES)
        if names.count(name) > 1:
            raise VocsegError(f"scores has {name} twice: give each once.")
    return [*names]


def _array(labels: Tensor) -> np.ndarray:
    """Labels as an array; int32, which is half of what int64 takes from the device."""
    small = labels if labels.dtype == torch.uint8 else labels.to(torch.int32)
    return small.cpu().numpy()
