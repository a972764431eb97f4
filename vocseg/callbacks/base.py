"""Questions that several callbacks ask of a trainer and of a task.

Lightning sets some attributes of its Trainer without declaring them, and a user's own task need not have ours.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from vocseg.run_folder import RunFolder


def is_fast_dev_run(trainer: L.Trainer) -> bool:
    """Whether this is ``--trainer.fast_dev_run``, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def datamodule_of(trainer: L.Trainer) -> L.LightningDataModule | None:
    """The data module, None where plain loaders are used."""
    return getattr(trainer, "datamodule", None)


def run_folder_of(trainer: L.Trainer) -> RunFolder | None:
    """The run's folder; None where no files are to be written."""
    if is_fast_dev_run(trainer) or not trainer.loggers or trainer.log_dir is None:
        return None
    return RunFolder(Path(trainer.log_dir))


def class_names_of(pl_module: L.LightningModule) -> list[str]:
    """The task's class names; empty where it has none."""
    return list(getattr(pl_module, "class_names", ()))


def labelled_images(outputs: Any) -> list[tuple[int, Tensor]]:
    """Index and label map of each image of an evaluation step; empty where the step returned something else."""
    if not isinstance(outputs, Mapping) or not {"index", "labels"} <= set(outputs):
        return []
    return list(zip(outputs["index"], outputs["labels"], strict=True))
