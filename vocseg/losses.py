"""Losses over pixels. Void never counts, and a batch that is all void has loss 0."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.recording import Recorded


class CrossEntropy(Recorded, nn.Module):
    """Cross-entropy averaged over the pixels that are not void.

    Any module ``(logits, mask) -> mean`` can take its place; one that has ``totals`` as well gets its evaluation loss
    summed over the whole split and divided once.

    Args:
        ignore_index: the label that does not count.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def totals(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over valid pixels, and how many they are.

        Args:
            logits: float [B, C, H, W].
            mask: int64 [B, H, W].

        Returns:
            Two float scalars, sum and count.
        """
        total = F.cross_entropy(logits.float(), mask, ignore_index=self.ignore_index, reduction="sum")
        return total, (mask != self.ignore_index).sum().to(total.dtype)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The mean over valid pixels, a float scalar; shapes as in :meth:`totals`."""
        total, count = self.totals(logits, mask)
        return total / count.clamp(min=1)


def loss_totals(loss: nn.Module, logits: Tensor, mask: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """``loss.totals`` where there is one; else the mean that ``loss`` returns, weighted with its valid pixels."""
    if hasattr(loss, "totals"):
        return loss.totals(logits, mask)
    count = (mask != ignore_index).sum()
    mean = loss(logits, mask) if count else torch.zeros((), device=logits.device)
    return mean * count, count.to(mean.dtype)
