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


def deep_enough(strides: list[int], min_stride: int) -> list[int]:
    """Finds the features whose stride is at least ``min_stride``.

    Returns:
        Their places among ``strides``, shallow to deep.

    Raises:
        VocsegError: there are none.
    """
    places = [place for place, stride in enumerate(strides) if stride >= min_stride]
    if not places:
        raise VocsegError(f"min_stride={min_stride} leaves no feature: set it to {max(strides)} or less.")
    return places


def check_pyramid(strides: list[int], min_stride: int, decoder: str) -> None:
    """Checks that the features whose stride is at least ``min_stride`` have two different strides or more.

    Args:
        strides: strides of the backbone's features.
        min_stride: the decoder's setting.
        decoder: name of the decoder that needs it, for the message.

    Raises:
        VocsegError: they have only one.
    """
    different = sorted(set(strides))
    if len(different) < 2:
        raise VocsegError(
            f"{decoder} needs features of different strides, but all that it gets have stride {different[0]}: use "
            "LinearHead or DPT, or make a pyramid of a transformer's features with SimpleFeaturePyramid."
        )
    if different[-2] < min_stride:
        raise VocsegError(
            f"{decoder} needs features of different strides, but min_stride={min_stride} leaves only those of stride "
            f"{different[-1]}: set it to {different[-2]} or less."
        )
