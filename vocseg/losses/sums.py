"""Sums: of several losses, and of one loss over the batches of an evaluation."""

import math

import torch
from torch import Tensor, nn

from vocseg.errors import VocsegError
from vocseg.losses.base import Loss


class SumOfLosses(Loss):
    """A weighted sum of losses.

    Class weights ``inverse_frequency`` work in each of them. On the command line:
    ``--model.loss SumOfLosses --model.loss.losses [CrossEntropy,Dice]``. In a config::

        loss:
          class_path: SumOfLosses
          init_args:
            losses: [{class_path: CrossEntropy}, {class_path: Dice, init_args: {smooth: 1}}]
            weights: [1, 0.5]

    Args:
        losses: modules ``(logits, mask) -> scalar``.
        weights: one factor per loss; None: all 1.

    Raises:
        VocsegError: there is no loss, one is no module, or the weights are not as many as the losses, negative, not
            finite or all 0.
    """

    def __init__(self, losses: list[Loss | nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        if not losses or not all(isinstance(loss, nn.Module) for loss in losses):
            raise VocsegError(f"SumOfLosses needs a list of one or more loss modules, got {losses!r}.")
        self.weights = [1.0] * len(losses) if weights is None else list(weights)
        if len(self.weights) != len(losses):
            raise VocsegError(f"SumOfLosses has {len(self.weights)} weights for {len(losses)} losses: give one each.")
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise VocsegError(
                f"The weights of SumOfLosses must be finite, not negative and not all 0; got {self.weights}."
            )
        self.losses = nn.ModuleList(losses)

    def prepare(self, num_classes: int) -> None:
        """Prepares the losses that need it; see :meth:`vocseg.losses.CrossEntropy.prepare`."""
        for loss in self.losses:
            prepare = getattr(loss, "prepare", None)
            if prepare is not None:
                prepare(num_classes)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Computes the weighted sum, a float scalar.

        Args:
            logits: float [B, C, H, W].
            mask: int64 [B, H, W].
        """
        values = [weight * loss(logits, mask) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(values).sum()


def loss_totals(loss: nn.Module, logits: Tensor, mask: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Computes numerator and denominator of the mean of any loss.

    Args:
        loss: if it has no ``totals``, the mean that it returns is multiplied by the number of valid pixels.
        logits: float [B, C, H, W].
        mask: int64 [B, H, W].
        ignore_index: label of void pixels.

    Returns:
        Two float scalars, as ``CrossEntropy.totals``.
    """
    totals = getattr(loss, "totals", None)
    if totals is not None:
        return totals(logits, mask)
    count = (mask != ignore_index).sum()
    mean = loss(logits, mask)
    # the mean over no pixel may be NaN; `if count` would wait for the device
    return torch.where(count > 0, mean * count, 0), count.to(mean.dtype)
