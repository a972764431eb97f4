"""The semantic segmentation branch of Panoptic FPN."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vocseg.decoders.base import Decoder, check_pyramid, deep_enough
from vocseg.layers import kaiming_, resize_like


class FPN(Decoder):
    """Semantic FPN (Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", Fig. 3).

    Top-down: each map is upsampled (nearest) and added to a 1x1 projection of the next shallower feature (Lin et al.
    2017, Fig. 3, without the 3x3 convolution of the sums). Each sum then passes through stages of 3x3 convolution ->
    group norm -> ReLU -> bilinear upsampling to the next larger size, until it has the size of the shallowest feature,
    which passes through one stage. The results are added. Kaiming-normal initialisation.

    Args:
        channels: channels of the backbone's features.
        strides: strides of the backbone's features.
        num_classes: channels of the logits.
        pyramid_width: channels of the top-down maps.
        width: channels of the stages.
        dropout: probability with which a channel is dropped before the last convolution during training.
        min_stride: shallower features are ignored.

    Raises:
        VocsegError: fewer than two different strides are left.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_classes: int,
        pyramid_width: int = 256,
        width: int = 128,
        dropout: float = 0.1,
        min_stride: int = 4,
    ) -> None:
        super().__init__()
        check_pyramid(strides, min_stride, "FPN")
        self.used = deep_enough(strides, min_stride)
        self.lateral = nn.ModuleList(nn.Conv2d(channels[place], pyramid_width, 1) for place in self.used)
        used = [strides[place] for place in self.used]
        self.targets = [  # for each map, the places of the maps to whose sizes it is upsampled in turn
            [place for place in reversed(range(level)) if used[place] < used[place + 1]] or [0]
            for level in range(len(used))
        ]
        self.stages = nn.ModuleList(
            nn.ModuleList(_stage(width if number else pyramid_width, width) for number in range(len(targets)))
            for targets in self.targets
        )
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))
        kaiming_(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """See ``Decoder.forward``. The logits have the size of the shallowest feature that is used."""
        maps = [lateral(features[place]) for place, lateral in zip(self.used, self.lateral, strict=True)]
        for level in reversed(range(len(maps) - 1)):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[-2:])
        results = []
        for x, stages, targets in zip(maps, self.stages, self.targets, strict=True):
            for stage, target in zip(stages.children(), targets, strict=True):
                x = resize_like(stage(x), maps[target])
            results.append(x)
        return self.head(torch.stack(results).sum(dim=0))


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    groups = math.gcd(32, out_channels // 2)  # usually 32; at least two channels in each, for maps of one pixel
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(groups, out_channels),
        nn.ReLU(inplace=True),
    )
