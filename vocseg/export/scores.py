"""The scores of an exported network on a split, as ``vocseg test`` computes those of its checkpoint."""

import torch

from vocseg.data.base import SegmentationDataModule
from vocseg.errors import VocsegError
from vocseg.export.model import ExportedModel
from vocseg.metrics import Result, SegmentationMetric


def score_exported(model: ExportedModel, data: SegmentationDataModule, split: str = "test") -> Result:
    """Segments every image of a split, each at its own size, and compares it with its untouched mask.

    Args:
        model: the exported network, which resizes the images as the file says; the data module's transforms and batch
            size are not used.
        data: where images and masks are, for example ``VOCDataModule(root)``.
        split: ``val`` or ``test``.

    Returns:
        The scores; of the loss, which needs more than labels, there is none: it is NaN.

    Raises:
        VocsegError: the data has other classes than the model, or a file cannot be read.
    """
    if data.class_names != model.class_names:
        raise VocsegError(
            f"{model.path} has {len(model.class_names)} classes, and not the {len(data.class_names)} of the data: give "
            "the data module class_names=model.class_names."
        )
    data.setup("validate" if split == "val" else "test")
    dataset = data.datasets[split]
    metric = SegmentationMetric(len(model.class_names), model.class_names)
    for index in range(len(dataset)):
        image, mask = dataset.stored(index)  # type: ignore[union-attr]  # of a split with masks
        metric.update([torch.from_numpy(model.segment(image))], [torch.from_numpy(mask)], [index])
    result: Result = metric.compute()
    result.loss = float("nan")
    return result
