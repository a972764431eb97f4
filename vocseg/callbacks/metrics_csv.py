"""metrics.csv: one line per epoch, complete also when a run is interrupted and resumed."""

import time
from typing import Any

import lightning as L

from vocseg.callbacks.base import run_folder_of
from vocseg.errors import VocsegError
from vocseg.run_folder import Line, write_lines


class MetricsCSV(L.Callback):
    """Writes every scalar that is logged per epoch to ``metrics.csv`` in the run's folder, with the epoch's seconds.

    The lines are stored in the checkpoint, too: a resumed run continues after those of the checkpoint's epochs, and
    inside an epoch with the seconds that it had already taken.
    """

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._started = time.monotonic()
        self._validated = False
        self._rates: Line = {}

    def state_dict(self) -> dict[str, Any]:
        """The lines so far, and what is known of the running epoch."""
        return {"lines": self.lines, "rates": self._rates, "seconds": time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the lines of a checkpoint."""
        self.lines = list(state_dict["lines"])
        self._rates = dict(state_dict.get("rates", {}))
        self._started = time.monotonic() - state_dict.get("seconds", 0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses to replace a file of another origin: a checkpoint may lie in a folder of the user's.

        Raises:
            VocsegError: the run's folder has a ``metrics.csv`` with other columns.
        """
        folder = run_folder_of(trainer)
        if folder is not None and folder.metrics.is_file():
            text = folder.metrics.read_text(encoding="utf-8", errors="replace")
            if not text.startswith("epoch,step,"):
                raise VocsegError(
                    f"{folder.metrics} is not of a vocseg run, and is not replaced. Move it away, or move the "
                    "checkpoint into another folder: <folder>/checkpoints"
                )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock; not called where an epoch is resumed in the middle."""
        self._started, self._validated = time.monotonic(), False
        self._rates = {name: float(rate) for name, rate in trainer.callback_metrics.items() if name.startswith("lr-")}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that this epoch has validation scores of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the epoch's line and writes the file."""
        scalars = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        # Lightning keeps a scalar until the next one of its name: leave out those of earlier validations
        result = getattr(pl_module, "results", {}).get("val")
        ious = zip(getattr(pl_module, "class_names", ()), result.iou, strict=True) if result else ()
        stale = {f"val/iou/{name}" for name, iou in ious if iou != iou}
        kept = {
            name: value
            for name, value in scalars.items()
            if name not in stale and (self._validated or not name.startswith("val/"))
        }
        seconds = round(time.monotonic() - self._started, 2)
        # --trainer.max_steps may have ended this epoch before, in the middle
        self.lines = [line for line in self.lines if line["epoch"] != trainer.current_epoch]
        self.lines.append(
            {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": seconds, **self._rates, **kept}
        )
        folder = run_folder_of(trainer)
        if folder is not None and trainer.is_global_zero:
            write_lines(folder.metrics, self.lines)
