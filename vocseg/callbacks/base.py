"""Questions that several callbacks ask of a trainer and of a task.

Lightning sets some attributes of its Trainer without declaring them, and a user's own task need not have ours.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
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


def labelled_images(outputs: Any, only: Collection[int] | None = None) -> list[tuple[int, int, np.ndarray]]:
    """Index, position in the batch and label map (uint8 [H, W]) of each image of an evaluation step.

    Args:
        outputs: of the step; of a step that returned something else there are none.
        only: indices of the images that are wanted; None: all.
    """
    if not isinstance(outputs, Mapping) or not {"index", "labels"} <= set(outputs):
        return []
    wanted = [at for at, index in enumerate(outputs["index"]) if only is None or index in only]
    maps = to_arrays([outputs["labels"][at] for at in wanted])
    return [(outputs["index"][at], at, labels) for at, labels in zip(wanted, maps, strict=True)]


def to_arrays(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Label maps, integer [H_i, W_i] each, as uint8 arrays; with one transfer from the device for all."""
    if not maps:
        return []
    pixels = torch.cat([labels.flatten().to(torch.uint8) for labels in maps]).cpu()
    parts = pixels.split([labels.numel() for labels in maps])
    return [part.reshape(labels.shape).numpy() for part, labels in zip(parts, maps, strict=True)]
