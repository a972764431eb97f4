"""The paper's own encoder."""

from torch import Tensor, nn

from vocseg.backbones.base import Backbone
from vocseg.layers import Activation, paper_block, xavier_


class StridedEncoder(Backbone):
    """Strided convolutions, each halving the size: the encoder of the paper's baseline (Fig. 1).

    Five times Conv2d(k3, s2, p1) -> activation -> batch norm, 3-32-64-128-256-512 channels, Xavier-uniform weights.

    Args:
        activation: ``relu`` or ``leaky_relu``.
        widths: output channels of each convolution.
        freeze: do not train it.
    """

    def __init__(
        self,
        activation: Activation = "relu",
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        freeze: bool = False,
    ) -> None:
        super().__init__(freeze=freeze)
        self.channels = list(widths)
        self.strides = [2 ** (level + 1) for level in range(len(widths))]
        self.blocks = nn.ModuleList(
            paper_block(nn.Conv2d(before, after, 3, stride=2, padding=1), activation)
            for before, after in zip((3, *widths), widths, strict=False)
        )
        xavier_(self)
        if freeze:
            self.freeze()

    def forward(self, image: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.forward`; features at strides 2, 4, 8, 16, 32."""
        features = []
        for block in self.blocks:
            image = block(image)
            features.append(image)
        return features
