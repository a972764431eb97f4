"""A pyramid of features from a backbone with features at a single stride."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.backbones.base import Backbone
from vocseg.errors import VocsegError


class SimpleFeaturePyramid(Backbone):
    """Features at strides 4, 8, 16 and 32 from the last feature of a plain vision transformer, for every decoder.

    The simple feature pyramid of ViTDet (Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object
    Detection", section 3 and Fig. 2, right). Transposed convolutions (kernel 2, stride 2; layer norm and GELU between
    two of them) enlarge the feature and max pooling reduces it. A 1x1 and a 3x3 convolution, both with layer norm over
    the channels, then bring each scale to ``width`` channels.

    Where the stride of the backbone is no power of two (14 for DINOv2), the image is resized by the ratio to the
    nearest one (14 / 16), so that each patch covers 16 pixels of the image and the strides are 4, 8, 16 and 32 again.

    The pyramid trains even if the backbone in it is frozen; ``freeze()`` of the pyramid freezes both.

    Args:
        backbone: the backbone; its last feature is used.
        width: channels of each feature; 256 in the paper.

    Raises:
        VocsegError: the backbone's features have several strides, or the stride is not between 4 and 32.
    """

    def __init__(self, backbone: Backbone, width: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        strides = self.backbone.strides
        if len(set(strides)) > 1:
            raise VocsegError(
                "SimpleFeaturePyramid needs a backbone with features at one stride, such as a plain vision "
                f"transformer; {type(self.backbone).__name__} has the strides {', '.join(map(str, strides))} and needs "
                "no pyramid."
            )
        own = 2 ** round(math.log2(strides[-1]))
        if not 4 <= own <= 32:
            raise VocsegError(f"SimpleFeaturePyramid needs a stride between 4 and 32; the backbone's is {strides[-1]}.")
        self._resize = strides[-1] / own
        self.strides = [4, 8, 16, 32]
        self.channels = [width] * 4
        self.scales = nn.ModuleList(_scale(self.backbone.channels[-1], width, own, stride) for stride in self.strides)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See ``Backbone.forward``. Features at strides 4, 8, 16 and 32."""
        if self._resize != 1:
            size = [round(side * self._resize) for side in image.shape[-2:]]
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        feature = self.backbone(image)[-1]
        return [scale(feature) for scale in self.scales]

    def load_pretrained(self) -> None:
        """See ``Backbone.load_pretrained``: the weights of the backbone in the pyramid."""
        self.backbone.load_pretrained()


def _scale(channels: int, width: int, before: int, after: int) -> nn.Sequential:
    """Brings a feature at stride ``before`` to stride ``after`` and ``width`` channels."""
    from timm.layers import LayerNorm2d  # takes a second

    layers: list[nn.Module] = []
    while before > after:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels, before = channels // 2, before // 2
    while before < after:
        layers.append(nn.MaxPool2d(2))
        before *= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    )
