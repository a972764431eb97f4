"""What stays of a run: a small folder that says how it was made and from which every figure can be derived again.

``record.json`` (how and with what it was trained, and its figures), ``config.yaml`` (all settings; ``config_1.yaml``
and so on: those of resumptions that changed some), ``metrics.csv`` (the scalars of each epoch), ``matrices.npz`` (the
count matrix of every image of val and test, at its own size and at 224x224) and ``masks/`` (a few predicted test
masks).
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from torch import Tensor

import vocseg
from vocseg.callbacks.metrics_csv import read_lines, write_lines
from vocseg.callbacks.predictions import save_mask
from vocseg.callbacks.results import result_record
from vocseg.checkpoints import saved_configs
from vocseg.errors import VocsegError
from vocseg.metrics import Result

SPLITS = ("val", "test")


@dataclass
class Record:
    """A record as it was read.

    Attributes:
        folder: where from.
        facts: what ``record.json`` says.
        config: all settings of the run.
        lines: the scalars of each epoch.
        matrices: of ``val`` and ``test``, int64 [N, C+1, C], at the photographs' own sizes.
        squashed: the same at 224x224.
    """

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    lines: list[dict[str, float]]
    matrices: dict[str, Tensor]
    squashed: dict[str, Tensor]

    def masks(self) -> dict[str, Path]:
        """The predicted test masks that were kept: photograph's name -> file."""
        return {path.stem: path for path in sorted((self.folder / "masks").glob("*.png"))}


def write_record(
    folder: Path,
    run_folder: Path,
    results: Mapping[str, Result],
    facts: Mapping[str, Any],
    class_names: list[str],
    masks: Mapping[str, np.ndarray],
) -> None:
    """Writes a run's record; the folder appears only when it is complete.

    Args:
        folder: where to; an older record there is replaced.
        run_folder: the fit's, with ``config.yaml`` and ``metrics.csv``.
        results: of ``val`` and ``test``.
        facts: what else ``record.json`` shall say.
        class_names: one name per class.
        masks: predicted label maps uint8 [H, W] by photograph's name.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "masks").mkdir(parents=True)
    for path in saved_configs(run_folder):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        (part / path.name).write_text(yaml.safe_dump(_without_own_paths(config), sort_keys=False), encoding="utf-8")
    lines = read_lines(run_folder / "metrics.csv")
    counts = {"epoch", "step"}
    rounded = [
        {name: int(value) if name in counts else float(f"{value:.6g}") for name, value in line.items()}
        for line in lines
    ]
    write_lines(part / "metrics.csv", rounded)
    arrays = {}
    for split in SPLITS:
        arrays[split] = results[split].matrices.numpy().astype(np.int32)
        arrays[f"{split}_squashed"] = results[split].squashed.numpy().astype(np.int32)
    np.savez_compressed(part / "matrices.npz", **arrays)
    for name, mask in masks.items():
        save_mask(mask, part / "masks" / f"{name}.png")
    figures = {split: result_record(results[split], class_names) for split in SPLITS}
    (part / "record.json").write_text(
        json.dumps({**facts, "class_names": class_names, **figures}, indent=2) + "\n", encoding="utf-8"
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def read_record(folder: Path) -> Record:
    """Reads a record that :func:`write_record` wrote.

    Raises:
        VocsegError: there is none, or a part is missing or broken.
    """
    try:
        facts = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        lines = read_lines(folder / "metrics.csv")
        with np.load(folder / "matrices.npz") as file:
            arrays = {name: torch.from_numpy(file[name].astype(np.int64)) for name in file.files}
        record = Record(
            folder,
            facts,
            config,
            lines,
            {split: arrays[split] for split in SPLITS},
            {split: arrays[f"{split}_squashed"] for split in SPLITS},
        )
    except FileNotFoundError as error:
        raise VocsegError(f"The record {folder} is incomplete: {Path(error.filename).name} is missing.") from error
    except Exception as error:  # numpy and zipfile raise half a dozen kinds for a broken file
        raise VocsegError(f"The record {folder} cannot be read: {' '.join(str(error).split())}") from error
    return record


def provenance(trainer: L.Trainer) -> dict[str, Any]:
    """What a number must name to be defended: commit, device, precision, versions."""
    return {
        "commit": _commit(),
        "device": _device(trainer),
        "precision": str(trainer.precision),
        "versions": {"vocseg": vocseg.__version__, "torch": torch.__version__, "lightning": L.__version__},
    }


def _commit() -> str:
    """The checkout's commit, ``-changed`` if files differ from it; ``not known`` outside a checkout."""
    package = Path(vocseg.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", package, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.parent:
            return "not known"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(package))
        return git("rev-parse", "--short=10", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not known"


def _device(trainer: L.Trainer) -> str:
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.num_devices} x {torch.cuda.get_device_name(trainer.strategy.root_device)}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{torch.get_num_threads()} CPU threads, {name}"


def _without_own_paths(value: Any) -> Any:
    """Absolute paths say nothing to others: only their last part stays."""
    if isinstance(value, Mapping):
        return {key: _without_own_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_own_paths(item) for item in value]
    return f"/path/to/{Path(value).name}" if isinstance(value, str) and Path(value).is_absolute() else value
