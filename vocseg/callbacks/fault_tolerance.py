"""What keeps a long run from being lost: draws that do not depend on the past, clean interruption, an end to nan."""

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
from torch import Tensor

from vocseg.errors import VocsegError


class StepSeeds(L.Callback):
    """Makes the draws inside a network (dropout, for one) follow from (seed, epoch, batch, process) alone.

    Then a resumed run draws what an uninterrupted one does. The data's draws have their own such rule.

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
        np.random.seed(state)  # noqa: NPY002  (a stranger's network may draw from it)
        torch.manual_seed(state)


class GracefulShutdown(L.Callback):
    """Ctrl-C and SIGTERM: finishes the step, saves ``last.ckpt``, says how to go on, and ends the process.

    In the last step of an epoch and in validation it first finishes the epoch. A second Ctrl-C ends the run at once;
    what was saved at the end of the epoch before stays.

    Args:
        command: what to type to go on.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.received: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens until Lightning gives the signals back, which it does at the end of every run.

        Its own handler of SIGTERM gives way, for it ends a run without saving.
        """
        if threading.current_thread() is threading.main_thread() and not trainer.fast_dev_run:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends between two steps of an epoch."""
        if (
            self._wanted(trainer)
            and not trainer.is_last_batch
            and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        ):
            path = Path(trainer.checkpoint_callbacks[-1].dirpath) / "last.ckpt"
            trainer.save_checkpoint(path, weights_only=False)
            self._end(trainer, f"in epoch {trainer.current_epoch}, after step {trainer.global_step}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends between two epochs: the checkpoint of the one before has been saved."""
        if self._wanted(trainer) and trainer.current_epoch > 0:
            self._end(trainer, f"after epoch {trainer.current_epoch - 1}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends what would come after a fit that was told to end in its last epoch."""
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        # not sys.stderr: the signal may have come in the middle of its writing, which must not be entered twice
        os.write(2, b"\nInterrupted: saving a checkpoint after this step. Ctrl-C again: not even that.\n")

    def _wanted(self, trainer: L.Trainer) -> bool:
        """Whether any process was told to end: all must end after the same step."""
        wanted = self.received is not None
        return trainer.strategy.reduce_boolean_decision(wanted, all=False) if trainer.world_size > 1 else wanted

    def _end(self, trainer: L.Trainer, where: str) -> NoReturn:
        if trainer.is_global_zero:
            sys.stderr.write(f"Saved {where}. To go on: {self.command}\n")
        raise SystemExit(128 + (self.received or signal.SIGTERM))


class StopOnNaN(L.Callback):
    """Ends the run when the training loss or the network is nan or infinite, before a checkpoint of it can be written.

    A batch's loss is looked at one batch later, so that a GPU need not wait for it.
    """

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any, str] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the batch before."""
        self._look(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the loss; looks at an epoch's last one before the validation."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            indices = batch.get("index") if isinstance(batch, dict) else None
            where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch_idx})"
            self._pending = (loss.detach(), indices, where)
        if trainer.is_last_batch:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Looks at what is about to be saved."""
        self._look(trainer)
        if not all(torch.isfinite(parameter).all() for parameter in pl_module.parameters()):
            raise VocsegError(
                f"The network's parameters are nan or infinite after step {trainer.global_step}. {_what_to_do(trainer)}"
            )

    def _look(self, trainer: L.Trainer) -> None:
        if self._pending is None:
            return
        (loss, indices, where), self._pending = self._pending, None
        if torch.isfinite(loss):
            return
        samples = getattr(trainer.train_dataloader.dataset, "samples", None)
        names = [samples[int(index)].image.name for index in indices] if samples and indices is not None else []
        photographs = f" Its photographs: {', '.join(names)}." if names else ""
        raise VocsegError(f"The training loss is {float(loss)} in {where}.{photographs} {_what_to_do(trainer)}")


def _what_to_do(trainer: L.Trainer) -> str:
    saved = [Path(callback.dirpath or "") / "last.ckpt" for callback in trainer.checkpoint_callbacks[-1:]]
    good = f"The last good checkpoint: {saved[0]}." if saved and saved[0].exists() else "No checkpoint was written yet."
    return f"{good} A smaller --model.optimizer.lr, or --trainer.gradient_clip_val 1, may help."
