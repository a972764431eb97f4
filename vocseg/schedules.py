"""Learning-rate schedules."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from vocseg.components import SavesInitArgs
from vocseg.errors import VocsegError, nearest

SchedulerFactory = Callable[[Optimizer], LRScheduler]
"""Builds one of torch's schedulers from an optimizer: ``functools.partial(StepLR, step_size=10)`` for one."""
KINDS = ("constant", "poly", "cosine", "cosine_restarts")
INTERVALS = ("step", "epoch")


class Schedule(SavesInitArgs):
    """The learning rate as a factor of the optimizer's own, for all its parameter groups alike.

    Args:
        kind: ``constant``; ``poly``: (1 - t/T) ** power, as in DeepLab (Chen et al. 2017); ``cosine``:
            (1 + cos(pi t/T)) / 2 (Loshchilov and Hutter 2017, equation 5); ``cosine_restarts``: repeated cosine cycles
            (their section 3).
        interval: the learning rate changes after every optimizer ``step`` or every ``epoch``.
        warmup: number of intervals of linear growth at the start.
        length: T in intervals, warm-up included; None means the whole run. After it the learning rate stays at its last
            value.
        power: exponent of ``poly``.
        cycle: intervals of the first cycle of ``cosine_restarts`` (their T_0).
        cycle_growth: how many times longer each cycle is than the one before (their T_mult).

    Raises:
        VocsegError: an unknown kind or interval; a length, warm-up or cycle that makes no schedule.
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
        for name, value, choices in (("kind", kind, KINDS), ("interval", interval, INTERVALS)):
            if value not in choices:
                raise VocsegError(
                    f"There is no schedule {name} {value!r}; there are {', '.join(choices)}.{nearest(value, choices)}"
                )
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
        """The factor in interval ``position`` (counted from 0) of ``length``, between 0 and 1."""
        if position < self.warmup:
            return (position + 1) / (self.warmup + 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine_restarts":
            offset, cycle = float(position - self.warmup), float(self.cycle or 1)
            while offset >= cycle:
                offset, cycle = offset - cycle, cycle * self.cycle_growth
            return (1 + math.cos(math.pi * offset / cycle)) / 2
        done = min((position - self.warmup) / max(length - self.warmup, 1), 1.0)
        return (1 - done) ** self.power if self.kind == "poly" else (1 + math.cos(math.pi * done)) / 2

    def attach(self, optimizer: Optimizer, trainer: L.Trainer) -> dict[str, Any]:
        """Binds the schedule to an optimizer.

        Args:
            optimizer: its parameter groups' learning rates are scaled.
            trainer: knows the length of the run, where ``length`` is None.

        Returns:
            Lightning's ``lr_scheduler`` configuration.

        Raises:
            VocsegError: the length of the run is unknown.
        """
        length = float(self.length or 0)
        if self.length is None and self.kind in ("poly", "cosine"):
            epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
            length = float(epochs if self.interval == "epoch" else trainer.estimated_stepping_batches)
        if length < 0 or math.isinf(length):
            raise VocsegError(
                f"A {self.kind} schedule must know where the run ends: set --trainer.max_epochs or "
                "--model.schedule.length."
            )
        scheduler = FactorLR(optimizer, lambda position: self.factor(position, int(length)))
        return {"scheduler": scheduler, "interval": self.interval}


class FactorLR(LRScheduler):
    """Scales every group's base learning rate by ``factor(interval)``.

    As torch's ``LambdaLR``, but ``get_lr`` may be called at any time: a resumed run asks it for the learning rates that
    follow from changed settings.

    Args:
        optimizer: its learning rates are set.
        factor: takes the number of intervals so far.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The learning rate of each group in the present interval."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The state without ``factor``, which belongs to the configuration."""
        return {name: value for name, value in super().state_dict().items() if name != "factor"}


def attach_scheduler(make: SchedulerFactory, optimizer: Optimizer, trainer: L.Trainer) -> dict[str, Any]:
    """Binds one of torch's own schedulers to an optimizer, with the interval that torch documents for it.

    ``OneCycleLR`` and ``CyclicLR`` step after every optimizer step, ``ReduceLROnPlateau`` after every validation, all
    others after every epoch.

    Returns:
        Lightning's ``lr_scheduler`` configuration.

    Raises:
        VocsegError: ``ReduceLROnPlateau`` in a run without validation.
    """
    scheduler = make(optimizer)
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step" if isinstance(scheduler, OneCycleLR | CyclicLR) else "epoch"}
    if not trainer.enable_validation:
        raise VocsegError("ReduceLROnPlateau follows a score of the validation, but this run has no validation.")
    return {"scheduler": scheduler, "reduce_on_plateau": False}  # step_on_plateau() steps it, not Lightning


def step_on_plateau(scheduler: LRScheduler, scores: Mapping[str, float]) -> None:
    """Steps a ``ReduceLROnPlateau``; does nothing with any other scheduler.

    Args:
        scheduler: follows ``val/loss`` if its mode is ``min``, else ``val/miou``. Lightning's subclass names its score
            itself, as ``monitor``.
        scores: what a validation logs, by name.

    Raises:
        VocsegError: there is no score ``monitor``.
    """
    if not isinstance(scheduler, ReduceLROnPlateau):
        return
    name = getattr(scheduler, "monitor", "val/loss" if scheduler.mode == "min" else "val/miou")
    if name not in scores:
        raise VocsegError(f"ReduceLROnPlateau: a validation logs no {name!r}.{nearest(name, list(scores))}")
    scheduler.step(scores[name])


def schedule_settings(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a scheduler that has not stepped yet.

    Args:
        configuration: Lightning's ``lr_scheduler`` configuration.

    Returns:
        ``class`` and ``interval``, and ``state``, a copy of its state dict.
    """
    scheduler = configuration["scheduler"]
    return {
        "class": type(scheduler).__name__,
        "interval": configuration.get("interval", "epoch"),
        "state": copy.deepcopy(scheduler.state_dict()),
    }
