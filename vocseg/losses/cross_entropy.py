"""Cross-entropy and its variants, averaged over pixels, and class weights."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vocseg.errors import VocsegError
from vocseg.losses.base import Loss

INVERSE_FREQUENCY = "inverse_frequency"


class CrossEntropy(Loss):
    """Cross-entropy, averaged over the pixels that are not void and weighted by class.

    Any module ``(logits, mask) -> mean`` can be used instead. For a loss that has ``totals`` as well, the evaluation
    loss is summed over the whole split and divided once.

    Args:
        class_weights: None, all classes have the same weight; ``inverse_frequency``, computed by the function of this
            name from the pixel counts of the training split, which the task gets from the data module when a training
            starts; or one number per class.
        ignore_index: label of void pixels, which are ignored.
        label_smoothing: the share of the target that is spread evenly over all classes, as in torch's cross-entropy
            (Szegedy et al. 2016, section 7). The evaluation loss has it too, so that it compares with the training's.

    Attributes:
        class_weights: float [C], saved in the checkpoint, or None.

    Raises:
        VocsegError: a weight is negative or not finite, all weights are 0, or label_smoothing is not in [0, 1).
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Literal["inverse_frequency"] | list[float] | None = None,
        ignore_index: int = 255,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise VocsegError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}.")
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.counts_classes = class_weights == INVERSE_FREQUENCY
        weights = None
        if isinstance(class_weights, Sequence) and not self.counts_classes:
            weights = torch.tensor(class_weights, dtype=torch.float32)
            if not torch.isfinite(weights).all() or weights.min() < 0:
                raise VocsegError(f"class_weights must be finite and not negative, got {list(class_weights)}.")
            if weights.sum() == 0:
                raise VocsegError("class_weights are all 0: nothing would be learnt.")
        self.register_buffer("class_weights", weights)

    def prepare(self, num_classes: int) -> None:
        """Allocates the class weights if they will be computed later, and checks their number. The task calls it.

        Weights for ``inverse_frequency`` are all equal until they are computed.

        Raises:
            VocsegError: there are weights for another number of classes.
        """
        if self.counts_classes and self.class_weights is None:
            self.class_weights = torch.full((num_classes,), 1 / num_classes)
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise VocsegError(f"class_weights has {len(self.class_weights)} numbers for {num_classes} classes.")

    def totals(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes numerator and denominator of the mean loss.

        Args:
            logits: float [B, C, H, W].
            mask: int64 [B, H, W], class indices or ``ignore_index``.

        Returns:
            Two float scalars: the weighted loss summed over the valid pixels, and the sum of their weights (without
            class weights, the number of valid pixels).
        """
        total = pixel_losses(
            logits, mask, self.ignore_index, weight=self.class_weights, label_smoothing=self.label_smoothing
        ).sum()
        return total, self._weights(mask).sum().to(total.dtype)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Computes the weighted mean over the valid pixels, a float scalar; shapes as in ``totals``."""
        total, weight = self.totals(logits, mask)
        return total / torch.where(weight > 0, weight, 1)

    def _weights(self, mask: Tensor) -> Tensor:
        """Weight of each pixel, [B, H, W]: float, or bool without class weights; 0 or False for void."""
        valid = mask != self.ignore_index
        return valid if self.class_weights is None else self.class_weights[torch.where(valid, mask, 0)] * valid


class FocalLoss(CrossEntropy):
    """Focal loss: cross-entropy that down-weights confidently classified pixels.

    -(1 - p)^gamma log p, where p is the predicted probability of the true class (Lin et al. 2017, "Focal Loss for Dense
    Object Detection", equation 4; their alpha is ``class_weights``). With gamma 0 it equals ``CrossEntropy``.

    Args:
        gamma: the exponent, at least 0.
        class_weights: as in ``CrossEntropy``.
        ignore_index: label of void pixels, which are ignored.

    Raises:
        VocsegError: gamma is negative, or the weights are invalid as in ``CrossEntropy``.
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
        """See ``CrossEntropy.totals``."""
        loss = pixel_losses(logits, mask, self.ignore_index)
        error_probability = -torch.expm1(-loss)  # 1 - p, without cancellation near p = 1
        # clamped because the derivative of x^gamma at 0 is infinite for gamma < 1
        weights = self._weights(mask)
        total = (weights * error_probability.clamp(min=1e-12) ** self.gamma * loss).sum()
        return total, weights.sum().to(total.dtype)


class OHEMCrossEntropy(CrossEntropy):
    """Cross-entropy of the hard pixels only (online hard example mining).

    Hard are the valid pixels whose true class has at most the probability ``threshold``, and in any case the share
    ``min_kept`` of the batch's valid pixels with the lowest ones. The others have no influence (Shrivastava et al. 2016
    choose regions so; for pixels as in the training of PSPNet's successors). The evaluation loss is the mean over the
    hard pixels of all batches.

    Args:
        threshold: a probability in (0, 1]; with 1 all pixels are hard.
        min_kept: a share in [0, 1].
        class_weights: as in ``CrossEntropy``.
        ignore_index: label of void pixels, which are ignored.

    Raises:
        VocsegError: a value is out of its range, or the weights are invalid as in ``CrossEntropy``.
    """

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: float = 0.2,
        class_weights: Literal["inverse_frequency"] | list[float] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(class_weights=class_weights, ignore_index=ignore_index)
        if not 0 < threshold <= 1 or not 0 <= min_kept <= 1:
            raise VocsegError(
                "OHEMCrossEntropy needs a threshold greater than 0 and at most 1, and a share min_kept of 0 to 1, got "
                f"{threshold} and {min_kept}."
            )
        self.threshold, self.min_kept = threshold, min_kept

    def totals(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See ``CrossEntropy.totals``; the sums run over the hard pixels."""
        loss = pixel_losses(logits, mask, self.ignore_index)
        valid = mask != self.ignore_index
        hard = valid & (loss >= -math.log(self.threshold))
        kept = math.ceil(self.min_kept * int(valid.sum()))
        if kept:
            hard |= valid & (loss >= loss.detach()[valid].topk(kept, sorted=False).values.min())
        weights = self._weights(mask) * hard
        total = (weights * loss).sum()
        return total, weights.sum().to(total.dtype)


def pixel_losses(logits: Tensor, mask: Tensor, ignore_index: int, **settings: Any) -> Tensor:
    """Computes torch's cross-entropy of each pixel, float32 [B, H, W]; 0 for void.

    The losses of the pixels have a deterministic CUDA kernel, their sum has none for 4-D logits.

    Args:
        logits: float [B, C, H, W].
        mask: int64 [B, H, W].
        ignore_index: label of void pixels.
        settings: further arguments of ``torch.nn.functional.cross_entropy``.
    """
    if logits.device.type == "cpu" and not logits.requires_grad and len(logits) > 1:
        # image by image the values stay in the cache: in less than half the time
        images = zip(logits.split(1), mask.split(1), strict=True)
        return torch.cat([pixel_losses(*image, ignore_index, **settings) for image in images])
    settings |= {"ignore_index": ignore_index, "reduction": "none"}
    if logits.stride(1) != 1:
        return F.cross_entropy(logits.float(), mask, **settings)
    # channels last: as a list of pixels, of which each has its logits side by side
    pixels = logits.float().permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(pixels, mask.flatten(), **settings).reshape(mask.shape)


def inverse_frequency(counts: Tensor) -> Tensor:
    """Computes class weights w_c = (1 / n_c) / sum over k of (1 / n_k), as in the paper.

    The sum runs over the classes that have pixels. A class without pixels gets the weight of the rarest class that has
    some, where the formula would give infinity.

    Args:
        counts: [C], number of pixels n_c of each class.

    Returns:
        float32 [C].

    Raises:
        VocsegError: no class has pixels.
    """
    counts = counts.double()
    occurs = counts > 0
    if not occurs.any():
        raise VocsegError("Class weights cannot be computed: every pixel of the training split is void.")
    inverse = 1 / torch.where(occurs, counts, counts[occurs].min())
    return (inverse / inverse[occurs].sum()).float()
