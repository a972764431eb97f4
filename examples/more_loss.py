"""A task of your own: one more loss on the logits that the step has computed, without a second forward pass."""

from torch import Tensor

from vocseg import SegmentationTask


class ConfidentTask(SegmentationTask):
    """Adds the mean entropy of the predictions (Grandvalet and Bengio 2004, equation 3), so that they become sure.

    Args:
        entropy_weight: of the added term.
        **settings: as :class:`vocseg.SegmentationTask`.
    """

    def __init__(self, *args, entropy_weight: float = 0.1, **settings) -> None:
        super().__init__(*args, **settings)
        self.entropy_weight = entropy_weight

    def training_step(self, batch, batch_idx) -> dict[str, Tensor]:
        """The loss and the logits of SegmentationTask's step, with the term added to the loss."""
        step = super().training_step(batch, batch_idx)
        log_probabilities = step["logits"].log_softmax(1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
        self.log("train/entropy", entropy, on_step=False, on_epoch=True)
        return {**step, "loss": step["loss"] + self.entropy_weight * entropy}
