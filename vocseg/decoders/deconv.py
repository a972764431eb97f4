"""The paper's own decoder."""

import math

from torch import Tensor, nn

from vocseg.decoders.base import Decoder
from vocseg.layers import Activation, paper_block, xavier_


class DeconvDecoder(Decoder):
    """Transposed convolutions, each doubling the size: the decoder of the paper's baseline (Fig. 2).

    ConvTranspose2d(k3, s2, p1, output padding 1) -> activation -> batch norm, as many as bring the deepest feature back
    to the input's size (five for a stride of 32: 512-256-128-64-32 channels), then a 1x1 convolution. Uses the deepest
    feature alone. Xavier-uniform weights.

    Args:
        channels: of the backbone's features.
        strides: of the backbone's features.
        num_classes: channels of the logits.
        activation: ``relu`` or ``leaky_relu``.
        widths: output channels of each block, deepest first; a backbone of a smaller stride uses the first ones.
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
        """See :meth:`Decoder.forward`."""
        return self.head(self.blocks(features[-1]))
