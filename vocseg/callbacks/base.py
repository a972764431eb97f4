"""Questions that several callbacks ask of a trainer and of a task.

Lightning sets some attributes of its Trainer without declaring them, and a user's own task need not have ours.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from vocseg.errors import VocsegError
from vocseg.metrics import all_gather_objects
from vocseg.run_folder import RunFolder
from vocseg.saving import OwnedFolder


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


def owned_test_files(trainer: L.Trainer) -> OwnedFolder | None:
    """The run's folder, in which ``vocseg test`` replaces only its own files; None where no files are to be written."""
    folder = run_folder_of(trainer)
    if folder is None:
        return None
    advice = "Move it away, or copy the checkpoint into another folder (<folder>/checkpoints) and test it there."
    return OwnedFolder(folder.path, "test", advice, getattr(trainer, "global_rank", 0))


def check_in_all_processes(folder: OwnedFolder, paths: Iterable[Path], inputs: Iterable[Path] = ()) -> None:
    """:meth:`OwnedFolder.check` in every process before any of them writes; an error of one is raised in all."""
    problem = None
    try:
        folder.check(paths, inputs)
    except VocsegError as error:
        problem = str(error)
    problems = [problem for problem in all_gather_objects(problem) if problem]
    if problems:
        raise VocsegError(problems[0])


def test_samples_of(trainer: L.Trainer) -> list[Any]:
    """The samples (``image``, ``mask``, ``name``) of the test split; empty where a user's own data has none."""
    samples = getattr(getattr(trainer.test_dataloaders, "dataset", None), "samples", None)
    return [*samples] if samples and all(hasattr(sample, "image") for sample in samples) else []


def class_names_of(pl_module: L.LightningModule) -> list[str]:
    """The task's class names; empty where it has none."""
    return list(getattr(pl_module, "class_names", ()))


def labelled_images(outputs: Any) -> list[tuple[int, Tensor]]:
    """Index and label map of each image of an evaluation step; empty where the step returned something else."""
    if not isinstance(outputs, Mapping) or not {"index", "labels"} <= set(outputs):
        return []
    return list(zip(outputs["index"], outputs["labels"], strict=True))
