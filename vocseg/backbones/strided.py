"""The encoder of the paper's baseline."""

from torch import Tensor, nn

from vocseg.backbones.base import Backbone
from vocseg.layers import Activation, paper_block, xavier_


class StridedEncoder(Backbone):
    """The encoder of the paper's baseline (Fig. 1): strided convolutions, each of which halves the resolution.

    Five blocks Conv2d(kernel 3, stride 2, padding 1) -> activation -> batch norm with 3-32-64-128-256-512 channels.
    Xavier-uniform initialisation.

    Args:
        activation: ``relu`` or ``leaky_relu``.
        widths: output channels of each convolution; their number is the number of blocks.
        freeze: do not train this backbone, or the modules with these names (see ``Backbone.freeze``).
    """

    def __init__(
        self,
        activation: Activation = "relu",
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        freeze: bool | list[str] = False,
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
            self.freeze(freeze)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``. Features at strides 2, 4, 8, ..., one per block."""
        features = []
        for block in self.blocks:
            image = block(image)
            features.append(image)
        return features
