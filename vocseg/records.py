"""Records: small folders that archive the result of a run, as those that are committed in ``experiments/results``.

A record is a run folder (:class:`vocseg.run_folder.RunFolder`) without its large files: ``record.json`` (commit, seed,
device and so on), ``config.yaml`` (``config_1.yaml``, ...: of resumptions that changed settings), ``metrics.csv``, and
for each scored split ``<split>.json`` and ``<split>.npz`` (the confusion matrix of every image). Records of the paper's
rows also have ``<split>_paper_inferred.npz`` (the same under the paper's protocol) and ``test_masks/``, a few predicted
masks. Every score can be derived from it again.
"""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

import vocseg
from vocseg.confusion import ConfusionMatrices
from vocseg.errors import VocsegError
from vocseg.metrics import Result
from vocseg.run_folder import (
    SPLITS,
    Line,
    Run,
    RunFolder,
    read_lines,
    read_run,
    write_lines,
    write_matrices,
    write_result,
)
from vocseg.saving import replacing_folder, write_json, write_text


def write_record(
    folder: Path,
    run_folder: RunFolder,
    results: Mapping[str, Result],
    resized: Mapping[str, ConfusionMatrices],
    facts: Mapping[str, Any],
    class_names: Sequence[str],
    masks: Sequence[Path] = (),
) -> None:
    """Writes a record; it appears only when it is complete, and replaces an older one.

    Args:
        folder: of the record.
        run_folder: the fit's.
        results: of ``val``, and of ``test`` where it was scored.
        resized: confusion matrices of the same splits under the paper's protocol; empty: not kept.
        facts: the content of ``record.json``.
        class_names: one name per class.
        masks: predicted test masks to keep.

    Raises:
        VocsegError: see :func:`check_replaceable`.
    """
    check_replaceable(folder)
    with replacing_folder(folder) as part:
        record = RunFolder(part)
        for path in run_folder.configs:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            write_text(part / path.name, yaml.safe_dump(without_own_paths(config), sort_keys=False))
        write_lines(record.metrics, [rounded(line) for line in read_lines(run_folder.metrics)])
        for split, result in results.items():
            write_result(record, split, result, class_names)
        for split, matrices in resized.items():
            write_matrices(record.resized_matrices(split), matrices)
        for mask in masks:
            copy = record.test_masks / mask.relative_to(run_folder.test_masks)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(mask.read_bytes())
        write_json(record.facts, facts)


def read_record(folder: Path, splits: Sequence[str] = SPLITS, *, resized: bool = False) -> Run:
    """Reads a record that :func:`write_record` wrote.

    Args:
        folder: of the record.
        splits: that it must have scores of.
        resized: whether it must have their matrices under the paper's protocol.

    Raises:
        VocsegError: there is none, or a file is missing or broken.
    """
    record = RunFolder(folder)
    missing = [path.name for path in _files(record, splits, resized) if not path.is_file()]
    if missing:
        raise VocsegError(f"The record {folder} is incomplete: {', '.join(missing)} is missing.")
    return read_run(record)


def check_replaceable(folder: Path) -> None:
    """Checks that a record may take the place of a folder.

    Raises:
        VocsegError: the folder is no record, or has further files, which would be lost.
    """
    record = RunFolder(folder)
    found = {*folder.iterdir()} if folder.is_dir() else {folder} if folder.exists() else set()
    foreign = found - {*_files(record, SPLITS, True), *record.configs, record.test_masks, record.report}
    if foreign or (found and record.facts not in found):
        culprit = min(foreign or found)
        raise VocsegError(f"{culprit} is not part of a record, and is not replaced. Move {folder} away.")


def _files(record: RunFolder, splits: Sequence[str], resized: bool) -> list[Path]:
    """The files of a record that has scores of these splits, beside the configs of resumptions."""
    kinds = (record.scores, record.matrices, *([record.resized_matrices] if resized else []))
    scores = [path(split) for split in splits for path in kinds]
    return [record.facts, record.config, record.metrics, *scores]


def provenance(trainer: L.Trainer) -> dict[str, Any]:
    """What a reported number must name: commit, device, precision, versions."""
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
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}, {name}"


def rounded(line: Line) -> Line:
    """The scalars of an epoch as a record keeps them, with six significant digits."""
    return {name: int(value) if name in ("epoch", "step") else float(f"{value:.6g}") for name, value in line.items()}


def without_own_paths(value: Any) -> Any:
    """Settings with absolute paths, which mean nothing on another machine, replaced by their last part."""
    if isinstance(value, Mapping):
        return {key: without_own_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_own_paths(item) for item in value]
    return f"/path/to/{Path(value).name}" if isinstance(value, str) and Path(value).is_absolute() else value
