"""How the learning rate changes over a run."""

import math
from typing import Any, Literal

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vocseg.components import SavesInitArgs
from vocseg.errors import VocsegError


class Schedule(SavesInitArgs):
    """The learning rate as a share of the optimizer's, for all its parameter groups alike.

    Args:
        kind: ``constant``; ``poly``: (1 - t/T) ** power, as in DeepLab (Chen et al. 2017); ``cosine``:
            (1 + cos(pi t/T)) / 2 (Loshchilov and Hutter 2017, equation 5); ``cosine_restarts``: the same again and
            again, each time over one cycle (their section 3).
        interval: the rate changes after every optimizer ``step`` or every ``epoch``.
        warmup: this many intervals of linear growth come first.
        length: T in intervals, warm-up included; None means the whole run. The rate stays at its last value after it.
        power: exponent of ``poly``.
        cycle: intervals of the first cycle of ``cosine_restarts`` (their T_0).
        cycle_growth: how many times longer each cycle is than the one before (their T_mult).

    Raises:
        VocsegError: a length, warm-up or cycle that makes no schedule.
    """

    def __init__(
        self,
        kind: Literal["constant", "poly", "cosine", "cosine_restarts"] = "constant",
        interval: Literal["step", "epoch"] = "step",
        warmup: int = 0,
        length: int | None = None,
        power: float = 0.9,
        cycle: int | None = None,
        cycle_growth: float = 1.0,
    ) -> None:
        if length is not None and length < 1:
            raise VocsegError(f"A schedule's length must be at least 1 {interval}, got {length}.")
        if warmup < 0 or (length is not None and warmup >= length):
            raise VocsegError(f"A schedule's warmup must be at least 0 and less than its length, got {warmup}.")
        if kind == "cosine_restarts" and (cycle is None or cycle < 1 or cycle_growth < 1):
            raise VocsegError(
                f"A schedule with restarts needs a cycle of at least 1 {interval} and a cycle_growth of at least 1, "
                f"got {cycle} and {cycle_growth}."
            )
        self.kind, self.interval, self.warmup, self.length, self.power = kind, interval, warmup, length, power
        self.cycle, self.cycle_growth = cycle, cycle_growth

    def factor(self, position: int, length: int) -> float:
        """The share of the full rate in interval ``position`` (counted from 0) of ``length``."""
        if position < self.warmup:
            return (position + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine_restarts":
            position, cycle = position - self.warmup, float(self.cycle)
            while position >= cycle:
                position, cycle = position - cycle, cycle * self.cycle_growth
            return (1 + math.cos(math.pi * position / cycle)) / 2
        done = min((position - self.warmup) / max(length - self.warmup, 1), 1.0)
        return (1 - done) ** self.power if self.kind == "poly" else (1 + math.cos(math.pi * done)) / 2

    def attach(self, optimizer: Optimizer, trainer: L.Trainer) -> dict[str, Any]:
        """Binds the schedule to an optimizer.

        Args:
            optimizer: whose groups' rates are scaled.
            trainer: tells how long the run is, where ``length`` does not.

        Returns:
            What Lightning wants under ``lr_scheduler``.

        Raises:
            VocsegError: neither tells.
        """
        if self.kind in ("constant", "cosine_restarts") or self.length is not None:
            length = self.length or 0
        elif self.interval == "epoch":
            length = trainer.max_epochs or -1
        else:
            length = trainer.estimated_stepping_batches
        if length < 0 or math.isinf(length):
            raise VocsegError(
                f"A {self.kind} schedule must know where the run ends: set --trainer.max_epochs or "
                "--model.schedule.length."
            )
        return {
            "scheduler": LambdaLR(optimizer, lambda position: self.factor(position, length)),
            "interval": self.interval,
        }
