"""Kills trainings at random times and while they write checkpoints, resumes them, and compares the results.

    python benchmarks/kills.py --kills 50 --inside 10

After each kill the last checkpoint must load. Each run that finishes must equal an uninterrupted run in all parameters,
optimizer states and logged values; otherwise the program fails. It uses fork and runs on Linux and macOS.
"""

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from vocseg.cli import main as vocseg
from vocseg.data.synthetic import SYNTHETIC_CLASSES, write_tree

EPOCHS = 8
RUN = Path("lightning_logs/quickstart/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def fit_command(root: Path) -> list[str]:
    """Arguments of a training whose checkpoints are large, so that a kill can hit the writing of one."""
    return [
        *("fit", "--config", "quickstart", "--data.root", str(root), "--data.num_workers", "2"),
        *("--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]", "--data.image_size", "64"),
        *("--data.batch_size", "2", "--data.train_transforms", "crop", "--trainer.accelerator", "cpu"),
        *("--model.backbone.widths", "[32,64,128,256,512]", "--trainer.max_epochs", str(EPOCHS)),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--previews.images", "0", "--figures.every_n_epochs", "0"),
    ]


def start(command: list[str], folder: Path) -> int:
    """Starts the command in a forked process with its own process group; returns the process id."""
    process = os.fork()
    if process == 0:
        os.setpgrp()
        os.chdir(folder)
        with (folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        status = 1
        with contextlib.suppress(SystemExit):
            status = vocseg(command)
        os._exit(status)
    return process


def exit_status(process: int) -> int | None:
    """The exit status of the process, or None while it runs."""
    finished, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if finished else None


def kill_after(process: int, folder: Path, inside: bool, delay: float) -> str:
    """Kills the process group after ``delay`` seconds, or if ``inside``, at the first checkpoint written after that.

    Returns:
        ``inside`` or ``between`` the writing of checkpoints, or ``finished`` if the process ended before.
    """
    begin, folder_of_parts = time.monotonic(), folder / RUN / "checkpoints"
    leftover = {part: part.stat().st_mtime_ns for part in folder_of_parts.glob("*.part")}  # from the previous kill
    while (status := exit_status(process)) is None:
        writing = any(modified(part) not in (None, leftover.get(part)) for part in folder_of_parts.glob("*.part"))
        if time.monotonic() - begin > delay and (writing or not inside):
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "inside" if writing else "between"
        time.sleep(0.0005)
    if status:
        raise AssertionError(f"the training failed: see {folder / 'log.txt'}")
    return "finished"


def modified(path: Path) -> int | None:
    """Modification time in nanoseconds; None if the file has been moved away."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def outcome(folder: Path) -> tuple[dict, list]:
    """The parts of a finished run that must be equal: contents of the last checkpoint, and lines of metrics.csv."""
    checkpoint = torch.load(folder / LAST, weights_only=True)
    with (folder / RUN / "metrics.csv").open() as file:
        lines = [{name: value for name, value in line.items() if name != "seconds"} for line in csv.DictReader(file)]
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}, lines


def equal(first, second) -> bool:
    """Compares recursively; tensors must be identical."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def main() -> int:
    """Kills and resumes runs; prints each kill and the comparison of all finished runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside", type=int, default=10, help="minimum number of kills while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, base = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    root = write_tree(base / "root", train=10, val=5, test=4)
    command = fit_command(root)
    reference = base / "reference"
    reference.mkdir()
    begin, process = time.monotonic(), start(command, reference)
    while (status := exit_status(process)) is None:
        time.sleep(0.1)
    if status:
        raise AssertionError(f"the training failed: see {reference / 'log.txt'}")
    expected, seconds = outcome(reference), time.monotonic() - begin
    counts, runs, resumed, folder = {"inside": 0, "between": 0}, 0, 0, None
    while sum(counts.values()) < given.kills or counts["inside"] < given.inside or folder is not None:
        if folder is None:
            folder = base / f"run_{runs}"
            folder.mkdir()
        resume = (folder / LAST).exists()
        if not resume:
            shutil.rmtree(folder / RUN, ignore_errors=True)  # killed before its first checkpoint: restart
        process = start([*command, *(["--ckpt_path", "last"] if resume else [])], folder)
        result = kill_after(process, folder, rng.random() < 0.4, rng.uniform(0, seconds))
        epoch = torch.load(folder / LAST, weights_only=True)["epoch"] if (folder / LAST).exists() else None
        if resume and epoch is None:
            raise AssertionError(f"{folder / LAST} is missing")
        if result != "finished":
            counts[result] += 1
            print(
                f"kill {sum(counts.values())}: {result} the writing of checkpoints, last saved epoch: {epoch}",
                flush=True,
            )
        if epoch == EPOCHS - 1:  # the run is complete, even if it was killed after its last epoch
            if not equal(outcome(folder), expected):
                raise AssertionError(f"{folder} differs from {reference}")
            runs, resumed, folder = runs + 1, resumed + resume, None
    print(f"{counts['inside']} kills while a checkpoint was written, {counts['between']} at other times")
    print(
        f"Every last checkpoint loaded. {runs} runs finished, {resumed} of them resumed; all equal the reference run."
    )
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
