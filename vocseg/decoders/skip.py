"""A small decoder that uses every feature of the backbone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.decoders.base import Decoder
from vocseg.layers import conv_norm_act, xavier_


class SkipDecoder(Decoder):
    """A decoder with skip connections that works with any backbone.

    A 1x1 convolution reduces the deepest feature, and a global-average branch is added to it (as in ParseNet, Liu et
    al. 2015). At each step the result is upsampled bilinearly to the size of the next shallower feature, concatenated
    with a 1x1 projection of that feature, and passed through a 3x3 convolution (as in DeepLabV3+, Chen et al. 2018).
    The logits have the resolution of the shallowest feature. Xavier-uniform initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features.
        num_classes: channels of the logits.
        width: channels inside the decoder; the last step has half as many.
        dropout: probability with which a channel is dropped before the last convolution during training.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, width: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        *skips, deepest = channels
        self.reduce = conv_norm_act(deepest, width, 1)
        # no batch norm here: a pooled map has one value per image and channel, too few for a batch of one image
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(deepest, width, 1), nn.ReLU(inplace=True))
        self.project, self.mix = nn.ModuleList(), nn.ModuleList()
        before = width
        for level, skip in reversed(list(enumerate(skips))):
            after = width if level else width // 2
            self.project.append(conv_norm_act(skip, width // 2, 1))
            self.mix.append(conv_norm_act(before + width // 2, after, 3))
            before = after
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(before, num_classes, 1))
        xavier_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature."""
        *skips, deepest = features
        x = self.reduce(deepest) + self.context(deepest)
        for skip, project, mix in zip(reversed(skips), self.project, self.mix, strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = mix(torch.cat([x, project(skip)], dim=1))
        return self.head(x)
