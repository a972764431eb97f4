"""Losses over pixels. Void never counts, and a batch that is all void has loss 0."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.components import SavesInitArgs
from vocseg.errors import VocsegError

INVERSE_FREQUENCY = "inverse_frequency"


class CrossEntropy(SavesInitArgs, nn.Module):
    """Cross-entropy averaged over the pixels that are not void, each weighing as much as its class.

    Any module ``(logits, mask) -> mean`` can take its place; one that has ``totals`` as well gets its evaluation loss
    summed over the whole split and divided once.

    Args:
        class_weights: None: all classes weigh the same; ``inverse_frequency``: see :func:`inverse_frequency`, from
            the training split's pixels, which the task asks the data module for when a training starts; or one
            number per class.
        ignore_index: the label that does not count.

    Attributes:
        class_weights: float [C], stored with the checkpoint, or None.

    Raises:
        VocsegError: weights that are negative, not finite, or all 0.
    """

    def __init__(
        self,
        class_weights: Literal["inverse_frequency"] | list[float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.counts_classes = class_weights == INVERSE_FREQUENCY
        given = isinstance(class_weights, Sequence) and not self.counts_classes
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32) if given else None)
        if given:
            if not torch.isfinite(self.class_weights).all() or self.class_weights.min() < 0:
                raise VocsegError(f"class_weights must be finite and not negative, got {list(class_weights)}.")
            if self.class_weights.sum() == 0:
                raise VocsegError("class_weights are all 0: nothing would be learnt.")

    def prepare(self, num_classes: int) -> None:
        """Makes place for the weights of ``num_classes`` classes, all equal until counted; the task calls it.

        Raises:
            VocsegError: weights were given for another number of classes.
        """
        if self.counts_classes and self.class_weights is None:
            self.class_weights = torch.full((num_classes,), 1 / num_classes)
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise VocsegError(f"class_weights has {len(self.class_weights)} numbers for {num_classes} classes.")

    def totals(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The loss summed over valid pixels, and what these pixels weigh together.

        Args:
            logits: float [B, C, H, W].
            mask: int64 [B, H, W].

        Returns:
            Two float scalars, sum and weight (without class weights: the number of valid pixels).
        """
        total = F.cross_entropy(
            logits.float(), mask, weight=self.class_weights, ignore_index=self.ignore_index, reduction="sum"
        )
        return total, self._weights(mask).sum().to(total.dtype)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The mean over valid pixels, a float scalar; shapes as in :meth:`totals`."""
        total, weight = self.totals(logits, mask)
        return total / torch.where(weight > 0, weight, 1)

    def _weights(self, mask: Tensor) -> Tensor:
        """What each pixel weighs, [B, H, W]: true or its class's weight; void false or 0."""
        valid = mask != self.ignore_index
        return valid if self.class_weights is None else self.class_weights[torch.where(valid, mask, 0)] * valid


class FocalLoss(CrossEntropy):
    """Focal loss: cross-entropy that counts a pixel the less the surer the network is of it already.

    -(1 - p)^gamma log p, where p is the probability of the true class (Lin et al. 2017, "Focal Loss for Dense Object
    Detection", equation 4; their alpha is ``class_weights``). With gamma 0 it is :class:`CrossEntropy`.

    Args:
        gamma: the exponent, at least 0.
        class_weights: as in :class:`CrossEntropy`.
        ignore_index: the label that does not count.

    Raises:
        VocsegError: a negative gamma, or weights as in :class:`CrossEntropy`.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        class_weights: Literal["inverse_frequency"] | list[float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(class_weights=class_weights, ignore_index=ignore_index)
        if not gamma >= 0:
            raise VocsegError(f"Focal loss needs a gamma of at least 0, got {gamma}.")
        self.gamma = gamma

    def totals(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`CrossEntropy.totals`."""
        loss = F.cross_entropy(logits.float(), mask, ignore_index=self.ignore_index, reduction="none")
        doubt = -torch.expm1(-loss)  # 1 - p without the cancellation near p = 1
        # the slope of doubt^gamma is infinite at 0 for gamma < 1
        weights = self._weights(mask)
        total = (weights * doubt.clamp(min=1e-12) ** self.gamma * loss).sum()
        return total, weights.sum().to(total.dtype)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Class weights w_c = (1/n_c) / sum over c of (1/n_c).

    A class without pixels would weigh infinitely much; it weighs as much as the rarest that has some, and the sum runs
    over the classes that occur.

    Args:
        counts: [C], pixels n_c of each class.

    Returns:
        float [C].

    Raises:
        VocsegError: no class has pixels.
    """
    counts = counts.double()
    occurs = counts > 0
    if not occurs.any():
        raise VocsegError("Class weights cannot be counted: every pixel of the training split is void.")
    inverse = 1 / torch.where(occurs, counts, counts[occurs].min())
    return (inverse / inverse[occurs].sum()).float()


def loss_totals(loss: nn.Module, logits: Tensor, mask: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """``loss.totals`` where there is one; else the mean that ``loss`` returns, weighted with its valid pixels."""
    if hasattr(loss, "totals"):
        return loss.totals(logits, mask)
    count = (mask != ignore_index).sum()
    mean = loss(logits, mask) if count else torch.zeros((), device=logits.device)
    return mean * count, count.to(mean.dtype)
