"""Trains the quickstart for many epochs and follows the process: memory, open files, threads, size of event files.

    python benchmarks/soak.py --epochs 200 --plot benchmarks/soak.png

The first tenth is taken as warming up; afterwards memory may grow by 5 % and open files and threads not at all, and at
the end the event files may have 16 MiB, else it exits with 1. Further options are those of vocseg fit.
"""

import argparse
import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import matplotlib.pyplot as plt

from vocseg.lightning_cli import VocsegCLI, run


class Watch(L.Callback):
    """Notes the process's state after each epoch."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads it from /proc."""
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        events = sum(file.stat().st_size for file in Path(trainer.log_dir).glob("events*"))
        self.lines.append(
            {
                "epoch": trainer.current_epoch,
                "memory, MiB": int(status["VmRSS"].split()[0]) / 1024,
                "open files": len(os.listdir("/proc/self/fd")),
                "threads": int(status["Threads"]),
                "event files, MiB": events / 2**20,
            }
        )


def main() -> int:
    """Trains, writes the figures and draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--plot", type=Path, default=Path("soak.png"))
    given, options = parser.parse_known_args()
    watch = Watch()

    class Watched(VocsegCLI):
        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.insert(0, watch)
            return trainer

    logs = tempfile.mkdtemp(prefix="soak-")
    words = ["--config", "quickstart", "--trainer.max_epochs", str(given.epochs), "--trainer.default_root_dir", logs]
    run(["fit", *words, "--trainer.enable_progress_bar", "false", *options], Watched)
    with given.plot.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, watch.lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 2) for name, value in line.items()} for line in watch.lines)
    draw(watch.lines, given.plot)
    return judge(watch.lines)


def draw(lines: list[dict[str, float]], path: Path) -> None:
    """One small plot for each figure."""
    matplotlib.use("Agg")
    names = [name for name in lines[0] if name != "epoch"]
    figure, plots = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), layout="constrained")
    for name, plot in zip(names, plots, strict=True):
        plot.plot([line["epoch"] for line in lines], [line[name] for line in lines])
        plot.set(title=name, xlabel="epoch", ylim=(0, 1.1 * max(line[name] for line in lines)))
        plot.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def judge(lines: list[dict[str, float]]) -> int:
    """0 if nothing grew that should not."""
    warm, last = lines[len(lines) // 10], lines[-1]
    for name in ("memory, MiB", "open files", "threads", "event files, MiB"):
        print(f"{name}: {warm[name]:.1f} in epoch {warm['epoch']}, {last[name]:.1f} in epoch {last['epoch']}")
    grew = last["memory, MiB"] > 1.05 * warm["memory, MiB"] or last["event files, MiB"] > 16
    return int(grew or any(last[name] > warm[name] for name in ("open files", "threads")))


if __name__ == "__main__":
    sys.exit(main())
