"""metrics.csv: one line per epoch, complete also when a run is interrupted and resumed."""

import math
import time
from typing import Any

import lightning as L

from vocseg.callbacks.base import run_folder_of
from vocseg.errors import VocsegError
from vocseg.run_folder import Line, RunFolder, append_line, read_lines, write_lines

OWN = "epoch,step,seconds"
"""How a file of vocseg begins; other tools write a ``metrics.csv``, too."""


class MetricsCSV(L.Callback):
    """Writes every scalar that is logged per epoch to ``metrics.csv`` in the run's folder, with the epoch's seconds.

    A line is appended after each epoch. A resumed run continues after the lines of the checkpoint's epochs, which are
    read from the file of the run that the checkpoint belongs to, and inside an epoch with the seconds that it had
    already taken.
    """

    def __init__(self) -> None:
        self._earlier: list[Line] | None = None
        self._stored: list[Line] | None = None
        self._started = time.monotonic()
        self._validated = False
        self._rates: Line = {}

    def state_dict(self) -> dict[str, Any]:
        """What is known of the running epoch."""
        return {"rates": self._rates, "seconds": time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it; checkpoints of vocseg 0.1.0 hold the lines as well."""
        self._stored = state_dict.get("lines")
        self._rates = dict(state_dict.get("rates", {}))
        self._started = time.monotonic() - state_dict.get("seconds", 0.0)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses to replace a file of another origin: a checkpoint may lie in a folder of the user's.

        Raises:
            VocsegError: the run's folder has a ``metrics.csv`` with other columns.
        """
        folder = run_folder_of(trainer)
        if folder is not None and folder.metrics.is_file() and not _is_own(folder):
            raise VocsegError(
                f"{folder.metrics} is not of a vocseg run, and is not replaced. Move it away, or move the "
                "checkpoint into another folder: <folder>/checkpoints"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the lines of the epochs before this fit.

        Raises:
            VocsegError: the file that they are in cannot be read.
        """
        folder = run_folder_of(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        lines = self._stored if self._stored is not None else _lines_before(folder, trainer.ckpt_path)
        self._earlier = [line for line in lines if line.get("epoch", math.inf) < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock; not called where an epoch is resumed in the middle."""
        self._started, self._validated = time.monotonic(), False
        self._rates = {name: float(rate) for name, rate in trainer.callback_metrics.items() if name.startswith("lr-")}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that this epoch has validation scores of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the epoch's line to the file."""
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
        line = {"epoch": trainer.current_epoch, "step": trainer.global_step, "seconds": seconds, **self._rates, **kept}
        folder = run_folder_of(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        if self._earlier is None:
            append_line(folder.metrics, line)
            return
        # The first line of this fit also removes what is in the file of this epoch and later ones: of a fit that was
        # killed before the next checkpoint, or that --trainer.max_steps ended in the middle of this epoch.
        write_lines(folder.metrics, [*self._earlier, line])
        self._earlier = None


def _is_own(folder: RunFolder) -> bool:
    with folder.metrics.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(OWN)) == OWN


def _lines_before(folder: RunFolder, checkpoint: Any) -> list[Line]:
    """The lines of the run that the checkpoint belongs to; without one, those in the folder."""
    of_checkpoint = RunFolder.of_checkpoint(checkpoint) if checkpoint else None
    for run in (of_checkpoint, folder):
        if run is not None and run.metrics.is_file() and _is_own(run):
            try:
                return read_lines(run.metrics)
            except (TypeError, ValueError) as error:  # TypeError: a line with too many cells
                raise VocsegError(
                    f"{run.metrics} cannot be read ({error}). Restore it, or move it away: then metrics.csv begins "
                    "with the next epoch."
                ) from error
    return []
