"""Progress of a fit where no progress bar can be drawn."""

import time

import lightning as L


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
            "  ".join([f"Epoch {trainer.current_epoch}/{epochs - 1}", *scalars, f"{seconds:.1f} s{rest}"]), flush=True
        )
