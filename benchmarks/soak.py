"""Trains the quickstart for many epochs and records memory, open files, threads and the size of the event files.

    python benchmarks/soak.py --epochs 200 --plot docs/soak.png

The first tenth of the epochs is the warm-up. The exit status is 1 if afterwards memory grows by more than 5 %, if there
are more open files or threads at the end, or if the event files exceed 16 MiB. Further options go to vocseg fit.
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


class ResourceRecorder(L.Callback):
    """Records the resources that the process uses after each epoch."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the resources from /proc."""
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
    """Trains, writes the measurements to a CSV file and plots them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--plot", type=Path, default=Path("soak.png"))
    arguments, fit_options = parser.parse_known_args()
    recorder = ResourceRecorder()

    class RecordedCLI(VocsegCLI):
        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.insert(0, recorder)
            return trainer

    logs = tempfile.mkdtemp(prefix="soak-")
    command = ["fit", "--config", "quickstart", "--trainer.max_epochs", str(arguments.epochs)]
    command += ["--trainer.default_root_dir", logs, "--trainer.enable_progress_bar", "false"]
    run([*command, *fit_options], RecordedCLI)
    with arguments.plot.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, recorder.lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 2) for name, value in line.items()} for line in recorder.lines)
    plot_resources(recorder.lines, arguments.plot)
    return check_growth(recorder.lines)


def plot_resources(lines: list[dict[str, float]], path: Path) -> None:
    """Writes an image with one small plot per resource."""
    matplotlib.use("Agg")
    names = [name for name in lines[0] if name != "epoch"]
    figure, plots = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), layout="constrained")
    for name, plot in zip(names, plots, strict=True):
        plot.plot([line["epoch"] for line in lines], [line[name] for line in lines])
        plot.set(title=name, xlabel="epoch", ylim=(0, 1.1 * max(line[name] for line in lines)))
        plot.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def check_growth(lines: list[dict[str, float]]) -> int:
    """Prints first and last values after the warm-up; returns 1 if a resource grew too much, else 0."""
    first, last = lines[len(lines) // 10], lines[-1]
    for name in ("memory, MiB", "open files", "threads", "event files, MiB"):
        print(f"{name}: {first[name]:.1f} in epoch {first['epoch']}, {last[name]:.1f} in epoch {last['epoch']}")
    grew = last["memory, MiB"] > 1.05 * first["memory, MiB"] or last["event files, MiB"] > 16
    return int(grew or any(last[name] > first[name] for name in ("open files", "threads")))


if __name__ == "__main__":
    sys.exit(main())
