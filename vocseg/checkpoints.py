"""Checkpoints: written atomically, read without unpickling, and found again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from vocseg.components import factory_from_config
from vocseg.errors import VocsegError
from vocseg.run_folder import LOGS, RunFolder
from vocseg.saving import write_atomically
from vocseg.schedules import Schedule

COMPONENTS: dict[str, type | tuple[type, ...]] = {
    "backbone": nn.Module,
    "decoder": nn.Module,
    "auxiliary": nn.Module,
    "loss": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "schedule": (Schedule, LRScheduler, ReduceLROnPlateau),
}
"""The components that a checkpoint describes, and the class that each must derive from."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the previous one, and replaces that one when it is complete.

    Lightning's own writer collects the file in the system's temporary folder and moves it from there, which between two
    file systems is a copy that a kill can interrupt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` to ``path``.

        Raises:
            VocsegError: the disk is full, or the folder is not writable; the previous checkpoint is unchanged.
        """
        if "://" in str(path):  # storage that is no file system has its own ways
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        try:
            write_atomically(path, lambda file: torch.save(checkpoint, file), durable=True)
        except (OSError, RuntimeError) as error:  # torch wraps what the file raises
            before = "the checkpoint before it is whole" if path.exists() else "there was none before it"
            resumable = path.with_name("last.ckpt").exists()
            then = "resume with vocseg fit ... --ckpt_path last" if resumable else "start again"
            raise VocsegError(
                f"The checkpoint {path} could not be written: {_reason(error)}; {before}. Make room, and {then}."
            ) from error


def written_by_vocseg(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The entry of a checkpoint that vocseg adds to Lightning's."""
    return checkpoint.setdefault("vocseg", {})


def with_current_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A task's state dict with the keys of vocseg 0.1.0, which had no ``network``, brought up to date."""
    return {
        f"network.{key}" if key.startswith(("backbone.", "decoder.")) else key: value
        for key, value in state_dict.items()
    }


def checkpoint_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as a config: ``model``, ``data`` and ``seed_everything``.

    Raises:
        VocsegError: there is no such file, it does not load safely, or vocseg did not write it.
    """
    if not Path(path).is_file():
        found = sorted(Path(LOGS).glob("*/*/checkpoints/best.ckpt"), key=lambda file: file.stat().st_mtime)
        hint = f" The newest here is {found[-1]}." if found else ""
        raise VocsegError(f"There is no checkpoint {path}.{hint}")
    checkpoint = read_checkpoint(path)
    model = dict(checkpoint.get(L.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    if not {"backbone", "decoder"} <= set(model):
        raise VocsegError(f"{path} is no checkpoint of vocseg: it does not say what network it holds.")
    for role, base in COMPONENTS.items():
        config = model.get(role)
        if config is None:
            continue
        if not isinstance(config, Mapping):
            raise VocsegError(f"{path} names no class for its {role} ({config!r}): not built.")
        if "unrecorded" in config:
            raise VocsegError(
                f"{path} does not say how to build its {role} ({config['unrecorded']}). Load it in Python: "
                f"SegmentationTask.load_from_checkpoint(path, {role}=...)."
            )
        factory_from_config(config, role, base)  # builds nothing, but refuses any other class
    model.pop("class_names", None)  # comes from the data
    data = dict(checkpoint.get(L.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    seed = data.pop("seed", 0)
    own = written_by_vocseg(checkpoint)
    data_class = own.get("data_class") or "vocseg.VOCDataModule"
    if data.get("root") == "synthetic":  # vocseg 0.1.0 had one class for both
        data_class = "vocseg.SyntheticDataModule"
        of_a_tree = ("root", "year", "class_names", "train_split", "val_split", "test_split")
        data = {name: value for name, value in data.items() if name not in of_a_tree}
    if data_class == "vocseg.SyntheticDataModule":
        data.pop("class_names", None)  # which it chooses itself
    return {
        "seed_everything": seed,
        "model": _checked(own.get("model_class") or "vocseg.SegmentationTask", model, L.LightningModule, "model"),
        "data": _checked(data_class, data, L.LightningDataModule, "data"),
    }


def _checked(class_path: str, init_args: dict[str, Any], base: type, role: str) -> dict[str, Any]:
    config = {"class_path": class_path, "init_args": init_args}
    factory_from_config({"class_path": class_path}, role, base)  # builds nothing, but refuses any other class
    return config


def last_checkpoint(
    folder: Path, pattern: str, name: str, max_epochs: int | None, max_steps: int = -1, *, finished_too: bool = False
) -> Path | None:
    """The last checkpoint of the newest run that was interrupted.

    Args:
        folder: where to look.
        pattern: glob of the last checkpoints in it.
        name: of the run; a checkpoint that belongs to a run of another name is left out.
        max_epochs: how long it is to train; None or -1: no limit.
        max_steps: the same in steps; -1: no limit.
        finished_too: return the newest run's even where it has trained that long, and None where there is no run.

    Raises:
        VocsegError: no run of that name has a checkpoint there, or all have trained that long.
    """
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    ours: list[Path] = []
    for path in found:  # read one by one: an old one may be broken
        checkpoint = read_checkpoint(path)
        own = written_by_vocseg(checkpoint)
        if own.get("name", name) != name:
            continue
        ours.append(path)
        epochs = own.get("finished_epochs", checkpoint.get("epoch", -1) + 1)
        more_epochs = max_epochs in (None, -1) or epochs < max_epochs
        more_steps = max_steps == -1 or checkpoint["global_step"] < max_steps
        if finished_too or (more_epochs and more_steps and not own.get("stopped_early")):
            return path
    if finished_too:
        return None
    if not ours:
        others = f" ({found[0]} is of another run)" if found else ""
        raise VocsegError(
            f"There is nothing to resume: no run {name!r} in {folder} has a checkpoint{others}. Without --ckpt_path "
            "last a new training starts; any other run resumes with --ckpt_path <its last.ckpt>."
        )
    raise VocsegError(
        f"Every run {name!r} in {folder} is finished ({len(ours)} of them). To train the newest further: "
        f"--ckpt_path {ours[0]} and a greater --trainer.max_epochs (or max_steps)."
    )


def has_averages(path: str | Path) -> bool:
    """Whether the weights of a checkpoint are averages, beside which it has those that were being trained."""
    return "current_model_state" in read_checkpoint(path)


def run_folder_of(path: str | Path) -> RunFolder | None:
    """The run folder of a checkpoint: the one around it, or the one that it names and that is still there."""
    around = RunFolder.of_checkpoint(path)
    if around is not None or not Path(path).is_file():
        return around
    named = written_by_vocseg(read_checkpoint(path)).get("run_folder")
    return RunFolder(Path(named)) if named and Path(named).is_dir() else None


def best_beside(last: Path) -> Path | None:
    """The best checkpoint by what the last one says; None: there is none. ``--checkpoint.filename`` may rename it."""
    for callback, state in read_checkpoint(last).get("callbacks", {}).items():
        name = Path(state.get("best") or "").name if callback.startswith("LastCheckpoint") else ""
        if name and (last.parent / name).is_file():
            return last.parent / name
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint on the CPU, without unpickling: code in it is never run.

    Raises:
        VocsegError: it does not load safely.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # torch raises half a dozen kinds for a file that is not its own
        raise VocsegError(f"{path} is no checkpoint of vocseg, or holds more than it may load safely.") from error


def _reason(error: BaseException) -> str:
    """The operating system's message below torch's."""
    causes: Sequence[BaseException | None] = (error, error.__cause__, error.__context__)
    system = next((cause for cause in causes if isinstance(cause, OSError)), error)
    return system.strerror if isinstance(system, OSError) and system.strerror else str(error).strip().splitlines()[0]
