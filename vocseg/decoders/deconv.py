"""The decoder of the paper's baseline."""

import math

from torch import Tensor, nn

from vocseg.decoders.base import Decoder
from vocseg.layers import Activation, paper_block, xavier_


class DeconvDecoder(Decoder):
    """The decoder of the paper's baseline (Fig. 2): transposed convolutions, each of which doubles the resolution.

    Blocks of ConvTranspose2d(kernel 3, stride 2, padding 1, output padding 1) -> activation -> batch norm bring the
    deepest feature back to the input's size: five blocks with 512-256-128-64-32 channels for a stride of 32. A 1x1
    convolution follows. Only the deepest feature is used. Xavier-uniform initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features.
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.
        widths: output channels of each block, deepest first. For a smaller stride only the first ones are used.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        activation: Activation = "relu",
        widths: tuple[int, ...] = (512, 256, 128, 64, 32),
    ) -> None:
        super().__init__()
        widths = tuple(widths)[: round(math.log2(strides[-1]))]
        self.blocks = nn.Sequential(
            *(
                paper_block(nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1), activation)
                for before, after in zip((channels[-1], *widths), widths, strict=False)
            )
        )
        self.head = nn.Conv2d(widths[-1], num_classes, 1)
        xavier_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the input."""
        return self.head(self.blocks(features[-1]))
