"""metrics.csv: one line per epoch, and none lost when a run is interrupted and resumed."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning as L


class MetricsCSV(L.Callback):
    """Keeps every scalar logged per epoch in ``metrics.csv`` of the run's folder, with the epoch's seconds.

    The lines travel in the checkpoint: a resumed run goes on with those of the epochs that the checkpoint had seen, and
    inside an epoch with what that one had already taken.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self._started = time.monotonic()
        self._validated = False
        self._rates: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, and what is known of the epoch that runs."""
        return {"lines": self.lines, "rates": self._rates, "seconds": time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the lines of a checkpoint."""
        self.lines = list(state_dict["lines"])
        self._rates = dict(state_dict.get("rates", {}))
        self._started = time.monotonic() - state_dict.get("seconds", 0.0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock; not called where an epoch goes on from a checkpoint."""
        self._started, self._validated = time.monotonic(), False
        self._rates = {name: float(rate) for name, rate in trainer.callback_metrics.items() if name.startswith("lr-")}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that this epoch has validation figures of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the epoch's line and writes the file anew."""
        scalars = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        # Lightning keeps a figure until the next one of its name comes: leave out those of earlier validations
        result = getattr(pl_module, "results", {}).get("val")
        scores = zip(pl_module.class_names, result.iou, strict=True) if result else ()
        stale = {f"val/iou/{name}" for name, iou in scores if iou != iou}
        kept = {
            name: value
            for name, value in scalars.items()
            if name not in stale and (self._validated or not name.startswith("val/"))
        }
        seconds = round(time.monotonic() - self._started, 2)
        # --trainer.max_steps may have ended this epoch before, inside it
        self.lines = [line for line in self.lines if line["epoch"] != trainer.current_epoch]
        self.lines.append(
            {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": seconds, **self._rates, **kept}
        )
        if trainer.is_global_zero and trainer.loggers:
            write_lines(Path(trainer.loggers[0].log_dir) / "metrics.csv", self.lines)


def write_lines(path: Path, lines: list[dict[str, float]]) -> None:
    """Writes the lines as CSV, in one step, so that no reader sees half of it."""
    text = io.StringIO()
    names = sorted({name for line in lines for name in line} - {"epoch", "step", "seconds"})
    writer = csv.DictWriter(text, ["epoch", "step", "seconds", *names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text.getvalue(), encoding="utf-8")
    part.replace(path)


def read_lines(path: Path) -> list[dict[str, float]]:
    """Reads what :func:`write_lines` wrote; an empty cell is a figure that the epoch does not have."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in line.items() if value} for line in csv.DictReader(file)]
