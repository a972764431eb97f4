"""A moving average of the weights, which is what a run is scored by and what its checkpoints hold."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vocseg.errors import VocsegError


class WeightEMA(WeightAveraging):
    """Exponential moving average of the weights: ``average = d * average + (1 - d) * weights`` after each step.

    The average is what validation scores, what the ``state_dict`` of every checkpoint holds, and what the task has
    after the fit. The weights that are being trained are in the checkpoint, too: a resumed run continues with both.

    In step t, d is ``min(decay, (1 + t) / (10 + t))``, so that the average soon forgets the first weights. The running
    statistics of batch norm are averaged like the weights that they belong to; buffers of integers are copied.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; the form with a decay as
    in Tarvainen and Valpola 2017, "Mean teachers are better role models", section 2.

    Args:
        decay: between 0 and 1, both excluded; about 1 / (1 - decay) steps count.

    Raises:
        VocsegError: another decay; when a fit begins, weights of 16 bits, which are too coarse for an average.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise VocsegError(f"The decay of the averaged weights must be between 0 and 1 (0.99, say); got {decay}.")
        super().__init__(use_buffers=True, multi_avg_fn=self._update)
        self.decay = decay

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copies the task when a fit begins, on the device that it will be trained on."""
        if stage != "fit":
            return
        if trainer.precision in ("16-true", "bf16-true"):
            raise VocsegError(
                f"Weights cannot be averaged in {trainer.precision}: use {trainer.precision.replace('true', 'mixed')}."
            )
        pl_module.to(trainer.strategy.root_device)  # Lightning does so later, and the average would stay on the CPU
        super().setup(trainer, pl_module, stage)

    def _update(self, averages: Any, values: Any, count: Tensor | int) -> None:
        """Updates averages in place: of all tensors of one type."""
        step = int(count)
        decay = min(self.decay, (1 + step) / (10 + step))
        if averages[0].is_floating_point():
            get_ema_multi_avg_fn(decay)(averages, values, count)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
