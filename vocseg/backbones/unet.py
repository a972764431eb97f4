"""The encoders of the paper's two U-Nets: the one that its text describes, and the one that its Fig. 5 lists."""

from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.backbones.base import Backbone
from vocseg.errors import VocsegError
from vocseg.layers import Activation, paper_block, xavier_


class UNetEncoder(Backbone):
    """The contracting path of an ordinary U-Net (Ronneberger et al. 2015; the paper's text, section 3.6.3).

    Each of the five levels has two 3x3 convolutions (padding 1). From one level to the next the number of channels
    doubles and max pooling halves the resolution. The features have 1, 2, 4, 8 and 16 times ``width`` channels at
    strides 1, 2, 4, 8 and 16. Xavier-uniform initialisation.

    Args:
        width: channels of the first level; 64 in both papers.
        activation: ``relu`` or ``leaky_relu``.
        freeze: do not train this backbone, or the modules with these names (see ``Backbone.freeze``).
    """

    def __init__(self, width: int = 64, activation: Activation = "relu", freeze: bool | list[str] = False) -> None:
        super().__init__(freeze=freeze)
        self.channels = [width * 2**level for level in range(5)]
        self.strides = [2**level for level in range(5)]
        self.levels = _pairs_of_convolutions(self.channels, activation, padding=1)
        xavier_(self)
        if freeze:
            self.freeze(freeze)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``. Features at strides 1, 2, 4, 8 and 16."""
        features: list[Tensor] = []
        for level in self.levels:
            features.append(level(F.max_pool2d(features[-1], 2) if features else image))
        return features


class ListedUNetEncoder(Backbone):
    """The encoder of the paper's U-Net exactly as its Fig. 5 lists it: without pooling.

    Ten blocks Conv2d(kernel 3, stride 1, padding 0) -> activation -> batch norm: two each with 64, 128, 256, 512 and
    1024 channels. Every convolution removes one pixel at each border, so height and width must be at least 23 pixels.
    The features have stride 1 and are 4, 8, 12, 16 and 20 pixels smaller than the image in height and width.
    Xavier-uniform initialisation.

    Args:
        activation: ``relu`` or ``leaky_relu``.
        freeze: do not train this backbone, or the modules with these names (see ``Backbone.freeze``).
    """

    def __init__(self, activation: Activation = "relu", freeze: bool | list[str] = False) -> None:
        super().__init__(freeze=freeze)
        self.channels = [64, 128, 256, 512, 1024]
        self.strides = [1] * 5
        self.levels = _pairs_of_convolutions(self.channels, activation, padding=0)
        xavier_(self)
        if freeze:
            self.freeze(freeze)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Computes the features, float [B, channels[i], H - 4 (i + 1), W - 4 (i + 1)].

        Raises:
            VocsegError: height or width is below 23 pixels.
        """
        if min(image.shape[-2:]) < 23:
            raise VocsegError(
                f"ListedUNetEncoder needs images of at least 23x23 pixels, got {image.shape[-1]}x{image.shape[-2]}: "
                "its convolutions have no padding and reduce height and width by 20 pixels."
            )
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        return features


def _pairs_of_convolutions(channels: list[int], activation: Activation, padding: int) -> nn.ModuleList:
    """For each entry of ``channels``, two 3x3 convolution blocks with that many output channels."""
    return nn.ModuleList(
        nn.Sequential(
            paper_block(nn.Conv2d(before, after, 3, padding=padding), activation),
            paper_block(nn.Conv2d(after, after, 3, padding=padding), activation),
        )
        for before, after in zip([3, *channels], channels, strict=False)
    )
