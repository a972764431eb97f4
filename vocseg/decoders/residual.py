"""The decoder of the paper's residual autoencoder."""

from torch import Tensor, nn

from vocseg.decoders.base import check_strides_double
from vocseg.decoders.deconv import DeconvDecoder
from vocseg.layers import Activation, xavier_


class ResidualDecoder(DeconvDecoder):
    """The decoder of the paper's residual autoencoder (Fig. 3): the baseline's decoder plus shortcuts from the encoder.

    The paper's listing has a second ConvTranspose2d at each level, with equally many input and output channels (512,
    256, 128, 64, 32). These numbers rule out both concatenation and the addition of encoder features of equal size. The
    interpretation that fits text and listing: the second ConvTranspose2d doubles the resolution of the encoder feature
    with the same number of channels, and its output is added to the output of the block. Xavier-uniform initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features; each must be twice the previous one.
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.
        widths: output channels of each block, deepest first.

    Raises:
        VocsegError: a stride is not twice the previous one.
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
        """See ``Decoder.forward``. The logits have the size of the input."""
        x = features[-1]
        for level, block in enumerate(self.blocks):
            x = block(x)
            if level < len(self.shortcuts):
                x = x + self.shortcuts[level](features[-1 - level])
        return self.head(x)
