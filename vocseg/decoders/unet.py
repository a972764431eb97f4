"""The decoders of the paper's two U-Nets: the one that its text describes, and the one that its Fig. 5 lists."""

import torch
from torch import Tensor, nn

from vocseg.decoders.base import Decoder, check_strides_double
from vocseg.layers import Activation, paper_block, xavier_


class UNetDecoder(Decoder):
    """The expanding path of an ordinary U-Net (Ronneberger et al. 2015; the paper's text, section 3.6.3).

    At each level, from the deepest feature upwards: a 2x2 transposed convolution doubles the resolution and reduces the
    channels to those of the next shallower feature; the result is concatenated with that feature; two 3x3 convolutions
    follow. A 1x1 convolution gives the logits. Xavier-uniform initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features; each must be twice the previous one.
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.

    Raises:
        VocsegError: a stride is not twice the previous one.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, activation: Activation = "relu"
    ) -> None:
        check_strides_double(strides, "UNetDecoder")
        super().__init__()
        steps = list(zip(channels[:0:-1], channels[-2::-1], strict=True))  # (deeper, shallower), deepest first
        self.ups = nn.ModuleList(nn.ConvTranspose2d(deeper, shallower, 2, stride=2) for deeper, shallower in steps)
        self.mixes = nn.ModuleList(_two_convolutions(shallower, activation, padding=1) for _, shallower in steps)
        self.head = nn.Conv2d(channels[0], num_classes, 1)
        xavier_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature."""
        *skips, x = features
        for up, mix, skip in zip(self.ups, self.mixes, reversed(skips), strict=True):
            x = mix(torch.cat([skip, up(x)], dim=1))
        return self.head(x)


class ListedUNetDecoder(Decoder):
    """The decoder of the paper's U-Net exactly as its Fig. 5 lists it, for ``ListedUNetEncoder``.

    Each of the four steps applies ConvTranspose2d(kernel 3, stride 2, padding 0), which turns n pixels into 2n + 1,
    crops the result around its centre to the size of the skip feature, concatenates both, and applies two 3x3
    convolutions. Their padding is 1, and 2 in the last step, which restores the size of the image. The crop misaligns
    deep and shallow features; this is so in the paper's listing and is not corrected here. Xavier-uniform
    initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features, all 1.
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
        """See ``Decoder.forward``. The logits have the size of the image."""
        *skips, x = features
        for up, mix, skip in zip(self.ups, self.mixes, reversed(skips), strict=True):
            x = mix(torch.cat([skip, _centre(up(x), skip.shape[-2:])], dim=1))
        return self.head(x)


def _two_convolutions(channels: int, activation: Activation, padding: int) -> nn.Sequential:
    """Two 3x3 convolution blocks, from 2 x ``channels`` (the skip feature and the upsampled one) to ``channels``."""
    return nn.Sequential(
        paper_block(nn.Conv2d(2 * channels, channels, 3, padding=padding), activation),
        paper_block(nn.Conv2d(channels, channels, 3, padding=padding), activation),
    )


def _centre(x: Tensor, size: torch.Size) -> Tensor:
    """Crops ``x`` around its centre to ``size`` (height, width)."""
    top, left = ((x.shape[axis] - side) // 2 for axis, side in zip((-2, -1), size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]
