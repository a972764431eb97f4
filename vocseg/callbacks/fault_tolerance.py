"""Callbacks that protect a long run: a random state per step, graceful shutdown, and a stop on NaN."""

import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from vocseg.callbacks.base import is_fast_dev_run, run_folder_of
from vocseg.checkpoints import written_by_vocseg
from vocseg.errors import VocsegError


class StepSeeds(L.Callback):
    """Seeds the random generators before each step from (seed, epoch, batch, rank).

    The random draws inside a network (dropout, for one) then do not depend on earlier steps: a resumed run makes the
    same draws as an uninterrupted one. The data module seeds its own draws.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds Python's, NumPy's and torch's generators."""
        key = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        state = int(np.random.SeedSequence(key).generate_state(1)[0])
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002  (a user's own network may draw from it)
        torch.manual_seed(state)


class GracefulShutdown(L.Callback):
    """On Ctrl-C and SIGTERM: finishes the step, saves the last checkpoint, prints how to resume, and exits.

    In the last step of an epoch and during validation it first finishes the epoch. A second Ctrl-C ends the run at
    once; the checkpoint of the previous epoch stays.

    Args:
        last: writes the last checkpoint of each epoch; its path is used in the middle of an epoch, too.
        command: the command that resumes the run.
        name: of the run, which ``--ckpt_path last`` looks for.
    """

    def __init__(self, last: ModelCheckpoint, command: str, name: str = "") -> None:
        self.last, self.command, self.name = last, command, name
        self.received: int | None = None
        self._epoch_ended = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Installs the signal handlers; Lightning restores the previous ones at the end of every run.

        They replace Lightning's own handler of SIGTERM, which ends a run without saving.
        """
        if threading.current_thread() is threading.main_thread() and not is_fast_dev_run(trainer):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes that an epoch is running."""
        self._epoch_ended = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and exits between two steps of an epoch."""
        if (
            self._shutdown_wanted(trainer)
            and not trainer.is_last_batch
            and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        ):
            trainer.save_checkpoint(last_path(self.last), weights_only=False)
            self._exit(trainer, f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exits between two epochs: the checkpoint of the previous one has been saved."""
        if self._shutdown_wanted(trainer) and trainer.current_epoch > 0:
            self._exit(trainer, f"after epoch {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that the epoch has ended; Lightning saves checkpoints after this."""
        self._epoch_ended = True

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what ``--ckpt_path last`` must know: run, number of finished epochs, and a stop before the last."""
        folder = run_folder_of(trainer)
        stopping = trainer.early_stopping_callbacks
        written_by_vocseg(checkpoint).update(
            **({"name": self.name} if self.name else {}),
            run_folder=None if folder is None else str(folder.path.absolute()),
            finished_epochs=trainer.current_epoch + int(self._epoch_ended),
            stopped_early=any(callback.stopped_epoch > 0 for callback in stopping),
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Exits before what would follow a fit that was interrupted in its last epoch."""
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        # not sys.stderr: its write may be what the signal interrupted, and it is not reentrant
        os.write(2, b"\nInterrupted: saving a checkpoint after this step. Press Ctrl-C again to exit without saving.\n")

    def _shutdown_wanted(self, trainer: L.Trainer) -> bool:
        """Whether any process received a signal: all must end after the same step."""
        wanted = self.received is not None
        return trainer.strategy.reduce_boolean_decision(wanted, all=False) if trainer.world_size > 1 else wanted

    def _exit(self, trainer: L.Trainer, where: str) -> NoReturn:
        if trainer.is_global_zero:
            sys.stderr.write(f"Saved {where}. To resume: {self.command}\n")
        raise SystemExit(128 + (self.received or signal.SIGTERM))


class StopOnNaN(L.Callback):
    """Ends the run when the training loss or a parameter is NaN or infinite, before a checkpoint of it is written.

    A batch's loss is checked one batch later, so that a GPU need not wait for it.

    Args:
        last: writes the last checkpoint of each epoch, which the error message names.
    """

    def __init__(self, last: ModelCheckpoint) -> None:
        self.last = last
        self._pending: tuple[Tensor, Any, str] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Checks the previous batch's loss."""
        self._check(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the loss; checks an epoch's last one before the validation."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            indices = batch.get("index") if isinstance(batch, dict) else None
            where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch_idx})"
            self._pending = (loss.detach(), indices, where)
        if trainer.is_last_batch:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Checks what is about to be saved."""
        self._check(trainer)
        if not all(torch.isfinite(parameter).all() for parameter in pl_module.parameters()):
            raise VocsegError(
                f"The network's parameters are nan or infinite after step {trainer.global_step}. {self._advice()}"
            )

    def _check(self, trainer: L.Trainer) -> None:
        if self._pending is None:
            return
        (loss, indices, where), self._pending = self._pending, None
        if torch.isfinite(loss):
            return
        samples = getattr(getattr(trainer.train_dataloader, "dataset", None), "samples", None)
        names = [samples[int(index)].image.name for index in indices] if samples and indices is not None else []
        images = f" Its images: {', '.join(names)}." if names else ""
        raise VocsegError(f"The training loss is {float(loss)} in {where}.{images} {self._advice()}")

    def _advice(self) -> str:
        path = last_path(self.last)
        good = f"The last good checkpoint: {path}." if path.exists() else "No checkpoint was written yet."
        return f"{good} A smaller --model.optimizer.lr, or --trainer.gradient_clip_val 1, may help."


def last_path(last: ModelCheckpoint) -> Path:
    """The file that a callback for the last checkpoint writes."""
    return Path(last.dirpath or "") / f"{last.filename}.ckpt"
