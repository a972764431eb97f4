"""A light decoder that uses every feature of the backbone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.decoders.base import Decoder
from vocseg.layers import conv_norm_act, xavier_


class SkipDecoder(Decoder):
    """Upsamples the deepest feature step by step and joins each shallower one on the way, for any backbone.

    The deepest feature is reduced by a 1x1 convolution and joined by a global-average branch (the image as context, as
    in ParseNet, Liu et al. 2015); at each step the map is upsampled bilinearly to the next shallower feature,
    concatenated with a 1x1 projection of it, and mixed by a 3x3 convolution (as in DeepLabV3+, Chen et al. 2018).
    Logits come out at the shallowest feature's resolution. Xavier-uniform weights.

    Args:
        channels: of the backbone's features.
        strides: of the backbone's features.
        num_classes: channels of the logits.
        width: channels of the decoder's maps; the last, largest map has half of it.
        dropout: share of channels dropped before the classifier while training.
    """

    def __init__(
        self, channels: list[int], strides: list[int], num_classes: int, width: int = 128, dropout: float = 0.1
    ) -> None:
        super().__init__()
        *skips, deepest = channels
        self.reduce = conv_norm_act(deepest, width, 1)
        # no batch norm here: a pooled map has one value per image, too few to normalise in a batch of one
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
        """See :meth:`Decoder.forward`."""
        *skips, deepest = features
        x = self.reduce(deepest) + self.context(deepest)
        for skip, project, mix in zip(reversed(skips), self.project, self.mix, strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = mix(torch.cat([x, project(skip)], dim=1))
        return self.head(x)
