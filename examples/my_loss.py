"""A loss of your own: a module ``(logits, mask) -> scalar``; 255 in the mask is void.

vocseg fit --config mobilenet --data.root /path/to/voc --model.loss my_loss.PolyLoss --model.loss.epsilon 1
"""

from torch.nn import functional as F

from vocseg.losses import Loss


class PolyLoss(Loss):
    """Poly-1 (Leng et al. 2022, "PolyLoss", equation 6): cross-entropy + epsilon * (1 - p of the true class).

    Args:
        epsilon: weight of the added term.
    """

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits, mask):
        """Logits float [B, C, H, W] and labels int64 [B, H, W] -> the mean over valid pixels; 0 without any."""
        cross_entropy = F.cross_entropy(logits.float(), mask, ignore_index=255, reduction="none")
        valid = mask != 255
        terms = cross_entropy + self.epsilon * (1 - (-cross_entropy).exp())
        return terms[valid].sum() / valid.sum().clamp(min=1)
