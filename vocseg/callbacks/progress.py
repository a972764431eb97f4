"""Progress of a run: the bar in a terminal, and lines where no bar can be drawn. Both count epochs from 1."""

import re
import shutil
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import BarColumn, ProgressColumn, Task
from rich.text import Text

NARROW = 100
"""Columns of a terminal below which the scores beside a bar would need several lines."""


class EpochBar(RichProgressBar):
    """Lightning's bar, which counts epochs from 1 and is at its end before the table of scores is printed."""

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Lightning's columns with another first one; in a narrow terminal a short bar, and no steps per second."""
        columns = [_Description(), *super().configure_columns(trainer)[1:]]
        if shutil.get_terminal_size().columns >= NARROW:
            return columns
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 12
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The scores beside the bar, without the run's number."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the bar: it would be drawn once more below what is printed later."""
        self.teardown(trainer, pl_module, "fit")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As :meth:`on_train_end`."""
        super().on_test_end(trainer, pl_module)
        self.teardown(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As :meth:`on_train_end`, except for a validation in a fit."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "validate":
            self.teardown(trainer, pl_module, "validate")


class _Description(ProgressColumn):
    """What a bar is of: ``Epoch 1/15`` where Lightning says ``Epoch 0/14``."""

    def render(self, task: Task) -> Text:
        text = re.sub(r"(?<=Epoch )(\d+)(/\d+)?", _from_one, task.description)
        return Text.from_markup(text, style="progress.description")


def _from_one(numbers: re.Match[str]) -> str:
    return "/".join(str(int(number) + 1) for number in numbers[0].split("/"))


class LineProgress(L.Callback):
    """Prints a line after each epoch: losses, val/miou, seconds, and an estimate of the remaining minutes."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._validated = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._started, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that this epoch has validation scores of its own."""
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the epoch's line."""
        if not trainer.is_global_zero:
            return
        seconds, epochs = time.monotonic() - self._started, trainer.max_epochs or -1
        names = ("train/loss", "val/loss", "val/miou") if self._validated else ("train/loss",)
        scalars = [f"{name} {trainer.callback_metrics[name]:.4f}" for name in names if name in trainer.callback_metrics]
        left = seconds * (epochs - trainer.current_epoch - 1)
        rest = f", about {left / 60:.0f} min left" if left >= 60 else ""
        print(
            "  ".join([f"Epoch {trainer.current_epoch + 1}/{epochs}", *scalars, f"{seconds:.1f} s{rest}"]), flush=True
        )
