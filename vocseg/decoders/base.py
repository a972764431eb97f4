"""The base class of all decoders."""

from itertools import pairwise

from torch import Tensor

from vocseg.components import NetworkPart
from vocseg.errors import VocsegError


class Decoder(NetworkPart):
    """A network that turns the features of a backbone into logits.

    The task constructs the decoder from the backbone's ``channels`` and ``strides`` and the number of classes. These
    three are the first parameters of every decoder's constructor; the decoder's own settings follow.
    """

    def forward(self, features: list[Tensor]) -> Tensor:
        """Computes the logits.

        Args:
            features: one float tensor [B, channels[i], H / strides[i], W / strides[i]] per feature, shallow to deep.

        Returns:
            float [B, num_classes, h, w] at the decoder's own resolution; the caller resizes them to the input's size.
        """
        raise TypeError(f"{type(self).__name__} must implement forward(features) -> logits")


def check_strides_double(strides: list[int], decoder: str) -> None:
    """Checks that each stride is twice the previous one.

    Args:
        strides: strides of the backbone's features.
        decoder: name of the decoder that needs it, for the message.

    Raises:
        VocsegError: one is not.
    """
    if any(after != 2 * before for before, after in pairwise(strides)):
        raise VocsegError(
            f"{decoder} needs a backbone whose strides double from each feature to the next, but they are "
            f"{', '.join(map(str, strides))}. SkipDecoder takes any strides."
        )


def check_pyramid(strides: list[int], decoder: str) -> None:
    """Checks that the features have at least two different strides.

    Args:
        strides: strides of the features that the decoder uses.
        decoder: name of the decoder that needs it, for the message.

    Raises:
        VocsegError: they have only one.
    """
    if len(set(strides)) < 2:
        raise VocsegError(
            f"{decoder} needs features of at least two strides, but all that it gets have stride {strides[0]}. "
            "LinearHead and DPT take features of one stride; SimpleFeaturePyramid turns those of a vision transformer "
            "into a pyramid."
        )
