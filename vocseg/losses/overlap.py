"""Losses of overlap, averaged over the classes that occur in the batch, so that rare classes count like frequent ones.

Each is a mean over classes, not over pixels. The evaluation loss of a split averages the batches' values, weighted by
their numbers of valid pixels, and so depends on the batch size.
"""

import torch
from torch import Tensor

from vocseg.errors import VocsegError
from vocseg.losses.base import Loss


class Dice(Loss):
    """Soft Dice loss, averaged over the classes that occur in the batch.

    1 - (2 sum p g + smooth) / (sum p^2 + sum g^2 + smooth) for each class, where p is the predicted probability, g is 1
    on the pixels of the class and 0 elsewhere, and the sums run over the valid pixels of the batch (Milletari et al.
    2016, "V-Net", section 3). The paper has no ``smooth``, which damps the loss of classes with few pixels.

    Args:
        smooth: at least 0, in pixels.
        ignore_index: label of void pixels, which are ignored.

    Raises:
        VocsegError: smooth is negative or not finite.
    """

    def __init__(self, smooth: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__()
        if not 0 <= smooth < float("inf"):
            raise VocsegError(f"Dice needs a finite smooth of at least 0, got {smooth}.")
        self.smooth, self.ignore_index = smooth, ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Computes the loss, a float32 scalar.

        Args:
            logits: float [B, C, H, W].
            mask: int64 [B, H, W], class indices or ``ignore_index``.
        """
        valid = (mask != self.ignore_index)[:, None]
        probabilities = logits.float().softmax(1) * valid
        classes = torch.arange(logits.shape[1], device=mask.device)[:, None, None]
        truth = (mask[:, None] == classes) & valid
        pixels = truth.sum((0, 2, 3))
        occurs = pixels > 0
        overlap = (probabilities * truth).sum((0, 2, 3))
        size = probabilities.square().sum((0, 2, 3)) + pixels + self.smooth
        losses = 1 - (2 * overlap + self.smooth) / torch.where(occurs, size, 1)
        return torch.where(occurs, losses, 0).sum() / occurs.sum().clamp(min=1)


class LovaszSoftmax(Loss):
    """Lovasz-softmax: a surrogate of 1 - IoU, averaged over the classes that occur in the batch.

    The Lovasz extension of the Jaccard loss, taken at the errors 1 - p on the pixels of the class and p elsewhere
    (Berman et al. 2018, equations 8 and 9, and algorithm 1). For predictions of probability 0 and 1 it equals 1 - IoU.

    Args:
        per_image: average the losses of the images, each over its own classes, instead of one loss of the whole batch.
        ignore_index: label of void pixels, which are ignored.
    """

    def __init__(self, per_image: bool = False, ignore_index: int = 255) -> None:
        super().__init__()
        self.per_image, self.ignore_index = per_image, ignore_index

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Computes the loss, a float32 scalar; images of only void do not count with ``per_image``.

        Args:
            logits: float [B, C, H, W].
            mask: int64 [B, H, W], class indices or ``ignore_index``.
        """
        probabilities = logits.float().softmax(1)
        groups = zip(probabilities.split(1), mask.split(1), strict=True) if self.per_image else [(probabilities, mask)]
        losses = [_lovasz(group, labels, labels != self.ignore_index) for group, labels in groups]
        means = [torch.stack(by_class).mean() for by_class in losses if by_class]
        return torch.stack(means).mean() if means else (probabilities * 0).sum()


def _lovasz(probabilities: Tensor, mask: Tensor, valid: Tensor) -> list[Tensor]:
    """The loss of each class in the mask; probabilities are float32 [B, C, H, W]."""
    planes, losses = probabilities.unbind(1), []
    for label in mask[valid].unique().tolist():
        foreground = mask == label
        # Void has an error of 0: sorted last, it changes no step before it, and its own is multiplied by 0.
        errors = torch.where(valid, (foreground.float() - planes[label]).abs(), 0)
        errors, order = errors.flatten().sort(descending=True)
        losses.append((errors * _jaccard_steps(foreground.flatten()[order])).sum())
    return losses


def _jaccard_steps(foreground: Tensor) -> Tensor:
    """By how much 1 - IoU grows with each further wrong pixel, float32 [N], for bool [N] in the order of the errors.

    Differences of the Jaccard losses themselves, which are near 1, would lose the small steps in float32.
    """
    pixels = foreground.sum()
    intersection = pixels - foreground.cumsum(0)
    union = (pixels + (~foreground).cumsum(0)).float()
    # a missed pixel of the class leaves the union and takes 1 from the intersection; any other adds 1 to the union
    return torch.where(foreground, 1 / union, intersection / (union * (union - 1).clamp(min=1)))
