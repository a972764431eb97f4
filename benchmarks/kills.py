"""Kills fits at random moments and inside the writing of checkpoints, resumes them, and compares with a run left alone.

    python benchmarks/kills.py --kills 50 --inside 10

After each kill the last checkpoint must load; each run that reaches its end must equal the undisturbed one in every
parameter, optimizer state and logged figure. Exits with 1 otherwise. (It forks, so it runs on Linux and macOS.)
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


def words(root: Path) -> list[str]:
    """A fit whose checkpoints take long enough to write to be caught."""
    return [
        *("fit", "--config", "quickstart", "--data.root", str(root), "--data.num_workers", "2"),
        *("--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]", "--data.image_size", "64"),
        *("--data.batch_size", "2", "--data.train_transforms", "crop", "--trainer.accelerator", "cpu"),
        *("--model.backbone.widths", "[32,64,128,256,512]", "--trainer.max_epochs", str(EPOCHS)),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--previews.images", "0", "--figures.every_n_epochs", "0"),
    ]


def started(command: list[str], folder: Path) -> int:
    """Runs the command in a forked process with its own process group; returns its id."""
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


def ended(process: int) -> int | None:
    """The exit status, or None while it runs."""
    finished, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if finished else None


def disturbed(process: int, folder: Path, inside: bool, delay: float) -> str:
    """Kills the process group after ``delay`` seconds, or then inside the next writing of a checkpoint."""
    begun, parts = time.monotonic(), folder / RUN / "checkpoints"
    left = {part: part.stat().st_mtime_ns for part in parts.glob("*.part")}  # by the kill before
    while (status := ended(process)) is None:
        writing = any(modified(part) not in (None, left.get(part)) for part in parts.glob("*.part"))
        if time.monotonic() - begun > delay and (writing or not inside):
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "inside" if writing else "between"
        time.sleep(0.0005)
    if status:
        raise AssertionError(f"the fit failed: see {folder / 'log.txt'}")
    return "finished"


def modified(path: Path) -> int | None:
    """When the file was written to; None if it has been moved by now."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def outcome(folder: Path) -> tuple[dict, list]:
    """What must be equal."""
    checkpoint = torch.load(folder / LAST, weights_only=True)
    with (folder / RUN / "metrics.csv").open() as file:
        lines = [{name: value for name, value in line.items() if name != "seconds"} for line in csv.DictReader(file)]
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}, lines


def equal(first, second) -> bool:
    """Deep equality, tensors bit by bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def main() -> int:
    """Prints what was killed where, and whether every run that ended equals the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside", type=int, default=10, help="at least so many of them inside a writing")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, base = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    root = write_tree(base / "root", train=10, val=5, test=4)
    command = words(root)
    (base / "alone").mkdir()
    begun, process = time.monotonic(), started(command, base / "alone")
    while (status := ended(process)) is None:
        time.sleep(0.1)
    if status:
        raise AssertionError(f"the fit failed: see {base / 'alone' / 'log.txt'}")
    expected, seconds = outcome(base / "alone"), time.monotonic() - begun
    counts, runs, resumed, folder = {"inside": 0, "between": 0}, 0, 0, None
    while sum(counts.values()) < given.kills or counts["inside"] < given.inside or folder is not None:
        if folder is None:
            folder = base / f"run_{runs}"
            folder.mkdir()
        there = (folder / LAST).exists()
        if not there:
            shutil.rmtree(folder / RUN, ignore_errors=True)  # killed before its first checkpoint: begin again
        process = started([*command, *(["--ckpt_path", "last"] if there else [])], folder)
        what = disturbed(process, folder, rng.random() < 0.4, rng.uniform(0, seconds))
        epoch = torch.load(folder / LAST, weights_only=True)["epoch"] if (folder / LAST).exists() else None
        if there and epoch is None:
            raise AssertionError(f"{folder / LAST} is gone")
        if what != "finished":
            counts[what] += 1
            print(
                f"kill {sum(counts.values())}: {what} the writing of a checkpoint, last epoch saved: {epoch}",
                flush=True,
            )
        if epoch == EPOCHS - 1:  # a kill after the last epoch leaves nothing to go on with
            if not equal(outcome(folder), expected):
                raise AssertionError(f"{folder} differs from {base / 'alone'}")
            runs, resumed, folder = runs + 1, resumed + there, None
    print(f"{counts['inside']} kills inside a writing, {counts['between']} between; every last checkpoint loaded")
    print(f"{runs} runs came to their end, {resumed} of them resumed; all equal the undisturbed one")
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
