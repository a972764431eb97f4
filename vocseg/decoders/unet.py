"""The expanding halves of the paper's two U-Nets: the one its text describes, and the one it lists."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, check_strides_double
from vocseg.layers import Activation, paper_block, xavier_


class UNetDecoder(Decoder):
    """The expanding path of an ordinary U-Net (Ronneberger et al. 2015; the paper's text, section 3.6.3).

    From the deepest feature up: a 2x2 transposed convolution that doubles the size and takes on the next shallower
    feature's channels, concatenation with that feature, two 3x3 convolutions; a 1x1 convolution at last. Every feature
    must have twice the size of the one below it. Xavier-uniform weights.

    Args:
        channels: of the backbone's features.
        strides: of the backbone's features, each half of the next.
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.

    Raises:
        VocsegError: a feature is not half the size of the one before it.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, activation: Activation = "relu"
    ) -> None:
        check_strides_double(strides, "UNetDecoder")
        super().__init__()
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))  # (deeper, shallower), from below
        self.ups = nn.ModuleList(nn.ConvTranspose2d(deeper, shallower, 2, stride=2) for deeper, shallower in steps)
        self.mixes = nn.ModuleList(_two_convolutions(shallower, activation, padding=1) for _, shallower in steps)
        self.head = nn.Conv2d(channels[0], num_classes, 1)
        xavier_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See :meth:`Decoder.forward`."""
        *skips, x = features
        for up, mix, skip in zip(self.ups, self.mixes, reversed(skips), strict=True):
            x = mix(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


class ListedUNetDecoder(Decoder):
    """The expanding path of the paper's U-Net as its Fig. 5 lists it, for :class:`ListedUNetEncoder`.

    Four times: ConvTranspose2d(k3, s2, p0), n -> 2n + 1 pixels; its centre, of the skip's size; concatenation with the
    skip; two 3x3 convolutions, padding 1, in the last step padding 2, which gives the image's size back. Cutting the
    centre out of a map of twice the size misaligns deep and shallow features; the listing does not mend that, nor is it
    mended here. Xavier-uniform weights.

    Args:
        channels: of the backbone's features.
        strides: of the backbone's features, all 1.
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(deeper, shallower, 3, stride=2) for deeper, shallower in steps)
        self.mixes = nn.ModuleList(
            _two_convolutions(shallower, activation, padding=2 if number == len(steps) else 1)
            for number, (_, shallower) in enumerate(steps, start=1)
        )
        self.head = nn.Conv2d(channels[0], num_classes, 1)
        xavier_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See :meth:`Decoder.forward`; the logits have the image's size."""
        *skips, x = features
        for up, mix, skip in zip(self.ups, self.mixes, reversed(skips), strict=True):
            x = mix(torch.cat([skip, _centre(up(x), skip.shape[-2:])], dim=1))
        return self.head(x)


def _two_convolutions(channels: int, activation: Activation, padding: int) -> nn.Sequential:
    """Two 3x3 blocks that take ``channels`` of a skip and as many from below, and leave ``channels``."""
    return nn.Sequential(
        paper_block(nn.Conv2d(2 * channels, channels, 3, padding=padding), activation),
        paper_block(nn.Conv2d(channels, channels, 3, padding=padding), activation),
    )


def _centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((x.shape[axis] - side) // 2 for axis, side in zip((-2, -1), size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]
