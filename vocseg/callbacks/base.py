"""Questions that several callbacks ask of a trainer and of a task.

Lightning sets some attributes of its Trainer without declaring them, and a user's own task need not have ours.
"""

from pathlib import Path

import lightning as L

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
