"""What a decoder is."""

from itertools import pairwise

import lightning as L
from torch import Tensor

from vocseg.components import SavesInitArgs
from vocseg.errors import VocsegError


class Decoder(SavesInitArgs, L.LightningModule):
    """Turns a backbone's features into logits.

    The task makes it from the backbone's ``channels`` and ``strides`` and the number of classes; these three come first
    in every decoder's constructor, and settings of its own follow.
    """

    def forward(self, features: list[Tensor]) -> Tensor:
        """Computes the logits.

        Args:
            features: one float tensor [B, channels[i], H / strides[i], W / strides[i]] per feature, shallow to deep.

        Returns:
            float [B, num_classes, h, w] at the decoder's own resolution; the task brings them to the input's size.
        """
        raise TypeError(f"{type(self).__name__} must implement forward(features) -> logits")


def check_strides_double(strides: list[int], decoder: str) -> None:
    """Makes sure that each feature is half the size of the one before it.

    Raises:
        VocsegError: it is not; SkipDecoder takes features of any strides.
    """
    if any(after != 2 * before for before, after in pairwise(strides)):
        raise VocsegError(
            f"{decoder} needs a backbone whose features halve in size from one to the next, and the strides are "
            f"{', '.join(map(str, strides))}. SkipDecoder takes any."
        )
