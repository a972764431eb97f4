"""The decoder of the paper's residual autoencoder."""

from torch import Tensor, nn

from vocseg.decoders.base import check_strides_double
from vocseg.decoders.deconv import DeconvDecoder
from vocseg.layers import Activation, xavier_


class ResidualDecoder(DeconvDecoder):
    """The baseline's decoder with a shortcut from the encoder at every level (Fig. 3).

    The listing has, at each level, a second ConvTranspose2d with as many channels in as out (512, 256, 128, 64, 32).
    Its channel counts rule out concatenation, and adding encoder maps of equal size. The reading that fits text and
    listing: it doubles the size of the encoder's feature of the same channels, and its output is added to the block's.

    Args:
        channels: of the backbone's features.
        strides: of the backbone's features: 2, 4, 8, ...
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.
        widths: output channels of each block, deepest first.

    Raises:
        VocsegError: a feature is not half the size of the one before it.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        activation: Activation = "relu",
        widths: tuple[int, ...] = (512, 256, 128, 64, 32),
    ) -> None:
        check_strides_double(strides, "ResidualDecoder")
        super().__init__(channels, strides, num_classes, activation, widths)
        self.shortcuts = nn.ModuleList(
            nn.ConvTranspose2d(channel, width, 3, stride=2, padding=1, output_padding=1)
            for channel, width in zip(reversed(channels), widths[: len(self.blocks)], strict=False)
        )
        xavier_(self.shortcuts)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See :meth:`Decoder.forward`."""
        x = features[-1]
        for level, block in enumerate(self.blocks):
            x = block(x)
            if level < len(self.shortcuts):
                x = x + self.shortcuts[level](features[-1 - level])
        return self.head(x)
