"""Checkpoints: written so that no kill can spoil them, read safely, and found again."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from vocseg.components import factory_from_config
from vocseg.data.voc import VOCDataModule
from vocseg.errors import VocsegError
from vocseg.schedules import Schedule
from vocseg.task import SegmentationTask

LOGS = "lightning_logs"
COMPONENTS = {
    "backbone": nn.Module,
    "decoder": nn.Module,
    "loss": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "schedule": Schedule,
}
"""What a checkpoint describes, and the class that each must derive from."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one before it, and puts it in that one's place when it is complete.

    Lightning's own writer collects the file in the system's temporary folder and moves it from there, which between
    two file systems is a copy that a kill can interrupt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` to ``path``.

        Raises:
            VocsegError: there is no room, or no right to write; the checkpoint before it is untouched.
        """
        if "://" in str(path):  # storage that is no file system has its own ways
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the name without the content
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch wraps what the file raises
            part.unlink(missing_ok=True)
            before = "the checkpoint before it is whole" if path.exists() else "there was none before it"
            resumable = path.with_name("last.ckpt").exists()
            then = "go on with vocseg fit ... --ckpt_path last" if resumable else "begin again"
            raise VocsegError(
                f"The checkpoint {path} could not be written: {_reason(error)}; {before}. Make room, and {then}."
            ) from error


def checkpoint_settings(path: str) -> dict[str, Any]:
    """The settings that a checkpoint was made with, as a config: ``model``, ``data`` and ``seed_everything``.

    Raises:
        VocsegError: there is no such file, it does not load safely, or vocseg did not write it.
    """
    if not Path(path).is_file():
        found = sorted(Path(LOGS).glob("*/*/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
        hint = f" The newest here is {found[-1]}." if found else ""
        raise VocsegError(f"There is no checkpoint {path}.{hint}")
    checkpoint = _load(path)
    model = dict(checkpoint.get(SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    if not {"backbone", "decoder"} <= set(model):
        raise VocsegError(f"{path} is no checkpoint of vocseg: it does not say what network it holds.")
    for role, base in COMPONENTS.items():
        described = model.get(role)
        if described is None:
            continue
        if not isinstance(described, Mapping):
            raise VocsegError(f"{path} names no class for its {role} ({described!r}): not built.")
        if "unrecorded" in described:
            raise VocsegError(
                f"{path} does not say how to build its {role} ({described['unrecorded']}). Load it in Python: "
                f"SegmentationTask.load_from_checkpoint(path, {role}=...)."
            )
        factory_from_config(described, role, base)  # builds nothing, but refuses any other class
    model.pop("class_names", None)  # flows from the data
    data = dict(checkpoint.get(VOCDataModule.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    seed = data.pop("seed", 0)
    return {"seed_everything": seed, "model": model, "data": data}


def run_folder_of(checkpoint: str) -> Path | None:
    """The run's folder, if the checkpoint lies in the ``checkpoints`` of one."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def saved_configs(run_folder: Path) -> list[Path]:
    """``config.yaml`` of a run and, in their order, those of resumptions that changed a setting."""
    first = run_folder / "config.yaml"
    later = sorted(run_folder.glob("config_*.yaml"), key=lambda path: (len(path.name), path.name))
    return [first, *later] if first.is_file() else later


def last_unfinished(logs: Path, name: str, max_epochs: int | None, max_steps: int = -1) -> Path:
    """The last checkpoint of the newest run that was interrupted.

    Args:
        logs: the folder of all runs.
        name: of the run.
        max_epochs: how long it shall train; None or -1: without end.
        max_steps: the same in steps; -1: without end.

    Returns:
        ``<logs>/<name>/version_N/checkpoints/last.ckpt``.

    Raises:
        VocsegError: no run of that name has a checkpoint, or all have trained as long as they shall.
    """
    found = sorted((logs / name).glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not found:
        raise VocsegError(
            f"There is nothing to go on from: no run {name!r} in {logs} has a checkpoint. Without --ckpt_path last the "
            "training starts anew."
        )
    for path in found:
        checkpoint = _load(path)
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        more_epochs = max_epochs in (None, -1) or epochs < max_epochs
        more_steps = max_steps == -1 or checkpoint["global_step"] < max_steps
        if more_epochs and more_steps and not _stopped_early(checkpoint):
            return path
    raise VocsegError(
        f"Every run {name!r} in {logs} has trained as long as it shall ({len(found)} of them). To train the newest "
        f"further: --ckpt_path {found[0]} and a greater --trainer.max_epochs (or max_steps)."
    )


def _load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint without ever running code that it may hold."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
        raise VocsegError(f"{path} is no checkpoint of vocseg, or holds more than it may load safely.") from error


def _stopped_early(checkpoint: dict[str, Any]) -> bool:
    return any(
        name.startswith("EarlyStopping") and state.get("stopped_epoch")
        for name, state in checkpoint["callbacks"].items()
    )


def _reason(error: BaseException) -> str:
    """What the system said, below what torch made of it."""
    causes: Sequence[BaseException | None] = (error, error.__cause__, error.__context__)
    system = next((cause for cause in causes if isinstance(cause, OSError)), error)
    return system.strerror if isinstance(system, OSError) and system.strerror else str(error).strip().splitlines()[0]
